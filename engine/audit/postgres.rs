//! Postgres: `nexus.commits` holds the epochs that the records name, with their rows.

use std::collections::BTreeSet;

use nexus_operators::Result;
use nexus_operators::secret::SecretRef;
use nexus_operators::sink::postgres::audit::{landed, oldest_remembered, spooled, spooled_by};

use super::staged::{self, Spools};
use super::{Fault, SinkFindings, View};
use crate::plan::Plan;

/// Gives where the URL of a table's database is kept, if the file names one.
pub fn secret(plan: &Plan, table: &str) -> Option<SecretRef> {
    let spec = plan.spec_of(plan.table(table)?)?.postgres.as_ref()?;
    plan.loaded.secret_ref(&spec.url)
}

/// Compares what has landed with what the records say.
pub async fn check(
    view: &View<'_>,
    sink: &str,
    secret: &SecretRef,
    spools: &Spools,
) -> Result<(SinkFindings, Vec<Fault>)> {
    let table = sink.rsplit_once('/').map_or(sink, |(table, _)| table);
    let state = view.store.id().await?;
    let landed = landed(secret, view.pipeline(), table, &state);
    let mut landed = landed.await.map_err(|e| e.while_doing(format!("could not audit {sink}")))?;
    let oldest = landed.last_key_value().map_or(0, |(newest, _)| oldest_remembered(*newest));
    let mut findings = SinkFindings::default();
    let mut faults = Vec::new();
    let mut fault = |epoch: u64, expected: String, found: String| {
        let at = format!("nexus.commits of {table}, state {state}");
        faults.push(Fault { of: sink.to_owned(), at, epoch: Some(epoch), expected, found });
    };
    let mut waiting = BTreeSet::new();
    for (record, prepared) in view.prepared(sink) {
        let Some(handle) = &prepared.handle else { continue };
        findings.epochs += 1;
        let expected = format!("{} rows by generation {}", prepared.rows, record.generation);
        match landed.remove(&record.epoch) {
            Some(found) if (found.rows, found.generation) == (prepared.rows, record.generation) => {
                findings.rows += found.rows;
                // The spool is cleared after the transaction, and the note is written after that.
                if !view.is_noted(sink, record.epoch) {
                    waiting.extend(spooled(handle)?.files);
                }
            }
            Some(found) => {
                fault(record.epoch, expected, format!("{} rows by generation {}", found.rows, found.generation));
            }
            None if record.epoch < oldest => findings.rows += prepared.rows,
            None if view.is_noted(sink, record.epoch) => fault(record.epoch, expected, "no such epoch".to_owned()),
            None => {
                findings.uncommitted += 1;
                for name in spooled(handle)?.files {
                    if view.store.folder().size(&format!("spool/{table}/{name}")).await?.is_none() {
                        fault(record.epoch, expected.clone(), format!("neither them nor the spooled file {name}"));
                    }
                    waiting.insert(name);
                }
            }
        }
    }
    for (epoch, found) in landed.range(view.records.base() + 1..) {
        let found = format!("{} rows by generation {}", found.rows, found.generation);
        fault(*epoch, "no epoch that no record names".to_owned(), found);
    }
    if let Some((folder, files)) = spools.get(sink) {
        let waiting = waiting.iter().map(String::as_str).collect();
        faults.extend(staged::check(view, sink, folder, files, spooled_by, &waiting));
    }
    Ok((findings, faults))
}
