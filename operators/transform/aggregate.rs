//! Windowed aggregates across epochs: accumulator states are kept until the
//! watermark passes the end of their window, then each window is given once.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::expressions::Column;

use super::phases::{find, finish, reduce, start, state_schema};
use super::query::{Query, Running};
use super::segments::{Segment, Segments, Snapshot};
use super::session::Sessions;
use super::window::{Extent, WATERMARK_END, WATERMARK_START, Window};
use crate::error::{Error, Result};

/// A query with one aggregate over event-time windows.
pub struct WindowedAggregate {
    query: Query,
    windows: Windows,
    states: Segments,
    closed_until_us: i64,
}

/// How states belong to windows.
enum Windows {
    /// Each state has the start of its window.
    Fixed(Window),
    /// A session is what its states make it.
    Sessions(Sessions),
}

impl WindowedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions.
    pub fn new(query: Query, group_index: usize, extent: Extent) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let windows = match extent {
            Extent::Width(width) => Windows::Fixed(Window { start: Arc::new(Column::new(name, group_index)), width }),
            Extent::Session { gap_us, last_index } => {
                Windows::Sessions(Sessions::new(group_index, last_index, keys.len(), gap_us))
            }
        };
        Ok(Self { query, windows, states: Segments::default(), closed_until_us: WATERMARK_START })
    }

    /// Gives the query as a whole.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Has the plan made again before the next epoch.
    pub fn refresh(&mut self) {
        self.query.refresh();
    }

    /// Gives the time up to which windows have been given out: a row of such a window is late.
    pub fn closed_until_us(&self) -> i64 {
        self.closed_until_us
    }

    /// Gives the columns of the states that are kept.
    pub fn state_schema(&self) -> Result<SchemaRef> {
        state_schema(&self.query)
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, states: RecordBatch) {
        self.states.add(states);
    }

    /// Gives the windows that end at or before the watermark, each once.
    pub fn close(&mut self, watermark_us: i64) -> Result<Option<SendableRecordBatchStream>> {
        if watermark_us == WATERMARK_START {
            return Ok(None);
        }
        let taken =
            if watermark_us == WATERMARK_END { self.states.take_all() } else { self.take_closed(watermark_us)? };
        // Input that ends leaves no trace beyond its last window, so that later input is not late as a whole.
        let last = if watermark_us == WATERMARK_END { self.last_end_us(&taken)? } else { watermark_us };
        self.closed_until_us = self.closed_until_us.max(last);
        if taken.is_empty() {
            return Ok(None);
        }
        finish(&self.query, self.united(taken)?).map(Some)
    }

    /// Closes the epoch and tells what has to be durable.
    pub async fn snapshot(&mut self, epoch: u64) -> Result<Snapshot> {
        // The rows of a session come in with their own times: together they are one state.
        let states = match self.windows {
            _ if self.states.want_merge() => self.states.take_all(),
            Windows::Sessions(_) => self.states.take_open(),
            Windows::Fixed(_) => Vec::new(),
        };
        if !states.is_empty() {
            for merged in self.merge(states).await? {
                self.states.add(merged);
            }
        }
        Ok(self.states.seal(epoch))
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, segments: Vec<Segment>, closed_until_us: i64) -> Result<()> {
        self.closed_until_us = closed_until_us;
        self.states.restore(segments);
        // A segment is saved once; windows that were given out since are still in it.
        self.take_closed(closed_until_us).map(drop)
    }

    /// Gives the time before which no session begins that is still open, or that rows to come will open, when the
    /// watermark stands at `watermark_us`.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match &self.windows {
            Windows::Fixed(window) => Ok(window.width.earliest_open_start_us(watermark_us)),
            Windows::Sessions(sessions) => Ok(sessions.earliest_us(self.states.rows())?.min(watermark_us)),
        }
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.states.size_bytes()
    }

    /// Takes out the states of windows that end at or before the bound.
    fn take_closed(&mut self, bound_us: i64) -> Result<Vec<RecordBatch>> {
        match &self.windows {
            Windows::Fixed(window) => self.states.take(|rows| window.closed(rows, bound_us)),
            Windows::Sessions(sessions) => {
                let states: Vec<_> = self.states.rows().collect();
                let mut marks = sessions.closed(&states, bound_us)?.into_iter();
                let ended = || Error::internal("there are fewer marks than states");
                self.states.take(|_| marks.next().ok_or_else(ended))
            }
        }
    }

    /// Gives states that belong to one window equal keys.
    fn united(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        match &self.windows {
            Windows::Fixed(_) => Ok(states),
            Windows::Sessions(sessions) => sessions.unite(states),
        }
    }

    async fn merge(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        reduce(&self.query, self.united(states)?).await
    }

    fn last_end_us(&self, states: &[RecordBatch]) -> Result<i64> {
        let mut last = WATERMARK_START;
        match &self.windows {
            Windows::Fixed(window) => {
                for rows in states {
                    last = window.ends_us(rows)?.into_iter().flatten().fold(last, i64::max);
                }
            }
            Windows::Sessions(sessions) => last = sessions.last_end_us(states)?.unwrap_or(last),
        }
        Ok(last)
    }
}
