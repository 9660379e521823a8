//! What a run has counted, in the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats>).

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;

use super::families::FAMILIES;
use super::rates::float;
use crate::job::progress::Progress;
use crate::job::steps::{BOUNDS_S, STEPS};

/// The smallest unit in which this process's own memory is told by the system; Linux on all machines that Nexus is
/// built for has pages of this size.
const PAGE_BYTES: u64 = 4096;

/// Writes the metrics of a run; those of the process alone before there is one.
pub fn of(progress: Option<&Progress>) -> String {
    let mut page = Page::default();
    page.one("nexus_up", u64::from(progress.is_some()));
    if let Some(bytes) = resident_bytes() {
        page.one("process_resident_memory_bytes", bytes);
    }
    if let Some(progress) = progress {
        commits(&mut page, progress);
        steps(&mut page, progress);
        sources(&mut page, progress);
        tables(&mut page, progress);
        quarantine(&mut page, progress);
        sinks(&mut page, progress);
        errors(&mut page, progress);
        memory(&mut page, progress);
    }
    page.text()
}

fn commits(page: &mut Page, progress: &Progress) {
    let report = progress.report();
    let standing = progress.standing();
    page.value("nexus_info", &[("pipeline", &report.pipeline), ("version", env!("CARGO_PKG_VERSION"))], 1);
    page.one("nexus_generation", report.generation);
    page.one("nexus_paused", u64::from(progress.is_paused()));
    page.one("nexus_epochs_total", report.epochs);
    if let Some(at_us) = standing.committed_at_us {
        page.one("nexus_last_commit_timestamp_seconds", timestamp(at_us));
    }
    page.one("nexus_uncommitted_seconds", progress.waiting().as_secs_f64());
    for (fate, events) in [("sent", &progress.lineage.sent), ("dropped", &progress.lineage.dropped)] {
        page.value("nexus_lineage_events_total", &[("fate", fate)], events.load(Ordering::Relaxed));
    }
    page.one("nexus_spooled_bytes", standing.spooled_bytes);
}

fn steps(page: &mut Page, progress: &Progress) {
    for (step, durations) in STEPS.into_iter().zip(progress.epochs.durations()) {
        let step = ("step", step.name());
        let mut counted = 0;
        for (place, count) in durations.counts.iter().enumerate() {
            counted += count;
            let bound = BOUNDS_S.get(place).map_or("+Inf".to_owned(), ToString::to_string);
            page.part("nexus_epoch_step_duration_seconds", "_bucket", &[step, ("le", &bound)], counted);
        }
        page.part("nexus_epoch_step_duration_seconds", "_sum", &[step], durations.sum.as_secs_f64());
        page.part("nexus_epoch_step_duration_seconds", "_count", &[step], counted);
    }
}

fn sources(page: &mut Page, progress: &Progress) {
    for (name, source) in &progress.sources {
        let of = [("source", name.as_str())];
        page.value("nexus_source_read_rows_total", &of, source.rows.load(Ordering::Relaxed));
        page.value("nexus_source_read_bytes_total", &of, source.bytes.load(Ordering::Relaxed));
        page.value("nexus_source_caught_up", &of, u64::from(source.caught_up.load(Ordering::Relaxed)));
        if let Some(lag_ms) = source.lag_ms() {
            page.value("nexus_source_lag_seconds", &of, float(lag_ms) / 1e3);
        }
        for (partition, lag_ms) in source.lags_ms() {
            let of = [("source", name.as_str()), ("partition", &partition)];
            page.value("nexus_source_partition_lag_seconds", &of, float(lag_ms) / 1e3);
        }
        if let Some(us) = source.watermark.get() {
            page.value("nexus_source_watermark_timestamp_seconds", &of, timestamp(us));
        }
    }
    for (name, counts) in &progress.report().sources {
        page.value("nexus_source_records_total", &[("source", name)], counts.records);
        page.value("nexus_source_skipped_total", &[("source", name)], counts.skipped);
        page.value("nexus_source_quarantined_total", &[("source", name)], counts.quarantined);
    }
}

fn tables(page: &mut Page, progress: &Progress) {
    for (name, table) in &progress.tables {
        page.value("nexus_table_given_rows_total", &[("table", name)], table.rows_out.load(Ordering::Relaxed));
        page.value("nexus_state_bytes", &[("table", name)], table.state_bytes.load(Ordering::Relaxed));
        if let Some(us) = table.watermark.get() {
            page.value("nexus_table_watermark_timestamp_seconds", &[("table", name)], timestamp(us));
        }
    }
    for (name, table) in &progress.report().tables {
        let counts = &table.counts;
        for (fate, rows) in [
            ("in", counts.rows_in),
            ("late", counts.late),
            ("correcting", counts.correcting),
            ("sql", counts.rows_sql),
            ("redriven", counts.redriven),
            ("dropped", counts.dropped),
            ("quarantined", counts.quarantined),
            ("duplicate", counts.duplicates),
            ("out", counts.rows_out),
            ("resent", counts.resent),
        ] {
            page.value("nexus_table_rows_total", &[("table", name), ("fate", fate)], rows);
        }
        for (rule, rows) in &table.rules {
            page.value("nexus_rule_broken_total", &[("table", name), ("rule", rule)], rows);
        }
    }
}

fn quarantine(page: &mut Page, progress: &Progress) {
    for (of, rules) in progress.troubles.told() {
        for (rule, trouble) in rules {
            page.value("nexus_quarantined_rows_total", &[("of", &of), ("rule", &rule)], trouble.rows);
        }
    }
}

fn sinks(page: &mut Page, progress: &Progress) {
    for (table, kinds) in &progress.report().sinks {
        for (kind, counts) in kinds {
            let of = [("table", table.as_str()), ("sink", kind.as_str())];
            page.value("nexus_sink_rows_total", &of, counts.rows);
            page.value("nexus_sink_bytes_total", &of, counts.bytes);
            page.value("nexus_sink_files_total", &of, counts.files);
            page.value("nexus_sink_refused_rows_total", &of, counts.refused);
        }
    }
}

fn errors(page: &mut Page, progress: &Progress) {
    for (of, errors) in &progress.report().errors {
        page.value("nexus_error_budget_bad_rows", &[("of", of)], errors.bad);
        page.value("nexus_error_budget_allowed_rows", &[("of", of)], errors.allowed);
    }
}

fn memory(page: &mut Page, progress: &Progress) {
    page.one("nexus_memory_limit_bytes", progress.limits.memory_bytes);
    for (component, bytes) in progress.memory_by_component() {
        page.value("nexus_memory_bytes", &[("component", component)], bytes);
    }
    for (name, bytes) in progress.sinks() {
        let (table, kind) = name.split_once('/').unwrap_or((&name, "sink"));
        page.value("nexus_sink_buffer_bytes", &[("table", table), ("sink", kind)], bytes);
    }
    for (name, fill) in progress.channels() {
        let of = [("channel", name.as_str())];
        page.value("nexus_channel_bytes", &of, fill.bytes);
        page.value("nexus_channel_limit_bytes", &of, fill.bytes_max);
        page.value("nexus_channel_blocked_seconds_total", &of, fill.blocked.as_secs_f64());
    }
}

/// A page in the making: the lines of each family.
#[derive(Debug, Default)]
struct Page(BTreeMap<&'static str, String>);

impl Page {
    fn value(&mut self, family: &'static str, labels: &[(&str, &str)], value: impl Display) {
        self.part(family, "", labels, value);
    }

    /// Writes a metric whose name goes on behind that of its family.
    fn part(&mut self, family: &'static str, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let lines = self.0.entry(family).or_default();
        lines.push_str(family);
        lines.push_str(suffix);
        // Writing to a text cannot fail.
        for (number, (label, text)) in labels.iter().enumerate() {
            let _ = write!(lines, "{}{label}=\"{}\"", if number == 0 { '{' } else { ',' }, escaped(text));
        }
        let _ = writeln!(lines, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Writes a metric without labels.
    fn one(&mut self, family: &'static str, value: impl Display) {
        self.value(family, &[], value);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for family in FAMILIES {
            if let Some(lines) = self.0.get(family.name) {
                let _ = write!(text, "# HELP {0} {2}\n# TYPE {0} {1}\n{lines}", family.name, family.kind, family.help);
            }
        }
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Gives microseconds since the Unix epoch in seconds.
fn timestamp(us: i64) -> f64 {
    std::time::Duration::from_micros(u64::try_from(us).unwrap_or(0)).as_secs_f64()
}

/// Gives the memory that the process holds, where the system tells (see proc(5)).
pub fn resident_bytes() -> Option<u64> {
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
        page.value("nexus_source_lag_seconds", &[("source", "a \"b\"\\\n")], 1.5);
        page.one("nexus_up", 1);
        let text = page.text();
        assert!(text.ends_with("\nnexus_source_lag_seconds{source=\"a \\\"b\\\"\\\\\\n\"} 1.5\n"), "{text}");
        assert!(text.contains("# TYPE nexus_up gauge\nnexus_up 1\n"), "{text}");
    }

    #[test]
    fn every_metric_that_is_written_is_described() {
        let progress = Progress::new("test", ["ticks"].into_iter(), ["bronze.ticks"].into_iter());
        let text = of(Some(&progress));
        let described = |name: &str| FAMILIES.iter().any(|family| name.starts_with(family.name));
        let mut names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| line.split(' ').next());
        assert!(names.all(|name| name.is_some_and(described)), "{text}");
        // A family that is written and not described would be left out of the page.
        let source = include_str!("metrics.rs");
        for part in source.split("(\"nexus_").skip(1) {
            let name = ["nexus_", part.split('"').next().unwrap_or_default()].concat();
            assert!(described(&name), "{name} is not among the families");
        }
    }
}
