//! Starting a job: claim, restore, redo, sweep, open.

use std::collections::BTreeMap;
use std::sync::Arc;

use nexus_operators::clock::SharedClock;
use nexus_operators::position::Cut;
use nexus_operators::quarantine::read::Held;
use nexus_operators::sink::Handle;
use nexus_operators::source::SourceEvent;
use nexus_operators::store::{Encryption, Store};
use nexus_operators::{Error, Result, fail};
use tokio::sync::watch;
use tokio::time::Instant;

use super::coordinator::{Ledger, OpenEpoch};
use super::progress::Progress;
use super::redrive::{self, Portion, Redrive};
use super::wiring::{Restored, wire};
use super::{RunSettings, Wired};
use crate::plan::Plan;
use crate::plan::table::TablePlan;
use crate::spec::model;
use crate::state::record::CommitRecord;
use crate::state::snapshot::Snapshots;
use crate::state::{State, StateStore};

/// Starts a job; gives nothing if there is nothing to do.
pub async fn start(
    plan: Plan,
    settings: RunSettings,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Option<Wired>> {
    let store = state_store(&plan, settings.clock.clone()).await?;
    let nothing = match &settings.redrive {
        None => Box::pin(nothing_to_do(&plan, &settings, &store)).await?,
        Some(redrive) => Box::pin(nothing_to_redrive(&plan, &store, redrive)).await?,
    };
    if nothing {
        return Ok(None);
    }
    let encryption = Store::accepted_encryption(&plan.loaded.state_root(), &encryption(&plan)).await?;
    let store = open_state(&plan, settings.clock.clone(), &encryption).await?;
    fail::point("before_claim")?;
    let (generation, state) = store.claim().await?;
    fail::point("after_claim")?;
    check_tables(&plan, &state)?;
    let (committed, undone) = undone(&store, &state).await?;
    fail::point("before_state_sweep")?;
    store.folder().remove_half_written().await?;
    sweep_snapshots(&store, &state).await?;
    fail::point("after_state_sweep")?;
    let portion = match &settings.redrive {
        None => None,
        // What an epoch has quarantined may go only once all sinks have committed that epoch for good: this run sees to
        // it, and the next one takes the files.
        Some(_) if !undone.is_empty() => Some(Portion::default()),
        Some(redrive) => {
            let taken = redrive::take(&plan, &store, &encryption, redrive).await?;
            Some(Portion { taken, ends: !Box::pin(has_input(&plan, &settings, &state)).await? })
        }
    };
    let ledger = Ledger::new(committed, undone.iter().map(open_epoch).collect());
    let restored = Restored { store, encryption, state, generation, ledger, undone };
    Box::pin(wire(plan, settings, restored, portion, progress, stop)).await.map(Some)
}

/// Opens the state store of a pipeline.
pub async fn state_store(plan: &Plan, clock: SharedClock) -> Result<StateStore> {
    open_state(plan, clock, &encryption(plan)).await
}

async fn open_state(plan: &Plan, clock: SharedClock, encryption: &Encryption) -> Result<StateStore> {
    let folder = Store::open(&plan.loaded.state_root(), encryption).await?;
    Ok(StateStore::new(folder, plan.loaded.spec.name.clone(), clock))
}

/// Gives how objects on S3 are encrypted.
pub fn encryption(plan: &Plan) -> Encryption {
    match &plan.loaded.spec.encryption {
        model::Encryption::SseS3 => Encryption::SseS3,
        model::Encryption::Kms(key) => Encryption::Kms(key.clone()),
        model::Encryption::BucketDefault => Encryption::BucketDefault,
    }
}

/// Counts what the quarantine holds, by source and table.
pub async fn held(plan: &Plan, redrive: &Redrive, clock: SharedClock) -> Result<BTreeMap<String, Held>> {
    let store = state_store(plan, clock).await?;
    let found = redrive::survey(plan, &store, &encryption(plan), redrive, u64::MAX).await?;
    Ok(found.into_iter().map(|(of, quarantine)| (of, quarantine.held)).collect())
}

/// Tells whether every source ends by itself and has nothing new, and every sink has committed all.
///
/// Then nothing is claimed and no file changes.
async fn nothing_to_do(plan: &Plan, settings: &RunSettings, store: &StateStore) -> Result<bool> {
    if !settings.sources.is_empty() || !settings.sinks.is_empty() {
        return Ok(false);
    }
    let state = store.load().await?;
    if state.epoch == 0 {
        return Ok(false);
    }
    check_tables(plan, &state)?;
    let (_, undone) = undone(store, &state).await?;
    Ok(undone.is_empty() && !has_input(plan, settings, &state).await?)
}

/// Tells whether no quarantined row can be sent again, and every sink has committed all.
async fn nothing_to_redrive(plan: &Plan, store: &StateStore, redrive: &Redrive) -> Result<bool> {
    let state = store.load().await?;
    if state.epoch == 0 {
        return Ok(true);
    }
    check_tables(plan, &state)?;
    let (_, undone) = undone(store, &state).await?;
    Ok(undone.is_empty() && !redrive::has_any(plan, store, &encryption(plan), redrive).await?)
}

/// Tells whether there is, or may be, something to read.
async fn has_input(plan: &Plan, settings: &RunSettings, state: &State) -> Result<bool> {
    for name in plan.opened_sources() {
        let source = plan.sources.get(&name).ok_or_else(|| Error::internal(format!("source {name} is not planned")))?;
        if settings.sources.contains_key(&name) {
            return Ok(true);
        }
        let mut operator = source.operator(&plan.loaded, &settings.clock)?;
        if !operator.bounded() {
            return Ok(true);
        }
        operator.open(state.positions.get(&name).unwrap_or(&Cut::default())).await?;
        loop {
            match operator.next().await? {
                SourceEvent::End => break,
                SourceEvent::Idle => {}
                SourceEvent::Chunk(_) | SourceEvent::Reject { .. } => return Ok(true),
            }
        }
        // A file may have nothing in it and still be new: that it was looked at is worth a record.
        if !operator.cut().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses to use state that belongs to another query.
fn check_tables(plan: &Plan, state: &State) -> Result<()> {
    for (name, known) in &state.tables {
        if known.windows.is_empty() && known.keys.is_empty() {
            continue;
        }
        let now = plan.table(name).filter(|table| table.is_stateful()).map(TablePlan::fingerprint);
        if now.as_deref() == Some(known.query.as_str()) {
            continue;
        }
        let now = now.unwrap_or_else(|| "no table with state".to_owned());
        return Err(Error::config(format!(
            "table {name} has state (open windows or remembered keys) of another query, which cannot be used.\n  the \
             state is of: {}\n  the file says: {now}\nrun the old file once with `--until-idle` to close its windows, \
             give the table another name, or begin anew with another `state` and lake",
            known.query
        )));
    }
    Ok(())
}

/// Gives up to which epoch each sink has committed, and the recorded epochs that some sink has not.
async fn undone(store: &StateStore, state: &State) -> Result<(BTreeMap<String, u64>, Vec<CommitRecord>)> {
    let committed = store.committed().await?;
    let mut undone = Vec::new();
    let mut epoch = state.epoch;
    // From the newest record back to the first that needs nothing: a sink has committed all epochs before one.
    while epoch > 0 {
        let Some(record) = store.epoch(epoch).await? else { break };
        let open = |sink: &String| committed.get(sink).copied().unwrap_or(0) < epoch;
        let owes = record.sinks.iter().any(|(sink, prepared)| open(sink) && prepared.handle.is_some());
        let all_noted = !record.sinks.is_empty() && record.sinks.keys().all(|sink| !open(sink));
        if owes && !fail::mutated("no_redo") {
            undone.push(record);
        } else if all_noted {
            break;
        }
        epoch -= 1;
    }
    undone.reverse();
    Ok((committed, undone))
}

fn open_epoch(record: &CommitRecord) -> OpenEpoch {
    OpenEpoch {
        epoch: record.epoch,
        closed_at: Instant::now(),
        cuts: BTreeMap::new(),
        bytes: record.sinks.iter().map(|(name, prepared)| (name.clone(), prepared.bytes)).collect(),
    }
}

/// Removes snapshots that the state does not name.
async fn sweep_snapshots(store: &StateStore, state: &State) -> Result<()> {
    for (name, table) in &state.tables {
        for (kind, files) in [("windows", &table.windows), ("keys", &table.keys)] {
            Snapshots::sweep(&store.folder().below(&format!("snapshots/{name}/{kind}")), files).await?;
        }
    }
    Ok(())
}

/// Gives the handles that a sink has yet to commit.
pub fn handles_of(undone: &[CommitRecord], sink: &str) -> Vec<Handle> {
    let prepared = undone.iter().filter_map(|record| record.sinks.get(sink));
    prepared.filter_map(|prepared| prepared.handle.clone()).collect()
}
