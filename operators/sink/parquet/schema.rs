//! Which Parquet type each Arrow type is stored as, so that every reader understands it.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowSchemaConverter;

use crate::error::{Error, Result};

/// Gives the columns of the files that hold rows of a table.
///
/// # Errors
///
/// [`Config`](crate::ErrorKind::Config) for a column that cannot be stored as Parquet.
pub fn stored_columns(rows: &Schema, table: &str) -> Result<SchemaRef> {
    StoredSchema::of(rows, table).map(|stored| stored.schema)
}

/// The schema of a table's files, and the way from the rows' schema to it.
pub(super) struct StoredSchema {
    schema: SchemaRef,
    /// The columns whose type changes; most tables have none.
    cast: Vec<usize>,
}

impl StoredSchema {
    /// Finds the stored type of each column, and refuses what Parquet readers cannot read.
    pub(super) fn of(rows: &Schema, table: &str) -> Result<Self> {
        let mut fields = Vec::with_capacity(rows.fields().len());
        let mut cast = Vec::new();
        for (index, field) in rows.fields().iter().enumerate() {
            let stored = stored_field(field).map_err(|why| {
                Error::config(format!(
                    "the column `{}` of the table {table} cannot be stored as Parquet: {why}",
                    field.name()
                ))
            })?;
            if stored.data_type() != field.data_type() {
                cast.push(index);
            }
            fields.push(stored);
        }
        let schema = Arc::new(Schema::new(fields));
        ArrowSchemaConverter::new()
            .convert(&schema)
            .map_err(|e| Error::config(format!("the table {table} cannot be stored as Parquet")).because(e))?;
        Ok(Self { schema, cast })
    }

    /// Gives the schema of the files.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Brings rows into the stored types; columns that are stored as they are share their memory.
    pub(super) fn store(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = rows.columns().to_vec();
        for &index in &self.cast {
            let (Some(column), Some(field)) = (columns.get_mut(index), self.schema.fields().get(index)) else {
                break;
            };
            *column = cast(column, field)?;
        }
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::internal("rows do not have the schema of their table").because(e))
    }
}

/// Gives rows under columns that they may lack or have with other types: what is lacking is NULL.
pub(super) fn fit(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let column = |field: &FieldRef| match rows.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
        Some(column) => cast(column, field),
        None => Ok(new_null_array(field.data_type(), rows.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<_>>()?;
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|e| Error::internal("stored rows do not fit the columns of their table").because(e))
}

fn cast(column: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    // Not safe: a value out of range is an error, never a silent null.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, field.data_type(), &options).map_err(|e| {
        Error::data(format!("could not store the column `{}` as {}", field.name(), field.data_type())).because(e)
    })
}

fn stored_field(field: &FieldRef) -> Result<FieldRef, String> {
    let stored = stored_type(field.data_type())?;
    if stored == *field.data_type() {
        return Ok(field.clone());
    }
    Ok(Arc::new(field.as_ref().clone().with_data_type(stored)))
}

/// Gives the type that Parquet readers at large understand, or why there is none.
fn stored_type(data_type: &DataType) -> Result<DataType, String> {
    Ok(match data_type {
        DataType::Null => return Err("it is always NULL and has no type; give it one with CAST(NULL AS ...)".into()),
        DataType::Duration(_) | DataType::Interval(_) => {
            return Err(format!("{data_type} has no Parquet type; turn it into a number or text"));
        }
        DataType::Union(..) => return Err(format!("{data_type} has no Parquet type; choose one type")),
        // Athena and Spark cannot read nanoseconds.
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Time32(_) => DataType::Time32(TimeUnit::Millisecond),
        DataType::Date64 => DataType::Date32,
        DataType::Float16 => DataType::Float32,
        DataType::Dictionary(_, values) => stored_type(values)?,
        DataType::RunEndEncoded(_, values) => stored_type(values.data_type())?,
        DataType::List(item) | DataType::ListView(item) => DataType::List(stored_field(item)?),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(stored_field(item)?),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(stored_field(item)?, *length),
        DataType::Struct(fields) => {
            if fields.is_empty() {
                return Err("a struct without fields has no Parquet type".into());
            }
            DataType::Struct(fields.iter().map(stored_field).collect::<Result<_, _>>()?)
        }
        DataType::Map(entries, sorted) => DataType::Map(stored_field(entries)?, *sorted),
        plain => plain.clone(),
    })
}
