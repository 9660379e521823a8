//! `nexus state`: epochs, positions, and what is prepared and not committed.

use nexus_operators::clock::{Clock, SystemClock};
use nexus_operators::position::Position;

use super::table::layout;
use super::terminal::{self, count, size};
use super::{Failure, File};
use crate::job::state_store;
use crate::state::record::ReferenceVersion;
use crate::state::schema::{StoredColumn, TableSchema};

/// Show epochs, positions, and what is prepared and not committed.
#[derive(Debug, clap::Args)]
pub struct ShowState {
    #[command(flatten)]
    file: File,
    /// Write the state as JSON.
    #[arg(long)]
    json: bool,
}

impl ShowState {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        let store = state_store(&plan.loaded, std::sync::Arc::new(SystemClock)).await?;
        let state = store.load().await?;
        let committed = store.committed().await?;
        if self.json {
            let shown = serde_json::json!({ "state": state, "committed": committed });
            let text = serde_json::to_string_pretty(&shown);
            terminal::say(&text.map_err(|e| crate::Error::internal("could not write the state").because(e))?);
            return Ok(());
        }
        if state.epoch == 0 {
            terminal::say(&format!("{}: has never committed", plan.loaded.spec.name));
            return Ok(());
        }
        let age_s = SystemClock.now_us().saturating_sub(state.written_at_us) / 1_000_000;
        terminal::say(&format!(
            "{}: epoch {} of generation {}, committed {age_s} s ago",
            plan.loaded.spec.name, state.epoch, state.generation
        ));
        for (name, cut) in &state.positions {
            let rows = cut.advanced.iter().map(|(partition, at)| vec![partition.clone(), position(at)]);
            terminal::say(&format!("\nsource {name}"));
            if let Some(watermark_us) = state.watermarks_us.get(name) {
                terminal::say(&format!("watermark {}", time(*watermark_us)));
            }
            terminal::say(&layout(&["partition", "position"], &rows.collect::<Vec<_>>()));
        }
        for (name, ReferenceVersion { version, read_at_us, rows, files }) in &state.references {
            terminal::say(&format!(
                "\nreference {name}: version {version}, {} rows, read {}",
                count(*rows),
                time(*read_at_us)
            ));
            let files = files.iter().map(|file| vec![file.path.clone(), size(file.bytes), time(file.changed_us)]);
            terminal::say(&layout(&["file", "size", "changed"], &files.collect::<Vec<_>>()));
        }
        for (name, versions) in &state.schemas {
            terminal::say(&format!("\ntable {name}"));
            let rows = versions.iter().enumerate().map(|(place, schema)| {
                let before = place.checked_sub(1).and_then(|before| versions.get(before));
                vec![schema.version.to_string(), schema.since_epoch.to_string(), columns(schema, before)]
            });
            terminal::say(&layout(&["version", "since epoch", "columns"], &rows.collect::<Vec<_>>()));
        }
        let sinks = committed
            .iter()
            .map(|(sink, epoch)| vec![sink.clone(), epoch.to_string(), count(state.epoch.saturating_sub(*epoch))]);
        let sinks: Vec<_> = sinks.collect();
        terminal::say(&format!("\n{}", layout(&["sink", "committed epoch", "behind"], &sinks)));
        Ok(())
    }
}

/// Gives the columns of a version; behind the first, those that are others than before.
fn columns(schema: &TableSchema, before: Option<&TableSchema>) -> String {
    let known = |column: &StoredColumn| before.and_then(|before| before.column(&column.name));
    let columns = schema.columns.iter().filter(|column| known(column) != Some(column)).map(|column| {
        let sign = match (before, known(column)) {
            (None, _) => "",
            (_, None) => "+ ",
            _ => "~ ",
        };
        let null = if column.nullable { "" } else { " not null" };
        format!("{sign}{} {}{null}", column.name, column.data_type)
    });
    columns.collect::<Vec<_>>().join(", ")
}

fn position(position: &Position) -> String {
    match position {
        Position::Start => "start".to_owned(),
        Position::Time { ms } => format!("from {}", time(ms.saturating_mul(1000))),
        Position::Sequence { sequence, sub_sequence: None } => sequence.clone(),
        Position::Sequence { sequence, sub_sequence: Some(sub) } => format!("{sequence}:{sub}"),
        Position::Offset { offset, .. } => format!("at {}", count(*offset)),
        Position::Done { offset, .. } => format!("done ({})", count(*offset)),
    }
}

fn time(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us).map_or_else(|| us.to_string(), |time| time.to_rfc3339())
}
