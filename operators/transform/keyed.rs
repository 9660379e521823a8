//! Aggregates without a window: each key has one row, which changes as long as rows come.
//!
//! Each epoch gives the new row of every key that it has touched. A sink with a key keeps the newest; where rows are
//! only added, the number of the epoch in [`SEQUENCE_COLUMN`] tells which is.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use super::held::Held;
use super::phases::{find, finish, start, state_schema};
use super::query::{Query, Running};
use super::segments::{Segment, Snapshot};
use super::versions::Versions;
use crate::error::{Error, Result};

/// The column with the number of the epoch that a row is as of.
pub const SEQUENCE_COLUMN: &str = "_sequence";

/// A query with one aggregate whose keys hold no window.
pub struct KeyedAggregate {
    query: Query,
    states: Versions,
    arrived: Vec<RecordBatch>,
}

impl KeyedAggregate {
    /// Takes a query with one aggregate that has keys.
    pub fn new(query: Query) -> Result<Self> {
        let keys = find(query.physical())?.group_expr().expr().len();
        let states = Versions::new(&state_schema(&query)?, keys)?;
        Ok(Self { query, states, arrived: Vec::new() })
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
    pub fn absorb(&mut self, states: RecordBatch) {
        if states.num_rows() > 0 {
            self.arrived.push(states);
        }
    }

    /// Gives the new row of each key that the epoch has touched.
    pub async fn close(&mut self, epoch: u64) -> Result<Option<SendableRecordBatchStream>> {
        let arrived = std::mem::take(&mut self.arrived);
        if arrived.is_empty() {
            return Ok(None);
        }
        let states = self.states.merge(&self.query, arrived).await?;
        numbered(finish(&self.query, states)?, epoch).map(Some)
    }

    /// Closes the epoch and tells what has to be durable.
    pub fn snapshot(&mut self, epoch: u64) -> Result<Snapshot> {
        self.states.seal(epoch)
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, segments: Vec<Segment>) -> Result<()> {
        self.states.restore(segments)
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        Held::of(&self.arrived).bytes() + self.states.size_bytes()
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
