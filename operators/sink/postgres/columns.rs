//! Which Postgres type each Arrow type becomes, and how its values travel.
//!
//! Rows are brought into their *wire form* when they are written, so that what
//! Postgres would refuse is found while it can still be quarantined: text with
//! NUL bytes, text that is not JSON, times out of range.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringBuilder, new_empty_array, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::json::ReaderBuilder;
use arrow::json::writer::{EncoderOptions, LineDelimited, Writer, WriterBuilder, make_encoder};
use bytes::Bytes;
use pgpq::ArrowToPostgresBinaryEncoder;
use pgpq::encoders::{EncoderBuilder, StringEncoderBuilder};
use pgpq::pg_schema::PostgresType;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};

/// Key of a field's metadata that says what its text is.
const TYPE_KEY: &str = "nexus.type";

/// Numbers the rows of an epoch, so that the last one of a key is known, and which row the server has refused.
pub(super) const ROW_COLUMN: &str = "_nexus_row";

/// Says of a row that it deletes the one of its key.
pub(super) const DELETE_COLUMN: &str = "_nexus_delete";

/// The first day and the first microsecond that Postgres knows, since the Unix
/// epoch, and its last day (`datatype/timestamp.h`). The last microsecond is
/// beyond 64 bits.
const DAY_MIN: i32 = -2_440_588;
const DAY_MAX: i32 = 2_145_042_905;
const MICROSECOND_MIN: i64 = -210_866_803_200_000_000;

/// The columns of a table, in the order of the rows' columns.
pub(super) struct Columns {
    pub(super) columns: Vec<Column>,
    /// The columns of the rows before they get their wire form.
    pub(super) rows: SchemaRef,
    /// The columns, and [`DELETE_COLUMN`] behind them if rows may delete.
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
    pub(super) fn of(rows: &SchemaRef, table: &str, deletes: bool) -> Result<Self> {
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
        if deletes {
            fields.push(Arc::new(Field::new(DELETE_COLUMN, DataType::Boolean, false)));
        }
        let columns = Self { columns, rows: rows.clone(), wire: Arc::new(Schema::new(fields)) };
        columns.encoder(&columns.all(), true)?;
        Ok(columns)
    }

    /// Tells whether rows say if they delete.
    pub(super) fn deletes(&self) -> bool {
        self.wire.fields().len() > self.columns.len()
    }

    /// Gives the numbers of all columns of rows in wire form.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.wire.fields().len()).collect()
    }

    /// Gives the schema of rows in wire form.
    pub(super) fn wire_schema(&self) -> &SchemaRef {
        &self.wire
    }

    /// Makes the encoder of some columns of rows in wire form, numbered or not, to the binary format of COPY.
    pub(super) fn encoder(&self, which: &[usize], numbered: bool) -> Result<ArrowToPostgresBinaryEncoder> {
        let unsupported = |e| Error::internal("a column has no binary form for Postgres").because(e);
        let mut builders = Vec::with_capacity(which.len());
        let mut fields = Vec::with_capacity(which.len());
        for index in which {
            let field = self.wire.fields().get(*index).ok_or_else(|| Error::internal("a column is not known"))?;
            let builder = match self.columns.get(*index).map_or(Form::Plain, |column| column.form) {
                Form::Plain => EncoderBuilder::try_new(field.clone()),
                Form::Json | Form::JsonText => {
                    StringEncoderBuilder::new_with_output(field.clone(), PostgresType::Jsonb)
                        .map(EncoderBuilder::String)
                }
            };
            builders.push((field.name().clone(), builder.map_err(unsupported)?));
            fields.push(field.clone());
        }
        if numbered {
            let row = Arc::new(Field::new(ROW_COLUMN, DataType::Int64, false));
            builders.push((ROW_COLUMN.into(), EncoderBuilder::try_new(row.clone()).map_err(unsupported)?));
            fields.push(row);
        }
        ArrowToPostgresBinaryEncoder::try_new_with_encoders(&Schema::new(fields), &builders.into_iter().collect())
            .map_err(unsupported)
    }

    /// Adds the number of each row to rows in wire form, or to some of their columns.
    pub(super) fn number(rows: &RecordBatch, numbers: &Int64Array) -> Result<RecordBatch> {
        let columns = rows.columns().iter().cloned().chain([Arc::new(numbers.clone()) as ArrayRef]);
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

    /// Brings rows into wire form. `deletes` tells which of them delete, if rows may.
    ///
    /// # Errors
    ///
    /// [`Data`](crate::ErrorKind::Data) if one of them has a value that Postgres cannot hold.
    pub(super) fn wire(&self, rows: &RecordBatch, deletes: Option<&BooleanArray>) -> Result<RecordBatch> {
        let schema = rows.schema();
        let mut wired = Vec::with_capacity(self.wire.fields().len());
        for ((column, wire), (array, field)) in
            self.columns.iter().zip(self.wire.fields()).zip(rows.columns().iter().zip(schema.fields()))
        {
            wired.push(column.wire(array, field, wire)?);
        }
        if let Some(deletes) = deletes.filter(|_| self.deletes()) {
            wired.push(Arc::new(deletes.clone()));
        }
        RecordBatch::try_new(self.wire.clone(), wired)
            .map_err(|e| Error::internal("rows do not have the schema of their table").because(e))
    }

    /// Gives rows in wire form as JSON, each as a table's quarantine holds its rows.
    pub(super) fn documents(&self, wired: &RecordBatch) -> Result<Vec<Bytes>> {
        let (json, plain): (Vec<_>, Vec<_>) =
            (0..self.columns.len()).partition(|index| self.columns.get(*index).is_some_and(|c| c.form == Form::Json));
        let mut documents = documents(&wired.project(&plain)?)?;
        for index in json {
            let (field, texts) = (self.wire.field(index), wired.column(index).as_string::<i32>());
            let name = serde_json::Value::from(field.name().as_str());
            for (document, text) in documents.iter_mut().zip(texts) {
                // It is JSON already: read and written again, its numbers might lose digits.
                let inside = document.strip_suffix(b"}").unwrap_or(document);
                let comma = if inside.len() > 1 { "," } else { "" };
                let value = format!("{comma}{name}:{}}}", text.unwrap_or("null"));
                *document = Bytes::from([inside, value.as_bytes()].concat());
            }
        }
        Ok(documents)
    }

    /// Tells of each row in wire form whether its JSON says all of it.
    pub(super) fn say_all(&self, documents: &[Bytes], wired: &RecordBatch) -> Vec<bool> {
        let says = |documents: &[Bytes], wired: &RecordBatch| {
            let deletes = wired.column_by_name(DELETE_COLUMN).and_then(|column| column.as_boolean_opt());
            let read = self.read(documents).and_then(|rows| self.wire(&rows, deletes));
            read.is_ok_and(|read| read.columns() == wired.columns())
        };
        if says(documents, wired) {
            return vec![true; documents.len()];
        }
        let one = |(row, document): (usize, &Bytes)| says(std::slice::from_ref(document), &wired.slice(row, 1));
        documents.iter().enumerate().map(one).collect()
    }

    /// Reads rows from their JSON.
    fn read(&self, documents: &[Bytes]) -> Result<RecordBatch> {
        let mut reader =
            ReaderBuilder::new(self.rows.clone()).with_batch_size(documents.len().max(1)).build_decoder()?;
        for document in documents {
            reader.decode(document)?;
        }
        Ok(reader.flush()?.unwrap_or_else(|| RecordBatch::new_empty(self.rows.clone())))
    }
}

/// Gives each row as a JSON object, NULLs included.
pub(super) fn documents(rows: &RecordBatch) -> Result<Vec<Bytes>> {
    let mut writer: Writer<_, LineDelimited> = WriterBuilder::new().with_explicit_nulls(true).build(Vec::new());
    if rows.num_columns() == 0 {
        return Ok(vec![Bytes::from_static(b"{}"); rows.num_rows()]);
    }
    writer.write(rows)?;
    writer.finish()?;
    let lines = Bytes::from(writer.into_inner());
    Ok(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| lines.slice_ref(line)).collect())
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

    /// Finds a value that Postgres would refuse.
    fn check(&self, array: &ArrayRef) -> Result<()> {
        let bad = |why: &str| Err(Error::data(format!("the column `{}` has {why}", self.name)));
        match array.data_type() {
            DataType::Utf8 if self.form == Form::Plain && has_nul(array) => {
                bad("text with a NUL byte, which Postgres cannot hold")
            }
            DataType::Utf8 if self.form != Form::Plain => {
                for text in array.as_string::<i32>().iter().flatten() {
                    if self.form == Form::JsonText && serde_json::from_str::<IgnoredAny>(text).is_err() {
                        return bad("text that is not JSON");
                    }
                    if has_escaped_nul(text) {
                        return bad("JSON with the escape of a NUL byte, which Postgres cannot hold");
                    }
                }
                Ok(())
            }
            DataType::Date32 => {
                let mut days = array.as_primitive::<Date32Type>().iter().flatten();
                if days.all(|day| (DAY_MIN..=DAY_MAX).contains(&day)) {
                    return Ok(());
                }
                bad("a date that Postgres does not know")
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let mut times = array.as_primitive::<TimestampMicrosecondType>().iter().flatten();
                if times.all(|time| time >= MICROSECOND_MIN) {
                    return Ok(());
                }
                bad("a time that Postgres does not know")
            }
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                (0..lists.len()).filter(|row| lists.is_valid(*row)).try_for_each(|row| self.check(&lists.value(row)))
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

/// Tells whether text has a NUL byte.
fn has_nul(array: &ArrayRef) -> bool {
    let texts = array.as_string::<i32>();
    let range = |offsets: &[i32]| {
        let (start, end) = (usize::try_from(*offsets.first()?).ok()?, usize::try_from(*offsets.last()?).ok()?);
        texts.value_data().get(start..end)
    };
    range(texts.value_offsets()).is_some_and(|used| memchr::memchr(0, used).is_some())
}

/// Tells whether JSON has `\u0000`, and not only a backslash followed by `u0000`.
fn has_escaped_nul(json: &str) -> bool {
    let bytes = json.as_bytes();
    memchr::memmem::find_iter(bytes, b"\\u0000").any(|at| {
        let before = bytes.get(..at).unwrap_or_default();
        before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}
