//! What the tests of several crates share: conformance suites and throw-away servers.

#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sink;
