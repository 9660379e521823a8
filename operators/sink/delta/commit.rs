//! Makes an epoch's files part of a Delta table: one entry of its log, or none if it is there.
//!
//! Files that stand for others come with the entry that takes those out. They stay in the folder, where older versions
//! find them. If another writer has taken some of them out meanwhile, the rows of the new file are not those of the table
//! any more: then it does not come into the log, and what it was to replace stays as it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::action::{Add, Line, Remove, Txn};
use super::columns::Columns;
use super::log::{Log, Snapshot};
use super::stats;
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::parquet::audit::{NamedFile, Replacement, TableFolder, named_files, replacements};
use crate::sink::parquet::{folder_values, leaving_replaced};
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

/// What an epoch brings into the log.
struct Change {
    /// Its files, by their paths.
    adds: BTreeMap<String, Add>,
    /// Which of them stand for files of earlier epochs: all or none, since an epoch has rows or rewrites rows.
    replacements: Vec<Replacement>,
}

#[async_trait]
impl Committer for DeltaCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        if replacements(handle)?.is_empty() {
            self.files.commit(id, handle).await?;
        } else {
            self.files.commit(id, &leaving_replaced(handle)?).await?;
        }
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
            let replacements = replacements(handle)?;
            let data_change = replacements.is_empty();
            let adds = futures::stream::iter(named_files(handle)?)
                .map(|file| self.add(file, data_change))
                .buffered(READS_MAX)
                .try_collect()
                .await?;
            self.append(&mut snapshot, id, epoch, &Change { adds, replacements }).await?;
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
    async fn append(&self, snapshot: &mut Snapshot, id: EpochId, epoch: i64, change: &Change) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let files = if change.replacements.is_empty() {
                change.adds.values().cloned().map(Line::from).collect()
            } else {
                self.replacing(snapshot, change).await?
            };
            let lines = self.entry(snapshot, id, epoch, (change, files))?;
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

    /// Gives the files that come and go with an epoch that rewrites rows, if the version of the snapshot is the last before
    /// it.
    async fn replacing(&self, snapshot: &Snapshot, Change { adds, replacements }: &Change) -> Result<Vec<Line>> {
        let replaced = replacements.iter().flat_map(|replacement| &replacement.replaces).map(String::as_str).collect();
        let mut active = self.log.active(snapshot, &replaced).await?;
        let deletion_timestamp = Some(self.clock.now_us() / 1000);
        let mut lines = Vec::new();
        for Replacement { files, replaces } in replacements {
            if let Some(gone) = replaces.iter().find(|path| !active.contains_key(*path)) {
                let table = self.folder.table().url();
                tracing::warn!(table, gone, "another writer has taken out a file that was merged: it stays unmerged");
                continue;
            }
            lines.extend(files.iter().filter_map(|path| adds.get(path)).cloned().map(Line::from));
            let replaced = replaces.iter().filter_map(|path| active.remove(path));
            lines.extend(replaced.map(|Add { path, partition_values, size, .. }| {
                let remove = Remove {
                    path,
                    deletion_timestamp,
                    data_change: false,
                    extended_file_metadata: Some(true),
                    partition_values: Some(partition_values),
                    size: Some(size),
                };
                Line::from(remove)
            }));
        }
        Ok(lines)
    }

    /// Makes the lines of an epoch's entry.
    fn entry(
        &self,
        snapshot: &Snapshot,
        id: EpochId,
        epoch: i64,
        (change, files): (&Change, Vec<Line>),
    ) -> Result<Vec<Line>> {
        let now_ms = self.clock.now_us() / 1000;
        let (protocol, metadata) = self.columns.fit(&snapshot.protocol, &snapshot.metadata)?;
        let appends = change.replacements.is_empty();
        // As Spark tells of its streams, and of merged files. With the generation, no two processes ever write the same.
        let mut parameters = json!({ "queryId": self.app_id, "epochId": id.epoch.to_string() });
        if appends {
            parameters["outputMode"] = json!("Append");
        }
        let told = json!({
            "timestamp": now_ms,
            "operation": if appends { "STREAMING UPDATE" } else { "OPTIMIZE" },
            "operationParameters": parameters,
            "isBlindAppend": appends,
            "engineInfo": super::ENGINE,
            "nexusGeneration": id.generation,
        });
        let txn = Txn { app_id: self.app_id.clone(), version: epoch, last_updated: Some(now_ms) };
        let mut lines = vec![Line { commit_info: Some(told), ..Line::default() }];
        lines.extend(protocol.map(Line::from));
        lines.extend(metadata.map(Line::from));
        lines.push(txn.into());
        lines.extend(files);
        Ok(lines)
    }

    /// Tells of a file that is in its place.
    async fn add(&self, file: NamedFile, data_change: bool) -> Result<(String, Add)> {
        let footer = self.folder.footer(&file.path, file.bytes).await?;
        let add = Add {
            path: utf8_percent_encode(&file.path, IN_PATHS).to_string(),
            partition_values: self.columns.partition_values(folder_values(&file.path)),
            size: i64::try_from(file.bytes).unwrap_or(i64::MAX),
            modification_time: self.clock.now_us() / 1000,
            data_change,
            stats: Some(stats::of(&footer)?),
            tags: None,
        };
        Ok((file.path, add))
    }
}
