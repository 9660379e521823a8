//! Compaction: many small files of a table become few large ones, in epochs of their own.
//!
//! A compaction claims the pipeline as any start does, and writes commit records that have no rows: what a sink has
//! *rewritten* are files that stand for others. Their commit completes a file and removes those that it stands for; from
//! a Delta table it takes them out by its log. See decision 0012.

use std::collections::{BTreeMap, VecDeque};

use nexus_operators::clock::SharedClock;
use nexus_operators::sink::delta::{DeltaSettings, DeltaSink, logged_files};
use nexus_operators::sink::parquet::audit::TableFolder;
use nexus_operators::sink::parquet::{ParquetSettings, ParquetSink, folder_of};
use nexus_operators::sink::{EpochId, Sink};
use nexus_operators::store::{Entry, Store};
use nexus_operators::{Error, Result, fail};
use serde::Serialize;

use super::files::parquet_settings;
use super::place::{PARQUET, ParquetPlace, parquet_place};
use super::start::{open_state, schemas, undone};
use crate::plan::Plan;
use crate::plan::changes::stored_schema;
use crate::plan::table::TablePlan;
use crate::spec::model::TableFormat;
use crate::state::{State, StateStore};

/// Bytes that one epoch rewrites, and one file more: what a crash makes undone stays small, and so does what a sweep
/// removes.
const PORTION_BYTES: u64 = 1 << 30;

/// Files that one epoch rewrites, and those of one folder more: their names stand in its record.
const PORTION_FILES: usize = 10_000;

/// What is compacted, and how far.
#[derive(Debug, Clone)]
pub struct Compaction {
    /// Only this table, `tier.name`.
    pub table: Option<String>,
    /// How large files become. Those of less than half of it are merged.
    pub target_bytes: u64,
}

/// What became of a table's files, or would become.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Files that are merged.
    pub files_before: u64,
    /// Files that stand for them.
    pub files_after: u64,
    /// Bytes of the files that are merged.
    pub bytes_before: u64,
    /// Bytes of the files that stand for them; 0 as long as they are not written.
    pub bytes_after: u64,
    /// Rows in them; 0 as long as they are not read.
    pub rows: u64,
}

/// What a compaction has done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The process's number; 0 if there was nothing to do.
    pub generation: u64,
    /// Epochs that it has committed.
    pub epochs: u64,
    /// Tables whose files were merged.
    pub tables: BTreeMap<String, Compacted>,
}

/// Small files of one folder that become one.
#[derive(Debug)]
struct Batch {
    folder: String,
    paths: Vec<String>,
    bytes: u64,
}

/// What rewrites the files of a table.
enum Rewriter {
    Plain(Box<ParquetSink>),
    Delta(Box<DeltaSink<ParquetSink>>),
}

/// A process that compacts.
struct Compactor {
    store: StateStore,
    state: State,
    generation: u64,
    clock: SharedClock,
}

/// Finds what a compaction would merge.
pub async fn survey(plan: &Plan, compaction: &Compaction, clock: SharedClock) -> Result<BTreeMap<String, Compacted>> {
    let encryption = plan.loaded.encryption();
    let store = open_state(&plan.loaded, clock, &encryption).await?;
    let mut found = BTreeMap::new();
    for table in tables(plan, compaction) {
        let place = parquet_place(plan, &store, &encryption, &sink_of(table)).await?;
        let batches = batches(plan, table, &place.table, compaction.target_bytes).await?;
        if !batches.is_empty() {
            found.insert(table.name(), planned(batches.iter()));
        }
    }
    Ok(found)
}

/// Merges small files. Every sink must have committed every recorded epoch.
///
/// # Errors
///
/// `Unavailable` if a sink has still to commit, `Fenced` if another process has started meanwhile.
pub async fn compact(plan: &Plan, compaction: &Compaction, clock: SharedClock) -> Result<Report> {
    let mut report = Report { pipeline: plan.loaded.spec.name.clone(), ..Report::default() };
    if survey(plan, compaction, clock.clone()).await?.is_empty() {
        return Ok(report);
    }
    let encryption = plan.loaded.accepted_encryption().await?;
    let store = open_state(&plan.loaded, clock.clone(), &encryption).await?;
    fail::point("before_claim")?;
    let (generation, state) = store.claim().await?;
    fail::point("after_claim")?;
    let (_, undone) = undone(&store, &state).await?;
    if !undone.is_empty() {
        return Err(Error::unavailable(
            "another process has recorded rows meanwhile that it has not committed; nothing was merged, try again",
        ));
    }
    let schemas = schemas(plan, &state).await?;
    report.generation = generation;
    let buffer_bytes = usize::try_from(plan.loaded.spec.limits.memory.0 / 2).unwrap_or(usize::MAX);
    let mut compactor = Compactor { store, state, generation, clock };
    for table in tables(plan, compaction) {
        let Some(spec) = plan.spec_of(table) else { continue };
        let (name, sink) = (table.name(), sink_of(table));
        let place = parquet_place(plan, &compactor.store, &encryption, &sink).await?;
        // Listed behind the claim: no older process can commit a file any more.
        let mut batches = VecDeque::from(batches(plan, table, &place.table, compaction.target_bytes).await?);
        if batches.is_empty() {
            continue;
        }
        let schema = stored_schema(&table.schema, schemas.get(&name));
        let settings = parquet_settings(plan, table, spec, schema, buffer_bytes)?;
        let mut writer = compactor.rewriter(plan.loaded.spec.table_format(spec), settings, &place).await?;
        fail::point("before_sweep")?;
        writer.sink().committer().sweep(generation, &[]).await?;
        fail::point("after_sweep")?;
        while !batches.is_empty() {
            let done = compactor.portion(&sink, &mut writer, &place.table, &mut batches).await?;
            let total = report.tables.entry(name.clone()).or_default();
            total.add(&done);
            report.epochs += 1;
            tracing::info!(table = name, files = done.files_before, into = done.files_after, "merged files");
        }
    }
    Ok(report)
}

impl Rewriter {
    async fn rewrite(&mut self, id: EpochId, table: &Store, batch: &Batch) -> Result<u64> {
        match self {
            Self::Plain(sink) => sink.rewrite(id, table, &batch.folder, &batch.paths).await,
            Self::Delta(sink) => sink.rewrite(id, table, &batch.folder, &batch.paths).await,
        }
    }

    fn sink(&mut self) -> &mut dyn Sink {
        match self {
            Self::Plain(sink) => sink.as_mut(),
            Self::Delta(sink) => sink.as_mut(),
        }
    }
}

impl Compactor {
    async fn rewriter(&self, format: TableFormat, parquet: ParquetSettings, place: &ParquetPlace) -> Result<Rewriter> {
        let ParquetPlace { table, staging, notes, .. } = place.clone();
        let folder = TableFolder::new(table.clone(), staging.clone(), notes.clone());
        let plain = |settings| Ok(Box::new(ParquetSink::new(settings, table, staging, notes)?));
        if format == TableFormat::Parquet {
            return plain(parquet).map(Rewriter::Plain);
        }
        let settings = DeltaSettings { parquet, state_id: self.state.id.clone(), clock: self.clock.clone() };
        Ok(Rewriter::Delta(Box::new(DeltaSink::open(settings, folder, plain).await?)))
    }

    /// Merges some batches of files in one epoch.
    async fn portion(
        &mut self,
        sink: &str,
        writer: &mut Rewriter,
        table: &Store,
        batches: &mut VecDeque<Batch>,
    ) -> Result<Compacted> {
        let id = EpochId { generation: self.generation, epoch: self.state.epoch + 1 };
        let mut done = Compacted::default();
        while done.bytes_before < PORTION_BYTES && done.files_before < PORTION_FILES as u64 {
            let Some(batch) = batches.pop_front() else { break };
            done.rows += writer.rewrite(id, table, &batch).await?;
            done.files_before += batch.paths.len() as u64;
            done.bytes_before += batch.bytes;
        }
        fail::point("before_prepare")?;
        let prepared = writer.sink().prepare(id).await?;
        fail::point("after_prepare")?;
        (done.files_after, done.bytes_after) = (prepared.files, prepared.bytes);
        let handle = prepared.handle.clone();
        let mut record = self.store.record(self.generation, id.epoch);
        record.sinks.insert(sink.to_owned(), prepared);
        fail::point("before_record")?;
        self.store.commit(&mut self.state, &record).await?;
        fail::point("after_record")?;
        if let Some(handle) = &handle {
            fail::point("before_commit")?;
            writer.sink().committer().commit(id, handle).await?;
            fail::point("after_commit")?;
        }
        let mut committed = self.store.committed().await?;
        committed.insert(sink.to_owned(), id.epoch);
        fail::point("before_committed_note")?;
        self.store.note_committed(self.generation, &committed).await?;
        fail::point("after_committed_note")?;
        Ok(done)
    }
}

impl Compacted {
    fn add(&mut self, other: &Self) {
        self.files_before += other.files_before;
        self.files_after += other.files_after;
        self.bytes_before += other.bytes_before;
        self.bytes_after += other.bytes_after;
        self.rows += other.rows;
    }
}

/// Gives the tables whose files may be merged.
fn tables<'a>(plan: &'a Plan, compaction: &'a Compaction) -> impl Iterator<Item = &'a TablePlan> {
    let stored = plan.tables.iter().filter(|table| is_compacted(plan, table));
    stored.filter(|table| compaction.table.as_ref().is_none_or(|wanted| *wanted == table.name()))
}

/// Tells whether a table has files that are merged.
pub fn is_compacted(plan: &Plan, table: &TablePlan) -> bool {
    plan.spec_of(table).is_some_and(|spec| spec.store)
}

fn sink_of(table: &TablePlan) -> String {
    format!("{}/{PARQUET}", table.name())
}

fn planned<'a>(batches: impl Iterator<Item = &'a Batch>) -> Compacted {
    let mut planned = Compacted::default();
    for batch in batches {
        planned.files_before += batch.paths.len() as u64;
        planned.files_after += 1;
        planned.bytes_before += batch.bytes;
    }
    planned
}

/// Lists the files that are a table: those in its folder, or those that its Delta log names.
async fn files_of(plan: &Plan, table: &TablePlan, folder: &Store) -> Result<Vec<Entry>> {
    let is_delta = |spec| plan.loaded.spec.table_format(spec) == TableFormat::Delta;
    if !plan.spec_of(table).is_some_and(is_delta) {
        return folder.list("").await;
    }
    let logged = logged_files(folder).await?.unwrap_or_default();
    Ok(logged.active.into_iter().map(|(name, size)| Entry { name, size }).collect())
}

/// Finds the small files of a table, and puts those of a folder together until they are as large as wanted.
async fn batches(plan: &Plan, table: &TablePlan, folder: &Store, target_bytes: u64) -> Result<Vec<Batch>> {
    let mut folders: BTreeMap<String, Vec<(u64, Entry)>> = BTreeMap::new();
    for entry in files_of(plan, table, folder).await? {
        // What other programs have put there is theirs.
        let Some(id) = TableFolder::written_by(&plan.loaded.spec.name, &entry.name) else { continue };
        // A file of half the size would be written again and again for the little that has come since.
        if entry.size < target_bytes / 2 {
            folders.entry(folder_of(&entry.name).to_owned()).or_default().push((id.epoch, entry));
        }
    }
    let mut batches = Vec::new();
    for (folder, mut files) in folders {
        // Rows stay in the order of their epochs.
        files.sort_by(|(a, left), (b, right)| (a, &left.name).cmp(&(b, &right.name)));
        let mut open = Batch { folder: folder.clone(), paths: Vec::new(), bytes: 0 };
        for (_, file) in files {
            if open.bytes + file.size > target_bytes {
                let next = Batch { folder: folder.clone(), paths: Vec::new(), bytes: 0 };
                batches.push(std::mem::replace(&mut open, next));
            }
            open.bytes += file.size;
            open.paths.push(file.name);
        }
        batches.push(open);
    }
    batches.retain(|batch| batch.paths.len() > 1);
    Ok(batches)
}
