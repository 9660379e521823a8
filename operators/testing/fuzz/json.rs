//! JSON documents: what is accepted reads as serde_json reads it.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use bytes::Bytes;
use serde_json::Value;

use super::reading::{columns, decode, settings, unknown};
use crate::batch::{Chunk, Payload, Record};
use crate::decode::{FormatSettings, decoder};

/// A document in a record of its own; a byte before it chooses what becomes of unknown fields.
pub(super) fn json(data: &[u8]) {
    let Some(([policy], content)) = data.split_first_chunk::<1>() else { return };
    let settings = settings(FormatSettings::Json, columns(), unknown(*policy));
    let record = Record { offset: "0".into(), key: None, data: Bytes::copy_from_slice(content) };
    let chunk =
        Chunk { partition: "fuzzed".into(), payload: Payload::Records(vec![record]), read_at_us: 0, lag_ms: None };
    let decoder = decoder(settings.clone()).expect("the settings are good");
    let (mut batches, mut rejects) = (Vec::new(), Vec::new());
    decode(&*decoder, &settings, &chunk, &mut batches, &mut rejects);
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert!(rows + rejects.len() > 0, "the record has disappeared");

    let begins = content.trim_ascii_start().first();
    match (serde_json::from_slice::<Value>(content), batches.first()) {
        (Ok(value @ Value::Object(_)), Some(batch)) => {
            assert_eq!((rows, rejects.len()), (1, 0), "one document is several");
            same(batch, &value);
        }
        (Ok(Value::Object(_)), None) => {
            let [reject] = rejects.as_slice() else { panic!("one document is {} rejects", rejects.len()) };
            assert!(!reject.reason.contains("is not JSON"), "{}", reject.reason);
        }
        // It is accepted here, so it must be the documents that serde_json finds one behind the other.
        (Err(refused), Some(_)) if rejects.is_empty() && begins == Some(&b'{') => {
            let documents = serde_json::Deserializer::from_slice(content).into_iter::<Value>();
            let found = documents.take_while(Result::is_ok).count();
            let lenient = ["number out of range", "recursion limit", "trailing characters"];
            let refused = refused.to_string();
            assert!(found == rows || lenient.iter().any(|words| refused.contains(words)), "{refused}");
        }
        _ => {}
    }
}

/// Compares a row with the document as serde_json reads it, where a field has its column's own type.
fn same(row: &RecordBatch, document: &Value) {
    let column = |name: &str| row.column_by_name(name).unwrap_or_else(|| panic!("{name} is declared"));
    if let Some(text) = document.get("s").and_then(Value::as_str) {
        assert_eq!(column("s").as_string_view().value(0), text);
    }
    if let Some(number) = document.get("i").and_then(Value::as_i64) {
        assert_eq!(column("i").as_primitive::<Int64Type>().value(0), number);
    }
    if let Some(number) = document.get("f").and_then(Value::as_f64) {
        let found = column("f").as_primitive::<Float64Type>().value(0);
        // Without its feature `float_roundtrip`, serde_json may be off in the last digit.
        assert!((found - number).abs() <= number.abs() * 1e-15, "{found} is not {number}");
    }
    if let Some(value) = document.get("b").and_then(Value::as_bool) {
        assert_eq!(column("b").as_boolean().value(0), value);
    }
    for (name, value) in document.as_object().into_iter().flatten().filter(|(_, value)| value.is_null()) {
        if let Some(column) = row.column_by_name(name) {
            assert!(column.is_null(0), "{name} is {value}");
        }
    }
}
