//! Postgres: `nexus.commits` holds the epochs that the records name, with their rows, and of those that were refused
//! each is either in the quarantine, as a later record says, or waits for it in `nexus.refused`.

use std::collections::{BTreeMap, BTreeSet};

use nexus_operators::Result;
use nexus_operators::secret::SecretRef;
use nexus_operators::sink::RefusedUpto;
use nexus_operators::sink::postgres::audit::{landed, oldest_remembered, spooled, spooled_by};

use super::staged::{self, Spools};
use super::{Fault, SinkFindings, View};
use crate::plan::Plan;

/// Gives where the URL of a table's database is kept, if the file names one.
pub fn secret(plan: &Plan, table: &str) -> Option<SecretRef> {
    let spec = plan.spec_of(plan.table(table)?)?.postgres.as_ref()?;
    plan.loaded.database(spec)
}

/// Gives how many refused rows of each epoch are in the quarantine, as the records say, and up to where.
fn taken_over(view: &View<'_>, sink: &str) -> (BTreeMap<u64, u64>, RefusedUpto) {
    let (mut taken, mut upto) = (BTreeMap::<u64, u64>::new(), RefusedUpto::default());
    for (epoch, rows) in view.records.read.iter().filter_map(|record| record.refused.get(sink)).flatten() {
        *taken.entry(*epoch).or_default() += rows;
        upto.pass(*epoch, *rows);
    }
    (taken, upto)
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
    let (taken, upto) = taken_over(view, sink);
    let landed = landed(secret, view.pipeline(), table, &state, upto);
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
                findings.rows += found.rows.saturating_sub(found.refused);
                findings.refused += found.refused;
                let quarantined = taken.get(&record.epoch).copied().unwrap_or(0);
                if found.refused != quarantined + found.waiting {
                    let expected = format!("{} refused rows, in the quarantine or nexus.refused", found.refused);
                    let here = format!("{quarantined} in the quarantine, {} in nexus.refused", found.waiting);
                    fault(record.epoch, expected, here);
                }
                // The spool is cleared after the transaction, and the note is written after that.
                if !view.is_noted(sink, record.epoch) {
                    waiting.extend(spooled(handle)?.all_files().cloned());
                }
            }
            Some(found) => {
                fault(record.epoch, expected, format!("{} rows by generation {}", found.rows, found.generation));
            }
            None if record.epoch < oldest => findings.rows += prepared.rows,
            None if view.is_noted(sink, record.epoch) => fault(record.epoch, expected, "no such epoch".to_owned()),
            None => {
                findings.uncommitted += 1;
                for name in spooled(handle)?.all_files().cloned() {
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
        let may_be_open = |id| staged::may_be_open(view, sink, id, false);
        faults.extend(staged::check(sink, folder, files, spooled_by, may_be_open, &waiting));
    }
    Ok((findings, faults))
}
