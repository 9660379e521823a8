//! Joins of two streams: rows are kept until no row on time can meet them any more.
//!
//! The plan of a query is split at its join. The plans below it run in each epoch over what has come, on each side for
//! itself. At the barrier the join has the fresh rows of each side meet the kept and the fresh ones of the other; the
//! plan above it runs over what that gives. DataFusion does the joining, so that any condition works.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

mod as_of;
mod bounded;
mod side;

pub use as_of::{AsOf, AsOfSide};
pub use bounded::{Bounded, JoinKind};
pub use side::{Meetings, Partners, ROW_COLUMN, Side, with_row};

use super::held::Held;
use super::query::{Query, Running};
use super::rows::conform;
use super::sealed::Sealed;
use super::segments::Segment;
use super::window::{WATERMARK_END, WATERMARK_START, Window};
use crate::error::{Error, Result};

/// The kinds of state of a join: the rows of each side, and which of them have found a partner.
pub const PARTS: [&str; 4] = [LEFT, RIGHT, LEFT_FOUND, RIGHT_FOUND];

const LEFT: &str = "left";
const RIGHT: &str = "right";
const LEFT_FOUND: &str = "left_found";
const RIGHT_FOUND: &str = "right_found";

/// The parts of a query that joins two streams.
pub struct Parts {
    /// What lies below the join on its left.
    pub left: Query,
    /// What lies below the join on its right.
    pub right: Query,
    /// Under which columns the rows of both sides are kept.
    pub kept: [SchemaRef; 2],
    /// What lies above the join, over the rows that it gives.
    pub above: Query,
    /// The columns of these rows.
    pub joined: SchemaRef,
    /// How rows meet.
    pub meeting: Meeting,
    /// By how much the event time of the result may lie behind the watermark, in microseconds.
    pub behind_us: i64,
}

/// How rows of two streams meet.
pub enum Meeting {
    /// Within a time bound.
    Bounded(Box<Bounded>),
    /// Each row of the left with the newest one of the right.
    AsOf(Box<AsOf>),
}

/// A query with one join of two streams.
pub struct Join {
    parts: Parts,
    arrived: [Vec<RecordBatch>; 2],
    passed_us: i64,
}

impl Join {
    /// Takes the parts of a query.
    pub fn new(parts: Parts) -> Self {
        Self { parts, arrived: [Vec::new(), Vec::new()], passed_us: WATERMARK_START }
    }

    /// Gives the columns of the rows that come out.
    pub fn schema(&self) -> SchemaRef {
        self.parts.above.schema()
    }

    /// Gives the parts of the query, from its inputs to its result, each with what it is.
    pub fn queries(&self) -> Vec<(&'static str, &Query)> {
        let Parts { left, right, above, meeting, .. } = &self.parts;
        let met = match meeting {
            Meeting::Bounded(bounded) => bounded.query(),
            Meeting::AsOf(_) => None,
        };
        let met = met.map(|query| ("join", query));
        [("left", left), ("right", right)].into_iter().chain(met).chain([("above", above)]).collect()
    }

    /// Has the plans made again before the next epoch.
    pub fn refresh(&mut self) {
        let Parts { left, right, above, meeting, .. } = &mut self.parts;
        [left, right, above].into_iter().for_each(Query::refresh);
        if let Meeting::Bounded(bounded) = meeting {
            bounded.refresh();
        }
    }

    /// Gives the time before which a row is late.
    pub fn passed_us(&self) -> i64 {
        self.passed_us
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        let left = self.parts.left.start().await?;
        let right = self.parts.right.start().await?;
        let inputs = left.inputs.into_iter().zip(right.inputs).map(|(left, right)| left.and(right)).collect();
        Ok(Running { inputs, rows: left.rows.into_iter().chain(right.rows).collect() })
    }

    /// Ends the input of an epoch whose rows have all come out.
    pub fn disconnect(&self) {
        self.parts.left.disconnect();
        self.parts.right.disconnect();
    }

    /// Keeps rows of a side.
    pub fn absorb(&mut self, side: usize, rows: RecordBatch) {
        if let Some(arrived) = self.arrived.get_mut(side).filter(|_| rows.num_rows() > 0) {
            arrived.push(rows);
        }
    }

    /// Has rows meet, and gives what comes of it: also of those whose time has passed at the watermark.
    pub async fn close(&mut self, watermark_us: i64) -> Result<Option<SendableRecordBatchStream>> {
        let mut fresh = [Vec::new(), Vec::new()];
        for ((fresh, arrived), kept) in fresh.iter_mut().zip(&mut self.arrived).zip(&self.parts.kept) {
            for rows in arrived.drain(..) {
                fresh.push(conform(&rows, kept)?);
            }
        }
        let time = if watermark_us == WATERMARK_END { None } else { Some(self.passed_us.max(watermark_us)) };
        let (met, passed_us) = match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.meet(fresh, time, self.passed_us, &self.parts.joined).await?,
            Meeting::AsOf(as_of) => as_of.meet(fresh, time, self.passed_us, &self.parts.joined)?,
        };
        self.passed_us = passed_us;
        if met.is_empty() {
            return Ok(None);
        }
        let joined = self.parts.joined.clone();
        let rows = futures::stream::iter(met)
            .flatten()
            .map(move |batch| conform(&batch?, &joined).map_err(|e| DataFusionError::External(Box::new(e))));
        let rows = RecordBatchStreamAdapter::new(self.parts.joined.clone(), rows);
        self.parts.above.run(vec![Box::pin(rows)]).await.map(Some)
    }

    /// Closes the epoch and tells what has to be durable, by its kind.
    pub fn seal(&mut self, epoch: u64) -> Result<Vec<(&'static str, Sealed)>> {
        let (left, right) = match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.seal(epoch)?,
            Meeting::AsOf(as_of) => as_of.seal(epoch)?,
        };
        let kinds = [(LEFT, left.0), (RIGHT, right.0), (LEFT_FOUND, left.1), (RIGHT_FOUND, right.1)];
        kinds.into_iter().map(|(kind, snapshot)| Ok((kind, snapshot.encode()?))).collect()
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, mut parts: BTreeMap<&'static str, Vec<Segment>>, passed_us: i64) -> Result<()> {
        self.passed_us = passed_us;
        let mut part = |name| parts.remove(name).unwrap_or_default();
        let (left, right) = ((part(LEFT), part(LEFT_FOUND)), (part(RIGHT), part(RIGHT_FOUND)));
        match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.restore(left, right, passed_us),
            Meeting::AsOf(as_of) => as_of.restore(left.0, right.0, passed_us),
        }
    }

    /// Gives the time before which no row lies that is still to come out when the watermark stands at `watermark_us`.
    pub fn earliest_open_us(&self, watermark_us: i64) -> i64 {
        if watermark_us == WATERMARK_START || watermark_us == WATERMARK_END {
            return watermark_us;
        }
        watermark_us.saturating_sub(self.parts.behind_us)
    }

    /// Gives the memory that the rows of the open epoch take, in bytes, and with it the hash table that they go into at
    /// its barrier, which takes about as much again.
    pub fn open_bytes(&self) -> usize {
        2 * self.arrived.iter().flatten().map(RecordBatch::get_array_memory_size).sum::<usize>()
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        let arrived = Held::of(self.arrived.iter().flatten()).bytes();
        let kept = match &self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.size_bytes(),
            Meeting::AsOf(as_of) => as_of.size_bytes(),
        };
        arrived + kept
    }
}

/// Gives rows as a stream; nothing if there are none.
fn at_hand(rows: Vec<RecordBatch>) -> Option<SendableRecordBatchStream> {
    let schema = rows.first()?.schema();
    Some(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(rows.into_iter().map(Ok)))))
}

/// Marks the rows whose time has passed, and those that have none and meet nobody.
fn over(until: &Window, rows: &RecordBatch, bound_us: i64) -> Result<BooleanArray> {
    Ok(until.ends_us(rows)?.into_iter().map(|end| Some(end.is_none_or(|end| end <= bound_us))).collect())
}

/// Puts rows of one side under the columns of the join, NULL in those of the other; `first` is the place of their first
/// column. The number of a row is left out.
fn widened(rows: &RecordBatch, first: usize, columns: usize, joined: &SchemaRef) -> Result<RecordBatch> {
    let own = first..first + columns;
    let column = |(place, field): (usize, &arrow::datatypes::FieldRef)| {
        if own.contains(&place) {
            let column = rows.columns().get(place - first).cloned();
            return column.ok_or_else(|| Error::internal("a row of a join lacks a column"));
        }
        Ok(arrow::array::new_null_array(field.data_type(), rows.num_rows()))
    };
    let columns = joined.fields().iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(joined), columns)?)
}
