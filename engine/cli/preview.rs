//! `nexus preview`: a table made of a little of what the real sources have.

use std::time::Duration;

use futures::stream;

use super::answer::Answer;
use super::{Failure, File, log, span, terminal};
use crate::preview::{Preview as Shown, PreviewSettings, preview};
use crate::spec::units::ByteSize;

/// Show a table made of a little of what the real sources have, and commit nothing.
///
/// It claims no generation, so that a running pipeline goes on, and writes no table. Messages that it receives from an SQS
/// queue are not deleted: they come back when their visibility has run out.
#[derive(Debug, clap::Args)]
pub struct Preview {
    #[command(flatten)]
    file: File,
    /// The table, as tier.table, or a source.
    table: String,
    /// Show at most so many rows.
    #[arg(long, default_value_t = 20)]
    rows: usize,
    /// Read about so much of each source.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    read: ByteSize,
    /// How long a source may have nothing to read before it counts as empty.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = span)]
    wait: Duration,
    #[command(flatten)]
    answer: Answer,
}

impl Preview {
    pub async fn execute(self) -> Result<(), Failure> {
        log::tell_of_waiting();
        let pipeline = self.file.load().await?;
        let settings = PreviewSettings { bytes_max: self.read.0, wait: self.wait };
        let Shown { columns, rows, report } = preview(pipeline.loaded(), &self.table, settings).await?;
        let all: usize = rows.iter().map(|batch| batch.num_rows()).sum();
        let mut left = self.rows;
        let shown = rows.into_iter().map_while(|batch| {
            let taken = batch.num_rows().min(left);
            left -= taken;
            (taken > 0).then(|| Ok(batch.slice(0, taken)))
        });
        self.answer.write(&columns, stream::iter(shown)).await?;
        let (shown, all) = (all.min(self.rows) as u64, all as u64);
        let mut lines = vec![format!("{} of {} rows", terminal::count(shown), terminal::count(all))];
        for (source, counts) in &report.sources {
            let (records, bytes) = (terminal::count(counts.records), terminal::size(counts.bytes));
            lines.push(format!("{source}: {records} records ({bytes}), {} quarantined", counts.quarantined));
        }
        for (table, report) in report.tables.iter().filter(|(_, report)| report.counts.quarantined > 0) {
            lines.push(format!("{table}: {} rows quarantined", report.counts.quarantined));
        }
        terminal::complain(&lines.join("\n"));
        Ok(())
    }
}

fn size(text: &str) -> Result<ByteSize, String> {
    ByteSize::try_from(text.to_owned())
}
