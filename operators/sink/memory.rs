//! A sink that keeps rows in memory, for library users and tests.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Int64Array, RecordBatch};
//! # use nexus_operators::sink::{EpochId, Sink, memory::MemorySink};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut sink = MemorySink::new();
//! let landed = sink.landed();
//! let id = EpochId { generation: 1, epoch: 1 };
//! let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, 2])) as _)])?;
//!
//! sink.write(id, &rows).await?;
//! let prepared = sink.prepare(id).await?;
//! assert!(landed.batches().is_empty());
//!
//! sink.committer().commit(id, &prepared.handle.ok_or("no rows")?).await?;
//! assert_eq!(landed.batches(), [rows]);
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use serde::Deserialize;

use super::{Committer, EpochId, Handle, Prepared, Sink};
use crate::error::{Error, Result};

/// Keeps a table's rows in memory.
#[derive(Debug, Default)]
pub struct MemorySink {
    landed: Landed,
    open: Vec<RecordBatch>,
}

/// The rows of a [`MemorySink`]: what is prepared, and what is committed.
///
/// Clones share the rows, so that a sink made [over](MemorySink::over) one goes
/// on where another has ended.
#[derive(Debug, Clone, Default)]
pub struct Landed {
    /// Shared with the sink and its committers; never held across an await.
    epochs: Arc<Mutex<Epochs>>,
}

#[derive(Debug, Default)]
struct Epochs {
    prepared: BTreeMap<EpochId, Vec<RecordBatch>>,
    committed: BTreeMap<EpochId, Vec<RecordBatch>>,
}

impl MemorySink {
    /// Makes a sink with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a sink that adds to what has landed before.
    pub fn over(landed: Landed) -> Self {
        Self { landed, open: Vec::new() }
    }

    /// Gives the handle through which the rows are seen.
    pub fn landed(&self) -> Landed {
        self.landed.clone()
    }
}

impl Landed {
    /// Gives the committed rows, in the order of their epochs.
    pub fn batches(&self) -> Vec<RecordBatch> {
        self.epochs().committed.values().flatten().cloned().collect()
    }

    /// Gives how many rows are committed.
    pub fn rows(&self) -> usize {
        self.epochs().committed.values().flatten().map(RecordBatch::num_rows).sum()
    }

    fn epochs(&self) -> MutexGuard<'_, Epochs> {
        // A panic elsewhere cannot leave an epoch half moved.
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn write(&mut self, _: EpochId, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() > 0 {
            self.open.push(rows.clone());
        }
        Ok(())
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        let batches = std::mem::take(&mut self.open);
        if batches.is_empty() {
            return Ok(Prepared::default());
        }
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let bytes = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
        self.landed.epochs().prepared.insert(id, batches);
        let handle = serde_json::to_value(id).map_err(|e| Error::internal("could not write a handle").because(e))?;
        Ok(Prepared { handle: Some(handle), rows, bytes, ..Prepared::default() })
    }

    fn end(&mut self) {}

    fn held_bytes(&self) -> usize {
        self.open.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(self.landed.clone())
    }
}

#[async_trait]
impl Committer for Landed {
    async fn commit(&self, _: EpochId, handle: &Handle) -> Result<()> {
        let id = read(handle)?;
        let mut epochs = self.epochs();
        match epochs.prepared.remove(&id) {
            Some(batches) => {
                epochs.committed.insert(id, batches);
                Ok(())
            }
            None if epochs.committed.contains_key(&id) => Ok(()),
            None => Err(Error::internal(format!(
                "could not commit epoch {} of generation {}: it was not prepared in this process",
                id.epoch, id.generation
            ))),
        }
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let kept: Vec<EpochId> = keep.iter().map(read).collect::<Result<_>>()?;
        let mut epochs = self.epochs();
        let before = epochs.prepared.len();
        epochs.prepared.retain(|id, _| id.generation >= generation || kept.contains(id));
        Ok((before - epochs.prepared.len()) as u64)
    }
}

fn read(handle: &Handle) -> Result<EpochId> {
    EpochId::deserialize(handle).map_err(|e| Error::internal("could not read the handle of a memory sink").because(e))
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use super::*;
    use crate::testing::sink::{Target, conforms, ids};

    impl Target for Landed {
        async fn sink(&self) -> Box<dyn Sink> {
            Box::new(MemorySink::over(self.clone()))
        }

        async fn visible(&self) -> Vec<i64> {
            self.batches().iter().flat_map(ids).collect()
        }

        async fn staged(&self) -> usize {
            self.epochs().prepared.len()
        }
    }

    #[tokio::test]
    async fn conforms_in_memory() {
        conforms(|| async { Landed::default() }).await;
    }
}
