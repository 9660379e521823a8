//! Files of an earlier format, in which a newer state of a key replaces those before.

use std::collections::HashSet;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::row::{OwnedRow, RowConverter, SortField};

use crate::error::Result;

/// Leaves of states, of which the first `keys` columns are the keys and older ones come first, the newest of each key.
pub fn newest(states: Vec<RecordBatch>, keys: usize) -> Result<Vec<RecordBatch>> {
    let Some(first) = states.first() else { return Ok(states) };
    let key: Vec<usize> = (0..keys).collect();
    let fields = first.schema().project(&key)?;
    let fields = fields.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let mut seen: HashSet<OwnedRow> = HashSet::new();
    let mut newest = Vec::with_capacity(states.len());
    for states in states.into_iter().rev() {
        let keys = converter.convert_columns(states.project(&key)?.columns())?;
        let mut is_newest: Vec<bool> =
            (0..keys.num_rows()).rev().map(|row| seen.insert(keys.row(row).owned())).collect();
        is_newest.reverse();
        newest.push(filter_record_batch(&states, &BooleanArray::from(is_newest))?);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn the_newest_state_of_each_key_is_left() {
        let column = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let states =
            |keys, values| RecordBatch::try_from_iter([("key", column(keys)), ("value", column(values))]).unwrap();
        let left = newest(vec![states(&[1, 2, 1], &[10, 20, 11]), states(&[2, 3], &[21, 30])], 1).unwrap();
        let values = |batch: &RecordBatch| batch.column(1).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(left.iter().map(values).collect::<Vec<_>>(), [vec![21, 30], vec![11]]);
    }
}
