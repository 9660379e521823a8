//! Windowed aggregates across epochs: accumulator states are kept until the
//! watermark passes the end of their window, then each window is given once.
//!
//! The plan is split at its aggregate. The lower part runs in mode `Partial` in
//! each epoch; states merge in mode `PartialReduce`; mode `Final` and the rest
//! of the plan run on the windows that close. Any aggregate of DataFusion works.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::{ExecutionPlan, collect, execute_stream};

use super::leaf::LeafExec;
use super::query::{Query, Running, failed};
use super::segments::{Segment, Segments, Snapshot};
use super::session::Sessions;
use super::window::{Extent, WATERMARK_END, WATERMARK_START, Window};
use crate::error::{Error, Result};

/// Rows in a batch of merged state: as many as DataFusion's own batches hold.
const STATE_BATCH_ROWS: usize = 8192;

/// A query with one aggregate over event-time windows.
pub struct WindowedAggregate {
    query: Query,
    windows: Windows,
    states: Segments,
    closed_until_us: i64,
}

/// How states belong to windows.
enum Windows {
    /// Each state has the start of its window.
    Fixed(Window),
    /// A session is what its states make it.
    Sessions(Sessions),
}

impl WindowedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions.
    pub fn new(query: Query, group_index: usize, extent: Extent) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let windows = match extent {
            Extent::Width(width) => Windows::Fixed(Window { start: Arc::new(Column::new(name, group_index)), width }),
            Extent::Session { gap_us, last_index } => {
                Windows::Sessions(Sessions::new(group_index, last_index, keys.len(), gap_us))
            }
        };
        Ok(Self { query, windows, states: Segments::default(), closed_until_us: WATERMARK_START })
    }

    /// Gives the query as a whole.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Has the plan made again before the next epoch.
    pub fn refresh(&mut self) {
        self.query.refresh();
    }

    /// Gives the time up to which windows have been given out: a row of such a window is late.
    pub fn closed_until_us(&self) -> i64 {
        self.closed_until_us
    }

    /// Gives the columns of the states that are kept.
    pub fn state_schema(&self) -> Result<SchemaRef> {
        Ok(partial(find(self.query.physical())?)?.schema())
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        self.query.renew().await?;
        let lower = with_subqueries(self.query.physical(), partial(find(self.query.physical())?)?);
        let inputs = self.query.connect();
        let rows = execute_stream(lower, self.query.session().task_ctx()).map_err(failed)?;
        Ok(Running { inputs, rows })
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, states: RecordBatch) {
        self.states.add(states);
    }

    /// Gives the windows that end at or before the watermark, each once.
    pub async fn close(&mut self, watermark_us: i64) -> Result<Option<SendableRecordBatchStream>> {
        if watermark_us == WATERMARK_START {
            return Ok(None);
        }
        let taken =
            if watermark_us == WATERMARK_END { self.states.take_all() } else { self.take_closed(watermark_us)? };
        // Input that ends leaves no trace beyond its last window, so that later input is not late as a whole.
        let last = if watermark_us == WATERMARK_END { self.last_end_us(&taken)? } else { watermark_us };
        self.closed_until_us = self.closed_until_us.max(last);
        if taken.is_empty() {
            return Ok(None);
        }
        let upper = finish(self.query.physical(), self.united(taken)?)?;
        execute_stream(upper, self.query.session().task_ctx()).map(Some).map_err(failed)
    }

    /// Closes the epoch and tells what has to be durable.
    pub async fn snapshot(&mut self, epoch: u64) -> Result<Snapshot> {
        // The rows of a session come in with their own times: together they are one state.
        let states = match self.windows {
            _ if self.states.want_merge() => self.states.take_all(),
            Windows::Sessions(_) => self.states.take_open(),
            Windows::Fixed(_) => Vec::new(),
        };
        if !states.is_empty() {
            for merged in self.merge(states).await? {
                self.states.add(merged);
            }
        }
        Ok(self.states.seal(epoch))
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, segments: Vec<Segment>, closed_until_us: i64) -> Result<()> {
        self.closed_until_us = closed_until_us;
        self.states.restore(segments);
        // A segment is saved once; windows that were given out since are still in it.
        self.take_closed(closed_until_us).map(drop)
    }

    /// Gives the time before which no session begins that is still open, or that rows to come will open, when the
    /// watermark stands at `watermark_us`.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match &self.windows {
            Windows::Fixed(window) => Ok(window.width.earliest_open_start_us(watermark_us)),
            Windows::Sessions(sessions) => Ok(sessions.earliest_us(self.states.rows())?.min(watermark_us)),
        }
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.states.size_bytes()
    }

    /// Takes out the states of windows that end at or before the bound.
    fn take_closed(&mut self, bound_us: i64) -> Result<Vec<RecordBatch>> {
        match &self.windows {
            Windows::Fixed(window) => self.states.take(|rows| window.closed(rows, bound_us)),
            Windows::Sessions(sessions) => {
                let states: Vec<_> = self.states.rows().collect();
                let mut marks = sessions.closed(&states, bound_us)?.into_iter();
                let ended = || Error::internal("there are fewer marks than states");
                self.states.take(|_| marks.next().ok_or_else(ended))
            }
        }
    }

    /// Gives states that belong to one window equal keys.
    fn united(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        match &self.windows {
            Windows::Fixed(_) => Ok(states),
            Windows::Sessions(sessions) => sessions.unite(states),
        }
    }

    async fn merge(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let aggregate = find(self.query.physical())?;
        let reduce = over_states(aggregate, AggregateMode::PartialReduce, self.united(states)?)?;
        let merged = collect(reduce, self.query.session().task_ctx()).await.map_err(failed)?;
        let Some(first) = merged.first() else { return Ok(merged) };
        let mut coalescer = BatchCoalescer::new(first.schema(), STATE_BATCH_ROWS);
        for batch in merged {
            coalescer.push_batch(batch)?;
        }
        coalescer.finish_buffered_batch()?;
        Ok(std::iter::from_fn(|| coalescer.next_completed_batch()).collect())
    }

    fn last_end_us(&self, states: &[RecordBatch]) -> Result<i64> {
        let mut last = WATERMARK_START;
        match &self.windows {
            Windows::Fixed(window) => {
                for rows in states {
                    last = window.ends_us(rows)?.into_iter().flatten().fold(last, i64::max);
                }
            }
            Windows::Sessions(sessions) => last = sessions.last_end_us(states)?.unwrap_or(last),
        }
        Ok(last)
    }
}

/// Finds the topmost aggregate over a stream.
fn find(plan: &Arc<dyn ExecutionPlan>) -> Result<&AggregateExec> {
    let mut node = plan;
    loop {
        if let Some(aggregate) = as_aggregate(node) {
            return Ok(aggregate);
        }
        let below = node.children().into_iter().find(|child| over_stream(child));
        node = below.ok_or_else(|| Error::internal("the plan has no aggregate over a stream"))?;
    }
}

fn as_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    let aggregate = (plan.as_ref() as &dyn std::any::Any).downcast_ref::<AggregateExec>();
    aggregate.filter(|_| over_stream(plan))
}

/// Tells whether a plan reads a stage's channel.
fn over_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|node| Ok((node.as_ref() as &dyn std::any::Any).is::<LeafExec>())).unwrap_or(false)
}

/// Gives the aggregate that reads raw rows: DataFusion plans one node or two.
fn first_phase(aggregate: &AggregateExec) -> &AggregateExec {
    let two_phases = matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
    let below = two_phases.then(|| find(aggregate.input()).ok()).flatten();
    below.unwrap_or(aggregate)
}

fn partial(aggregate: &AggregateExec) -> Result<Arc<dyn ExecutionPlan>> {
    let raw = first_phase(aggregate);
    let lower = AggregateExec::try_new(
        AggregateMode::Partial,
        raw.group_expr().clone(),
        raw.aggr_expr().to_vec(),
        raw.filter_expr().to_vec(),
        raw.input().clone(),
        raw.input_schema(),
    );
    Ok(Arc::new(lower.map_err(failed)?))
}

/// Makes a phase of the aggregate that reads states instead of rows.
fn over_states(
    aggregate: &AggregateExec,
    mode: AggregateMode,
    states: Vec<RecordBatch>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let raw = first_phase(aggregate);
    let schema = partial(aggregate)?.schema();
    let input = MemorySourceConfig::try_new_exec(&[states], schema, None).map_err(failed)?;
    let no_filters = vec![None; raw.aggr_expr().len()];
    let phase = AggregateExec::try_new(
        mode,
        raw.group_expr().as_final(),
        raw.aggr_expr().to_vec(),
        no_filters,
        input,
        raw.input_schema(),
    );
    Ok(Arc::new(phase.map_err(failed)?))
}

/// Makes the plan that turns the states of closed windows into the query's rows.
fn finish(plan: &Arc<dyn ExecutionPlan>, states: Vec<RecordBatch>) -> Result<Arc<dyn ExecutionPlan>> {
    let fed = over_states(find(plan)?, AggregateMode::Final, states)?;
    let upper = plan.clone().transform_down(|node| {
        if as_aggregate(&node).is_some() {
            return Ok(Transformed::new(fed.clone(), true, TreeNodeRecursion::Stop));
        }
        Ok(Transformed::no(node))
    });
    // Subqueries have given their values to the lower part: here they are computed once more.
    reset_plan_states(upper.map_err(failed)?.data).map_err(failed)
}

/// Puts the subqueries that stand above the aggregate of a plan above its lower part too, which may use their values.
fn with_subqueries(plan: &Arc<dyn ExecutionPlan>, lower: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if as_aggregate(plan).is_some() {
        return lower;
    }
    let below = plan.children().into_iter().find(|child| over_stream(child));
    let lower = below.map_or(lower.clone(), |child| with_subqueries(child, lower));
    match (plan.as_ref() as &dyn std::any::Any).downcast_ref::<ScalarSubqueryExec>() {
        Some(above) => {
            let (subqueries, results) = (above.subqueries().to_vec(), above.results().clone());
            Arc::new(ScalarSubqueryExec::new(lower, subqueries, results))
        }
        None => lower,
    }
}
