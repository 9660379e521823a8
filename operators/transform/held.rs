//! The memory that batches hold, of which several may be slices of the same buffers: each buffer counts once.

use std::collections::HashSet;

use arrow::array::{Array, ArrayData, RecordBatch};

/// Counts the memory of batches.
#[derive(Debug, Default)]
pub struct Held {
    /// Where the buffers begin that have been counted.
    buffers: HashSet<usize>,
    bytes: usize,
}

impl Held {
    /// Counts what some batches hold.
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Self {
        let mut held = Self::default();
        batches.into_iter().for_each(|batch| held.add(batch));
        held
    }

    /// Counts what a batch holds beside what has been counted.
    pub fn add(&mut self, batch: &RecordBatch) {
        batch.columns().iter().for_each(|column| self.add_data(&column.to_data()));
    }

    /// Gives what all batches hold together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn add_data(&mut self, data: &ArrayData) {
        for buffer in data.buffers().iter().chain(data.nulls().map(|nulls| nulls.inner().inner())) {
            if self.buffers.insert(buffer.data_ptr().as_ptr() as usize) {
                self.bytes += buffer.capacity();
            }
        }
        data.child_data().iter().for_each(|child| self.add_data(child));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn slices_of_a_buffer_count_once() {
        let column: ArrayRef = Arc::new(Int64Array::from_iter((0..1000).map(|n| (n % 7 > 0).then_some(n))));
        let whole = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let slices: Vec<_> = (0..10).map(|part| whole.slice(part * 100, 100)).collect();
        let bytes = Held::of(&slices).bytes();
        assert!((8_125..9_000).contains(&bytes), "{bytes} bytes for 8000 of values and 125 of marks");
        assert_eq!(Held::of([&whole]).bytes(), bytes);
    }
}
