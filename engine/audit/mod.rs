//! Proving that nothing is lost and nothing is doubled, from commit records and the files and rows they name.
//!
//! What is proven: the epochs follow one another without a gap, and each balances; no source has moved back; every
//! file that a record names is there with its size and its rows, and no other file is; Postgres holds the epochs that
//! it should. What is not: the pages of files are not read, only their footers.
//!
//! A pipeline may run meanwhile: what it has open is no fault. Notes of what is committed are read first, then the
//! folders are listed, then the records that were written since are read: so nothing seems to be missing that is only
//! on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nexus_operators::Result;
use nexus_operators::clock::SystemClock;
use nexus_operators::sink::Prepared;
use serde::Serialize;

mod files;
mod logged;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
mod sources;
mod spooled;
mod staged;

use crate::job::place::{PARQUET, POSTGRES, is_archive};
use crate::job::state_store;
use crate::plan::Plan;
use crate::state::StateStore;
use crate::state::record::{ARCHIVE, CommitRecord, ERRORS, QUARANTINE, SourceCounts};
use records::Records;

/// What an audit is told beside the pipeline.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditSettings {
    /// Do not ask Postgres.
    pub skip_postgres: bool,
}

/// What an audit has found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Audit {
    /// The pipeline's name.
    pub pipeline: String,
    /// Whether there is no fault.
    pub whole: bool,
    /// The oldest epoch that has a record; 0 if there is none.
    pub first_epoch: u64,
    /// The newest epoch that has a record; 0 if there is none.
    pub last_epoch: u64,
    /// What was found of each source.
    pub sources: BTreeMap<String, SourceFindings>,
    /// What was found of each sink, by `<table>/<kind>`.
    pub sinks: BTreeMap<String, SinkFindings>,
    /// Everything that is not as it should be.
    pub faults: Vec<Fault>,
}

/// What an audit has found of a source.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourceFindings {
    /// Epochs in which it took part.
    pub epochs: u64,
    /// Partitions that it has read of.
    pub partitions: u64,
    /// What the records count.
    #[serde(flatten)]
    pub counts: SourceCounts,
}

/// What an audit has found of a sink.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SinkFindings {
    /// Epochs in which it was given rows.
    pub epochs: u64,
    /// Files that are there, each with the rows that its record tells.
    pub files: u64,
    /// Rows that were found.
    pub rows: u64,
    /// Rows that the service has refused, and that are in the quarantine, or on their way there.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// Rows of files that are gone, because a redrive has sent them again.
    #[serde(skip_serializing_if = "is_zero")]
    pub redriven: u64,
    /// Rows that are recorded and wait for a larger file, which a later epoch writes.
    #[serde(skip_serializing_if = "is_zero")]
    pub waiting: u64,
    /// Rows of files that another writer has taken out of a Delta table, such as one that merges small files.
    #[serde(skip_serializing_if = "is_zero")]
    pub taken_out: u64,
    /// Epochs that are recorded and not yet committed: the next start, or the running one, goes on with them.
    pub uncommitted: u64,
    /// Why it was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The source, the sink, or `records`.
    pub of: String,
    /// The file, the partition or the record.
    pub at: String,
    /// The epoch, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What should be.
    pub expected: String,
    /// What is.
    pub found: String,
}

/// Audits a pipeline.
///
/// # Errors
///
/// `Unavailable` and `Config` where the state store, the lake or Postgres cannot be read. What can be read and is wrong
/// is a [`Fault`].
pub async fn audit(plan: &Plan, settings: AuditSettings) -> Result<Audit> {
    let store = state_store(&plan.loaded, Arc::new(SystemClock)).await?;
    let committed = store.committed().await?;
    let mut records = Records::read(&store).await?;
    let names = sinks(plan, &records);
    let mut listed = BTreeMap::new();
    for name in names.iter().filter(|name| has_files(plan, name)) {
        listed.insert(name.clone(), files::list(plan, &store, name).await?);
    }
    let spools = staged::list_spools(&store, &names).await?;
    records.read_on(&store).await?;

    let mut audit = Audit {
        pipeline: plan.loaded.spec.name.clone(),
        first_epoch: records.read.first().map_or(0, |record| record.epoch),
        last_epoch: records.last_epoch(),
        ..Audit::default()
    };
    audit.faults = records::check(&plan.loaded.spec.name, &store, &records, &committed).await?;
    sources::check(&records.read, &mut audit);
    let view = View {
        #[cfg(feature = "postgres")]
        plan,
        store: &store,
        records: &records,
        committed: &committed,
    };
    for name in &sinks(plan, &records) {
        let (findings, mut faults) = match listed.get(name) {
            Some(listed) => files::check(&view, name, listed).await?,
            None => other_sink(&view, name, &spools, settings).await?,
        };
        audit.sinks.insert(name.clone(), findings);
        audit.faults.append(&mut faults);
    }
    audit.whole = audit.faults.is_empty();
    Ok(audit)
}

/// What the checks of sinks look at.
struct View<'a> {
    #[cfg(feature = "postgres")]
    plan: &'a Plan,
    store: &'a StateStore,
    records: &'a Records,
    /// Up to which epoch each sink has committed, as far as it was noted.
    committed: &'a BTreeMap<String, u64>,
}

impl View<'_> {
    #[cfg(feature = "postgres")]
    fn pipeline(&self) -> &str {
        &self.plan.loaded.spec.name
    }

    /// Gives what a sink has prepared, by record.
    fn prepared<'a>(&'a self, sink: &'a str) -> impl Iterator<Item = (&'a CommitRecord, &'a Prepared)> {
        self.records.read.iter().filter_map(move |record| Some((record, record.sinks.get(sink)?)))
    }

    /// Tells whether it was noted that a sink has committed an epoch.
    fn is_noted(&self, sink: &str, epoch: u64) -> bool {
        self.committed.get(sink).is_some_and(|noted| epoch <= *noted)
    }
}

/// Gives all sinks: those of the file, and those that records name.
fn sinks(plan: &Plan, records: &Records) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = records.read.iter().flat_map(|record| record.sinks.keys().cloned()).collect();
    for table in &plan.tables {
        let Some(spec) = plan.spec_of(table) else { continue };
        if spec.store {
            names.insert(format!("{}/{PARQUET}", table.name()));
        }
        if spec.postgres.is_some() {
            names.insert(format!("{}/{POSTGRES}", table.name()));
        }
        names.insert(format!("{}/{QUARANTINE}", table.name()));
    }
    for source in plan.opened_sources() {
        if plan.loaded.archive_root(&source).is_some() {
            names.extend([ARCHIVE, ERRORS].map(|kind| format!("{source}/{kind}")));
        }
        names.insert(format!("{source}/{QUARANTINE}"));
    }
    names
}

/// Tells whether a sink writes files in folders that the file tells of.
fn has_files(plan: &Plan, sink: &str) -> bool {
    sink.rsplit_once('/').is_some_and(|(of, kind)| {
        kind == PARQUET || kind == QUARANTINE || is_archive(sink) && plan.loaded.archive_root(of).is_some()
    })
}

/// Looks at a sink that is not one of Parquet files.
async fn other_sink(
    view: &View<'_>,
    name: &str,
    spools: &staged::Spools,
    settings: AuditSettings,
) -> Result<(SinkFindings, Vec<Fault>)> {
    let with_rows = view.prepared(name).filter(|(_, prepared)| prepared.handle.is_some()).count() as u64;
    let left_out = |why: &str| SinkFindings { epochs: with_rows, left_out: Some(why.to_owned()), ..Default::default() };
    match name.rsplit_once('/') {
        Some((_, POSTGRES)) if settings.skip_postgres => Ok((left_out("--skip-postgres"), Vec::new())),
        #[cfg(feature = "postgres")]
        Some((table, POSTGRES)) => match postgres::secret(view.plan, table) {
            Some(secret) => postgres::check(view, name, &secret, spools).await,
            None => Ok((left_out("the file names no database for it any more"), Vec::new())),
        },
        _ if is_archive(name) => Ok((left_out("the file has no archive for it any more"), Vec::new())),
        _ => {
            let _ = spools;
            Ok((left_out("it belongs to an embedding service, or this build lacks it"), Vec::new()))
        }
    }
}
