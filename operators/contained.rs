//! Panics of a library over broken bytes, made into errors.
//!
//! The `parquet` crate asserts some things of a file's bytes that a broken file does not keep. Such a panic says
//! something of the file, not of Nexus: it is caught where the library is called, and a program's panic hook can ask
//! [`is_contained`] to keep quiet about it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// How many calls of [`contained`] this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Calls a library with bytes from outside; nothing if it panics. What it has left half done must not be used again.
pub fn contained<T>(call: impl FnOnce() -> T) -> Option<T> {
    DEPTH.set(DEPTH.get() + 1);
    let answer = catch_unwind(AssertUnwindSafe(call)).ok();
    DEPTH.set(DEPTH.get() - 1);
    answer
}

/// Tells whether a panic of this thread would be caught by [`contained`].
pub fn is_contained() -> bool {
    DEPTH.get() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_within_is_no_answer() {
        assert_eq!(contained(|| contained(|| panic!("inner"))), Some(None::<()>));
        assert_eq!(contained(is_contained), Some(true));
        assert!(!is_contained());
    }
}
