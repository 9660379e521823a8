//! Servers for tests.

#[cfg(feature = "kinesis")]
pub mod kinesis;
