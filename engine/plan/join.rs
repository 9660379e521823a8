//! Splits a query at its join of two streams: into what lies below it on each side, what rows of both sides give when
//! they meet, and what lies above.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef};
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, Join as JoinNode, JoinConstraint, JoinType, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use nexus_operators::clock::SharedClock;
use nexus_operators::transform::join::{
    AsOf, AsOfSide, Bounded, Join, JoinKind, Meeting, Meetings, Partners, Parts, ROW_COLUMN, Side, TIME_COLUMN,
    with_row,
};
use nexus_operators::transform::leaf::{Leaf, StreamTable};
use nexus_operators::transform::query::{Query, failed};
use nexus_operators::transform::states::StateLimits;
use nexus_operators::transform::window::{Width, Window};
use nexus_operators::{Error, Result};

use super::analyze::join::{JoinShape, StreamJoin, Until};
use super::analyze::{EventTimes, stream_name};
use crate::spec::units::Span;

/// The name under which rows of one kind are scanned; a plan has one such scan, or one for each side.
const SCANS: [&str; 2] = ["__left", "__right"];

/// A query with a join of two streams, and how its rows are kept.
pub struct JoinPlan {
    /// The query, optimised, without the time of day in it.
    pub plan: LogicalPlan,
    /// What was found of the join.
    pub shape: JoinShape,
    /// The streams that the query reads, by their event time.
    pub times: EventTimes,
}

/// What is needed to make queries of a join.
struct Making<'a> {
    plan: &'a JoinPlan,
    state: &'a SessionState,
    clock: &'a SharedClock,
    /// Both sides; turned, if the join is.
    sides: [&'a LogicalPlan; 2],
    /// Under which columns the rows of both sides are kept.
    kept: [SchemaRef; 2],
    limits: StateLimits,
}

impl JoinPlan {
    /// Says how long rows are kept.
    pub fn describe(&self) -> String {
        match &self.shape {
            JoinShape::Bounded { until, .. } => {
                let [left, right] = [&until[0], &until[1]]
                    .map(|until| Span(Duration::from_micros(until.reach_us.max(0).unsigned_abs())));
                format!("rows of a join for {left} and {right}")
            }
            JoinShape::AsOf { .. } => "the newest row of each key of a join".to_owned(),
        }
    }

    /// Makes the query ready to run over these inputs.
    pub async fn build(
        &self,
        state: &SessionState,
        clock: &SharedClock,
        inputs: &[(String, SchemaRef)],
        limits: StateLimits,
    ) -> Result<Join> {
        let (node, join) = StreamJoin::find(&self.plan, &self.times)
            .ok_or_else(|| Error::internal("the plan has no join of two streams"))?;
        let mut sides = join.sides();
        if matches!(self.shape, JoinShape::Bounded { turned: true, .. }) {
            sides.reverse();
        }
        let kept = sides.map(|side| kept_schema(side.schema()));
        // What a table keeps is shared by the rows of both sides, and by the logs of which have found a partner; the rows
        // of both may be merged in the same epoch.
        let limits = StateLimits { cached_bytes: limits.cached_bytes / 4, piece_bytes: limits.piece_bytes / 2 };
        let making = Making { plan: self, state, clock, sides, kept, limits };
        let (above, joined) = making.above(node).await?;
        let [left, right] = sides;
        let parts = Parts {
            left: making.below(left, inputs).await?,
            right: making.below(right, inputs).await?,
            meeting: match (join, &self.shape) {
                (StreamJoin::Bounded(node), JoinShape::Bounded { kind, turned, until, .. }) => {
                    Meeting::Bounded(Box::new(making.bounded(node, *kind, *turned, until).await?))
                }
                (StreamJoin::AsOf(_), JoinShape::AsOf { times, keys, same_time }) => {
                    Meeting::AsOf(Box::new(making.as_of(times, keys, *same_time)?))
                }
                _ => return Err(Error::internal("the plan has another join than was found")),
            },
            behind_us: match &self.shape {
                JoinShape::Bounded { behind_us, .. } => *behind_us,
                JoinShape::AsOf { .. } => 0,
            },
            kept: making.kept,
            above,
            joined,
        };
        Ok(Join::new(parts))
    }
}

impl Making<'_> {
    async fn query(&self, plan: LogicalPlan, leaves: Vec<Arc<Leaf>>) -> Result<Query> {
        Query::new(self.state.clone(), plan, leaves, self.clock.clone()).await
    }

    /// Makes the query below a side, which has leaves of its own: both sides may read the same stream.
    async fn below(&self, side: &LogicalPlan, inputs: &[(String, SchemaRef)]) -> Result<Query> {
        let leaves: Vec<Arc<Leaf>> = inputs.iter().map(|(_, schema)| Leaf::new(schema.clone())).collect();
        let own = side.clone().transform_down_with_subqueries(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let name = stream_name(&scan.table_name);
            let place = inputs.iter().position(|(input, _)| *input == name);
            let Some(leaf) = place.and_then(|place| leaves.get(place)) else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            scan.source = provider_as_source(Arc::new(StreamTable(leaf.clone())));
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        });
        self.query(own.map_err(failed)?.data, leaves).await
    }

    /// Makes the query above the join, and gives the columns of the rows that it reads.
    async fn above(&self, node: &LogicalPlan) -> Result<(Query, SchemaRef)> {
        let fields = node.schema().fields().len();
        let turned = matches!(self.plan.shape, JoinShape::Bounded { kind, turned: true, .. } if kind.gives_pairs());
        // Turned, the columns of the right come first.
        let first = if turned { self.kept[0].fields().len() } else { 0 };
        let order: Vec<usize> = (0..fields).map(|index| (index + first) % fields).collect();
        let turned_back = (0..fields).map(|place| (place, (place + fields - first) % fields));
        let columns =
            turned_back.map(|(place, index)| node.schema().field(index).as_ref().clone().with_name(name(place)));
        let joined: SchemaRef = Arc::new(Schema::new(columns.collect::<Vec<_>>()));
        let leaf = Leaf::new(joined.clone());
        let rows = renamed(SCANS[0], leaf.clone(), node.schema(), &order, false)?;
        let above = self.plan.plan.clone().transform_down(|here| {
            if StreamJoin::of(&here, &self.plan.times).is_some() {
                return Ok(Transformed::new(rows.clone(), true, TreeNodeRecursion::Stop));
            }
            Ok(Transformed::no(here))
        });
        Ok((self.query(above.map_err(failed)?.data, vec![leaf]).await?, joined))
    }

    async fn bounded(&self, node: &JoinNode, kind: JoinKind, turned: bool, until: &[Until; 2]) -> Result<Bounded> {
        let numbered = [kind != JoinKind::Inner, kind == JoinKind::Full];
        let pairs = match kind.gives_pairs() {
            true => Some(self.meetings([0, 1], numbered, &|rows| pairs(node, turned, rows)).await?),
            false => None,
        };
        let (mut sides, mut first) = (Vec::with_capacity(2), 0);
        for (place, until) in until.iter().enumerate() {
            let mut partners = None;
            if numbered.get(place) == Some(&true) {
                let time = until.time.clone();
                let is_right = (place == 1) != turned;
                let make = |rows| found(node, is_right, rows, time.clone(), kind == JoinKind::Semi);
                let meetings = self.meetings([place, 1 - place], numbered, &make).await?;
                let leave = matches!(kind, JoinKind::Semi | JoinKind::Anti);
                let time = Arc::new(PhysicalColumn::new(TIME_COLUMN, 1));
                partners = Some(Partners::new(meetings, leave, window(time, until.reach_us), self.limits)?);
            }
            let time = window(self.physical(&until.time, place)?, until.reach_us);
            let kept = self.kept.get(place).ok_or_else(|| Error::internal("a join has two sides"))?;
            let columns = first..first + kept.fields().len();
            first = columns.end;
            sides.push(Side::new(kept, columns, time, partners, self.limits)?);
        }
        let sides = <[Side; 2]>::try_from(sides).map_err(|_| Error::internal("a join has two sides"))?;
        Ok(Bounded::new(kind, sides, pairs))
    }

    fn as_of(&self, times: &[Expr; 2], keys: &[Vec<Expr>; 2], same_time: bool) -> Result<AsOf> {
        let side = |place: usize| {
            let keys = keys.get(place).into_iter().flatten().map(|key| self.physical(key, place));
            let time = times.get(place).ok_or_else(|| Error::internal("a join has two sides"))?;
            Ok::<_, Error>(AsOfSide::new(self.physical(time, place)?, keys.collect::<Result<_>>()?))
        };
        AsOf::new([side(0)?, side(1)?], same_time, &self.kept, self.limits)
    }

    /// Makes a query over the kept rows of both sides, in this order.
    async fn meetings(
        &self,
        order: [usize; 2],
        numbered: [bool; 2],
        make: &(dyn Fn([LogicalPlan; 2]) -> Result<LogicalPlan> + Sync),
    ) -> Result<Meetings> {
        let mut queries = Vec::with_capacity(2);
        for few in 0..2 {
            let (mut leaves, mut rows) = (Vec::new(), Vec::new());
            for (place, side) in order.into_iter().enumerate() {
                let (Some(kept), Some(of), Some(numbered), Some(scan)) =
                    (self.kept.get(side), self.sides.get(side), numbered.get(side), SCANS.get(side))
                else {
                    return Err(Error::internal("a join has two sides"));
                };
                let columns = if *numbered { with_row(kept) } else { kept.clone() };
                let leaf = if place == few { Leaf::of_few(columns) } else { Leaf::new(columns) };
                let places: Vec<usize> = (0..kept.fields().len()).collect();
                rows.push(renamed(scan, leaf.clone(), of.schema(), &places, *numbered)?);
                leaves.push(leaf);
            }
            let rows = <[LogicalPlan; 2]>::try_from(rows).map_err(|_| Error::internal("a join has two sides"))?;
            queries.push(self.query(make(rows)?, leaves).await?);
        }
        let queries = <[Query; 2]>::try_from(queries).map_err(|_| Error::internal("there are two queries"))?;
        let [few_first, few_second] = queries;
        Ok(Meetings::new(few_first, few_second))
    }

    /// Makes an expression over a side's columns ready to run.
    fn physical(&self, expr: &Expr, side: usize) -> Result<Arc<dyn PhysicalExpr>> {
        let side = self.sides.get(side).ok_or_else(|| Error::internal("a join has two sides"))?;
        self.state.create_physical_expr(expr.clone(), side.schema()).map_err(failed)
    }
}

/// Makes the pairs of rows that meet, without their numbers.
fn pairs(node: &JoinNode, turned: bool, rows: [LogicalPlan; 2]) -> Result<LogicalPlan> {
    let own = |rows: &LogicalPlan| rows.schema().columns().into_iter().filter(|column| column.name != ROW_COLUMN);
    let columns: Vec<Expr> = rows.iter().flat_map(own).map(Expr::Column).collect();
    let columns = columns.into_iter().enumerate().map(|(place, column)| column.alias(name(place)));
    let met = joined(node, turned, JoinType::Inner, rows)?;
    LogicalPlanBuilder::from(met).project(columns.collect::<Vec<_>>()).and_then(|plan| plan.build()).map_err(failed)
}

/// Makes the numbers and times of the rows of the first input that have a partner in the second; with `whole`, behind the
/// rows themselves.
fn found(node: &JoinNode, turned: bool, rows: [LogicalPlan; 2], time: Expr, whole: bool) -> Result<LogicalPlan> {
    let met = joined(node, turned, JoinType::LeftSemi, rows)?;
    let is_row = |column: &Column| column.name == ROW_COLUMN;
    let (row, own): (Vec<_>, Vec<_>) = met.schema().columns().into_iter().partition(is_row);
    let own = own.into_iter().filter(|_| whole).enumerate().map(|(place, own)| Expr::Column(own).alias(name(place)));
    let row = row.into_iter().map(|row| Expr::Column(row).alias(ROW_COLUMN));
    let columns: Vec<Expr> = own.chain(row).chain([time.alias(TIME_COLUMN)]).collect();
    LogicalPlanBuilder::from(met).project(columns).and_then(|plan| plan.build()).map_err(failed)
}

/// Joins rows as a node does, which may have them the other way round.
fn joined(node: &JoinNode, turned: bool, kind: JoinType, [first, second]: [LogicalPlan; 2]) -> Result<LogicalPlan> {
    let on = node.on.iter().cloned();
    let on = on.map(|(left, right)| if turned { (right, left) } else { (left, right) }).collect();
    let (filter, nulls) = (node.filter.clone(), node.null_equality);
    let join = JoinNode::try_new(first.into(), second.into(), on, filter, kind, JoinConstraint::On, nulls, false);
    join.map(LogicalPlan::Join).map_err(failed)
}

/// Scans a leaf, whose n-th column gets the n-th name of a schema; `places` are the columns' places in the leaf.
fn renamed(scan: &str, leaf: Arc<Leaf>, schema: &DFSchemaRef, places: &[usize], numbered: bool) -> Result<LogicalPlan> {
    let source = provider_as_source(Arc::new(StreamTable(leaf)));
    let column = |name: String| Expr::Column(Column::new(Some(scan), name));
    let named = schema.iter().zip(places);
    let named =
        named.map(|((relation, field), place)| column(name(*place)).alias_qualified(relation.cloned(), field.name()));
    let row = numbered.then(|| column(ROW_COLUMN.to_owned()).alias_qualified(Some(scan), ROW_COLUMN));
    let plan = LogicalPlanBuilder::scan(scan, source, None).and_then(|plan| plan.project(named.chain(row)));
    plan.and_then(|plan| plan.build()).map_err(failed)
}

/// Gives the columns under which rows of a side are kept.
fn kept_schema(schema: &DFSchemaRef) -> SchemaRef {
    let columns = schema.fields().iter().enumerate();
    let kept = columns.map(|(place, field)| field.as_ref().clone().with_name(name(place)).with_nullable(true));
    Arc::new(Schema::new(kept.collect::<Vec<_>>()))
}

fn name(place: usize) -> String {
    format!("c{place}")
}

fn window(time: Arc<dyn PhysicalExpr>, reach_us: i64) -> Window {
    Window { start: time, width: Width::Micros(reach_us.saturating_add(1)) }
}
