//! Rows as people are shown them: the last few of a table, each short, without what is masked.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use serde_json::{Map, Number, Value};

use super::rows::as_json;
use crate::error::Result;

/// Rows that are kept: a screen or two, and enough points for a map.
pub const ROWS_MAX: usize = 100;

/// Characters of a text that are kept, and values of a list or an object: a cell is not read further than that.
const VALUE_MAX: usize = 200;

/// Integers from here on are shown as text: readers of JSON that know no others than 64-bit floats would round them.
const EXACT_MAX: u64 = 1 << 53;

/// The last rows of a table.
///
/// Invariant: a masked column is taken out before a row is looked at, so that its values are nowhere in here.
#[derive(Debug, Default)]
pub struct ShownRows {
    rows: VecDeque<Map<String, Value>>,
}

impl ShownRows {
    /// Takes the last rows of a batch, without the columns of which `masked` says so.
    pub fn take(&mut self, batch: &RecordBatch, masked: &[bool]) -> Result<()> {
        let open = (0..batch.num_columns()).filter(|column| masked.get(*column) == Some(&false));
        let rows = batch.num_rows().min(ROWS_MAX);
        let last = batch.slice(batch.num_rows() - rows, rows).project(&open.collect::<Vec<_>>())?;
        while self.rows.len() + rows > ROWS_MAX {
            self.rows.pop_front();
        }
        for document in as_json(&last)? {
            let row: Map<String, Value> = serde_json::from_slice(&document).unwrap_or_default();
            self.rows.push_back(row.into_iter().map(|(name, value)| (name, short(value))).collect());
        }
        Ok(())
    }

    /// Tells whether there are as many rows as are kept.
    pub fn is_full(&self) -> bool {
        self.rows.len() >= ROWS_MAX
    }

    /// Gives the rows, the newest first.
    pub fn rows(&self) -> Vec<Map<String, Value>> {
        self.rows.iter().rev().cloned().collect()
    }
}

/// Cuts what is too long to be shown.
fn short(value: Value) -> Value {
    match value {
        Value::String(text) if text.chars().nth(VALUE_MAX).is_some() => {
            Value::String(text.chars().take(VALUE_MAX).chain(['…']).collect())
        }
        Value::Number(number) if is_rounded(&number) => Value::String(number.to_string()),
        Value::Array(values) => Value::Array(values.into_iter().take(VALUE_MAX).map(short).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().take(VALUE_MAX).map(|(name, value)| (name, short(value))).collect())
        }
        value => value,
    }
}

fn is_rounded(number: &Number) -> bool {
    let integer = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
    integer.is_some_and(|integer| integer > EXACT_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use serde_json::json;

    use super::*;

    fn batch(first: i64, rows: i64) -> RecordBatch {
        let numbers = Int64Array::from_iter_values(first..first + rows);
        let mails = StringArray::from_iter_values((first..first + rows).map(|n| format!("{n}@example.org")));
        RecordBatch::try_from_iter([("n", Arc::new(numbers) as _), ("mail", Arc::new(mails) as _)]).unwrap()
    }

    #[test]
    fn the_last_rows_are_kept_without_what_is_masked() {
        let mut shown = ShownRows::default();
        shown.take(&batch(0, 30), &[false, true]).unwrap();
        shown.take(&batch(30, 500), &[false, true]).unwrap();
        shown.take(&batch(530, 1), &[false, true]).unwrap();
        let rows = shown.rows();
        assert!(shown.is_full() && rows.len() == ROWS_MAX);
        assert_eq!((&rows[0]["n"], &rows[ROWS_MAX - 1]["n"]), (&json!(530), &json!(431)));
        assert!(!format!("{shown:?}").contains("example.org"));
    }

    #[test]
    fn a_column_of_which_nothing_is_known_is_masked() {
        let mut shown = ShownRows::default();
        shown.take(&batch(0, 1), &[false]).unwrap();
        assert_eq!(Value::Object(shown.rows()[0].clone()), json!({ "n": 0 }));
    }

    #[test]
    fn long_values_are_cut_and_large_numbers_stay_exact() {
        let text = StringArray::from(vec!["ä".repeat(1000)]);
        let number = Int64Array::from(vec![9_007_199_254_740_993]);
        let rows = RecordBatch::try_from_iter([("t", Arc::new(text) as _), ("n", Arc::new(number) as _)]).unwrap();
        let mut shown = ShownRows::default();
        shown.take(&rows, &[false, false]).unwrap();
        let row = shown.rows().remove(0);
        assert_eq!(row["t"].as_str().map(|text| text.chars().count()), Some(VALUE_MAX + 1));
        assert_eq!(row["n"], json!("9007199254740993"));
    }
}
