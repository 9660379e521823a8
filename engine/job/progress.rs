//! What a running job tells of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nexus_operators::sink::Prepared;
use serde::Serialize;
use tokio::time::Instant;

use super::budget::StateMemory;
use super::channel::{Fill, Gauge};
use crate::state::record::{CommitRecord, SourceCounts, TableCounts};

/// No lag is known.
const LAG_UNKNOWN: i64 = -1;

/// Counters of one source, written by its stages.
#[derive(Debug)]
pub struct SourceProgress {
    /// Bytes read, decompressed.
    pub bytes: AtomicU64,
    /// Rows decoded.
    pub rows: AtomicU64,
    /// Whether the source has nothing to read at the moment.
    pub caught_up: AtomicBool,
    lag_ms: AtomicI64,
}

/// Counters of one table, written by its stage.
#[derive(Debug, Default)]
pub struct TableProgress {
    /// Rows that went on to sinks and other tables.
    pub rows_out: AtomicU64,
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
    /// What the pipeline file allows.
    pub limits: Limits,
    /// The lock is held to add one record or to copy the totals, so it need not be async.
    committed: Mutex<Report>,
    /// Written by the coordinator. The lock is held to copy it, so it need not be async.
    standing: Mutex<Standing>,
    /// Written by the coordinator. The lock is held to copy it, so it need not be async.
    errors: Mutex<BTreeMap<String, ErrorsCounted>>,
    /// Set when the stages are wired. The lock is held to copy a pointer, so it need not be async.
    state: Mutex<Option<Arc<StateMemory>>>,
    /// By name. The lock is held to add one or to look at all, so it need not be async.
    channels: Mutex<Vec<(String, Gauge)>>,
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

/// What a run has committed, as `--report` writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The process's number; 0 if there was nothing to do.
    pub generation: u64,
    /// Epochs committed.
    pub epochs: u64,
    /// How long the run took.
    pub elapsed_s: f64,
    /// By source.
    pub sources: BTreeMap<String, SourceCounts>,
    /// By table.
    pub tables: BTreeMap<String, TableReport>,
    /// By table and kind of sink.
    pub sinks: BTreeMap<String, BTreeMap<String, SinkCounts>>,
    /// Where the error budgets stand, by source or table; `<table>/late` for late rows.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, ErrorsCounted>,
}

/// What an error budget has counted in its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ErrorsCounted {
    /// All rows.
    pub rows: u64,
    /// Of these, rows that went to the quarantine.
    pub bad: u64,
    /// How many may.
    pub allowed: u64,
}

/// A table's part of the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// What was counted.
    #[serde(flatten)]
    pub counts: TableCounts,
    /// For each rule, how many rows broke it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, u64>,
}

/// What was stored by a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SinkCounts {
    /// Rows.
    pub rows: u64,
    /// Encoded bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Of the rows, those that the service has refused and that have gone to the quarantine.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Report {
    /// Adds what another run of the same pipeline has committed.
    pub fn add(&mut self, later: Self) {
        self.generation = later.generation;
        self.epochs += later.epochs;
        self.elapsed_s += later.elapsed_s;
        for (name, counts) in later.sources {
            self.sources.entry(name).or_default().add(&counts);
        }
        for (name, table) in later.tables {
            self.tables.entry(name).or_default().add(&table);
        }
        for (name, kinds) in later.sinks {
            let known = self.sinks.entry(name).or_default();
            for (kind, counts) in kinds {
                known.entry(kind).or_default().add(counts);
            }
        }
    }
}

impl TableReport {
    fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        for (rule, count) in &other.rules {
            *self.rules.entry(rule.clone()).or_default() += count;
        }
    }
}

impl SinkCounts {
    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.files += other.files;
        self.refused += other.refused;
    }
}

impl Default for SourceProgress {
    fn default() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            lag_ms: AtomicI64::new(LAG_UNKNOWN),
        }
    }
}

impl SourceProgress {
    /// Notes how far the source is behind, in milliseconds.
    pub fn set_lag_ms(&self, lag_ms: u64) {
        self.lag_ms.store(i64::try_from(lag_ms).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Gives how far the source is behind, in milliseconds, if its service tells.
    pub fn lag_ms(&self) -> Option<u64> {
        u64::try_from(self.lag_ms.load(Ordering::Relaxed)).ok()
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

    /// Has the memory of state told from now on.
    pub fn watch_state(&self, state: Arc<StateMemory>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// Gives what open windows and remembered keys take, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, |state| state.used_bytes())
    }

    /// Has the fill of a channel told from now on.
    pub fn watch_channel(&self, name: String, gauge: Gauge) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).push((name, gauge));
    }

    /// Has no channel told any more: others take their place.
    pub fn forget_channels(&self) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
