//! Whether a run has caught up with its sources.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::progress::Progress;

/// For how long all sources have had nothing to read.
#[derive(Debug, Default)]
pub struct Idleness {
    since: Option<Instant>,
    bytes: u64,
}

impl Idleness {
    /// Tells it; it begins anew when something is read. While sources are told not to read, they are not idle.
    pub fn lasts(&mut self, progress: &Progress, ended: &BTreeMap<String, bool>) -> Duration {
        let bytes = progress.sources.values().map(|source| source.bytes.load(Ordering::Relaxed)).sum();
        let mut waiting = progress.sources.iter().filter(|(name, _)| !ended.contains_key(*name));
        let caught_up = waiting.all(|(_, source)| source.caught_up.load(Ordering::Acquire));
        if !caught_up || progress.is_paused() || bytes != self.bytes {
            self.bytes = bytes;
            self.since = None;
            return Duration::ZERO;
        }
        self.since.get_or_insert_with(Instant::now).elapsed()
    }
}
