//! What is staged: only what an epoch names that is not yet committed, what an open epoch has written, or what a process has
//! left that died or was overtaken.

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

/// Tells whether an epoch may be open, or was when its process died or was overtaken: no record of its own process has
/// passed it. A process that stood still may stage files long after the one that overtook it has swept; the next start
/// takes them away. What `outlives` its epoch is recorded by a later one of the process.
pub fn may_be_open(view: &View<'_>, sink: &str, id: EpochId, outlives: bool) -> bool {
    let mut own = view.records.read.iter().filter(|record| record.generation == id.generation);
    outlives || !own.any(|record| record.epoch >= id.epoch && record.sinks.contains_key(sink))
}
