//! `nexus audit`: prove from commit records and files that every row is accounted for.

use super::table::layout;
use super::terminal::{self, count};
use super::{Failure, File};
use crate::audit::{Audit, AuditSettings, Fault, SinkFindings, audit};

/// Prove from commit records and files that every row is accounted for.
#[derive(Debug, clap::Args)]
pub struct ProveWhole {
    #[command(flatten)]
    file: File,
    /// Write what was found as JSON.
    #[arg(long)]
    json: bool,
    /// Do not ask Postgres.
    #[arg(long)]
    skip_postgres: bool,
}

impl ProveWhole {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        let found = audit(&plan, AuditSettings { skip_postgres: self.skip_postgres }).await?;
        if self.json {
            let text = serde_json::to_string_pretty(&found);
            terminal::say(&text.map_err(|e| crate::Error::internal("could not write the audit").because(e))?);
        } else {
            terminal::say(&told(&found));
            for fault in &found.faults {
                terminal::complain(&named(fault));
            }
        }
        if found.whole { Ok(()) } else { Err(Failure::Said) }
    }
}

/// Lays out what was found.
fn told(audit: &Audit) -> String {
    let of = |name: &str| audit.faults.iter().filter(|fault| fault.of == name).count();
    let sources = audit.sources.iter().map(|(name, found)| {
        let counts = &found.counts;
        let verdict = verdict(of(name), None);
        let numbers = [found.epochs, found.partitions, counts.records, counts.rows, counts.quarantined].map(count);
        [vec![name.clone()], numbers.into(), vec![verdict]].concat()
    });
    let sinks = audit.sinks.iter().map(|(name, found)| {
        let numbers = match found.left_out {
            None => [found.epochs, found.files, found.rows].map(count),
            Some(_) => [count(found.epochs), "-".to_owned(), "-".to_owned()],
        };
        [vec![name.clone()], numbers.into(), vec![verdict(of(name), Some(found))]].concat()
    });
    let sources = layout(
        &["source", "epochs", "partitions", "records", "rows", "quarantined", "verdict"],
        &sources.collect::<Vec<_>>(),
    );
    let sinks = layout(&["table", "epochs", "files", "rows", "verdict"], &sinks.collect::<Vec<_>>());
    let faults = audit.faults.len() as u64;
    let verdict = if audit.whole { "whole".to_owned() } else { format!("{} faults", count(faults)) };
    format!(
        "{sources}\n\n{sinks}\n\n{}: epochs {} to {}, {verdict}",
        audit.pipeline, audit.first_epoch, audit.last_epoch
    )
}

fn verdict(faults: usize, sink: Option<&SinkFindings>) -> String {
    match (faults, sink) {
        (1, _) => "1 fault".to_owned(),
        (2.., _) => format!("{faults} faults"),
        (0, Some(SinkFindings { left_out: Some(why), .. })) => format!("left out: {why}"),
        (0, Some(SinkFindings { uncommitted: 1.., .. })) => {
            format!("whole, {} epochs to commit", sink.map_or(0, |sink| sink.uncommitted))
        }
        (0, Some(SinkFindings { waiting: waiting @ 1.., .. })) => {
            format!("whole, {} rows wait for a larger file", count(*waiting))
        }
        (0, _) => "whole".to_owned(),
    }
}

fn named(fault: &Fault) -> String {
    let epoch = fault.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    format!("fault: {}{epoch}: {}\n  expected {}\n  found {}", fault.of, fault.at, fault.expected, fault.found)
}
