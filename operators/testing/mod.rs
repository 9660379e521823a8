//! What the tests of several crates share: conformance suites and throw-away servers, for operators that users bring
//! too.

pub mod clock;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(feature = "s3")]
pub mod ministack;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sink;
pub mod source;
pub mod store;
