//! Rows between one operator and the next: in batches of a good size, under other columns, and on their way to the
//! quarantine as JSON, with their provenance.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{BatchCoalescer, cast};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use arrow::json::writer::{JsonArray, Writer, WriterBuilder};
use bytes::Bytes;

use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// Rows in a batch of state: as many as DataFusion's own batches hold.
pub const STATE_BATCH_ROWS: usize = 8192;

/// Copies rows into batches of [`STATE_BATCH_ROWS`], which hold nothing but them.
pub fn coalesced(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(batches) };
    let mut coalescer = BatchCoalescer::new(first.schema(), STATE_BATCH_ROWS);
    for batch in batches {
        coalescer.push_batch(batch)?;
    }
    coalescer.finish_buffered_batch()?;
    Ok(std::iter::from_fn(|| coalescer.next_completed_batch()).collect())
}

/// Makes quarantine entries of rows that broke `rule`.
pub fn quarantined(rows: &RecordBatch, rule: &str, reason: &str) -> Result<Vec<Quarantined>> {
    let [sources, partitions, offsets] = [SOURCE_COLUMN, PARTITION_COLUMN, OFFSET_COLUMN].map(|name| texts(rows, name));
    let (sources, partitions, offsets) = (sources?, partitions?, offsets?);
    let at = |column: &Option<arrow::array::StringArray>, row: usize| {
        column.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
    };
    let documents = as_json(rows)?;
    let entry = |(row, raw): (usize, Bytes)| Quarantined {
        source: at(&sources, row),
        partition: at(&partitions, row),
        offset: at(&offsets, row),
        reason: reason.to_owned(),
        rule: rule.to_owned(),
        raw,
    };
    Ok(documents.into_iter().enumerate().map(entry).collect())
}

/// Gives the columns under which the rows of a query are stored and read by others: timestamps in microseconds,
/// whatever unit a function gives, since neither Postgres nor Spark knows finer ones.
pub fn stored_schema(schema: &Schema) -> SchemaRef {
    let stored = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Timestamp(_, zone) => {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            Arc::new(field.as_ref().clone().with_data_type(micros))
        }
        _ => field.clone(),
    });
    Arc::new(Schema::new(stored.collect::<Vec<_>>()))
}

/// Gives rows under the columns of `schema`, which has the same columns in the same order.
///
/// A plan may drop nullability and metadata on the way; the schema is what others were planned on.
pub fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = rows.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Ok(column.clone()) } else { cast(column, field.data_type()) }
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<std::result::Result<Vec<_>, _>>()?)?)
}

/// Gives each row as a JSON object, NULLs included.
pub fn as_json(rows: &RecordBatch) -> Result<Vec<Bytes>> {
    let mut documents = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        let mut writer: Writer<_, JsonArray> =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
        writer.write(&rows.slice(row, 1))?;
        writer.finish()?;
        let array = writer.into_inner();
        let inside = array.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        documents.push(Bytes::copy_from_slice(inside.unwrap_or(&array)));
    }
    Ok(documents)
}

fn texts(rows: &RecordBatch, name: &str) -> Result<Option<arrow::array::StringArray>> {
    let Some(column) = rows.column_by_name(name) else { return Ok(None) };
    let text: ArrayRef = cast(column, &DataType::Utf8)?;
    let text = text.as_any().downcast_ref::<arrow::array::StringArray>().cloned();
    text.map(Some).ok_or_else(|| Error::internal("a cast to text gave another type"))
}
