//! The pipeline file: model, parsing, diagnostics with positions.
//!
//! [`load`] reads a file, puts parameters in, holds it against the schema of
//! the [`model`], and checks what can be checked without planning its SQL. It
//! gives everything that is wrong at once, each with its place, or a
//! [`Loaded`]: what the file says, resolved paths, and the way back from a
//! table or a line of its SQL to the place in the file.
//!
//! ```
//! use std::path::Path;
//!
//! let file = "
//! name: trial
//! lake: ./lake
//! sources:
//!   numbers: { generate: { rows: 10, columns: { n: sequence } } }
//! bronze:
//!   numbers: { from: nmbers }
//! ";
//! let wrong = nexus::spec::parse(file, "trial.yaml", Path::new("."), &[]).unwrap_err();
//! assert!(wrong.to_string().contains("= did you mean `numbers`?"));
//! ```

mod check;
pub mod codes;
pub mod columns;
pub mod diagnostic;
mod format;
mod kept;
mod loaded;
pub mod model;
mod order;
mod params;
mod partition;
mod query;
mod schema;
mod source;
pub mod suggest;
mod tier;
pub mod units;
mod validate;
mod yaml;

#[cfg(test)]
mod tests;

#[cfg(feature = "cli")]
pub(crate) use check::{is_own_column, slug};
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use format::WrongFormat;
pub use kept::Kept;
pub(crate) use loaded::survey_file;
pub use loaded::{Loaded, load, parse};
pub use model::Spec;
pub use order::Order;
pub use partition::Partition;
pub use schema::json_schema;
pub use source::Extent;
#[cfg(feature = "cli")]
pub(crate) use source::word_width;
pub(crate) use source::{is_part, offset_of};
pub use tier::Tier;
