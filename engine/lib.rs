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
//! # Guide
//!
//! **A pipeline** is made of a file or a text by [`Pipeline::load`] and [`Pipeline::parse`]; all mistakes come at once, as
//! [`spec::Diagnostics`] with places and codes. [`Pipeline::plan`] checks the queries too, without starting anything.
//!
//! **A job** is what [`Pipeline::start`] gives. It runs in the background of the current tokio runtime, and its stages on
//! threads of its own, so that a service beside it goes on answering. [`Job::status`] tells what is committed,
//! [`Job::wait`] waits for the end, and [`Job::stop`] (or a [`Stopper`], from elsewhere) drains: what has been read is
//! committed, and open windows stay open for the next start. To drop a job is to crash: nothing is lost, and the next start
//! goes on from the last commit. [`serve::Pages`] shows a job to probes and to Prometheus.
//!
//! **Rows of the service** go in through a [`MemorySource`](operators::source::memory::MemorySource) that is fed by a handle
//! ([`Pipeline::with_rows`]), or through an [`operators::source::Source`] of its own ([`Pipeline::with_source`]), which
//! keeps positions and so has each record counted once. They come out through a
//! [`MemorySink`](operators::sink::memory::MemorySink) or an [`operators::sink::Sink`] of its own
//! ([`Pipeline::with_sink`]), which takes part in each commit beside the lake. The contracts stand on the traits, and
//! `operators::testing` (feature `testing` of `nexus-operators`) has the tests that every implementation has to pass.
//!
//! **SQL functions** join by [`Pipeline::with_function`] and [`Pipeline::with_aggregate`]; the state of an aggregate is kept
//! across epochs and restarts like that of the built-in ones.
//!
//! **Errors** have a [kind](ErrorKind) that says what to do, and words for people. A run that ends with `Unavailable` may be
//! started again; `Fenced` means that another process has taken over; `Config` waits for somebody to change something.
//!
//! **Time** is injected ([`Pipeline::with_clock`]), and [`trial`] runs the cases of a file in process.
//!
//! Three examples run as they are: `examples/service.rs` (inside of an axum service), `examples/embed.rs` (a source and a
//! sink), `examples/functions.rs` (SQL functions). What of the API stays as it is, is told in the book
//! (`docs/book/src/embedding.md`); all of it is listed in `docs/public-api.txt`.
//!
//! # Features
//!
//! All are on by default; a library that reads files and writes a local lake needs none (`default-features = false`).
//!
//! | feature | without it there is no |
//! |---|---|
//! | `cli` | module `cli`: the command `nexus`, with its prompt, its completions and its allocator |
//! | `kinesis` | source `kinesis`, nor the SDK for it |
//! | `otel` | tracing of epochs by OpenTelemetry |
//! | `postgres` | table key `postgres`, nor its client; files that have it are refused when they run |
//! | `s3` | source `s3`, no lake on S3, and no lineage sent to a URL |
//!
//! Invariant: the engine wires and drives operators, and never looks into a row.

pub mod audit;
#[cfg(feature = "cli")]
pub mod cli;
pub mod iam;
pub mod job;
mod lineage;
pub mod online;
mod pipeline;
pub mod plan;
pub mod preview;
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
