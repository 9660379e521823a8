//! The commit record: the file whose existence makes an epoch true.
//!
//! Its JSON is a file format: golden files of every version are read by tests.

use std::collections::BTreeMap;

use nexus_operators::position::Cut;
use nexus_operators::sink::Prepared;
use nexus_operators::transform::WINDOWS;
use nexus_operators::{Error, Result};
use serde::{Deserialize, Serialize};

use super::schema::TableSchema;

/// Version of the format of records and checkpoints that this build writes.
pub const VERSION: u32 = 1;

/// The kind of sink that brings a table to Postgres.
pub const POSTGRES: &str = "postgres";

/// The kind of sink that takes what could not be used.
pub const QUARANTINE: &str = "quarantine";

/// The kind of sink that keeps a source's records as they came.
pub const ARCHIVE: &str = "archive";

/// The kind of sink that tells, beside the archive, of records that do not decode.
pub const ERRORS: &str = "errors";

/// All that has to be known of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Version of this format.
    pub version: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// The process that wrote it.
    pub generation: u64,
    /// The epoch's number.
    pub epoch: u64,
    /// When it was written, in microseconds since the Unix epoch.
    pub written_at_us: i64,
    /// What each source has read.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceRecord>,
    /// What became of each table's rows, and its state.
    #[serde(default)]
    pub tables: BTreeMap<String, TableRecord>,
    /// What each sink has prepared, by `<table>/<kind>`.
    #[serde(default)]
    pub sinks: BTreeMap<String, Prepared>,
    /// Rows that the service of a sink has refused in the commits of earlier epochs, and that are in the quarantine of
    /// their table from this epoch on: how many, by sink and by the epoch in which they were refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, BTreeMap<u64, u64>>,
    /// What error budgets have counted up to this epoch, oldest first, by the name of the source or table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, Vec<Counted>>,
    /// The version of each reference table that the epoch's rows were joined with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, u64>,
    /// Of these, the versions that no epoch has used before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reference_versions: BTreeMap<String, ReferenceVersion>,
}

/// What an error budget has counted from a time on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// In microseconds since the Unix epoch.
    pub from_us: i64,
    /// All rows.
    pub rows: u64,
    /// Of these, rows that went to the quarantine.
    pub bad: u64,
}

/// A reference table as it was read at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceVersion {
    /// Counts the versions that epochs have used, from 1.
    pub version: u64,
    /// When it was read, in microseconds since the Unix epoch.
    pub read_at_us: i64,
    /// Its rows.
    pub rows: u64,
    /// What tells its content from that of other versions.
    pub files: Vec<ReferenceFile>,
}

/// A file of a reference table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceFile {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last changed, in microseconds since the Unix epoch; 0 if the file system does not tell.
    pub changed_us: i64,
}

/// A source's part of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// What has moved since the epoch before.
    #[serde(default)]
    pub cut: Cut,
    /// The event-time watermark at the barrier, in microseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_us: Option<i64>,
    /// What was counted.
    #[serde(flatten)]
    pub counts: SourceCounts,
    /// Columns that the source gets behind this epoch: fields of its records that no column declares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evolved: Vec<EvolvedColumn>,
}

/// A column that a source has got while the pipeline ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvolvedColumn {
    /// Its name.
    pub name: String,
    /// Its type, as a pipeline file writes it.
    #[serde(rename = "type")]
    pub data_type: String,
    /// The epoch in which it was found.
    pub found_in: u64,
}

/// What is counted of a source. `records + redriven = rows + quarantined`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Records read; rows where one record holds several.
    pub records: u64,
    /// Bytes read, decompressed.
    pub bytes: u64,
    /// Rows decoded.
    pub rows: u64,
    /// Records that went to the quarantine.
    pub quarantined: u64,
    /// Records that were taken out of the quarantine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redriven: u64,
    /// Records that hold no row by their nature, and are not among `records`: those by which a service only tries whether
    /// they arrive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Records that went to the archive as they came. One of them may hold several of those that are decoded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub archived: u64,
}

/// A table's part of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TableRecord {
    /// What was counted.
    #[serde(flatten)]
    pub counts: TableCounts,
    /// For each rule, how many rows broke it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, u64>,
    /// The state after the epoch, if the table has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TableState>,
    /// The columns from this epoch on, if they are others than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<TableSchema>,
}

/// What is counted of a table. `rows_sql + redriven = rows_out + dropped + quarantined + duplicates + resent`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCounts {
    /// Rows that arrived.
    pub rows_in: u64,
    /// Of these, rows that came too late for their window, or too late for a join.
    pub late: u64,
    /// Rows that came after their window was given out, and have corrected it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub correcting: u64,
    /// Rows that came out of the query.
    pub rows_sql: u64,
    /// Rows that were taken out of the quarantine. They come to the rules as those of the query do.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redriven: u64,
    /// Of these, rows that a rule dropped.
    pub dropped: u64,
    /// Of these, rows that a rule sent to the quarantine.
    pub quarantined: u64,
    /// Of these, rows whose key was there already.
    pub duplicates: u64,
    /// Of these, rows that went on to sinks and other tables.
    pub rows_out: u64,
    /// Of these, rows that Postgres had refused and that went to it alone: all others have them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resent: u64,
}

/// Where the state of a table is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// The query and the rule of uniqueness that the state belongs to: the state of another cannot be used.
    pub query: String,
    /// What of the query the state rests on: another query with the same goes on from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// The time up to which windows have been given out, or before which a row is late for a join, in microseconds
    /// since the Unix epoch.
    pub closed_until_us: i64,
    /// The time up to which windows cannot be corrected any more; nothing if none ever can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_until_us: Option<i64>,
    /// Files of accumulator states, by the epoch that added them.
    #[serde(default)]
    pub windows: BTreeMap<u64, String>,
    /// Files of remembered keys, by the epoch that added them.
    #[serde(default)]
    pub keys: BTreeMap<u64, String>,
    /// Files of the rows that a join keeps, and of which have found a partner, by their kind and the epoch that added
    /// them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub joins: BTreeMap<String, BTreeMap<u64, String>>,
}

impl TableState {
    /// Gives the files of a kind of state of the query, by the epoch that added them.
    pub fn files(&self, kind: &str) -> Option<&BTreeMap<u64, String>> {
        if kind == WINDOWS { Some(&self.windows) } else { self.joins.get(kind) }
    }

    /// Tells whether there is no state.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.keys.is_empty() && self.joins.is_empty()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What state rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// The query.
    pub sql: String,
    /// The rule of uniqueness; empty if there is none.
    #[serde(default)]
    pub unique: String,
    /// The types of the columns that windows (`table.column`) and keys (`column`) are made of.
    pub columns: BTreeMap<String, String>,
}

impl SourceCounts {
    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.rows = self.rows.saturating_add(other.rows);
        self.quarantined = self.quarantined.saturating_add(other.quarantined);
        self.redriven = self.redriven.saturating_add(other.redriven);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.archived = self.archived.saturating_add(other.archived);
    }
}

impl TableCounts {
    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.rows_in = self.rows_in.saturating_add(other.rows_in);
        self.late = self.late.saturating_add(other.late);
        self.correcting = self.correcting.saturating_add(other.correcting);
        self.rows_sql = self.rows_sql.saturating_add(other.rows_sql);
        self.redriven = self.redriven.saturating_add(other.redriven);
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.quarantined = self.quarantined.saturating_add(other.quarantined);
        self.duplicates = self.duplicates.saturating_add(other.duplicates);
        self.rows_out = self.rows_out.saturating_add(other.rows_out);
        self.resent = self.resent.saturating_add(other.resent);
    }
}

impl CommitRecord {
    /// Gives the sinks of a source or table by their kind, with what they have prepared.
    fn sinks_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a Prepared)> {
        let sinks = self.sinks.iter();
        sinks.filter_map(move |(sink, prepared)| Some((sink.strip_prefix(name)?.strip_prefix('/')?, prepared)))
    }

    /// Gives how many rows that were refused by a sink of a table are in the table's quarantine from this epoch on.
    pub fn refused_of(&self, table: &str) -> u64 {
        let sinks = self.refused.iter().filter(|(sink, _)| sink.rsplit_once('/').is_some_and(|(of, _)| of == table));
        sinks.flat_map(|(_, epochs)| epochs.values()).sum()
    }

    /// Checks that every row is accounted for. A mismatch is a bug, and the record must not be written.
    pub fn check_balance(&self) -> Result<()> {
        match self.imbalance() {
            None => Ok(()),
            Some((name, counts)) => Err(Error::internal(format!(
                "rows of {name} are not accounted for ({counts}); nothing of this epoch was committed"
            ))),
        }
    }

    /// Gives the first source or table whose rows are not accounted for, and its counts.
    pub fn imbalance(&self) -> Option<(&str, String)> {
        for (name, prepared) in &self.sinks {
            if prepared.rewritten > 0 && (prepared.rewritten != prepared.removed || prepared.rows > 0) {
                let Prepared { rows, removed, rewritten, .. } = prepared;
                return Some((name, format!("{rewritten} rows rewritten, but {removed} removed and {rows} new")));
            }
        }
        for (name, source) in &self.sources {
            let SourceCounts { records, rows, quarantined, redriven, archived, .. } = source.counts;
            if records.saturating_add(redriven) != rows.saturating_add(quarantined) {
                let counts =
                    format!("{records} records + {redriven} redriven = {rows} rows + {quarantined} quarantined");
                return Some((name, counts));
            }
            for (sink, prepared) in self.sinks_of(name) {
                if sink == QUARANTINE && prepared.rows != quarantined {
                    return Some((name, format!("{quarantined} quarantined, but {} prepared", prepared.rows)));
                }
                if sink == ARCHIVE && prepared.rows != archived {
                    return Some((name, format!("{archived} archived, but {} prepared", prepared.rows)));
                }
                // What fails again has been told of.
                let told = if redriven > 0 { 0 } else { quarantined };
                if sink == ERRORS && prepared.rows != told {
                    return Some((name, format!("{told} refused, but {} told of in the archive", prepared.rows)));
                }
                if sink == QUARANTINE && prepared.removed != redriven {
                    return Some((name, format!("{redriven} redriven, but {} removed", prepared.removed)));
                }
            }
        }
        for (name, table) in &self.tables {
            let counts = &table.counts;
            let left = counts.dropped.saturating_add(counts.quarantined).saturating_add(counts.duplicates);
            let left = left.saturating_add(counts.resent);
            let came = counts.rows_sql.saturating_add(counts.redriven);
            if came != counts.rows_out.saturating_add(left)
                || counts.late.saturating_add(counts.correcting) > counts.rows_in
            {
                return Some((name, format!("{counts:?}")));
            }
            let quarantined = counts.quarantined.saturating_add(self.refused_of(name));
            let quarantined = quarantined..=quarantined.saturating_add(counts.late);
            for (sink, prepared) in self.sinks_of(name) {
                let fits = match sink {
                    QUARANTINE => quarantined.contains(&prepared.rows) && prepared.removed == counts.redriven,
                    POSTGRES => prepared.rows == counts.rows_out.saturating_add(counts.resent),
                    _ => prepared.rows == counts.rows_out,
                };
                if !fits {
                    return Some((name, format!("{counts:?}, but {sink} has prepared {}", prepared.rows)));
                }
            }
        }
        // An epoch that only takes refused rows over has no tables.
        for table in self.refused.keys().filter_map(|sink| Some(sink.rsplit_once('/')?.0)) {
            let (rows, quarantine) = (self.refused_of(table), format!("{table}/{QUARANTINE}"));
            let prepared = self.sinks.get(&quarantine).map_or(0, |prepared| prepared.rows);
            if prepared < rows || (prepared != rows && !self.tables.contains_key(table)) {
                return Some((table, format!("{rows} refused rows, but {quarantine} has prepared {prepared}")));
            }
        }
        None
    }
}
