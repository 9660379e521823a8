//! What a run has committed, in numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::state::record::{SourceCounts, TableCounts};

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
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        for (rule, count) in &other.rules {
            *self.rules.entry(rule.clone()).or_default() += count;
        }
    }
}

impl SinkCounts {
    pub(super) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.files += other.files;
        self.refused += other.refused;
    }
}
