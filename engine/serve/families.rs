//! The metrics: their names, kinds, labels and meanings, in one place. `docs/metrics.md` is made from it.
//!
//! Names follow <https://prometheus.io/docs/practices/naming>: a unit at the end, `_total` for what only grows.

/// The metrics of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The labels, each with a comma between.
    pub labels: &'static str,
    /// What it tells.
    pub help: &'static str,
}

macro_rules! families {
    ($($name:literal, $kind:ident, $labels:literal, $help:literal;)+) => {
        /// All metrics, in the order in which `/metrics` gives them.
        pub const FAMILIES: &[Family] =
            &[$(Family { name: $name, kind: stringify!($kind), labels: $labels, help: $help }),+];
    };
}

families! {
    "nexus_up", gauge, "", "1 once the sources are open.";
    "process_resident_memory_bytes", gauge, "", "Memory that the process holds.";
    "nexus_info", gauge, "pipeline, version", "The pipeline and the version of nexus that runs it; always 1.";
    "nexus_generation", gauge, "", "The number of this process among those that ran the pipeline.";
    "nexus_paused", gauge, "", "1 while the sources are told not to read.";
    "nexus_epochs_total", counter, "", "Epochs recorded.";
    "nexus_epoch_step_duration_seconds", histogram, "step", "How long the steps of epochs took that all sinks have committed, each from when the one before was done by all: cut, decode, transform, prepare, record, commit.";
    "nexus_last_commit_timestamp_seconds", gauge, "", "When an epoch was last committed by all sinks, since the Unix epoch.";
    "nexus_uncommitted_seconds", gauge, "", "For how long the oldest closed epoch has waited for its commit.";
    "nexus_spooled_bytes", gauge, "", "Bytes that are prepared and not yet committed.";
    "nexus_lineage_events_total", counter, "fate", "OpenLineage events about the run, by what became of them: sent, dropped.";
    "nexus_source_read_rows_total", counter, "source", "Rows decoded, committed or not.";
    "nexus_source_read_bytes_total", counter, "source", "Bytes read, decompressed, committed or not.";
    "nexus_source_caught_up", gauge, "source", "1 if the source has nothing to read at the moment.";
    "nexus_source_lag_seconds", gauge, "source", "How far the source is behind, where it is most, if its service tells.";
    "nexus_source_partition_lag_seconds", gauge, "source, partition", "How far the source is behind in a partition, such as a shard, if its service tells; of the 200 that are most behind.";
    "nexus_source_watermark_timestamp_seconds", gauge, "source", "The event time up to which rows have come, since the Unix epoch, once it is known.";
    "nexus_source_records_total", counter, "source", "Records of recorded epochs.";
    "nexus_source_skipped_total", counter, "source", "Records of recorded epochs that hold no row by their nature.";
    "nexus_source_quarantined_total", counter, "source", "Records of recorded epochs that did not decode.";
    "nexus_table_given_rows_total", counter, "table", "Rows given to sinks and other tables, committed or not.";
    "nexus_table_rows_total", counter, "table, fate", "Rows of recorded epochs, by what became of them: in, late, correcting, sql, redriven, dropped, quarantined, duplicate, out, resent.";
    "nexus_table_watermark_timestamp_seconds", gauge, "table", "The event time up to which the input of a table has come, since the Unix epoch, once it is known.";
    "nexus_rule_broken_total", counter, "table, rule", "Rows of recorded epochs that broke a rule.";
    "nexus_quarantined_rows_total", counter, "of, rule", "Records and rows put into the quarantine of a source or table, committed or not, by rule: decode, late, refused by postgres, or an expectation.";
    "nexus_sink_rows_total", counter, "table, sink", "Rows stored by recorded epochs.";
    "nexus_sink_bytes_total", counter, "table, sink", "Encoded bytes stored by recorded epochs.";
    "nexus_sink_files_total", counter, "table, sink", "Files stored by recorded epochs.";
    "nexus_sink_refused_rows_total", counter, "table, sink", "Of the rows, those that the service has refused and that have gone to the quarantine.";
    "nexus_error_budget_bad_rows", gauge, "of", "Rows that an error budget has counted as bad in its time; `of` is a source or table, `<table>/late` for late rows.";
    "nexus_error_budget_allowed_rows", gauge, "of", "Rows that may be bad in an error budget's time.";
    "nexus_memory_limit_bytes", gauge, "", "What limits.memory allows.";
    "nexus_memory_bytes", gauge, "component", "What is known of the memory that rows take: channels, state (windows, keys, waiting rows), queries, sinks (what they encode, sort, compress or send until the epoch is prepared).";
    "nexus_state_bytes", gauge, "table", "What the windows, keys and waiting rows of a table take in memory.";
    "nexus_sink_buffer_bytes", gauge, "table, sink", "What a sink of a table holds in memory of rows that are not yet prepared.";
    "nexus_channel_bytes", gauge, "channel", "What waits in a channel between two stages.";
    "nexus_channel_limit_bytes", gauge, "channel", "What a channel between two stages may hold.";
    "nexus_channel_blocked_seconds_total", counter, "channel", "For how long a channel was full and held its sender up.";
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    /// The page, but for the table.
    const ABOVE: &str = "# Metrics\n\nWhat `/metrics` of `nexus run --listen ADDRESS` tells, in the text format of \
                         Prometheus. Counters start from 0 with each process; a family without any value is left \
                         out.\n\n| name | kind | labels | what it tells |\n|---|---|---|---|\n";

    /// What to watch, behind the table.
    const BELOW: &str = "
What to alert on:

- `nexus_uncommitted_seconds` above some minutes, or `/ready` with 503: epochs stall. `/ready` names the sinks that are behind.
- `nexus_source_lag_seconds` that grows: the run does not keep up. `rate(nexus_channel_blocked_seconds_total[5m])` near 1 names the channel that is full; what reads it is the bottleneck.
- `rate(nexus_quarantined_rows_total[5m])` above what is usual: rows are bad; the console and `nexus query` show the reasons.
- `nexus_error_budget_bad_rows / nexus_error_budget_allowed_rows` near 1: the run is about to stop.
- `process_resident_memory_bytes / nexus_memory_limit_bytes` above 1.5: less is left for the machine than was planned.
";

    #[test]
    fn the_page_about_metrics_is_true() {
        let mut page = ABOVE.to_owned();
        for Family { name, kind, labels, help } in FAMILIES {
            let labels = labels.split(", ").filter(|label| !label.is_empty()).map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            writeln!(page, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
        page.push_str(BELOW);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        if std::env::var_os("NEXUS_TEST_DOCS").is_some_and(|what| what == "make") {
            std::fs::write(&path, &page).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(there, page, "docs/metrics.md is not what engine/serve/families.rs says; run `make docs`");
    }

    #[test]
    fn names_stand_once_and_follow_the_conventions() {
        for (place, family) in FAMILIES.iter().enumerate() {
            assert!(FAMILIES.iter().skip(place + 1).all(|other| other.name != family.name), "{family:?}");
            assert_eq!(family.kind == "counter", family.name.ends_with("_total"), "{family:?}");
            assert!(family.help.ends_with('.'), "{family:?}");
        }
    }
}
