//! The way of a source's records to its archive.

use arrow::array::RecordBatch;
use nexus_operators::quarantine::Quarantined;
use nexus_operators::{Result, archive};

use super::channel::{Barrier, Item, Sender};

/// The channels of a source's archive.
pub struct Archive {
    /// Takes the records as they came.
    pub records: Sender<Item>,
    /// Takes what is told of those that do not decode.
    pub errors: Sender<Item>,
}

impl Archive {
    /// Takes records that arrived.
    pub async fn take(&self, records: RecordBatch) -> Result<()> {
        self.records.send(Item::Batch(records)).await
    }

    /// Takes records that do not decode, which arrived at one time and were refused at another.
    pub async fn refuse(&self, rows: &[Quarantined], arrived_us: i64, refused_us: i64) -> Result<()> {
        match archive::refused(rows, arrived_us, refused_us)? {
            Some(lines) => self.errors.send(Item::Batch(lines)).await,
            None => Ok(()),
        }
    }

    /// Closes an epoch.
    pub async fn close(&self, barrier: Barrier) -> Result<()> {
        self.records.send(Item::Barrier(barrier)).await?;
        self.errors.send(Item::Barrier(barrier)).await
    }
}
