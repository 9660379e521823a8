//! Transforms: SQL stages, event-time windows, expectations, deduplication.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;

pub mod aggregate;
pub mod expect;
pub mod functions;
pub mod join;
pub mod keyed;
pub mod keys;
pub mod leaf;
mod phases;
pub mod query;
pub mod rows;
pub mod segments;
pub mod session;
pub mod unique;
pub mod window;

use crate::error::Result;
use aggregate::WindowedAggregate;
use join::Join;
use keyed::KeyedAggregate;
use query::{Query, Running};
use segments::{Segment, Snapshot};
use window::WATERMARK_START;

/// The kind of state that the accumulators of an aggregate are.
pub const WINDOWS: &str = "windows";

/// A table's query, run epoch by epoch.
pub enum Transform {
    /// Rows in, rows out; nothing outlives an epoch.
    Stateless(Box<Query>),
    /// Rows in, and out when their window closes.
    Windowed(Box<WindowedAggregate>),
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
            Transform::Keyed(aggregate) => aggregate.query().schema(),
            Transform::Joined(join) => join.schema(),
        }
    }

    /// Gives the query, in its parts if it runs in several, each with what it is.
    pub fn queries(&self) -> Vec<(&'static str, &Query)> {
        match self {
            Transform::Stateless(query) => vec![("query", query)],
            Transform::Windowed(aggregate) => vec![("query", aggregate.query())],
            Transform::Keyed(aggregate) => vec![("query", aggregate.query())],
            Transform::Joined(join) => join.queries(),
        }
    }

    /// Names the kinds of state that outlive an epoch.
    pub fn parts(&self) -> &'static [&'static str] {
        match self {
            Transform::Stateless(_) => &[],
            Transform::Windowed(_) | Transform::Keyed(_) => &[WINDOWS],
            Transform::Joined(_) => &join::PARTS,
        }
    }

    /// Has the plan made again before the next epoch: a reference table has changed.
    pub fn refresh(&mut self) {
        match self {
            Transform::Stateless(query) => query.refresh(),
            Transform::Windowed(aggregate) => aggregate.refresh(),
            Transform::Keyed(aggregate) => aggregate.refresh(),
            Transform::Joined(join) => join.refresh(),
        }
    }

    /// Starts an epoch. What comes out of it goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        match self {
            Transform::Stateless(query) => query.start().await,
            Transform::Windowed(aggregate) => aggregate.start().await,
            Transform::Keyed(aggregate) => aggregate.start().await,
            Transform::Joined(join) => join.start().await,
        }
    }

    /// Ends the input of an epoch whose rows have all come out: what is sent from now on goes nowhere.
    pub fn disconnect(&self) {
        match self {
            Transform::Stateless(query) => query.disconnect(),
            Transform::Windowed(aggregate) => aggregate.query().disconnect(),
            Transform::Keyed(aggregate) => aggregate.query().disconnect(),
            Transform::Joined(join) => join.disconnect(),
        }
    }

    /// Takes what came out of the running epoch, of the n-th of its streams, and gives it back if it is rows already.
    pub fn absorb(&mut self, stream: usize, batch: RecordBatch) -> Option<RecordBatch> {
        match self {
            Transform::Stateless(_) => return Some(batch),
            Transform::Windowed(aggregate) => aggregate.absorb(batch),
            Transform::Keyed(aggregate) => aggregate.absorb(batch),
            Transform::Joined(join) => join.absorb(stream, batch),
        }
        None
    }

    /// Gives the rows of the windows that the watermark closes, of the keys that the epoch has touched, or of those that
    /// have met.
    pub async fn close(&mut self, epoch: u64, watermark_us: i64) -> Result<Option<SendableRecordBatchStream>> {
        match self {
            Transform::Stateless(_) => Ok(None),
            Transform::Windowed(aggregate) => aggregate.close(watermark_us),
            Transform::Keyed(aggregate) => aggregate.close(epoch).await,
            Transform::Joined(join) => join.close(watermark_us).await,
        }
    }

    /// Closes the epoch and tells what has to be durable, for each kind of state.
    pub async fn snapshot(&mut self, epoch: u64) -> Result<Vec<(&'static str, Snapshot)>> {
        match self {
            Transform::Stateless(_) => Ok(Vec::new()),
            Transform::Windowed(aggregate) => Ok(vec![(WINDOWS, aggregate.snapshot(epoch).await?)]),
            Transform::Keyed(aggregate) => Ok(vec![(WINDOWS, aggregate.snapshot(epoch)?)]),
            Transform::Joined(join) => join.snapshot(epoch),
        }
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, mut parts: BTreeMap<&'static str, Vec<Segment>>, closed_until_us: i64) -> Result<()> {
        match self {
            Transform::Stateless(_) => Ok(()),
            Transform::Windowed(aggregate) => {
                aggregate.restore(parts.remove(WINDOWS).unwrap_or_default(), closed_until_us)
            }
            Transform::Keyed(aggregate) => aggregate.restore(parts.remove(WINDOWS).unwrap_or_default()),
            Transform::Joined(join) => join.restore(parts, closed_until_us),
        }
    }

    /// Gives the time before which rows are late: that up to which windows have been given out, or up to which rows of
    /// a join may have been dropped.
    pub fn closed_until_us(&self) -> i64 {
        match self {
            Transform::Stateless(_) | Transform::Keyed(_) => WATERMARK_START,
            Transform::Windowed(aggregate) => aggregate.closed_until_us(),
            Transform::Joined(join) => join.passed_us(),
        }
    }

    /// Gives the time before which no window begins that is still open, or that rows to come will open, and no row of a
    /// join lies that is still to come out.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match self {
            Transform::Stateless(_) | Transform::Keyed(_) => Ok(watermark_us),
            Transform::Windowed(aggregate) => aggregate.earliest_open_us(watermark_us),
            Transform::Joined(join) => Ok(join.earliest_open_us(watermark_us)),
        }
    }

    /// Gives the memory that the state takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Transform::Stateless(_) => 0,
            Transform::Windowed(aggregate) => aggregate.size_bytes(),
            Transform::Keyed(aggregate) => aggregate.size_bytes(),
            Transform::Joined(join) => join.size_bytes(),
        }
    }
}
