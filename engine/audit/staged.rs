//! What is staged: only what an epoch names that is not yet committed, or what an open epoch has written.

use std::collections::{BTreeMap, BTreeSet};

use nexus_operators::Result;
use nexus_operators::sink::EpochId;
use nexus_operators::store::{Entry, Store};

use super::{Fault, View};
use crate::job::place::{POSTGRES, spool_place};
use crate::state::StateStore;

/// The spooled files of sinks to Postgres, by the sinks' names.
pub type Spools = BTreeMap<String, (Store, Vec<Entry>)>;

/// Lists what waits for Postgres.
pub async fn list_spools(store: &StateStore, sinks: &BTreeSet<String>) -> Result<Spools> {
    let mut spools = Spools::new();
    for sink in sinks {
        let Some((table, POSTGRES)) = sink.rsplit_once('/') else { continue };
        let spool = spool_place(store, table);
        let files = spool.list("").await?;
        spools.insert(sink.clone(), (spool, files));
    }
    Ok(spools)
}

/// Names what is staged and should not be. `of` tells which epoch has staged a file, and `may_be_open` whether it may be
/// about to be recorded; `waiting` are those that an uncommitted epoch names.
pub fn check(
    sink: &str,
    folder: &Store,
    staged: &[Entry],
    of: impl Fn(&str) -> Option<EpochId>,
    may_be_open: impl Fn(EpochId) -> bool,
    waiting: &BTreeSet<&str>,
) -> Vec<Fault> {
    let left_over = staged
        .iter()
        .filter(|entry| !waiting.contains(entry.name.as_str()) && !of(&entry.name).is_some_and(&may_be_open));
    let fault = |entry: &Entry| Fault {
        of: sink.to_owned(),
        at: format!("{}/{}", folder.url(), entry.name),
        epoch: of(&entry.name).map(|id| id.epoch),
        expected: "nothing staged but what an uncommitted epoch names".to_owned(),
        found: "such a file".to_owned(),
    };
    left_over.map(fault).collect()
}

/// Tells whether an epoch may be open, or was when its process died: no record of its own process has passed it, and
/// no later process has written more than the record of its start, which comes before it sweeps. What `outlives` its
/// epoch is recorded by a later one of the process.
pub fn may_be_open(view: &View<'_>, sink: &str, id: EpochId, outlives: bool) -> bool {
    let passed = view.records.read.iter().any(|record| {
        let own = !outlives
            && record.generation == id.generation
            && record.epoch >= id.epoch
            && record.sinks.contains_key(sink);
        // A compaction sweeps the sink whose files it merges, and no other.
        let sweeps = record.sinks.contains_key(sink) || !record.tables.is_empty();
        let later = record.generation > id.generation && sweeps;
        own || later
    });
    !passed
}
