//! Trials: a pipeline run in process on the records of a test case, without any
//! server, and what differs from what the case expects.
//!
//! Each step of a case is a run of its own: it reads what the step gives, commits that as one epoch and ends, and the
//! next goes on from there. So a step also shows that a restart changes nothing.

mod compare;
mod steps;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use nexus_operators::clock::{Clock, SystemClock};
use nexus_operators::decode::{FormatSettings, UnknownColumns};
use nexus_operators::sink::memory::{Landed, MemorySink};
use nexus_operators::source::memory::MemorySource;
use nexus_operators::{Error, Result};

use crate::pipeline::{BuildError, Pipeline};
use crate::plan::source::SourcePlan;
use crate::spec::model::{CrashAt, Given, Lake, QUARANTINE, TestCase};
use crate::spec::units::Span;
use crate::spec::{Loaded, Tier};
use compare::{Table, quarantined};
use steps::{Dying, Feed, Feeds, StandingClock};

pub use compare::Difference;

/// The name under which a trial listens to a table.
const LISTENER: &str = "trial";

/// Epochs of a trial are closed by its steps and not by the time.
const COMMIT_EVERY_S: u64 = 24 * 60 * 60;

/// Runs a test case of a pipeline file; gives what differs, nothing if all is as expected.
pub async fn run(loaded: &Loaded, number: usize, case: &TestCase) -> Result<Vec<Difference>, BuildError> {
    let folder = TrialFolder::new();
    let clock = Arc::new(StandingClock::at(start_us(case).map_err(BuildError::Operator)?));
    let tables = loaded.spec.all_tables().map(|(tier, table, _)| format!("{tier}.{table}"));
    let heard = tables.map(|table| (table, Landed::default())).collect();
    let trial = Trial { loaded: in_folder(loaded, &folder.path()), number, case, clock, heard };
    for step in 0..=case.then.len() {
        trial.step(step).await?;
    }
    trial.differences().await.map_err(BuildError::Operator)
}

fn start_us(case: &TestCase) -> Result<i64> {
    let Some(text) = &case.clock else { return Ok(SystemClock.now_us()) };
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| time.timestamp_micros()).map_err(|e| Error::config(format!("`{text}` is not a time")).because(e))
}

/// A case that is being run.
struct Trial<'a> {
    /// The file, with its state in the trial's folder.
    loaded: Loaded,
    /// Which case of the file.
    number: usize,
    case: &'a TestCase,
    clock: Arc<StandingClock>,
    /// What each table has got.
    heard: BTreeMap<String, Landed>,
}

/// How a run of a trial has ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Whole,
    Died,
}

impl Trial<'_> {
    async fn step(&self, step: usize) -> Result<(), BuildError> {
        let later = step.checked_sub(1).and_then(|index| self.case.then.get(index));
        if let Some(wait) = later.and_then(|step| step.wait) {
            self.clock.advance(wait.0);
        }
        if let Some(at) = later.and_then(|step| step.crash)
            && self.start(step, Some(at)).await? == Ended::Whole
        {
            let text = format!("step {step} was to die where it commits, and never came there: it commits no rows");
            return Err(BuildError::Operator(Error::config(text)));
        }
        self.start(step, None).await.map(drop)
    }

    /// Runs the pipeline over what a step gives, until that is committed or the process has died.
    async fn start(&self, step: usize, crash: Option<CrashAt>) -> Result<Ended, BuildError> {
        let is_last = step == self.case.then.len();
        let feeds = Arc::new(Feeds::default());
        let mut pipeline = Pipeline::new(self.loaded.clone()).without_stores().with_clock(self.clock.clone());
        for (name, spec) in &self.loaded.spec.sources {
            let plan = SourcePlan::new(&self.loaded, name, spec).map_err(BuildError::Operator)?;
            let (plan, contents) = self.contents(plan, step).map_err(BuildError::Operator)?;
            let (framing, record_bytes_max) = (plan.decoder.format.framing(), plan.decoder.record_bytes_max);
            let source = MemorySource::records(contents, framing, record_bytes_max, self.clock.clone());
            pipeline = pipeline.with_planned(plan, Box::new(Feed::new(source, is_last, crash, feeds.clone())));
        }
        for (table, landed) in &self.heard {
            let sink = Dying::new(MemorySink::over(landed.clone()), crash, feeds.clone());
            pipeline = pipeline.with_sink(table, LISTENER, Box::new(sink));
        }
        let mut job = pipeline.start().await?;
        let mut is_told = is_last;
        loop {
            // Cancel-safe: both notifications keep their permits, and waiting for a job loses nothing.
            tokio::select! {
                () = feeds.died.notified() => return Ok(Ended::Died),
                ended = job.wait() => return ended.map(|_| Ended::Whole).map_err(BuildError::Operator),
                () = feeds.all_read(), if !is_told => {
                    is_told = true;
                    job.stop();
                }
            }
        }
    }

    /// Gives what a source reads at a step, by partition; a source that is given nothing is empty.
    fn contents(&self, plan: SourcePlan, step: usize) -> Result<(SourcePlan, Vec<(String, Bytes)>)> {
        let name = plan.name.clone();
        let is_in_place = self.is_in_place(&name);
        let plan = if is_in_place { as_rows(plan)? } else { plan };
        let has_file = self.case.given_at(step).is_some_and(|given| given.contains_key(&name)) && !is_in_place;
        let is_single = matches!(
            plan.decoder.format,
            FormatSettings::AvroRecords { .. } | FormatSettings::Protobuf { delimited: false, .. }
        );
        if has_file && is_single {
            let text = format!("single records do not stand in a file; give source {name} rows in place");
            return Err(Error::config(text));
        }
        let mut contents = Vec::new();
        contents.extend(self.content(&name, step)?);
        let later = step.checked_sub(1).and_then(|index| self.case.then.get(index));
        if later.is_some_and(|step| step.again.contains(&name)) {
            for before in 0..step {
                let content = self.content(&name, before)?;
                contents
                    .extend(content.map(|(partition, bytes)| (format!("{partition}, again at step {step}"), bytes)));
            }
        }
        Ok((plan, contents))
    }

    fn content(&self, source: &str, step: usize) -> Result<Option<(String, Bytes)>> {
        let Some(given) = self.case.given_at(step).and_then(|given| given.get(source)) else { return Ok(None) };
        match given {
            Given::File(_) => {
                let path = self.loaded.given_path(self.number, step, source).unwrap_or_default();
                let content = std::fs::read(&path)
                    .map_err(|e| Error::config(format!("could not read {}", path.display())).because(e))?;
                Ok(Some((format!("{}, step {step}", path.display()), content.into())))
            }
            Given::Records(records) => {
                let lines = records.iter().map(steps::line).collect::<Result<Vec<_>>>()?;
                Ok(Some((format!("{}, step {step}", self.case.name), lines.join("\n").into())))
            }
        }
    }

    /// Tells whether the records of a source stand in the pipeline file.
    fn is_in_place(&self, source: &str) -> bool {
        let steps = (0..=self.case.then.len()).filter_map(|step| self.case.given_at(step)?.get(source));
        steps.into_iter().any(|given| matches!(given, Given::Records(_)))
    }

    async fn differences(&self) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for (name, expected) in &self.case.expect {
            let found = match (name.strip_prefix(QUARANTINE), self.heard.get(name)) {
                (Some(of), _) => Table { rows: quarantined(&self.loaded.lake_root(Tier::Bronze), of).await? },
                (None, Some(landed)) => Table::of(&landed.batches(), &keys_of(&self.loaded, name))?,
                (None, None) => continue,
            };
            differences.extend(found.compare(name, expected));
        }
        Ok(differences)
    }
}

/// A folder for one run, which is removed with what is in it.
pub(crate) struct TrialFolder(PathBuf);

impl TrialFolder {
    pub(crate) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("nexus-trial-{}", uuid::Uuid::new_v4().simple())))
    }

    pub(crate) fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl Drop for TrialFolder {
    fn drop(&mut self) {
        // What cannot be removed lies where the machine removes it.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Gives the pipeline with its state in a folder of its own, without budgets for bad rows, and telling nobody.
pub(crate) fn in_folder(loaded: &Loaded, folder: &str) -> Loaded {
    let mut trial = loaded.clone();
    trial.spec.lake = Lake::Root(folder.to_owned());
    trial.spec.state = None;
    trial.spec.lineage = None;
    trial.spec.commit.every = Span::from_secs(COMMIT_EVERY_S);
    // A case shows what becomes of rows, bad ones too.
    trial.spec.sources.values_mut().for_each(|source| source.errors = None);
    for tier in Tier::ALL {
        for table in trial.spec.tables_mut(tier).values_mut() {
            table.errors = None;
        }
    }
    trial
}

/// Records in place are JSON, whatever the source's format is.
fn as_rows(plan: SourcePlan) -> Result<SourcePlan> {
    let mut decoder = plan.decoder.clone();
    match decoder.format {
        FormatSettings::Raw => {
            let text = format!("rows in place cannot be raw bytes; give source {} a file", plan.name);
            return Err(Error::config(text));
        }
        FormatSettings::Batch => decoder.unknown = UnknownColumns::Reject,
        _ => {}
    }
    decoder.format = FormatSettings::Json;
    let time = plan.event_time.map(|index| plan.schema.field(index).name().clone());
    let typed = SourcePlan::of_decoder(&plan.name, decoder, time.as_deref())?;
    Ok(SourcePlan { lateness: plan.lateness, idle: plan.idle, ..typed })
}

/// Gives the columns by which a later row of a table replaces an earlier one, if its rows change.
fn keys_of(loaded: &Loaded, table: &str) -> Vec<String> {
    let spec = loaded.spec.all_tables().find(|(tier, name, _)| format!("{tier}.{name}") == table);
    spec.and_then(|(_, _, spec)| spec.postgres.as_ref()).map(|postgres| postgres.key.clone()).unwrap_or_default()
}
