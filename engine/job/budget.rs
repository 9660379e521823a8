//! How `limits.memory` is shared out: the sum of all bounds is the budget.

use crate::plan::Plan;
use crate::spec::model::Late;

/// A quarter for what queries build (see the plan's session).
const QUERIES: u64 = 4;

/// A quarter for state: windows and keys.
const STATE: u64 = 4;

/// A quarter for what sinks encode.
const SINKS: u64 = 4;

/// An eighth for channels; the last eighth is the decoders', the plans' and the allocator's.
const CHANNELS: u64 = 8;

/// Under this a channel would pass batches one by one.
const CHANNEL_BYTES_MIN: usize = 256 * 1024;

/// Under this a sink would write row groups that are too small to read well.
const SINK_BYTES_MIN: usize = 2 * 1024 * 1024;

/// The shares of one pipeline's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of each channel.
    pub channel: usize,
    /// Of each sink.
    pub sink: usize,
    /// Of each table with state.
    pub state: usize,
    /// Of all queries together.
    pub queries: usize,
}

impl Budget {
    /// Shares out the memory of a pipeline.
    pub fn of(plan: &Plan) -> Self {
        let memory = plan.loaded.spec.limits.memory.0;
        let sources = plan.opened_sources().len();
        let mut channels = 2 * sources;
        let mut sinks = sources;
        let mut stateful = 0;
        for table in &plan.tables {
            let spec = plan.spec_of(table);
            let kinds = spec.map_or(0, |spec| usize::from(spec.store) + usize::from(spec.postgres.is_some()));
            let quarantine =
                usize::from(!table.rules.is_empty() || table.window.is_some() && table.late == Late::Quarantine);
            channels += table.inputs.len() + kinds + quarantine;
            sinks += kinds + quarantine;
            stateful += usize::from(table.is_stateful());
        }
        let share = |part: u64, among: usize| usize::try_from(memory / part).unwrap_or(usize::MAX) / among.max(1);
        Self {
            channel: share(CHANNELS, channels).max(CHANNEL_BYTES_MIN),
            sink: share(SINKS, sinks).max(SINK_BYTES_MIN),
            state: share(STATE, stateful),
            queries: share(QUERIES, 1),
        }
    }
}
