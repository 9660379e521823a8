//! Time is injected, so that tests own it.

use std::sync::Arc;

/// Tells the time of day.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Gives the microseconds since the Unix epoch.
    fn now_us(&self) -> i64;
}

/// A clock that several operators share.
pub type SharedClock = Arc<dyn Clock>;

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now_us(&self) -> i64 {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
    }
}
