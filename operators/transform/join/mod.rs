//! Joins of two streams: rows are kept until no row on time can meet them any more.
//!
//! The plan of a query is split at its join. The plans below it run in each epoch over what has come, on each side for
//! itself. At the barrier the join has the fresh rows of each side meet the kept and the fresh ones of the other; the
//! plan above it runs over what that gives. DataFusion does the joining, so that any condition works.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use arrow::array::{BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryFutureExt;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;

mod as_of;
mod bounded;
mod meetings;
mod numbers;
mod seek;
mod side;
#[cfg(test)]
mod tests;

pub use as_of::{AsOf, AsOfSide};
pub use bounded::{Bounded, JoinKind};
pub use meetings::Meetings;
use meetings::{Met, beside, to_the_end};
pub use side::{Partners, ROW_COLUMN, Side, TIME_COLUMN, with_row};

use super::held::Held;
use super::query::{Query, Running};
use super::rows::conform;
use super::sealed::Sealed;
use super::window::{WATERMARK_END, WATERMARK_START, Window};
use crate::error::{Error, Result};

/// The kinds of state of a join: the rows of each side, and which of them have found a partner.
pub const PARTS: [&str; 4] = [LEFT, RIGHT, LEFT_FOUND, RIGHT_FOUND];

const LEFT: &str = "left";
const RIGHT: &str = "right";
const LEFT_FOUND: &str = "left_found";
const RIGHT_FOUND: &str = "right_found";

/// Batches that wait between the join and the plan above it.
const MET_BATCHES_MAX: usize = 1;

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
    /// What that takes.
    arrived_held: Held,
    passed_us: i64,
}

/// Rows that come of a join at a barrier.
pub struct Closing<'a>(Met<'a>);

/// Where what comes of a join goes: to the plan above it.
pub struct Out {
    joined: SchemaRef,
    /// Whoever reads it may end before the rows do.
    to: mpsc::Sender<RecordBatch>,
}

impl Join {
    /// Takes the parts of a query.
    pub fn new(parts: Parts) -> Self {
        Self { parts, arrived: [Vec::new(), Vec::new()], arrived_held: Held::default(), passed_us: WATERMARK_START }
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
            self.arrived_held.add(&rows);
            arrived.push(rows);
        }
    }

    /// Has rows meet, and gives what comes of it: also of those whose time has passed at the watermark. All must be taken.
    pub fn close(&mut self, watermark_us: i64) -> Result<Closing<'_>> {
        let Self { parts: Parts { kept, meeting, above, joined, .. }, arrived, arrived_held, passed_us } = self;
        *arrived_held = Held::default();
        let mut fresh = [Vec::new(), Vec::new()];
        for ((fresh, arrived), kept) in fresh.iter_mut().zip(arrived).zip(kept) {
            for rows in arrived.drain(..) {
                fresh.push(conform(&rows, kept)?);
            }
        }
        let time = if watermark_us == WATERMARK_END { None } else { Some(watermark_us.max(*passed_us)) };
        let (to, mut met) = mpsc::channel(MET_BATCHES_MAX);
        let out = Out { joined: joined.clone(), to };
        let meeting = async move {
            *passed_us = match meeting {
                Meeting::Bounded(bounded) => bounded.meet(fresh, time, *passed_us, &out).await?,
                Meeting::AsOf(as_of) => as_of.meet(fresh, time, *passed_us, &out).await?,
            };
            Ok(())
        };
        let joined = joined.clone();
        let rows = async move {
            // Nothing is above nothing.
            let Some(first) = met.recv().await else { return Ok(stream::empty().boxed()) };
            let others =
                stream::unfold(met, async |mut met: mpsc::Receiver<_>| met.recv().await.map(|rows| (rows, met)));
            let rows = stream::once(std::future::ready(first)).chain(others).map(Ok);
            let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(joined, rows));
            let rows = above.run(vec![rows]).await?;
            Ok(to_the_end(above, rows).boxed())
        };
        Ok(Closing(beside(meeting, rows.try_flatten_stream())))
    }

    /// Closes the epoch and tells what has to be durable, by its kind.
    ///
    /// What was added must be given back as a file by [`adopt`](Self::adopt).
    pub fn seal(&mut self, epoch: u64) -> Result<Vec<(&'static str, Sealed)>> {
        let [[left, left_found], [right, right_found]] = match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.seal(epoch)?,
            Meeting::AsOf(as_of) => as_of.seal(epoch)?,
        };
        Ok(vec![(LEFT, left), (RIGHT, right), (LEFT_FOUND, left_found), (RIGHT_FOUND, right_found)])
    }

    /// Takes the file of what [`seal`](Self::seal) has added to a kind of state, and that is durable now.
    pub fn adopt(&mut self, kind: &'static str, epoch: u64, file: File) -> Result<()> {
        let [[left, left_found], [right, right_found]] = match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.states(),
            Meeting::AsOf(as_of) => as_of.states(),
        };
        let states = match kind {
            LEFT => left,
            RIGHT => right,
            LEFT_FOUND => left_found,
            RIGHT_FOUND => right_found,
            _ => None,
        };
        states.ok_or_else(|| Error::internal(format!("a join keeps no {kind}")))?.adopt(epoch, file)
    }

    /// Goes on from the files of each kind of state, by their epochs, oldest first.
    pub fn restore(&mut self, mut kinds: BTreeMap<&'static str, Vec<(u64, File)>>, passed_us: i64) -> Result<()> {
        self.passed_us = passed_us;
        let mut files = |kind| kinds.remove(kind).unwrap_or_default();
        let files = [[files(LEFT), files(LEFT_FOUND)], [files(RIGHT), files(RIGHT_FOUND)]];
        match &mut self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.restore(files, passed_us),
            Meeting::AsOf(as_of) => as_of.restore(files, passed_us),
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
        2 * self.arrived_held.bytes()
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        let kept = match &self.parts.meeting {
            Meeting::Bounded(bounded) => bounded.size_bytes(),
            Meeting::AsOf(as_of) => as_of.size_bytes(),
        };
        self.arrived_held.bytes() + kept
    }
}

impl Closing<'_> {
    /// Gives the next rows; nothing when all have been given.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.0.next().await.transpose()
    }
}

impl Out {
    /// Gives rows that have met.
    async fn give(&self, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() > 0 {
            drop(self.to.send(conform(rows, &self.joined)?).await);
        }
        Ok(())
    }

    /// Gives rows of one side, NULL in the columns of the other; `own` are the places of theirs. Columns behind these,
    /// such as a row's number, are left out.
    async fn give_alone(&self, rows: &RecordBatch, own: &Range<usize>) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(self.joined.fields().len());
        for (place, field) in self.joined.fields().iter().enumerate() {
            let column = if own.contains(&place) { rows.columns().get(place - own.start).cloned() } else { None };
            columns.push(column.unwrap_or_else(|| new_null_array(field.data_type(), rows.num_rows())));
        }
        self.give(&RecordBatch::try_new(self.joined.clone(), columns)?).await
    }
}

/// Parts rows from those that have no time, and meet nobody.
fn timeless(until: &Window, rows: RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
    let timeless: BooleanArray = until.ends_us(&rows)?.into_iter().map(|end| Some(end.is_none())).collect();
    if timeless.true_count() == 0 {
        let none = rows.slice(0, 0);
        return Ok((rows, none));
    }
    Ok((filter_record_batch(&rows, &not(&timeless)?)?, filter_record_batch(&rows, &timeless)?))
}
