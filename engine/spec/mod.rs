//! The pipeline file: model, parsing, diagnostics with positions.

pub mod codes;
pub mod columns;
pub mod diagnostic;
pub mod model;
pub mod params;
pub mod schema;
pub mod source;
mod suggest;
pub mod units;
pub mod yaml;
pub mod validate;
