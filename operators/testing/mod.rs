//! What the tests of several crates share: conformance suites and throw-away servers, for operators that users bring
//! too.

pub mod bomb;
pub mod clock;
pub mod fuzz;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(feature = "s3")]
pub mod ministack;
#[cfg(feature = "s3")]
pub mod outage;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sink;
pub mod source;
pub mod store;
#[cfg(test)]
mod suites;
