//! The pipeline file as types. The JSON Schema that `nexus schema` prints is
//! made from them, so every doc comment here is read by users.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod archive;
mod aws;
mod lake;
mod parquet;
mod postgres;
mod source;
mod table;
mod test_case;

pub use archive::*;
pub use aws::*;
pub use lake::*;
pub use parquet::*;
pub use postgres::*;
pub use source::*;
pub use table::*;
pub use test_case::*;

use super::units::{ByteSize, Share, Span};

/// One pipeline: sources, the tables of four tiers, and where they are stored.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The pipeline's name: lower-case letters, digits, `-` and `_`. Its state and its files bear it.
    pub name: String,
    /// What the pipeline is for.
    #[serde(default)]
    pub description: Option<String>,
    /// Parameters with their defaults, used as `${name}` in any text; `--set name=value` overrides.
    #[serde(default)]
    pub params: BTreeMap<String, Param>,
    /// Where tables are stored: a folder or `s3://bucket/prefix`, one for all tiers or one a tier.
    pub lake: Lake,
    /// Where commit records and positions are kept; `<lake>/_nexus/<name>`, as its bronze tier, if not given.
    #[serde(default)]
    pub state: Option<Location>,
    /// How objects on S3 are encrypted.
    #[serde(default)]
    pub encryption: Encryption,
    /// What makes a table of the files of each table that does not say so itself.
    #[serde(default)]
    pub table_format: TableFormat,
    /// When an epoch is committed; whichever comes first.
    #[serde(default)]
    pub commit: Commit,
    /// What the pipeline may use.
    #[serde(default)]
    pub limits: Limits,
    /// Where the services of AWS are, and as whom they are called.
    #[serde(default)]
    pub aws: Aws,
    /// Have events about each run written or sent, as OpenLineage describes them.
    #[serde(default)]
    pub lineage: Option<Lineage>,
    /// Where records come from.
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
    /// Static tables to join with.
    #[serde(default)]
    pub reference: BTreeMap<String, Reference>,
    /// Tables of the first tier: as it came, with provenance.
    #[serde(default)]
    pub bronze: BTreeMap<String, Table>,
    /// Tables of the second tier: typed, clean, without duplicates.
    #[serde(default)]
    pub silver: BTreeMap<String, Table>,
    /// Tables of the third tier: aggregates.
    #[serde(default)]
    pub gold: BTreeMap<String, Table>,
    /// Tables of the fourth tier: what people and programs act on.
    #[serde(default)]
    pub vibranium: BTreeMap<String, Table>,
    /// Secrets by the names that the file uses; never values.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// Cases for `nexus test`: rows in, rows out.
    #[serde(default)]
    pub tests: Vec<TestCase>,
}

/// A parameter's default; its type is the parameter's type.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Param {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

/// Encryption of objects on S3 at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// By keys that S3 owns.
    #[default]
    SseS3,
    /// By this key in AWS KMS: its id, alias or ARN.
    Kms(String),
    /// As the bucket's own settings say.
    BucketDefault,
}

/// When an epoch is committed: whichever limit is reached first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// At least this often while there is something to commit.
    #[serde(default = "Commit::every_default")]
    pub every: Span,
    /// When this many bytes have been read since the last commit.
    #[serde(default = "Commit::bytes_default")]
    pub bytes: ByteSize,
    /// When this many rows have been read since the last commit.
    #[serde(default)]
    pub rows: Option<u64>,
}

/// What the pipeline may use.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory for everything that holds rows: channels, decoders, plans, state, writers.
    #[serde(default = "Limits::memory_default")]
    pub memory: ByteSize,
    /// The largest record that is decoded; a larger one goes to the quarantine.
    #[serde(default = "Limits::record_default")]
    pub record: ByteSize,
    /// The most partition folders that one table has open for writing at a time.
    #[serde(default = "Limits::open_partitions_default")]
    pub open_partitions: usize,
    /// How far a Postgres sink may fall behind before it holds the pipeline back.
    #[serde(default = "Limits::spool_default")]
    pub spool: ByteSize,
}

/// Where events about each run go (<https://openlineage.io>). Exactly one of `file` and `url` is given.
///
/// What cannot be written or sent is dropped with a warning and counted; it never holds the pipeline up.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// A file to which each event is appended as a line of JSON, from the pipeline file's folder.
    #[serde(default)]
    pub file: Option<String>,
    /// An address that each event is posted to, such as `http://marquez:5000/api/v1/lineage`.
    #[serde(default)]
    pub url: Option<String>,
    /// The namespace of the pipeline as a job.
    #[serde(default = "Lineage::namespace_default")]
    pub namespace: String,
    /// What lies at least between two events that tell how far a run has come.
    #[serde(default = "Lineage::every_default")]
    pub every: Span,
}

/// A static table to join with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// A path or a glob, from the pipeline file's folder, or `s3://bucket/key`, in which `*`, `?`, `**` and `[..]` stand
    /// for the same; gzip and zstd by their content.
    pub path: String,
    /// How the bytes read; by the file's suffix if not given.
    #[serde(default)]
    pub format: Option<Format>,
    /// Column name to type; inferred if not given.
    #[serde(default)]
    pub columns: Option<Columns>,
    /// Read it again when it is older than this and its files have changed; it is taken up by the next epoch.
    #[serde(default)]
    pub refresh: Option<Span>,
    /// The role that reads it on S3; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

/// How many rows may go to the quarantine before the run stops: at most a share of those that came in a time.
///
/// It is looked at when an epoch is to be committed. When it is exceeded, the epoch is not: the next start reads its
/// rows again, and counts on from what was committed before.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorBudget {
    /// The largest share of rows that may go to the quarantine, such as `0.1%`.
    pub at_most: Share,
    /// The time over which rows are counted, by the clock of the machine.
    #[serde(rename = "in", default = "ErrorBudget::time_default")]
    pub time: Span,
    /// The share is taken of at least so many rows, so that the first bad ones do not stop a run. If not given: 100, or
    /// as many as make one bad row `at_most` of them (1000 for `0.1%`).
    #[serde(default)]
    pub of_at_least: Option<u64>,
    /// Also hold the rows that come too late for their window to the share, of the rows that arrive; only of a table.
    #[serde(default)]
    pub late: bool,
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// In this environment variable.
    Env(String),
    /// In this file; white space around the content is cut.
    File(String),
    /// In AWS Secrets Manager.
    AwsSecretsManager(SecretsManager),
}

/// A secret in AWS Secrets Manager.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretsManager {
    /// Its name or ARN.
    pub id: String,
    /// The key to take, if the secret is a JSON object.
    #[serde(default)]
    pub key: Option<String>,
    /// The role that reads it; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

impl ErrorBudget {
    fn time_default() -> Span {
        Span::from_secs(5 * 60)
    }
}

impl Commit {
    fn every_default() -> Span {
        Span::from_secs(10)
    }

    fn bytes_default() -> ByteSize {
        ByteSize::mib(128)
    }
}

impl Default for Commit {
    fn default() -> Self {
        Self { every: Self::every_default(), bytes: Self::bytes_default(), rows: None }
    }
}

impl Limits {
    fn memory_default() -> ByteSize {
        ByteSize::mib(512)
    }

    fn record_default() -> ByteSize {
        ByteSize::mib(10)
    }

    fn open_partitions_default() -> usize {
        256
    }

    fn spool_default() -> ByteSize {
        ByteSize::mib(4096)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Self::memory_default(),
            record: Self::record_default(),
            open_partitions: Self::open_partitions_default(),
            spool: Self::spool_default(),
        }
    }
}

impl Lineage {
    fn namespace_default() -> String {
        "nexus".into()
    }

    fn every_default() -> Span {
        Span::from_secs(60)
    }
}
