//! How far apart the times of two rows that meet in a join may lie.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, NullEquality, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, ExprSchemable, Join, LogicalPlan, Operator};
use nexus_operators::transform::window::Width;

use super::EventTimes;
use super::trace::{Traced, trace};
use super::window::{DAY_US, ZONE_SLACK_US, in_utc, is_time, same_instant, width_of};

/// The days of the shortest and of the longest month.
const MONTH_DAYS: (i64, i64) = (28, 31);

/// Where the right row's time may lie, counted from the left row's, in microseconds. Perhaps further than it really may,
/// never less far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// Not before this; nothing if it may lie at any time before.
    pub least_us: Option<i64>,
    /// Not behind this; nothing if it may lie at any time behind.
    pub most_us: Option<i64>,
}

/// An expression that gives the event time of a side's row, or a time at a known distance from it.
#[derive(Debug, Clone)]
pub(super) struct SideTime {
    /// The expression over the side's columns.
    pub expr: Expr,
    /// How far behind the event time it lies, in microseconds: at least, and at most.
    pub behind_us: (i64, i64),
}

/// A bound, and the times of both sides that it speaks of.
#[derive(Debug)]
pub(super) struct Found {
    pub bound: Bound,
    pub times: [Option<SideTime>; 2],
}

/// Looks for bounds in the conditions of a join.
pub(super) fn find(join: &Join, times: &EventTimes) -> Found {
    let both = join.left.schema().join(join.right.schema());
    let mut search = Search {
        sides: [&join.left, &join.right],
        columns: both.unwrap_or_else(|_| join.schema.as_ref().clone()),
        event_times: times,
        found: Found { bound: Bound { least_us: None, most_us: None }, times: [None, None] },
    };
    // Where NULL equals NULL, rows without a time meet too.
    if join.null_equality == NullEquality::NullEqualsNothing {
        for (left, right) in &join.on {
            search.compare(left, Operator::Eq, right);
        }
    }
    for condition in join.filter.iter().flat_map(split_conjunction) {
        match condition {
            Expr::BinaryExpr(binary) => search.compare(&binary.left, binary.op, &binary.right),
            Expr::Between(between) if !between.negated => {
                search.compare(&between.expr, Operator::GtEq, &between.low);
                search.compare(&between.expr, Operator::LtEq, &between.high);
            }
            _ => {}
        }
    }
    search.found
}

/// A time as the sum of the event times of both sides, each taken so many times, and a constant between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Linear {
    sides: [i64; 2],
    least_us: i64,
    most_us: i64,
}

impl Linear {
    fn minus(self, other: Self) -> Self {
        Self {
            sides: [self.sides[0] - other.sides[0], self.sides[1] - other.sides[1]],
            least_us: self.least_us.saturating_sub(other.most_us),
            most_us: self.most_us.saturating_sub(other.least_us),
        }
    }

    fn plus(self, other: Self) -> Self {
        let nothing = Self { sides: [0, 0], least_us: 0, most_us: 0 };
        self.minus(nothing.minus(other))
    }
}

struct Search<'a> {
    sides: [&'a LogicalPlan; 2],
    columns: DFSchema,
    event_times: &'a EventTimes,
    found: Found,
}

impl Search<'_> {
    /// Takes what a comparison says of both times.
    fn compare(&mut self, left: &Expr, op: Operator, right: &Expr) {
        let (plain_left, plain_right) = (self.as_duration(left), self.as_duration(right));
        // Intervals are compared by their days first, and a difference of times has none.
        let is_cast = !std::ptr::eq(left, plain_left) || !std::ptr::eq(right, plain_right);
        let of_days = |side: &Expr| matches!(side, Expr::Literal(value, _) if counts_days(value));
        if is_cast && (of_days(left) || of_days(right)) {
            return;
        }
        let (left, right) = (plain_left, plain_right);
        let (mut seen, mut terms) = (Vec::new(), Vec::new());
        for expr in [left, right] {
            terms.extend(self.linear(expr, &mut seen));
        }
        let [left, right] = terms.as_slice() else { return };
        // Brought to the form: right time - left time + rest, compared with 0.
        let (difference, op) = match left.minus(*right) {
            forth @ Linear { sides: [-1, 1], .. } => (forth, Some(op)),
            Linear { sides: [1, -1], .. } => (right.minus(*left), op.swap()),
            _ => return,
        };
        let bound = &mut self.found.bound;
        let (least, most) = (difference.most_us.saturating_neg(), difference.least_us.saturating_neg());
        match op {
            Some(Operator::Eq) => bound.both(Some(least), Some(most)),
            Some(Operator::Lt | Operator::LtEq) => bound.both(None, Some(most)),
            Some(Operator::Gt | Operator::GtEq) => bound.both(Some(least), None),
            _ => return,
        }
        for (side, time) in seen {
            let spread = |time: &SideTime| time.behind_us.1 - time.behind_us.0;
            if let Some(best) = self.found.times.get_mut(side)
                && best.as_ref().is_none_or(|best| spread(best) > spread(&time))
            {
                *best = Some(time);
            }
        }
    }

    /// Takes away what makes an interval of a difference of times.
    fn as_duration<'e>(&self, expr: &'e Expr) -> &'e Expr {
        match expr {
            Expr::Cast(cast)
                if matches!(cast.field.data_type(), DataType::Interval(_))
                    && matches!(cast.expr.get_type(&self.columns), Ok(DataType::Duration(_))) =>
            {
                &cast.expr
            }
            other => other,
        }
    }

    fn linear(&self, expr: &Expr, seen: &mut Vec<(usize, SideTime)>) -> Option<Linear> {
        let expr = same_instant(expr, &self.columns);
        if let Expr::BinaryExpr(binary) = expr
            && matches!(binary.op, Operator::Plus | Operator::Minus)
        {
            let utc = in_utc(expr, &self.columns);
            let (left, right) = (self.linear(&binary.left, seen)?, self.linear(&binary.right, seen)?);
            let sum = if binary.op == Operator::Plus { left.plus(right) } else { left.minus(right) };
            // A day of a zone may have more or fewer hours.
            let calendar = |side: &Expr| matches!(side, Expr::Literal(value, _) if counts_days(value));
            let slack = if !utc && (calendar(&binary.left) || calendar(&binary.right)) { ZONE_SLACK_US } else { 0 };
            return Some(Linear { least_us: sum.least_us - slack, most_us: sum.most_us.saturating_add(slack), ..sum });
        }
        if let Expr::Literal(value, _) = expr {
            let (least_us, most_us) = span_us(value)?;
            return Some(Linear { sides: [0, 0], least_us, most_us });
        }
        let columns = expr.column_refs();
        let of = |plan: &&LogicalPlan| !columns.is_empty() && columns.iter().all(|c| plan.schema().has_column(c));
        let side = self.sides.iter().position(of)?;
        let (least_us, most_us) = behind_event_time(self.sides.get(side)?, expr, self.event_times)?;
        seen.push((side, SideTime { expr: expr.clone(), behind_us: (least_us, most_us) }));
        let mut sides = [0, 0];
        *sides.get_mut(side)? = 1;
        Some(Linear { sides, least_us, most_us })
    }
}

impl Bound {
    fn both(&mut self, least_us: Option<i64>, most_us: Option<i64>) {
        self.least_us = self.least_us.max(least_us);
        self.most_us = match (self.most_us, most_us) {
            (Some(known), Some(here)) => Some(known.min(here)),
            (known, here) => known.or(here),
        };
    }
}

/// Tells how far behind the event time of its streams an expression lies, at least and at most.
pub(super) fn behind_event_time(plan: &LogicalPlan, expr: &Expr, times: &EventTimes) -> Option<(i64, i64)> {
    let mut range: Option<(i64, i64)> = None;
    for part in trace(plan, expr.clone())? {
        let (least, most) = part_behind(&part, &part.expr, times.get(&part.stream)?.as_deref()?)?;
        range = Some(range.map_or((least, most), |known| (known.0.min(least), known.1.max(most))));
    }
    range
}

fn part_behind(part: &Traced, expr: &Expr, time: &str) -> Option<(i64, i64)> {
    let expr = same_instant(expr, &part.columns);
    if is_time(expr, time) {
        return Some((0, 0));
    }
    if let Expr::BinaryExpr(binary) = expr {
        let (of, (least, most)) = match (binary.op, binary.left.as_ref(), binary.right.as_ref()) {
            (Operator::Plus, of, Expr::Literal(span, _)) | (Operator::Plus, Expr::Literal(span, _), of) => {
                (of, slack(span_us(span)?, span, of, &part.columns))
            }
            (Operator::Minus, of, Expr::Literal(span, _)) => {
                let (least, most) = slack(span_us(span)?, span, of, &part.columns);
                (of, (-most, -least))
            }
            _ => return None,
        };
        let (of_least, of_most) = part_behind(part, of, time)?;
        return Some((of_least + least, of_most + most));
    }
    let window_us = match width_of(expr, &part.columns, time).ok()?? {
        Width::Micros(us) => us,
        Width::Months(months) => i64::from(months) * MONTH_DAYS.1 * DAY_US,
    };
    Some((1 - window_us, 0))
}

/// Widens a span of days by what a day of a zone may be longer or shorter.
fn slack((least, most): (i64, i64), span: &ScalarValue, of: &Expr, columns: &DFSchema) -> (i64, i64) {
    let by = if counts_days(span) && !in_utc(of, columns) { ZONE_SLACK_US } else { 0 };
    (least - by, most + by)
}

/// Tells whether a span is counted in days or months.
fn counts_days(span: &ScalarValue) -> bool {
    match span {
        ScalarValue::IntervalMonthDayNano(Some(i)) => i.months != 0 || i.days != 0,
        ScalarValue::IntervalDayTime(Some(i)) => i.days != 0,
        ScalarValue::IntervalYearMonth(Some(_)) => true,
        _ => false,
    }
}

/// Gives the length of an interval or a duration, at least and at most.
fn span_us(span: &ScalarValue) -> Option<(i64, i64)> {
    use ScalarValue as S;
    let (months, days, nanos) = match span {
        S::IntervalMonthDayNano(Some(i)) => (i64::from(i.months), i64::from(i.days), i.nanoseconds),
        S::IntervalDayTime(Some(i)) => (0, i64::from(i.days), i64::from(i.milliseconds) * 1_000_000),
        S::IntervalYearMonth(Some(months)) => (i64::from(*months), 0, 0),
        S::DurationSecond(Some(s)) => (0, 0, s.checked_mul(1_000_000_000)?),
        S::DurationMillisecond(Some(ms)) => (0, 0, ms.checked_mul(1_000_000)?),
        S::DurationMicrosecond(Some(us)) => (0, 0, us.checked_mul(1000)?),
        S::DurationNanosecond(Some(ns)) => (0, 0, *ns),
        _ => return None,
    };
    let of = |month_days: i64| months * month_days * DAY_US + days * DAY_US + nanos.div_euclid(1000);
    let (short, long) = (of(MONTH_DAYS.0), of(MONTH_DAYS.1));
    let rest = i64::from(nanos.rem_euclid(1000) != 0);
    Some((short.min(long), short.max(long) + rest))
}

/// Tells whether an expression over a plan is the event time of its streams.
pub(super) fn is_event_time(plan: &LogicalPlan, expr: &Expr, times: &EventTimes) -> bool {
    expr.get_type(plan.schema()).is_ok() && behind_event_time(plan, expr, times) == Some((0, 0))
}
