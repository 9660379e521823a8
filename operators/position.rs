//! Positions are data: where in its partitions a source stands.
//!
//! A [`Cut`] is what a source reports at a barrier and what it is given back
//! when it is opened again. It is serialised into the commit record, so its
//! JSON form is a file format: change it only with the record's version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far one partition (shard, object, file) has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum Position {
    /// Nothing has been read; reading starts at the oldest record.
    Start,
    /// Nothing has been read; reading starts at the first record put at or after this time.
    Time {
        /// Milliseconds since the Unix epoch.
        ms: i64,
    },
    /// Everything up to and including this sequence number has been read.
    Sequence {
        /// The sequence number, in decimal digits.
        sequence: String,
        /// When given, only the user records up to and including this one of
        /// the aggregate at `sequence` have been read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub_sequence: Option<u64>,
    },
    /// Everything before this offset has been read.
    Offset {
        /// Bytes of the decompressed content, or rows where the format counts rows.
        offset: u64,
        /// What tells this content from another that later bears the same name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
    },
    /// The partition has been read to its end.
    Done {
        /// Bytes of the decompressed content, or rows, at the end.
        offset: u64,
        /// What tells this content from another that later bears the same name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
        /// When the end was reached, in milliseconds since the Unix epoch.
        ms: i64,
    },
}

/// What changed in a source's positions since its last cut.
///
/// Folding the cuts of all epochs in order gives the source's whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Partitions that have moved, with their new position.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub advanced: BTreeMap<String, Position>,
    /// Partitions that need not be remembered any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<String>,
}

impl Cut {
    /// Tells whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.advanced.is_empty() && self.forgotten.is_empty()
    }

    /// Makes one cut of this and the one that follows it.
    pub fn join(&mut self, later: Cut) {
        self.fold(&later);
        self.forgotten.extend(later.forgotten);
    }

    /// Applies a later cut on top of the positions that this one holds.
    pub fn fold(&mut self, later: &Cut) {
        for name in &later.forgotten {
            self.advanced.remove(name);
        }
        for (name, position) in &later.advanced {
            self.advanced.insert(name.clone(), position.clone());
        }
    }
}
