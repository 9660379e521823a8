//! Traces of a run, for OpenTelemetry: an epoch that all sinks have committed is a trace, and what its stages have done in
//! it are its spans.
//!
//! They go out by OTLP over HTTP, in its JSON encoding (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), where the
//! environment names a collector: see [`collector`].
//!
//! Invariant: a pipeline never waits for who takes its traces, but for a moment at its end; and a span holds names, times
//! and counts, never a value of a row or a text of an error.

use std::sync::Arc;
use std::time::Duration;

use nexus_operators::{Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

mod collector;
mod spans;

use crate::job::progress::Progress;
use crate::job::steps::EpochTold;
use collector::Collector;

/// How long a run waits at its end until its traces are delivered.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The traces of a run, which are told while it runs.
pub struct Traces {
    delivery: JoinHandle<()>,
}

/// Gives the collector that the environment names, if it names one.
///
/// # Errors
///
/// `Config` if the environment is wrong.
pub fn collector() -> Result<Option<Collector>> {
    Collector::from_env(|name| std::env::var(name).ok())
}

impl Traces {
    /// Tells a collector of the epochs of a run from now on.
    pub fn begin(collector: Collector, progress: &Arc<Progress>) -> Self {
        let epochs = progress.epochs.follow();
        let progress = progress.clone();
        Self { delivery: tokio::spawn(async move { deliver(&collector, epochs, &progress).await }) }
    }

    /// Waits a moment until what was told is delivered. Behind the end of the job, nothing more comes.
    pub async fn end(mut self, progress: &Progress) {
        progress.epochs.unfollow();
        if tokio::time::timeout(FLUSH_MAX, &mut self.delivery).await.is_err() {
            tracing::warn!("the run ends before its last traces were delivered");
            self.delivery.abort();
        }
    }
}

/// Delivers the trace of each epoch, one after the other, until no more can come.
async fn deliver(collector: &Collector, mut epochs: mpsc::Receiver<EpochTold>, progress: &Progress) {
    let mut failing = false;
    while let Some(told) = epochs.recv().await {
        let described = progress.described();
        let pipeline = progress.report().pipeline;
        let request = spans::request(&told, &pipeline, described.as_deref(), &collector.resource);
        let taken = collector.take(&request).await;
        // Once for each trouble.
        if let (Err(error), false) = (&taken, failing) {
            tracing::warn!(%error, "traces are dropped until they are taken again");
        }
        failing = taken.is_err();
    }
}

/// Says that the environment is wrong.
fn wrong(name: &str, what: &str) -> Error {
    Error::config(format!("{name} {what}; correct it, or set OTEL_SDK_DISABLED=true"))
}
