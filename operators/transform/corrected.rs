//! Windows that late rows correct: each is given out once the watermark has passed its end, and again whenever a row of
//! it comes later, as long as its state is kept.
//!
//! A sink with a key keeps the newest row of a window; where rows are only added, the number of the epoch in
//! [`SEQUENCE_COLUMN`](super::keyed::SEQUENCE_COLUMN) tells which is.

use std::fs::File;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::physical_expr::expressions::Column;

use super::closing::{Closing, Given};
use super::phases::{find, seal, start, state_schema};
use super::query::{Query, Running};
use super::sealed::Sealed;
use super::states::{Ends, StateLimits, States, Wanted};
use super::versions::newest;
use super::window::{WATERMARK_END, WATERMARK_START, Width, Window};
use crate::error::{Error, Result};

/// A query with one aggregate over event-time windows whose rows may change.
pub struct CorrectedAggregate {
    query: Query,
    keys: usize,
    /// How long behind its end a window can be corrected.
    within_us: i64,
    /// The states of windows, until they cannot be corrected any more.
    states: States,
    /// Windows that end up to here have been given out.
    closed_until_us: i64,
}

impl CorrectedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions; states are kept for
    /// `within_us` microseconds of event time behind their windows' ends.
    pub fn new(query: Query, group_index: usize, width: Width, within_us: i64, limits: StateLimits) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let keys = keys.len();
        let ends = Ends::Window(Window { start: Arc::new(Column::new(name, group_index)), width });
        let states = States::new(state_schema(&query)?, (0..keys).collect(), ends, limits)?;
        Ok(Self { query, keys, within_us, states, closed_until_us: WATERMARK_START })
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
        self.states.closed_until_us()
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, states: &RecordBatch) -> Result<()> {
        self.states.add(states)
    }

    /// Gives the windows that the watermark closes, and those closed before that the epoch's rows have changed; all must
    /// be taken.
    pub fn close(&mut self, epoch: u64, watermark_us: i64) -> Result<Closing<'_>> {
        let after_us = self.closed_until_us;
        let mut corrected = self.states.fresh_places()?;
        corrected.retain(|place| place.end_us <= after_us);
        let until_us = watermark_us.max(after_us);
        if watermark_us != WATERMARK_END {
            self.closed_until_us = until_us;
        }
        // Input that ends leaves no trace beyond its last window, so that later input is not late as a whole; and what is
        // in no window is given at the end of input, as a whole.
        let due = Wanted { after_us, until_us, ..Wanted::places(corrected) };
        let states = Given::Pieces(self.states.find(due, Some(&mut self.closed_until_us))?);
        Ok(Closing::new(&self.query, states, Some(epoch)))
    }

    /// Closes the epoch, forgets the windows that no row corrects any more, and tells what has to be durable.
    pub async fn seal(&mut self, epoch: u64) -> Result<Sealed> {
        self.states.forget(self.closed_until_us.saturating_sub(self.within_us));
        seal(&self.query, &mut self.states, epoch).await
    }

    /// Takes the file of what [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.states.adopt(epoch, file)
    }

    /// Goes on from the files of these epochs, oldest first. Without `forgotten_until_us` they were made when windows were
    /// not corrected: those that had been given out are forgotten.
    pub fn restore(
        &mut self,
        files: Vec<(u64, File)>,
        closed_until_us: i64,
        forgotten_until_us: Option<i64>,
    ) -> Result<()> {
        self.closed_until_us = closed_until_us;
        let corrects = forgotten_until_us.is_some();
        let update = |rows| if corrects { newest(rows, self.keys) } else { Ok(rows) };
        self.states.restore(files, forgotten_until_us.unwrap_or(closed_until_us), update)
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.states.size_bytes()
    }

    /// Gives the part of it that the barrier of the open epoch may free, in bytes.
    pub fn open_bytes(&self) -> usize {
        self.states.open_bytes()
    }
}
