//! Running a pipeline: stages, bounded channels, barriers, the commit coordinator.
//!
//! ```text
//! source -> decode -> tables in the order of who reads whom -> sinks -> commit
//!    ^                                                                   |
//!    +-------------- committed positions <- coordinator <- prepared -----+
//! ```
//!
//! Each stage is one tokio task, joined to the next by a channel that is
//! bounded in bytes. Sources, decoders, tables and the writing half of sinks
//! run on a runtime of their own, so that their work on the CPU never delays
//! commits.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nexus_operators::sink::Sink;
use nexus_operators::source::Source;
use nexus_operators::{Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

pub mod archive;
mod budget;
pub mod channel;
pub mod compact;
pub mod coordinator;
mod decode;
mod errors;
mod evolve;
mod files;
mod guard;
mod idleness;
mod ledger;
pub mod place;
pub mod progress;
pub mod redrive;
mod reference;
mod report;
mod settling;
mod sink;
mod source;
mod start;
pub mod steps;
mod table;
pub mod troubles;
mod wiring;

use crate::lineage::RunEvents;
use crate::plan::describe::Described;
use crate::plan::{Plan, Surroundings};
use coordinator::{Coordinator, Ended};
use evolve::Again;
use guard::guard;
use progress::{Limits, Progress, Report};
use redrive::Redrive;
pub use start::{held, state_store};
#[cfg(feature = "postgres")]
pub use wiring::postgres_sink;

/// How long after a first error other stages may name a cause that lies deeper.
const CAUSE_WAIT: Duration = Duration::from_millis(200);

/// How long a failed run takes to look whether another process has taken over.
const FENCE_WAIT: Duration = Duration::from_secs(5);

/// What a run is told beside the pipeline.
pub struct RunSettings {
    /// End the run once all sources have been idle for so long.
    pub until_idle: Option<Duration>,
    /// What the plan was made with, to make it anew when sources get columns.
    pub surroundings: Surroundings,
    /// Sources that an embedding service brings, by the name of the source.
    pub sources: BTreeMap<String, Box<dyn Source>>,
    /// Sinks that an embedding service brings, by the table, `tier.table`, and a name of their own.
    pub sinks: Vec<(String, String, Box<dyn Sink>)>,
    /// Store tables as the file says; otherwise only the sinks that an embedding service brings take their rows.
    pub stores: bool,
    /// Send quarantined rows again, and read nothing from the sources.
    pub redrive: Option<Redrive>,
}

/// A job that runs.
///
/// To drop it is to end it at once, as a crash would: nothing that was read is lost, and the next start goes on from
/// the last commit.
pub struct Job {
    progress: Arc<Progress>,
    stop: watch::Sender<bool>,
    done: tokio::task::JoinHandle<Result<()>>,
    started: Instant,
}

/// Stops a job from elsewhere, or pauses it.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
}

impl Job {
    /// Starts a pipeline: restores its state, opens its sources, and runs in the background.
    ///
    /// # Errors
    ///
    /// `Config` where the environment does not fit the file, `Unavailable` where a service or a disk is away.
    pub async fn start(plan: Plan, settings: RunSettings) -> Result<Self> {
        let started = Instant::now();
        let names = plan.tables.iter().map(crate::plan::table::TablePlan::name).collect::<Vec<_>>();
        let sources = plan.opened_sources();
        let spec = &plan.loaded.spec;
        let limits = Limits { memory_bytes: spec.limits.memory.0, commit_every: spec.commit.every.0 };
        let (sources, tables) = (sources.iter().map(String::as_str), names.iter().map(String::as_str));
        let progress = Arc::new(Progress::new(&spec.name, sources, tables).with_limits(limits));
        let (stop, stopped) = watch::channel(false);
        let again = Again {
            loaded: plan.loaded.clone(),
            until_idle: settings.until_idle,
            surroundings: settings.surroundings.clone(),
            progress: progress.clone(),
            stopped: stopped.clone(),
        };
        progress.describe(Box::pin(Described::of(&plan)).await?);
        let mut events = Box::pin(RunEvents::begin(&plan, progress.clone(), settings.surroundings.clock.clone())).await;
        let wired = Box::pin(guard("the start", start::start(plan, settings, progress.clone(), stopped))).await;
        let wired = match wired {
            Ok(wired) => wired,
            Err(error) => {
                let failed = Err(error);
                if let Some(events) = events {
                    events.end(&failed).await;
                }
                return failed;
            }
        };
        let done = tokio::spawn(async move {
            let ended = again.run(wired, &mut events).await;
            if let Some(events) = events {
                events.end(&ended).await;
            }
            ended
        });
        Ok(Self { progress, stop, done, started })
    }

    /// Gives what the job's stages have counted so far.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Gives what the job has committed so far.
    pub fn status(&self) -> Report {
        let mut report = self.progress.report();
        report.elapsed_s = self.started.elapsed().as_secs_f64();
        report
    }

    /// Gives a handle that stops the job from elsewhere.
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: self.stop.clone(), progress: self.progress.clone() }
    }

    /// Has the job drain: stop reading, commit what has been read, end. Windows stay open for the next start.
    ///
    /// [`wait`](Self::wait) tells when it has ended.
    pub fn stop(&self) {
        self.stopper().stop();
    }

    /// Waits until the job ends, and gives what it has committed. Cancel-safe.
    pub async fn wait(&mut self) -> Result<Report> {
        let ended = (&mut self.done).await;
        let status = self.status();
        match ended {
            Ok(ended) => ended.map(|()| status),
            Err(error) => Err(Error::internal("the job was ended from outside").because(error)),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.done.abort();
    }
}

impl Stopper {
    /// Has the job drain, as [`Job::stop`] does.
    pub fn stop(&self) {
        self.progress.set_draining();
        self.stop.send_replace(true);
    }

    /// Has the sources read no more until [`resume`](Self::resume): what was read is committed, and nothing is closed for
    /// their silence. The next start of the pipeline reads on.
    pub fn pause(&self) {
        self.progress.pause(true);
    }

    /// Has the sources read again.
    pub fn resume(&self) {
        self.progress.pause(false);
    }
}

/// All tasks of a job, not yet running.
pub struct Wired {
    /// Runs the stages.
    pub cpu: CpuRuntime,
    /// The stages, by name.
    pub stages: Vec<(String, Stage)>,
    /// The commit stages, by name.
    pub commits: Vec<(String, Stage)>,
    /// The commit coordinator.
    pub coordinator: Coordinator,
}

/// A stage, as something to run.
pub type Stage = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Threads of a runtime that wait for disks and encode rows. What a thread has freed its allocator keeps for it: with as
/// many threads as there are files to write after an outage, memory would grow by megabytes for each, and stay.
pub const BLOCKING_THREADS_MAX: usize = 8;

/// A runtime for work on the CPU. It is let go without waiting, since runtimes may not be dropped where one waits.
pub struct CpuRuntime(Option<Runtime>);

impl CpuRuntime {
    /// Starts a runtime with a thread for each core.
    pub fn start() -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.thread_name("nexus-cpu").max_blocking_threads(BLOCKING_THREADS_MAX).enable_all();
        builder
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|e| Error::internal("could not start threads").because(e))
    }
}

impl Drop for CpuRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs all tasks, and finds out what lies behind an error.
async fn supervise(wired: Wired) -> Result<Ended> {
    let (store, generation) = (wired.coordinator.store.clone(), wired.coordinator.generation);
    let error = match run(wired).await {
        Ok(ended) => return Ok(ended),
        Err(error) => error,
    };
    // A newer process removes what this one has staged and not recorded, so any stage may be the first to stumble over
    // it. What is wrong then is not what the stage says.
    let fence = tokio::time::timeout(FENCE_WAIT, store.check_fence(generation)).await;
    match fence {
        Ok(Err(fenced)) if fenced.kind() == ErrorKind::Fenced => {
            tracing::info!(%error, "a stage failed after another process had taken over");
            Err(fenced)
        }
        _ => Err(error),
    }
}

/// Runs all tasks until the coordinator is done or one of them fails.
async fn run(wired: Wired) -> Result<Ended> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let Wired { cpu, stages, commits, coordinator } = wired;
    let handle = cpu.0.as_ref().map(|runtime| runtime.handle().clone());
    let handle = handle.ok_or_else(|| Error::internal("the runtime has ended"))?;
    for (name, stage) in stages {
        tasks.spawn_on(async move { guard(&name, stage).await }, &handle);
    }
    for (name, commit) in commits {
        tasks.spawn(async move { guard(&name, commit).await });
    }
    let mut coordinating = std::pin::pin!(guard("the coordinator", coordinator.run()));
    loop {
        // Cancel-safe: the coordinator is polled by reference, and `join_next` loses nothing.
        tokio::select! {
            done = &mut coordinating => {
                return match done {
                    Err(error) if is_closed(&error) => Err(deepest(error, &mut tasks).await),
                    done => done,
                };
            }
            Some(ended) = tasks.join_next() => {
                if let Err(error) = outcome(ended) {
                    return Err(deepest(error, &mut tasks).await);
                }
            }
        }
    }
}

/// Finds the error that made the others fail: those only say that a neighbour has ended.
async fn deepest(first: Error, tasks: &mut JoinSet<Result<()>>) -> Error {
    let mut found = first;
    let until = Instant::now() + CAUSE_WAIT;
    while is_closed(&found) {
        match tokio::time::timeout_at(until, tasks.join_next()).await {
            Ok(Some(ended)) => {
                if let Err(error) = outcome(ended) {
                    found = error;
                }
            }
            _ => break,
        }
    }
    found
}

fn is_closed(error: &Error) -> bool {
    error.to_string().ends_with(&channel::closed().to_string())
}

fn outcome(ended: Result<Result<()>, JoinError>) -> Result<()> {
    ended.unwrap_or_else(|error| Err(Error::internal("a stage was ended from outside").because(error)))
}
