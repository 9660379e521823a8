//! Tables: what is selected, checked and stored.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ErrorBudget, Parquet, PostgresSink, Roles, Roll};
use crate::spec::units::Span;

/// One table. Exactly one of `from`, `sql` and `sql_file` is given.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// What the table holds.
    #[serde(default)]
    pub description: Option<String>,
    /// A source or table of which all rows and columns are taken.
    #[serde(default)]
    pub from: Option<String>,
    /// A query over sources, reference tables and tables of this or a lower tier. Two streams are joined within a bound of
    /// their event times on both sides (`b.ts BETWEEN a.ts AND a.ts + INTERVAL '1 hour'`), or each row with the newest
    /// one that is not newer (`a ASOF JOIN b MATCH_CONDITION (a.ts >= b.ts) ON a.key = b.key`).
    #[serde(default)]
    pub sql: Option<String>,
    /// A file that holds the query, from the pipeline file's folder.
    #[serde(default)]
    pub sql_file: Option<String>,
    /// Rules that a row must meet, by name.
    #[serde(default)]
    pub expect: BTreeMap<String, Expectation>,
    /// How many rows may go to the quarantine before the run stops; any number if not given.
    #[serde(default)]
    pub errors: Option<ErrorBudget>,
    /// Rows with the same key are kept once.
    #[serde(default)]
    pub unique: Option<Unique>,
    /// What becomes of late rows: those whose window has been given out already; where two streams are joined, those
    /// whose event time lies before the watermark.
    #[serde(default)]
    pub late: Late,
    /// Store the table as Parquet in the lake.
    #[serde(default = "Table::store_default")]
    pub store: bool,
    /// The role that keeps the table's files in the lake, and those of its quarantine; that of its tier if not given.
    #[serde(default)]
    pub role: Option<Roles>,
    /// What makes a table of its files; what the file says of all tables if not given.
    #[serde(default)]
    pub table_format: Option<TableFormat>,
    /// Partition folders: columns, `date(column)` or `hour(column)`.
    #[serde(default)]
    pub partition_by: Vec<String>,
    /// How the Parquet files are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// What the rows of each file are sorted by: `column`, `column desc`, `column desc nulls last`.
    #[serde(default)]
    pub order_by: Vec<String>,
    /// Gather the rows of several epochs into larger files; each epoch has files of its own if not given.
    #[serde(default)]
    pub roll: Option<Roll>,
    /// Bloom filters, statistics, dictionaries and row groups of the files.
    #[serde(default)]
    pub parquet: Parquet,
    /// Also write the rows to a table of PostgreSQL.
    #[serde(default)]
    pub postgres: Option<PostgresSink>,
    /// Columns whose values are not shown where people look at rows (the console, samples, previews), nor those of columns
    /// of other tables that are made of them. They are stored as they are.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// A rule that a row must meet.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// A condition over the table's columns; NULL counts as not met.
    pub that: String,
    /// What becomes of a row that does not meet it.
    #[serde(default, rename = "else")]
    pub otherwise: Otherwise,
}

/// What becomes of a row that breaks a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// It is kept, and counted.
    Keep,
    /// It is dropped, and counted.
    Drop,
    /// It goes to the quarantine table, with the rule.
    #[default]
    Quarantine,
    /// The run stops.
    Fail,
}

/// Rows with the same key are kept once.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unique {
    /// The columns that make the key.
    pub key: Vec<String>,
    /// How long a key is remembered, in event time. Of the first rows, a key takes 24 bytes of disk and some two of
    /// memory; of the newest, itself and some hundred bytes of memory.
    pub within: Span,
    /// Which row of a key is kept.
    #[serde(default)]
    pub keep: Keep,
    /// With `keep: newest`, the column whose greatest value is the newest: a whole number, a date or a timestamp. The
    /// event time if not given.
    #[serde(default)]
    pub order_by: Option<String>,
}

/// Which row of a key is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one that came first.
    #[default]
    First,
    /// The newest: it replaces the one before in `postgres: { key: [...] }`. The lake gets it as a further row, with the
    /// epoch's number in `_sequence`.
    Newest,
}

/// What becomes of late rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Late {
    /// They go to the quarantine table.
    #[default]
    Quarantine,
    /// They are dropped, and counted.
    Drop,
    /// They correct their window: its new row replaces the one before in `postgres: { key: [...] }`. The lake gets it as
    /// a further row, with the epoch's number in `_sequence`.
    Update(LateUpdate),
}

/// How late rows correct windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LateUpdate {
    /// How long behind its end a window can be corrected, in event time. Its state is kept for so long.
    pub within: Span,
    /// What becomes of rows that come later still.
    #[serde(default, rename = "else")]
    pub otherwise: TooLate,
}

/// What becomes of rows that come too late to correct their window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLate {
    /// They go to the quarantine table.
    #[default]
    Quarantine,
    /// They are dropped, and counted.
    Drop,
}

/// What makes a table of Parquet files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableFormat {
    /// The folder that they lie in.
    #[default]
    Parquet,
    /// A Delta log (<https://delta.io>), `_delta_log` in that folder: each epoch with rows is one version of the table, so
    /// that readers of the log see whole epochs, and older ones by their versions.
    Delta,
}

/// How Parquet files are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Zstandard, level 1.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Gzip.
    Gzip,
    /// Not at all.
    None,
}

impl Late {
    /// Tells whether rows go to the quarantine that are late for good.
    pub fn quarantines(self) -> bool {
        match self {
            Late::Quarantine => true,
            Late::Drop => false,
            Late::Update(update) => update.otherwise == TooLate::Quarantine,
        }
    }
}

impl Table {
    fn store_default() -> bool {
        true
    }
}
