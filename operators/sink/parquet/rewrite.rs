//! Writing the rows of many small files of a folder to one: a file of the table that stands for others.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::commit::RemovedFile;
use super::partition::Group;
use super::schema::fit;
use super::{ParquetSink, sorter};
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::EpochId;
use crate::store::Store;

/// Bytes of rows that are decoded at once.
const BATCH_BYTES: i64 = 1 << 20;

/// Rows that are decoded at once at most, as elsewhere in the engine.
const BATCH_ROWS_MAX: i64 = 8192;

impl ParquetSink {
    /// Writes the rows of committed files of one folder to new ones there, which the next epoch that is prepared puts in
    /// their place. Gives the rows.
    ///
    /// `table` is the table's folder, and `paths` are relative to it. Every sink must have committed the epochs that wrote
    /// these files, for good: their commits find them no more.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if a file is damaged, or holds columns that the table does not have.
    pub async fn rewrite(&mut self, id: EpochId, table: &Store, folder: &str, paths: &[String]) -> Result<u64> {
        self.check()?;
        fail::point("before_rewrite")?;
        let first = self.files;
        let number = self.router.name(folder);
        let columns = self.router.file_schema().clone();
        // Its files lack the columns that stand in the folder's name.
        self.sorter = sorter(&self.settings, &columns)?;
        let mut replaced = Vec::with_capacity(paths.len());
        for path in paths {
            let doing = |e: Error| e.while_doing(format!("could not rewrite {}/{path}", table.url()));
            let gone = || Error::unavailable(format!("{}/{path} was listed, and is gone", table.url()));
            let file = table.open_file(path).await?.ok_or_else(gone)?;
            let mut rows = 0;
            for batch in batches(file, &columns).map_err(doing)? {
                let batch = fit(&batch?, &columns).map_err(doing)?;
                rows += batch.num_rows() as u64;
                match &mut self.sorter {
                    Some(sorter) => sorter.push(batch)?,
                    None => self.put(id, number, batch).await?,
                }
            }
            replaced.push(RemovedFile { path: path.clone(), rows });
        }
        while let Some(batch) = self.sorter.as_mut().map(super::Sorter::next).transpose()?.flatten() {
            self.put(id, number, batch).await?;
        }
        self.finish_file(id, number).await?;
        let rows = replaced.iter().map(|file| file.rows).sum();
        self.rewrites.push((first..self.files, replaced));
        fail::point("after_rewrite")?;
        Ok(rows)
    }

    async fn put(&mut self, id: EpochId, folder: usize, rows: RecordBatch) -> Result<()> {
        self.encode(id, vec![Group { folder, rows }]).await?;
        match &mut self.uploads {
            Some(uploads) => uploads.advance(self.settings.buffer_bytes / 2).await,
            None => Ok(()),
        }
    }
}

/// Reads a file of a table with these columns.
fn batches(file: std::fs::File, columns: &Arc<Schema>) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    let damaged = |e: ParquetError| Error::config("it is not a Parquet file, or is damaged").because(e);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
    if let Some(unknown) =
        builder.schema().fields().iter().find(|field| columns.column_with_name(field.name()).is_none())
    {
        let name = unknown.name();
        return Err(Error::config(format!("it has a column `{name}`, which is not one of the table's")));
    }
    let groups = builder.metadata().row_groups();
    let row_bytes = groups.iter().map(|group| group.total_byte_size() / group.num_rows().max(1)).max();
    let rows = (BATCH_BYTES / row_bytes.unwrap_or(1).max(1)).clamp(1, BATCH_ROWS_MAX);
    let reader: ParquetRecordBatchReader =
        builder.with_batch_size(usize::try_from(rows).unwrap_or(1)).build().map_err(damaged)?;
    Ok(reader.map(|batch| batch.map_err(Error::from)))
}
