//! Aggregates without a window: each key has one row, which changes as long as rows come.
//!
//! Each epoch gives the new row of every key that it has touched. A sink with a key keeps the newest; where rows are
//! only added, the number of the epoch in [`SEQUENCE_COLUMN`] tells which is.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use super::closing::{Closing, Given};
use super::phases::{find, seal, start, state_schema};
use super::query::{Query, Running};
use super::sealed::Sealed;
use super::states::{Ends, StateLimits, States, Wanted};
use super::versions::newest;
use super::window::WATERMARK_START;
use crate::error::{Error, Result};

/// The column with the number of the epoch that a row is as of.
pub const SEQUENCE_COLUMN: &str = "_sequence";

/// A query with one aggregate whose keys hold no window.
pub struct KeyedAggregate {
    query: Query,
    keys: usize,
    states: States,
}

impl KeyedAggregate {
    /// Takes a query with one aggregate that has keys.
    pub fn new(query: Query, limits: StateLimits) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr().len();
        let states = States::new(state_schema(&query)?, (0..keys).collect(), Ends::Never, limits)?;
        Ok(Self { query, keys, states })
    }

    /// Gives the query as a whole.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Has the plan made again before the next epoch.
    pub fn refresh(&mut self) {
        self.query.refresh();
    }

    /// Starts an epoch; what comes out goes to [`absorb`](Self::absorb).
    pub async fn start(&mut self) -> Result<Running> {
        start(&mut self.query).await
    }

    /// Keeps accumulator states.
    pub fn absorb(&mut self, states: &RecordBatch) -> Result<()> {
        self.states.add(states)
    }

    /// Gives the new row of each key that the epoch has touched; all must be taken.
    pub fn close(&mut self, epoch: u64) -> Result<Closing<'_>> {
        let touched = Wanted::places(self.states.fresh_places()?);
        let states = Given::Pieces(self.states.find(touched, None)?);
        Ok(Closing::new(&self.query, states, Some(epoch)))
    }

    /// Closes the epoch and tells what has to be durable.
    pub async fn seal(&mut self, epoch: u64) -> Result<Sealed> {
        seal(&self.query, &mut self.states, epoch).await
    }

    /// Takes the file of what [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.states.adopt(epoch, file)
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>) -> Result<()> {
        self.states.restore(files, WATERMARK_START, |rows| newest(rows, self.keys))
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

/// Gives the columns of a table whose rows change: those of its query, and the sequence.
pub fn with_sequence(schema: &Schema) -> SchemaRef {
    let sequence = Arc::new(Field::new(SEQUENCE_COLUMN, DataType::Int64, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([sequence]).collect::<Vec<_>>()))
}

/// Adds the number of the epoch to a batch.
pub(super) fn with_number(rows: &RecordBatch, epoch: u64) -> Result<RecordBatch> {
    let epoch = i64::try_from(epoch).map_err(|e| Error::internal("there are too many epochs").because(e))?;
    let sequence: ArrayRef = Arc::new(Int64Array::from_value(epoch, rows.num_rows()));
    let columns = rows.columns().iter().cloned().chain([sequence]).collect();
    Ok(RecordBatch::try_new(with_sequence(&rows.schema()), columns)?)
}

/// Adds the number of the epoch to rows.
pub(super) fn numbered(rows: SendableRecordBatchStream, epoch: u64) -> Result<SendableRecordBatchStream> {
    let schema = with_sequence(&rows.schema());
    let numbered =
        rows.map(move |batch| with_number(&batch?, epoch).map_err(|error| DataFusionError::External(Box::new(error))));
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, numbered)))
}
