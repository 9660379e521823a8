//! One frame: what a run tells at a moment, laid out in lines.

use super::client::Client;
use crate::Result;
use crate::cli::table::layout;
use crate::cli::terminal::{count, size};
use crate::serve::api::told::{
    ChannelTold, Channels, Epoch, Epochs, Memory, Pipeline, Quarantine, RunState, Sources, Tables,
};

/// Channels that are shown, those first that hold up their senders most.
const CHANNELS_MAX: usize = 5;

/// Epochs that are shown.
const EPOCHS_MAX: usize = 5;

/// Rules that are shown, those first that are broken most.
const RULES_MAX: usize = 8;

/// What a run tells.
pub struct Frame {
    pipeline: Pipeline,
    sources: Sources,
    tables: Tables,
    channels: Channels,
    epochs: Epochs,
    memory: Memory,
    quarantine: Quarantine,
}

impl Frame {
    /// Asks a run.
    pub async fn ask(client: &Client) -> Result<Self> {
        Ok(Self {
            pipeline: client.get("pipeline").await?,
            sources: client.get("sources").await?,
            tables: client.get("tables").await?,
            channels: client.get("channels").await?,
            epochs: client.get("epochs").await?,
            memory: client.get("memory").await?,
            quarantine: client.get("quarantine").await?,
        })
    }

    /// Lays it out.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.head();
        let parts = [self.sources(), self.tables(), self.channels(), self.epochs(), self.quarantine()];
        for part in parts {
            lines.push(String::new());
            lines.extend(part.lines().map(printable));
        }
        lines
    }

    fn head(&self) -> Vec<String> {
        let pipeline = &self.pipeline;
        let state = match pipeline.state {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Draining => "draining",
        };
        let why = pipeline.not_ready.as_ref().map_or("ready".to_owned(), |why| format!("not ready: {why}"));
        let lag = pipeline.lag_ms.map_or_else(|| "unknown".to_owned(), |ms| seconds(ms as f64 / 1e3));
        let resident = self.memory.resident_bytes.map(size).unwrap_or_default();
        let parts = self.memory.components.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes)));
        vec![
            printable(&format!("{}  {state}, {why}", pipeline.name)),
            format!(
                "{} rows/s  {}/s  lag {lag}  epochs {}  waits for commit {}  generation {}",
                rate(pipeline.rows_per_s),
                bytes(pipeline.bytes_per_s),
                count(pipeline.epochs),
                seconds(pipeline.waiting_s),
                pipeline.generation,
            ),
            format!("memory {resident} of {}: {}", size(self.memory.limit_bytes), parts.collect::<Vec<_>>().join(", ")),
        ]
    }

    fn sources(&self) -> String {
        let rows = self.sources.sources.iter().map(|source| {
            vec![
                source.name.clone(),
                rate(source.rows_per_s),
                bytes(source.bytes_per_s),
                count(source.rows),
                source.lag_ms.map_or_else(|| "-".to_owned(), |ms| seconds(ms as f64 / 1e3)),
                count(source.quarantined),
                time(source.watermark_ms),
            ]
        });
        let heading = ["SOURCE", "ROWS/S", "BYTES/S", "ROWS", "LAG", "QUARANTINED", "EVENT TIME"];
        layout(&heading, &rows.collect::<Vec<_>>())
    }

    fn tables(&self) -> String {
        let rows = self.tables.tables.iter().map(|table| {
            let fates = &table.fates;
            vec![
                table.name.clone(),
                rate(table.rows_per_s),
                count(fates.arrived),
                count(fates.out),
                count(fates.late),
                count(fates.dropped),
                count(fates.duplicates),
                count(fates.quarantined),
                size(table.state_bytes),
                time(table.watermark_ms),
            ]
        });
        let heading =
            ["TABLE", "ROWS/S", "IN", "OUT", "LATE", "DROPPED", "DUPLICATE", "QUARANTINED", "STATE", "EVENT TIME"];
        layout(&heading, &rows.collect::<Vec<_>>())
    }

    fn channels(&self) -> String {
        let mut channels: Vec<&ChannelTold> = self.channels.channels.iter().collect();
        channels.sort_by(|a, b| {
            (b.blocked_share, b.bytes).partial_cmp(&(a.blocked_share, a.bytes)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let rows = channels.into_iter().take(CHANNELS_MAX).map(|channel| {
            let held = match channel.blocked_share {
                share if share >= 0.01 => format!("{} holds up {}", channel.to, channel.from),
                _ => format!("{} keeps up with {}", channel.to, channel.from),
            };
            vec![held, percent(channel.blocked_share), size(channel.bytes), size(channel.limit_bytes)]
        });
        layout(&["CHANNEL", "HELD UP", "WAITS", "OF"], &rows.collect::<Vec<_>>())
    }

    fn epochs(&self) -> String {
        let step = |epoch: &Epoch, name: &str| {
            let found = epoch.steps.iter().find(|step| step.step == name);
            found.map(|step| seconds(step.seconds)).unwrap_or_default()
        };
        let rows = self.epochs.epochs.iter().take(EPOCHS_MAX).map(|epoch| {
            let steps = ["cut", "decode", "transform", "prepare", "record", "commit"];
            let before = [count(epoch.epoch), seconds(epoch.total_s)];
            let after = [count(epoch.records), count(epoch.rows_out), size(epoch.bytes)];
            before.into_iter().chain(steps.map(|name| step(epoch, name))).chain(after).collect()
        });
        let heading = [
            "EPOCH",
            "TOOK",
            "CUT",
            "DECODE",
            "TRANSFORM",
            "PREPARE",
            "RECORD",
            "COMMIT",
            "RECORDS",
            "ROWS OUT",
            "STORED",
        ];
        layout(&heading, &rows.collect::<Vec<_>>())
    }

    fn quarantine(&self) -> String {
        let mut rules: Vec<_> = self.quarantine.rules.iter().collect();
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.rows));
        let rows = rules.into_iter().take(RULES_MAX).map(|rule| {
            let reason = rule.recent.first().map(|reason| reason.reason.as_str()).unwrap_or_default();
            vec![format!("{}: {}", rule.of, rule.rule), count(rule.rows), format!(" {reason}")]
        });
        let rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            return "QUARANTINE  nothing".to_owned();
        }
        // The reasons go to the left, behind aligned counts.
        let counted: Vec<Vec<String>> = rows.iter().map(|row| row.iter().take(2).cloned().collect()).collect();
        let aligned = layout(&["QUARANTINE", "ROWS"], &counted);
        let reasons = std::iter::once("").chain(rows.iter().filter_map(|row| row.last()).map(String::as_str));
        aligned.lines().zip(reasons).map(|(line, reason)| format!("{line}{reason}\n")).collect()
    }
}

/// Takes out what a terminal would obey: reasons quote what has come.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown rounded")]
fn rate(per_second: f64) -> String {
    count(per_second.max(0.0).round() as u64)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown rounded")]
fn bytes(per_second: f64) -> String {
    size(per_second.max(0.0).round() as u64)
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn time(ms: Option<i64>) -> String {
    let time = ms.and_then(chrono::DateTime::from_timestamp_millis);
    time.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
