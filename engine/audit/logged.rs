//! What the log of a Delta table says of files that were merged: it alone tells whether a file stands for others, since
//! those stay in the folder, and another writer may have been faster.

use std::collections::{BTreeMap, BTreeSet};

use nexus_operators::sink::delta::LoggedFiles;
use nexus_operators::sink::parquet::audit::replacements;

use super::View;

/// The replacements of a table's files that have come into its log, and those that have not.
#[derive(Default)]
pub struct Merged {
    /// Replaced files, by their paths.
    replaced: BTreeMap<String, Successor>,
    /// Files that were to stand for others and are in no version: another writer has taken out some of those first, or
    /// their epoch is not committed yet.
    void: BTreeSet<String>,
}

/// What stands for a file.
#[derive(Clone, Copy)]
struct Successor {
    /// The epoch that replaces it, the newest if another writer has restored it meanwhile.
    epoch: u64,
    /// Whether the rows are in the table by way of it.
    is_active: bool,
}

impl Merged {
    /// Holds what the records say of a sink against the log.
    pub fn read(view: &View<'_>, sink: &str, logged: &LoggedFiles) -> Self {
        let mut merged = Self::default();
        let prepared: Vec<_> = view.prepared(sink).collect();
        // The newest first: the log may have forgotten a file that it took out long ago, and not what stands for it now.
        for (record, prepared) in prepared.into_iter().rev() {
            // A handle that cannot be read is a fault elsewhere.
            let replacements = prepared.handle.as_ref().and_then(|handle| replacements(handle).ok());
            for replacement in replacements.unwrap_or_default() {
                let (mut is_entered, mut is_active) = (false, false);
                for file in &replacement.files {
                    let next = merged.replaced.get(file);
                    is_active |= logged.active.contains_key(file) || next.is_some_and(|next| next.is_active);
                    is_entered |= is_active || logged.removed.contains(file) || next.is_some();
                }
                if !is_entered {
                    merged.void.extend(replacement.files);
                    continue;
                }
                for path in replacement.replaces {
                    merged.replaced.entry(path).or_insert(Successor { epoch: record.epoch, is_active });
                }
            }
        }
        merged
    }

    /// Tells whether it is this epoch that replaces a file.
    pub fn is_replaced_by(&self, path: &str, epoch: u64) -> bool {
        self.replaced.get(path).is_some_and(|by| by.epoch == epoch)
    }

    /// Tells whether the rows of a file are in the table by way of another one.
    pub fn is_carried(&self, path: &str) -> bool {
        self.replaced.get(path).is_some_and(|by| by.is_active)
    }

    /// Tells whether a file was to stand for others, and does not.
    pub fn is_void(&self, path: &str) -> bool {
        self.void.contains(path)
    }
}
