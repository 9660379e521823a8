//! `nexus redrive`: send quarantined rows again.

use std::path::PathBuf;
use std::sync::Arc;

use nexus_operators::clock::SystemClock;

use super::log::Log;
use super::run::{started, write_report};
use super::signals::Signals;
use super::table::layout;
use super::terminal::{self, count, counted};
use super::{Failure, File};
use crate::Error;
use crate::job::progress::Report;
use crate::job::redrive::Redrive;
use crate::job::{held, state_store};
use crate::plan::Plan;
use crate::plan::table::TablePlan;
use crate::spec::suggest;

/// Send quarantined rows again, once each, after what was wrong with them has been corrected.
///
/// Records that did not decode go through their decoder, rows that broke a rule go to the rules of their table. What
/// fails again is quarantined again; what lands leaves the quarantine. Sources are not read. A run of the pipeline that
/// is under way stops, as by any other start.
#[derive(Debug, clap::Args)]
pub struct SendAgain {
    #[command(flatten)]
    file: File,
    /// Only what this source or table (`tier.table`) has quarantined.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Only count what would be sent.
    #[arg(long)]
    dry_run: bool,
    /// Write what was committed to this file, as JSON.
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    report: Option<PathBuf>,
    #[command(flatten)]
    log: Log,
}

impl SendAgain {
    pub async fn execute(self) -> Result<(), Failure> {
        self.log.start()?;
        let plan = self.file.plan().await?;
        if let Some(name) = &self.table {
            check_name(&plan, name)?;
        }
        let clock = Arc::new(SystemClock);
        let upto = state_store(&plan.loaded, clock.clone()).await?.load().await?.epoch;
        let redrive = Redrive { of: self.table.clone(), upto };
        if self.dry_run {
            let rows = held(&plan, &redrive, clock).await?.into_iter().map(|(of, held)| {
                vec![of, count(held.rows), count(held.redrivable), count(held.rows.saturating_sub(held.redrivable))]
            });
            let rows: Vec<_> = rows.collect();
            let name = &plan.loaded.spec.name;
            terminal::say(&match rows.is_empty() {
                true => format!("{name}: the quarantine is empty"),
                false => layout(&["quarantine of", "rows", "to send", "to stay"], &rows),
            });
            return Ok(());
        }
        let mut signals = Signals::listen()?;
        let mut total = Report { pipeline: plan.loaded.spec.name.clone(), ..Report::default() };
        loop {
            let pipeline = self.file.load().await?.redriving(redrive.clone());
            let Some(mut job) = started(pipeline, &mut signals).await? else { break };
            // Cancel-safe: a job that is not waited for goes on.
            let report = tokio::select! {
                report = job.wait() => report?,
                () = signals.next() => {
                    tracing::info!("told to stop: committing what is being sent; the rest stays in the quarantine");
                    job.stop();
                    tokio::spawn(signals.abort_at_next());
                    total.add(job.wait().await?);
                    break;
                }
            };
            if report.epochs == 0 {
                break;
            }
            total.add(report);
        }
        if let Some(path) = &self.report {
            write_report(&total, path).await?;
        }
        terminal::say(&summary(&total));
        Ok(())
    }
}

fn check_name(plan: &Plan, name: &str) -> Result<(), Error> {
    let names: Vec<String> = plan.opened_sources().into_iter().chain(plan.tables.iter().map(TablePlan::name)).collect();
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let names = names.iter().map(String::as_str);
    let hint = suggest::hint(name, names).map(|hint| format!("; {hint}")).unwrap_or_default();
    Err(Error::config(format!("there is no source or table `{name}`{hint}")))
}

/// Lays out what was sent, and what became of it.
fn summary(report: &Report) -> String {
    let sources = report.sources.iter().map(|(name, counts)| (name, counts.redriven, counts.rows, counts.quarantined));
    let tables = report.tables.iter().map(|(name, table)| {
        let counts = &table.counts;
        let refused: u64 = report.sinks.get(name).into_iter().flatten().map(|(_, counts)| counts.refused).sum();
        let back = counts.quarantined.saturating_add(refused);
        (name, counts.redriven, counts.redriven.saturating_sub(back), back)
    });
    let sent = sources.chain(tables).filter(|(_, redriven, ..)| *redriven > 0);
    let sent = sent.map(|(name, redriven, good, bad)| vec![name.clone(), count(redriven), count(good), count(bad)]);
    let sent: Vec<_> = sent.collect();
    if sent.is_empty() {
        return format!("{}: nothing in the quarantine can be sent again", report.pipeline);
    }
    let tables = report.tables.iter().map(|(name, table)| {
        let counts = &table.counts;
        vec![name.clone(), count(counts.rows_in), count(counts.rows_out), count(counts.late), count(counts.duplicates)]
    });
    format!(
        "{}\n\n{}\n\n{}: {} in {:.1} s, generation {}",
        layout(&["quarantine of", "taken out", "good now", "back again"], &sent),
        layout(&["table", "rows in", "rows out", "late", "duplicates"], &tables.collect::<Vec<_>>()),
        report.pipeline,
        counted(report.epochs, "epoch"),
        report.elapsed_s,
        report.generation,
    )
}
