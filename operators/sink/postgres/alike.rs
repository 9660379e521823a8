//! Rows that are alike in some columns: what the server says of one of them holds for all.

use std::collections::HashMap;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::row::{RowConverter, SortField};

use crate::error::Result;

/// Values that are looked for at most: more of them would take more memory than asking takes time.
const VALUES_MAX: usize = 1 << 16;

/// Which row stands for each one of some batches, numbered through from 0 on: the first that is alike.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alike(Vec<usize>);

impl Alike {
    /// Compares rows; where they cannot be, or more than one in four is new, each stands for itself.
    pub(super) fn of(batches: &[RecordBatch]) -> Result<Self> {
        let count = batches.iter().map(RecordBatch::num_rows).sum();
        let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok(Self(Vec::new())) };
        let fields: Vec<_> = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        if !RowConverter::supports_fields(&fields) {
            return Ok(Self((0..count).collect()));
        }
        let converter = RowConverter::new(fields)?;
        let mut first_of = Vec::with_capacity(count);
        let mut known: HashMap<Box<[u8]>, usize> = HashMap::new();
        for batch in batches {
            let values = converter.convert_columns(batch.columns())?;
            for value in &values {
                let row = first_of.len();
                let first = match known.get(value.as_ref()) {
                    Some(first) => *first,
                    None => *known.entry(value.as_ref().into()).or_insert(row),
                };
                first_of.push(first);
            }
            if known.len() > (first_of.len() / 4).min(VALUES_MAX) {
                return Ok(Self((0..count).collect()));
            }
        }
        Ok(Self(first_of))
    }

    /// Tells which rows of the batch that begins with the row `first` stand for themselves.
    pub(super) fn stand_for_themselves(&self, first: usize, count: usize) -> BooleanArray {
        self.of_batch(first, count).map(|(row, first_of)| Some(row == first_of)).collect()
    }

    /// Gives, for each row of the batch that begins with the row `first`, what was `found` of the row that stands for it.
    pub(super) fn found(&self, first: usize, count: usize, found: impl Fn(usize) -> bool) -> BooleanArray {
        self.of_batch(first, count).map(|(_, first_of)| Some(found(first_of))).collect()
    }

    fn of_batch(&self, first: usize, count: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.0.iter().copied().enumerate().skip(first).take(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn batch(numbers: Vec<Option<i64>>, texts: Vec<Option<&str>>) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers));
        let texts: ArrayRef = Arc::new(StringArray::from(texts));
        RecordBatch::try_from_iter_with_nullable([("number", numbers, true), ("text", texts, true)]).unwrap()
    }

    #[test]
    fn the_first_of_rows_that_are_alike_stands_for_them_in_all_batches() {
        let one = batch(vec![Some(1), Some(1), None, None], vec![Some("a"), Some("b"), Some("a"), Some("a")]);
        let many = batch(vec![Some(1); 12], vec![Some("b"); 12]);
        let alike = Alike::of(&[many.clone(), one, many]).unwrap();
        let themselves = |first, count| {
            let found = alike.stand_for_themselves(first, count);
            found.values().set_indices().collect::<Vec<_>>()
        };
        assert_eq!((themselves(0, 12), themselves(12, 4), themselves(16, 12)), (vec![0], vec![0, 2], vec![]));
        let found = alike.found(12, 4, |row| row == 0);
        assert_eq!(found.values().set_indices().collect::<Vec<_>>(), [1]);
        assert_eq!(alike.found(16, 12, |row| row == 0).true_count(), 12);
    }

    #[test]
    fn where_most_rows_are_new_each_stands_for_itself() {
        let rows = batch((0..100).map(|n| Some(n / 2)).collect(), vec![None; 100]);
        assert_eq!(Alike::of(&[rows.clone(), rows]).unwrap(), Alike((0..200).collect()));
        assert_eq!(Alike::of(&[]).unwrap(), Alike(Vec::new()));
    }
}
