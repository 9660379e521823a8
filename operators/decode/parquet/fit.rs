//! The columns of a file as the declared types.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringViewArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::json::LineDelimitedWriter;

use crate::batch::timestamp_type;
use crate::decode::column::{Column, Form, Misfit, is_json, type_name};
use crate::decode::json::Cursor;
use crate::error::{Error, Result};

/// A column of a declared type, and the rows whose values are none.
pub(super) struct Fitted {
    pub(super) array: ArrayRef,
    pub(super) misfits: Vec<(usize, String)>,
}

/// Makes a file's column one of the declared type.
pub(super) fn fit(array: &ArrayRef, field: &Field) -> Result<Fitted> {
    if let DataType::Dictionary(_, values) = array.data_type() {
        return fit(&cast(array, values)?, field);
    }
    let (from, to) = (array.data_type(), field.data_type());
    if is_json(field) {
        return fit_json(array, field);
    }
    if is_text(from) && !is_text(to) && !to.is_nested() && *to != DataType::BinaryView {
        return parse(array, field);
    }
    if from == to {
        return Ok(Fitted { array: Arc::clone(array), misfits: Vec::new() });
    }
    if !is_safe(from, to) {
        return Err(Error::data(format!(
            "column \"{}\" is {} in the file, which cannot always be made {}; declare it as it is and convert it in SQL",
            field.name(),
            type_name(from, false),
            type_name(to, false)
        )));
    }
    let fitted = match (from, to) {
        (_, DataType::Timestamp(TimeUnit::Microsecond, Some(_))) => to_timestamp(array)?,
        _ if to.is_nested() => cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() })
            .map_err(|error| {
                Error::data(format!("column \"{}\" has a value that does not fit", field.name())).because(error)
            })?,
        _ => cast(array, to)?,
    };
    // A cast makes NULL of what it cannot convert.
    let lost: Vec<usize> = (0..array.len()).filter(|&row| fitted.is_null(row) && !array.is_null(row)).collect();
    if lost.is_empty() {
        return Ok(Fitted { array: fitted, misfits: Vec::new() });
    }
    let column = Column::new(field, field.name())?;
    let misfits = lost.into_iter().map(|row| {
        let value = arrow::util::display::array_value_to_string(array, row).unwrap_or_default();
        (row, column.reason(Misfit::OutOfRange, value.as_bytes(), Form::Number))
    });
    Ok(Fitted { array: fitted, misfits: misfits.collect() })
}

/// Parses a column of texts as the decoders of text do.
fn parse(array: &ArrayRef, field: &Field) -> Result<Fitted> {
    let texts = cast(array, &DataType::Utf8View)?;
    let mut column = Column::new(&field.clone().with_nullable(true), field.name())?;
    let mut misfits = Vec::new();
    for (row, text) in texts.as_string_view().iter().enumerate() {
        let pushed = match text {
            Some(text) => column.push(text.as_bytes(), Form::Text),
            None => column.push_null(),
        };
        if let Err(reason) = pushed {
            misfits.push((row, reason));
            column.truncate(row);
            column.push_null().map_err(Error::internal)?;
        }
    }
    Ok(Fitted { array: column.finish()?, misfits })
}

/// Makes JSON of a column: texts are checked, other values are written.
fn fit_json(array: &ArrayRef, field: &Field) -> Result<Fitted> {
    if !is_text(array.data_type()) {
        let named = Arc::new(Schema::new(vec![Field::new("v", array.data_type().clone(), true)]));
        let lines = json_lines(&RecordBatch::try_new(named, vec![Arc::clone(array)])?)?;
        let values = lines.iter().map(|line| line.strip_prefix("{\"v\":").and_then(|line| line.strip_suffix('}')));
        return Ok(Fitted { array: Arc::new(StringViewArray::from_iter(values)), misfits: Vec::new() });
    }
    let texts = cast(array, &DataType::Utf8View)?;
    let column = Column::new(field, field.name())?;
    let mut misfits = Vec::new();
    for (row, text) in texts.as_string_view().iter().enumerate() {
        let Some(text) = text else { continue };
        let mut cursor = Cursor::new(text.as_bytes());
        cursor.skip_space();
        let whole = cursor.skip_value(0).is_ok() && {
            cursor.skip_space();
            cursor.peek().is_none()
        };
        if !whole {
            misfits.push((row, column.reason(Misfit::NotA, text.as_bytes(), Form::Text)));
        }
    }
    Ok(Fitted { array: texts, misfits })
}

/// Tells whether a cast can only fail value by value, and lose nothing where it does not fail.
fn is_safe(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    match (from, to) {
        _ if from == to => true,
        (T::Null, _) => true,
        (T::Dictionary(_, values), _) => is_safe(values, to),
        _ if from.is_integer() && to.is_integer() => true,
        _ if from.is_integer() => matches!(to, T::Float32 | T::Float64 | T::Decimal128(..) | T::Utf8View),
        (T::Float16, T::Float32 | T::Float64) | (T::Float32, T::Float64) => true,
        (
            T::Decimal32(_, has) | T::Decimal64(_, has) | T::Decimal128(_, has) | T::Decimal256(_, has),
            T::Decimal128(_, wants),
        ) => wants >= has,
        (T::Boolean, T::Utf8View) => true,
        _ if from.is_numeric() => *to == T::Utf8View,
        _ if is_text(from) || is_binary(from) => is_text(to) || is_binary(to),
        (T::Date32 | T::Date64, T::Date32) => true,
        (T::Date32 | T::Date64 | T::Timestamp(..), T::Timestamp(..)) => true,
        (T::Time32(_) | T::Time64(_), T::Time64(_)) => true,
        (
            T::List(has) | T::LargeList(has) | T::FixedSizeList(has, _) | T::ListView(has) | T::LargeListView(has),
            T::List(wants),
        )
        | (T::Map(has, _), T::Map(wants, _)) => is_safe(has.data_type(), wants.data_type()),
        (T::Struct(has), T::Struct(wants)) => {
            let pairs = || has.iter().zip(wants);
            has.len() == wants.len()
                && pairs().all(|(h, w)| h.name() == w.name() && is_safe(h.data_type(), w.data_type()))
        }
        _ => false,
    }
}

/// Gives the declared column that a file's column asks for.
pub(super) fn inferred(field: &Field) -> Result<Field> {
    use DataType as T;
    let part = |item: &Field| Ok(inferred(item)?.with_nullable(item.is_nullable()));
    let data_type = match field.data_type() {
        T::Dictionary(_, values) => return inferred(&field.clone().with_data_type(values.as_ref().clone())),
        T::Float16 => T::Float32,
        T::Decimal32(precision, scale) | T::Decimal64(precision, scale) => T::Decimal128(*precision, *scale),
        T::Decimal256(..) | T::Null => T::Utf8View,
        same if same.is_numeric() || *same == T::Boolean => same.clone(),
        text if is_text(text) => T::Utf8View,
        binary if is_binary(binary) => T::BinaryView,
        T::Date32 | T::Date64 => T::Date32,
        T::Time32(_) | T::Time64(_) => T::Time64(TimeUnit::Microsecond),
        T::Timestamp(..) => timestamp_type(),
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) => T::List(Arc::new(part(item)?)),
        T::Struct(fields) => T::Struct(fields.iter().map(|field| part(field)).collect::<Result<_>>()?),
        T::Map(entries, sorted) => T::Map(Arc::new(part(entries)?), *sorted),
        other => {
            return Err(Error::config(format!(
                "could not infer column \"{}\": type {other} is not supported; declare the columns without it",
                field.name()
            )));
        }
    };
    Ok(Field::new(field.name(), data_type, true))
}

/// Writes each row as a JSON object, without its NULLs.
pub(super) fn json_lines(batch: &RecordBatch) -> Result<Vec<String>> {
    let written = with_offset_zones(batch).and_then(|batch| {
        let mut writer = LineDelimitedWriter::new(Vec::new());
        writer.write(&batch)?;
        writer.finish()?;
        Ok(writer.into_inner())
    });
    let written = written.map_err(|error| Error::data("could not write rows as json").because(error))?;
    let text = String::from_utf8(written).map_err(|error| Error::internal("json is no text").because(error))?;
    Ok(text.lines().map(String::from).collect())
}

/// Names the zone of timestamps by its offset, since Arrow writes no other without a table of zones.
fn with_offset_zones(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let fields: Vec<Field> = batch.schema().fields().iter().map(|field| with_offset_zone(field)).collect();
    let arrays = batch.columns().iter().zip(&fields).map(|(array, field)| match field.data_type() {
        same if same == array.data_type() => Ok(Arc::clone(array)),
        zoned => cast(array, zoned),
    });
    let arrays = arrays.collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn with_offset_zone(field: &Field) -> Field {
    use DataType as T;
    let part = |item: &Field| Arc::new(with_offset_zone(item));
    let data_type = match field.data_type() {
        T::Timestamp(unit, Some(_)) => T::Timestamp(*unit, Some("+00:00".into())),
        T::List(item) => T::List(part(item)),
        T::LargeList(item) => T::LargeList(part(item)),
        T::FixedSizeList(item, len) => T::FixedSizeList(part(item), *len),
        T::Struct(fields) => T::Struct(fields.iter().map(|field| part(field)).collect()),
        T::Map(entries, sorted) => T::Map(part(entries), *sorted),
        other => other.clone(),
    };
    field.clone().with_data_type(data_type)
}

/// Makes times of any unit and zone microseconds in UTC; times without a zone are taken as UTC.
fn to_timestamp(array: &ArrayRef) -> Result<ArrayRef> {
    let zone = match array.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let micros = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
    Ok(Arc::new(micros.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("UTC")))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_binary(data_type: &DataType) -> bool {
    use DataType as T;
    matches!(data_type, T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_))
}
