//! What a running job tells of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::execution::memory_pool::MemoryPool;
use nexus_operators::clock::SharedClock;
use nexus_operators::position::Position;
use nexus_operators::quarantine::Quarantined;
use nexus_operators::sink::Prepared;
use nexus_operators::transform::shown::ShownRows;
use nexus_operators::transform::window::{WATERMARK_END, WATERMARK_START};
use tokio::sync::watch;
use tokio::time::Instant;

use super::budget::StateMemory;
use super::channel::{Fill, Gauge};
pub use super::report::{ErrorsCounted, Report, SinkCounts, TableReport};
use super::steps::Epochs;
use super::troubles::Troubles;
use crate::plan::describe::Described;
use crate::state::State;
use crate::state::record::{CommitRecord, SourceCounts};

/// How often at most rows are shown anew once there are enough: nobody reads faster, and each time costs as much as to
/// encode a screen of JSON.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// Partitions of a source whose positions are told. A source may have read any number of objects.
const PARTITIONS_MAX: usize = 200;

/// Counters of one source, written by its stages.
#[derive(Debug)]
pub struct SourceProgress {
    /// Bytes read, decompressed.
    pub bytes: AtomicU64,
    /// Rows decoded.
    pub rows: AtomicU64,
    /// Whether the source has nothing to read at the moment.
    pub caught_up: AtomicBool,
    /// Its watermark.
    pub watermark: Watched,
    /// How far it is behind in each partition of which its service tells, in milliseconds. Held for moments.
    lags_ms: Mutex<BTreeMap<Arc<str>, u64>>,
}

/// Counters of one table, written by its stage.
#[derive(Debug, Default)]
pub struct TableProgress {
    /// Rows that went on to sinks and other tables.
    pub rows_out: AtomicU64,
    /// What its state takes, in bytes.
    pub state_bytes: AtomicU64,
    /// The watermark of its input.
    pub watermark: Watched,
    /// The lock is held to take rows or to copy them, by the table's stage and who looks, so it need not be async.
    shown: Mutex<Shown>,
}

/// A watermark as it was last passed.
#[derive(Debug)]
pub struct Watched(AtomicI64);

/// The last rows of a table.
#[derive(Debug, Default)]
struct Shown {
    rows: ShownRows,
    /// Which columns are not shown; nothing as long as it is not known.
    masked: Option<Vec<bool>>,
    taken_at: Option<Instant>,
}

/// What counts memory.
#[derive(Debug, Default)]
struct WatchedMemory {
    state: Option<Arc<StateMemory>>,
    queries: Option<Arc<dyn MemoryPool>>,
}

/// Where a source stands, as far as it is told.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    /// All its partitions.
    pub partitions: usize,
    /// The first of them; those that are read to their end come last.
    pub first: Vec<(String, Position)>,
}

/// Counters of the events about a run.
#[derive(Debug, Default)]
pub struct LineageProgress {
    /// Events that were taken.
    pub sent: AtomicU64,
    /// Events that were not.
    pub dropped: AtomicU64,
}

/// Counters of a job, shared by its stages, and the totals of what it has committed.
#[derive(Debug, Default)]
pub struct Progress {
    /// By source.
    pub sources: BTreeMap<String, SourceProgress>,
    /// By table.
    pub tables: BTreeMap<String, TableProgress>,
    /// Of the events about the run.
    pub lineage: LineageProgress,
    /// The epochs that all sinks have committed.
    pub epochs: Epochs,
    /// What was put into the quarantine.
    pub troubles: Troubles,
    /// What the pipeline file allows.
    pub limits: Limits,
    /// Whether sources read no more for now. Written by who holds the job; the sources' stages wait for changes.
    paused: watch::Sender<bool>,
    /// Whether the run was told to drain.
    draining: AtomicBool,
    /// Whether somebody may look at rows: they are kept for nobody else.
    watched: AtomicBool,
    /// Set before the stages are wired. The lock is held to copy a pointer, so it need not be async.
    described: Mutex<Option<Arc<Described>>>,
    /// By source, written by the coordinator. The lock is held to copy it, so it need not be async.
    positions: Mutex<BTreeMap<String, Positions>>,
    /// The lock is held to add one record or to copy the totals, so it need not be async.
    committed: Mutex<Report>,
    /// Written by the coordinator. The lock is held to copy it, so it need not be async.
    standing: Mutex<Standing>,
    /// Written by the coordinator. The lock is held to copy it, so it need not be async.
    errors: Mutex<BTreeMap<String, ErrorsCounted>>,
    /// Set when the stages are wired. The lock is held to ask both, so it need not be async.
    memory: Mutex<WatchedMemory>,
    /// By name. The lock is held to add one or to look at all, so it need not be async.
    channels: Mutex<Vec<(String, Gauge)>>,
    /// What sinks hold in memory, by name, written by their stages. The lock is held as that of the channels.
    sinks: Mutex<Vec<(String, Arc<AtomicUsize>)>>,
}

/// What the pipeline file allows, as far as a job's progress is held against it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// `limits.memory`.
    pub memory_bytes: u64,
    /// `commit.every`.
    pub commit_every: Duration,
}

/// Where the commits stand.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// When the oldest epoch was closed that is not committed by all sinks.
    pub open_since: Option<Instant>,
    /// The sinks that have yet to commit it.
    pub behind: Vec<String>,
    /// Bytes that are prepared and not committed.
    pub spooled_bytes: u64,
    /// When all sinks had last committed an epoch, in microseconds since the Unix epoch.
    pub committed_at_us: Option<i64>,
}

impl Default for SourceProgress {
    fn default() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            watermark: Watched::default(),
            lags_ms: Mutex::default(),
        }
    }
}

impl SourceProgress {
    /// Notes how far the source is behind in a partition, in milliseconds.
    pub(crate) fn set_lag_ms(&self, partition: &Arc<str>, lag_ms: u64) {
        self.lags().insert(partition.clone(), lag_ms);
    }

    /// Notes that the source is behind nowhere.
    pub(crate) fn set_no_lag(&self) {
        self.lags().values_mut().for_each(|lag_ms| *lag_ms = 0);
    }

    /// Forgets the partitions that are read no more.
    pub(crate) fn keep_lags_of(&self, reading: &[Arc<str>]) {
        self.lags().retain(|partition, _| reading.contains(partition));
    }

    /// Gives how far the source is behind, in milliseconds, where it is most, if its service tells.
    pub fn lag_ms(&self) -> Option<u64> {
        self.lags().values().max().copied()
    }

    /// Gives the partitions in which the source is most behind, and how far, in milliseconds.
    pub fn lags_ms(&self) -> Vec<(Arc<str>, u64)> {
        let mut lags: Vec<_> = self.lags().iter().map(|(partition, lag_ms)| (partition.clone(), *lag_ms)).collect();
        lags.sort_by_key(|(_, lag_ms)| std::cmp::Reverse(*lag_ms));
        lags.truncate(PARTITIONS_MAX);
        lags
    }

    fn lags(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, u64>> {
        self.lags_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Watched {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl Watched {
    /// Notes it, in microseconds since the Unix epoch.
    pub fn set(&self, watermark_us: i64) {
        self.0.store(watermark_us, Ordering::Relaxed);
    }

    /// Gives it, in microseconds since the Unix epoch; nothing as long as no time is known, and when all input has ended.
    pub fn get(&self) -> Option<i64> {
        let watermark_us = self.0.load(Ordering::Relaxed);
        (watermark_us > WATERMARK_START && watermark_us < WATERMARK_END).then_some(watermark_us)
    }
}

impl TableProgress {
    /// Keeps the last rows of a batch, to be shown, as far as that is due.
    fn keep(&self, batch: &RecordBatch) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Shown { rows, masked: Some(masked), taken_at } = &mut *shown else { return };
        if rows.is_full() && taken_at.is_some_and(|at| at.elapsed() < SHOWN_EVERY) {
            return;
        }
        if let Err(error) = rows.take(batch, masked) {
            tracing::debug!(%error, "rows cannot be shown");
        }
        *taken_at = Some(Instant::now());
    }

    /// Gives the last rows, the newest first, without the columns that are masked.
    pub fn shown(&self) -> Vec<serde_json::Map<String, serde_json::Value>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).rows.rows()
    }
}

impl Progress {
    /// Starts counting for these sources and tables.
    pub fn new<'a>(
        pipeline: &str,
        sources: impl Iterator<Item = &'a str>,
        tables: impl Iterator<Item = &'a str>,
    ) -> Self {
        let sources: BTreeMap<_, _> = sources.map(|name| (name.to_owned(), SourceProgress::default())).collect();
        let tables: BTreeMap<_, _> = tables.map(|name| (name.to_owned(), TableProgress::default())).collect();
        let report = Report {
            pipeline: pipeline.to_owned(),
            sources: sources.keys().map(|name| (name.clone(), SourceCounts::default())).collect(),
            tables: tables.keys().map(|name| (name.clone(), TableReport::default())).collect(),
            ..Report::default()
        };
        Self { sources, tables, committed: Mutex::new(report), ..Self::default() }
    }

    /// Holds the progress against what the pipeline file allows.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Tells what runs: its tables, their plans, and which of their columns are masked.
    pub fn describe(&self, described: Described) {
        for table in &described.tables {
            let Some(progress) = self.tables.get(&table.name) else { continue };
            let masked = table.columns.iter().map(|column| column.masked).collect();
            *progress.shown.lock().unwrap_or_else(PoisonError::into_inner) =
                Shown { masked: Some(masked), ..Shown::default() };
        }
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(described));
    }

    /// Gives what runs, once it is planned.
    pub fn described(&self) -> Option<Arc<Described>> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the last rows of each table kept from now on: somebody may look at them.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    /// Keeps the last rows of a batch of a table, if somebody may look at them.
    pub fn show(&self, table: &str, batch: &RecordBatch) {
        if self.watched.load(Ordering::Relaxed)
            && let Some(table) = self.tables.get(table)
        {
            table.keep(batch);
        }
    }

    /// Notes rows that go to the quarantine of a source or table.
    pub fn note_quarantined(&self, of: &str, rows: &[Quarantined], clock: &SharedClock) {
        let hides = self.described().is_none_or(|described| described.hides(of));
        self.troubles.note(of, rows, clock.now_us(), hides);
    }

    /// Notes where the sources stand.
    pub fn set_positions(&self, state: &State) {
        let positions = state.positions.iter().map(|(source, cut)| {
            let is_done = |position: &Position| matches!(position, Position::Done { .. });
            let (done, open): (Vec<_>, Vec<_>) = cut.advanced.iter().partition(|(_, position)| is_done(position));
            let first = open.into_iter().chain(done).take(PARTITIONS_MAX);
            let first = first.map(|(partition, position)| (partition.clone(), position.clone())).collect();
            (source.clone(), Positions { partitions: cut.advanced.len(), first })
        });
        let positions = positions.collect();
        *self.positions.lock().unwrap_or_else(PoisonError::into_inner) = positions;
    }

    /// Tells where the sources stand, as of the last commit record.
    pub fn positions(&self) -> BTreeMap<String, Positions> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the sources read no more for now, or again.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Tells whether the sources read no more for now.
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Gives what tells a source's stage whether to read.
    pub fn pausing(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// Notes that the run was told to drain.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Tells whether the run was told to drain.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Notes where the commits stand.
    pub fn set_standing(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// Tells where the commits stand.
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes where the error budgets stand.
    pub fn set_errors(&self, errors: BTreeMap<String, ErrorsCounted>) {
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner) = errors;
    }

    /// Gives for how long the oldest closed epoch has waited for its commit.
    pub fn waiting(&self) -> Duration {
        self.standing().open_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Tells what is wrong if a closed epoch has waited longer for its commit than so many intervals of `commit.every`.
    pub fn overdue(&self, intervals: u32) -> Option<String> {
        let (waited, limit) = (self.waiting(), self.limits.commit_every.saturating_mul(intervals));
        if waited <= limit {
            return None;
        }
        let behind = self.standing().behind.join(", ");
        let cause = if behind.is_empty() {
            "the rows of the open epoch are not prepared".to_owned()
        } else {
            format!("behind are {behind}")
        };
        Some(format!(
            "an epoch has waited {:.1} s for its commit, longer than {intervals} intervals of `commit.every`; {cause}",
            waited.as_secs_f64()
        ))
    }

    /// Has the memory of state and of queries told from now on.
    pub fn watch_memory(&self, state: Arc<StateMemory>, queries: Option<Arc<dyn MemoryPool>>) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = WatchedMemory { state: Some(state), queries };
    }

    /// Gives what is known of the memory that rows take, in bytes: what waits in channels, what open windows and
    /// remembered keys take, what queries build in an epoch, and what sinks encode.
    pub fn memory_by_component(&self) -> [(&'static str, u64); 4] {
        let channels = self.channels().iter().map(|(_, fill)| fill.bytes).sum::<usize>();
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let state = memory.state.as_ref().map_or(0, |state| state.used_bytes());
        let queries = memory.queries.as_ref().map_or(0, |queries| queries.reserved());
        let sinks = self.sinks().iter().map(|(_, bytes)| *bytes).sum::<u64>();
        [("channels", channels as u64), ("state", state as u64), ("queries", queries as u64), ("sinks", sinks)]
    }

    /// Has the fill of a channel told from now on.
    pub fn watch_channel(&self, name: String, gauge: Gauge) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).push((name, gauge));
    }

    /// Has what a sink holds in memory told from now on.
    pub fn watch_sink(&self, name: String, held_bytes: Arc<AtomicUsize>) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).push((name, held_bytes));
    }

    /// Has no channel and no sink told any more: others take their place.
    pub fn forget_wiring(&self) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Tells how many bytes of memory hold what sinks have taken and not yet prepared, by name.
    pub fn sinks(&self) -> Vec<(String, u64)> {
        let sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.iter().map(|(name, bytes)| (name.clone(), bytes.load(Ordering::Relaxed) as u64)).collect()
    }

    /// Tells how full the channels between the stages are, by name.
    pub fn channels(&self) -> Vec<(String, Fill)> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.iter().map(|(name, gauge)| (name.clone(), gauge.fill())).collect()
    }

    /// Adds a recorded epoch to the totals.
    pub fn add(&self, record: &CommitRecord) {
        let mut report = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        report.generation = record.generation;
        report.epochs += 1;
        for (name, source) in &record.sources {
            report.sources.entry(name.clone()).or_default().add(&source.counts);
        }
        for (name, table) in &record.tables {
            let total = report.tables.entry(name.clone()).or_default();
            total.add(&TableReport { counts: table.counts, rules: table.rules.clone() });
        }
        for (name, prepared) in &record.sinks {
            let (table, kind) = name.split_once('/').unwrap_or((name, "sink"));
            let total = report.sinks.entry(table.to_owned()).or_default().entry(kind.to_owned()).or_default();
            let refused = record.refused.get(name).map_or(0, |epochs| epochs.values().sum());
            let Prepared { rows, bytes, files, .. } = *prepared;
            total.add(SinkCounts { rows, bytes, files, refused });
        }
    }

    /// Gives the rows and bytes that have been read so far.
    pub fn read(&self) -> (u64, u64) {
        let rows = self.sources.values().map(|source| source.rows.load(Ordering::Relaxed)).sum();
        let bytes = self.sources.values().map(|source| source.bytes.load(Ordering::Relaxed)).sum();
        (rows, bytes)
    }

    /// Gives how far the slowest source is behind, in milliseconds, if a service tells.
    pub fn lag_ms(&self) -> Option<u64> {
        self.sources.values().filter_map(SourceProgress::lag_ms).max()
    }

    /// Gives for each table the rows that it has given so far.
    pub fn rows_out(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tables.iter().map(|(name, table)| (name.as_str(), table.rows_out.load(Ordering::Relaxed)))
    }

    /// Gives what has been committed so far.
    pub fn report(&self) -> Report {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report { errors, ..self.committed.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }
}
