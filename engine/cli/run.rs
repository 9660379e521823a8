//! `nexus run`: run a pipeline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::log::Log;
use super::signals::Signals;
use super::table::layout;
use super::terminal::{self, count, counted, size};
use super::{Failure, File, resident, span};
use crate::job::progress::{Progress, Report};
use crate::serve::{Pages, PagesSettings, READY_WITHIN, Token};
#[cfg(feature = "otel")]
use crate::traces::{self, Traces};
use crate::{Error, Job, Pipeline};

/// How often progress is shown on a terminal.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// How often progress is logged where nobody watches.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Run a pipeline.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    file: File,
    /// End once all sources have been idle for so long, such as 5s: the end of input, which closes open windows.
    #[arg(long, value_name = "TIME", value_parser = span)]
    until_idle: Option<Duration>,
    /// Write what the run has committed to this file, as JSON.
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
    /// Serve /health, /ready, /metrics, an API and a console on this address, such as 127.0.0.1:9464. An address that
    /// others reach needs a token for all but the first two.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// With --listen: ask for the token in this file for all but /health; in the environment it is NEXUS_TOKEN.
    #[arg(long, value_name = "PATH", requires = "listen")]
    token_file: Option<PathBuf>,
    /// With --listen: be ready until an epoch has waited for its commit for so many intervals of `commit.every`.
    #[arg(long, value_name = "INTERVALS", default_value_t = READY_WITHIN, requires = "listen")]
    ready_within: u32,
    #[command(flatten)]
    log: Log,
}

impl Run {
    pub async fn execute(self) -> Result<(), Failure> {
        self.log.start()?;
        #[cfg(feature = "otel")]
        let collector = traces::collector()?;
        let mut pipeline = self.file.load().await?;
        if let Some(idle) = self.until_idle {
            pipeline = pipeline.until_idle(idle);
        }
        let mut signals = Signals::listen()?;
        let pages = match &self.listen {
            Some(address) => Some(self.pages(address).await?),
            None => None,
        };
        let Some(mut job) = started(pipeline, &mut signals).await? else { return Ok(()) };
        signals.watch(job.stopper());
        tokio::spawn(resident::let_go_of_the_start());
        if let Some(pages) = &pages {
            pages.show(job.progress());
            pages.control(job.stopper());
        }
        #[cfg(feature = "otel")]
        let traces = collector.map(|collector| Traces::begin(collector, job.progress()));
        let ended = watch(&mut job).await;
        #[cfg(feature = "otel")]
        if let Some(traces) = traces {
            traces.end(job.progress()).await;
        }
        let report = ended?;
        if let Some(path) = &self.report {
            write_report(&report, path).await?;
        }
        terminal::say(&summary(&report));
        Ok(())
    }

    async fn pages(&self, address: &str) -> Result<Pages, Error> {
        let token = token(self.token_file.as_deref()).await?;
        let pages = Pages::listen_with(address, PagesSettings { ready_within: self.ready_within, token }).await?;
        match pages.has_console() {
            true => tracing::info!("serving a console on http://{0}/, and http://{0}/metrics", pages.address()),
            false => tracing::warn!(
                "serving http://{}/health and /ready only: others reach the address, so metrics, API and console need a \
                 token (--token-file or NEXUS_TOKEN)",
                pages.address()
            ),
        }
        Ok(pages)
    }
}

/// Reads the token that guards pages: from a file, or from the environment.
pub async fn token(file: Option<&Path>) -> Result<Option<Token>, Error> {
    let text = match file {
        None => std::env::var("NEXUS_TOKEN").ok(),
        Some(path) => {
            let read = tokio::fs::read_to_string(path).await;
            Some(read.map_err(|e| Error::config(format!("could not read the token in {}", path.display())).because(e))?)
        }
    };
    text.map(|text| Token::new(&text)).transpose()
}

/// Starts a pipeline; gives nothing if it was told to stop meanwhile.
pub async fn started(pipeline: Pipeline, signals: &mut Signals) -> Result<Option<Job>, Failure> {
    // A start may wait for a service for minutes. Nothing has been read yet, so to drop it loses nothing.
    let started = tokio::select! {
        started = pipeline.start() => started,
        () = signals.next() => {
            tracing::info!("told to stop before the sources were open: nothing was read");
            return Ok(None);
        }
    };
    Ok(Some(started?))
}

/// Writes what was committed to a file.
pub async fn write_report(report: &impl serde::Serialize, path: &Path) -> Result<(), Error> {
    let json = serde_json::to_vec_pretty(report);
    let json = json.map_err(|e| Error::internal("could not write the report").because(e))?;
    let written = tokio::fs::write(path, json).await;
    written.map_err(|e| Error::config(format!("could not write the report to {}", path.display())).because(e))
}

/// Shows progress until the job ends.
async fn watch(job: &mut Job) -> Result<Report, Error> {
    let progress = job.progress().clone();
    let watched = terminal::is_watched();
    let mut show = interval(if watched { SHOW_EVERY } else { LOG_EVERY });
    show.set_missed_tick_behavior(MissedTickBehavior::Delay);
    show.tick().await;
    let mut rate = Rate::new(&progress);
    let mut done = std::pin::pin!(job.wait());
    loop {
        // Cancel-safe: the job is polled by reference, and a tick that is missed is made up for.
        tokio::select! {
            ended = &mut done => {
                if watched {
                    terminal::progress("");
                }
                return ended;
            }
            _ = show.tick() => {
                let line = rate.line(&progress);
                if watched { terminal::progress(&line) } else { tracing::info!("{line}") }
            }
        }
    }
}

/// What was read when progress was last shown.
struct Rate {
    at: Instant,
    rows: u64,
    bytes: u64,
}

impl Rate {
    fn new(progress: &Progress) -> Self {
        let (rows, bytes) = progress.read();
        Self { at: Instant::now(), rows, bytes }
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown rounded"
    )]
    fn line(&mut self, progress: &Progress) -> String {
        let (rows, bytes) = progress.read();
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        let per_second = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        let read = format!("{} rows/s  {}/s", count(per_second(rows, self.rows)), size(per_second(bytes, self.bytes)));
        *self = Self { at: Instant::now(), rows, bytes };
        let lag = progress.lag_ms().map(|ms| format!("  lag {:.1} s", ms as f64 / 1e3)).unwrap_or_default();
        let tables = progress.rows_out().map(|(name, rows)| format!("{name} {}", count(rows)));
        format!("{read}{lag}  {}", tables.collect::<Vec<_>>().join("  "))
    }
}

/// Lays out what a run has committed.
fn summary(report: &Report) -> String {
    if report.epochs == 0 {
        return format!("{}: nothing new; no file was changed ({:.1} s)", report.pipeline, report.elapsed_s);
    }
    let sources = report.sources.iter().map(|(name, counts)| {
        vec![name.clone(), count(counts.records), count(counts.rows), count(counts.quarantined), size(counts.bytes)]
    });
    let tables = report.tables.iter().map(|(name, table)| {
        let counts = &table.counts;
        let files: u64 =
            report.sinks.get(name).into_iter().flat_map(|kinds| kinds.values()).map(|sink| sink.files).sum();
        let left = counts.dropped + counts.quarantined + counts.duplicates + counts.late;
        vec![name.clone(), count(counts.rows_in), count(counts.rows_out), count(left), count(files)]
    });
    format!(
        "{}\n\n{}\n\n{}: {} in {:.1} s, generation {}",
        layout(&["source", "records", "rows", "quarantined", "bytes"], &sources.collect::<Vec<_>>()),
        layout(&["table", "rows in", "rows out", "left out", "files"], &tables.collect::<Vec<_>>()),
        report.pipeline,
        counted(report.epochs, "epoch"),
        report.elapsed_s,
        report.generation,
    )
}
