//! Sending quarantined rows again, after what was wrong has been corrected.
//!
//! A redrive is a run like any other, with a generation, an epoch and a commit record of its own. In place of its
//! sources it reads files of the quarantine: records that did not decode go through their decoder, rows that broke a
//! rule go to the rules of their table. Files are taken whole, and the commit of the epoch that sends their rows removes
//! them; what fails again lies in a new one. So each row is either in the quarantine or was sent on, whenever the
//! process dies.
//!
//! Event time stands still: rows that are sent again say nothing of how far their source has come.

mod records;

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use nexus_operators::quarantine::Quarantined;
use nexus_operators::quarantine::read::{Batches, Held, count, part, rows};
use nexus_operators::sink::parquet::RemovedFile;
use nexus_operators::sink::parquet::audit::TableFolder;
use nexus_operators::store::{Encryption, Store};
use nexus_operators::{Error, Result};

use super::place::parquet_place;
use crate::plan::Plan;
use crate::plan::table::TablePlan;
use crate::state::StateStore;
use crate::state::record::QUARANTINE;
pub use records::RecordStage;

/// Bytes of files that one run takes, and one file more. They are compressed, some ten to one, and all their rows are of one epoch, whose
/// new state is in memory.
const PORTION_BYTES: u64 = 16 << 20;

/// What is to be sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redrive {
    /// Only what this source or table has quarantined.
    pub of: Option<String>,
    /// Only what was quarantined up to this epoch: rows that fail again are quarantined once more.
    pub upto: u64,
}

/// What the quarantine of a source or table holds.
#[derive(Debug)]
pub struct Quarantine {
    /// How many rows.
    pub held: Held,
    folder: Store,
    /// The files that have rows to send again.
    files: Vec<RemovedFile>,
}

/// What one run sends again.
#[derive(Debug, Default)]
pub struct Portion {
    /// The files, by source or table.
    pub taken: BTreeMap<String, Taken>,
    /// Whether the input has ended, so that windows which these rows open close.
    pub ends: bool,
}

/// Files whose rows are sent again.
#[derive(Debug)]
pub struct Taken {
    folder: Store,
    files: Vec<RemovedFile>,
}

/// Reads files whose rows are sent again.
pub struct Rows<'a> {
    folder: &'a Store,
    left: std::slice::Iter<'a, RemovedFile>,
    open: Option<(&'a str, Batches)>,
}

/// Finds what the quarantine of each source and table holds, until the files that have rows to send again are so large.
pub async fn survey(
    plan: &Plan,
    store: &StateStore,
    encryption: &Encryption,
    redrive: &Redrive,
    bytes_max: u64,
) -> Result<BTreeMap<String, Quarantine>> {
    let mut found = BTreeMap::new();
    let mut bytes = 0_u64;
    let places = plan.opened_sources().into_iter().chain(plan.tables.iter().map(TablePlan::name));
    for of in places.filter(|of| redrive.of.as_ref().is_none_or(|wanted| wanted == of)) {
        let folder = parquet_place(plan, store, encryption, &format!("{of}/{QUARANTINE}")).await?.table;
        let (mut held, mut files) = (Held::default(), Vec::new());
        for entry in folder.list("").await? {
            let epoch = TableFolder::written_by(&plan.loaded.spec.name, &entry.name).map(|id| id.epoch);
            if bytes >= bytes_max || epoch.is_none_or(|epoch| epoch > redrive.upto) {
                continue;
            }
            let here = count(open(&folder, &entry.name).await?).map_err(|e| named(&folder, &entry.name, e))?;
            held.rows += here.rows;
            held.redrivable += here.redrivable;
            if here.redrivable > 0 {
                bytes = bytes.saturating_add(entry.size);
                files.push(RemovedFile { path: entry.name, rows: here.rows });
            }
        }
        if held.rows > 0 {
            found.insert(of, Quarantine { held, folder, files });
        }
    }
    Ok(found)
}

/// Takes as many files as one epoch can hold: at least one, if there is any.
pub async fn take(
    plan: &Plan,
    store: &StateStore,
    encryption: &Encryption,
    redrive: &Redrive,
) -> Result<BTreeMap<String, Taken>> {
    let found = survey(plan, store, encryption, redrive, PORTION_BYTES).await?;
    let found = found.into_iter().filter(|(_, quarantine)| !quarantine.files.is_empty());
    Ok(found.map(|(of, Quarantine { folder, files, .. })| (of, Taken { folder, files })).collect())
}

/// Tells whether there is any row to send again.
pub async fn has_any(plan: &Plan, store: &StateStore, encryption: &Encryption, redrive: &Redrive) -> Result<bool> {
    let found = survey(plan, store, encryption, redrive, 1).await?;
    Ok(found.values().any(|quarantine| !quarantine.files.is_empty()))
}

impl Taken {
    /// Gives the files, which the commit removes.
    pub fn files(&self) -> &[RemovedFile] {
        &self.files
    }

    /// Reads the files.
    pub fn rows(&self) -> Rows<'_> {
        Rows { folder: &self.folder, left: self.files.iter(), open: None }
    }
}

impl Rows<'_> {
    /// Gives the next rows: those to be sent again, and those that cannot be and go back as they are.
    pub async fn next(&mut self) -> Result<Option<(Vec<Quarantined>, RecordBatch)>> {
        loop {
            if let Some((path, batches)) = &mut self.open
                && let Some(batch) = batches.next()
            {
                let (again, back) = part(&batch.map_err(|e| named(self.folder, path, e))?)?;
                return Ok(Some((rows(&again)?, back)));
            }
            let Some(RemovedFile { path, .. }) = self.left.next() else { return Ok(None) };
            let batches = Batches::of(open(self.folder, path).await?).map_err(|e| named(self.folder, path, e))?;
            self.open = Some((path, batches));
        }
    }
}

async fn open(folder: &Store, path: &str) -> Result<std::fs::File> {
    let gone = || Error::unavailable(format!("could not read {}/{path}: it was listed, and is gone", folder.url()));
    folder.open_file(path).await?.ok_or_else(gone)
}

fn named(folder: &Store, path: &str, error: Error) -> Error {
    error.while_doing(format!("could not read {}/{path}", folder.url()))
}
