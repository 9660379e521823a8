//! What the tests of the formats share.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;

use super::{Decoded, DecoderSettings, FormatSettings, UnknownColumns, decode_whole, decoder};
use crate::batch::{Chunk, OffsetKind, Payload, Record, timestamp_type};

pub(super) fn settings(format: FormatSettings, columns: Vec<Field>) -> DecoderSettings {
    DecoderSettings {
        source: "flights".into(),
        format,
        columns,
        unknown: UnknownColumns::Rescue,
        offsets: OffsetKind::Number,
        batch_rows_max: 8192,
        record_bytes_max: 1 << 20,
        archives: false,
    }
}

pub(super) fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

pub(super) fn json_field(name: &str) -> Field {
    field(name, DataType::Utf8View).with_metadata(HashMap::from([("nexus.type".into(), "json".into())]))
}

pub(super) fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

pub(super) fn map(value: DataType) -> DataType {
    let entries = Fields::from(vec![Field::new("key", DataType::Utf8View, false), Field::new("value", value, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

/// One column of every type that is declared in a pipeline file.
pub(super) fn every_type() -> Vec<Field> {
    vec![
        field("b", DataType::Boolean),
        field("i8", DataType::Int8),
        field("i64", DataType::Int64),
        field("u64", DataType::UInt64),
        field("f32", DataType::Float32),
        field("f64", DataType::Float64),
        field("dec", DataType::Decimal128(10, 2)),
        field("s", DataType::Utf8View),
        field("bin", DataType::BinaryView),
        field("d", DataType::Date32),
        field("t", DataType::Time64(TimeUnit::Microsecond)),
        field("ts", timestamp_type()),
        field("l", list(DataType::Int64)),
        field("st", DataType::Struct(Fields::from(vec![field("x", DataType::Int64), field("y", DataType::Utf8View)]))),
        field("m", map(DataType::Float64)),
        json_field("j"),
    ]
}

pub(super) fn framed(bytes: impl Into<Bytes>) -> Chunk {
    chunk(Payload::Framed { offset: 1000, bytes: bytes.into(), header: None })
}

pub(super) fn chunk(payload: Payload) -> Chunk {
    Chunk { partition: "2013.json".into(), payload, read_at_us: 7, lag_ms: None }
}

pub(super) fn records(records: &[(&str, &[u8])]) -> Chunk {
    let record = |&(offset, data): &(&str, &[u8])| Record {
        offset: offset.into(),
        key: Some(format!("key {offset}")),
        data: Bytes::copy_from_slice(data),
    };
    chunk(Payload::Records(records.iter().map(record).collect()))
}

/// Decodes, and checks what is true of every answer.
pub(super) fn decode_chunk(settings: DecoderSettings, chunk: &Chunk) -> (RecordBatch, Decoded) {
    let rows_max = settings.batch_rows_max;
    let decoder = decoder(settings).unwrap();
    let decoded = decode_whole(&*decoder, chunk).unwrap();
    for batch in &decoded.batches {
        assert_eq!(batch.schema(), decoder.schema());
        assert!((1..=rows_max).contains(&batch.num_rows()));
        for column in batch.columns() {
            column.to_data().validate_full().unwrap();
        }
    }
    (concat_batches(&decoder.schema(), &decoded.batches).unwrap(), decoded)
}

pub(super) fn reasons(decoded: &Decoded) -> Vec<&str> {
    decoded.rejects.iter().map(|reject| reject.reason.as_str()).collect()
}

/// Gives a column's values as text, NULL as `-`.
pub(super) fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let mut array: ArrayRef = Arc::clone(batch.column_by_name(column).unwrap());
    if array.data_type() == &timestamp_type() {
        // Arrow names no zone without its table of them.
        array = Arc::new(array.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("+00:00"));
    }
    let options = arrow::util::display::FormatOptions::new().with_null("-");
    let formatter = arrow::util::display::ArrayFormatter::try_new(&array, &options).unwrap();
    (0..array.len()).map(|row| formatter.value(row).to_string()).collect()
}

/// Reads a file that another tool has made (tests/fixtures/binary/make.py).
pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/binary").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads such a file of records in hexadecimal digits, one a line.
pub(super) fn hex_lines(name: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8(fixture(name)).unwrap();
    let byte = |line: &str, at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
    text.lines().map(|line| (0..line.len()).step_by(2).map(|at| byte(line, at)).collect()).collect()
}
