//! What tests of several modules need; public, for operators that users bring.

pub mod clock;
pub mod source;
