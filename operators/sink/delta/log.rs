//! The log of a Delta table: `_delta_log/<version>.json`, a file a commit, each made only if there is none of its name;
//! and checkpoints, which hold all that the commits up to them come to.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::action::{Add, Line, Metadata, Protocol, Remove};
use super::checkpoint;
use crate::error::{Error, Result};
use crate::store::Store;

/// The folder of the log below that of its table.
pub(super) const FOLDER: &str = "_delta_log";

/// The file that names the newest checkpoint.
const LAST_CHECKPOINT: &str = "_last_checkpoint";

/// Commits after which a checkpoint is written, unless the table says otherwise: as in Delta itself. A reader reads at
/// most so many commits; a checkpoint writes some hundred bytes for each file of the table.
const CHECKPOINT_INTERVAL: u64 = 10;

/// The property of a table that says how many commits lie between two checkpoints.
const CHECKPOINT_INTERVAL_PROPERTY: &str = "delta.checkpointInterval";

/// The log of one table.
#[derive(Debug, Clone)]
pub(super) struct Log {
    folder: Store,
}

/// What a log comes to at a version, but for the files.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) protocol: Protocol,
    pub(super) metadata: Metadata,
    /// How far each application has written.
    pub(super) txns: BTreeMap<String, i64>,
    /// The newest checkpoint that is known.
    checkpoint: Option<Checkpoint>,
}

/// Where a checkpoint is, as `_last_checkpoint` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint {
    version: u64,
    /// How many rows it has.
    size: u64,
    /// How many files it is in, if it is in several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<u64>,
}

/// The files of a table, by their paths below its folder, without escapes.
#[derive(Debug, Clone, Default)]
pub struct LoggedFiles {
    /// Sizes of the files that belong to the table.
    pub active: BTreeMap<String, u64>,
    /// Those that some writer has taken out of it.
    pub removed: BTreeSet<String>,
}

/// A snapshot in the making.
#[derive(Default)]
struct Found {
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
    txns: BTreeMap<String, i64>,
}

impl Log {
    pub(super) fn of(table: &Store) -> Self {
        Self { folder: table.below(FOLDER) }
    }

    /// Removes what a process left behind that died while it wrote an entry.
    pub(super) async fn sweep(&self) -> Result<()> {
        self.folder.remove_half_written().await.map(drop)
    }

    /// Reads the log to its end; gives nothing if there is none.
    pub(super) async fn load(&self) -> Result<Option<Snapshot>> {
        let checkpoint = self.last_checkpoint().await?;
        let mut found = Found::default();
        for file in self.open(checkpoint.as_ref()).await? {
            let lines = blocking(move || checkpoint::lines(file, &["protocol", "metaData", "txn"])).await?;
            found.take(&lines);
        }
        let mut next = behind(checkpoint.as_ref());
        while let Some(lines) = self.read(next).await? {
            found.take(&lines);
            next += 1;
        }
        let Some(version) = next.checked_sub(1) else {
            if self.folder.list("").await?.is_empty() {
                return Ok(None);
            }
            let missing = format!("neither {} nor {LAST_CHECKPOINT} is there", entry_name(0));
            return Err(self.unreadable(missing));
        };
        let (Some(protocol), Some(metadata)) = (found.protocol, found.metadata) else {
            return Err(self.unreadable("it says nothing of the table's columns".to_owned()));
        };
        Ok(Some(Snapshot { version, protocol, metadata, txns: found.txns, checkpoint }))
    }

    /// Brings a snapshot to the end of the log.
    pub(super) async fn advance(&self, snapshot: &mut Snapshot) -> Result<()> {
        while let Some(lines) = self.read(snapshot.version + 1).await? {
            snapshot.take(&lines);
        }
        Ok(())
    }

    /// Writes an entry, if there is none of its version; tells whether it did.
    pub(super) async fn create(&self, version: u64, lines: &[Line]) -> Result<bool> {
        let mut content = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut content, line)
                .map_err(|e| Error::internal("could not write JSON").because(e))?;
            content.push(b'\n');
        }
        self.folder.create(&entry_name(version), content.into()).await
    }

    /// Reads which files belong to the table at the end of the log; nothing if there is no log.
    pub(super) async fn files(&self) -> Result<Option<LoggedFiles>> {
        let Some(snapshot) = self.load().await? else { return Ok(None) };
        let mut files = LoggedFiles::default();
        self.replay(&snapshot, &["add", "remove"], |line| files.take(line)).await?;
        Ok(Some(files))
    }

    /// Gives those of these files that belong to the table at the version of the snapshot, as the log tells of them.
    pub(super) async fn active(&self, snapshot: &Snapshot, wanted: &BTreeSet<&str>) -> Result<BTreeMap<String, Add>> {
        let mut active = BTreeMap::new();
        let take = |line: Line| {
            let Some(path) = line.path().map(decoded).filter(|path| wanted.contains(path.as_str())) else { return };
            match line.add {
                Some(add) => active.insert(path, add),
                None => active.remove(&path),
            };
        };
        self.replay(snapshot, &["add"], take).await?;
        Ok(active)
    }

    /// Goes through what the log says of files up to the version of the snapshot; `folded` is what is wanted of the
    /// checkpoint.
    async fn replay(&self, snapshot: &Snapshot, folded: &'static [&str], mut take: impl FnMut(Line)) -> Result<()> {
        for file in self.open(snapshot.checkpoint.as_ref()).await? {
            blocking(move || checkpoint::lines(file, folded)).await?.into_iter().for_each(&mut take);
        }
        for version in snapshot.behind_checkpoint() {
            self.entry(version).await?.into_iter().for_each(&mut take);
        }
        Ok(())
    }

    /// Writes a checkpoint of the version of the snapshot, if it is time for one.
    pub(super) async fn checkpoint(&self, snapshot: &mut Snapshot) -> Result<()> {
        let version = snapshot.version;
        if version == 0 || !version.is_multiple_of(snapshot.checkpoint_interval()) {
            return Ok(());
        }
        let before = self.open(snapshot.checkpoint.as_ref()).await?;
        let mut later: BTreeMap<String, Line> = BTreeMap::new();
        for version in snapshot.behind_checkpoint() {
            for line in self.entry(version).await? {
                if let Some(path) = line.path() {
                    later.insert(decoded(path), line);
                }
            }
        }
        let head = snapshot.head();
        let (content, size) = blocking(move || checkpoint::write(head, before, later)).await?;
        self.folder.put(&checkpoint_name(version), content.into()).await?;
        let checkpoint = Checkpoint { version, size, parts: None };
        let hint = serde_json::to_vec(&checkpoint).map_err(|e| Error::internal("could not write JSON").because(e))?;
        self.folder.put(LAST_CHECKPOINT, hint.into()).await?;
        snapshot.checkpoint = Some(checkpoint);
        Ok(())
    }

    /// Reads an entry; nothing if there is none.
    async fn read(&self, version: u64) -> Result<Option<Vec<Line>>> {
        let name = entry_name(version);
        let Some(content) = self.folder.get(&name).await? else { return Ok(None) };
        let lines = serde_json::Deserializer::from_slice(&content).into_iter::<Line>().collect::<Result<_, _>>();
        lines.map(Some).map_err(|e| self.unreadable(format!("{name} is damaged")).because(e))
    }

    /// Reads an entry that must be there.
    async fn entry(&self, version: u64) -> Result<Vec<Line>> {
        let lines = self.read(version).await?;
        lines.ok_or_else(|| self.unreadable(format!("{} is not there", entry_name(version))))
    }

    async fn last_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let content: Option<Bytes> = self.folder.get(LAST_CHECKPOINT).await?;
        let read = content.map(|content| serde_json::from_slice(&content)).transpose();
        read.map_err(|e| self.unreadable(format!("{LAST_CHECKPOINT} is damaged")).because(e))
    }

    /// Opens the files of a checkpoint.
    async fn open(&self, checkpoint: Option<&Checkpoint>) -> Result<Vec<std::fs::File>> {
        let mut files = Vec::new();
        let Some(checkpoint) = checkpoint else { return Ok(files) };
        let version = checkpoint.version;
        let names = match checkpoint.parts {
            None => vec![checkpoint_name(version)],
            Some(parts) => {
                (1..=parts).map(|part| format!("{version:020}.checkpoint.{part:010}.{parts:010}.parquet")).collect()
            }
        };
        for name in names {
            let file = self.folder.open_file(&name).await?;
            files.push(file.ok_or_else(|| self.unreadable(format!("the checkpoint {name} is not there")))?);
        }
        Ok(files)
    }

    fn unreadable(&self, why: String) -> Error {
        Error::config(format!("could not read the Delta log {}: {why}", self.folder.url()))
    }
}

impl Snapshot {
    /// Goes on by one version.
    pub(super) fn take(&mut self, lines: &[Line]) {
        let mut found = Found::default();
        found.take(lines);
        self.version += 1;
        self.protocol = found.protocol.unwrap_or_else(|| self.protocol.clone());
        self.metadata = found.metadata.unwrap_or_else(|| self.metadata.clone());
        self.txns.append(&mut found.txns);
    }

    /// Gives the versions that the newest checkpoint does not have.
    fn behind_checkpoint(&self) -> RangeInclusive<u64> {
        behind(self.checkpoint.as_ref())..=self.version
    }

    /// Tells the commits between two checkpoints.
    fn checkpoint_interval(&self) -> u64 {
        let said = self.metadata.configuration.get(CHECKPOINT_INTERVAL_PROPERTY).cloned().flatten();
        said.and_then(|text| text.parse().ok()).filter(|commits| *commits > 0).unwrap_or(CHECKPOINT_INTERVAL)
    }

    /// Gives what a checkpoint says beside the files.
    fn head(&self) -> Vec<Line> {
        let txn = |(app_id, version): (&String, &i64)| {
            super::action::Txn { app_id: app_id.clone(), version: *version, last_updated: None }.into()
        };
        let head = [self.protocol.clone().into(), self.metadata.clone().into()];
        head.into_iter().chain(self.txns.iter().map(txn)).collect()
    }
}

impl Found {
    fn take(&mut self, lines: &[Line]) {
        for line in lines {
            self.protocol = line.protocol.clone().or(self.protocol.take());
            self.metadata = line.meta_data.clone().or(self.metadata.take());
            self.txns.extend(line.txn.iter().map(|txn| (txn.app_id.clone(), txn.version)));
        }
    }
}

impl LoggedFiles {
    fn take(&mut self, line: Line) {
        if let Some(Add { path, size, .. }) = line.add {
            let path = decoded(&path);
            self.removed.remove(&path);
            self.active.insert(path, u64::try_from(size).unwrap_or(0));
        }
        if let Some(Remove { path, .. }) = line.remove {
            let path = decoded(&path);
            self.active.remove(&path);
            self.removed.insert(path);
        }
    }
}

impl Line {
    /// Gives the path of the file that is added or removed.
    pub(super) fn path(&self) -> Option<&str> {
        let added = self.add.as_ref().map(|add| add.path.as_str());
        added.or_else(|| self.remove.as_ref().map(|remove| remove.path.as_str()))
    }
}

/// Takes the escapes out of a path: writers differ in what they escape.
pub(super) fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// Tells whether a file that a checkpoint names is named again by a later commit.
pub(super) fn is_named(later: &HashSet<String>, line: &Line) -> bool {
    line.path().is_some_and(|path| later.contains(&decoded(path)))
}

/// Gives the first version that a checkpoint does not have.
fn behind(checkpoint: Option<&Checkpoint>) -> u64 {
    checkpoint.map_or(0, |checkpoint| checkpoint.version + 1)
}

fn entry_name(version: u64) -> String {
    format!("{version:020}.json")
}

fn checkpoint_name(version: u64) -> String {
    format!("{version:020}.checkpoint.parquet")
}

/// Does work that reads and encodes whole files where it may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("a task over a checkpoint ended early").because(e))?
}
