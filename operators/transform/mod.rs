//! Transforms: SQL stages, event-time windows, expectations, deduplication.

use std::collections::BTreeMap;
use std::fs::File;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

pub mod aggregate;
mod by_row;
pub mod closing;
pub mod corrected;
pub mod expect;
mod filter;
pub mod functions;
mod held;
pub mod join;
pub mod keyed;
pub mod keys;
mod lanes;
pub mod leaf;
pub mod newest;
mod phases;
pub mod query;
pub mod rows;
pub mod sealed;
mod session;
pub mod shown;
pub mod states;
mod tiers;
pub mod unique;
pub mod utc;
mod versions;
pub mod window;

use crate::error::Result;
use aggregate::WindowedAggregate;
use corrected::CorrectedAggregate;
use join::Join;
use keyed::KeyedAggregate;
use query::{Query, Running, failed};
use sealed::Sealed;
use window::WATERMARK_START;

/// The kind of state that the accumulators of an aggregate are.
pub const WINDOWS: &str = "windows";

/// A table's query, run epoch by epoch.
pub enum Transform {
    /// Rows in, rows out; nothing outlives an epoch.
    Stateless(Box<Query>),
    /// Rows in, and out when their window closes.
    Windowed(Box<WindowedAggregate>),
    /// Rows in, and out when their window closes, and again when late rows have changed it.
    Corrected(Box<CorrectedAggregate>),
    /// Rows in, and out the new row of each key.
    Keyed(Box<KeyedAggregate>),
    /// Rows of two streams in, and out as they meet.
    Joined(Box<Join>),
}

impl Transform {
    /// Gives the columns of the rows that come out.
    pub fn schema(&self) -> SchemaRef {
        match self {
            Transform::Stateless(query) => query.schema(),
            Transform::Windowed(aggregate) => aggregate.query().schema(),
            Transform::Corrected(aggregate) => aggregate.query().schema(),
            Transform::Keyed(aggregate) => aggregate.query().schema(),
            Transform::Joined(join) => join.schema(),
        }
    }

    /// Names the kinds of state that outlive an epoch.
    pub fn parts(&self) -> &'static [&'static str] {
        match self {
            Transform::Stateless(_) => &[],
            Transform::Windowed(_) | Transform::Corrected(_) | Transform::Keyed(_) => &[WINDOWS],
            Transform::Joined(_) => &join::PARTS,
        }
    }

    /// Has the plan made again before the next epoch: a reference table has changed.
    pub fn refresh(&mut self) {
        match self {
            Transform::Stateless(query) => query.refresh(),
            Transform::Windowed(aggregate) => aggregate.refresh(),
            Transform::Corrected(aggregate) => aggregate.refresh(),
            Transform::Keyed(aggregate) => aggregate.refresh(),
            Transform::Joined(join) => join.refresh(),
        }
    }

    /// Starts an epoch. What comes out of it goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        match self {
            Transform::Stateless(query) => query.start().await,
            Transform::Windowed(aggregate) => aggregate.start().await,
            Transform::Corrected(aggregate) => aggregate.start().await,
            Transform::Keyed(aggregate) => aggregate.start().await,
            Transform::Joined(join) => join.start().await,
        }
    }

    /// Ends the input of an epoch whose rows have all come out: what is sent from now on goes nowhere.
    pub fn disconnect(&self) {
        match self {
            Transform::Stateless(query) => query.disconnect(),
            Transform::Windowed(aggregate) => aggregate.query().disconnect(),
            Transform::Corrected(aggregate) => aggregate.query().disconnect(),
            Transform::Keyed(aggregate) => aggregate.query().disconnect(),
            Transform::Joined(join) => join.disconnect(),
        }
    }

    /// Takes what came out of the running epoch, of the n-th of its streams, and gives it back if it is rows already.
    pub fn absorb(&mut self, stream: usize, batch: RecordBatch) -> Result<Option<RecordBatch>> {
        match self {
            Transform::Stateless(_) => return Ok(Some(batch)),
            Transform::Windowed(aggregate) => aggregate.absorb(&batch)?,
            Transform::Corrected(aggregate) => aggregate.absorb(&batch)?,
            Transform::Keyed(aggregate) => aggregate.absorb(&batch)?,
            Transform::Joined(join) => join.absorb(stream, batch),
        }
        Ok(None)
    }

    /// Gives the rows of the windows that the watermark closes, of the keys that the epoch has touched, or of those that
    /// have met; all must be taken.
    pub async fn close(&mut self, epoch: u64, watermark_us: i64) -> Result<Closing<'_>> {
        Ok(match self {
            Transform::Stateless(_) => Closing::Rows(None),
            Transform::Windowed(aggregate) => Closing::Aggregate(aggregate.close(watermark_us).await?),
            Transform::Corrected(aggregate) => Closing::Aggregate(aggregate.close(epoch, watermark_us)?),
            Transform::Keyed(aggregate) => Closing::Aggregate(aggregate.close(epoch)?),
            Transform::Joined(join) => Closing::Joined(join.close(watermark_us)?),
        })
    }

    /// Closes the epoch and tells what has to be durable, for each kind of state.
    ///
    /// What was added must be given back as a file by [`adopt`](Self::adopt) before the next epoch starts.
    pub async fn seal(&mut self, epoch: u64) -> Result<Vec<(&'static str, Sealed)>> {
        match self {
            Transform::Stateless(_) => Ok(Vec::new()),
            Transform::Windowed(aggregate) => Ok(vec![(WINDOWS, aggregate.seal(epoch).await?)]),
            Transform::Corrected(aggregate) => Ok(vec![(WINDOWS, aggregate.seal(epoch).await?)]),
            Transform::Keyed(aggregate) => Ok(vec![(WINDOWS, aggregate.seal(epoch).await?)]),
            Transform::Joined(join) => join.seal(epoch),
        }
    }

    /// Takes the file of what [`seal`](Self::seal) has added to a kind of state, and that is durable now.
    pub fn adopt(&mut self, kind: &'static str, epoch: u64, file: File) -> Result<()> {
        match self {
            Transform::Windowed(aggregate) if kind == WINDOWS => aggregate.adopt(epoch, file),
            Transform::Corrected(aggregate) if kind == WINDOWS => aggregate.adopt(epoch, file),
            Transform::Keyed(aggregate) if kind == WINDOWS => aggregate.adopt(epoch, file),
            Transform::Joined(join) => join.adopt(kind, epoch, file),
            _ => Ok(()),
        }
    }

    /// Goes on from the files of each kind of state, by their epochs, oldest first.
    pub fn restore(
        &mut self,
        mut kinds: BTreeMap<&'static str, Vec<(u64, File)>>,
        closed_until_us: i64,
        forgotten_until_us: Option<i64>,
    ) -> Result<()> {
        match self {
            Transform::Stateless(_) => Ok(()),
            Transform::Windowed(aggregate) => {
                aggregate.restore(kinds.remove(WINDOWS).unwrap_or_default(), closed_until_us)
            }
            Transform::Corrected(aggregate) => {
                let files = kinds.remove(WINDOWS).unwrap_or_default();
                aggregate.restore(files, closed_until_us, forgotten_until_us)
            }
            Transform::Keyed(aggregate) => aggregate.restore(kinds.remove(WINDOWS).unwrap_or_default()),
            Transform::Joined(join) => join.restore(kinds, closed_until_us),
        }
    }

    /// Gives the time before which rows are late: that up to which windows have been given out, or up to which rows of
    /// a join may have been dropped.
    pub fn closed_until_us(&self) -> i64 {
        match self {
            Transform::Stateless(_) | Transform::Keyed(_) => WATERMARK_START,
            Transform::Windowed(aggregate) => aggregate.closed_until_us(),
            Transform::Corrected(aggregate) => aggregate.closed_until_us(),
            Transform::Joined(join) => join.passed_us(),
        }
    }

    /// Gives the time up to which windows cannot be corrected any more; nothing if none ever can.
    pub fn forgotten_until_us(&self) -> Option<i64> {
        match self {
            Transform::Corrected(aggregate) => Some(aggregate.forgotten_until_us()),
            Transform::Stateless(_) | Transform::Keyed(_) | Transform::Windowed(_) | Transform::Joined(_) => None,
        }
    }

    /// Gives the time before which no window begins that is still open, or that rows to come will open, and no row of a
    /// join lies that is still to come out.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match self {
            Transform::Stateless(_) | Transform::Keyed(_) | Transform::Corrected(_) => Ok(watermark_us),
            Transform::Windowed(aggregate) => aggregate.earliest_open_us(watermark_us),
            Transform::Joined(join) => Ok(join.earliest_open_us(watermark_us)),
        }
    }

    /// Gives the memory that the state takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Transform::Stateless(_) => 0,
            Transform::Windowed(aggregate) => aggregate.size_bytes(),
            Transform::Corrected(aggregate) => aggregate.size_bytes(),
            Transform::Keyed(aggregate) => aggregate.size_bytes(),
            Transform::Joined(join) => join.size_bytes(),
        }
    }

    /// Gives the part of it that the barrier of the open epoch may free, in bytes, with what is built of it then.
    pub fn open_bytes(&self) -> usize {
        match self {
            Transform::Stateless(_) => 0,
            Transform::Windowed(aggregate) => aggregate.open_bytes(),
            Transform::Corrected(aggregate) => aggregate.open_bytes(),
            Transform::Keyed(aggregate) => aggregate.open_bytes(),
            Transform::Joined(join) => join.open_bytes(),
        }
    }
}

/// Rows that come out at the end of an epoch.
pub enum Closing<'a> {
    /// As a query gives them.
    Rows(Option<SendableRecordBatchStream>),
    /// Of an aggregate.
    Aggregate(closing::Closing<'a>),
    /// Of a join.
    Joined(join::Closing<'a>),
}

impl Closing<'_> {
    /// Gives the next rows; nothing when all have been given.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        match self {
            Closing::Rows(None) => Ok(None),
            Closing::Rows(Some(rows)) => rows.next().await.transpose().map_err(failed),
            Closing::Aggregate(closing) => closing.next().await,
            Closing::Joined(join) => join.next().await,
        }
    }
}
