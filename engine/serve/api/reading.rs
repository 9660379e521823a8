//! How what the API tells is read off a run.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nexus_operators::position::Position;

use super::super::metrics::resident_bytes;
use super::super::rates::{Growth, Rates, float};
use super::told::{
    BrokenRule, Budget, ChannelTold, Channels, Edge, Epoch, EpochStep, Epochs, Fates, Memory, Node, NodeKind,
    PartitionPosition, Pipeline, PositionsTold, Quarantine, ReasonTold, RunState, Sample, SinkTold, SourcePositions,
    SourceTold, Sources, TableTold, Tables,
};
use crate::job::progress::{ErrorsCounted, Progress, SinkCounts, TableReport};
use crate::job::steps::{EpochTold, Step};
use crate::job::troubles::Reason;
use crate::plan::describe::Described;

impl RunState {
    pub(super) fn of(progress: &Progress) -> Self {
        match (progress.is_draining(), progress.is_paused()) {
            (true, _) => Self::Draining,
            (false, true) => Self::Paused,
            (false, false) => Self::Running,
        }
    }
}

impl Pipeline {
    pub(super) fn of(
        progress: &Progress,
        described: &Described,
        rates: &Rates,
        not_ready: Option<String>,
        takes_orders: bool,
    ) -> Self {
        let (report, standing) = (progress.report(), progress.standing());
        let sources = Sources::of(progress, rates).sources;
        let (nodes, edges) = graph(progress, described);
        Self {
            name: report.pipeline,
            description: described.description.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: report.generation,
            state: RunState::of(progress),
            ready: not_ready.is_none(),
            not_ready,
            takes_orders,
            epochs: report.epochs,
            rows_per_s: sources.iter().map(|source| source.rows_per_s).sum(),
            bytes_per_s: sources.iter().map(|source| source.bytes_per_s).sum(),
            lag_ms: progress.lag_ms(),
            committed_at_ms: standing.committed_at_us.map(millis),
            waiting_s: progress.waiting().as_secs_f64(),
            behind: standing.behind,
            nodes,
            edges,
        }
    }
}

/// Gives the graph: sources, tables and what they read by the plan, sinks by their channels.
fn graph(progress: &Progress, described: &Described) -> (Vec<Node>, Vec<Edge>) {
    let node = |name: &str, kind, tier: Option<&String>| Node { name: name.to_owned(), kind, tier: tier.cloned() };
    let mut nodes: Vec<Node> =
        described.sources.iter().map(|source| node(&source.name, NodeKind::Source, None)).collect();
    let read = |name: &&String| described.tables.iter().any(|table| table.reads.contains(name));
    nodes.extend(described.references.iter().filter(read).map(|name| node(name, NodeKind::Reference, None)));
    let mut edges = Vec::new();
    for table in &described.tables {
        nodes.push(node(&table.name, NodeKind::Table, Some(&table.tier)));
        for from in &table.reads {
            let channel = (!described.references.contains(from)).then(|| format!("{from} to {}", table.name));
            edges.push(Edge { from: from.clone(), to: table.name.clone(), channel });
        }
    }
    for (channel, _) in progress.channels() {
        if let Some(sink) = channel.strip_prefix("sink ") {
            let (from, to) = ends(&channel);
            nodes.push(node(sink, NodeKind::Sink, None));
            edges.push(Edge { from, to, channel: Some(channel) });
        }
    }
    (nodes, edges)
}

/// Gives the ends of a channel by its name.
fn ends(channel: &str) -> (String, String) {
    if let Some(sink) = channel.strip_prefix("sink ") {
        return (sink.split('/').next().unwrap_or_default().to_owned(), sink.to_owned());
    }
    match (channel.strip_prefix("decode "), channel.split_once(" to ")) {
        (Some(source), _) => (source.to_owned(), channel.to_owned()),
        (None, Some((from, to))) => (from.to_owned(), to.to_owned()),
        (None, None) => (channel.to_owned(), channel.to_owned()),
    }
}

impl Sources {
    pub(super) fn of(progress: &Progress, rates: &Rates) -> Self {
        let report = progress.report();
        let sources = progress.sources.iter().map(|(name, source)| {
            let counts = report.sources.get(name).copied().unwrap_or_default();
            let (rows, bytes) = (source.rows.load(Ordering::Relaxed), source.bytes.load(Ordering::Relaxed));
            SourceTold {
                name: name.clone(),
                rows,
                bytes,
                rows_per_s: rates.per_second(Growth::SourceRows, name, float(rows)),
                bytes_per_s: rates.per_second(Growth::SourceBytes, name, float(bytes)),
                caught_up: source.caught_up.load(Ordering::Relaxed),
                lag_ms: source.lag_ms(),
                watermark_ms: source.watermark.get().map(millis),
                records: counts.records,
                skipped: counts.skipped,
                quarantined: counts.quarantined,
                errors: report.errors.get(name).copied().map(Budget::from),
            }
        });
        Self { sources: sources.collect() }
    }
}

impl Tables {
    pub(super) fn of(progress: &Progress, rates: &Rates) -> Self {
        let report = progress.report();
        let described = progress.described();
        let order = described.iter().flat_map(|described| &described.tables);
        let tables = order.filter_map(|described| {
            let name = &described.name;
            let table = progress.tables.get(name)?;
            let TableReport { counts, rules } = report.tables.get(name).cloned().unwrap_or_default();
            let rows_out = table.rows_out.load(Ordering::Relaxed);
            let sinks = report.sinks.get(name).into_iter().flatten();
            Some(TableTold {
                name: name.clone(),
                rows_out,
                rows_per_s: rates.per_second(Growth::TableRows, name, float(rows_out)),
                watermark_ms: table.watermark.get().map(millis),
                state_bytes: table.state_bytes.load(Ordering::Relaxed),
                fates: Fates {
                    arrived: counts.rows_in,
                    late: counts.late,
                    correcting: counts.correcting,
                    sql: counts.rows_sql,
                    redriven: counts.redriven,
                    dropped: counts.dropped,
                    quarantined: counts.quarantined,
                    duplicates: counts.duplicates,
                    out: counts.rows_out,
                    resent: counts.resent,
                },
                rules,
                sinks: sinks.map(|(kind, counts)| (kind.clone(), SinkTold::from(*counts))).collect(),
                errors: report.errors.get(name).copied().map(Budget::from),
            })
        });
        Self { tables: tables.collect() }
    }
}

impl From<ErrorsCounted> for Budget {
    fn from(ErrorsCounted { rows, bad, allowed }: ErrorsCounted) -> Self {
        Self { rows, bad, allowed }
    }
}

impl From<SinkCounts> for SinkTold {
    fn from(SinkCounts { rows, bytes, files, refused }: SinkCounts) -> Self {
        Self { rows, bytes, files, refused }
    }
}

impl Sample {
    /// Gives nothing if there is no such table.
    pub(super) fn of(progress: &Progress, described: &Described, table: &str) -> Option<Self> {
        let columns = described.tables.iter().find(|described| described.name == table)?.columns.clone();
        Some(Self { table: table.to_owned(), columns, rows: progress.tables.get(table)?.shown() })
    }
}

impl Epochs {
    pub(super) fn of(progress: &Progress) -> Self {
        Self { epochs: progress.epochs.recent().iter().map(Epoch::of).collect() }
    }
}

impl Epoch {
    fn of(told: &EpochTold) -> Self {
        let step = |(step, took): (Step, Duration)| {
            let marks = told.marks.iter().filter(|mark| mark.step == step);
            let last = marks.max_by_key(|mark| mark.at).map(|mark| mark.of.clone());
            EpochStep { step: step.name().to_owned(), seconds: took.as_secs_f64(), last }
        };
        Self {
            epoch: told.epoch,
            generation: told.generation,
            closed_at_ms: millis(told.closed_at_us),
            total_s: told.total().as_secs_f64(),
            steps: told.steps().into_iter().map(step).collect(),
            records: told.records,
            rows_out: told.rows_out,
            quarantined: told.quarantined,
            bytes: told.bytes,
        }
    }
}

impl PositionsTold {
    pub(super) fn of(progress: &Progress) -> Self {
        let sources = progress.positions().into_iter().map(|(source, positions)| SourcePositions {
            source,
            partitions: positions.partitions as u64,
            first: positions.first.iter().map(|(name, position)| PartitionPosition::of(name, position)).collect(),
        });
        Self { sources: sources.collect() }
    }
}

impl PartitionPosition {
    fn of(partition: &str, position: &Position) -> Self {
        let (at, position) = match position {
            Position::Start => ("start", None),
            Position::Time { ms } => ("time", Some(ms.to_string())),
            Position::Sequence { sequence, .. } => ("sequence", Some(sequence.clone())),
            Position::Offset { offset, .. } => ("offset", Some(offset.to_string())),
            Position::Done { offset, .. } => ("done", Some(offset.to_string())),
        };
        Self { partition: partition.to_owned(), at: at.to_owned(), position }
    }
}

impl Channels {
    pub(super) fn of(progress: &Progress, rates: &Rates) -> Self {
        let channels = progress.channels().into_iter().map(|(name, fill)| {
            let (from, to) = ends(&name);
            let blocked_s = fill.blocked.as_secs_f64();
            ChannelTold {
                from,
                to,
                bytes: fill.bytes as u64,
                limit_bytes: fill.bytes_max as u64,
                blocked_s,
                blocked_share: rates.per_second(Growth::Blocked, &name, blocked_s).min(1.0),
                is_blocked: fill.is_blocked,
                name,
            }
        });
        Self { channels: channels.collect() }
    }
}

impl Memory {
    pub(super) fn of(progress: &Progress) -> Self {
        let components = progress.memory_by_component();
        Self {
            limit_bytes: progress.limits.memory_bytes,
            resident_bytes: resident_bytes(),
            components: components.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
            spooled_bytes: progress.standing().spooled_bytes,
        }
    }
}

impl Quarantine {
    pub(super) fn of(progress: &Progress) -> Self {
        let by_rule = progress.troubles.told().into_iter().flat_map(|(of, rules)| {
            rules.into_iter().map(move |(rule, trouble)| BrokenRule {
                of: of.clone(),
                rule,
                rows: trouble.rows,
                recent: trouble.recent.into_iter().map(ReasonTold::from).collect(),
            })
        });
        Self { rules: by_rule.collect() }
    }
}

impl From<Reason> for ReasonTold {
    fn from(Reason { reason, at_us, partition, offset }: Reason) -> Self {
        Self { reason, at_ms: millis(at_us), partition, offset }
    }
}

fn millis(us: i64) -> i64 {
    us.div_euclid(1000)
}
