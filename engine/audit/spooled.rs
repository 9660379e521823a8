//! Rows that wait for a larger file: each file of the spool is there until the epoch that writes its rows is committed,
//! and each is written once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nexus_operators::Result;
use nexus_operators::sink::parquet::audit::{spent_files, spooled_by};
use nexus_operators::sink::{Prepared, SpooledFile};
use nexus_operators::store::{Entry, Store};

use super::{Fault, View, staged};
use crate::state::epoch_file;
use crate::state::record::CommitRecord;

/// The files of a sink's spool, as the records have them.
#[derive(Default)]
pub struct Spooled {
    /// Those that wait, oldest first, and the epoch that has put them there.
    waiting: VecDeque<(u64, SpooledFile)>,
    /// Those whose rows a record has taken, and its epoch.
    spent: BTreeMap<String, u64>,
}

/// What an epoch has put into the spool and taken out of it.
#[derive(Debug, Clone, Copy)]
pub struct FromSpool {
    /// Rows of the epoch that wait.
    pub put: u64,
    /// Rows that the epoch's files hold and that have waited; nothing if it is not known.
    pub taken: Option<u64>,
}

impl Spooled {
    /// Tells whether rows have ever waited.
    pub fn is_rolled(&self) -> bool {
        !self.waiting.is_empty() || !self.spent.is_empty()
    }

    /// Follows a record, and checks that it takes what waits, the oldest first.
    pub fn take(
        &mut self,
        view: &View<'_>,
        sink: &str,
        record: &CommitRecord,
        prepared: &Prepared,
        faults: &mut Vec<Fault>,
    ) -> FromSpool {
        self.waiting.extend(prepared.spooled.iter().map(|file| (record.epoch, file.clone())));
        let put = prepared.spooled.iter().map(|file| file.rows).sum();
        // A handle that cannot be read is a fault elsewhere.
        let spent = prepared.handle.as_ref().and_then(|handle| spent_files(handle).ok()).unwrap_or_default();
        let mut taken = Some(0_u64);
        let mut expected = Vec::new();
        for name in &spent {
            if spooled_by(name).is_some_and(|id| id.epoch <= view.records.base()) {
                taken = None;
                expected.push(name.clone());
            } else if let Some((_, file)) = self.waiting.pop_front() {
                taken = taken.map(|rows| rows.saturating_add(file.rows));
                expected.push(file.name);
            }
        }
        if expected != spent || prepared.rolled != spent.len() as u64 {
            faults.push(Fault {
                of: sink.to_owned(),
                at: format!("{}/{}", view.store.folder().url(), epoch_file(record.epoch)),
                epoch: Some(record.epoch),
                expected: format!("{} files of the spool that wait, the oldest first", prepared.rolled),
                found: format!("{} files that it names", spent.len()),
            });
        }
        self.spent.extend(spent.into_iter().map(|name| (name, record.epoch)));
        FromSpool { put, taken }
    }

    /// Compares the spool with what the records say; gives the rows that wait.
    pub async fn check(
        &self,
        view: &View<'_>,
        sink: &str,
        (spool, listed): (&Store, &[Entry]),
        faults: &mut Vec<Fault>,
    ) -> Result<u64> {
        let mut rows = 0;
        for (epoch, file) in &self.waiting {
            let size = match listed.iter().find(|entry| entry.name == file.name) {
                Some(entry) => Some(entry.size),
                // It may have been spooled since the folder was listed.
                None => spool.size(&file.name).await?,
            };
            if size == Some(file.bytes) {
                rows += file.rows;
                continue;
            }
            // A running process may have written its rows since the records were read.
            if size.is_none() && !view.store.records_from(view.records.last_epoch() + 1).await?.is_empty() {
                continue;
            }
            faults.push(Fault {
                of: sink.to_owned(),
                at: format!("{}/{}", spool.url(), file.name),
                epoch: Some(*epoch),
                expected: format!("{} bytes with {} rows, which wait for a larger file", file.bytes, file.rows),
                found: size.map_or_else(|| "no such file".to_owned(), |size| format!("{size} bytes")),
            });
        }
        let unspent =
            self.spent.iter().filter(|(_, epoch)| !view.is_noted(sink, **epoch)).map(|(name, _)| name.as_str());
        let kept: BTreeSet<&str> = self.waiting.iter().map(|(_, file)| file.name.as_str()).chain(unspent).collect();
        let of_open = |id| staged::may_be_open(view, sink, id, false);
        faults.extend(staged::check(sink, spool, listed, spooled_by, of_open, &kept));
        Ok(rows)
    }
}
