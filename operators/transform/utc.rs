//! Functions of time that need no rules of a zone where the zone is UTC.
//!
//! DataFusion cuts times of a zone down one by one, by way of the zone's calendar; times without a zone, all at once. At
//! UTC both give the same: so its function is asked without the zone.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{
    ArrowTimestampType, DataType, FieldRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::Result;
use datafusion::functions::datetime::date_trunc;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// How UTC is written as a zone.
const UTC: [&str; 4] = ["UTC", "+00:00", "Z", "Etc/UTC"];

/// Gives `date_trunc`, faster at UTC.
pub fn date_trunc_at_utc() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(DateTrunc { inner: date_trunc() }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.inner.return_type(given)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn output_ordering(&self, given: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(given)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let zoned = match args.args.as_slice() {
            [_, ColumnarValue::Array(times)] => utc_of(times.data_type()).map(|zone| (times.clone(), zone)),
            _ => None,
        };
        let Some((times, zone)) = zoned else { return self.inner.invoke_with_args(args) };
        let times = labelled(&times, None);
        let plain = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(times.data_type().clone()));
        args.return_field = plain(&args.return_field);
        if let (Some(field), Some(value)) = (args.arg_fields.last_mut(), args.args.last_mut()) {
            *field = plain(field);
            *value = ColumnarValue::Array(times);
        }
        let rows = args.number_rows;
        let cut = self.inner.invoke_with_args(args)?.to_array(rows)?;
        Ok(ColumnarValue::Array(labelled(&cut, Some(zone))))
    }
}

/// Gives the zone of times, if it is UTC.
fn utc_of(times: &DataType) -> Option<Arc<str>> {
    match times {
        DataType::Timestamp(_, Some(zone)) if UTC.contains(&zone.as_ref()) => Some(zone.clone()),
        _ => None,
    }
}

/// Gives the same instants with another zone, or none.
fn labelled(times: &ArrayRef, zone: Option<Arc<str>>) -> ArrayRef {
    fn of<T: ArrowTimestampType>(times: &ArrayRef, zone: Option<Arc<str>>) -> ArrayRef {
        Arc::new(times.as_primitive::<T>().clone().with_timezone_opt(zone))
    }
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => of::<TimestampSecondType>(times, zone),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of::<TimestampMillisecondType>(times, zone),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of::<TimestampMicrosecondType>(times, zone),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => of::<TimestampNanosecondType>(times, zone),
        _ => times.clone(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, TimestampMicrosecondArray, TimestampSecondArray};
    use arrow::datatypes::Field;
    use datafusion::common::ScalarValue;
    use datafusion::config::ConfigOptions;

    use super::*;

    fn cut(function: &ScalarUDF, unit: &str, times: &ArrayRef) -> ArrayRef {
        let field = Arc::new(Field::new("ts", times.data_type().clone(), true));
        let args = ScalarFunctionArgs {
            args: vec![ColumnarValue::Scalar(ScalarValue::from(unit)), ColumnarValue::Array(times.clone())],
            arg_fields: vec![Arc::new(Field::new("unit", DataType::Utf8, false)), field.clone()],
            number_rows: times.len(),
            return_field: field,
            config_options: Arc::new(ConfigOptions::default()),
        };
        function.invoke_with_args(args).unwrap().to_array(times.len()).unwrap()
    }

    #[test]
    fn times_are_cut_as_their_zone_has_it() {
        let seconds = [0, -1, 951_782_399, 951_782_400, 1_709_251_199, 1_784_462_400, -8_520_336_001, 7_258_118_399];
        let micros = seconds.iter().map(|second| Some(second * 1_000_000 + 999_999)).chain([None]);
        let micros = TimestampMicrosecondArray::from_iter(micros);
        let whole = TimestampSecondArray::from_iter(seconds.iter().map(|second| Some(*second)).chain([None]));
        for zone in [None, Some("UTC"), Some("+00:00"), Some("Europe/Berlin"), Some("-05:30")] {
            let zone = zone.map(Arc::from);
            let micros: ArrayRef = Arc::new(micros.clone().with_timezone_opt(zone.clone()));
            let whole: ArrayRef = Arc::new(whole.clone().with_timezone_opt(zone.clone()));
            for unit in ["second", "minute", "Hour", "day", "week", "month", "quarter", "year"] {
                for times in [&micros, &whole] {
                    let expected = cut(&date_trunc(), unit, times);
                    let found = cut(&date_trunc_at_utc(), unit, times);
                    assert_eq!(found.data_type(), times.data_type(), "{unit} {zone:?}");
                    assert_eq!(&found, &expected, "{unit} {zone:?}");
                }
            }
        }
    }
}
