//! Fail points: places where a test may have the process die, or a step fail. And mutations: steps that a test may have
//! left out, to see that the tests would notice.
//!
//! Without feature `testing` they are empty. With it, the environment variable `NEXUS_FAIL_POINT` names a point, as
//! `name` or `name:n` for its n-th passing: the process ends there as if it had been killed. As `name:n:error` the step
//! fails there as if a service had not answered, and as `name:n:stop` the process stands still there until it is sent
//! SIGCONT. `NEXUS_MUTATION` names a step to leave out.

use crate::error::Result;

/// The fail points, in the order of the commit protocol: one before and one after each durable write.
pub const POINTS: &[&str] = &[
    // A start: claim, sweep, open.
    "before_claim",
    "before_start_record",
    "after_claim",
    "before_state_sweep",
    "after_state_sweep",
    "before_table",
    "after_table",
    "before_log_begin",
    "after_log_begin",
    "before_sweep",
    "after_sweep",
    // Rows on their way.
    "after_write",
    "before_upload_note",
    "after_upload_note",
    "before_part",
    "after_part",
    "before_roll",
    "after_roll",
    // The end of an epoch, up to the commit point.
    "before_barrier",
    "before_snapshot",
    "after_keys_snapshot",
    "after_snapshot",
    "before_prepare",
    "before_spool",
    "after_spool",
    "after_prepare",
    "before_record",
    "after_fence_check",
    "before_checkpoint",
    "after_checkpoint",
    "after_record",
    // After the commit point.
    "before_commit",
    "before_file",
    "after_file",
    "before_note_removal",
    "after_note_removal",
    "before_log_entry",
    "after_log_entry",
    "before_log_checkpoint",
    "after_log_checkpoint",
    "after_copied",
    "before_postgres_commit",
    "after_postgres_commit",
    "before_spool_removal",
    "after_spool_removal",
    "after_commit",
    "before_takeover",
    "after_takeover",
    "before_forget",
    "after_forget",
    "before_committed_note",
    "after_committed_note",
    "before_history",
    "after_history",
    "before_acknowledge",
    "before_message_removal",
    "after_message_removal",
    "after_acknowledge",
];

/// The fail points that only a redrive passes, beside those of every run.
pub const REDRIVE_POINTS: &[&str] = &["before_removal", "after_removal"];

/// The fail points that only a compaction passes, beside those of every run and the removals of a redrive.
pub const COMPACTION_POINTS: &[&str] = &["before_rewrite", "after_rewrite"];

/// The mutations: steps of the commit protocol that a test may have left out or swapped, to see that it is noticed.
pub const MUTATIONS: &[&str] = &[
    "acknowledge_before_record",
    "commit_before_record",
    "done_before_commit",
    "no_committed_note",
    "no_fence",
    "no_keys",
    "no_note_in_postgres",
    "no_positions",
    "no_redo",
    "no_removal_of_claims",
    "no_spool",
    "no_sweep",
    "no_upload_note",
    "no_windows",
    "overwritten_record",
    "snapshots_removed_early",
    "spool_removed_early",
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
#[allow(clippy::unnecessary_wraps, reason = "it may fail in builds for tests")]
pub const fn point(_: &str) -> Result<()> {
    Ok(())
}

/// Passes a fail point; ends the process if the environment asks for it.
///
/// # Errors
///
/// [`Unavailable`](crate::ErrorKind::Unavailable) if the environment asks for that.
#[cfg(feature = "testing")]
pub fn point(name: &str) -> Result<()> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let known = [POINTS, REDRIVE_POINTS, COMPACTION_POINTS];
    debug_assert!(known.iter().any(|points| points.contains(&name)), "fail point {name} is not listed");
    let wanted = WANTED.get_or_init(|| Wanted::parse(&std::env::var("NEXUS_FAIL_POINT").ok()?));
    let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.name == name) else { return Ok(()) };
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 != wanted.passing {
        return Ok(());
    }
    tracing::error!(name, "fail point reached");
    match wanted.what {
        What::Dies => std::process::abort(),
        What::Fails => Err(crate::Error::unavailable(format!("fail point {name} reached"))),
        What::Stops => {
            let stop = std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
            stop.map(drop).map_err(|e| crate::Error::internal("could not stop the process").because(e))
        }
    }
}

/// What `NEXUS_FAIL_POINT` asks for.
#[cfg(feature = "testing")]
struct Wanted {
    name: String,
    passing: u64,
    what: What,
}

/// What happens at a fail point.
#[cfg(feature = "testing")]
#[derive(Clone, Copy)]
enum What {
    Dies,
    Fails,
    Stops,
}

#[cfg(feature = "testing")]
impl Wanted {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let passing = parts.next().map_or(Some(1), |count| count.parse().ok())?;
        let what = match parts.next() {
            Some("error") => What::Fails,
            Some("stop") => What::Stops,
            _ => What::Dies,
        };
        Some(Self { name, passing, what })
    }
}

/// Passes a poll of a stage.
#[cfg(not(feature = "testing"))]
#[inline]
pub const fn poll(_: &str, _: &mut u64) {}

/// Passes a poll of a stage, which panics there if `NEXUS_PANIC` names it, as `<stage>:<n>` for its n-th poll.
#[cfg(feature = "testing")]
#[allow(clippy::panic, reason = "that is what a test asks for")]
pub fn poll(stage: &str, polls: &mut u64) {
    static WANTED: std::sync::OnceLock<Option<(String, u64)>> = std::sync::OnceLock::new();

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("NEXUS_PANIC").ok()?;
        let (stage, poll) = text.rsplit_once(':')?;
        Some((stage.to_owned(), poll.parse().ok()?))
    });
    *polls += 1;
    if let Some((wanted, poll)) = wanted
        && wanted == stage
        && poll == polls
    {
        panic!("a test has {stage} panic at its poll {poll}");
    }
}
