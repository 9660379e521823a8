//! Columns that sources get while a job runs: they are noted in the record of the epoch in which they were found, and once
//! all sinks have committed that, the job is planned anew and started again, in the same process.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::Field;
use nexus_operators::decode::FOUND_MAX;
use nexus_operators::{Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;

use super::coordinator::{Coordinator, Ended};
use super::guard::guard;
use super::progress::Progress;
use super::{RunSettings, Wired, start, supervise};
use crate::lineage::RunEvents;
use crate::plan::describe::Described;
use crate::plan::{Surroundings, evolve};
use crate::spec::Loaded;
use crate::spec::columns::type_name;
use crate::state::StateStore;
use crate::state::record::EvolvedColumn;

/// What a job is started from again, once sources have got columns.
pub struct Again {
    /// The file.
    pub loaded: Loaded,
    /// End the run once all sources have been idle for so long.
    pub until_idle: Option<Duration>,
    /// What the plan is made with.
    pub surroundings: Surroundings,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// Turns true when the run shall drain.
    pub stopped: watch::Receiver<bool>,
}

impl Again {
    /// Runs a job to its end, planned anew whenever sources get columns.
    pub async fn run(&self, wired: Option<Wired>, events: &mut Option<RunEvents>) -> Result<()> {
        let Some(mut wired) = wired else { return Ok(()) };
        loop {
            let (store, generation) = (wired.coordinator.store.clone(), wired.coordinator.generation);
            match followed(supervise(wired), events).await? {
                Ended::Whole => return Ok(()),
                Ended::Evolved => {
                    let mut stopped = self.stopped.clone();
                    let start = Box::pin(guard("the start", self.start(&store, generation, events)));
                    // A start may wait for a service for minutes. Nothing has been read by it, so to drop it loses nothing.
                    wired = tokio::select! {
                        wired = start => wired?,
                        _ = stopped.wait_for(|told| *told) => return Ok(()),
                    };
                }
            }
        }
    }

    /// Plans the pipeline with the columns that its sources have got, and starts it.
    async fn start(&self, store: &StateStore, generation: u64, events: &mut Option<RunEvents>) -> Result<Wired> {
        // A process that has taken over meanwhile must not be stopped by this one.
        store.check_fence(generation).await?;
        let state = store.load().await?;
        let planned = evolve::plan(&self.loaded, &self.surroundings, &state).await;
        let plan = planned.map_err(|wrong| Error::config(wrong.to_string()))?;
        if let Some(events) = events {
            events.describe(&plan).await;
        }
        self.progress.describe(Box::pin(Described::of(&plan)).await?);
        let settings = RunSettings {
            until_idle: self.until_idle,
            surroundings: self.surroundings.clone(),
            sources: BTreeMap::new(),
            sinks: Vec::new(),
            stores: true,
            redrive: None,
        };
        tracing::info!("planned anew with the columns that were found");
        self.progress.forget_wiring();
        start::start_anyway(plan, settings, self.progress.clone(), self.stopped.clone()).await
    }
}

impl Coordinator {
    /// Gives the columns that a source gets behind an epoch, of those that were found.
    pub(super) fn evolved(&mut self, source: &str, epoch: u64, found: &[Field]) -> Vec<EvolvedColumn> {
        let known = self.state.evolved.get(source).map_or(&[][..], Vec::as_slice);
        let is_new = |field: &&Field| known.iter().all(|column| !column.name.eq_ignore_ascii_case(field.name()));
        let column =
            |field: &Field| EvolvedColumn { name: field.name().clone(), data_type: type_name(field), found_in: epoch };
        let room = FOUND_MAX.saturating_sub(known.len());
        let evolved: Vec<_> = found.iter().filter(is_new).take(room).map(column).collect();
        for EvolvedColumn { name, data_type, .. } in &evolved {
            tracing::info!(source, epoch, "found the column {name}: {data_type}");
        }
        if self.may_evolve && !evolved.is_empty() {
            self.evolved_since = Some(Instant::now());
        }
        evolved
    }
}

/// Does some work, and tells meanwhile how far the run has come.
async fn followed<T>(work: impl Future<Output = T>, events: &mut Option<RunEvents>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        let follow = async {
            match events {
                Some(events) => events.follow().await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: the work is polled by reference, and `follow` is by its contract.
        tokio::select! {
            done = &mut work => return done,
            () = follow => {}
        }
    }
}
