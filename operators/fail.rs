//! Fail points: places where a test may have the process die. And mutations: steps that a test may have left out, to see
//! that the tests would notice.
//!
//! Without feature `testing` they are empty. With it, the environment variable
//! `NEXUS_FAIL_POINT` names one, as `name` or `name:n` for its n-th passing, and
//! the process ends there as if it had been killed; `NEXUS_MUTATION` names a step to leave out.

/// The fail points, in the order of the commit protocol.
pub const POINTS: &[&str] = &[
    "before_claim",
    "before_start_record",
    "after_claim",
    "before_sweep",
    "after_sweep",
    "after_write",
    "before_barrier",
    "before_snapshot",
    "after_snapshot",
    "before_prepare",
    "after_prepare",
    "before_record",
    "before_checkpoint",
    "after_checkpoint",
    "after_record",
    "before_commit",
    "after_file",
    "before_postgres_commit",
    "after_postgres_commit",
    "after_commit",
    "before_committed_note",
    "after_committed_note",
    "before_history",
    "after_history",
    "before_acknowledge",
    "after_acknowledge",
];

/// The mutations: steps of the commit protocol that a test may have left out or swapped, to see that it is noticed.
pub const MUTATIONS: &[&str] = &[
    "commit_before_record",
    "done_before_commit",
    "no_redo",
    "no_sweep",
    "no_note_in_postgres",
    "no_positions",
    "no_state",
];

/// Tells whether a step of the protocol is to be left out or swapped: never.
#[cfg(not(feature = "testing"))]
#[inline]
pub const fn mutated(_: &str) -> bool {
    false
}

/// Tells whether a step of the protocol is to be left out or swapped, as `NEXUS_MUTATION` says.
#[cfg(feature = "testing")]
pub fn mutated(name: &str) -> bool {
    static WANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();

    debug_assert!(MUTATIONS.contains(&name), "mutation {name} is not listed");
    WANTED.get_or_init(|| std::env::var("NEXUS_MUTATION").ok()).as_deref() == Some(name)
}

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
