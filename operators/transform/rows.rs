//! Rows on their way to the quarantine: as JSON, with their provenance.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::json::writer::{JsonArray, Writer, WriterBuilder};
use bytes::Bytes;

use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

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
