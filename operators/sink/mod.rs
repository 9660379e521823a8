//! Sinks: prepare, then commit.

pub mod delta;
pub mod memory;
pub mod parquet;
#[cfg(feature = "postgres")]
pub mod postgres;
mod spool;

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::quarantine::Quarantined;

/// Which epoch of which process: every name that a sink stages is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EpochId {
    /// The process's number: each start of a pipeline claims the next.
    pub generation: u64,
    /// The epoch's number: they follow one another over all generations.
    pub epoch: u64,
}

/// What a sink needs to publish what it has prepared. Small; it stands in the commit record.
pub type Handle = serde_json::Value;

/// What a sink has made durable, but not visible.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// How to publish it; nothing if there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Rows prepared.
    pub rows: u64,
    /// Encoded bytes prepared.
    pub bytes: u64,
    /// Files prepared.
    pub files: u64,
    /// Rows of the sink's own files that its commit removes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed: u64,
    /// Files of the sink's spool that hold rows of the epoch until a later one publishes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spooled: Vec<SpooledFile>,
    /// How many files of the spool the epoch publishes, the oldest first: those of earlier epochs, and its own behind them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rolled: u64,
    /// Rows of the sink's own files that its commit removes, and that its new files hold instead: they are among `removed`,
    /// and not among `rows`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rewritten: u64,
}

/// A file of rows that are durable, and that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledFile {
    /// Its name in the sink's spool.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Takes the rows of one table, epoch by epoch, and makes them durable.
///
/// # Contract
///
/// - The engine calls [`write`](Sink::write) any number of times for an epoch,
///   then [`prepare`](Sink::prepare) once; epochs come in order.
/// - After `prepare` the rows are durable and invisible to every reader, and
///   the handle is enough to publish them from another process.
/// - An epoch without rows prepares to no handle, unless its commit has files to remove, or rows of earlier epochs to
///   publish. [`end`](Sink::end) is called before the last `prepare`, which leaves no rows to wait for a later epoch.
/// - A [`Data`](crate::ErrorKind::Data) error of `write` comes before any row of
///   the call was taken: the call may be made again without the bad rows.
/// - Dropping a sink between calls leaves nothing visible; what it staged is
///   removed by [`Committer::sweep`] of a later process.
#[async_trait]
pub trait Sink: Send {
    /// Takes rows of the open epoch.
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()>;
    /// Makes the epoch's rows durable, and invisible.
    async fn prepare(&mut self, id: EpochId) -> Result<Prepared>;
    /// Tells that no epoch of this process follows the open one.
    fn end(&mut self);
    /// Gives the bytes of memory that hold what it has taken and not yet prepared. It is asked between calls, and answers
    /// without waiting.
    fn held_bytes(&self) -> usize;
    /// Gives the half that publishes; it works beside the writing half.
    fn committer(&self) -> Arc<dyn Committer>;
}

/// Publishes what a [`Sink`] has prepared.
///
/// # Contract
///
/// - The engine calls [`commit`](Committer::commit) only once the epoch's commit
///   record exists, in the order of epochs, and again after any failure or
///   restart until it succeeds: it is idempotent, also after a partial commit.
/// - The engine calls [`sweep`](Committer::sweep) once after claiming its
///   generation, with the handles of all recorded epochs that are not yet
///   committed: what older generations staged beside those is removed.
/// - Neither is called concurrently with itself.
#[async_trait]
pub trait Committer: Send + Sync {
    /// Makes an epoch visible.
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()>;
    /// Removes what generations before `generation` staged and `keep` does not name; gives how many.
    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64>;
}

/// A place among the rows that a sink's service has refused: behind so many rows of an epoch, and behind all of the
/// epochs before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RefusedUpto {
    /// The epoch whose commit has met the refusals.
    pub epoch: u64,
    /// How many of its refused rows lie before.
    pub rows: u64,
}

/// The rows that a sink's service has refused, kept by the service until the quarantine has them.
///
/// # Contract
///
/// - A row is there once the commit of its epoch has landed the others: the service takes both in one transaction.
/// - The rows of an epoch have an order that does not change; epochs come in theirs.
/// - The engine calls [`next`](RefusedRows::next) after a commit until it gives nothing, and records how far it has come
///   together with the quarantine's files. It calls [`forget`](RefusedRows::forget) once such a record exists.
/// - Both are idempotent; neither is called while the sink commits.
#[async_trait]
pub trait RefusedRows: Send + Sync {
    /// Gives the next rows behind a place, all of one epoch, and that epoch; nothing if there are none.
    async fn next(&self, behind: RefusedUpto) -> Result<Option<(u64, Vec<Quarantined>)>>;
    /// Removes the rows up to a place.
    async fn forget(&self, upto: RefusedUpto) -> Result<()>;
}

impl RefusedUpto {
    /// Goes past rows of an epoch that follow.
    pub fn pass(&mut self, epoch: u64, rows: u64) {
        *self = if self.epoch == epoch { Self { epoch, rows: self.rows + rows } } else { Self { epoch, rows } };
    }
}
