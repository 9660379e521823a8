//! Starting a job: claim, restore, redo, sweep, open.

use std::collections::BTreeMap;
use std::sync::Arc;

use nexus_operators::clock::SharedClock;
use nexus_operators::position::Cut;
use nexus_operators::quarantine::read::Held;
use nexus_operators::sink::Handle;
use nexus_operators::source::SourceEvent;
use nexus_operators::store::{Access, Encryption, Store};
use nexus_operators::transform::{WINDOWS, join};
use nexus_operators::{Error, Result, fail};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ledger::{Ledger, OpenEpoch};
use super::progress::Progress;
use super::redrive::{self, Portion, Redrive};
use super::wiring::{Restored, wire};
use super::{RunSettings, Wired};
use crate::plan::{Plan, changes};
use crate::spec::Loaded;
use crate::state::record::CommitRecord;
use crate::state::schema::TableSchema;
use crate::state::snapshot::Snapshots;
use crate::state::{State, StateStore};

/// Starts a job; gives nothing if there is nothing to do.
pub async fn start(
    plan: Plan,
    settings: RunSettings,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Option<Wired>> {
    let store = state_store(&plan.loaded, settings.surroundings.clock.clone()).await?;
    let nothing = match &settings.redrive {
        None => Box::pin(nothing_to_do(&plan, &settings, &store)).await?,
        Some(redrive) => Box::pin(nothing_to_redrive(&plan, &store, redrive)).await?,
    };
    if nothing {
        return Ok(None);
    }
    start_anyway(plan, settings, progress, stop).await.map(Some)
}

/// Starts a job, also if there is nothing to read: then the end of input closes its windows.
pub async fn start_anyway(
    plan: Plan,
    settings: RunSettings,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Wired> {
    let clock = settings.surroundings.clock.clone();
    let encryption = plan.loaded.accepted_encryption().await?;
    let store = open_state(&plan.loaded, clock, &encryption).await?;
    fail::point("before_claim")?;
    let (generation, state) = store.claim().await?;
    fail::point("after_claim")?;
    let schemas = schemas(&plan, &state).await?;
    let (committed, undone) = undone(&store, &state).await?;
    fail::point("before_state_sweep")?;
    store.folder().remove_half_written().await?;
    sweep_snapshots(&store, &state).await?;
    fail::point("after_state_sweep")?;
    // What is awaited holds no settings: their operators may be sent between threads, and not shared.
    let (redrive, is_handed_input) = (settings.redrive.clone(), !settings.sources.is_empty());
    let portion = match &redrive {
        None => None,
        // What an epoch has quarantined may go only once all sinks have committed that epoch for good: this run sees to
        // it, and the next one takes the files.
        Some(_) if !undone.is_empty() => Some(Portion::default()),
        Some(redrive) => {
            let taken = redrive::take(&plan, &store, &encryption, redrive).await?;
            let clock = settings.surroundings.clock.clone();
            let ends = !is_handed_input && !Box::pin(has_input(&plan, &clock, &state)).await?;
            Some(Portion { taken, ends })
        }
    };
    let ledger = Ledger::new(committed, undone.iter().map(open_epoch).collect());
    let restored = Restored { store, encryption, state, schemas, generation, ledger, undone };
    Box::pin(wire(plan, settings, restored, portion, progress, stop)).await
}

/// Opens the state store of a pipeline.
pub async fn state_store(loaded: &Loaded, clock: SharedClock) -> Result<StateStore> {
    open_state(loaded, clock, &loaded.encryption()).await
}

pub(super) async fn open_state(loaded: &Loaded, clock: SharedClock, encryption: &Encryption) -> Result<StateStore> {
    let access = Access { encryption: encryption.clone(), aws: loaded.state_aws() };
    let folder = Store::open(&loaded.state_root(), &access).await?;
    Ok(StateStore::new(folder, loaded.spec.name.clone(), clock))
}

/// Counts what the quarantine holds, by source and table.
pub async fn held(plan: &Plan, redrive: &Redrive, clock: SharedClock) -> Result<BTreeMap<String, Held>> {
    let store = state_store(&plan.loaded, clock).await?;
    let found = redrive::survey(plan, &store, &plan.loaded.encryption(), redrive, u64::MAX).await?;
    Ok(found.into_iter().map(|(of, quarantine)| (of, quarantine.held)).collect())
}

/// Tells whether every source ends by itself and has nothing new, and every sink has committed all.
///
/// Then nothing is claimed and no file changes.
async fn nothing_to_do(plan: &Plan, settings: &RunSettings, store: &StateStore) -> Result<bool> {
    let state = store.load().await?;
    if state.epoch == 0 {
        return Ok(false);
    }
    // Before the claim: a file that is refused must not stop the process that runs the old one.
    schemas(plan, &state).await?;
    if !settings.sources.is_empty() || !settings.sinks.is_empty() {
        return Ok(false);
    }
    let (_, undone) = undone(store, &state).await?;
    // What waits for a larger file is written by the end of a run.
    let is_done = undone.is_empty() && !state.waiting.values().any(|waiting| !waiting.is_empty());
    Ok(is_done && !has_input(plan, &settings.surroundings.clock, &state).await?)
}

/// Tells whether no quarantined row can be sent again, and every sink has committed all.
async fn nothing_to_redrive(plan: &Plan, store: &StateStore, redrive: &Redrive) -> Result<bool> {
    let state = store.load().await?;
    if state.epoch == 0 {
        return Ok(true);
    }
    schemas(plan, &state).await?;
    let (_, undone) = undone(store, &state).await?;
    Ok(undone.is_empty() && !redrive::has_any(plan, store, &plan.loaded.encryption(), redrive).await?)
}

/// Tells whether there is, or may be, something to read.
async fn has_input(plan: &Plan, clock: &SharedClock, state: &State) -> Result<bool> {
    for name in plan.opened_sources() {
        let source = plan.sources.get(&name).ok_or_else(|| Error::internal(format!("source {name} is not planned")))?;
        let mut operator = source.operator(&plan.loaded, clock)?;
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

/// Gives the columns of the tables that go to sinks. Refuses what stored rows or kept state do not survive.
pub(super) async fn schemas(plan: &Plan, state: &State) -> Result<BTreeMap<String, TableSchema>> {
    changes::compare(plan, state)
        .await
        .map_err(|refusals| Error::config(refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Gives up to which epoch each sink has committed, and the recorded epochs that some sink has not.
pub(super) async fn undone(store: &StateStore, state: &State) -> Result<(BTreeMap<String, u64>, Vec<CommitRecord>)> {
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
        let none = BTreeMap::new();
        // A listing costs a call: what is no join has no such folders.
        let of_join = join::PARTS.into_iter().filter(|_| !table.joins.is_empty());
        let of_query = [WINDOWS].into_iter().chain(of_join).map(|kind| (kind, table.files(kind).unwrap_or(&none)));
        for (kind, files) in of_query.chain([("keys", &table.keys)]) {
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
