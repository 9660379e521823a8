//! The archive of a source: its records as they came, beside the tables.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Roles;
use crate::spec::units::{ByteSize, Span};

/// Also keep the records of the source as they came, each once, in objects by the hour of their arrival (UTC):
/// `PATH/PREFIXyyyy/MM/dd/HH/PIPELINE-SOURCE-*.gz`. An object holds a record a line, and reads as the source does; messages
/// of Protocol Buffers have their length before them. Records that do not decode are told of under `PATH/errors/`, as
/// lines of JSON that hold them in base64, as Amazon Data Firehose writes them. Rows that are generated are archived as
/// JSON. Avro and Parquet cannot be archived.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// A folder, or `s3://bucket/prefix`.
    pub path: String,
    /// What stands before the year, such as `client/`; folders of letters, digits and `-_.=`.
    #[serde(default)]
    pub prefix: String,
    /// Whether objects are packed by gzip.
    #[serde(default = "Archive::gzip_default")]
    pub gzip: bool,
    /// When an object is finished.
    #[serde(default)]
    pub buffer: Buffer,
    /// The role that writes it; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

/// When an object of an archive is finished: whichever limit is reached first. Records wait where the state is kept; a run
/// that ends writes all.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// When the records that wait take this much, compressed; an object is about as large. Those of two hours make two.
    #[serde(default = "Buffer::size_default")]
    pub size: ByteSize,
    /// When the oldest record has waited for so long, at the next commit.
    #[serde(default = "Buffer::every_default")]
    pub every: Span,
}

impl Archive {
    fn gzip_default() -> bool {
        true
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self { size: Self::size_default(), every: Self::every_default() }
    }
}

impl Buffer {
    fn size_default() -> ByteSize {
        ByteSize::mib(64)
    }

    fn every_default() -> Span {
        Span::from_secs(60)
    }
}
