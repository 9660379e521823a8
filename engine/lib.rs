//! Nexus: an embedded columnar streaming engine.
//!
//! It reads Kinesis shards, S3 objects announced through SQS, and files into
//! Arrow batches, refines them through the tiers bronze, silver, gold and
//! vibranium with SQL, and lands every table as Parquet in the lake and, where
//! asked, as rows in Postgres: exactly once.
//!
//! A pipeline is one YAML file ([`spec`]). It is checked and planned
//! ([`plan`]), and then run ([`job`]); what must survive a crash is kept in
//! commit records ([`state`]). [`Pipeline`] brings these together for services
//! that embed the engine.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let lake = tempfile::tempdir()?;
//! let file = format!("
//! name: hello
//! lake: {}
//! sources:
//!   numbers: {{ generate: {{ rows: 10, columns: {{ n: {{ sequence: {{}} }} }} }} }}
//! silver:
//!   even: {{ sql: SELECT n FROM numbers WHERE n % 2 = 0 }}
//! ", lake.path().display());
//! let mut job = nexus::Pipeline::parse(&file)?.start().await?;
//! let report = job.wait().await?;
//! assert_eq!(report.tables["silver.even"].counts.rows_out, 5);
//! # Ok(()) }
//! ```
//!
//! A service's own sources, sinks and functions join by [`Pipeline::with_source`], [`Pipeline::with_rows`],
//! [`Pipeline::with_sink`] and [`Pipeline::with_function`]: see `examples/embed.rs`.
//!
//! Invariant: the engine wires and drives operators, and never looks into a row.

pub mod audit;
pub mod cli;
pub mod iam;
pub mod job;
mod lineage;
pub mod online;
mod pipeline;
pub mod plan;
pub mod serve;
pub mod spec;
pub mod state;
#[cfg(feature = "otel")]
mod traces;
pub mod trial;

pub use job::progress::Report;
pub use job::{Job, Stopper};
pub use nexus_operators as operators;
pub use nexus_operators::{Error, ErrorKind, Result};
pub use pipeline::{BuildError, Pipeline};
