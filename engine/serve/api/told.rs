//! What the API tells. The document that describes the API is made from these types, so every doc comment here is read
//! by users.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::describe::DescribedColumn;

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It reads, or waits for something to read.
    Running,
    /// Its sources read no more until it is told to resume.
    Paused,
    /// It commits what it has read, and ends.
    Draining,
}

/// The pipeline and how its run is doing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The version of nexus that runs it.
    pub version: String,
    /// The number of this process among those that ran the pipeline; 0 before its first epoch is recorded.
    pub generation: u64,
    /// What the run does.
    pub state: RunState,
    /// Whether it is ready, as `/ready` tells.
    pub ready: bool,
    /// Why it is not.
    pub not_ready: Option<String>,
    /// Whether it takes orders to pause, to resume and to drain.
    pub takes_orders: bool,
    /// Epochs that this process has recorded.
    pub epochs: u64,
    /// Rows that all sources have decoded in a second, on the average of the last seconds.
    pub rows_per_s: f64,
    /// Bytes that all sources have read in a second.
    pub bytes_per_s: f64,
    /// How far the slowest source is behind, if its service tells.
    pub lag_ms: Option<u64>,
    /// When all sinks had last committed an epoch, in milliseconds since the Unix epoch.
    pub committed_at_ms: Option<i64>,
    /// For how long the oldest closed epoch has waited for its commit.
    pub waiting_s: f64,
    /// The sinks that have yet to commit it.
    pub behind: Vec<String>,
    /// Sources, tables and sinks.
    pub nodes: Vec<Node>,
    /// Who gives rows to whom.
    pub edges: Vec<Edge>,
}

/// A source, a table or a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its name: of a table `tier.table`, of a sink `table/kind`.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// The tier of a table.
    pub tier: Option<String>,
}

/// What a node of the graph is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// It is read.
    Source,
    /// It is joined with, and stands still.
    Reference,
    /// A query.
    Table,
    /// It takes rows: to the lake, to a database, to the quarantine.
    Sink,
}

/// A way of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Edge {
    /// Who gives.
    pub from: String,
    /// Who takes.
    pub to: String,
    /// The channel between them; none where a static table is joined.
    pub channel: Option<String>,
}

/// The sources of a run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Sources {
    /// By name.
    pub sources: Vec<SourceTold>,
}

/// A source.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SourceTold {
    /// Its name.
    pub name: String,
    /// Rows decoded by this process, committed or not.
    pub rows: u64,
    /// Bytes read, decompressed, committed or not.
    pub bytes: u64,
    /// Rows decoded in a second.
    pub rows_per_s: f64,
    /// Bytes read in a second.
    pub bytes_per_s: f64,
    /// Whether it has nothing to read at the moment.
    pub caught_up: bool,
    /// How far it is behind, if its service tells.
    pub lag_ms: Option<u64>,
    /// The event time up to which rows have come, in milliseconds since the Unix epoch.
    pub watermark_ms: Option<i64>,
    /// Records of recorded epochs.
    pub records: u64,
    /// Of these, records that hold no row by their nature.
    pub skipped: u64,
    /// Of these, records that did not decode.
    pub quarantined: u64,
    /// Where its error budget stands.
    pub errors: Option<Budget>,
}

/// What an error budget has counted in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// All rows.
    pub rows: u64,
    /// Of these, rows that went to the quarantine.
    pub bad: u64,
    /// How many may.
    pub allowed: u64,
}

/// The tables of a run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Tables {
    /// Each behind those that it reads.
    pub tables: Vec<TableTold>,
}

/// A table.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TableTold {
    /// `tier.table`.
    pub name: String,
    /// Rows that it has given to sinks and other tables, committed or not.
    pub rows_out: u64,
    /// Rows that it gives in a second.
    pub rows_per_s: f64,
    /// The event time up to which its input has come, in milliseconds since the Unix epoch.
    pub watermark_ms: Option<i64>,
    /// What its windows, keys and waiting rows take in memory.
    pub state_bytes: u64,
    /// Rows of recorded epochs by what became of them.
    pub fates: Fates,
    /// For each rule, how many rows of recorded epochs broke it.
    pub rules: BTreeMap<String, u64>,
    /// What its sinks have stored by recorded epochs, by their kind.
    pub sinks: BTreeMap<String, SinkTold>,
    /// Where its error budget stands.
    pub errors: Option<Budget>,
}

/// What became of rows. `sql + redriven = out + dropped + quarantined + duplicates + resent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fates {
    /// They arrived.
    #[serde(rename = "in")]
    pub arrived: u64,
    /// Of these, they came too late.
    pub late: u64,
    /// Of these, they corrected a window that had been given out.
    pub correcting: u64,
    /// They came out of the query.
    pub sql: u64,
    /// They came out of the quarantine.
    pub redriven: u64,
    /// A rule dropped them.
    pub dropped: u64,
    /// A rule sent them to the quarantine.
    pub quarantined: u64,
    /// Their key was there already.
    pub duplicates: u64,
    /// They went on to sinks and other tables.
    pub out: u64,
    /// They went to Postgres alone, which had refused them before.
    pub resent: u64,
}

/// What a sink has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SinkTold {
    /// Rows.
    pub rows: u64,
    /// Encoded bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Of the rows, those that the service has refused.
    pub refused: u64,
}

/// The last rows of a table.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// `tier.table`.
    pub table: String,
    /// Its columns. Rows have no values of those that are masked.
    pub columns: Vec<DescribedColumn>,
    /// The newest first, at most 100. Long values are cut, and integers beyond 2^53 are texts.
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// The epochs that were committed last.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Epochs {
    /// The newest first.
    pub epochs: Vec<Epoch>,
}

/// An epoch that all sinks have committed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// The process that has run it.
    pub generation: u64,
    /// When it was closed, in milliseconds since the Unix epoch.
    pub closed_at_ms: i64,
    /// From its barrier to the last commit.
    pub total_s: f64,
    /// Its steps, one after the other.
    pub steps: Vec<EpochStep>,
    /// Records that were read.
    pub records: u64,
    /// Rows that all tables have given.
    pub rows_out: u64,
    /// Records and rows that went to the quarantine.
    pub quarantined: u64,
    /// Encoded bytes that were stored.
    pub bytes: u64,
}

/// A step of an epoch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EpochStep {
    /// `cut`, `decode`, `transform`, `prepare`, `record` or `commit`.
    pub step: String,
    /// From the end of the step before to when all were done with this one.
    pub seconds: f64,
    /// The source, table or sink that was done last.
    pub last: Option<String>,
}

/// Where the sources stand.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PositionsTold {
    /// By name.
    pub sources: Vec<SourcePositions>,
}

/// Where a source stands, as of the last commit record.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SourcePositions {
    /// The source.
    pub source: String,
    /// How many shards, objects or files are known.
    pub partitions: u64,
    /// The first of them; those that are read to their end come last.
    pub first: Vec<PartitionPosition>,
}

/// How far a shard, an object or a file has been read.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PartitionPosition {
    /// Its name.
    pub partition: String,
    /// `start`, `time`, `sequence`, `offset` or `done`.
    pub at: String,
    /// The time, the sequence number or the offset there.
    pub position: Option<String>,
}

/// What waits between stages.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Channels {
    /// In no order.
    pub channels: Vec<ChannelTold>,
}

/// A channel between two stages.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChannelTold {
    /// Its name.
    pub name: String,
    /// Who sends: a source or a table.
    pub from: String,
    /// Who receives: a table, a sink, or the decoder of the source (`decode` and its name).
    pub to: String,
    /// Bytes that wait.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub limit_bytes: u64,
    /// For how long the sender has been held up, in this run.
    pub blocked_s: f64,
    /// Which part of the last seconds the sender was held up, from 0 to 1.
    pub blocked_share: f64,
    /// Whether it is held up now.
    pub is_blocked: bool,
}

/// Where memory goes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// What `limits.memory` allows.
    pub limit_bytes: u64,
    /// What the process holds, where the system tells.
    pub resident_bytes: Option<u64>,
    /// What of it is known: `channels`, `state` (windows, keys, waiting rows) and `queries`.
    pub components: BTreeMap<String, u64>,
    /// Bytes that are prepared and not committed, on disk or in the lake.
    pub spooled_bytes: u64,
}

/// What this process has put into the quarantine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Quarantine {
    /// By source or table, and by rule.
    pub rules: Vec<BrokenRule>,
}

/// A rule that was broken.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BrokenRule {
    /// The source or table.
    pub of: String,
    /// The rule: `decode`, `late`, `refused by postgres`, or the name of an expectation.
    pub rule: String,
    /// Records or rows, committed or not.
    pub rows: u64,
    /// The last reasons, the newest first. Where columns are masked, without the values that they quote.
    pub recent: Vec<ReasonTold>,
}

/// Why a record or row could not be used.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReasonTold {
    /// What is wrong.
    pub reason: String,
    /// When it was found, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The shard, object or file that it came from, if known.
    pub partition: Option<String>,
    /// Its place there, if known.
    pub offset: Option<String>,
}

/// What has become of an order.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Control {
    /// What the run does now.
    pub state: RunState,
}
