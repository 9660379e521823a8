//! How `limits.memory` is shared out: the sum of all bounds is the budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nexus_operators::transform::keys::KeyLimits;
use nexus_operators::transform::states::StateLimits;
use nexus_operators::{Error, Result};

use crate::plan::Plan;

/// A quarter for state: windows and keys. (Another quarter is the queries', see `plan::QUERY_SHARE`.)
const STATE: u64 = 4;

/// A quarter of it for the map of the newest keys, as much while files of keys are merged, the rest for their filters.
/// Of a table's states of windows a quarter is kept in memory beside their files, and as much is merged or given out.
const KEYS: u64 = 4;

/// Under this, keys would lie in very many files: the price of a little memory is paid while they are merged.
const KEY_FILE_BYTES_MIN: usize = 8 * 1024 * 1024;

/// Under this, so would states of windows, which take several times as much while they are merged.
const STATE_PIECE_BYTES_MIN: usize = 2 * 1024 * 1024;

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
    /// Of the state of all tables together.
    pub state: usize,
    /// What one epoch may add to the state of one table; more closes the epoch.
    pub state_of_epoch: usize,
    /// What the remembered keys of one table may take, beside what is in memory of their files.
    pub keys: KeyLimits,
    /// What the states of one table's windows may take, beside those of the epoch that is open.
    pub states: StateLimits,
}

impl Budget {
    /// Shares out the memory of a pipeline.
    pub fn of(plan: &Plan) -> Self {
        let memory = plan.loaded.spec.limits.memory.0;
        let sources = plan.opened_sources().len();
        let archives = 2 * plan.loaded.spec.sources.values().filter(|source| source.archive.is_some()).count();
        let mut channels = 2 * sources + archives;
        let mut sinks = sources + archives;
        let mut stateful = 0;
        for table in &plan.tables {
            let spec = plan.spec_of(table);
            let kinds = spec.map_or(0, |spec| usize::from(spec.store) + usize::from(spec.postgres.is_some()));
            let late = table.late_reason().is_some() && table.late.quarantines();
            let quarantine = usize::from(!table.rules.is_empty() || table.newest.is_some() || late);
            channels += table.inputs.len() + kinds + quarantine;
            sinks += kinds + quarantine;
            stateful += usize::from(table.is_stateful());
        }
        let share = |part: u64, among: usize| usize::try_from(memory / part).unwrap_or(usize::MAX) / among.max(1);
        let part_of_state = share(KEYS * STATE, stateful);
        Self {
            channel: share(CHANNELS, channels).max(CHANNEL_BYTES_MIN),
            sink: share(SINKS, sinks).max(SINK_BYTES_MIN),
            state: share(STATE, 1),
            state_of_epoch: share(2 * STATE, stateful),
            keys: KeyLimits { map_bytes: part_of_state, file_bytes: part_of_state.max(KEY_FILE_BYTES_MIN) },
            states: StateLimits { cached_bytes: part_of_state, piece_bytes: part_of_state.max(STATE_PIECE_BYTES_MIN) },
        }
    }
}

/// The memory that the state of all tables takes.
#[derive(Debug)]
pub struct StateMemory {
    used: AtomicUsize,
    bytes_max: usize,
}

/// One table's part of it.
#[derive(Debug)]
pub struct StateShare {
    /// Shared with the other tables' stages.
    all: Arc<StateMemory>,
    held: usize,
}

impl StateMemory {
    /// Allows this many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max })
    }

    /// Gives what all tables' state takes now.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Gives a table its part, which is empty.
    pub fn share(self: &Arc<Self>) -> StateShare {
        StateShare { all: self.clone(), held: 0 }
    }
}

impl StateShare {
    /// Notes what the table's state takes now. It is an error if all together pass the limit.
    pub fn hold(&mut self, bytes: usize) -> Result<()> {
        let all = &self.all;
        let before = all.used.fetch_add(bytes, Ordering::AcqRel);
        let used = (before + bytes).saturating_sub(self.held);
        all.used.fetch_sub(self.held, Ordering::AcqRel);
        self.held = bytes;
        if used <= all.bytes_max {
            return Ok(());
        }
        Err(Error::config(format!(
            "the state of all tables takes {} MiB, {} MiB of them here; its share of `limits.memory` is {} MiB; raise \
             the limit, or make windows, lateness, `within` or the bounds of joins shorter",
            used >> 20,
            bytes >> 20,
            all.bytes_max >> 20
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_share_the_memory_of_state() {
        let all = StateMemory::new(100 << 20);
        let (mut a, mut b) = (all.share(), all.share());
        a.hold(90 << 20).unwrap();
        let error = b.hold(20 << 20).unwrap_err();
        assert!(error.to_string().contains("takes 110 MiB, 20 MiB of them here"), "{error}");
        a.hold(10 << 20).unwrap();
        b.hold(90 << 20).unwrap();
    }
}
