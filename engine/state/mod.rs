//! State: commit records, positions, snapshots, fencing.
//!
//! The state store is a folder, on the local disk or under a prefix of an
//! object store. Nothing but create-if-absent is needed of it:
//!
//! ```text
//! generations/<generation>.json    claimed by each process at its start; those of older processes are removed
//! epochs/<epoch>.json              commit records
//! history/<first>-<last>.jsonl.zst commit records that every sink has committed, many in one file
//! checkpoints/<epoch>.json         the fold of all records up to that epoch
//! committed/<generation>.json      up to which epoch each sink has committed
//! snapshots/<table>/...            state of windows and rows of joins, as Arrow IPC, and remembered keys
//! spool/<sink>/...                 rows on their way to Postgres
//! notes/<sink>/...                 uploads that have been begun
//! rolls/<table or sink>/...        rows that wait for a larger file of the lake, or of an archive
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use nexus_operators::clock::SharedClock;
use nexus_operators::position::Cut;
use nexus_operators::sink::RefusedUpto;
use nexus_operators::sink::parquet::Waiting;
use nexus_operators::store::Store;
use nexus_operators::{Error, Result, fail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod history;
pub mod record;
pub mod schema;
pub mod snapshot;
#[cfg(test)]
mod tests;

use record::{CommitRecord, Counted, EvolvedColumn, ReferenceVersion, TableState, VERSION};
use schema::TableSchema;

/// Records between two checkpoints. A start reads at most this many records;
/// a checkpoint costs one write of all positions.
const CHECKPOINT_EVERY: u64 = 64;

/// How often a claim is read that another process removes meanwhile.
const CLAIM_READS_MAX: usize = 16;

/// Everything that the records up to one epoch add up to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this format.
    pub version: u32,
    /// A random name of this state, made at its first start: it tells a new lake from an old one of the same name.
    pub id: String,
    /// The newest epoch.
    pub epoch: u64,
    /// The process that wrote it.
    pub generation: u64,
    /// When it was written, in microseconds since the Unix epoch.
    pub written_at_us: i64,
    /// Positions by source.
    pub positions: BTreeMap<String, Cut>,
    /// Watermarks by source, in microseconds since the Unix epoch.
    pub watermarks_us: BTreeMap<String, i64>,
    /// State by table.
    pub tables: BTreeMap<String, TableState>,
    /// Up to where the quarantine has the rows that the services of sinks have refused, by sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, RefusedUpto>,
    /// Files of rows that are recorded and wait for a larger file of the lake, oldest first, by sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting: BTreeMap<String, Vec<Waiting>>,
    /// The newest epoch that has put files in the place of others, by sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewritten: BTreeMap<String, u64>,
    /// What error budgets have counted, by source or table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, Vec<Counted>>,
    /// All versions of the columns by table, oldest first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schemas: BTreeMap<String, Vec<TableSchema>>,
    /// Columns that sources have got while the pipeline ran, oldest first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evolved: BTreeMap<String, Vec<EvolvedColumn>>,
    /// The reference tables as the newest epoch has used them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, ReferenceVersion>,
}

impl State {
    /// Gives the newest columns of a table; nothing if none are recorded.
    pub fn schema_of(&self, table: &str) -> Option<&TableSchema> {
        self.schemas.get(table)?.last()
    }
}

/// What stands in a generation's file.
#[derive(Debug, Serialize, Deserialize)]
struct Generation {
    version: u32,
    state: String,
    claimed_at_us: i64,
    /// A random name of the process: two that claim at the same time write different files.
    #[serde(default)]
    process: String,
}

/// What stands in a generation's file of committed epochs.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Committed {
    sinks: BTreeMap<String, u64>,
}

/// The state store of one pipeline.
#[derive(Debug, Clone)]
pub struct StateStore {
    store: Store,
    pipeline: String,
    clock: SharedClock,
}

impl StateStore {
    /// Makes the state store of a pipeline in a folder.
    pub fn new(store: Store, pipeline: impl Into<String>, clock: SharedClock) -> Self {
        Self { store, pipeline: pipeline.into(), clock }
    }

    /// Gives the folder.
    pub fn folder(&self) -> &Store {
        &self.store
    }

    /// Claims the next generation. From now on no older process can write a record.
    ///
    /// Gives the generation, and the state that it starts from. A process owns the pipeline while its generation's file
    /// is there, and the claim removes those of older ones. A record that one of them is about to write may still come:
    /// so the claim is followed by a record of its own, and whoever creates the next epoch's record first decides.
    pub async fn claim(&self) -> Result<(u64, State)> {
        let (generation, id) = self.claim_generation().await?;
        fail::point("before_start_record")?;
        loop {
            let mut state = self.load().await?;
            // A record of this process must not follow one of a newer process, which would then find it in its way.
            if state.generation > generation {
                return Err(fenced(generation, state.generation));
            }
            state.id.clone_from(&id);
            let start = self.record(generation, state.epoch + 1);
            let created = self.store.create(&epoch_file(start.epoch), json(&start)?).await?;
            // Behind the write, since only then is it sure that the epoch was not that of a record long folded away.
            self.check_fence(generation).await?;
            if created {
                fold(&mut state, &start);
                self.checkpoint(&state).await?;
                return Ok((generation, state));
            }
        }
    }

    /// Creates the file of the next generation, and removes older ones: their processes are fenced by that. Gives the
    /// generation, and the state's name.
    async fn claim_generation(&self) -> Result<(u64, String)> {
        let known = self.id().await?;
        let mut claim = Generation {
            version: VERSION,
            state: if known.is_empty() { random_name() } else { known },
            claimed_at_us: self.clock.now_us(),
            process: random_name(),
        };
        let first = self.newest_generation().await?.unwrap_or(0) + 1;
        let mut ours = first;
        while !self.store.create(&generation_file(ours), json(&claim)?).await? {
            // The listing was older than this file, which knows the state's name.
            if let Some(found) = self.read::<Generation>(&generation_file(ours)).await? {
                claim.state = found.state;
            }
            ours += 1;
        }
        let listed = self.store.list("generations").await?;
        let listed = listed.iter().filter_map(|file| number(&file.name));
        // Another process has come at the same time; or this one slept since it looked, and its number was free because
        // it had been removed.
        if let Some(newer) = listed.clone().find(|number| *number > ours) {
            self.store.delete(&generation_file(ours)).await?;
            return Err(fenced(ours, newer));
        }
        // Also those that were in the way and that a listing may not show yet.
        for older in listed.chain(first..ours).filter(|number| *number < ours && !fail::mutated("no_removal_of_claims"))
        {
            self.store.delete(&generation_file(older)).await?;
        }
        Ok((ours, claim.state))
    }

    /// Starts an empty record of the next epoch.
    pub fn record(&self, generation: u64, epoch: u64) -> CommitRecord {
        CommitRecord {
            version: VERSION,
            pipeline: self.pipeline.clone(),
            generation,
            epoch,
            written_at_us: self.clock.now_us(),
            ..CommitRecord::default()
        }
    }

    /// Stops a process that is not the newest any more.
    pub async fn check_fence(&self, generation: u64) -> Result<()> {
        if fail::mutated("no_fence") || self.store.size(&generation_file(generation)).await?.is_some() {
            return Ok(());
        }
        match self.newest_generation().await? {
            Some(newest) => Err(fenced(generation, newest)),
            None => Err(Error::fenced(format!(
                "stopped: {} is gone, by which this process owns the pipeline; was the state removed?",
                self.place(&generation_file(generation))
            ))),
        }
    }

    /// Writes a commit record: the commit point. Then folds it into `state`, and writes a checkpoint when one is due.
    pub async fn commit(&self, state: &mut State, record: &CommitRecord) -> Result<()> {
        record.check_balance()?;
        self.check_fence(record.generation).await?;
        fail::point("after_fence_check")?;
        let created = match fail::mutated("overwritten_record") {
            false => self.store.create(&epoch_file(record.epoch), json(record)?).await,
            true => self.store.put(&epoch_file(record.epoch), json(record)?).await.map(|()| true),
        };
        // A reply may be lost after success, and a retry of the request then finds its own record.
        let ours = match created {
            Ok(true) => true,
            Ok(false) | Err(_) => {
                let found = self.read::<CommitRecord>(&epoch_file(record.epoch)).await?;
                match (found, created) {
                    (Some(found), _) if found == *record => true,
                    (Some(found), _) => return Err(fenced(record.generation, found.generation)),
                    (None, Err(error)) => return Err(error),
                    (None, Ok(_)) => false,
                }
            }
        };
        if !ours {
            return Err(Error::unavailable(format!(
                "could not write the record of epoch {}: the state store refused it, yet there is none",
                record.epoch
            )));
        }
        // A process that slept since it looked may have written an epoch whose record was long folded away. Where the
        // record does count, the newer process goes on from it.
        self.check_fence(record.generation).await?;
        fold(state, record);
        self.checkpoint(state).await
    }

    /// Writes a checkpoint when one is due.
    async fn checkpoint(&self, state: &State) -> Result<()> {
        if state.epoch.is_multiple_of(CHECKPOINT_EVERY) {
            fail::point("before_checkpoint")?;
            self.store.put(&checkpoint_file(state.epoch), json(state)?).await?;
            fail::point("after_checkpoint")?;
        }
        Ok(())
    }

    /// Reads the newest state.
    pub async fn load(&self) -> Result<State> {
        let mut state = State { version: VERSION, ..State::default() };
        for newest in self.checkpoints().await?.into_iter().rev() {
            // A running process may remove a checkpoint once it has written two newer ones.
            if let Some(checkpoint) = self.checkpoint_of(newest).await? {
                check_version(checkpoint.version)?;
                state = checkpoint;
                break;
            }
        }
        state.id = self.id().await?;
        loop {
            let records = self.records_from(state.epoch + 1).await?;
            if records.is_empty() {
                return Ok(state);
            }
            records.iter().for_each(|record| fold(&mut state, record));
        }
    }

    /// Gives the record of an epoch, and those behind it in the same file; nothing if the epoch has none.
    pub async fn records_from(&self, epoch: u64) -> Result<Vec<CommitRecord>> {
        // In this order: what is folded is removed once it is in the history.
        match self.epoch(epoch).await? {
            Some(record) => Ok(vec![record]),
            None => self.folded_from(epoch).await,
        }
    }

    /// Gives the state's random name; it is empty if the pipeline has never run.
    pub async fn id(&self) -> Result<String> {
        for _ in 0..CLAIM_READS_MAX {
            let Some(newest) = self.newest_generation().await? else { return Ok(String::new()) };
            if let Some(claimed) = self.read::<Generation>(&generation_file(newest)).await? {
                return Ok(claimed.state);
            }
            // Another process has claimed a newer one since, and has removed this.
        }
        Err(Error::unavailable(format!("could not read a claim in {}: they change all the time", self.store.url())))
    }

    /// Gives the epochs of all checkpoints, in order.
    pub async fn checkpoints(&self) -> Result<Vec<u64>> {
        let files = self.store.list("checkpoints").await?;
        Ok(files.iter().filter_map(|file| number(&file.name)).collect())
    }

    /// Reads the checkpoint of an epoch; nothing if there is none.
    pub async fn checkpoint_of(&self, epoch: u64) -> Result<Option<State>> {
        self.read(&checkpoint_file(epoch)).await
    }

    /// Reads the record of an epoch; nothing if there is none, or if it has become part of the history.
    pub async fn epoch(&self, epoch: u64) -> Result<Option<CommitRecord>> {
        let record: Option<CommitRecord> = self.read(&epoch_file(epoch)).await?;
        if let Some(record) = &record {
            check_version(record.version)?;
        }
        Ok(record)
    }

    /// Gives the numbers of the epochs that have a record of their own, in order.
    pub async fn epochs(&self) -> Result<Vec<u64>> {
        let files = self.store.list("epochs").await?;
        Ok(files.iter().filter_map(|file| number(&file.name)).collect())
    }

    /// Tells up to which epoch each sink has committed, as far as it was noted.
    pub async fn committed(&self) -> Result<BTreeMap<String, u64>> {
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for file in self.store.list("committed").await? {
            let noted: Committed = self.read(&file.name).await?.unwrap_or_default();
            for (sink, epoch) in noted.sinks {
                let known = newest.entry(sink).or_default();
                *known = epoch.max(*known);
            }
        }
        Ok(newest)
    }

    /// Notes up to which epoch each sink has committed.
    pub async fn note_committed(&self, generation: u64, sinks: &BTreeMap<String, u64>) -> Result<()> {
        if fail::mutated("no_committed_note") {
            return Ok(());
        }
        let noted = Committed { sinks: sinks.clone() };
        self.store.put(&committed_file(generation), json(&noted)?).await
    }

    /// Gives the newest generation; nothing if the pipeline has never run.
    pub async fn newest_generation(&self) -> Result<Option<u64>> {
        Ok(self.store.list("generations").await?.last().and_then(|file| number(&file.name)))
    }

    async fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.store.get(name).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::config(format!(
                "could not read {}: it is damaged, or was written by another version of nexus",
                self.place(name)
            ))
            .because(e)
        })
    }

    fn vanished(&self, name: &str) -> Error {
        Error::unavailable(format!("could not read {}: it was listed, but is not there", self.place(name)))
    }

    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.store.url())
    }
}

/// Adds a record to the state.
pub fn fold(state: &mut State, record: &CommitRecord) {
    state.epoch = record.epoch;
    state.generation = record.generation;
    state.written_at_us = record.written_at_us;
    for (name, source) in &record.sources {
        state.positions.entry(name.clone()).or_default().fold(&source.cut);
        if let Some(watermark_us) = source.watermark_us {
            state.watermarks_us.insert(name.clone(), watermark_us);
        }
        if !source.evolved.is_empty() {
            state.evolved.entry(name.clone()).or_default().extend(source.evolved.iter().cloned());
        }
    }
    for (name, version) in &record.reference_versions {
        state.references.insert(name.clone(), version.clone());
    }
    for (name, table) in &record.tables {
        if let Some(table_state) = &table.state {
            state.tables.insert(name.clone(), table_state.clone());
        }
        if let Some(schema) = &table.schema {
            state.schemas.entry(name.clone()).or_default().push(schema.clone());
        }
    }
    for (sink, prepared) in &record.sinks {
        if prepared.rewritten > 0 {
            state.rewritten.insert(sink.clone(), record.epoch);
        }
        if prepared.spooled.is_empty() && prepared.rolled == 0 {
            continue;
        }
        let waiting = state.waiting.entry(sink.clone()).or_default();
        let since_us = record.written_at_us;
        waiting.extend(prepared.spooled.iter().map(|file| Waiting { file: file.clone(), since_us }));
        let rolled = usize::try_from(prepared.rolled).unwrap_or(usize::MAX);
        waiting.drain(..rolled.min(waiting.len()));
    }
    for (sink, epochs) in &record.refused {
        let upto = state.refused.entry(sink.clone()).or_default();
        epochs.iter().for_each(|(epoch, rows)| upto.pass(*epoch, *rows));
    }
    if !record.errors.is_empty() {
        state.errors.clone_from(&record.errors);
    }
}

fn fenced(ours: u64, theirs: u64) -> Error {
    Error::fenced(format!(
        "stopped: another process has taken over this pipeline (this one is generation {ours}, the newest is {theirs}); \
         nothing was lost, the other goes on from the last commit"
    ))
}

fn check_version(version: u32) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::config(format!(
        "could not read the state: it is of format version {version}, this nexus reads version {VERSION}; run the \
         version of nexus that wrote it, or begin anew with another `state` and lake"
    )))
}

fn json<T: Serialize>(value: &T) -> Result<Bytes> {
    let text = serde_json::to_vec_pretty(value);
    text.map(Bytes::from).map_err(|e| Error::internal("could not write a record as json").because(e))
}

fn random_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn number(name: &str) -> Option<u64> {
    name.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()
}

fn generation_file(generation: u64) -> String {
    format!("generations/{generation:020}.json")
}

fn committed_file(generation: u64) -> String {
    format!("committed/{generation:020}.json")
}

/// Gives the name of an epoch's commit record in the state store.
pub fn epoch_file(epoch: u64) -> String {
    format!("epochs/{epoch:020}.json")
}

/// Gives the name of an epoch's checkpoint in the state store.
pub fn checkpoint_file(epoch: u64) -> String {
    format!("checkpoints/{epoch:020}.json")
}
