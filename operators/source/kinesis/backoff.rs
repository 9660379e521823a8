//! How long to wait after a failed call, and when to say that it keeps failing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// The first wait: one slot of the five calls a second that a shard allows.
const WAIT_MIN: Duration = Duration::from_millis(250);

/// The longest wait: a throttled shard is read again soon after the throttling ends.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// How long calls may fail, all of them, before that is an error: longer than
/// a failover of the service or a rotation of credentials.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(15 * 60);

/// Counts the failures of one kind of call since its last success.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    since: Option<Instant>,
}

impl Backoff {
    /// Notes a success.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Notes a failure; gives the wait before the next try, or nothing if
    /// calls have failed for too long (they are counted anew then).
    ///
    /// `seed` spreads the waits of many shards and processes.
    pub fn failed(&mut self, now: Instant, seed: impl Hash) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) > GIVE_UP_AFTER {
            *self = Self::default();
            return None;
        }
        let ceiling = WAIT_MAX.min(WAIT_MIN * 2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let mut hasher = DefaultHasher::new();
        (seed, self.failures).hash(&mut hasher);
        let thousandths = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
        Some(ceiling / 2 + ceiling / 2 * thousandths / 1000)
    }

    /// Tells how many failures there were since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_bound_and_end_after_the_limit() {
        let mut backoff = Backoff::default();
        let (mut waited, mut longest) = (Duration::ZERO, Duration::ZERO);
        let start = Instant::now();
        while let Some(wait) = backoff.failed(start + waited, "shard") {
            assert!(wait >= WAIT_MIN / 2 && wait <= WAIT_MAX);
            longest = longest.max(wait);
            waited += wait;
        }
        assert!(longest > WAIT_MAX / 2);
        assert!(waited > GIVE_UP_AFTER && waited < GIVE_UP_AFTER + WAIT_MAX);
        assert!(backoff.failed(start + waited, "shard").is_some(), "the count begins anew");
        backoff.succeeded();
        assert_eq!(backoff.failures(), 0);
    }
}
