//! Rows of an aggregate that come out at the end of an epoch, a piece at a time.

use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::keyed::numbered;
use super::phases::finish;
use super::query::{Query, failed};
use super::states::{Pieces, SessionPieces};
use crate::error::Result;

/// Rows that come out.
pub struct Closing<'a> {
    query: &'a Query,
    states: Given<'a>,
    /// The number of the epoch, where rows tell which is newer.
    epoch: Option<u64>,
    rows: Option<SendableRecordBatchStream>,
}

/// States that are given out.
pub enum Given<'a> {
    /// None.
    None,
    /// States by their ends and keys.
    Pieces(Pieces<'a>),
    /// States of sessions.
    Sessions(SessionPieces<'a>),
}

impl<'a> Closing<'a> {
    /// Gives the rows of states, with the number of the epoch if there is one.
    pub fn new(query: &'a Query, states: Given<'a>, epoch: Option<u64>) -> Self {
        Self { query, states, epoch, rows: None }
    }

    /// Gives the next rows; nothing when all have been given.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(rows) = &mut self.rows {
                if let Some(batch) = rows.next().await {
                    return batch.map(Some).map_err(failed);
                }
                self.rows = None;
            }
            let states = match &mut self.states {
                Given::None => None,
                Given::Pieces(pieces) => pieces.next_piece()?,
                Given::Sessions(pieces) => pieces.next_piece()?,
            };
            let Some(states) = states else { return Ok(None) };
            let rows = finish(self.query, states)?;
            self.rows = Some(match self.epoch {
                Some(epoch) => numbered(rows, epoch)?,
                None => rows,
            });
        }
    }
}
