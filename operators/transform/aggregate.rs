//! Windowed aggregates across epochs: accumulator states are kept until the
//! watermark passes the end of their window, then each window is given once.

use std::fs::File;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::physical_expr::expressions::Column;

use super::closing::{Closing, Given};
use super::phases::{find, put_back, seal, start, state_schema};
use super::query::{Query, Running};
use super::sealed::Sealed;
use super::session::Sessions;
use super::states::{Ends, StateLimits, States};
use super::window::{Extent, WATERMARK_START, Width, Window};
use crate::error::{Error, Result};

/// A query with one aggregate over event-time windows.
pub struct WindowedAggregate {
    query: Query,
    states: States,
    windows: Windows,
}

/// How states belong to windows.
enum Windows {
    /// Each state has the start of its window.
    Fixed(Width),
    /// A session is what its states make it.
    Sessions(Sessions),
}

impl WindowedAggregate {
    /// Takes a query whose aggregate has its window at `group_index` of its group expressions.
    pub fn new(query: Query, group_index: usize, extent: Extent, limits: StateLimits) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr();
        let Some((_, name)) = keys.get(group_index) else {
            return Err(Error::internal("the window is not among the aggregate's keys"));
        };
        let (keys, ends, windows) = match extent {
            Extent::Width(width) => {
                let window = Window { start: Arc::new(Column::new(name, group_index)), width };
                ((0..keys.len()).collect(), Ends::Window(window), Windows::Fixed(width))
            }
            Extent::Session { gap_us, last_index } => {
                let sessions = Sessions::new(group_index, last_index, keys.len(), gap_us);
                (sessions.keys().to_vec(), Ends::Session(sessions.clone()), Windows::Sessions(sessions))
            }
        };
        let states = States::new(state_schema(&query)?, keys, ends, limits)?;
        Ok(Self { query, states, windows })
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
        self.states.closed_until_us()
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, rows: &RecordBatch) -> Result<()> {
        self.states.add(rows)
    }

    /// Gives the windows that end at or before the watermark, each once; all must be taken.
    pub async fn close(&mut self, watermark_us: i64) -> Result<Closing<'_>> {
        if watermark_us == WATERMARK_START {
            return Ok(Closing::new(&self.query, Given::None, None));
        }
        let states = match &self.windows {
            Windows::Fixed(_) => Given::Pieces(self.states.close(watermark_us)?),
            Windows::Sessions(sessions) => {
                unite_fresh(&self.query, sessions, &mut self.states).await?;
                Given::Sessions(self.states.close_sessions(watermark_us)?)
            }
        };
        Ok(Closing::new(&self.query, states, None))
    }

    /// Closes the epoch and tells what has to be durable.
    pub async fn seal(&mut self, epoch: u64) -> Result<Sealed> {
        if let Windows::Sessions(sessions) = &self.windows {
            // What has been moved since is of the same keys as what has come.
            unite_fresh(&self.query, sessions, &mut self.states).await?;
            let parts = sessions.unite(self.states.take_mergeable()?)?;
            put_back(&self.query, &mut self.states, parts).await?;
            return self.states.seal(epoch);
        }
        seal(&self.query, &mut self.states, epoch).await
    }

    /// Takes the file of what [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.states.adopt(epoch, file)
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>, until_us: i64) -> Result<()> {
        // In files of an earlier format, a state may end before its session does.
        self.states.restore(files, until_us, |rows| match &self.windows {
            Windows::Fixed(_) => Ok(rows),
            Windows::Sessions(sessions) => sessions.unite(rows),
        })
    }

    /// Gives the time before which no window begins that is still open, or that rows to come will open, when the
    /// watermark stands at `watermark_us`.
    pub fn earliest_open_us(&self, watermark_us: i64) -> Result<i64> {
        match &self.windows {
            Windows::Fixed(width) => Ok(width.earliest_open_start_us(watermark_us)),
            Windows::Sessions(_) => Ok(self.states.earliest_us()?.min(watermark_us)),
        }
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

/// Makes one state of those of a session that the epoch has added: its rows come in with their own times.
async fn unite_fresh(query: &Query, sessions: &Sessions, states: &mut States) -> Result<()> {
    let parts = sessions.unite(states.take_fresh()?)?;
    put_back(query, states, parts).await
}
