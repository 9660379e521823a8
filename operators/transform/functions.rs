//! SQL functions that name windows of event time.
//!
//! `tumble` is another name of `date_bin`. `hop` and `window_end` are resolved when a query is planned: a row in
//! several windows becomes several rows, and the end follows from the start. What is left of `session` at run time is
//! the time of each row; the rows of a session find together where states are merged.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err, internal_err, plan_err};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::window::micros;

/// Windows that one row may be in: more are a mistake in the widths, such as a slide in milliseconds.
pub const HOPS_MAX: i64 = 10_000;

/// A function over a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// `tumble(ts, width)`: the start of the window that holds a time.
    Tumble,
    /// `hop(ts, slide, width)`: the starts of the windows that hold a time, a row for each.
    Hop,
    /// `hop_starts(ts, slide, width)`: the starts of the windows that hold a time, as a list.
    HopStarts,
    /// `session(ts, gap)`: the first time of the session that holds a time.
    Session,
    /// `session_last(ts, gap)`: the last time of the session that holds a time.
    SessionLast,
    /// `window_end(w)`: the end of the window that begins at `w`.
    WindowEnd,
}

impl Function {
    /// The functions that a query may call.
    pub const ALL: [Function; 4] = [Function::Tumble, Function::Hop, Function::Session, Function::WindowEnd];

    /// Gives the name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Function::Tumble => "tumble",
            Function::Hop => "hop",
            Function::HopStarts => "hop_starts",
            Function::Session => "session",
            Function::SessionLast => "session_last",
            Function::WindowEnd => "window_end",
        }
    }

    /// Tells whether an expression is a call of the function; gives its arguments.
    pub fn arguments(self, expr: &Expr) -> Option<&[Expr]> {
        match expr {
            Expr::ScalarFunction(call) if call.name() == self.name() => Some(&call.args),
            _ => None,
        }
    }

    /// Makes a call of the function.
    pub fn call(self, arguments: Vec<Expr>) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(self.udf(), arguments))
    }

    /// Gives the function as DataFusion knows it.
    pub fn udf(self) -> Arc<ScalarUDF> {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(ScalarUDF::new_from_impl(TimeFunction { function: self, signature }))
    }

    /// Describes how the function is called.
    fn usage(self) -> &'static str {
        match self {
            Function::Tumble => "tumble(ts, width)",
            Function::Hop | Function::HopStarts => "hop(ts, slide, width)",
            Function::Session | Function::SessionLast => "session(ts, gap)",
            Function::WindowEnd => "window_end(window)",
        }
    }

    fn intervals(self) -> usize {
        match self {
            Function::Tumble | Function::Session | Function::SessionLast => 1,
            Function::Hop | Function::HopStarts => 2,
            Function::WindowEnd => 0,
        }
    }
}

/// A [`Function`] for DataFusion.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeFunction {
    function: Function,
    signature: Signature,
}

impl ScalarUDFImpl for TimeFunction {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let usage = self.function.usage();
        let Some((time, intervals)) = given.split_first() else { return plan_err!("{usage} needs arguments") };
        if intervals.len() != self.function.intervals() {
            return plan_err!("{usage} was given {} arguments", given.len());
        }
        let DataType::Timestamp(_, zone) = time else {
            return plan_err!("{usage} needs a timestamp first, not {time}");
        };
        if let Some(other) = intervals.iter().find(|given| !matches!(given, DataType::Interval(_))) {
            return plan_err!("{usage} needs intervals, such as INTERVAL '5 minutes', not {other}");
        }
        let mut taken = vec![DataType::Timestamp(TimeUnit::Microsecond, zone.clone())];
        taken.resize(given.len(), DataType::Interval(IntervalUnit::MonthDayNano));
        Ok(taken)
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        let Some(time) = given.first() else { return internal_err!("{} without arguments", self.name()) };
        Ok(match self.function {
            Function::HopStarts => DataType::List(Arc::new(Field::new_list_field(time.clone(), true))),
            _ => time.clone(),
        })
    }

    fn simplify(&self, mut args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        if self.function != Function::Tumble {
            return Ok(ExprSimplifyResult::Original(args));
        }
        args.reverse();
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(ScalarFunction::new_udf(date_bin(), args))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match (self.function, args.args.as_slice()) {
            (Function::Session | Function::SessionLast, [times, _]) => Ok(times.clone()),
            (Function::HopStarts, [times, ColumnarValue::Scalar(slide), ColumnarValue::Scalar(width)]) => {
                let (Some(slide_us), Some(width_us)) = (interval_us(slide), interval_us(width)) else {
                    return exec_err!("hop needs intervals of a fixed length, no months");
                };
                hop_starts(&times.to_array(args.number_rows)?, slide_us, width_us).map(ColumnarValue::Array)
            }
            (Function::Tumble, [times, width]) => {
                let turned = vec![width.clone(), times.clone()];
                let arg_fields = args.arg_fields.iter().rev().cloned().collect();
                date_bin().invoke_with_args(ScalarFunctionArgs { args: turned, arg_fields, ..args })
            }
            _ => exec_err!("{} cannot stand here", self.function.usage()),
        }
    }
}

/// Gives the microseconds of an interval without months; nothing if it has months, or is not positive.
pub fn interval_us(interval: &ScalarValue) -> Option<i64> {
    const DAY_US: i64 = 86_400_000_000;
    let (days, nanos) = match interval {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 => (i.days, i.nanoseconds),
        ScalarValue::IntervalDayTime(Some(i)) => (i.days, i64::from(i.milliseconds) * 1_000_000),
        _ => return None,
    };
    let us = i64::from(days).checked_mul(DAY_US)?.checked_add(nanos / 1000)?;
    (us > 0 && nanos % 1000 == 0).then_some(us)
}

/// Gives for each time the starts of the windows that hold it, the earliest first.
fn hop_starts(times: &ArrayRef, slide_us: i64, width_us: i64) -> Result<ArrayRef> {
    let times = micros(times).map_err(|e| datafusion::error::DataFusionError::External(Box::new(e)))?;
    let values = TimestampMicrosecondBuilder::new().with_data_type(times.data_type().clone());
    let mut starts = ListBuilder::new(values);
    for time_us in &times {
        let Some(time_us) = time_us else {
            starts.append_null();
            continue;
        };
        let mut start_us = earliest_hop_us(time_us, slide_us, width_us);
        while start_us <= time_us {
            starts.values().append_value(start_us);
            start_us = start_us.saturating_add(slide_us);
        }
        starts.append(true);
    }
    Ok(Arc::new(starts.finish()))
}

/// Gives the start of the earliest window that ends behind a time: the first multiple of the slide from which the
/// width reaches beyond it.
fn earliest_hop_us(time_us: i64, slide_us: i64, width_us: i64) -> i64 {
    let before = time_us.saturating_sub(width_us).div_euclid(slide_us);
    before.saturating_add(1).saturating_mul(slide_us)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, TimestampMicrosecondArray};
    use arrow::datatypes::TimestampMicrosecondType;

    use super::*;

    #[test]
    fn a_time_is_in_every_window_that_holds_it() {
        for (slide_us, width_us) in [(5, 10), (5, 12), (10, 10), (10, 4), (7, 3), (1, 9)] {
            let times: Vec<Option<i64>> = (-30..30).map(Some).chain([None]).collect();
            let array: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC"));
            let found = hop_starts(&array, slide_us, width_us).unwrap();
            let found = found.as_list::<i32>();
            for (row, time_us) in times.into_iter().enumerate() {
                let Some(time_us) = time_us else {
                    assert!(found.is_null(row));
                    continue;
                };
                let expected: Vec<i64> = (-100..100)
                    .map(|index| index * slide_us)
                    .filter(|start| (*start..start + width_us).contains(&time_us))
                    .collect();
                let starts = found.value(row);
                let starts = starts.as_primitive::<TimestampMicrosecondType>().values().to_vec();
                assert_eq!(starts, expected, "{time_us} in windows of {width_us} every {slide_us}");
            }
        }
    }
}
