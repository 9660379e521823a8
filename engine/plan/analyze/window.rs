//! Windows of event time among the keys of an aggregate.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, TimeUnit};
use chrono::{DateTime, Datelike};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable};
use nexus_operators::transform::functions::{Function, interval_us};
use nexus_operators::transform::window::{Extent, Width};

use super::trace::trace;
use super::{EventTimes, Unfit, WindowShape};

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
pub(super) const DAY_US: i64 = 24 * HOUR_US;

/// By how much a local hour or day may be longer than the clock says: zones have put their clocks back by up to two
/// hours at once.
pub(super) const ZONE_SLACK_US: i64 = 3 * HOUR_US;

/// The last day that every month has: months that begin behind it are not equally far apart.
const MONTH_DAYS_MIN: u32 = 28;

/// Finds the key that is a window of event time.
pub(super) fn find_window(aggregate: &Aggregate, times: &EventTimes) -> Result<Option<WindowShape>, Unfit> {
    if aggregate.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_))) {
        return Err(Unfit::new("GROUPING SETS, ROLLUP or CUBE over a stream", "write one table for each set of keys"));
    }
    for group_index in 0..aggregate.group_expr.len() {
        if let Some(window) = key_window(aggregate, group_index, times)? {
            return Ok(Some(window));
        }
    }
    Ok(None)
}

/// Tells the window that a key of an aggregate is, and how each stream's rows fall into it.
fn key_window(aggregate: &Aggregate, group_index: usize, times: &EventTimes) -> Result<Option<WindowShape>, Unfit> {
    let Some(key) = aggregate.group_expr.get(group_index) else { return Ok(None) };
    let Some(parts) = trace(&aggregate.input, key.clone()) else { return Ok(None) };
    let mut reach = None;
    let mut starts: BTreeMap<String, Expr> = BTreeMap::new();
    for part in parts {
        let time = times.get(&part.stream).and_then(Option::as_deref);
        let Some(found) = (match time {
            Some(time) => window_of(&part.expr, &part.columns, time)?,
            None => None,
        }) else {
            return Ok(None);
        };
        let other_start = starts.get(&part.stream).is_some_and(|known| *known != found.start);
        if other_start || reach.is_some_and(|known| known != found.reach) {
            return Err(Unfit::new("different windows in the parts of one query", "use the same window in each part"));
        }
        reach = Some(found.reach);
        starts.insert(part.stream, found.start);
    }
    let extent = match reach {
        None => return Ok(None),
        Some(Reach::Width(width)) => Extent::Width(width),
        Some(Reach::Gap(gap_us)) => match last_of_session(aggregate) {
            Some(last_index) => Extent::Session { gap_us, last_index },
            None => return Ok(None),
        },
    };
    Ok(Some(WindowShape { group_index, extent, starts }))
}

/// Finds the key that has the last time of a session.
fn last_of_session(aggregate: &Aggregate) -> Option<usize> {
    aggregate.group_expr.iter().position(|key| {
        let parts = trace(&aggregate.input, key.clone()).unwrap_or_default();
        parts
            .first()
            .is_some_and(|part| Function::SessionLast.arguments(same_instant(&part.expr, &part.columns)).is_some())
    })
}

/// A window that a row falls into.
struct Found {
    reach: Reach,
    /// The start of the row's first window.
    start: Expr,
}

/// How far a window reaches.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    Width(Width),
    /// As long as rows come less than this many microseconds apart.
    Gap(i64),
}

/// Tells which windows begin at `start`, if it is the start of windows of the column `time`.
fn window_of(start: &Expr, columns: &DFSchema, time: &str) -> Result<Option<Found>, Unfit> {
    let inner = same_instant(start, columns);
    let of_time = |expr: &Expr| is_time(same_instant(expr, columns), time);
    let fixed = |interval: &Expr| match interval {
        Expr::Literal(interval, _) => interval_us(interval),
        _ => None,
    };
    if let Some([of, slide, width]) = Function::HopStarts.arguments(inner).filter(|args| of_time(&args[0])) {
        let (Some(_), Some(width_us)) = (fixed(slide), fixed(width)) else { return Ok(None) };
        // The first window that holds a row starts with the first slide behind the time one width before it.
        let before =
            Expr::ScalarFunction(ScalarFunction::new_udf(date_bin(), vec![slide.clone(), of.clone() - width.clone()]));
        let start = before + slide.clone();
        return Ok(Some(Found { reach: Reach::Width(Width::Micros(width_us)), start }));
    }
    if let Some([of, gap]) = Function::Session.arguments(inner).filter(|args| of_time(&args[0])) {
        return Ok(fixed(gap).map(|gap_us| Found { reach: Reach::Gap(gap_us), start: of.clone() }));
    }
    let width = width_of(start, columns, time)?;
    Ok(width.map(|width| Found { reach: Reach::Width(width), start: start.clone() }))
}

/// Tells how long the window is that starts at `start`, if `start` is the start of a window of the column `time`.
///
/// The width may be longer than the window, never shorter: then the window closes later than it could.
pub(super) fn width_of(start: &Expr, columns: &DFSchema, time: &str) -> Result<Option<Width>, Unfit> {
    let start = same_instant(start, columns);
    if is_time(start, time) {
        return Ok(Some(Width::Micros(1)));
    }
    match start {
        Expr::Cast(cast) if *cast.field.data_type() == DataType::Date32 => Ok(day_of(&cast.expr, columns, time)),
        Expr::ScalarFunction(call) => {
            let (Some(Expr::Literal(by, _)), Some(of)) = (call.args.first(), call.args.get(1)) else { return Ok(None) };
            if !is_time(same_instant(of, columns), time) {
                return Ok(None);
            }
            match call.name() {
                "date_bin" => bin_width(by, call),
                "date_trunc" => Ok(trunc_width(by, of, columns)),
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

/// Tells whether an expression is the event-time column itself.
pub(super) fn is_time(expr: &Expr, time: &str) -> bool {
    matches!(expr, Expr::Column(column) if column.name == time)
}

/// Takes away what changes how a time is written, and not the time.
pub(super) fn same_instant<'a>(expr: &'a Expr, columns: &DFSchema) -> &'a Expr {
    match expr {
        Expr::Alias(alias) => same_instant(&alias.expr, columns),
        Expr::Cast(cast) => match cast.expr.get_type(columns) {
            Ok(from) if keeps_instant(&from, cast.field.data_type()) => same_instant(&cast.expr, columns),
            _ => expr,
        },
        _ => expr,
    }
}

/// Tells whether a cast keeps the instant, to the microsecond in which event time is reckoned.
///
/// A cast to a date, a time of day or seconds does not, nor one that reads a time without a zone as local time.
fn keeps_instant(from: &DataType, to: &DataType) -> bool {
    use TimeUnit::{Microsecond, Nanosecond};
    let (DataType::Timestamp(_, from), DataType::Timestamp(Microsecond | Nanosecond, zone)) = (from, to) else {
        return false;
    };
    from.is_some() || is_utc(zone.as_deref())
}

fn is_utc(zone: Option<&str>) -> bool {
    matches!(zone, None | Some("UTC" | "+00:00" | "Z" | "Etc/UTC"))
}

pub(super) fn in_utc(expr: &Expr, columns: &DFSchema) -> bool {
    matches!(expr.get_type(columns), Ok(DataType::Timestamp(_, zone)) if is_utc(zone.as_deref()))
}

/// Gives the width of a date: of the event time, or of the start of a window of whole days.
fn day_of(of: &Expr, columns: &DFSchema, time: &str) -> Option<Width> {
    if !in_utc(of, columns) {
        return None;
    }
    let of = same_instant(of, columns);
    if is_time(of, time) {
        return Some(Width::Micros(DAY_US));
    }
    let whole_days = |width: &Width| match width {
        Width::Micros(us) => *us >= DAY_US,
        Width::Months(_) => true,
    };
    match of {
        Expr::ScalarFunction(call) if call.name() == "date_trunc" => {
            width_of(of, columns, time).ok().flatten().filter(whole_days)
        }
        _ => None,
    }
}

/// Gives the width of `date_bin`, which counts from the origin in UTC whatever the zone.
fn bin_width(interval: &ScalarValue, call: &ScalarFunction) -> Result<Option<Width>, Unfit> {
    let (months, days, nanos) = match interval {
        ScalarValue::IntervalMonthDayNano(Some(i)) => (i.months, i.days, i.nanoseconds),
        ScalarValue::IntervalDayTime(Some(i)) => (0, i.days, i64::from(i.milliseconds) * 1_000_000),
        ScalarValue::IntervalYearMonth(Some(months)) => (*months, 0, 0),
        _ => return Ok(None),
    };
    if months == 0 {
        let us = i64::from(days) * DAY_US + nanos / 1000;
        return Ok((us > 0 && nanos % 1000 == 0).then_some(Width::Micros(us)));
    }
    if months < 0 || days != 0 || nanos != 0 {
        return Ok(None);
    }
    if !call.args.get(2).is_none_or(starts_early_in_month) {
        return Err(Unfit::new(
            "a window of months whose origin is not a constant day up to the 28th",
            "not every month has the later days; take an origin at the begin of a month",
        ));
    }
    Ok(u32::try_from(months).ok().map(Width::Months))
}

fn starts_early_in_month(origin: &Expr) -> bool {
    let Expr::Literal(origin, _) = origin else { return false };
    let Ok(ScalarValue::TimestampMicrosecond(Some(us), _)) =
        origin.cast_to(&DataType::Timestamp(TimeUnit::Microsecond, None))
    else {
        return false;
    };
    DateTime::from_timestamp_micros(us).is_some_and(|origin| origin.day() <= MONTH_DAYS_MIN)
}

/// Gives the width of `date_trunc`, which follows the calendar and the clock of the zone.
fn trunc_width(unit: &ScalarValue, of: &Expr, columns: &DFSchema) -> Option<Width> {
    let unit = unit.try_as_str().flatten()?.to_ascii_lowercase();
    let (width, longest_us) = match unit.as_str() {
        "microsecond" => return Some(Width::Micros(1)),
        "millisecond" => return Some(Width::Micros(1000)),
        "second" => return Some(Width::Micros(SECOND_US)),
        "minute" => return Some(Width::Micros(60 * SECOND_US)),
        "hour" => (Width::Micros(HOUR_US), HOUR_US),
        "day" => (Width::Micros(DAY_US), DAY_US),
        "week" => (Width::Micros(7 * DAY_US), 7 * DAY_US),
        "month" => (Width::Months(1), 31 * DAY_US),
        "quarter" => (Width::Months(3), 92 * DAY_US),
        "year" => (Width::Months(12), 366 * DAY_US),
        _ => return None,
    };
    Some(if in_utc(of, columns) { width } else { Width::Micros(longest_us + ZONE_SLACK_US) })
}
