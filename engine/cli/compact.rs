//! `nexus compact`: merge small files of the lake.

use std::path::PathBuf;
use std::sync::Arc;

use nexus_operators::clock::SystemClock;

use super::log::Log;
use super::run::write_report;
use super::table::layout;
use super::terminal::{self, count, size};
use super::{Failure, File};
use crate::Error;
use crate::job::compact::{Compacted, Compaction, Report, compact, is_compacted, survey};
use crate::job::redrive::Redrive;
use crate::plan::Plan;
use crate::plan::table::TablePlan;
use crate::spec::suggest;
use crate::spec::units::ByteSize;

/// Merge small files of the lake's tables, in each partition folder, into files of a size that readers like.
///
/// Rows are neither lost nor doubled, whenever the process dies, and `nexus query`, `nexus audit` and readers of Delta
/// tables see each once at any time. The small files of a Delta table stay in its folder for readers of older versions,
/// until its `VACUUM`. A run of the pipeline that is under way stops, as by any other start.
#[derive(Debug, clap::Args)]
pub struct Merge {
    #[command(flatten)]
    file: File,
    /// Only this table (`tier.table`).
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// How large files become; those of less than half of it are merged.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = byte_size)]
    target_size: u64,
    /// Only tell what would be merged.
    #[arg(long)]
    dry_run: bool,
    /// Write what was merged to this file, as JSON.
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    report: Option<PathBuf>,
    #[command(flatten)]
    log: Log,
}

impl Merge {
    pub async fn execute(self) -> Result<(), Failure> {
        self.log.start()?;
        let plan = self.file.plan().await?;
        if let Some(name) = &self.table {
            check_name(&plan, name)?;
        }
        let compaction = Compaction { table: self.table.clone(), target_bytes: self.target_size };
        if self.dry_run {
            let tables = survey(&plan, &compaction, Arc::new(SystemClock)).await?;
            terminal::say(&summary(&Report { pipeline: plan.loaded.spec.name.clone(), tables, ..Report::default() }));
            return Ok(());
        }
        // No signal is listened for: to end a compaction is to end it as a crash would, and the next start goes on. A redrive
        // of nothing has the sinks commit what an earlier process has recorded.
        let mut job = self.file.load().await?.redriving(Redrive::default()).start().await?;
        job.wait().await?;
        let report = compact(&plan, &compaction, Arc::new(SystemClock)).await?;
        if let Some(path) = &self.report {
            write_report(&report, path).await?;
        }
        terminal::say(&summary(&report));
        Ok(())
    }
}

fn byte_size(text: &str) -> Result<u64, String> {
    ByteSize::try_from(text.to_owned()).map(|size| size.0)
}

fn check_name(plan: &Plan, name: &str) -> Result<(), Error> {
    let stored = plan.tables.iter().filter(|table| is_compacted(plan, table));
    let names: Vec<String> = stored.map(TablePlan::name).collect();
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let hint =
        suggest::hint(name, names.iter().map(String::as_str)).map(|hint| format!("; {hint}")).unwrap_or_default();
    Err(Error::config(format!("there is no stored table `{name}`{hint}")))
}

/// Lays out what was merged, or would be.
fn summary(report: &Report) -> String {
    if report.tables.is_empty() {
        return format!("{}: no small files to merge", report.pipeline);
    }
    let rows = report.tables.iter().map(|(name, table)| {
        let Compacted { files_before, files_after, bytes_before, bytes_after, rows } = table;
        // A dry run has neither read nor written any.
        let written = [count(*rows), size(*bytes_before), size(*bytes_after)];
        let written =
            if report.generation == 0 { ["-".to_owned(), size(*bytes_before), "-".to_owned()] } else { written };
        [vec![name.clone(), count(*files_before), count(*files_after)], written.into()].concat()
    });
    let rows: Vec<_> = rows.collect();
    let table = layout(&["table", "files", "become", "rows", "bytes", "become"], &rows);
    if report.generation == 0 {
        return format!("{table}\n\n{}: nothing was changed", report.pipeline);
    }
    format!("{table}\n\n{}: {} epochs, generation {}", report.pipeline, report.epochs, report.generation)
}
