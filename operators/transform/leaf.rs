//! The leaf of a table's plan: reads a stage's channel until the barrier.
//!
//! To DataFusion it is a finite stream, so every operator above it works as in
//! a batch query. The stage connects a new channel for each epoch.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

/// Batches that wait between a stage and its plan. Two are enough to keep both
/// busy; more would only hold memory that no budget counts.
const WAITING_BATCHES_MAX: usize = 2;

/// Rows that DataFusion is told to expect, so that joins build their table from
/// the static side and stream this one.
const MANY_ROWS: usize = 1 << 40;

/// Rows that DataFusion is told to expect of what one epoch has brought: joins build their table from these, and
/// stream what is kept from epochs before.
const FEW_ROWS: usize = 1 << 10;

/// What an epoch's channel carries: a batch, or the reason why there will be no more.
type Item = Result<RecordBatch, DataFusionError>;

/// One input of a table, as DataFusion sees it.
pub struct Leaf {
    schema: SchemaRef,
    expected_rows: usize,
    /// The open epoch's streams, one for each scan of this input in the plan, or for each lane of the one scan.
    /// The lock is held for a push or a look only, so it need not be async.
    open: Mutex<Vec<Option<SendableRecordBatchStream>>>,
}

/// Feeds one epoch's rows to the scans of a [`Leaf`]; dropping it ends the epoch.
#[derive(Debug)]
pub struct LeafSender(Vec<Feed>);

#[derive(Debug)]
enum Feed {
    Bounded(mpsc::Sender<Item>),
    Elastic(mpsc::UnboundedSender<Item>),
    /// Each batch to the next in turn.
    Lanes(Vec<mpsc::Sender<Item>>, AtomicUsize),
}

impl Leaf {
    /// Makes the leaf of an input with these columns.
    pub fn new(schema: SchemaRef) -> Arc<Self> {
        Arc::new(Self { schema, expected_rows: MANY_ROWS, open: Mutex::default() })
    }

    /// Makes the leaf of an input with these columns of which few rows come at once.
    pub fn of_few(schema: SchemaRef) -> Arc<Self> {
        Arc::new(Self { schema, expected_rows: FEW_ROWS, open: Mutex::default() })
    }

    /// Gives the input's columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Connects a new epoch for a plan that scans this input `scans` times.
    ///
    /// A plan with one scan in all is fed through a bounded channel. A plan with several may read one to its
    /// end before it looks at another, so there (`elastic`) each queues what the epoch holds; an epoch is
    /// bounded in bytes by `commit`.
    pub fn connect(&self, scans: usize, elastic: bool) -> LeafSender {
        let mut open = self.lock();
        open.clear();
        let mut feeds = Vec::with_capacity(scans);
        for _ in 0..scans {
            if elastic {
                let (feed, rows) = mpsc::unbounded_channel();
                open.push(Some(
                    self.stream(futures::stream::unfold(rows, async |mut r: mpsc::UnboundedReceiver<Item>| {
                        r.recv().await.map(|item| (item, r))
                    })),
                ));
                feeds.push(Feed::Elastic(feed));
            } else {
                let (feed, rows) = self.channel();
                open.push(Some(rows));
                feeds.push(Feed::Bounded(feed));
            }
        }
        LeafSender(feeds)
    }

    /// Connects a new epoch for a plan whose one scan of this input has so many lanes.
    pub fn connect_lanes(&self, lanes: usize) -> LeafSender {
        let (feeds, rows) = (0..lanes).map(|_| self.channel()).map(|(feed, rows)| (feed, Some(rows))).unzip();
        *self.lock() = rows;
        LeafSender(vec![Feed::Lanes(feeds, AtomicUsize::new(0))])
    }

    fn channel(&self) -> (mpsc::Sender<Item>, SendableRecordBatchStream) {
        let (feed, rows) = mpsc::channel(WAITING_BATCHES_MAX);
        let rows =
            futures::stream::unfold(rows, async |mut r: mpsc::Receiver<Item>| r.recv().await.map(|item| (item, r)));
        (feed, self.stream(rows))
    }

    /// Gives the one scan of this input rows that are at hand.
    pub fn open(&self, rows: SendableRecordBatchStream) {
        *self.lock() = vec![Some(rows)];
    }

    /// Takes the rows of the one scan of this input.
    pub(super) fn take(&self) -> Option<SendableRecordBatchStream> {
        self.lock().first_mut().and_then(Option::take)
    }

    /// Drops the streams that no scan has taken.
    pub fn disconnect(&self) {
        self.lock().clear();
    }

    fn stream(&self, rows: impl Stream<Item = Item> + Send + 'static) -> SendableRecordBatchStream {
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<SendableRecordBatchStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaf({} columns)", self.schema.fields().len())
    }
}

impl LeafSender {
    /// Feeds the scans of another leaf with the same rows.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Hands a batch to every scan; waits while the plan is busy. A scan that has ended takes no more.
    pub async fn send(&self, batch: RecordBatch) {
        for feed in &self.0 {
            match feed {
                Feed::Bounded(feed) => drop(feed.send(Ok(batch.clone())).await),
                Feed::Elastic(feed) => drop(feed.send(Ok(batch.clone()))),
                Feed::Lanes(lanes, turn) => {
                    let turn = turn.fetch_add(1, Ordering::Relaxed) % lanes.len();
                    if let Some(lane) = lanes.get(turn) {
                        drop(lane.send(Ok(batch.clone())).await);
                    }
                }
            }
        }
    }
}

/// Makes a leaf known to DataFusion under a table's name.
#[derive(Debug)]
pub struct StreamTable(pub Arc<Leaf>);

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(LeafExec::new(self.0.clone(), projection.cloned())?))
    }
}

/// Runs one scan of a [`Leaf`].
#[derive(Debug)]
pub struct LeafExec {
    leaf: Arc<Leaf>,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl LeafExec {
    /// Makes a scan of these columns of a leaf.
    pub fn new(leaf: Arc<Leaf>, projection: Option<Vec<usize>>) -> Result<Self> {
        let schema = match &projection {
            Some(columns) => Arc::new(leaf.schema.project(columns)?),
            None => leaf.schema.clone(),
        };
        Ok(Self::of(leaf, projection, schema, 1))
    }

    /// Makes the same scan in so many lanes.
    pub(super) fn in_lanes(&self, lanes: usize) -> Self {
        Self::of(self.leaf.clone(), self.projection.clone(), self.schema(), lanes)
    }

    fn of(leaf: Arc<Leaf>, projection: Option<Vec<usize>>, schema: SchemaRef, lanes: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(lanes),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        // Tokio's channels let other tasks run now and then.
        .with_scheduling_type(SchedulingType::Cooperative);
        Self { leaf, projection, properties: Arc::new(properties) }
    }

    /// Gives the columns that are scanned, unless all are.
    pub(super) fn columns(&self) -> Option<&[usize]> {
        self.projection.as_deref()
    }

    /// Gives the input that is scanned.
    pub fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }
}

impl DisplayAs for LeafExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.schema().fields().iter().map(|field| field.name().clone()).collect();
        write!(f, "StreamExec: columns=[{}]", names.join(", "))
    }
}

impl ExecutionPlan for LeafExec {
    fn name(&self) -> &'static str {
        "StreamExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, lane: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut open = self.leaf.lock();
        let waiting = match self.properties.partitioning.partition_count() {
            1 => open.iter_mut().find(|rows| rows.is_some()),
            _ => open.get_mut(lane),
        };
        let Some(rows) = waiting.and_then(Option::take) else {
            return internal_err!("a plan was run without an open epoch");
        };
        drop(open);
        let Some(columns) = self.projection.clone() else { return Ok(rows) };
        let projected = rows.map(move |batch| Ok(batch?.project(&columns)?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), projected)))
    }

    fn partition_statistics(&self, _: Option<usize>) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = Precision::Inexact(self.leaf.expected_rows);
        statistics.total_byte_size = Precision::Inexact(self.leaf.expected_rows);
        Ok(Arc::new(statistics))
    }
}
