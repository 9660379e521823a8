use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampNanosecondArray,
};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::batch::{Chunk, Payload, RowGroup, timestamp_type};
use crate::decode::column::{is_json, type_name};
use crate::decode::testing::*;
use crate::decode::{DecoderSettings, FormatSettings, UnknownColumns, decode_whole, decoder, infer};
use crate::error::ErrorKind;

fn parquet_settings(columns: Vec<arrow::datatypes::Field>) -> DecoderSettings {
    settings(FormatSettings::Parquet, columns)
}

/// A file of two row groups with three rows each.
fn file() -> Bytes {
    let carriers: DictionaryArray<Int32Type> = ["UA", "AA", "UA", "B6", "UA", "DL"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("flight", Arc::new(Int64Array::from(vec![Some(1), Some(300), None, Some(4), Some(5), Some(-6)]))),
        ("carrier", Arc::new(carriers)),
        ("delay", Arc::new(Float64Array::from(vec![0.5, 1.0, -2.5, 3.0, 4.0, 5.0]))),
        ("at", Arc::new(TimestampNanosecondArray::from(vec![1_999; 6]).with_timezone("America/New_York"))),
        ("text", Arc::new(StringArray::from(vec![Some("1"), Some("x"), None, Some("{}"), Some("[1]"), Some("null")]))),
        (
            "tags",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>((0..6).map(|n| (n > 0).then(|| vec![Some(n)])))),
        ),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(3)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

/// The pieces that a source would fetch for a row group: its columns' bytes and the footer.
fn row_group(file: &Bytes, index: usize) -> Chunk {
    let reader = SerializedFileReader::new(file.clone()).unwrap();
    let group = reader.metadata().row_group(index);
    let mut pieces: Vec<(u64, Bytes)> = group
        .columns()
        .iter()
        .map(|column| {
            let (start, length) = column.byte_range();
            (start, file.slice(start as usize..(start + length) as usize))
        })
        .collect();
    let footer = file.len() - 8 - u32::from_le_bytes(*file[file.len() - 8..].first_chunk().unwrap()) as usize;
    pieces.push((footer as u64, file.slice(footer..)));
    let first_row = (0..index).map(|at| reader.metadata().row_group(at).num_rows() as u64).sum();
    chunk(Payload::RowGroup(RowGroup { file_len: file.len() as u64, pieces, index, first_row }))
}

#[test]
fn columns_are_matched_by_name_and_cast() {
    let columns = vec![
        field("at", timestamp_type()),
        field("gate", DataType::Utf8View),
        field("flight", DataType::Int64),
        field("carrier", DataType::Utf8View),
        field("delay", DataType::Float64),
        field("tags", list(DataType::Int64)),
    ];
    let (batch, decoded) = decode_chunk(parquet_settings(columns), &row_group(&file(), 1));
    assert_eq!(decoded.rejects, []);
    assert_eq!(texts(&batch, "flight"), ["4", "5", "-6"]);
    assert_eq!(texts(&batch, "carrier"), ["B6", "UA", "DL"]);
    assert_eq!(texts(&batch, "at"), ["1970-01-01T00:00:00.000001Z"; 3]);
    assert_eq!(texts(&batch, "gate"), ["-"; 3]);
    assert_eq!(texts(&batch, "tags"), ["[3]", "[4]", "[5]"]);
    assert_eq!(texts(&batch, "_rescued"), [r#"{"text":"{}"}"#, r#"{"text":"[1]"}"#, r#"{"text":"null"}"#]);
    assert_eq!(texts(&batch, "_offset"), ["3", "4", "5"]);
}

#[test]
fn a_row_that_does_not_fit_is_rejected_alone() {
    let columns = vec![field("flight", DataType::Int8), field("text", DataType::Int64)];
    let (batch, decoded) = decode_chunk(parquet_settings(columns), &row_group(&file(), 0));
    assert_eq!(texts(&batch, "flight"), ["1", "-"]);
    assert_eq!(texts(&batch, "_offset"), ["0", "2"]);
    assert_eq!(reasons(&decoded), [r#"column "flight": 300 is out of range for int8"#]);
    assert_eq!(decoded.rejects[0].offset, "1");
    let raw: serde_json::Value = serde_json::from_slice(&decoded.rejects[0].raw).unwrap();
    assert_eq!((&raw["flight"], &raw["carrier"]), (&300.into(), &"AA".into()));

    let columns = vec![field("text", DataType::Int64)];
    let (_, decoded) = decode_chunk(parquet_settings(columns), &row_group(&file(), 0));
    assert_eq!(reasons(&decoded), [r#"column "text": "x" is not an int64"#]);
    let columns = vec![json_field("text"), json_field("tags")];
    let (batch, decoded) = decode_chunk(parquet_settings(columns), &row_group(&file(), 0));
    assert_eq!(reasons(&decoded), [r#"column "text": "x" is not a json"#]);
    assert_eq!(
        (texts(&batch, "text"), texts(&batch, "tags")),
        (vec!["1".into(), "-".into()], vec!["-".into(), "[2]".into()])
    );
    let columns = vec![field("flight", DataType::Int64).with_nullable(false), field("delay", DataType::Float64)];
    let (_, decoded) = decode_chunk(parquet_settings(columns), &row_group(&file(), 0));
    assert_eq!(reasons(&decoded), [r#"column "flight": is null, but declared not null"#]);
}

#[test]
fn unknown_columns_go_by_the_policy() {
    let with = |unknown| DecoderSettings { unknown, ..parquet_settings(vec![field("flight", DataType::Int64)]) };
    let (batch, _) = decode_chunk(with(UnknownColumns::Ignore), &row_group(&file(), 0));
    assert_eq!((batch.num_rows(), batch.num_columns()), (3, 5));
    let (_, decoded) = decode_chunk(with(UnknownColumns::Reject), &row_group(&file(), 0));
    assert_eq!(reasons(&decoded), [r#"column "carrier" is not declared"#; 3]);
    let none =
        DecoderSettings { unknown: UnknownColumns::Ignore, ..parquet_settings(vec![field("x", DataType::Int64)]) };
    assert_eq!(texts(&decode_chunk(none, &row_group(&file(), 0)).0, "x"), ["-"; 3]);
}

#[test]
fn nested_times_are_rescued() {
    let times: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![1_500]).with_timezone("Europe/Berlin"));
    let inside = arrow::array::StructArray::from(vec![(Arc::new(field("t", times.data_type().clone())), times)]);
    let batch = RecordBatch::try_from_iter([("s", Arc::new(inside) as ArrayRef)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let file = Bytes::from(writer.into_inner().unwrap());
    let (batch, _) = decode_chunk(parquet_settings(vec![field("x", DataType::Int64)]), &row_group(&file, 0));
    assert_eq!(texts(&batch, "_rescued"), [r#"{"s":{"t":"1970-01-01T00:00:00.000001500Z"}}"#]);
}

#[test]
fn a_file_that_cannot_fit_is_a_data_error() {
    let decode = |columns, chunk: &Chunk| decode_whole(&*decoder(parquet_settings(columns)).unwrap(), chunk);
    let error = |columns, chunk: &Chunk| decode(columns, chunk).unwrap_err();
    let unfit = error(vec![field("delay", DataType::Int64)], &row_group(&file(), 0));
    assert_eq!(unfit.kind(), ErrorKind::Data);
    assert_eq!(
        unfit.to_string(),
        "parquet file \"2013.json\": column \"delay\" is float64 in the file, which cannot always be made int64; declare \
         it as it is and convert it in SQL"
    );
    let file = file();
    for at in (0..file.len()).step_by(3) {
        let mut broken = file.to_vec();
        broken[at] ^= 0x55;
        let mut chunk = row_group(&file, 0);
        if let Payload::RowGroup(group) = &mut chunk.payload {
            group.pieces = vec![(0, broken.into())];
        }
        if let Err(error) = decode(vec![field("flight", DataType::Int64)], &chunk) {
            assert_eq!(error.kind(), ErrorKind::Data, "byte {at}: {error}");
        }
    }
    let mut chunk = row_group(&file, 0);
    if let Payload::RowGroup(group) = &mut chunk.payload {
        group.pieces.remove(0);
    }
    let missing = error(vec![field("flight", DataType::Int64)], &chunk);
    assert!(missing.to_string().contains("are not among those that were read"), "{missing}");
}

#[test]
fn columns_are_inferred_from_the_footer() {
    let fields = infer(&FormatSettings::Parquet, &file()).unwrap();
    let fields: Vec<_> =
        fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type(), is_json(f)))).collect();
    assert_eq!(
        fields,
        ["flight: int64", "carrier: string", "delay: float64", "at: timestamp", "text: string", "tags: list<int64>"]
    );
}
