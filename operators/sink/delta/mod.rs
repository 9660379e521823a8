//! A Delta table in the lake: Parquet files, and a log that says which of them are the table.
//!
//! The files are written by [`ParquetSink`] as those of any table. An epoch's commit brings
//! them to their places, where no reader of the log looks for them, and then writes one entry of the log, which makes
//! them part of the table all at once: readers see whole epochs. The entry carries an application transaction (`txn`)
//! with the sink's name and the epoch's number, so that a commit that is done again finds itself there. It is made only
//! if there is none of its version; if another writer was faster, it takes the next one.
//!
//! The columns of the table are those of the log: a table gets new columns with the first entry that has them. Every
//! tenth entry has a checkpoint. Nothing is ever removed from the folder, so that every version can be read: files that are
//! merged leave the table with the entry that brings the larger one.
//!
//! Decision: [0013](https://github.com/nexus-engine/nexus/blob/main/docs/decisions/0013-delta-logs-are-written-by-nexus.md)
//! says why this is no library.
//!
//! Invariant: rows are only added; an entry that takes files out has the same rows in others. A table whose rows change
//! has them all, with `_sequence`, as in plain Parquet.

mod action;
mod checkpoint;
mod columns;
mod commit;
mod log;
mod stats;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use serde_json::json;

use self::action::Line;
use self::columns::Columns;
use self::commit::DeltaCommitter;
pub use self::log::LoggedFiles;
use self::log::{Log, Snapshot};
use super::parquet::audit::TableFolder;
use super::parquet::{ParquetSettings, ParquetSink, PartitionBy};
use super::{Committer, EpochId, Prepared, Sink};
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::store::Store;

/// What the log says of who has written it.
const ENGINE: &str = concat!("nexus/", env!("CARGO_PKG_VERSION"));

/// What a [`DeltaSink`] is told.
#[derive(Debug, Clone)]
pub struct DeltaSettings {
    /// How the files are written.
    pub parquet: ParquetSettings,
    /// The id of the state store, which counts the epochs.
    pub state_id: String,
    /// What tells the time for the log.
    pub clock: SharedClock,
}

/// Writes a table's rows to the files of a Delta table.
pub struct DeltaSink<S: ?Sized = dyn Sink> {
    /// Writes and commits the files.
    files: Box<S>,
    stored: SchemaRef,
    committer: Arc<DeltaCommitter>,
}

impl<S: Sink + ?Sized> DeltaSink<S> {
    /// Makes a sink for the Delta table in a folder, and the table if it is not there. `files` makes the sink that writes
    /// Parquet files to that folder, by the settings that it is given.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a column that has no type in Delta, a table that does not take the rows,
    /// or was written with another state; and for a folder with files that no log names.
    pub async fn open(
        settings: DeltaSettings,
        folder: TableFolder,
        files: impl FnOnce(ParquetSettings) -> Result<Box<S>>,
    ) -> Result<Self> {
        let DeltaSettings { mut parquet, state_id, clock } = settings;
        let columns = Columns::of(&parquet.schema, &parquet.partition_by, &parquet.table)?;
        let stored = columns.stored().clone();
        parquet.schema = stored.clone();
        let app_ids = format!("nexus/{}/{}.{}/", parquet.pipeline, parquet.tier, parquet.table);
        let app_id = format!("{app_ids}{state_id}");
        let files = files(parquet)?;

        let log = Log::of(folder.table());
        log.sweep().await?;
        let snapshot = match log.load().await? {
            Some(snapshot) => snapshot,
            None => begin(&log, &folder, &columns, &clock).await?,
        };
        columns.fit(&snapshot.protocol, &snapshot.metadata)?;
        if let Some(other) = snapshot.txns.keys().find(|name| name.starts_with(&app_ids) && **name != app_id) {
            return Err(Error::config(format!(
                "the Delta table {} was written by this pipeline with another state (`{other}`), whose epochs and files \
                 have the same numbers; go on with that state, give the table another name, or remove the table",
                folder.table().url()
            )));
        }
        let known = Mutex::new(Some(snapshot));
        let committer = DeltaCommitter { files: files.committer(), folder, log, columns, app_id, clock, known };
        Ok(Self { files, stored, committer: Arc::new(committer) })
    }
}

impl DeltaSink<ParquetSink> {
    /// Writes the rows of committed files of one folder to new ones there, as [`ParquetSink::rewrite`] does. With the commit
    /// of the next epoch that is prepared, those stand for them in the log, and they stay in the folder; unless another
    /// writer has taken out some of them by then: then nothing changes, and the new files are in no version.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if a file is damaged, or holds columns that the table does not have.
    pub async fn rewrite(&mut self, id: EpochId, table: &Store, folder: &str, paths: &[String]) -> Result<u64> {
        self.files.rewrite(id, table, folder, paths).await
    }
}

#[async_trait]
impl<S: Sink + ?Sized> Sink for DeltaSink<S> {
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        self.files.write(id, &store(rows, &self.stored)?).await
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        self.files.prepare(id).await
    }

    fn end(&mut self) {
        self.files.end();
    }

    fn held_bytes(&self) -> usize {
        self.files.held_bytes()
    }

    fn committer(&self) -> Arc<dyn Committer> {
        self.committer.clone()
    }
}

/// Tells whether a Delta table can have these columns.
///
/// # Errors
///
/// [`Config`](crate::ErrorKind::Config) if not.
pub fn check_columns(rows: &Schema, partition_by: &[PartitionBy], table: &str) -> Result<()> {
    Columns::of(rows, partition_by, table).map(drop)
}

/// Reads which files belong to the Delta table in a folder; nothing if there is none.
pub async fn logged_files(table: &Store) -> Result<Option<LoggedFiles>> {
    Log::of(table).files().await
}

/// Makes the table, without rows.
async fn begin(log: &Log, folder: &TableFolder, columns: &Columns, clock: &SharedClock) -> Result<Snapshot> {
    let url = folder.table().url();
    if let Some(file) = folder.list().await?.first() {
        return Err(Error::config(format!(
            "{url} has files ({}) and no Delta log: they would not be in the table; give the table another name, or \
             leave out `table_format: delta`",
            file.name
        )));
    }
    let (id, now_ms) = (uuid::Uuid::new_v4().to_string(), clock.now_us() / 1000);
    let told =
        json!({ "timestamp": now_ms, "operation": "CREATE TABLE", "operationParameters": {}, "engineInfo": ENGINE });
    let (protocol, metadata) = columns.begin(id, now_ms);
    let told = Line { commit_info: Some(told), ..Line::default() };
    log.create(0, &[told, protocol.into(), metadata.into()]).await?;
    log.load().await?.ok_or_else(|| Error::unavailable(format!("the Delta log of {url} was written, and is gone")))
}

/// Brings rows into the types of the table; columns that have them share their memory.
fn store(rows: &RecordBatch, stored: &SchemaRef) -> Result<RecordBatch> {
    let columns = rows.columns().iter().zip(stored.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        // Not safe: a value out of range is an error, never a silent null.
        let options = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(column, field.data_type(), &options).map_err(|e| {
            Error::data(format!("could not store the column `{}` as {}", field.name(), field.data_type())).because(e)
        })
    });
    RecordBatch::try_new(stored.clone(), columns.collect::<Result<_>>()?)
        .map_err(|e| Error::internal("rows do not have the schema of their table").because(e))
}
