//! Reading a table while its files are put in the place of others: each row once.
//!
//! A compaction records which files stand for which, then puts the new ones there, and then removes the old ones. Until it
//! is noted that it has, a listing may show both, or some of each. So what is listed is held against the record: once all
//! new files of a replacement are there, the old ones do not count; before, the new ones do not. Only the newest
//! compaction of a table can be under way, since each waits for the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nexus_operators::sink::parquet::audit::{Replacement, replacements};
use nexus_operators::store::{Entry, Store};
use nexus_operators::{Error, Result};
use tokio::sync::Mutex;

use crate::state::schema::TableSchema;
use crate::state::{State, StateStore, fold};

/// How often a folder is listed because its files are being replaced while one looks.
const LISTINGS_MAX: usize = 10;

/// What the records say, as far as they have been read.
#[derive(Debug)]
pub struct Known {
    store: StateStore,
    /// Shared by the tables of a query, which are listed one after the other. Not held while a folder is listed.
    state: Mutex<State>,
}

/// Tells which files of a table are to be read.
#[derive(Debug)]
pub struct Replacing {
    known: Arc<Known>,
    sink: String,
}

impl Known {
    /// Reads the state.
    pub async fn read(store: StateStore) -> Result<Self> {
        let state = store.load().await?;
        Ok(Self { store, state: Mutex::new(state) })
    }

    /// Gives the newest columns of a table; nothing if none are recorded.
    pub async fn schema_of(&self, table: &str) -> Option<TableSchema> {
        self.state.lock().await.schema_of(table).cloned()
    }

    /// Reads the records that were written since; gives the newest epoch in which a sink has replaced files.
    async fn replaced_in(&self, sink: &str) -> Result<Option<u64>> {
        let mut state = self.state.lock().await;
        loop {
            let records = self.store.records_from(state.epoch + 1).await?;
            if records.is_empty() {
                return Ok(state.rewritten.get(sink).copied());
            }
            records.iter().for_each(|record| fold(&mut state, record));
        }
    }

    /// Gives what a sink replaces in an epoch.
    async fn replacements(&self, sink: &str, epoch: u64) -> Result<Vec<Replacement>> {
        let records = self.store.records_from(epoch).await?;
        let prepared = records.first().and_then(|record| record.sinks.get(sink));
        prepared.and_then(|prepared| prepared.handle.as_ref()).map_or_else(|| Ok(Vec::new()), replacements)
    }
}

impl Replacing {
    /// Follows the replacements of a sink.
    pub fn new(known: Arc<Known>, sink: String) -> Self {
        Self { known, sink }
    }

    /// Lists a table's folder so that each row is in one file.
    pub async fn list(&self, folder: &Store) -> Result<Vec<Entry>> {
        let mut before = self.known.replaced_in(&self.sink).await?;
        for _ in 0..LISTINGS_MAX {
            // Before the listing: what is done by now is seen whole.
            let noted = match before {
                Some(_) => self.known.store.committed().await?,
                None => BTreeMap::new(),
            };
            let files = folder.list("").await?;
            let after = self.known.replaced_in(&self.sink).await?;
            if before != after {
                before = after;
                continue;
            }
            let Some(epoch) = after.filter(|epoch| noted.get(&self.sink).is_none_or(|noted| noted < epoch)) else {
                return Ok(files);
            };
            if let Some(files) = each_once(files, &self.known.replacements(&self.sink, epoch).await?) {
                return Ok(files);
            }
        }
        let url = folder.url();
        Err(Error::unavailable(format!("could not list {url}: its files are replaced all the time; try again")))
    }
}

/// Leaves out files whose rows are in others; gives nothing if the listing has neither all new nor all old files.
fn each_once(files: Vec<Entry>, replacements: &[Replacement]) -> Option<Vec<Entry>> {
    let listed: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let mut hidden: BTreeSet<String> = BTreeSet::new();
    for Replacement { files, replaces } in replacements {
        let all = |paths: &[String]| paths.iter().all(|path| listed.contains(path.as_str()));
        if all(files) {
            hidden.extend(replaces.iter().cloned());
        } else if all(replaces) {
            hidden.extend(files.iter().cloned());
        } else {
            return None;
        }
    }
    Some(files.into_iter().filter(|file| !hidden.contains(&file.name)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_in_one_file_at_every_step() {
        let replacement = Replacement { files: vec!["new".into()], replaces: vec!["a".into(), "b".into()] };
        let shown = |names: &[&str]| {
            let files = names.iter().map(|name| Entry { name: (*name).to_owned(), size: 1 }).collect();
            let shown = each_once(files, std::slice::from_ref(&replacement))?;
            Some(shown.into_iter().map(|file| file.name).collect::<Vec<_>>())
        };
        let texts = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(shown(&["a", "b", "other"]), texts(&["a", "b", "other"]));
        assert_eq!(shown(&["a", "b", "new"]), texts(&["new"]));
        assert_eq!(shown(&["b", "new"]), texts(&["new"]));
        assert_eq!(shown(&["new", "other"]), texts(&["new", "other"]));
        // The one file was looked at before the other was there.
        assert_eq!(shown(&["b"]), None);
    }
}
