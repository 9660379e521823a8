//! Events about runs, as OpenLineage describes them (<https://openlineage.io>, spec 2-0-2): which datasets a run reads
//! and writes, their columns and where these derive from, and how much was written.
//!
//! A run is a job's life from its start to its end. It begins with START; RUNNING follows while epochs are recorded, at
//! most one in `every`; it ends with COMPLETE, with FAIL and the error, or with ABORT where another process has taken
//! over or the job was dropped. A process that is killed says nothing more.
//!
//! Invariant: a pipeline never waits for who takes its events, but for a moment at its end. What is not taken in time is
//! dropped, and counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nexus_operators::clock::SharedClock;
use nexus_operators::{ErrorKind, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

mod datasets;
mod delivery;
mod event;

use crate::job::progress::Progress;
use crate::plan::Plan;
use delivery::{Delivery, Target};
use event::{Description, Kind};

/// Events that wait to be delivered. They come seldom; more would only be told when they are old.
const WAITING_MAX: usize = 16;

/// How long a run waits at its end until its events are delivered.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The events of one run.
pub struct RunEvents {
    description: Description,
    /// To the task that delivers. When this is dropped, the task ends behind what waits.
    to: mpsc::Sender<String>,
    delivery: JoinHandle<()>,
    progress: Arc<Progress>,
    clock: SharedClock,
    tick: Interval,
    /// Epochs that were recorded when the last event was made.
    epochs: u64,
    ended: bool,
}

impl RunEvents {
    /// Begins the events of a run, if the file asks for them.
    pub async fn begin(plan: &Plan, progress: Arc<Progress>, clock: SharedClock) -> Option<Self> {
        let spec = plan.loaded.spec.lineage.as_ref()?;
        let target = match Target::of(&plan.loaded) {
            Ok(target) => target,
            Err(error) => {
                tracing::warn!(%error, "there will be no events about this run");
                return None;
            }
        };
        let (to, from) = mpsc::channel(WAITING_MAX);
        let delivery = tokio::spawn(Delivery { target, from, progress: progress.clone() }.run());
        let mut tick = interval_at(Instant::now() + spec.every.0, spec.every.0);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let description = Description::of(plan, uuid::Uuid::new_v4()).await;
        let mut events = Self { description, to, delivery, progress, clock, tick, epochs: 0, ended: false };
        events.tell(Kind::Start, None);
        Some(events)
    }

    /// Has the events tell the datasets of another plan from now on.
    pub async fn describe(&mut self, plan: &Plan) {
        self.description = Description::of(plan, self.description.run).await;
    }

    /// Waits until it is time for an event, and tells how far the run has come if that is further than before.
    /// Cancel-safe.
    pub async fn follow(&mut self) {
        self.tick.tick().await;
        if self.progress.report().epochs > self.epochs {
            self.tell(Kind::Running, None);
        }
    }

    /// Tells how the run has ended, and waits a moment until that is delivered.
    pub async fn end<T>(mut self, ended: &Result<T>) {
        match ended {
            Ok(_) => self.tell(Kind::Complete, None),
            Err(error) if error.kind() == ErrorKind::Fenced => self.tell(Kind::Abort, Some(&error.to_string())),
            Err(error) => self.tell(Kind::Fail, Some(&error.to_string())),
        }
        self.ended = true;
        // Without a sender, the task ends once all is delivered.
        self.to = mpsc::channel(1).0;
        if tokio::time::timeout(FLUSH_MAX, &mut self.delivery).await.is_err() {
            tracing::warn!("the run ends before its last events were delivered");
            self.delivery.abort();
        }
    }

    fn tell(&mut self, kind: Kind, error: Option<&str>) {
        let report = self.progress.report();
        self.epochs = report.epochs;
        let event = self.description.event(kind, self.clock.now_us(), &report, error);
        if self.to.try_send(event).is_err() {
            self.progress.lineage.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("an event about the run was dropped: those before it are not delivered yet");
        }
    }
}

impl Drop for RunEvents {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Kind::Abort, None);
        }
    }
}
