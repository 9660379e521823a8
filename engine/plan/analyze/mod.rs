//! What a query means in a stream: which of its plans can run epoch by epoch,
//! where its window is, and which column of the result carries event time.

use std::collections::BTreeMap;

use datafusion::common::TableReference;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Aggregate, Expr, JoinType, LogicalPlan};
use nexus_operators::transform::functions::Function;
use nexus_operators::transform::window::Extent;

mod bound;
pub mod join;
mod trace;
mod window;

#[cfg(test)]
mod tests;

use join::{JoinShape, StreamJoin};
use trace::{carries_time, is_key};
use window::find_window;

/// Event-time columns by the name of the stream that has them; none if a stream has no event time.
pub type EventTimes = BTreeMap<String, Option<String>>;

/// What an analysis found.
#[derive(Debug)]
pub struct Shape {
    /// The window of the aggregate, if the query has one.
    pub window: Option<WindowShape>,
    /// The columns of the result that are the keys of an aggregate without a window, whose rows change.
    pub keys: Option<Vec<usize>>,
    /// The join of two streams, if the query has one.
    pub join: Option<JoinShape>,
    /// The column of the result that carries event time.
    pub event_time: Option<usize>,
}

/// The window of a query's aggregate.
#[derive(Debug)]
pub struct WindowShape {
    /// Place among the aggregate's keys.
    pub group_index: usize,
    /// How far the window reaches.
    pub extent: Extent,
    /// For each stream, the start of a row's window over the stream's columns.
    pub starts: BTreeMap<String, Expr>,
}

/// Why a query cannot run in a stream, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong.
    pub message: String,
    /// What to try.
    pub hint: String,
}

impl Unfit {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Gives the name under which a table is known: `tier.table`, or the bare name of a source or reference table.
pub fn stream_name(table: &TableReference) -> String {
    match table.schema() {
        Some(schema) if schema != "public" => format!("{schema}.{}", table.table()),
        _ => table.table().to_owned(),
    }
}

/// Looks at an optimised plan over the streams that `times` names.
pub fn analyze(plan: &LogicalPlan, times: &EventTimes) -> Result<Shape, Unfit> {
    check(plan, times)?;
    let shape = Shape { window: None, keys: None, join: None, event_time: None };
    if let Some((join, event_time)) = join::find(plan, times)? {
        return Ok(Shape { join: Some(join), event_time, ..shape });
    }
    let Some(aggregate) = find_aggregate(plan, times)? else {
        return Ok(Shape { event_time: event_time(plan, times, None), ..shape });
    };
    match find_window(aggregate, times)? {
        Some(window) => {
            let event_time = event_time(plan, times, Some(&window));
            Ok(Shape { window: Some(window), event_time, ..shape })
        }
        None => Ok(Shape { keys: Some(key_columns(plan, aggregate, times)?), ..shape }),
    }
}

/// Finds the columns of the result that are the keys of an aggregate over windows whose rows change.
pub fn corrected_keys(plan: &LogicalPlan, times: &EventTimes) -> Result<Vec<usize>, Unfit> {
    let aggregate = find_aggregate(plan, times)?;
    aggregate.map_or_else(|| Ok(Vec::new()), |aggregate| key_columns(plan, aggregate, times))
}

fn event_time(plan: &LogicalPlan, times: &EventTimes, window: Option<&WindowShape>) -> Option<usize> {
    (0..plan.schema().fields().len()).find(|index| carries_time(plan, *index, times, window))
}

/// Finds the columns of the result that are the keys of an aggregate whose rows change.
///
/// A row that has been given out cannot be taken back: above the aggregate, nothing may leave a row out.
fn key_columns(plan: &LogicalPlan, aggregate: &Aggregate, times: &EventTimes) -> Result<Vec<usize>, Unfit> {
    // A session of another time than the event time would never end.
    let is_session = |key: &Expr| key.exists(|part| Ok(Function::Session.arguments(part).is_some())).unwrap_or(false);
    if aggregate.group_expr.is_empty() || aggregate.group_expr.iter().any(is_session) {
        return Err(without_window(times));
    }
    let mut above = plan;
    while !matches!(above, LogicalPlan::Aggregate(_)) {
        if !matches!(above, LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_)) {
            return Err(Unfit::new(
                "HAVING, a filter or a join over an aggregate whose rows change",
                "the rows of an aggregate without a window change, and those of windows that late rows correct, and one that has been written would have to be taken back; write all rows, and filter \
                 where they are read",
            ));
        }
        let Some(below) = above.inputs().into_iter().next() else { break };
        above = below;
    }
    let columns = 0..plan.schema().fields().len();
    let column_of = |key: usize| columns.clone().find(|column| is_key(plan, *column, key, times));
    let found = (0..aggregate.group_expr.len()).map(|key| {
        column_of(key).ok_or_else(|| {
            Unfit::new(
                format!(
                    "`{}` is grouped by and not selected",
                    aggregate.group_expr.get(key).map(ToString::to_string).unwrap_or_default()
                ),
                "the keys tell which row a later one replaces: select each of them",
            )
        })
    });
    found.collect()
}

/// Refuses an aggregate whose groups never end.
pub fn without_window(times: &EventTimes) -> Unfit {
    let with_time: Vec<String> =
        times.iter().filter_map(|(stream, time)| time.as_ref().map(|t| format!("`{t}` of {stream}"))).collect();
    let window = if with_time.is_empty() {
        "give the source an `event_time`, and group by date_bin(INTERVAL '1 hour', <that column>)".to_owned()
    } else {
        format!("group by date_bin(INTERVAL '1 hour', ...) or date_trunc('hour', ...) of {}", with_time.join(" or "))
    };
    Unfit::new(
        "an aggregate without a window of the event time never ends",
        format!("{window}; or have one row for each key kept up to date by `postgres: {{ key: [...] }}`"),
    )
}

fn reads_stream(plan: &LogicalPlan, times: &EventTimes) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found |= times.contains_key(&stream_name(&scan.table_name));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "looking does not fail");
    found
}

/// Refuses what would not mean the same when it runs epoch by epoch.
fn check(plan: &LogicalPlan, times: &EventTimes) -> Result<(), Unfit> {
    if !reads_stream(plan, times) {
        return Ok(());
    }
    match plan {
        LogicalPlan::Join(join) => {
            use JoinType as J;
            let on_left = reads_stream(&join.left, times);
            let kept = StreamJoin::of(plan, times).is_some()
                || matches!(
                    (on_left, join.join_type),
                    (_, J::Inner)
                        | (true, J::Left | J::LeftSemi | J::LeftAnti | J::LeftMark)
                        | (false, J::Right | J::RightSemi | J::RightAnti | J::RightMark)
                );
            if !kept {
                return Err(Unfit::new(
                    format!("a {} join that keeps the rows of a reference table", join.join_type),
                    "they would come again in each epoch; keep the rows of the stream instead",
                ));
            }
        }
        LogicalPlan::Sort(_) => {
            return Err(Unfit::new("ORDER BY over a stream", "a table has no order; leave ORDER BY out"));
        }
        LogicalPlan::Limit(_) => {
            return Err(Unfit::new("LIMIT over a stream", "a stream has no first rows; filter with WHERE"));
        }
        LogicalPlan::Window(_) => {
            return Err(Unfit::new(
                "a window function (OVER) over a stream",
                "rows of a frame may lie in different epochs; aggregate with GROUP BY date_bin(...), or use `unique`",
            ));
        }
        LogicalPlan::RecursiveQuery(_) => {
            return Err(Unfit::new("a recursive query over a stream", "write it without WITH RECURSIVE"));
        }
        LogicalPlan::Union(union) if !union.inputs.iter().all(|input| reads_stream(input, times)) => {
            return Err(Unfit::new(
                "a UNION of a stream with rows that come from no stream",
                "the rows of a reference table, or constants, would come again in each epoch; join with them instead",
            ));
        }
        _ => {}
    }
    let mut subquery_reads = false;
    let looked = plan.apply_subqueries(|subquery| {
        subquery_reads |= reads_stream(subquery, times);
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(looked.is_ok(), "looking does not fail");
    if subquery_reads {
        return Err(Unfit::new(
            "a subquery over a stream inside an expression",
            "compute it in a table of its own with an event-time window",
        ));
    }
    plan.inputs().into_iter().try_for_each(|input| check(input, times))
}

/// Finds the one aggregate over a stream.
pub fn find_aggregate<'a>(plan: &'a LogicalPlan, times: &EventTimes) -> Result<Option<&'a Aggregate>, Unfit> {
    let mut below: Vec<&Aggregate> = Vec::new();
    for input in plan.inputs() {
        below.extend(find_aggregate(input, times)?);
    }
    if below.len() > 1 {
        return Err(Unfit::new(
            "two aggregates over streams side by side",
            "write each in a table of its own and bring them together with UNION ALL",
        ));
    }
    let streams = plan.inputs().into_iter().filter(|input| reads_stream(input, times)).count();
    if streams > 1 && !below.is_empty() {
        return Err(Unfit::new(
            "a UNION of an aggregate with other rows of a stream",
            "write the aggregate in a table of its own and bring them together with UNION ALL",
        ));
    }
    let LogicalPlan::Aggregate(here) = plan else { return Ok(below.pop()) };
    if !reads_stream(plan, times) {
        return Ok(None);
    }
    if !below.is_empty() {
        return Err(Unfit::new(
            "an aggregate over an aggregate in one query",
            "write the inner one in a table of its own; windows over windows work from table to table",
        ));
    }
    Ok(Some(here))
}
