//! What readers of a Delta table may know of a file without opening it, taken from the file's footer.

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use arrow::compute::{SortOptions, sort_to_indices};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, SecondsFormat};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The first columns of a file of which bounds are told, as in Delta itself (`dataSkippingNumIndexedCols`): every reader
/// of the table reads them all.
const COLUMNS_MAX: usize = 32;

/// The most digits of a decimal that a JSON number holds exactly in every reader.
const DECIMAL_DIGITS_MAX: u8 = 15;

/// Gives the number of rows, and the bounds and the NULLs of columns, as JSON.
pub(super) fn of(footer: &ParquetMetaData) -> Result<String> {
    let doing = "could not read the statistics of a file";
    let of_file = footer.file_metadata();
    let schema =
        parquet_to_arrow_schema(of_file.schema_descr(), None).map_err(|e| Error::internal(doing).because(e))?;
    let (mut mins, mut maxes, mut nulls) = (Map::new(), Map::new(), Map::new());
    for field in schema.fields().iter().take(COLUMNS_MAX).filter(|field| !field.data_type().is_nested()) {
        let read = || {
            let column = StatisticsConverter::try_new(field.name(), &schema, of_file.schema_descr())?;
            let groups = || footer.row_groups().iter();
            let (mins, maxes) = (column.row_group_mins(groups())?, column.row_group_maxes(groups())?);
            Ok((mins, maxes, column.row_group_null_counts(groups())?, column.row_group_row_counts(groups())?))
        };
        let read: Result<_, parquet::errors::ParquetError> = read();
        let (of_mins, of_maxes, of_nulls, of_rows) = read.map_err(|e| Error::internal(doing).because(e))?;
        if of_nulls.null_count() == 0 {
            nulls.insert(field.name().clone(), json!(of_nulls.values().iter().sum::<u64>()));
        }
        let (Some(of_rows), true) = (of_rows, has_bounds(field.data_type())) else { continue };
        if let (Some(min), Some(max)) =
            (bound(&of_mins, (&of_nulls, &of_rows), false)?, bound(&of_maxes, (&of_nulls, &of_rows), true)?)
        {
            mins.insert(field.name().clone(), min);
            maxes.insert(field.name().clone(), max);
        }
    }
    let stats = json!({
        "numRecords": of_file.num_rows(), "minValues": mins, "maxValues": maxes, "nullCount": nulls,
    });
    Ok(stats.to_string())
}

/// Tells whether bounds of a type can be told. Not of floats: a NaN is outside of those that a footer tells, and Spark
/// takes it for the greatest number.
fn has_bounds(data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal128(precision, _) => *precision <= DECIMAL_DIGITS_MAX,
        DataType::Date32 | DataType::Timestamp(..) => true,
        other => other.is_signed_integer() || other.is_string(),
    }
}

/// Gives the least or the greatest of the bounds of row groups; nothing if some is not known.
fn bound(bounds: &ArrayRef, (nulls, rows): (&UInt64Array, &UInt64Array), greatest: bool) -> Result<Option<Value>> {
    let only_nulls = |group: usize| nulls.is_valid(group) && nulls.value(group) == rows.value(group);
    if (0..bounds.len()).any(|group| bounds.is_null(group) && !only_nulls(group)) {
        return Ok(None);
    }
    let order = SortOptions { descending: greatest, nulls_first: false };
    let first = sort_to_indices(bounds, Some(order), Some(1))?;
    let Some(first) = first.values().first().map(|first| *first as usize) else { return Ok(None) };
    if bounds.is_null(first) { Ok(None) } else { value(&bounds.slice(first, 1)) }
}

/// Writes the one value of an array as Delta wants it.
fn value(of: &ArrayRef) -> Result<Option<Value>> {
    let time = |us: i64| DateTime::from_timestamp_micros(us);
    Ok(match of.data_type() {
        DataType::Date32 => of.as_primitive::<Date32Type>().value_as_date(0).map(|day| json!(day.to_string())),
        DataType::Timestamp(_, zone) => {
            let time = time(of.as_primitive::<TimestampMicrosecondType>().value(0));
            let text = time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true));
            text.map(|text| json!(if zone.is_some() { text.as_str() } else { text.trim_end_matches('Z') }))
        }
        DataType::Decimal128(..) => {
            let text = of.as_primitive::<Decimal128Type>().value_as_string(0);
            text.parse::<f64>().ok().map(Value::from)
        }
        text if text.is_string() => {
            let text = arrow::compute::cast(of, &DataType::Utf8)?;
            Some(json!(text.as_string::<i32>().value(0)))
        }
        _ => Some(json!(arrow::compute::cast(of, &DataType::Int64)?.as_primitive::<Int64Type>().value(0))),
    })
}
