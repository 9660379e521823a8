//! Makes an epoch's files part of a Delta table: one entry of its log, or none if it is there.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::action::{Add, Line, Txn};
use super::columns::Columns;
use super::log::{Log, Snapshot};
use super::stats;
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::parquet::audit::{NamedFile, TableFolder, named_files};
use crate::sink::parquet::folder_values;
use crate::sink::{Committer, EpochId, Handle};

/// Footers that are read at once.
const READS_MAX: usize = 16;

/// How often an entry is tried under the next version, because another writer was faster. Each time another one has
/// gone on; then the commit is tried again later.
const TRIES_MAX: usize = 20;

/// What a path keeps as it is in the log; all else is escaped.
const IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b'=');

/// Publishes the epochs of a [`DeltaSink`](super::DeltaSink).
pub(super) struct DeltaCommitter {
    /// Brings the files to their places.
    pub(super) files: Arc<dyn Committer>,
    pub(super) folder: TableFolder,
    pub(super) log: Log,
    pub(super) columns: Columns,
    /// The name under which the log tells how far this sink has written.
    pub(super) app_id: String,
    pub(super) clock: SharedClock,
    /// The newest version that is known. Whoever works on it takes it, and puts it back if all went well: after an error
    /// the log is read anew. Never locked while anything is awaited.
    pub(super) known: Mutex<Option<Snapshot>>,
}

#[async_trait]
impl Committer for DeltaCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        self.files.commit(id, handle).await?;
        let logged = self.enter(id, handle).await;
        logged.map_err(|e| e.while_doing(format!("could not bring epoch {} into the Delta log", id.epoch)))
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        self.files.sweep(generation, keep).await
    }
}

impl DeltaCommitter {
    async fn enter(&self, id: EpochId, handle: &Handle) -> Result<()> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut snapshot = match known {
            Some(snapshot) => snapshot,
            None => self.log.load().await?.ok_or_else(|| Error::config("the log of the table is gone"))?,
        };
        let epoch = i64::try_from(id.epoch).unwrap_or(i64::MAX);
        if !self.has(&snapshot, epoch) {
            let adds = futures::stream::iter(named_files(handle)?)
                .map(|file| self.add(file))
                .buffered(READS_MAX)
                .try_collect()
                .await?;
            self.append(&mut snapshot, id, epoch, adds).await?;
            fail::point("before_log_checkpoint")?;
            if let Err(error) = self.log.checkpoint(&mut snapshot).await {
                let log = self.folder.table().url();
                tracing::warn!(log, %error, "could not write a checkpoint of a Delta log; its readers read more entries");
            }
            fail::point("after_log_checkpoint")?;
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        Ok(())
    }

    /// Tells whether the log has an epoch.
    fn has(&self, snapshot: &Snapshot, epoch: i64) -> bool {
        snapshot.txns.get(&self.app_id).is_some_and(|version| *version >= epoch)
    }

    /// Writes the entry of an epoch behind those of all writers.
    async fn append(&self, snapshot: &mut Snapshot, id: EpochId, epoch: i64, adds: Vec<Add>) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let lines = self.entry(snapshot, id, epoch, &adds)?;
            fail::point("before_log_entry")?;
            if self.log.create(snapshot.version + 1, &lines).await? {
                fail::point("after_log_entry")?;
                snapshot.take(&lines);
                return Ok(());
            }
            self.log.advance(snapshot).await?;
            if self.has(snapshot, epoch) {
                return Err(Error::fenced("another process has taken over this pipeline, and has written it"));
            }
        }
        Err(Error::unavailable(format!("other writers have taken the next version {TRIES_MAX} times")))
    }

    /// Makes the lines of an epoch's entry.
    fn entry(&self, snapshot: &Snapshot, id: EpochId, epoch: i64, adds: &[Add]) -> Result<Vec<Line>> {
        let now_ms = self.clock.now_us() / 1000;
        let (protocol, metadata) = self.columns.fit(&snapshot.protocol, &snapshot.metadata)?;
        // As Spark's streams tell it. With the generation, no two processes ever write the same.
        let told = json!({
            "timestamp": now_ms,
            "operation": "STREAMING UPDATE",
            "operationParameters": {
                "outputMode": "Append", "queryId": self.app_id, "epochId": id.epoch.to_string(),
            },
            "isBlindAppend": true,
            "engineInfo": super::ENGINE,
            "nexusGeneration": id.generation,
        });
        let txn = Txn { app_id: self.app_id.clone(), version: epoch, last_updated: Some(now_ms) };
        let mut lines = vec![Line { commit_info: Some(told), ..Line::default() }];
        lines.extend(protocol.map(Line::from));
        lines.extend(metadata.map(Line::from));
        lines.push(txn.into());
        lines.extend(adds.iter().cloned().map(Line::from));
        Ok(lines)
    }

    /// Tells of a file that is in its place.
    async fn add(&self, file: NamedFile) -> Result<Add> {
        let footer = self.folder.footer(&file.path, file.bytes).await?;
        Ok(Add {
            path: utf8_percent_encode(&file.path, IN_PATHS).to_string(),
            partition_values: self.columns.partition_values(folder_values(&file.path)),
            size: i64::try_from(file.bytes).unwrap_or(i64::MAX),
            modification_time: self.clock.now_us() / 1000,
            data_change: true,
            stats: Some(stats::of(&footer)?),
            tags: None,
        })
    }
}
