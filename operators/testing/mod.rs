//! What the tests of several crates share: conformance suites and throw-away servers.

pub mod sink;
