//! Row groups of Parquet files into the declared columns.
//!
//! The file names and types its columns itself. They are matched with the
//! declared ones by name and cast where no value can lose anything unnoticed;
//! what one row's value cannot be made is that row's reject. A file whose
//! column has a type that can never be the declared one is an error of kind
//! `Data`, with all of its rows.

mod fit;
mod pieces;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringViewBuilder, UInt64Array, new_null_array};
use arrow::compute::{filter, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use fit::{fit, json_lines};
use pieces::Pieces;

use super::provenance::{Place, Places};
use super::settings::{Plan, UnknownColumns};
use super::{Decoded, Reject};
use crate::batch::{Chunk, RowGroup};
use crate::contained::contained;
use crate::error::{Error, Result};

/// Bytes that the rows of one read should have, by the average of their row group.
const READ_BYTES: i64 = 4 << 20;

/// Decodes one row group; offsets count the file's rows.
pub(super) fn decode<'a>(plan: &'a Plan, chunk: &'a Chunk, group: &'a RowGroup) -> Rows<'a> {
    Rows { plan, chunk, group, reader: None, next_row: group.first_row, ended: false }
}

/// The rows of a row group.
pub(super) struct Rows<'a> {
    plan: &'a Plan,
    chunk: &'a Chunk,
    group: &'a RowGroup,
    /// Made when the first row is asked for.
    reader: Option<ParquetRecordBatchReader>,
    next_row: u64,
    ended: bool,
}

impl Iterator for Rows<'_> {
    type Item = Result<Decoded>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = contained(|| self.read()).unwrap_or_else(|| Err(broken(&self.chunk.partition)));
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

impl Rows<'_> {
    fn read(&mut self) -> Result<Option<Decoded>> {
        let Self { plan, chunk, group, reader, next_row, .. } = self;
        let partition = &chunk.partition;
        let reader = match reader {
            Some(reader) => reader,
            None => reader.insert(open(plan, partition, group)?),
        };
        let Some(batch) = reader.next() else { return Ok(None) };
        let batch = batch.map_err(|error| unreadable(partition, error.into()))?;
        let mut decoded = Decoded::default();
        let rows = Batch { plan, chunk, batch: &batch, first_row: *next_row };
        rows.decode(&mut decoded).map_err(|error| error.while_doing(format!("parquet file \"{partition}\"")))?;
        *next_row += batch.num_rows() as u64;
        Ok(Some(decoded))
    }
}

fn broken(partition: &str) -> Error {
    Error::data(format!("could not read parquet file \"{partition}\": its bytes are broken"))
}

fn unreadable(partition: &str, error: ParquetError) -> Error {
    Error::data(format!("could not read parquet file \"{partition}\"")).because(error)
}

fn open(plan: &Plan, partition: &str, group: &RowGroup) -> Result<ParquetRecordBatchReader> {
    let bad = |error| unreadable(partition, error);
    let pieces = Pieces::new(group);
    let metadata = with_views(&ArrowReaderMetadata::load(&pieces, ArrowReaderOptions::default()).map_err(bad)?);
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(pieces, metadata.map_err(bad)?);
    let Some(metadata) = builder.metadata().row_groups().get(group.index) else {
        return Err(Error::data(format!("could not read row group {} of parquet file \"{partition}\"", group.index)));
    };
    if metadata.columns().iter().any(|column| column.compressed_size() < 0 || column.data_page_offset() < 0) {
        return Err(broken(partition));
    }
    let row_bytes = metadata.total_byte_size() / metadata.num_rows().max(1);
    let rows_at_once = usize::try_from(READ_BYTES / row_bytes.max(1)).unwrap_or(1).max(1);
    let is_wanted = |field: &Field| {
        plan.settings.unknown != UnknownColumns::Ignore || plan.declared.iter().any(|d| d.name() == field.name())
    };
    let wanted = builder.schema().fields().iter().enumerate().filter(|(_, field)| is_wanted(field)).map(|(at, _)| at);
    let projection = ProjectionMask::roots(builder.parquet_schema(), wanted.collect::<Vec<_>>());
    builder
        .with_projection(projection)
        .with_row_groups(vec![group.index])
        .with_batch_size(plan.settings.batch_rows_max.min(rows_at_once))
        .build()
        .map_err(bad)
}

/// Has texts read as views: a text that a page holds once, in its dictionary, is there once in memory too.
fn with_views(metadata: &ArrowReaderMetadata) -> Result<ArrowReaderMetadata, ParquetError> {
    let fields = metadata.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    });
    let schema = Schema::new_with_metadata(fields.collect::<Fields>(), metadata.schema().metadata().clone());
    let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
    ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options)
}

/// Gives the columns of a Parquet file from its last bytes, which hold the footer.
pub(super) fn infer(file: &[u8]) -> Result<Vec<Field>> {
    let load = || ArrowReaderMetadata::load(&Bytes::copy_from_slice(file), ArrowReaderOptions::default());
    let metadata = contained(load)
        .ok_or_else(|| Error::data("could not read the footer of the parquet file: its bytes are broken"))?
        .map_err(|error| Error::data("could not read the footer of the parquet file").because(error))?;
    metadata.schema().fields().iter().map(|field| fit::inferred(field)).collect()
}

/// Some rows of a row group, as the file has them.
struct Batch<'a> {
    plan: &'a Plan,
    chunk: &'a Chunk,
    batch: &'a RecordBatch,
    first_row: u64,
}

impl Batch<'_> {
    fn decode(&self, decoded: &mut Decoded) -> Result<()> {
        // What is wrong with each row, if anything is.
        let mut reasons: Vec<Option<String>> = vec![None; self.batch.num_rows()];
        let mut arrays = Vec::with_capacity(self.plan.schema.fields().len());
        for field in &self.plan.declared {
            arrays.push(self.declared_column(field, &mut reasons)?);
        }
        if let Some(rescued) = self.unknown_columns(&mut reasons)? {
            arrays.push(rescued);
        }
        self.reject(&reasons, decoded)?;

        let good = BooleanArray::from_iter(reasons.iter().map(|reason| Some(reason.is_none())));
        let rows = good.true_count();
        if rows == 0 {
            return Ok(());
        }
        if rows < reasons.len() {
            arrays = arrays.iter().map(|array| filter(array, &good)).collect::<Result<_, _>>()?;
        }
        let mut places = Places::new(self.plan.settings.offsets);
        for (offset, reason) in (self.first_row..).zip(&reasons) {
            if reason.is_none() {
                places.push(Place::Offset(offset))?;
            }
        }
        arrays.extend(places.finish(self.plan, self.chunk, rows)?);
        decoded.batches.push(RecordBatch::try_new(Arc::clone(&self.plan.schema), arrays)?);
        Ok(())
    }

    fn declared_column(&self, field: &Field, reasons: &mut [Option<String>]) -> Result<ArrayRef> {
        let name = field.name();
        let Some(column) = self.batch.column_by_name(name) else {
            if !field.is_nullable() {
                for reason in reasons.iter_mut() {
                    reason.get_or_insert_with(|| format!("column \"{name}\": is missing, but declared not null"));
                }
            }
            return Ok(new_null_array(field.data_type(), reasons.len()));
        };
        let fitted = fit(column, field)?;
        for (row, misfit) in fitted.misfits {
            if let Some(reason) = reasons.get_mut(row) {
                reason.get_or_insert(misfit);
            }
        }
        if !field.is_nullable() {
            let nulls = reasons.iter_mut().enumerate().filter(|(row, _)| fitted.array.is_null(*row));
            for (_, reason) in nulls {
                reason.get_or_insert_with(|| format!("column \"{name}\": is null, but declared not null"));
            }
        }
        Ok(fitted.array)
    }

    /// Deals with the columns that are not declared; gives `_rescued` if there is such a column.
    fn unknown_columns(&self, reasons: &mut [Option<String>]) -> Result<Option<ArrayRef>> {
        let schema = self.batch.schema();
        let is_unknown = |field: &Field| self.plan.declared.iter().all(|declared| declared.name() != field.name());
        let unknown: Vec<usize> = (0..schema.fields().len()).filter(|&at| is_unknown(schema.field(at))).collect();
        if let (UnknownColumns::Reject, Some(&first)) = (self.plan.settings.unknown, unknown.first()) {
            for reason in reasons.iter_mut() {
                reason.get_or_insert_with(|| format!("column \"{}\" is not declared", schema.field(first).name()));
            }
        }
        if !self.plan.rescues {
            return Ok(None);
        }
        let mut rescued = StringViewBuilder::with_capacity(reasons.len());
        if unknown.is_empty() {
            (0..reasons.len()).for_each(|_| rescued.append_null());
        } else {
            for line in json_lines(&self.batch.project(&unknown)?)? {
                rescued.append_option(Some(line).filter(|line| line != "{}"));
            }
        }
        Ok(Some(Arc::new(rescued.finish())))
    }

    /// Rejects the rows that have a reason, each as a JSON object.
    fn reject(&self, reasons: &[Option<String>], decoded: &mut Decoded) -> Result<()> {
        let bad: Vec<(u64, &String)> =
            (0..).zip(reasons).filter_map(|(row, reason)| Some((row, reason.as_ref()?))).collect();
        if bad.is_empty() {
            return Ok(());
        }
        let rows = UInt64Array::from_iter_values(bad.iter().map(|(row, _)| *row));
        let raws = json_lines(&take_record_batch(self.batch, &rows)?)?;
        for ((row, reason), raw) in bad.into_iter().zip(raws) {
            let offset = (self.first_row + row).to_string();
            // As JSON it is for people: it does not say the types that the file has.
            decoded.rejects.push(Reject::in_part(offset, raw.into(), reason.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
