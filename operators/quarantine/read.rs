//! Reading the quarantine back: the files of one table, row by row, for those that are sent again.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, filter_record_batch, not, prep_null_mask_filter};
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::{ATTEMPTS, HEADER, Quarantined, RAW, REASON, REDRIVABLE, RULE, schema};
use crate::batch::{KEY_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::error::{Error, Result};

/// Bytes of a batch: raw records may be large, and only some of them must be in memory at once.
const BATCH_BYTES: i64 = 1 << 20;

/// Most rows of a batch.
const BATCH_ROWS_MAX: i64 = 4096;

/// How many rows a file of the quarantine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// All of them.
    pub rows: u64,
    /// Of these, rows that can be sent again.
    pub redrivable: u64,
}

/// Counts the rows of a file of the quarantine.
///
/// # Errors
///
/// [`Config`](crate::ErrorKind::Config) if it is no such file.
pub fn count(file: File) -> Result<Held> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
    let rows = builder.metadata().file_metadata().num_rows();
    let mut held = Held { rows: u64::try_from(rows).unwrap_or(0), redrivable: 0 };
    // What was quarantined before rows could be sent again has no such column.
    let Ok(column) = builder.schema().index_of(REDRIVABLE) else { return Ok(held) };
    let only = ProjectionMask::roots(builder.parquet_schema(), [column]);
    for batch in builder.with_projection(only).build().map_err(damaged)? {
        held.redrivable += batch?.column(0).as_boolean().true_count() as u64;
    }
    Ok(held)
}

/// The rows of a file of the quarantine, in batches with the columns of [`schema`].
pub struct Batches(ParquetRecordBatchReader);

impl Batches {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if it is no file of the quarantine.
    pub fn of(file: File) -> Result<Self> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
        let groups = builder.metadata().row_groups();
        let row_bytes = groups.iter().map(|group| group.total_byte_size() / group.num_rows().max(1)).max();
        let rows = (BATCH_BYTES / row_bytes.unwrap_or(1).max(1)).clamp(1, BATCH_ROWS_MAX);
        let rows = usize::try_from(rows).unwrap_or(1);
        Ok(Self(builder.with_batch_size(rows).build().map_err(damaged)?))
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map_err(Error::from).and_then(|rows| conform(&rows)))
    }
}

/// Gives the rows under the columns that the quarantine has now.
fn conform(rows: &RecordBatch) -> Result<RecordBatch> {
    let schema = schema();
    let column = |name: &str, of: &arrow::datatypes::DataType| match rows.column_by_name(name) {
        Some(column) => Ok::<ArrayRef, Error>(cast(column, of)?),
        None => Ok(new_null_array(of, rows.num_rows())),
    };
    let columns = schema.fields().iter().map(|field| column(field.name(), field.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_>>()?)?)
}

/// Parts the rows that can be sent again from those that cannot.
pub fn part(rows: &RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
    let can: &BooleanArray = text_of(rows, REDRIVABLE)?.as_boolean();
    let can = if can.null_count() > 0 { prep_null_mask_filter(can) } else { can.clone() };
    Ok((filter_record_batch(rows, &can)?, filter_record_batch(rows, &not(&can)?)?))
}

/// Gives each row of a batch of the quarantine.
pub fn rows(batch: &RecordBatch) -> Result<Vec<Quarantined>> {
    let text = |name: &str| text_of(batch, name).map(|column| column.as_string_view().clone());
    let bytes = |name: &str| text_of(batch, name).map(|column| column.as_binary_view().clone());
    let (sources, partitions, offsets) = (text(SOURCE_COLUMN)?, text(PARTITION_COLUMN)?, text(OFFSET_COLUMN)?);
    let (reasons, rules, keys) = (text(REASON)?, text(RULE)?, text(KEY_COLUMN)?);
    let (raws, headers) = (bytes(RAW)?, bytes(HEADER)?);
    let redrivable = text_of(batch, REDRIVABLE)?.as_boolean().clone();
    let attempts = text_of(batch, ATTEMPTS)?.as_primitive::<Int32Type>().clone();
    let owned =
        |texts: &arrow::array::StringViewArray, row: usize| texts.is_valid(row).then(|| texts.value(row).to_owned());
    let one = |row: usize| Quarantined {
        source: owned(&sources, row),
        partition: owned(&partitions, row),
        offset: owned(&offsets, row),
        key: owned(&keys, row),
        header: headers.is_valid(row).then(|| Bytes::copy_from_slice(headers.value(row))),
        reason: reasons.value(row).to_owned(),
        rule: rules.value(row).to_owned(),
        raw: Bytes::copy_from_slice(raws.value(row)),
        redrivable: redrivable.is_valid(row) && redrivable.value(row),
        attempts: if attempts.is_valid(row) { u32::try_from(attempts.value(row)).unwrap_or(0) } else { 0 },
    };
    Ok((0..batch.num_rows()).map(one).collect())
}

fn text_of<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| Error::internal(format!("a batch of the quarantine has no column {name}")))
}

fn damaged(error: ParquetError) -> Error {
    Error::config("it is not a file of the quarantine, or is damaged").because(error)
}
