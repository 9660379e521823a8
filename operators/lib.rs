//! The operators of Nexus: everything that touches rows.
//!
//! Rows flow one way. A [`source`] reads bytes and knows positions, a
//! [`decode`]r turns bytes into Arrow batches and rejects, a transform (feature
//! `sql`) refines batches, a [`sink`] prepares and then commits them. The four
//! folders do not import one another; they share the small modules of types
//! beside them.
//!
//! # Features
//!
//! | feature | without it there is no |
//! |---|---|
//! | `aws` | credentials, regions and roles of AWS, nor secrets from its Secrets Manager; `kinesis` and `s3` need it |
//! | `kinesis` | source of Kinesis streams |
//! | `postgres` | sink to PostgreSQL |
//! | `s3` | store on S3, and no source of its objects |
//! | `sql` | module `transform`, nor DataFusion |
//! | `testing` | module `testing`: contracts as suites, servers, fakes. Off by default |
//!
//! Invariant: an operator never decides retry across calls, and never spawns a
//! task that nobody owns. The engine owns every loop.

pub mod archive;
pub mod avro;
pub mod aws;
pub mod batch;
pub mod clock;
pub mod contained;
mod cores;
pub mod decode;
pub mod error;
pub mod fail;
pub mod framing;
pub mod permissions;
pub mod position;
pub mod probe;
pub mod quarantine;
pub mod secret;
pub mod sink;
pub mod source;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "sql")]
pub mod transform;

pub use error::{Error, ErrorKind, Result};
