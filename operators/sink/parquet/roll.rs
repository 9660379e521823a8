//! Files of several epochs: their rows are gathered in a spool, and written to the table when there are enough of them.
//!
//! An epoch's rows are durable in the spool before its record is written, so that sources are told as for any other sink;
//! they become visible with a later epoch. What waits is known from the records alone. Files are built beside the epochs
//! that follow, so that none of these is held up; what a build has taken leaves the spool when the epoch is committed whose
//! record names the built files.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::commit::{Files, read};
use super::schema::fit;
use super::{ParquetSettings, ParquetSink};
use crate::batch::without_shared_buffers;
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::spool::{self, Spool};
use crate::sink::{Committer, EpochId, Handle, Prepared, Sink, SpooledFile};
use crate::store::Store;

/// Files that wait at most: each is a name in the state, and a request when it is read.
const WAITING_MAX: usize = 4096;

/// When gathered rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roll {
    /// When they take this many bytes in the spool.
    pub bytes: u64,
    /// When the oldest has waited for so long.
    pub age: Duration,
}

/// A file of the spool whose rows wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The file.
    #[serde(flatten)]
    pub file: SpooledFile,
    /// Since when, in microseconds since the Unix epoch.
    pub since_us: i64,
}

/// The folders of a [`RollingSink`], each for it alone.
#[derive(Debug, Clone)]
pub struct RollingPlace {
    /// Where committed files lie.
    pub table: Store,
    /// Where files are staged, on a local disk.
    pub staging: Store,
    /// Where uploads are noted, on an object store.
    pub notes: Store,
    /// Where rows wait, in the state store.
    pub spool: Store,
}

/// Writes a table's rows to Parquet files that hold several epochs.
///
/// Where nothing is to be gathered any more, what waits is written with the next epoch, and the rows of epochs go to files
/// of their own, as [`ParquetSink`] has it.
pub struct RollingSink {
    settings: ParquetSettings,
    place: RollingPlace,
    roll: Option<Roll>,
    clock: SharedClock,
    /// Takes the rows where they are not gathered, and knows what rows can be stored.
    direct: ParquetSink,
    spool: Spool,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    /// Files whose rows are being written, older than those that wait.
    building: Option<Building>,
    /// Whether the open epoch is the last one.
    ends: bool,
    /// What waited when this process started.
    restored: HashSet<String>,
}

/// Rows on their way from the spool to files of the table.
struct Building {
    taken: Vec<SpooledFile>,
    /// One task, which ends with the sink.
    task: JoinSet<Result<Prepared>>,
    /// What the task's sink holds, written by the task.
    held_bytes: Arc<AtomicUsize>,
}

/// Files that have been built, and what they were built from.
struct Built {
    taken: Vec<SpooledFile>,
    prepared: Prepared,
}

impl RollingSink {
    /// Makes a sink; `waiting` are the files of recorded epochs whose rows no recorded epoch has written, oldest first.
    ///
    /// # Errors
    ///
    /// As [`ParquetSink::new`].
    pub fn new(
        settings: ParquetSettings,
        place: RollingPlace,
        roll: Option<Roll>,
        waiting: Vec<Waiting>,
        clock: SharedClock,
    ) -> Result<Self> {
        let direct = new_sink(&settings, &place)?;
        Ok(Self {
            spool: Spool::new(place.spool.clone(), direct.stored.schema().clone(), spool::ROWS),
            settings,
            place,
            roll,
            clock,
            direct,
            restored: waiting.iter().map(|waiting| waiting.file.name.clone()).collect(),
            waiting: waiting.into(),
            building: None,
            ends: false,
        })
    }

    /// Writes what waits beside the rows of the open epoch, which are not gathered.
    async fn prepare_directly(&mut self, id: EpochId) -> Result<Prepared> {
        let taken: Vec<SpooledFile> = self.waiting.drain(..).map(|waiting| waiting.file).collect();
        if !taken.is_empty() {
            self.direct.router.lift_limit();
        }
        for file in &taken {
            copy(&self.place.spool, file, &mut self.direct, id).await?;
        }
        let mut prepared = self.direct.prepare(id).await?;
        let rows = taken.iter().map(|file| file.rows).sum();
        prepared.rows = prepared.rows.checked_sub(rows).ok_or_else(|| lost(&taken, prepared.rows))?;
        if !taken.is_empty() {
            prepared.rolled = taken.len() as u64;
            prepared.handle = Some(handle(prepared.handle.iter(), &taken)?);
        }
        Ok(prepared)
    }

    /// Gives the files that are complete; waits for them if no more may be gathered.
    async fn built(&mut self, is_full: bool) -> Result<Option<Built>> {
        let Some(building) = &mut self.building else { return Ok(None) };
        let done = if self.ends || is_full { building.task.join_next().await } else { building.task.try_join_next() };
        let Some(done) = done else { return Ok(None) };
        let prepared = done.map_err(|e| Error::internal("the writing of gathered rows ended early").because(e))??;
        Ok(self.building.take().map(|Building { taken, .. }| Built { taken, prepared }))
    }

    /// Begins to write everything that waits.
    fn build(&mut self, id: EpochId) -> Result<()> {
        let taken: Vec<SpooledFile> = self.waiting.drain(..).map(|waiting| waiting.file).collect();
        let (mut sink, spool) = (new_sink(&self.settings, &self.place)?, self.place.spool.clone());
        sink.router.lift_limit();
        let mut task = JoinSet::new();
        let files = taken.clone();
        let held_bytes = Arc::new(AtomicUsize::new(0));
        let held = held_bytes.clone();
        task.spawn(async move {
            fail::point("before_roll")?;
            for file in &files {
                copy(&spool, file, &mut sink, id).await?;
                held.store(sink.held_bytes(), Ordering::Relaxed);
            }
            let prepared = sink.prepare(id).await?;
            if prepared.rows != files.iter().map(|file| file.rows).sum::<u64>() {
                return Err(lost(&files, prepared.rows));
            }
            fail::point("after_roll")?;
            Ok(prepared)
        });
        self.building = Some(Building { taken, task, held_bytes });
        Ok(())
    }

    fn waiting_bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.file.bytes).sum()
    }

    fn is_due(&self, roll: Roll) -> bool {
        let old = self.waiting.front().is_some_and(|oldest| is_over(oldest.since_us, roll.age, self.clock.now_us()));
        old || self.waiting_bytes() >= roll.bytes || self.waiting.len() >= WAITING_MAX
    }
}

/// Tells whether so much time has passed since a moment.
pub fn is_over(since_us: i64, age: Duration, now_us: i64) -> bool {
    u128::try_from(now_us.saturating_sub(since_us)).is_ok_and(|waited_us| waited_us >= age.as_micros())
}

#[async_trait]
impl Sink for RollingSink {
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        if self.roll.is_none() {
            return self.direct.write(id, rows).await;
        }
        self.spool.make_room().await?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        // Bad data is found here, before any row of the call is taken, also what no folder can be named by.
        let rows = self.direct.stored.store(rows)?;
        self.direct.router.route(rows.clone())?;
        self.spool.write(id, &without_shared_buffers(&rows))
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        let Some(roll) = self.roll else { return self.prepare_directly(id).await };
        self.direct.router.reset();
        let spooled = self.spool.finish(id).await?;
        let since_us = self.clock.now_us();
        self.waiting.extend(spooled.iter().map(|file| Waiting { file: file.clone(), since_us }));
        let is_full = self.waiting_bytes() >= roll.bytes.saturating_mul(2) || self.waiting.len() >= WAITING_MAX;
        let mut built: Vec<Built> = self.built(is_full).await?.into_iter().collect();
        if self.building.is_none() && !self.waiting.is_empty() && (self.ends || self.is_due(roll)) {
            self.build(id)?;
            if self.ends {
                built.extend(self.built(true).await?);
            }
        }
        let mut prepared =
            Prepared { rows: spooled.iter().map(|file| file.rows).sum(), spooled, ..Prepared::default() };
        if !built.is_empty() {
            let handles = built.iter().filter_map(|built| built.prepared.handle.as_ref());
            let taken: Vec<SpooledFile> = built.iter().flat_map(|built| built.taken.iter().cloned()).collect();
            prepared.handle = Some(handle(handles, &taken)?);
            prepared.rolled = taken.len() as u64;
            prepared.bytes = built.iter().map(|built| built.prepared.bytes).sum();
            prepared.files = built.iter().map(|built| built.prepared.files).sum();
        }
        Ok(prepared)
    }

    fn end(&mut self) {
        self.ends = true;
    }

    fn held_bytes(&self) -> usize {
        let building = self.building.as_ref().map_or(0, |building| building.held_bytes.load(Ordering::Relaxed));
        self.direct.held_bytes() + self.spool.held_bytes() + building
    }

    fn committer(&self) -> Arc<dyn Committer> {
        let (files, spool) = (self.direct.committer(), self.place.spool.clone());
        Arc::new(RollingCommitter { files, spool, restored: self.restored.clone() })
    }
}

/// Publishes the files of a [`RollingSink`].
struct RollingCommitter {
    /// Publishes files.
    files: Arc<dyn Committer>,
    spool: Store,
    /// What waited when this process started.
    restored: HashSet<String>,
}

#[async_trait]
impl Committer for RollingCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        self.files.commit(id, handle).await?;
        // Only now: what is gone from the spool is in the table.
        for name in read(handle)?.spent {
            fail::point("before_spool_removal")?;
            self.spool.delete(&name).await?;
            fail::point("after_spool_removal")?;
        }
        Ok(())
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let mut swept = self.files.sweep(generation, keep).await?;
        let mut kept = self.restored.clone();
        for handle in keep {
            kept.extend(read(handle)?.spent);
        }
        for entry in self.spool.list("").await? {
            if spool::epoch_of(&entry.name).is_some_and(|of| of.generation < generation) && !kept.contains(&entry.name)
            {
                self.spool.delete(&entry.name).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

fn new_sink(settings: &ParquetSettings, place: &RollingPlace) -> Result<ParquetSink> {
    ParquetSink::new(settings.clone(), place.table.clone(), place.staging.clone(), place.notes.clone())
}

/// Writes the rows of a spooled file to a sink. They may have been spooled under other columns.
async fn copy(spool: &Store, file: &SpooledFile, sink: &mut ParquetSink, id: EpochId) -> Result<()> {
    let gone =
        || Error::internal(format!("could not read {}/{}: a record names it, and it is gone", spool.url(), file.name));
    let bytes = spool.get(&file.name).await?.ok_or_else(gone)?;
    let columns = sink.stored.schema().clone();
    for rows in spool::read(&bytes)? {
        sink.write(id, &fit(&rows?, &columns)?).await?;
    }
    Ok(())
}

/// Makes one handle of those of builds, which also names what they have taken.
fn handle<'a>(handles: impl Iterator<Item = &'a Handle>, taken: &[SpooledFile]) -> Result<Handle> {
    let spent = taken.iter().map(|file| file.name.clone()).collect();
    let mut all = Files { spent, ..Files::default() };
    for handle in handles {
        all.files.extend(read(handle)?.files);
    }
    serde_json::to_value(all).map_err(|e| Error::internal("could not write a handle").because(e))
}

fn lost(taken: &[SpooledFile], rows: u64) -> Error {
    let expected: u64 = taken.iter().map(|file| file.rows).sum();
    Error::internal(format!("{expected} gathered rows were to be written, and {rows} were"))
}
