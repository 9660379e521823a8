//! The pipeline file: model, parsing, diagnostics with positions.

pub mod model;
pub mod units;
