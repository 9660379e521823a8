//! Windowed aggregates across epochs: accumulator states are kept until the
//! watermark passes the end of their window, then each window is given once.

use std::fs::File;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::physical_expr::expressions::Column;

use super::closing::{Closing, Given};
use super::phases::{find, reduce, seal, start, state_schema};
use super::query::{Query, Running};
use super::sealed::Sealed;
use super::segments::{Segment, Segments};
use super::session::Sessions;
use super::states::{Ends, StateLimits, States};
use super::window::{Extent, WATERMARK_END, WATERMARK_START, Window};
use crate::error::{Error, Result};

/// A query with one aggregate over event-time windows.
pub struct WindowedAggregate {
    query: Query,
    windows: Windows,
}

/// How states belong to windows.
enum Windows {
    /// Each state has the start of its window.
    Fixed { states: Box<States>, width: Window },
    /// A session is what its states make it.
    Sessions { sessions: Sessions, states: Segments, closed_until_us: i64 },
}

impl WindowedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions.
    pub fn new(query: Query, group_index: usize, extent: Extent, limits: StateLimits) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let windows = match extent {
            Extent::Width(width) => {
                let width = Window { start: Arc::new(Column::new(name, group_index)), width };
                let ends = Ends::Window(width.clone());
                let states = States::new(state_schema(&query)?, (0..keys.len()).collect(), ends, limits)?;
                Windows::Fixed { states: Box::new(states), width }
            }
            Extent::Session { gap_us, last_index } => Windows::Sessions {
                sessions: Sessions::new(group_index, last_index, keys.len(), gap_us),
                states: Segments::default(),
                closed_until_us: WATERMARK_START,
            },
        };
        Ok(Self { query, windows })
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
        match &self.windows {
            Windows::Fixed { states, .. } => states.closed_until_us(),
            Windows::Sessions { closed_until_us, .. } => *closed_until_us,
        }
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, rows: RecordBatch) -> Result<()> {
        match &mut self.windows {
            Windows::Fixed { states, .. } => states.add(&rows)?,
            Windows::Sessions { states, .. } => states.add(rows),
        }
        Ok(())
    }

    /// Gives the windows that end at or before the watermark, each once; all must be taken.
    pub fn close(&mut self, watermark_us: i64) -> Result<Closing<'_>> {
        let states = match &mut self.windows {
            _ if watermark_us == WATERMARK_START => Given::Once(Vec::new()),
            Windows::Fixed { states, .. } => Given::Pieces(states.close(watermark_us)?),
            Windows::Sessions { sessions, states, closed_until_us } => {
                let ended = watermark_us == WATERMARK_END;
                let taken = if ended { states.take_all() } else { take_closed(sessions, states, watermark_us)? };
                // Input that ends leaves no trace beyond its last window, so that later input is not late as a whole.
                let last = if ended { sessions.last_end_us(&taken)? } else { Some(watermark_us) };
                *closed_until_us = last.map_or(*closed_until_us, |last| last.max(*closed_until_us));
                Given::Once(sessions.unite(taken)?)
            }
        };
        Ok(Closing::new(&self.query, states, None))
    }

    /// Closes the epoch and tells what has to be durable.
    pub async fn seal(&mut self, epoch: u64) -> Result<Sealed> {
        match &mut self.windows {
            Windows::Fixed { states, .. } => seal(&self.query, states, epoch).await,
            Windows::Sessions { sessions, states, .. } => {
                // The rows of a session come in with their own times: together they are one state.
                let parts = if states.want_merge() { states.take_all() } else { states.take_open() };
                if !parts.is_empty() {
                    reduce(&self.query, sessions.unite(parts)?)
                        .await?
                        .into_iter()
                        .for_each(|merged| states.add(merged));
                }
                states.seal(epoch).encode()
            }
        }
    }

    /// Takes the file of what [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        match &mut self.windows {
            Windows::Fixed { states, .. } => states.adopt(epoch, file),
            Windows::Sessions { .. } => Ok(()),
        }
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>, until_us: i64) -> Result<()> {
        match &mut self.windows {
            Windows::Fixed { states, .. } => states.restore(files, until_us, Ok),
            Windows::Sessions { sessions, states, closed_until_us } => {
                *closed_until_us = until_us;
                states.restore(files.into_iter().map(Segment::read).collect::<Result<_>>()?);
                // A segment is saved once; windows that were given out since are still in it.
                take_closed(sessions, states, until_us).map(drop)
            }
        }
    }

    /// Gives the time before which no window begins that is still open, or that rows to come will open, when the
    /// watermark stands at `watermark_us`.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match &self.windows {
            Windows::Fixed { width, .. } => Ok(width.width.earliest_open_start_us(watermark_us)),
            Windows::Sessions { sessions, states, .. } => Ok(sessions.earliest_us(states.rows())?.min(watermark_us)),
        }
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        match &self.windows {
            Windows::Fixed { states, .. } => states.size_bytes(),
            Windows::Sessions { states, .. } => states.size_bytes(),
        }
    }

    /// Gives the part of it that the barrier of the open epoch may free, in bytes.
    pub fn open_bytes(&self) -> usize {
        match &self.windows {
            Windows::Fixed { states, .. } => states.open_bytes(),
            Windows::Sessions { .. } => 0,
        }
    }
}

/// Takes out the states of sessions that end at or before the bound.
fn take_closed(sessions: &Sessions, states: &mut Segments, bound_us: i64) -> Result<Vec<RecordBatch>> {
    let all: Vec<_> = states.rows().collect();
    let mut marks = sessions.closed(&all, bound_us)?.into_iter();
    let ended = || Error::internal("there are fewer marks than states");
    states.take(|_| marks.next().ok_or_else(ended))
}
