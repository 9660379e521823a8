//! Fail points: places where a test may have the process die.
//!
//! Without feature `testing` they are empty. With it, the environment variable
//! `NEXUS_FAIL_POINT` names one, as `name` or `name:n` for its n-th passing, and
//! the process ends there as if it had been killed.

/// The fail points, in the order of the commit protocol.
pub const POINTS: &[&str] = &[
    "before_claim",
    "after_claim",
    "before_barrier",
    "before_snapshot",
    "after_snapshot",
    "before_prepare",
    "after_prepare",
    "before_record",
    "after_record",
    "before_commit",
    "after_commit",
    "before_acknowledge",
    "after_acknowledge",
    "before_committed_note",
    "after_committed_note",
];

/// Passes a fail point.
#[cfg(not(feature = "testing"))]
#[inline]
pub fn point(_: &str) {}

/// Passes a fail point; ends the process if the environment asks for it.
#[cfg(feature = "testing")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    debug_assert!(POINTS.contains(&name), "fail point {name} is not listed");
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("NEXUS_FAIL_POINT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    });
    if let Some((wanted, count)) = wanted
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        tracing::error!(name, "fail point reached");
        std::process::abort();
    }
}
