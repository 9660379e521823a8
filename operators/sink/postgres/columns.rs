//! Which Postgres type each Arrow type becomes, and how its values travel.
//!
//! Rows are brought into their *wire form* when they are written, so that what
//! Postgres would refuse is found while it can still be quarantined: text with
//! NUL bytes, text that is not JSON, times out of range.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringBuilder, new_empty_array, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::json::writer::{EncoderOptions, make_encoder};
use pgpq::ArrowToPostgresBinaryEncoder;
use pgpq::encoders::{EncoderBuilder, StringEncoderBuilder};
use pgpq::pg_schema::PostgresType;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};

/// Key of a field's metadata that says what its text is.
const TYPE_KEY: &str = "nexus.type";

/// Numbers the rows of an epoch, so that the last one of a key is known.
pub(super) const ROW_COLUMN: &str = "_nexus_row";

/// The first day and the first microsecond that Postgres knows, since the Unix
/// epoch, and its last day (`datatype/timestamp.h`). The last microsecond is
/// beyond 64 bits.
const DAY_MIN: i32 = -2_440_588;
const DAY_MAX: i32 = 2_145_042_905;
const MICROSECOND_MIN: i64 = -210_866_803_200_000_000;

/// The columns of a table, in the order of the rows' columns.
pub(super) struct Columns {
    pub(super) columns: Vec<Column>,
    wire: SchemaRef,
}

/// A column of a table.
pub(super) struct Column {
    pub(super) name: String,
    /// The type in the table, as `format_type` writes it.
    pub(super) sql_type: String,
    /// The type in the temporary table: what the COPY sends.
    pub(super) wire_type: String,
    pub(super) nullable: bool,
    form: Form,
}

/// How values get into their wire form.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Plain,
    /// Text that must be JSON.
    JsonText,
    /// Nested values that become JSON.
    Json,
}

impl Columns {
    /// Finds the types of a table, and refuses what Postgres has no type for.
    pub(super) fn of(rows: &Schema, table: &str) -> Result<Self> {
        let mut columns = Vec::with_capacity(rows.fields().len());
        let mut fields = Vec::with_capacity(rows.fields().len());
        for field in rows.fields() {
            let (column, wire) = Column::of(field).map_err(|why| {
                Error::config(format!(
                    "the column `{}` cannot be written to the Postgres table {table}: {why}",
                    field.name()
                ))
            })?;
            columns.push(column);
            fields.push(wire);
        }
        let columns = Self { columns, wire: Arc::new(Schema::new(fields)) };
        columns.encoder(true)?;
        Ok(columns)
    }

    /// Gives the schema of rows in wire form.
    pub(super) fn wire_schema(&self) -> &SchemaRef {
        &self.wire
    }

    /// Makes the encoder of rows in wire form, numbered or not, to the binary format of COPY.
    pub(super) fn encoder(&self, numbered: bool) -> Result<ArrowToPostgresBinaryEncoder> {
        let unsupported = |e| Error::internal("a column has no binary form for Postgres").because(e);
        let mut builders = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter().zip(self.wire.fields()) {
            let builder = match column.form {
                Form::Plain => EncoderBuilder::try_new(field.clone()),
                Form::Json | Form::JsonText => {
                    StringEncoderBuilder::new_with_output(field.clone(), PostgresType::Jsonb)
                        .map(EncoderBuilder::String)
                }
            };
            builders.push((field.name().clone(), builder.map_err(unsupported)?));
        }
        let mut schema = self.wire.clone();
        if numbered {
            let row = Arc::new(Field::new(ROW_COLUMN, DataType::Int64, false));
            builders.push((ROW_COLUMN.into(), EncoderBuilder::try_new(row.clone()).map_err(unsupported)?));
            schema = Arc::new(Schema::new(schema.fields().iter().cloned().chain([row]).collect::<Vec<_>>()));
        }
        ArrowToPostgresBinaryEncoder::try_new_with_encoders(&schema, &builders.into_iter().collect())
            .map_err(unsupported)
    }

    /// Adds the number of each row to rows in wire form.
    pub(super) fn number(&self, rows: &RecordBatch, first: u64) -> Result<RecordBatch> {
        let first = i64::try_from(first).map_err(|e| Error::internal("an epoch has too many rows").because(e))?;
        let numbers = Int64Array::from_iter_values((first..).take(rows.num_rows()));
        let columns = rows.columns().iter().cloned().chain([Arc::new(numbers) as ArrayRef]);
        let row = Arc::new(Field::new(ROW_COLUMN, DataType::Int64, false));
        let fields: Vec<_> = rows.schema_ref().fields().iter().cloned().chain([row]).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())?)
    }

    /// Gives spooled rows the columns of now: those of a spool that was written before a column was added have NULL
    /// there, and narrower numbers become wide.
    pub(super) fn widen(&self, rows: RecordBatch) -> Result<RecordBatch> {
        if rows.schema_ref().fields() == self.wire.fields() {
            return Ok(rows);
        }
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let fields = self.wire.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
        let columns = self.wire.fields().iter().map(|field| match rows.column_by_name(field.name()) {
            Some(column) => cast_with_options(column, field.data_type(), &options),
            None => Ok(new_null_array(field.data_type(), rows.num_rows())),
        });
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)?)
    }

    /// Brings rows into wire form.
    pub(super) fn wire(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let schema = rows.schema();
        let mut wired = Vec::with_capacity(self.columns.len());
        for ((column, wire), (array, field)) in
            self.columns.iter().zip(self.wire.fields()).zip(rows.columns().iter().zip(schema.fields()))
        {
            wired.push(column.wire(array, field, wire)?);
        }
        RecordBatch::try_new(self.wire.clone(), wired)
            .map_err(|e| Error::internal("rows do not have the schema of their table").because(e))
    }
}

impl Column {
    fn of(field: &FieldRef) -> Result<(Self, FieldRef), String> {
        let is_json = field.metadata().get(TYPE_KEY).is_some_and(|name| name == "json");
        let (form, wire, wire_type, sql_type) = if is_json && field.data_type().is_string() {
            (Form::JsonText, DataType::Utf8, "jsonb".into(), "jsonb".into())
        } else {
            plain(field.data_type())?
        };
        if form == Form::Json {
            make_encoder(field, &new_empty_array(field.data_type()), &json_options())
                .map_err(|e| format!("{} cannot be written as JSON: {e}", field.data_type()))?;
        }
        let column = Self { name: field.name().clone(), sql_type, wire_type, nullable: field.is_nullable(), form };
        Ok((column, Arc::new(Field::new(field.name(), wire, field.is_nullable()))))
    }

    /// Tells whether the COPY can send values to a column of this type as they are.
    pub(super) fn is_sent_as(&self, there: &str) -> bool {
        // The server brings a `numeric` into the precision of its column by itself.
        there == self.wire_type || (self.wire_type == "numeric" && there == self.sql_type)
    }

    fn wire(&self, array: &ArrayRef, field: &FieldRef, wire: &Field) -> Result<ArrayRef> {
        let array = match self.form {
            Form::Json => self.json(array, field)?,
            Form::Plain | Form::JsonText if array.data_type() == wire.data_type() => array.clone(),
            Form::Plain | Form::JsonText => {
                let options = CastOptions { safe: false, ..CastOptions::default() };
                cast_with_options(array, wire.data_type(), &options).map_err(|e| {
                    Error::data(format!("could not turn the column `{}` into {}", self.name, self.sql_type)).because(e)
                })?
            }
        };
        self.check(&array)?;
        Ok(array)
    }

    /// Writes nested values as JSON.
    fn json(&self, array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
        let failed = |e| Error::data(format!("could not write the column `{}` as JSON", self.name)).because(e);
        let options = json_options();
        let mut encoder = make_encoder(field, array, &options).map_err(failed)?;
        let mut texts = StringBuilder::with_capacity(array.len(), array.len() * 64);
        let mut text = Vec::new();
        for row in 0..array.len() {
            if array.is_null(row) {
                texts.append_null();
                continue;
            }
            text.clear();
            encoder.encode(row, &mut text);
            let text = std::str::from_utf8(&text).map_err(|e| Error::internal("JSON is not UTF-8").because(e))?;
            texts.append_value(text);
        }
        Ok(Arc::new(texts.finish()))
    }

    /// Finds the values that Postgres would refuse.
    fn check(&self, array: &ArrayRef) -> Result<()> {
        let bad =
            |row: usize, why: &str| Err(Error::data(format!("the column `{}` has {why} in row {row}", self.name)));
        match array.data_type() {
            DataType::Utf8 if self.form == Form::Plain => match row_with_nul(array) {
                Some(row) => bad(row, "text with a NUL byte, which Postgres cannot hold,"),
                None => Ok(()),
            },
            DataType::Utf8 => {
                for (row, text) in array.as_string::<i32>().iter().enumerate() {
                    let Some(text) = text else { continue };
                    if self.form == Form::JsonText && serde_json::from_str::<IgnoredAny>(text).is_err() {
                        return bad(row, "text that is not JSON");
                    }
                    if has_escaped_nul(text) {
                        return bad(row, "JSON with the escape of a NUL byte, which Postgres cannot hold,");
                    }
                }
                Ok(())
            }
            DataType::Date32 => {
                let days = array.as_primitive::<Date32Type>();
                match days.iter().position(|day| day.is_some_and(|day| !(DAY_MIN..=DAY_MAX).contains(&day))) {
                    Some(row) => bad(row, "a date that Postgres does not know"),
                    None => Ok(()),
                }
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let times = array.as_primitive::<TimestampMicrosecondType>();
                match times.iter().position(|time| time.is_some_and(|time| time < MICROSECOND_MIN)) {
                    Some(row) => bad(row, "a time that Postgres does not know"),
                    None => Ok(()),
                }
            }
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                for row in (0..lists.len()).filter(|row| lists.is_valid(*row)) {
                    self.check(&lists.value(row)).map_err(|e| e.while_doing(format!("in the list of row {row}")))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Gives the form, the Arrow type, the type in the temporary table and that in the table.
fn plain(data_type: &DataType) -> Result<(Form, DataType, String, String), String> {
    let micros = |zone: &Option<Arc<str>>| DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
    let (wire, name) = match data_type {
        DataType::Boolean => (DataType::Boolean, "boolean"),
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => (DataType::Int16, "smallint"),
        DataType::UInt16 | DataType::Int32 => (DataType::Int32, "integer"),
        DataType::UInt32 | DataType::Int64 => (DataType::Int64, "bigint"),
        DataType::UInt64 => (DataType::UInt64, "numeric"),
        DataType::Float16 | DataType::Float32 => (DataType::Float32, "real"),
        DataType::Float64 => (DataType::Float64, "double precision"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => (DataType::Utf8, "text"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            (DataType::Binary, "bytea")
        }
        DataType::Date32 | DataType::Date64 => (DataType::Date32, "date"),
        DataType::Time32(_) | DataType::Time64(_) => {
            (DataType::Time64(TimeUnit::Microsecond), "time without time zone")
        }
        DataType::Timestamp(_, None) => (micros(&None), "timestamp without time zone"),
        DataType::Timestamp(_, Some(_)) => (micros(&Some("UTC".into())), "timestamp with time zone"),
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) if *s >= 0 => {
            return Ok((Form::Plain, DataType::Decimal128(*p, *s), "numeric".into(), format!("numeric({p},{s})")));
        }
        // pgpq has no wider decimals; Postgres reads the text.
        DataType::Decimal256(..) => return Ok((Form::Plain, DataType::Utf8, "text".into(), "numeric".into())),
        DataType::Dictionary(_, values) => return plain(values),
        DataType::RunEndEncoded(_, values) => return plain(values.data_type()),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => return list(item),
        DataType::Struct(_) | DataType::Map(..) => {
            return Ok((Form::Json, DataType::Utf8, "jsonb".into(), "jsonb".into()));
        }
        DataType::Null => return Err("it is always NULL and has no type; give it one with CAST(NULL AS ...)".into()),
        other => return Err(format!("{other} has no Postgres type; turn it into a number or text")),
    };
    Ok((Form::Plain, wire, name.into(), name.into()))
}

/// Lists of plain values become arrays, all others JSON.
fn list(item: &FieldRef) -> Result<(Form, DataType, String, String), String> {
    let json = (Form::Json, DataType::Utf8, "jsonb".into(), "jsonb".into());
    if item.data_type().is_nested() {
        return Ok(json);
    }
    let (form, wire, wire_type, sql_type) = plain(item.data_type())?;
    if form != Form::Plain {
        return Ok(json);
    }
    // pgpq writes the element type of timestamps without a zone: Postgres casts them, in UTC.
    let wire_type =
        if sql_type == "timestamp with time zone" { "timestamp without time zone".into() } else { wire_type };
    let wire = DataType::List(Arc::new(item.as_ref().clone().with_data_type(wire)));
    Ok((Form::Plain, wire, format!("{wire_type}[]"), format!("{sql_type}[]")))
}

fn json_options() -> EncoderOptions {
    EncoderOptions::default().with_explicit_nulls(true)
}

/// Finds the first row of text with a NUL byte.
fn row_with_nul(array: &ArrayRef) -> Option<usize> {
    let texts = array.as_string::<i32>();
    let offsets = texts.value_offsets();
    let (start, end) = (*offsets.first()?, *offsets.last()?);
    let used = texts.value_data().get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
    // One look at all the bytes; rows are told apart only if there is something to find.
    memchr::memchr(0, used)?;
    texts.iter().position(|text| text.is_some_and(|text| text.contains('\0')))
}

/// Tells whether JSON has `\u0000`, and not only a backslash followed by `u0000`.
fn has_escaped_nul(json: &str) -> bool {
    let bytes = json.as_bytes();
    memchr::memmem::find_iter(bytes, b"\\u0000").any(|at| {
        let before = bytes.get(..at).unwrap_or_default();
        before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}
