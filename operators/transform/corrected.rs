//! Windows that late rows correct: each is given out once the watermark has passed its end, and again whenever a row of
//! it comes later, as long as its state is kept.
//!
//! A sink with a key keeps the newest row of a window; where rows are only added, the number of the epoch in
//! [`SEQUENCE_COLUMN`](super::keyed::SEQUENCE_COLUMN) tells which is.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::expressions::Column;

use super::keyed::numbered;
use super::phases::{find, finish, start, state_schema};
use super::query::{Query, Running};
use super::segments::{Segment, Snapshot};
use super::versions::Versions;
use super::window::{WATERMARK_END, WATERMARK_START, Width, Window};
use crate::error::{Error, Result};

/// A query with one aggregate over event-time windows whose rows may change.
pub struct CorrectedAggregate {
    query: Query,
    window: Window,
    /// How long behind its end a window can be corrected.
    within_us: i64,
    states: Versions,
    arrived: Vec<RecordBatch>,
    /// Windows that end up to here have been given out.
    closed_until_us: i64,
    /// The states of windows that end up to here are not kept any more.
    forgotten_until_us: i64,
}

impl CorrectedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions; states are kept for
    /// `within_us` microseconds of event time behind their windows' ends.
    pub fn new(query: Query, group_index: usize, width: Width, within_us: i64) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let window = Window { start: Arc::new(Column::new(name, group_index)), width };
        let states = Versions::new(&state_schema(&query)?, keys.len())?;
        let (closed_until_us, forgotten_until_us) = (WATERMARK_START, WATERMARK_START);
        Ok(Self { query, window, within_us, states, arrived: Vec::new(), closed_until_us, forgotten_until_us })
    }

    /// Gives the query as a whole.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Has the plan made again before the next epoch.
    pub fn refresh(&mut self) {
        self.query.refresh();
    }

    /// Gives the time up to which windows have been given out: a row of such a window corrects it.
    pub fn closed_until_us(&self) -> i64 {
        self.closed_until_us
    }

    /// Gives the time up to which windows have been forgotten: a row of such a window is late.
    pub fn forgotten_until_us(&self) -> i64 {
        self.forgotten_until_us
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, states: RecordBatch) {
        if states.num_rows() > 0 {
            self.arrived.push(states);
        }
    }

    /// Gives the windows that the watermark closes, and those closed before that the epoch's rows have changed.
    pub async fn close(&mut self, epoch: u64, watermark_us: i64) -> Result<Option<SendableRecordBatchStream>> {
        let arrived = std::mem::take(&mut self.arrived);
        let stands_still = watermark_us <= self.closed_until_us;
        if arrived.is_empty() && stands_still {
            return Ok(None);
        }
        // Versions from here on are those that the epoch has changed.
        let changed_from = self.states.batches().len();
        if !arrived.is_empty() {
            self.states.merge(&self.query, arrived).await?;
        }
        let ends = self.ends_us()?;
        let end_of = |(batch, row): (usize, usize)| ends.get(batch).and_then(|ends| *ends.get(row)?);
        let closed_until_us = match watermark_us {
            // Input that ends leaves no trace beyond its last window, so that later input is not late as a whole.
            WATERMARK_END => self.states.places().filter_map(end_of).fold(self.closed_until_us, i64::max),
            passed_us => self.closed_until_us.max(passed_us),
        };
        let is_due = |place: &(usize, usize)| match end_of(*place) {
            Some(end_us) => end_us <= closed_until_us && (end_us > self.closed_until_us || place.0 >= changed_from),
            // What is in no window is given at the end of input, as a whole.
            None => watermark_us == WATERMARK_END,
        };
        let mut due: Vec<_> = self.states.places().filter(is_due).collect();
        due.sort_unstable();
        let due = self.states.gather(&due)?;

        self.closed_until_us = closed_until_us;
        self.forget(&ends);
        if due.is_empty() {
            return Ok(None);
        }
        numbered(finish(&self.query, due)?, epoch).map(Some)
    }

    /// Closes the epoch and tells what has to be durable.
    pub fn snapshot(&mut self, epoch: u64) -> Result<Snapshot> {
        self.states.seal(epoch)
    }

    /// Goes on from a snapshot. Without `forgotten_until_us` it was made when windows were not corrected: those that had
    /// been given out are forgotten.
    pub fn restore(
        &mut self,
        segments: Vec<Segment>,
        closed_until_us: i64,
        forgotten_until_us: Option<i64>,
    ) -> Result<()> {
        self.states.restore(segments)?;
        self.closed_until_us = closed_until_us;
        self.forgotten_until_us = forgotten_until_us.unwrap_or(closed_until_us);
        // A segment is saved once; windows that were forgotten since are still in it.
        let ends = self.ends_us()?;
        self.forget(&ends);
        Ok(())
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        let arrived: usize = self.arrived.iter().map(RecordBatch::get_array_memory_size).sum();
        arrived + self.states.size_bytes()
    }

    fn ends_us(&self) -> Result<Vec<Vec<Option<i64>>>> {
        self.states.batches().map(|states| self.window.ends_us(states)).collect()
    }

    /// Forgets the windows that no row corrects any more.
    fn forget(&mut self, ends: &[Vec<Option<i64>>]) {
        let bound_us = self.closed_until_us.saturating_sub(self.within_us).max(self.forgotten_until_us);
        self.forgotten_until_us = bound_us;
        let end_of = |(batch, row): (usize, usize)| ends.get(batch).and_then(|ends: &Vec<_>| *ends.get(row)?);
        self.states.retain(|place| end_of(place).is_none_or(|end_us| end_us > bound_us));
    }
}
