//! What a query means in a stream: which of its plans can run epoch by epoch,
//! where its window is, and which column of the result carries event time.

use std::collections::BTreeMap;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::logical_expr::{Aggregate, Expr, JoinType, LogicalPlan};
use nexus_operators::transform::window::Width;

/// Event-time columns by the name of the stream that has them; none if a stream has no event time.
pub type EventTimes = BTreeMap<String, Option<String>>;

/// What an analysis found.
#[derive(Debug)]
pub struct Shape {
    /// The window of the aggregate, if the query has one.
    pub window: Option<WindowShape>,
    /// The column of the result that carries event time.
    pub event_time: Option<usize>,
}

/// The window of a query's aggregate.
#[derive(Debug)]
pub struct WindowShape {
    /// Place among the aggregate's keys.
    pub group_index: usize,
    /// How long the window is.
    pub width: Width,
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
    let window = match find_aggregate(plan, times)? {
        Some(aggregate) => Some(find_window(aggregate, times)?),
        None => None,
    };
    let event_time = (0..plan.schema().fields().len()).find(|index| carries_time(plan, *index, times, &window));
    Ok(Shape { window, event_time })
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
            let on_right = reads_stream(&join.right, times);
            if on_left && on_right {
                return Err(Unfit::new(
                    "a join of two streams",
                    "rows that belong together may lie in different epochs; join with a reference table, or aggregate \
                     both over the same window in one query with UNION ALL",
                ));
            }
            let kept = matches!(
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
fn find_aggregate<'a>(plan: &'a LogicalPlan, times: &EventTimes) -> Result<Option<&'a Aggregate>, Unfit> {
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

fn find_window(aggregate: &Aggregate, times: &EventTimes) -> Result<WindowShape, Unfit> {
    if aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Err(Unfit::new("GROUPING SETS, ROLLUP or CUBE over a stream", "write one table for each set of keys"));
    }
    for (group_index, key) in aggregate.group_expr.iter().enumerate() {
        let mut width = None;
        let mut starts = BTreeMap::new();
        for (stream, start) in trace(&aggregate.input, key.clone()) {
            let Some(found) = window_of(&start, times.get(&stream).and_then(Option::as_deref)) else {
                starts.clear();
                break;
            };
            if width.is_some_and(|known| known != found) {
                return Err(Unfit::new("windows of different widths in one query", "use the same width in each part"));
            }
            width = Some(found);
            starts.insert(stream, start);
        }
        if let (Some(width), false) = (width, starts.is_empty()) {
            return Ok(WindowShape { group_index, width, starts });
        }
    }
    let with_time: Vec<String> =
        times.iter().filter_map(|(stream, time)| time.as_ref().map(|t| format!("`{t}` of {stream}"))).collect();
    let hint = if with_time.is_empty() {
        "give the source an `event_time`, and group by date_bin(INTERVAL '1 hour', <that column>)".to_owned()
    } else {
        format!("group by date_bin(INTERVAL '1 hour', ...) or date_trunc('hour', ...) of {}", with_time.join(" or "))
    };
    Err(Unfit::new("an aggregate without a window of the event time never ends", hint))
}

/// Tells how long the window is that starts at `start`, if `start` is the start of a window of the column `time`.
fn window_of(start: &Expr, time: Option<&str>) -> Option<Width> {
    let time = time?;
    match plain(start) {
        Expr::Column(column) => (column.name == time).then_some(Width::Micros(1)),
        Expr::ScalarFunction(call) => {
            let (Some(Expr::Literal(by, _)), Some(of)) = (call.args.first(), call.args.get(1)) else { return None };
            let Expr::Column(column) = plain(of) else { return None };
            if column.name != time {
                return None;
            }
            match call.name() {
                "date_bin" => interval_width(by),
                "date_trunc" => unit_width(by.try_as_str().flatten()?),
                _ => None,
            }
        }
        _ => None,
    }
}

fn plain(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => plain(&alias.expr),
        Expr::Cast(cast) if cast.field.data_type().is_temporal() => plain(&cast.expr),
        _ => expr,
    }
}

fn interval_width(interval: &ScalarValue) -> Option<Width> {
    const DAY_US: i64 = 86_400_000_000;
    let (months, days, nanos) = match interval {
        ScalarValue::IntervalMonthDayNano(Some(i)) => (i.months, i.days, i.nanoseconds),
        ScalarValue::IntervalDayTime(Some(i)) => (0, i.days, i64::from(i.milliseconds) * 1_000_000),
        ScalarValue::IntervalYearMonth(Some(months)) => (*months, 0, 0),
        _ => return None,
    };
    match (months, days, nanos) {
        (months, 0, 0) if months > 0 => u32::try_from(months).ok().map(Width::Months),
        (0, days, nanos) => {
            let us = i64::from(days) * DAY_US + nanos / 1000;
            (us > 0 && nanos % 1000 == 0).then_some(Width::Micros(us))
        }
        _ => None,
    }
}

fn unit_width(unit: &str) -> Option<Width> {
    const SECOND_US: i64 = 1_000_000;
    Some(match unit.to_ascii_lowercase().as_str() {
        "microsecond" => Width::Micros(1),
        "millisecond" => Width::Micros(1000),
        "second" => Width::Micros(SECOND_US),
        "minute" => Width::Micros(60 * SECOND_US),
        "hour" => Width::Micros(3600 * SECOND_US),
        "day" => Width::Micros(86_400 * SECOND_US),
        "week" => Width::Micros(7 * 86_400 * SECOND_US),
        "month" => Width::Months(1),
        "quarter" => Width::Months(3),
        "year" => Width::Months(12),
        _ => return None,
    })
}

/// Follows an expression over a plan's columns down to the streams: by stream, the same over the stream's columns.
fn trace(plan: &LogicalPlan, expr: Expr) -> Vec<(String, Expr)> {
    match plan {
        LogicalPlan::TableScan(scan) => vec![(stream_name(&scan.table_name), unqualified(expr))],
        LogicalPlan::Projection(projection) => {
            let below = replace(expr, &projection.schema, |index| projection.expr.get(index).cloned());
            below.map_or_else(Vec::new, |below| trace(&projection.input, below))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            through(&alias.schema, &alias.input, expr).map_or_else(Vec::new, |below| trace(&alias.input, below))
        }
        LogicalPlan::Union(union) => {
            let parts = union.inputs.iter();
            let traced = parts.map(|input| through(&union.schema, input, expr.clone()).map(|e| trace(input, e)));
            traced.collect::<Option<Vec<_>>>().unwrap_or_default().concat()
        }
        LogicalPlan::Join(join) => {
            let columns = expr.column_refs();
            let within = |schema: &DFSchema| columns.iter().all(|column| schema.has_column(column));
            match (within(join.left.schema()), within(join.right.schema())) {
                (true, false) => trace(&join.left, expr),
                (false, true) => trace(&join.right, expr),
                _ => Vec::new(),
            }
        }
        LogicalPlan::Filter(_) | LogicalPlan::Distinct(_) | LogicalPlan::Repartition(_) => {
            plan.inputs().first().map_or_else(Vec::new, |input| trace(input, expr))
        }
        _ => Vec::new(),
    }
}

/// Tells whether a column of the result carries event time: a stream's own, or the start of the window.
fn carries_time(plan: &LogicalPlan, index: usize, times: &EventTimes, window: &Option<WindowShape>) -> bool {
    let (qualifier, field) = plan.schema().qualified_field(index);
    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let Some(window) = window else {
        let traced = trace(plan, column);
        return !traced.is_empty()
            && traced.iter().all(|(stream, expr)| {
                let time = times.get(stream).and_then(Option::as_deref);
                matches!(plain(expr), Expr::Column(column) if time == Some(column.name.as_str()))
            });
    };
    traces_to_key(plan, column, window.group_index, times)
}

fn traces_to_key(plan: &LogicalPlan, expr: Expr, key: usize, times: &EventTimes) -> bool {
    match plan {
        LogicalPlan::Aggregate(aggregate) if reads_stream(plan, times) => {
            let Expr::Column(column) = plain(&expr) else { return false };
            aggregate.schema.index_of_column(column).ok() == Some(key)
        }
        LogicalPlan::Projection(projection) => {
            replace(expr, &projection.schema, |index| projection.expr.get(index).cloned())
                .is_some_and(|below| traces_to_key(&projection.input, below, key, times))
        }
        LogicalPlan::SubqueryAlias(alias) => through(&alias.schema, &alias.input, expr)
            .is_some_and(|below| traces_to_key(&alias.input, below, key, times)),
        _ => {
            let mut inputs = plan.inputs().into_iter().filter(|input| reads_stream(input, times));
            inputs.next().is_some_and(|input| traces_to_key(input, expr, key, times))
        }
    }
}

/// Rewrites columns of `schema` to the columns at the same place of `input`.
fn through(schema: &DFSchema, input: &LogicalPlan, expr: Expr) -> Option<Expr> {
    replace(expr, schema, |index| {
        (index < input.schema().fields().len()).then(|| {
            let (qualifier, field) = input.schema().qualified_field(index);
            Expr::Column(Column::new(qualifier.cloned(), field.name()))
        })
    })
}

/// Rewrites columns of `schema` by their index.
fn replace(expr: Expr, schema: &DFSchema, by: impl Fn(usize) -> Option<Expr>) -> Option<Expr> {
    let mut known = true;
    let rewritten = expr.transform(|part| {
        let Expr::Column(column) = &part else { return Ok(Transformed::no(part)) };
        match schema.index_of_column(column).ok().and_then(&by) {
            // What replaces a column is written over other columns: it is not looked at again.
            Some(other) => Ok(Transformed::new(other.unalias(), true, TreeNodeRecursion::Jump)),
            None => {
                known = false;
                Ok(Transformed::no(part))
            }
        }
    });
    rewritten.ok().filter(|_| known).map(|rewritten| rewritten.data)
}

fn unqualified(expr: Expr) -> Expr {
    let bare = expr.clone().transform(|part| {
        Ok(match part {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map_or(expr, |bare| bare.data)
}
