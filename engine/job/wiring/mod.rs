//! Wiring a job: from the plan to stages and channels, in the direction that rows flow.

mod sinks;

use sinks::SinkSettings;
#[cfg(feature = "postgres")]
pub use sinks::postgres_sink;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nexus_operators::clock::SharedClock;
use nexus_operators::decode::Discovery;
use nexus_operators::position::Cut;
use nexus_operators::sink::Prepared;
use nexus_operators::store::Encryption;
use nexus_operators::transform::WINDOWS;
use nexus_operators::{Error, Result, fail};
use tokio::sync::{Notify, mpsc, watch};

use crate::job::budget::{Budget, StateMemory};
use crate::job::channel::{Item, Receiver, Sender, Weigh, channel};
use crate::job::coordinator::{CommitQueue, Coordinator, Report, Timing};
use crate::job::decode::{DecodeStage, Watermark};
use crate::job::errors::{Budgets, Reasons};
use crate::job::ledger::Ledger;
use crate::job::progress::Progress;
use crate::job::redrive::{Portion, RecordStage};
use crate::job::reference::ReferenceStage;
use crate::job::source::{Command, EpochLoad, SourceStage};
use crate::job::steps::EpochClock;
use crate::job::table::{Input, Intake, Memory, Outlet, TableStage};
use crate::job::{CpuRuntime, RunSettings, Stage, Wired};
use crate::plan::Plan;
use crate::plan::reference::ReferenceTable;
use crate::plan::table::TablePlan;
use crate::state::record::CommitRecord;
use crate::state::schema::TableSchema;
use crate::state::snapshot::Snapshots;
use crate::state::{State, StateStore};

/// What a start has found in the state store.
pub struct Restored {
    /// The state store.
    pub store: StateStore,
    /// How buckets are opened; objects are encrypted as far as the store takes it.
    pub encryption: Encryption,
    /// The fold of all records.
    pub state: State,
    /// The columns of the tables that go to sinks, from the next record on.
    pub schemas: BTreeMap<String, TableSchema>,
    /// This process's number.
    pub generation: u64,
    /// Which epochs have been committed by which sink.
    pub ledger: Ledger,
    /// Recorded epochs that some sink has not committed.
    pub undone: Vec<CommitRecord>,
}

/// Everything that wiring needs at hand.
///
/// What is awaited borrows it mutably: stages may be sent between threads, and not shared.
struct Wiring<'a> {
    plan: &'a Plan,
    restored: &'a Restored,
    clock: SharedClock,
    /// Whether tables are stored as the file says.
    stores: bool,
    /// What is sent again, in place of what the sources have; nothing if they are read.
    portion: Option<Portion>,
    budget: Budget,
    state_memory: Arc<StateMemory>,
    progress: Arc<Progress>,
    reports: mpsc::UnboundedSender<Report>,
    load: Arc<EpochLoad>,
    stages: Vec<(String, Stage)>,
    commits: Vec<(String, Stage)>,
    queues: BTreeMap<String, CommitQueue>,
    takers_of_refused: BTreeMap<String, Sender<Item>>,
    /// How long rows may wait for a larger file, by sink.
    rolls: BTreeMap<String, Duration>,
    commands: BTreeMap<String, mpsc::UnboundedSender<Command>>,
    /// For each stream, the channels of those that take its rows.
    takers: BTreeMap<String, Vec<Sender<Item>>>,
}

/// Makes all tasks of a job.
pub async fn wire(
    plan: Plan,
    mut settings: RunSettings,
    restored: Restored,
    portion: Option<Portion>,
    progress: Arc<Progress>,
    stop: watch::Receiver<bool>,
) -> Result<Wired> {
    let (reports, heard) = mpsc::unbounded_channel();
    let spec = &plan.loaded.spec;
    let load =
        Arc::new(EpochLoad { bytes: AtomicU64::new(0), bytes_max: spec.commit.bytes.0.max(1), wake: Notify::new() });
    // What a service has handed over cannot be opened a second time.
    let may_evolve = settings.sources.is_empty() && settings.sinks.is_empty() && settings.redrive.is_none();
    let user_sources = std::mem::take(&mut settings.sources);
    let user_sinks = std::mem::take(&mut settings.sinks);
    let budget = Budget::of(&plan);
    let state_memory = StateMemory::new(budget.state);
    progress.watch_memory(state_memory.clone(), plan.query_memory());
    let mut wiring = Wiring {
        plan: &plan,
        restored: &restored,
        clock: settings.surroundings.clock.clone(),
        stores: settings.stores,
        portion,
        budget,
        state_memory,
        progress: progress.clone(),
        reports,
        load: load.clone(),
        stages: Vec::new(),
        commits: Vec::new(),
        queues: BTreeMap::new(),
        takers_of_refused: BTreeMap::new(),
        rolls: BTreeMap::new(),
        commands: BTreeMap::new(),
        takers: BTreeMap::new(),
    };
    let references = wiring.references();
    // From the end to the beginning: whoever sends needs the channels of those that take.
    for (table, name, sink) in user_sinks {
        let taken = wiring.sink(&format!("{table}/{name}"), sink, SinkSettings::default()).await?;
        wiring.takers.entry(table).or_default().push(taken);
    }
    for table in plan.tables.iter().rev() {
        Box::pin(wiring.table(table)).await?;
    }
    let mut user_sources = user_sources;
    for name in plan.opened_sources() {
        match wiring.portion {
            None => Box::pin(wiring.source(&name, user_sources.remove(&name))).await?,
            Some(_) => wiring.records(&name).await?,
        }
    }
    check_owed(&restored, &wiring.queues)?;
    let timing = Timing {
        every: spec.commit.every.0,
        rows_max: spec.commit.rows,
        spool_bytes_max: spec.limits.spool.0,
        until_idle: settings.until_idle,
        idle_after: plan.sources.values().map(|source| source.idle).max().unwrap_or_default(),
    };
    let Wiring { stages, commits, queues, takers_of_refused, rolls, commands, .. } = wiring;
    let tables = plan.tables.iter().map(TablePlan::name).collect();
    // Rows that fail again are as many as there were.
    let budgets = match settings.redrive {
        None => Budgets::new(&plan, &restored.state.errors),
        Some(_) => Budgets::default(),
    };
    let Restored { store, state, schemas, generation, ledger, .. } = restored;
    let coordinator = Coordinator {
        store,
        state,
        generation,
        sources: commands,
        tables,
        schemas,
        references,
        sinks: queues,
        takers_of_refused,
        rolls,
        reports: heard,
        load,
        progress,
        timing,
        budgets,
        clock: settings.surroundings.clock.clone(),
        stop,
        ledger,
        may_evolve,
        evolved_since: None,
        epochs: EpochClock::default(),
        closing_since: None,
        committed_at_us: None,
    };
    Ok(Wired { cpu: CpuRuntime::start()?, stages, commits, coordinator })
}

/// Refuses to start without a sink that has yet to write or to commit what is recorded: its rows would never be seen.
fn check_owed(restored: &Restored, queues: &BTreeMap<String, CommitQueue>) -> Result<()> {
    let mut waiting = restored.state.waiting.iter().filter(|(_, files)| !files.is_empty());
    if let Some((sink, _)) = waiting.find(|(sink, _)| !queues.contains_key(*sink)) {
        return Err(Error::config(format!(
            "the file has no sink {sink} any more, for which rows wait that are not written yet; run the old file until \
             it ends by itself or is told to stop, then take the sink out"
        )));
    }
    for record in &restored.undone {
        let committed = |sink: &String| restored.ledger.committed.get(sink).copied().unwrap_or(0) >= record.epoch;
        let owed = |(sink, prepared): &(&String, &Prepared)| prepared.handle.is_some() && !committed(sink);
        if let Some((sink, _)) = record.sinks.iter().filter(owed).find(|(sink, _)| !queues.contains_key(*sink)) {
            return Err(Error::config(format!(
                "the file has no sink {sink} any more, which has yet to commit epoch {}; run the old file once, then \
                 take the sink out",
                record.epoch
            )));
        }
    }
    Ok(())
}

impl Wiring<'_> {
    /// Has the reference tables that are read looked after, and gives them.
    fn references(&mut self) -> Vec<Arc<ReferenceTable>> {
        let state = &self.restored.state;
        let is_read = |name: &&String| self.plan.tables.iter().any(|table| table.references.contains(*name));
        let read = self.plan.references.iter().filter(|(name, _)| is_read(name));
        let tables: Vec<_> = read.map(|(_, table)| table.clone()).collect();
        for table in &tables {
            if let Some(known) = state.references.get(table.name()) {
                table.count_from(known);
            }
            table.pin(state.epoch + 1);
            if let Some(every) = table.refresh_every() {
                let stage = ReferenceStage { table: table.clone(), every };
                self.stages.push((format!("reference {}", table.name()), Box::pin(stage.run())));
            }
        }
        tables
    }

    async fn source(&mut self, name: &str, handed: Option<Box<dyn nexus_operators::source::Source>>) -> Result<()> {
        let plan = self.plan.sources.get(name);
        let plan = plan.ok_or_else(|| Error::internal(format!("source {name} is not planned")))?;
        let mut source = match handed {
            Some(source) => source,
            None => plan.operator(&self.plan.loaded, &self.clock)?,
        };
        let state = &self.restored.state;
        let positions = state.positions.get(name).filter(|_| !fail::mutated("no_positions"));
        let positions = positions.cloned().unwrap_or_else(Cut::default);
        source.open(&positions).await.map_err(|e| e.while_doing(format!("could not open source {name}")))?;
        let quarantine = self.quarantine(name, false).await?;
        let archive = self.archive(name).await?;
        let (read, reads) = self.channel(format!("decode {name}"));
        let (command, commands) = mpsc::unbounded_channel();
        self.commands.insert(name.to_owned(), command);
        let has_budget = self.plan.loaded.spec.sources.get(name).is_some_and(|source| source.errors.is_some());
        let decode = DecodeStage {
            name: name.to_owned(),
            decoder: if archive.is_some() { plan.archiving_decoder()? } else { plan.decoder()? }.into(),
            from: reads,
            to: self.takers.remove(name).unwrap_or_default(),
            quarantine,
            archive,
            discovery: plan.evolves.then(|| Discovery::new(&plan.decoder.format, &plan.schema)),
            reports: self.reports.clone(),
            watermark: Watermark::new(
                plan.event_time,
                plan.lateness,
                plan.idle,
                state.watermarks_us.get(name).copied(),
            ),
            progress: self.progress.clone(),
            clock: self.clock.clone(),
            reasons: has_budget.then(Reasons::default),
        };
        let stage = SourceStage {
            name: name.to_owned(),
            source,
            to: read,
            commands,
            reports: self.reports.clone(),
            load: self.load.clone(),
            progress: self.progress.clone(),
            idle_after: plan.idle,
        };
        self.stages.push((format!("decode {name}"), Box::pin(decode.run())));
        self.stages.push((format!("source {name}"), Box::pin(stage.run())));
        Ok(())
    }

    /// Adds the stage that stands in for a source while quarantined rows are sent again.
    async fn records(&mut self, name: &str) -> Result<()> {
        let plan = self.plan.sources.get(name);
        let plan = plan.ok_or_else(|| Error::internal(format!("source {name} is not planned")))?;
        let quarantine = self.quarantine(name, false).await?;
        let archive = self.archive(name).await?;
        let (command, commands) = mpsc::unbounded_channel();
        self.commands.insert(name.to_owned(), command);
        let stage = RecordStage {
            name: name.to_owned(),
            decoder: plan.decoder()?.into(),
            taken: self.portion.as_mut().and_then(|portion| portion.taken.remove(name)),
            to: self.takers.remove(name).unwrap_or_default(),
            quarantine,
            archive,
            commands,
            reports: self.reports.clone(),
            watermark_us: self.restored.state.watermarks_us.get(name).copied(),
            ends: self.portion.as_ref().is_some_and(|portion| portion.ends),
            clock: self.clock.clone(),
        };
        self.stages.push((format!("quarantine of {name}"), Box::pin(stage.run())));
        Ok(())
    }

    async fn table(&mut self, plan: &TablePlan) -> Result<()> {
        let name = plan.name();
        let spec = self.plan.spec_of(plan).cloned();
        let late = plan.late_reason().is_some() && plan.late.quarantines();
        let refuses = self.stores && spec.as_ref().is_some_and(|spec| spec.postgres.is_some());
        let quarantines = late || !plan.rules.is_empty() || plan.newest.is_some() || self.has_quarantined(&name);
        let quarantine = if refuses || quarantines { Some(self.quarantine(&name, refuses).await?) } else { None };
        let mut to = self.takers.remove(&name).unwrap_or_default();
        let mut postgres = None;
        if let Some(spec) = spec.as_ref().filter(|_| self.stores) {
            let stored = self.stored(plan, spec, quarantine.as_ref()).await?;
            postgres = stored.last().filter(|_| refuses).cloned();
            to.extend(stored);
        }
        let mut inputs = Vec::with_capacity(plan.inputs.len());
        for input in &plan.inputs {
            let (sender, from) = self.channel(format!("{input} to {name}"));
            self.takers.entry(input.clone()).or_default().push(sender);
            inputs.push(Input { from, window: plan.input_window(input)? });
        }
        let mut transform = plan.transform(self.budget.states).await?;
        let mut unique = plan.unique(self.budget.keys)?;
        let mut newest = plan.newest(self.budget.states)?;
        let kinds = transform.parts().iter().copied().chain(newest.as_ref().map(|_| WINDOWS));
        let kinds: Vec<_> = kinds.collect();
        let memory = if plan.is_stateful() { Some(self.memory(plan, &kinds).await?) } else { None };
        if let (Some(memory), Some(state)) = (&memory, self.restored.state.tables.get(&name)) {
            if !fail::mutated("no_windows") {
                let mut parts = BTreeMap::new();
                for (kind, files) in &memory.states {
                    parts.insert(*kind, files.restore().await?);
                }
                if let Some(newest) = &mut newest {
                    newest.restore(parts.remove(WINDOWS).unwrap_or_default(), state.forgotten_until_us)?;
                }
                transform.restore(parts, state.closed_until_us, state.forgotten_until_us)?;
            }
            if let Some(unique) = unique.as_mut().filter(|_| !fail::mutated("no_keys")) {
                unique.restore(memory.keys.restore().await?)?;
            }
        }
        let stage = TableStage {
            name: name.clone(),
            transform,
            intake: Intake {
                table: name.clone(),
                inputs,
                quarantine: quarantine.clone().filter(|_| late),
                late_reason: plan.late_reason().unwrap_or_default(),
                progress: self.progress.clone(),
                clock: self.clock.clone(),
            },
            outlet: Outlet {
                table: name.clone(),
                schema: plan.query_schema(),
                rules: plan.rules.clone(),
                unique,
                newest,
                state_of_epoch_max: self.budget.state_of_epoch,
                load: self.load.clone(),
                to,
                quarantine,
                postgres,
                progress: self.progress.clone(),
                clock: self.clock.clone(),
            },
            memory,
            redriven: self.portion.as_mut().and_then(|portion| portion.taken.remove(&name)),
            carries_time: plan.event_time.is_some(),
            references: plan.views.clone(),
            open: self.restored.state.epoch + 1,
            reports: self.reports.clone(),
        };
        self.stages.push((format!("table {name}"), Box::pin(stage.run())));
        Ok(())
    }

    /// Makes a channel whose fill is told under a name.
    fn channel<T: Weigh>(&self, name: String) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = channel(self.budget.channel);
        self.progress.watch_channel(name, sender.gauge());
        (sender, receiver)
    }

    async fn memory(&mut self, plan: &TablePlan, kinds: &[&'static str]) -> Result<Memory> {
        let name = plan.name();
        let Restored { store, state, generation, .. } = self.restored;
        let known = state.tables.get(&name).cloned().unwrap_or_default();
        let folder = store.folder().below(&format!("snapshots/{name}"));
        let snapshots = |kind: &'static str| {
            let files = known.files(kind).cloned().unwrap_or_default();
            (kind, Snapshots::new(folder.below(kind), "arrow", *generation, files))
        };
        let basis = plan.basis().await;
        Ok(Memory {
            query: plan.fingerprint(),
            basis: basis
                .map_err(|e| Error::internal(format!("could not tell what the state of {name} rests on")).because(e))?,
            states: kinds.iter().copied().map(snapshots).collect(),
            keys: Snapshots::new(folder.below("keys"), "keys", *generation, known.keys.clone()),
            share: self.state_memory.share(),
        })
    }
}
