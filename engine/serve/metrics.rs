//! What a run has counted, in the text format of Prometheus.
//!
//! Names follow <https://prometheus.io/docs/practices/naming>: a unit at the end, `_total` for what only grows. Counters
//! start from 0 with each process.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::job::progress::Progress;

/// The smallest unit in which this process's own memory is told by the system; Linux on all machines that Nexus is
/// built for has pages of this size.
const PAGE_BYTES: u64 = 4096;

/// Writes the metrics of a run; those of the process alone before there is one.
pub fn of(progress: Option<&Progress>) -> String {
    let mut page = Page::default();
    page.family("nexus_up", "gauge", "1 once the sources are open.");
    page.value("nexus_up", &[], u64::from(progress.is_some()));
    if let Some(bytes) = resident_bytes() {
        page.family("process_resident_memory_bytes", "gauge", "Memory that the process holds.");
        page.value("process_resident_memory_bytes", &[], bytes);
    }
    if let Some(progress) = progress {
        commits(&mut page, progress);
        sources(&mut page, progress);
        tables(&mut page, progress);
        sinks(&mut page, progress);
        errors(&mut page, progress);
        memory(&mut page, progress);
    }
    page.text
}

fn commits(page: &mut Page, progress: &Progress) {
    let report = progress.report();
    let standing = progress.standing();
    page.family("nexus_info", "gauge", "The pipeline and the version of nexus that runs it.");
    page.value("nexus_info", &[("pipeline", &report.pipeline), ("version", env!("CARGO_PKG_VERSION"))], 1);
    page.one(
        "nexus_generation",
        "gauge",
        "The number of this process among those that ran the pipeline.",
        report.generation,
    );
    page.one("nexus_epochs_total", "counter", "Epochs recorded.", report.epochs);
    if let Some(at_us) = standing.committed_at_us {
        let help = "When an epoch was last committed by all sinks, since the Unix epoch.";
        page.family("nexus_last_commit_timestamp_seconds", "gauge", help);
        page.value("nexus_last_commit_timestamp_seconds", &[], seconds(u64::try_from(at_us).unwrap_or(0), 1e6));
    }
    page.family(
        "nexus_uncommitted_seconds",
        "gauge",
        "For how long the oldest closed epoch has waited for its commit.",
    );
    page.value("nexus_uncommitted_seconds", &[], progress.waiting().as_secs_f64());
    page.family("nexus_lineage_events_total", "counter", "OpenLineage events about the run, by what became of them.");
    for (fate, events) in [("sent", &progress.lineage.sent), ("dropped", &progress.lineage.dropped)] {
        page.value("nexus_lineage_events_total", &[("fate", fate)], events.load(Ordering::Relaxed));
    }
    page.one("nexus_spooled_bytes", "gauge", "Bytes that are prepared and not yet committed.", standing.spooled_bytes);
}

fn sources(page: &mut Page, progress: &Progress) {
    page.family("nexus_source_read_rows_total", "counter", "Rows decoded, committed or not.");
    for (name, source) in &progress.sources {
        page.value("nexus_source_read_rows_total", &[("source", name)], source.rows.load(Ordering::Relaxed));
    }
    page.family("nexus_source_read_bytes_total", "counter", "Bytes read, decompressed, committed or not.");
    for (name, source) in &progress.sources {
        page.value("nexus_source_read_bytes_total", &[("source", name)], source.bytes.load(Ordering::Relaxed));
    }
    page.family("nexus_source_caught_up", "gauge", "1 if the source has nothing to read at the moment.");
    for (name, source) in &progress.sources {
        let caught_up = source.caught_up.load(Ordering::Relaxed);
        page.value("nexus_source_caught_up", &[("source", name)], u64::from(caught_up));
    }
    page.family("nexus_source_lag_seconds", "gauge", "How far the source is behind, if its service tells.");
    for (name, source) in &progress.sources {
        if let Some(lag_ms) = source.lag_ms() {
            page.value("nexus_source_lag_seconds", &[("source", name)], seconds(lag_ms, 1e3));
        }
    }
    let report = progress.report();
    page.family("nexus_source_records_total", "counter", "Records of recorded epochs.");
    for (name, counts) in &report.sources {
        page.value("nexus_source_records_total", &[("source", name)], counts.records);
    }
    page.family(
        "nexus_source_skipped_total",
        "counter",
        "Records of recorded epochs that hold no row by their nature.",
    );
    for (name, counts) in &report.sources {
        page.value("nexus_source_skipped_total", &[("source", name)], counts.skipped);
    }
    page.family("nexus_source_quarantined_total", "counter", "Records of recorded epochs that did not decode.");
    for (name, counts) in &report.sources {
        page.value("nexus_source_quarantined_total", &[("source", name)], counts.quarantined);
    }
}

fn tables(page: &mut Page, progress: &Progress) {
    let report = progress.report();
    page.family("nexus_table_rows_total", "counter", "Rows of recorded epochs, by what became of them.");
    for (name, table) in &report.tables {
        let counts = &table.counts;
        for (fate, rows) in [
            ("in", counts.rows_in),
            ("late", counts.late),
            ("correcting", counts.correcting),
            ("sql", counts.rows_sql),
            ("dropped", counts.dropped),
            ("quarantined", counts.quarantined),
            ("duplicate", counts.duplicates),
            ("out", counts.rows_out),
            ("resent", counts.resent),
        ] {
            page.value("nexus_table_rows_total", &[("table", name), ("fate", fate)], rows);
        }
    }
    page.family("nexus_rule_broken_total", "counter", "Rows of recorded epochs that broke a rule.");
    for (name, table) in &report.tables {
        for (rule, rows) in &table.rules {
            page.value("nexus_rule_broken_total", &[("table", name), ("rule", rule)], *rows);
        }
    }
}

fn sinks(page: &mut Page, progress: &Progress) {
    let report = progress.report();
    let sinks =
        || report.sinks.iter().flat_map(|(table, kinds)| kinds.iter().map(move |(kind, counts)| (table, kind, counts)));
    page.family("nexus_sink_rows_total", "counter", "Rows stored by recorded epochs.");
    for (table, kind, counts) in sinks() {
        page.value("nexus_sink_rows_total", &[("table", table), ("sink", kind)], counts.rows);
    }
    page.family("nexus_sink_bytes_total", "counter", "Encoded bytes stored by recorded epochs.");
    for (table, kind, counts) in sinks() {
        page.value("nexus_sink_bytes_total", &[("table", table), ("sink", kind)], counts.bytes);
    }
    page.family("nexus_sink_files_total", "counter", "Files stored by recorded epochs.");
    for (table, kind, counts) in sinks() {
        page.value("nexus_sink_files_total", &[("table", table), ("sink", kind)], counts.files);
    }
    let help = "Of the rows, those that the service has refused and that have gone to the quarantine.";
    page.family("nexus_sink_refused_rows_total", "counter", help);
    for (table, kind, counts) in sinks() {
        page.value("nexus_sink_refused_rows_total", &[("table", table), ("sink", kind)], counts.refused);
    }
}

fn errors(page: &mut Page, progress: &Progress) {
    let report = progress.report();
    if report.errors.is_empty() {
        return;
    }
    page.family("nexus_error_budget_bad_rows", "gauge", "Rows that an error budget has counted as bad in its time.");
    for (of, errors) in &report.errors {
        page.value("nexus_error_budget_bad_rows", &[("of", of)], errors.bad);
    }
    page.family("nexus_error_budget_allowed_rows", "gauge", "Rows that may be bad in an error budget's time.");
    for (of, errors) in &report.errors {
        page.value("nexus_error_budget_allowed_rows", &[("of", of)], errors.allowed);
    }
}

fn memory(page: &mut Page, progress: &Progress) {
    let limits = &progress.limits;
    page.one("nexus_memory_limit_bytes", "gauge", "What `limits.memory` allows.", limits.memory_bytes);
    let state = progress.state_bytes() as u64;
    page.one("nexus_state_bytes", "gauge", "What open windows and remembered keys take.", state);
    page.family("nexus_channel_bytes", "gauge", "What waits in a channel between two stages.");
    let channels = progress.channels();
    for (name, fill) in &channels {
        page.value("nexus_channel_bytes", &[("channel", name)], fill.bytes as u64);
    }
    page.family("nexus_channel_limit_bytes", "gauge", "What a channel between two stages may hold.");
    for (name, fill) in &channels {
        page.value("nexus_channel_limit_bytes", &[("channel", name)], fill.bytes_max as u64);
    }
}

/// A page in the making.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins the metrics of a name.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{}\"", if number == 0 { '{' } else { ',' }, escaped(text));
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Writes a metric without labels.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.value(name, &[], value);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
fn seconds(number: u64, per_second: f64) -> f64 {
    number as f64 / per_second
}

/// Gives the memory that the process holds, where the system tells (see proc(5)).
fn resident_bytes() -> Option<u64> {
    let sizes = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.value("nexus_source_lag_seconds", &[("source", "a \"b\"\\\n"), ("x", "y")], 1.5);
        page.value("nexus_up", &[], 1);
        assert_eq!(page.text, "nexus_source_lag_seconds{source=\"a \\\"b\\\"\\\\\\n\",x=\"y\"} 1.5\nnexus_up 1\n");
    }
}
