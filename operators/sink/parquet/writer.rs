//! Encoding rows as Parquet: row groups one behind the other, and the footer.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions};
use parquet::errors::Result;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::SerializedFileWriter;

use super::columns::RowGroup;
use super::file::Output;

/// Writes one Parquet file.
pub(super) struct ParquetWriter {
    file: SerializedFileWriter<Output>,
    schema: SchemaRef,
    /// Makes the columns of row groups.
    columns: ArrowRowGroupWriterFactory,
    /// The row group that takes rows.
    open: Option<RowGroup>,
}

impl ParquetWriter {
    pub(super) fn start(output: Output, schema: SchemaRef, options: ArrowWriterOptions) -> Result<Self> {
        let writer = ArrowWriter::try_new_with_options(output, schema.clone(), options)?;
        let (file, columns) = writer.into_serialized_writer()?;
        Ok(Self { file, schema, columns, open: None })
    }

    /// Encodes rows.
    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let properties = self.file.properties();
        let rows_max = properties.max_row_group_row_count().unwrap_or(usize::MAX);
        let bytes_max = properties.max_row_group_bytes().unwrap_or(usize::MAX);
        let mut left = rows.clone();
        while left.num_rows() > 0 {
            let group = match &mut self.open {
                Some(group) => group,
                none => {
                    let place = self.file.flushed_row_groups().len();
                    none.insert(RowGroup::new(self.columns.create_column_writers(place)?))
                }
            };
            let now = left.slice(0, group.room(rows_max, bytes_max).min(left.num_rows()));
            left = left.slice(now.num_rows(), left.num_rows() - now.num_rows());
            group.write(self.schema.fields(), &now).await?;
            if group.room(rows_max, bytes_max) == 0 {
                self.end_row_group().await?;
            }
        }
        Ok(())
    }

    /// Ends the row group that takes rows, if there is one.
    pub(super) async fn end_row_group(&mut self) -> Result<()> {
        let Some(group) = self.open.take() else { return Ok(()) };
        let chunks = group.close().await?;
        let mut written = self.file.next_row_group()?;
        for chunk in chunks {
            chunk.append_to_row_group(&mut written)?;
        }
        written.close()?;
        Ok(())
    }

    /// Writes what is left, and the footer.
    pub(super) async fn finish(&mut self, metadata: impl Iterator<Item = KeyValue>) -> Result<()> {
        self.end_row_group().await?;
        metadata.for_each(|pair| self.file.append_key_value_metadata(pair));
        // Not `into_inner`, which tells of a full disk as if it were a mistake of the encoder.
        self.file.finish().map(drop)
    }

    /// Gives the memory that the open row group takes, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, RowGroup::memory_bytes)
    }

    pub(super) fn output(&self) -> &Output {
        self.file.inner()
    }

    pub(super) fn output_mut(&mut self) -> &mut Output {
        self.file.inner_mut()
    }
}
