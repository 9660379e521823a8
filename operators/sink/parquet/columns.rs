//! One row group in the making: its columns, encoded side by side.
//!
//! Columns have nothing to do with one another until the row group is written out, so those of a wide batch are encoded
//! and compressed by as many tasks as there are cores to run them.

use std::panic::resume_unwind;

use arrow::array::RecordBatch;
use arrow::datatypes::Fields;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowLeafColumn, compute_leaves};
use parquet::errors::{ParquetError, Result};
use tokio::runtime::Handle;

use crate::cores;

/// The fewest values of a batch for which tasks pay: they cost some microseconds, and so many values hundreds.
const VALUES_MIN: usize = 32 << 10;

/// A row group that takes rows.
pub(super) struct RowGroup {
    /// The encoders of the columns; none while tasks have them.
    columns: Vec<ArrowColumnWriter>,
    rows: usize,
}

impl RowGroup {
    pub(super) fn new(columns: Vec<ArrowColumnWriter>) -> Self {
        Self { columns, rows: 0 }
    }

    /// Gives how many more rows there is room for.
    pub(super) fn room(&self, rows_max: usize, bytes_max: usize) -> usize {
        let by_rows = rows_max.saturating_sub(self.rows);
        let bytes: usize = self.columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum();
        match bytes.checked_div(self.rows) {
            None | Some(0) => by_rows,
            Some(row_bytes) => by_rows.min(bytes_max.saturating_sub(bytes) / row_bytes),
        }
    }

    /// Gives the memory that the encoders hold, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::memory_size).sum()
    }

    /// Encodes rows with these columns.
    pub(super) async fn write(&mut self, fields: &Fields, rows: &RecordBatch) -> Result<()> {
        let mut leaves = Vec::with_capacity(self.columns.len());
        for (field, column) in fields.iter().zip(rows.columns()) {
            leaves.extend(compute_leaves(field, column)?);
        }
        if leaves.len() != self.columns.len() {
            return Err(ParquetError::General("columns are missing: a write before was given up".into()));
        }
        self.rows += rows.num_rows();
        let work: Vec<_> = std::mem::take(&mut self.columns).into_iter().zip(leaves).collect();
        let values = work.len() * rows.num_rows();
        self.columns = each(work, values, encode).await?;
        Ok(())
    }

    /// Ends the columns.
    pub(super) async fn close(self) -> Result<Vec<ArrowColumnChunk>> {
        let values = self.columns.len() * self.rows;
        each(self.columns, values, ArrowColumnWriter::close).await
    }
}

fn encode((mut column, leaf): (ArrowColumnWriter, ArrowLeafColumn)) -> Result<ArrowColumnWriter> {
    column.write(&leaf)?;
    Ok(column)
}

/// Does the same with each column, by several tasks if there is enough to do, and gives the results in their order.
async fn each<I, O>(items: Vec<I>, values: usize, work: fn(I) -> Result<O>) -> Result<Vec<O>>
where
    I: Send + 'static,
    O: Send + 'static,
{
    let tasks = cores::of_a_stage().min(items.len());
    let Some(runtime) = Handle::try_current().ok().filter(|_| tasks > 1 && values >= VALUES_MIN) else {
        return items.into_iter().map(work).collect();
    };
    // Columns that stand side by side are often alike: dealt out, each task gets some of all kinds.
    let mut hands: Vec<Vec<(usize, I)>> = (0..tasks).map(|_| Vec::new()).collect();
    for (place, item) in items.into_iter().enumerate() {
        if let Some(hand) = hands.get_mut(place % tasks) {
            hand.push((place, item));
        }
    }
    let do_all = move |hand: Vec<(usize, I)>| -> Result<Vec<(usize, O)>> {
        hand.into_iter().map(|(place, item)| Ok((place, work(item)?))).collect()
    };
    let own = hands.pop().unwrap_or_default();
    let others = hands.into_iter().map(|hand| runtime.spawn(async move { do_all(hand) })).collect::<Vec<_>>();
    let mut done = do_all(own)?;
    for other in others {
        match other.await {
            Ok(part) => done.extend(part?),
            Err(ended) if ended.is_panic() => resume_unwind(ended.into_panic()),
            Err(ended) => return Err(ParquetError::External(Box::new(ended))),
        }
    }
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
