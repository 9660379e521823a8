//! Joins of two streams: what comes out of them, and how long their rows are kept.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::{Expr, Join, JoinType, LogicalPlan, Operator};
use nexus_operators::transform::join::JoinKind;

use super::bound::{self, Bound, SideTime, is_event_time};
use super::trace::{carries_time, lowered};
use super::{EventTimes, Unfit, reads_stream, stream_name};
use crate::plan::as_of::AsOfNode;

/// A join of two streams in a plan.
#[derive(Debug, Clone, Copy)]
pub enum StreamJoin<'a> {
    /// Of all rows that fit one another.
    Bounded(&'a Join),
    /// Of each row of the left with the newest that fits of the right.
    AsOf(&'a AsOfNode),
}

/// What an analysis found of a query's join.
#[derive(Debug, Clone)]
pub enum JoinShape {
    /// Within a time bound.
    Bounded {
        /// What comes out.
        kind: JoinKind,
        /// Whether the right stands for the left, and the left for the right.
        turned: bool,
        /// How long rows are kept: those of the left, those of the right, turned if they are.
        until: [Until; 2],
        /// By how much the event time of the result may lie behind the watermark, in microseconds.
        behind_us: i64,
    },
    /// With the newest.
    AsOf {
        /// The time of the rows of each side.
        times: [Expr; 2],
        /// The keys of the rows of each side.
        keys: [Vec<Expr>; 2],
        /// Whether a row may be of the very same time.
        same_time: bool,
    },
}

/// How long rows of a side are kept.
#[derive(Debug, Clone)]
pub struct Until {
    /// A time over the side's columns.
    pub time: Expr,
    /// A row is kept as long as the watermark is not more than this behind its time, in microseconds.
    pub reach_us: i64,
}

impl<'a> StreamJoin<'a> {
    /// Tells whether a node of a plan is a join of two streams.
    pub fn of(plan: &'a LogicalPlan, times: &EventTimes) -> Option<Self> {
        match plan {
            LogicalPlan::Join(join) if reads_stream(&join.left, times) && reads_stream(&join.right, times) => {
                Some(StreamJoin::Bounded(join))
            }
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref().map(StreamJoin::AsOf),
            _ => None,
        }
    }

    /// Finds the join of two streams in a plan.
    pub fn find(plan: &'a LogicalPlan, times: &EventTimes) -> Option<(&'a LogicalPlan, Self)> {
        let here = Self::of(plan, times).map(|join| (plan, join));
        here.or_else(|| plan.inputs().into_iter().find_map(|input| Self::find(input, times)))
    }

    /// Gives both sides.
    pub fn sides(self) -> [&'a LogicalPlan; 2] {
        match self {
            StreamJoin::Bounded(join) => [&join.left, &join.right],
            StreamJoin::AsOf(node) => [&node.left, &node.right],
        }
    }
}

/// Finds the one join of two streams in a plan, and the column of the result that carries event time.
pub(super) fn find(plan: &LogicalPlan, times: &EventTimes) -> Result<Option<(JoinShape, Option<usize>)>, Unfit> {
    let Some((node, join)) = find_one(plan, times)? else { return Ok(None) };
    if has_aggregate(plan, times) {
        return Err(Unfit::new(
            "a join and an aggregate of streams in one query",
            "write the join in a table of its own (with `store: false` it is not stored), and the aggregate in one that \
             reads it",
        ));
    }
    for side in join.sides() {
        let mut without = None;
        each_stream(side, times, |stream, time| {
            if time.is_none() {
                without = Some(stream.to_owned());
            }
        });
        if let Some(stream) = without {
            return Err(Unfit::new(
                format!("a join of two streams, of which {stream} has no event time"),
                format!(
                    "give it one: an `event_time` if it is a source, a column with the event time if it is a table; rows of \
                     {stream} would be kept for ever"
                ),
            ));
        }
    }
    let (shape, behind) = match join {
        StreamJoin::Bounded(join) => bounded(join, times)?,
        StreamJoin::AsOf(node) => (as_of(node, times)?, [Some(0), None]),
    };
    let time = (0..plan.schema().fields().len()).find_map(|index| {
        let side = if carries_time(plan, index, times, None) { side_of(plan, node, join, index) } else { None };
        Some((index, (*behind.get(side?)?)?))
    });
    Ok(Some(match (shape, time) {
        (JoinShape::Bounded { kind, turned, until, .. }, Some((index, behind_us))) => {
            (JoinShape::Bounded { kind, turned, until, behind_us }, Some(index))
        }
        (shape, time) => (shape, time.map(|(index, _)| index)),
    }))
}

fn find_one<'a>(plan: &'a LogicalPlan, times: &EventTimes) -> Result<Option<(&'a LogicalPlan, StreamJoin<'a>)>, Unfit> {
    let mut below = Vec::new();
    for input in plan.inputs() {
        below.extend(find_one(input, times)?);
    }
    let here = StreamJoin::of(plan, times);
    if below.len() + usize::from(here.is_some()) > 1 {
        return Err(Unfit::new(
            "two joins of streams in one query",
            "write the first in a table of its own (with `store: false` it is not stored), and join with that",
        ));
    }
    let streams = plan.inputs().into_iter().filter(|input| reads_stream(input, times)).count();
    if streams > 1 && !below.is_empty() {
        return Err(Unfit::new(
            "a UNION of a join of streams with other rows of a stream",
            "write the join in a table of its own and bring them together with UNION ALL",
        ));
    }
    Ok(here.map(|join| (plan, join)).or_else(|| below.pop()))
}

fn has_aggregate(plan: &LogicalPlan, times: &EventTimes) -> bool {
    let here = matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)) && reads_stream(plan, times);
    here || plan.inputs().into_iter().any(|input| has_aggregate(input, times))
}

/// Tells the streams that a plan reads, with their event time.
fn each_stream(plan: &LogicalPlan, times: &EventTimes, mut tell: impl FnMut(&str, Option<&str>)) {
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let stream = stream_name(&scan.table_name);
            if let Some(time) = times.get(&stream) {
                tell(&stream, time.as_deref());
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "looking does not fail");
}

/// Tells which side of a join a column of the result comes from.
fn side_of(plan: &LogicalPlan, node: &LogicalPlan, join: StreamJoin<'_>, index: usize) -> Option<usize> {
    let column = Expr::Column(plan.schema().columns().get(index)?.clone());
    let (_, expr) = lowered(plan, column, &|here| std::ptr::eq(here, node))?;
    let columns = expr.column_refs();
    join.sides().iter().position(|side| columns.iter().all(|column| side.schema().has_column(column)))
}

/// For each side, by how much the time of rows that come out may lie behind the watermark; nothing if it is NULL in some.
type Behind = [Option<i64>; 2];

fn bounded(join: &Join, times: &EventTimes) -> Result<(JoinShape, Behind), Unfit> {
    use JoinType as J;
    let (kind, turned) = match join.join_type {
        J::Inner => (JoinKind::Inner, false),
        J::Left => (JoinKind::Left, false),
        J::Right => (JoinKind::Left, true),
        J::Full => (JoinKind::Full, false),
        J::LeftSemi => (JoinKind::Semi, false),
        J::RightSemi => (JoinKind::Semi, true),
        J::LeftAnti if join.null_aware => {
            return Err(Unfit::new(
                "NOT IN (SELECT ...) of a stream",
                "one NULL, however late it came, would take back all rows; write NOT EXISTS (SELECT ...)",
            ));
        }
        J::LeftAnti => (JoinKind::Anti, false),
        J::RightAnti => (JoinKind::Anti, true),
        J::LeftMark | J::RightMark => {
            return Err(Unfit::new(
                "EXISTS or IN (SELECT ...) of a stream as a part of another condition",
                "join with it by LEFT JOIN, or write a UNION ALL of tables, one for each part of the condition",
            ));
        }
    };
    let found = bound::find(join, times);
    let (Bound { least_us: Some(least), most_us: Some(most) }, [Some(left), Some(right)]) = (found.bound, found.times)
    else {
        return Err(unbounded(join, times, found.bound));
    };
    // A row that comes next is not before the watermark: what it can meet lies at most this far before it.
    let spread = |time: &SideTime| time.behind_us.1.saturating_sub(time.behind_us.0);
    let (left_behind, right_behind) =
        (most.saturating_add(spread(&left)).max(0), spread(&right).saturating_sub(least).max(0));
    let until =
        |time: SideTime, reach: i64| Until { reach_us: reach.saturating_sub(time.behind_us.0), time: time.expr };
    let mut until = [until(left, most), until(right, least.saturating_neg())];
    if turned {
        until.reverse();
    }
    let behind = match join.join_type {
        J::Inner | J::Full => [Some(left_behind), Some(right_behind)],
        J::Right | J::RightSemi | J::RightAnti => [None, Some(right_behind)],
        _ => [Some(left_behind), None],
    };
    Ok((JoinShape::Bounded { kind, turned, until, behind_us: 0 }, behind))
}

/// Says what a join needs so that its rows need not be kept for ever.
fn unbounded(join: &Join, times: &EventTimes, bound: Bound) -> Unfit {
    let name = |side: &LogicalPlan| {
        let mut first = None;
        each_stream(side, times, |stream, time| {
            first.get_or_insert_with(|| (stream.to_owned(), time.unwrap_or_default().to_owned()));
        });
        first.unwrap_or_default()
    };
    let ((left, left_time), (right, right_time)) = (name(&join.left), name(&join.right));
    let what = match bound {
        Bound { least_us: Some(_), .. } | Bound { most_us: Some(_), .. } => "whose times are bounded on one side only",
        _ => "without a bound of their times",
    };
    Unfit::new(
        format!("a join of two streams {what}: rows of {left} and {right} would be kept for ever"),
        format!(
            "say how far the event time `{right_time}` of {right} lies from `{left_time}` of {left} at most, such as `AND \
             r.{right_time} BETWEEN l.{left_time} AND l.{left_time} + INTERVAL '1 hour'`; or take the newest row that is \
             known by `ASOF JOIN ... MATCH_CONDITION (l.{left_time} >= r.{right_time})`; or join with a reference table"
        ),
    )
}

fn as_of(node: &AsOfNode, times: &EventTimes) -> Result<JoinShape, Unfit> {
    if ![&node.left, &node.right].iter().all(|side| reads_stream(side, times)) {
        return Err(Unfit::new("an ASOF JOIN with a reference table", "its rows have no event time; write LEFT JOIN"));
    }
    let mut keys = [Vec::new(), Vec::new()];
    for key in &node.keys {
        let Some((Operator::Eq, [left, right])) = node.compared(key) else {
            return Err(Unfit::new(
                format!("`{key}` in the ON of an ASOF JOIN"),
                "it takes equalities of columns of both sides; filter rows in a subquery before, or with WHERE behind",
            ));
        };
        keys[0].push(left);
        keys[1].push(right);
    }
    let matching = node.compared(&node.matching);
    let (same_time, times) = match matching {
        Some((op @ (Operator::GtEq | Operator::Gt), [left, right]))
            if is_event_time(&node.left, &left, times) && is_event_time(&node.right, &right, times) =>
        {
            (op == Operator::GtEq, [left, right])
        }
        _ => {
            return Err(Unfit::new(
                format!("MATCH_CONDITION ({})", node.matching),
                "an ASOF JOIN takes the newest row of the right that is not newer than the left's: compare the event times \
                 of both, as in MATCH_CONDITION (l.ts >= r.ts)",
            ));
        }
    };
    Ok(JoinShape::AsOf { times, keys, same_time })
}
