//! Sources: where records come from, and how they read.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Archive, ErrorBudget, Roles};
use crate::spec::units::{ByteSize, Span};

/// Where records come from, and how they read. Exactly one of `file`, `kinesis`, `s3` and `generate` is given.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Files on this machine.
    #[serde(default)]
    pub file: Option<FileSource>,
    /// An Amazon Kinesis data stream.
    #[serde(default)]
    pub kinesis: Option<KinesisSource>,
    /// Objects on Amazon S3 that an SQS queue announces.
    #[serde(default)]
    pub s3: Option<S3Source>,
    /// Rows made by Nexus, for trials and benchmarks.
    #[serde(default)]
    pub generate: Option<GenerateSource>,
    /// How the bytes read. JSON if not given (`generate` needs none).
    #[serde(default)]
    pub format: Option<Format>,
    /// The schema contract: column name to type. Inferred from the first files if not given.
    #[serde(default)]
    pub columns: Option<Columns>,
    /// What becomes of fields that `columns` does not name.
    #[serde(default)]
    pub on_unknown_column: UnknownColumn,
    /// Which column tells when a row happened, and how late rows may come.
    #[serde(default)]
    pub event_time: Option<EventTime>,
    /// Also keep the records as they came.
    #[serde(default)]
    pub archive: Option<Archive>,
    /// How many records may go to the quarantine before the run stops; any number if not given.
    #[serde(default)]
    pub errors: Option<ErrorBudget>,
    /// Columns whose values are not shown where people look at rows (the console, samples, previews), nor those of columns
    /// of tables that are made of them. They are stored as they are.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// Files on this machine.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// A path or a glob (`*`, `?`, `**`), from the pipeline file's folder.
    pub path: String,
    /// Keep watching for new files and for files that grow; otherwise the run ends when all are read.
    #[serde(default)]
    pub follow: bool,
}

/// An Amazon Kinesis data stream.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KinesisSource {
    /// The stream's name or ARN.
    pub stream: String,
    /// Where the first start begins: `earliest`, `latest` or an RFC 3339 time.
    #[serde(default = "KinesisSource::start_default")]
    pub start: String,
    /// How the stream is read.
    #[serde(default)]
    pub mode: KinesisMode,
    /// With `mode: fan_out`, the consumer's name or ARN; `nexus-PIPELINE-SOURCE` if not given. One that is given by name is
    /// registered if it is not there, and stays registered. No two pipelines can share one.
    #[serde(default)]
    pub consumer: Option<String>,
    /// Whether records that the Kinesis Producer Library packed together are unpacked.
    #[serde(default)]
    pub aggregated: Aggregated,
    /// What becomes of a shard whose next record the stream no longer keeps.
    #[serde(default)]
    pub on_data_loss: OnDataLoss,
    /// The role that reads the stream; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

/// How a Kinesis stream is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KinesisMode {
    /// By asking each shard, within the throughput that all its readers share.
    #[default]
    Poll,
    /// By enhanced fan-out: the stream pushes records to a registered consumer, which has 2 MB/s of each shard for itself.
    /// AWS charges for it. A pipeline may change between the two.
    FanOut,
}

/// Whether packed records are unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregated {
    /// Those that are packed are known by their first bytes and their checksum.
    #[default]
    Auto,
    /// Every record is taken as it is.
    Never,
}

/// What becomes of a shard whose next record the stream no longer keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDataLoss {
    /// The run stops.
    #[default]
    Fail,
    /// It goes on with the oldest record that there is.
    Continue,
}

/// Objects on Amazon S3 that an SQS queue announces.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Source {
    /// The queue's URL.
    pub queue: String,
    /// The prefixes that may be read, as `s3://bucket/prefix`; other objects are refused.
    pub allow: Vec<String>,
    /// The account that must own the bucket.
    #[serde(default)]
    pub bucket_owner: Option<String>,
    /// Objects read at once.
    #[serde(default = "S3Source::in_flight_default")]
    pub in_flight: usize,
    /// How long a message stays hidden from others without a sign of life; it is extended at half the time.
    #[serde(default = "S3Source::visibility_default")]
    pub visibility: Span,
    /// How often the prefixes of `allow` are listed to find objects whose notification was lost; never if not given. An
    /// object is found once it is older than this, and for 13 days; one in a bucket that keeps versions costs a request
    /// each time.
    #[serde(default)]
    pub reconcile: Option<Span>,
    /// The largest object that is read, as it is stored; any size if not given.
    #[serde(default)]
    pub object: Option<ByteSize>,
    /// What becomes of messages and objects that cannot be read.
    #[serde(default)]
    pub on_poison: PoisonPolicy,
    /// The role that takes the messages and reads the objects; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

/// What becomes of messages and objects that cannot be read, by what is wrong with them. None holds up another.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoisonPolicy {
    /// A message that is no notification, or names an object outside of `allow`.
    pub message: OnPoison,
    /// An object that is not there.
    pub missing: OnPoison,
    /// An object that may not be read.
    pub denied: OnPoison,
    /// An object of a bucket in another region.
    pub region: OnPoison,
    /// An object larger than `object`.
    pub too_large: OnPoison,
    /// An object that was overwritten, or does not unpack or divide into records.
    pub unreadable: OnPoison,
    /// How often a message is received until its object counts as missing, denied or in another region: that may pass.
    pub receives: u32,
}

impl Default for PoisonPolicy {
    fn default() -> Self {
        let on = OnPoison::default();
        Self { message: on, missing: on, denied: on, region: on, too_large: on, unreadable: on, receives: 3 }
    }
}

/// What becomes of what cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPoison {
    /// It goes to the quarantine with its reason, and its message is deleted.
    #[default]
    Quarantine,
    /// It is left until its message comes again, later each time, up to a quarter of an hour: until it can be read, or
    /// the queue gives the message to its dead-letter queue.
    Retry,
    /// The run ends with an error that says why; the message stays in the queue.
    Fail,
}

/// Rows made by Nexus.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateSource {
    /// How many rows; without it the source never ends.
    #[serde(default)]
    pub rows: Option<u64>,
    /// Rows a second; as fast as they are taken if not given.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Makes other values of the same kind.
    #[serde(default)]
    pub seed: u64,
    /// What each column holds.
    pub columns: BTreeMap<String, Generator>,
}

/// What a generated column holds. Row `n` holds the same whenever it is made.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Generator {
    /// The row's number, from 0.
    Sequence {},
    /// A whole number from `min` to `max`, both included.
    Integer {
        /// The smallest.
        min: i64,
        /// The largest.
        max: i64,
    },
    /// A number from `min` up to `max`.
    Number {
        /// The smallest.
        min: f64,
        /// The bound that is not reached.
        max: f64,
    },
    /// One of these texts.
    Choice(Vec<String>),
    /// A time that starts at `start` and moves on by `step` a row.
    Time {
        /// The first row's time (RFC 3339).
        start: String,
        /// What lies between two rows.
        step: Span,
    },
}

/// How the bytes of a source read.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON: a document a line, documents back to back, or one array.
    Json,
    /// Comma-separated values.
    Csv(CsvFormat),
    /// Parquet files.
    Parquet,
    /// Avro: container files or, with a schema, single records of a stream.
    Avro(AvroFormat),
    /// Messages of Protocol Buffers.
    Protobuf(ProtobufFormat),
    /// What CloudWatch Logs sends to a subscription, from a stream or from objects: a log event a row, with the columns
    /// `owner`, `log_group`, `log_stream`, `subscription_filters`, `id`, `timestamp`, `message` and `extracted_fields`. A
    /// `message` that is declared as `json`, `struct`, `list` or `map` is read as JSON.
    CloudwatchLogs,
    /// No decoding: one column `_raw`, binary, a record (a line of a file) a row.
    Raw,
}

/// How a CSV reads.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvFormat {
    /// The first line names the columns. Without it the columns come in the order of `columns`.
    #[serde(default = "CsvFormat::header_default")]
    pub header: bool,
    /// What stands between two fields.
    #[serde(default = "CsvFormat::delimiter_default")]
    pub delimiter: char,
    /// What stands around a field that holds delimiters or line breaks.
    #[serde(default = "CsvFormat::quote_default")]
    pub quote: char,
    /// Texts that mean NULL; the empty field always does, except in a `string` column where it is an empty text
    /// if it is quoted.
    #[serde(default, rename = "null")]
    pub nulls: Vec<String>,
}

/// How Avro reads.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AvroFormat {
    /// The schema of single records, as JSON. Container files hold their own.
    #[serde(default)]
    pub schema: Option<String>,
    /// The same in a file of its own.
    #[serde(default)]
    pub schema_file: Option<String>,
    /// What stands before a single record.
    #[serde(default)]
    pub encoding: AvroEncoding,
    /// With `encoding: confluent`, the number that the schema must have; with `glue`, its version (a UUID). Any if not
    /// given.
    #[serde(default)]
    pub schema_id: Option<SchemaId>,
    /// The schemas that older records were written with. They are read as `schema` wants them: fields that it knows by
    /// one of its `aliases` have its name, and those that only it has get their `default`.
    #[serde(default)]
    pub older: Vec<OlderSchema>,
}

/// A schema that older records of Avro were written with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OlderSchema {
    /// The schema, as JSON.
    #[serde(default)]
    pub schema: Option<String>,
    /// The same in a file of its own.
    #[serde(default)]
    pub schema_file: Option<String>,
    /// Its number or version. With `encoding: single_object`, its fingerprint tells.
    #[serde(default)]
    pub schema_id: Option<SchemaId>,
}

/// What a registry knows a schema by.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SchemaId {
    /// A number (Confluent).
    Number(u32),
    /// The UUID of a version (AWS Glue).
    Version(String),
}

/// What stands before a single record of Avro.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AvroEncoding {
    /// Nothing.
    #[default]
    Datum,
    /// `c3 01` and the schema's fingerprint: Avro's single-object encoding. Another schema's records are quarantined.
    SingleObject,
    /// `00` and the schema's number in a registry, in four bytes.
    Confluent,
    /// `03`, `00` or `05` (packed by zlib), and the schema's version in the registry of AWS Glue, in 16 bytes.
    Glue,
}

/// How Protocol Buffers read.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtobufFormat {
    /// A file of descriptors, as `protoc --include_imports --descriptor_set_out=FILE` writes it.
    pub descriptor: String,
    /// The full name of the messages' type, with its package.
    pub message: String,
    /// How messages are kept apart.
    #[serde(default)]
    pub framing: ProtobufFraming,
}

/// How messages of Protocol Buffers are kept apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProtobufFraming {
    /// A record of the stream is one.
    #[default]
    Record,
    /// Each has its length before it, as `writeDelimitedTo` writes them; so they are in files.
    Delimited,
}

/// Column name to type, in order.
///
/// Types: `bool`, `int8` to `int64`, `uint8` to `uint64`, `float32`, `float64`, `decimal(p, s)`, `string`, `binary`,
/// `date`, `time`, `timestamp`, `list<T>`, `struct<name: T, ...>`, `map<K, V>`, `json`; `not null` after any.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(transparent)]
pub struct Columns(#[schemars(with = "BTreeMap<String, String>")] pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> serde::de::Visitor<'de> for InOrder {
            type Value = Columns;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of column names to types")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// What becomes of fields that `columns` does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownColumn {
    /// They are kept, as JSON, in the column `_rescued`.
    #[default]
    Rescue,
    /// They are left out.
    Ignore,
    /// The record goes to the quarantine.
    Reject,
    /// They become columns, which may be NULL, typed by the values seen so far. Until all sinks have committed the epoch
    /// in which a field was first seen, its values are kept in `_rescued`; then the tables are planned anew.
    Evolve,
}

/// Which column tells when a row happened.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventTime {
    /// A column of type `timestamp`.
    pub column: String,
    /// How much later than the newest row another row may come and still count.
    #[serde(default)]
    pub lateness: Span,
    /// A partition without rows for this long does not hold the watermark back.
    #[serde(default = "EventTime::idle_default")]
    pub idle: Span,
}

impl KinesisSource {
    fn start_default() -> String {
        "earliest".into()
    }
}

impl S3Source {
    /// Short, so that another process soon takes over what a dead one held.
    fn visibility_default() -> Span {
        Span::from_secs(60)
    }

    fn in_flight_default() -> usize {
        8
    }
}

impl CsvFormat {
    fn header_default() -> bool {
        true
    }

    fn delimiter_default() -> char {
        ','
    }

    fn quote_default() -> char {
        '"'
    }
}

impl EventTime {
    fn idle_default() -> Span {
        Span::from_secs(30)
    }
}
