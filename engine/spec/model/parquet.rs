//! How a table's Parquet files are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::units::{ByteSize, Share, Span};

/// What helps readers of a table's Parquet files to skip what they do not look for.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// Columns with a bloom filter: a look for one value skips the row groups that lack it. It is for values that no order
    /// helps to find, such as ids.
    #[serde(default)]
    pub bloom: Vec<String>,
    /// How often a filter may let a row group be read in vain. At `1%` a filter has ten bits for each value.
    #[serde(default = "Parquet::bloom_false_positives_default")]
    pub bloom_false_positives: Share,
    /// The distinct values of a row group that a filter has room for. Room that is not needed costs memory while a row
    /// group is written (2 MiB for each open file as it is), and nothing in the file; with more values, a filter is wrong
    /// more often.
    #[serde(default = "Parquet::bloom_distinct_default")]
    pub bloom_distinct: u64,
    /// Which statistics (least and greatest value, NULLs) the files have.
    #[serde(default)]
    pub statistics: Statistics,
    /// Bytes of a column's distinct values in a row group up to which they are written once, as a dictionary; `0B` for no
    /// dictionaries.
    #[serde(default = "Parquet::dictionary_default")]
    pub dictionary: ByteSize,
    /// Encoded bytes after which a row group ends; it has at most 1 048 576 rows.
    #[serde(default = "Parquet::row_group_default")]
    pub row_group: ByteSize,
}

/// Which statistics a table's files have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// Of row groups and of their pages: readers skip pages too.
    #[default]
    Page,
    /// Of row groups.
    Chunk,
    /// None.
    None,
}

/// Gathers the rows of several epochs into larger files: whichever limit is reached first. The rows wait where the state is
/// kept, and readers do not see them; a run that ends writes all.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Roll {
    /// When the rows that wait take this much, compressed; a file is about as large, divided by its partition folders.
    #[serde(default = "Roll::size_default")]
    pub size: ByteSize,
    /// When the oldest row has waited for so long.
    #[serde(default = "Roll::age_default")]
    pub age: Span,
}

impl Parquet {
    fn bloom_false_positives_default() -> Share {
        Share { millionths: 10_000 }
    }

    fn bloom_distinct_default() -> u64 {
        1 << 20
    }

    fn dictionary_default() -> ByteSize {
        ByteSize::mib(1)
    }

    fn row_group_default() -> ByteSize {
        ByteSize::mib(64)
    }
}

impl Default for Parquet {
    fn default() -> Self {
        Self {
            bloom: Vec::new(),
            bloom_false_positives: Self::bloom_false_positives_default(),
            bloom_distinct: Self::bloom_distinct_default(),
            statistics: Statistics::default(),
            dictionary: Self::dictionary_default(),
            row_group: Self::row_group_default(),
        }
    }
}

impl Roll {
    /// As large as readers like files.
    fn size_default() -> ByteSize {
        ByteSize::mib(128)
    }

    /// Four files an hour, while what readers see stays fresh.
    fn age_default() -> Span {
        Span::from_secs(15 * 60)
    }
}
