//! Sources: bytes and positions in.

#[cfg(feature = "kinesis")]
pub mod kinesis;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::batch::Chunk;
use crate::error::Result;
use crate::position::Cut;

pub mod file;
pub mod framed;
pub mod generate;
pub mod memory;
pub mod pattern;
#[cfg(feature = "s3")]
pub mod s3;
pub mod sample;

/// What a source has to say when it is asked for more.
#[derive(Debug)]
pub enum SourceEvent {
    /// Records.
    Chunk(Chunk),
    /// Content that cannot be read as records: it goes to the source's quarantine and counts as one record.
    Reject {
        /// The file, object or message it stands in.
        partition: Arc<str>,
        /// Place within the partition.
        offset: String,
        /// The bytes as they came, as far as they are known.
        raw: Bytes,
        /// What is wrong, for people.
        reason: String,
    },
    /// There is nothing to read now, and nothing under way: the source has caught up. Ask again. (A source that is
    /// only waiting for something slow gives a chunk of no records instead.)
    Idle,
    /// There will never be more. Only a bounded source says so.
    End,
}

/// Reads records from partitions and knows how far it has read.
///
/// # Contract
///
/// - The engine calls [`open`](Source::open) once, before anything else. A
///   source that cannot be reached says so here, with
///   [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
/// - [`next`](Source::next) is cancel-safe: dropped at any await, it loses no
///   record and repeats none. It waits for records (long polls, paces itself
///   to the service's limits) but never for longer than about a second without
///   answering `Idle`, or a chunk of no records ([`Payload::Records`](crate::batch::Payload::Records), whatever the
///   format) while it waits without having caught up. After `End` it answers `End` again. An `Unavailable`
///   error leaves the source usable: the engine backs off and calls again.
/// - [`cut`](Source::cut) gives the positions after all that `next` has
///   returned, as changes since the last call. A source opened with the fold of
///   these cuts goes on with exactly the record behind.
/// - [`committed`](Source::committed) tells that every sink has committed the
///   rows up to this cut; only now may a message be deleted or a checkpoint
///   advanced. Cuts come in their order. It is idempotent, and may be called
///   again after `Unavailable`.
/// - [`maintain`](Source::maintain) is called about once a second, also while
///   backpressure keeps `next` from being called: leases and visibility are
///   kept alive here. It must be cheap when nothing is due.
#[async_trait]
pub trait Source: Send {
    /// Opens the source at its committed positions (empty at the first start).
    async fn open(&mut self, committed: &Cut) -> Result<()>;
    /// Reads the next chunk.
    async fn next(&mut self) -> Result<SourceEvent>;
    /// Reports what has moved since the last cut.
    fn cut(&mut self) -> Cut;
    /// Names the partitions that are being read: those that hold the watermark back.
    fn reading(&self) -> Vec<Arc<str>>;
    /// Acknowledges everything up to `cut` to the service.
    async fn committed(&mut self, cut: &Cut) -> Result<()>;
    /// Keeps alive what has a time limit.
    async fn maintain(&mut self) -> Result<()>;
    /// Tells whether the source ends by itself.
    fn bounded(&self) -> bool;
}
