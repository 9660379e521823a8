//! What tests of several modules need; public, for operators that users bring.

pub mod clock;
#[cfg(feature = "kinesis")]
pub mod kinesis;
pub mod source;
