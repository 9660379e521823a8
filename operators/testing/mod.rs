//! What the tests of several crates share: conformance suites and throw-away servers.

#[cfg(feature = "s3")]
pub mod ministack;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sink;
