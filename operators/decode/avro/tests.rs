use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use proptest::prelude::*;

use crate::avro::{Header, push_bytes, push_number};
use crate::batch::{Chunk, OffsetKind, Payload};
use crate::decode::column::{is_json, type_name};
use crate::decode::testing::*;
use crate::decode::{AvroEncoding, AvroSchema, AvroWriter, DecoderSettings, FormatSettings, UnknownColumns, infer};

const CODECS: [&str; 4] = ["null", "deflate", "snappy", "zstandard"];

fn file(codec: &str) -> Bytes {
    fixture(&format!("reading-{codec}.avro")).into()
}

fn schema() -> AvroSchema {
    AvroSchema::parse(std::str::from_utf8(&fixture("reading.avsc")).unwrap()).unwrap()
}

/// Gives the blocks of a file as its source does.
fn blocks(file: &Bytes, offset: u64) -> Chunk {
    let len = Header::parse(file).unwrap().unwrap().len;
    chunk(Payload::Framed { offset, bytes: file.slice(len..), header: Some(file.slice(..len)) })
}

/// Gives the rows as their writer understands them.
fn expected() -> RecordBatch {
    let lines = framed(fixture("reading.jsonl"));
    decode_chunk(settings(FormatSettings::Json, schema().columns()), &lines).0
}

fn declared(batch: &RecordBatch) -> RecordBatch {
    batch.project(&(0..schema().columns().len()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn files_of_another_tool_are_read_as_it_means_them() {
    for codec in CODECS {
        let columns = infer(&FormatSettings::Avro, &file(codec)).unwrap();
        assert_eq!(columns, schema().columns());
        let (rows, decoded) = decode_chunk(settings(FormatSettings::Avro, columns), &blocks(&file(codec), 1000));
        assert_eq!(decoded.rejects, []);
        assert_eq!(declared(&rows), declared(&expected()), "{codec}");
        assert_eq!((rows.num_rows(), texts(&rows, "_offset")[119].as_str()), (120, "1119"));
    }
}

#[test]
fn columns_are_typed_by_the_schema() {
    let columns: Vec<_> =
        schema().columns().iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type(), is_json(f)))).collect();
    let expected = "id: int64, small: int64, ok: bool, ratio: float64, share: float32, name: string, bytes: binary, \
                    key: binary, kind: string, day: date, time: time, at: timestamp, at_us: timestamp, local: timestamp, \
                    price: decimal(12, 3), uuid: string, tags: list<string>, counts: map<string, int64>, \
                    inner: struct<x: float64, again: string>, any: json";
    assert_eq!(columns.join(", "), expected);
}

#[test]
fn single_records_are_read_with_the_schema_of_the_file() {
    let encodings = [
        ("datum", AvroEncoding::Datum),
        ("single_object", AvroEncoding::SingleObject),
        ("confluent", AvroEncoding::Confluent { id: None }),
        ("confluent", AvroEncoding::Confluent { id: Some(42) }),
    ];
    for (name, encoding) in encodings {
        let format = FormatSettings::AvroRecords { schema: Arc::new(schema()), older: Vec::new(), encoding };
        let settings = DecoderSettings { offsets: OffsetKind::Sequence, ..settings(format, schema().columns()) };
        let singles = hex_lines(&format!("reading-{name}.hex"));
        let given: Vec<(&str, &[u8])> = singles.iter().map(|single| ("7", single.as_slice())).collect();
        let (rows, decoded) = decode_chunk(settings.clone(), &records(&given));
        assert_eq!(decoded.rejects, []);
        assert_eq!(declared(&rows), declared(&expected().slice(0, 8)), "{name}");
        // Each record that is cut off, or goes on, is a reject.
        let cut = singles[1].get(..singles[1].len() - 1).unwrap();
        let longer = [&singles[1][..], b"x"].concat();
        let (_, decoded) = decode_chunk(settings, &records(&[("1", cut), ("2", &longer), ("3", b"")]));
        let reasons = reasons(&decoded);
        assert!(reasons.len() == 3 && reasons[1].ends_with("1 bytes are left behind it"), "{reasons:?}");
    }
}

/// The version that the records of glue have.
const VERSION: u128 = 0xb7b4_a7f0_9c96_4e4a_a687_fb5d_e9ef_0c63;

#[test]
fn records_of_an_older_schema_are_read_as_the_newest_wants_them() {
    let schema = |name: &str| AvroSchema::parse(std::str::from_utf8(&fixture(name)).unwrap()).unwrap();
    let newest = Arc::new(schema("customer-newer.avsc"));
    let columns = newest.columns();
    let expected = decode_chunk(settings(FormatSettings::Json, columns.clone()), &framed(fixture("customer.jsonl"))).0;
    let encodings = [
        ("single_object", AvroEncoding::SingleObject, None),
        ("confluent", AvroEncoding::Confluent { id: Some(42) }, Some(41)),
        ("glue", AvroEncoding::Glue { version: Some(7) }, Some(VERSION)),
        ("glue_zlib", AvroEncoding::Glue { version: Some(7) }, Some(VERSION)),
    ];
    for (name, encoding, id) in encodings {
        let writer = AvroWriter::new(schema("customer-older.avsc"), &newest, id).unwrap();
        let singles = hex_lines(&format!("customer-{name}.hex"));
        let given: Vec<(&str, &[u8])> = singles.iter().map(|single| ("7", single.as_slice())).collect();
        for (older, rows_expected) in [(vec![writer], singles.len()), (Vec::new(), 0)] {
            let format = FormatSettings::AvroRecords { schema: newest.clone(), older, encoding };
            let settings = DecoderSettings { offsets: OffsetKind::Sequence, ..settings(format, columns.clone()) };
            let (rows, decoded) = decode_chunk(settings, &records(&given));
            assert_eq!(
                (rows.num_rows(), decoded.rejects.len()),
                (rows_expected, singles.len() - rows_expected),
                "{name}"
            );
            let of = |rows: &RecordBatch| rows.project(&(0..columns.len()).collect::<Vec<_>>()).unwrap();
            assert_eq!(of(&rows), of(&expected).slice(0, rows_expected), "{name}");
        }
    }
}

#[test]
fn what_stands_before_records_of_glue_is_checked() {
    let columns = vec![field("id", DataType::Int64)];
    let encoding = AvroEncoding::Glue { version: None };
    let format = FormatSettings::AvroRecords { schema: Arc::new(schema()), older: Vec::new(), encoding };
    let settings =
        DecoderSettings { unknown: UnknownColumns::Ignore, record_bytes_max: 1000, ..settings(format, columns) };
    let glue = |packing: u8, datum: &[u8]| [&[3, packing], &VERSION.to_be_bytes()[..], datum].concat();
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![0; 100_000]).unwrap();
    let cases = [
        (b"{}".to_vec(), "does not begin with the header"),
        (glue(1, b""), "does not begin with the header"),
        (vec![3, 0, 1], "ends within the version"),
        (glue(5, b"no zlib"), "cannot be unpacked"),
        (glue(5, &bomb.finish().unwrap()), "unpacks to more than 1000 bytes"),
    ];
    for (record, words) in cases {
        let found = decode_chunk(settings.clone(), &records(&[("1", &record)])).1;
        assert!(reasons(&found)[0].contains(words), "{:?}", reasons(&found));
    }
}

#[test]
fn records_of_another_schema_are_rejected() {
    let columns = vec![field("id", DataType::Int64)];
    let format = |encoding| FormatSettings::AvroRecords { schema: Arc::new(schema()), older: Vec::new(), encoding };
    let rejected = |encoding, data: &[u8]| {
        let settings =
            DecoderSettings { unknown: UnknownColumns::Ignore, ..settings(format(encoding), columns.clone()) };
        reasons(&decode_chunk(settings, &records(&[("1", data)])).1)[0].to_owned()
    };
    let object = rejected(AvroEncoding::SingleObject, b"\xc3\x01\x08\x07\x06\x05\x04\x03\x02\x01rest");
    assert!(object.contains("its fingerprint is 0102030405060708, not "), "{object}");
    assert!(rejected(AvroEncoding::SingleObject, b"{}").contains("does not begin with c3 01"));
    let confluent = AvroEncoding::Confluent { id: Some(41) };
    assert!(rejected(confluent, b"\0\0\0\0\x2arest").contains("with schema 42, not 41"));
    assert!(rejected(confluent, b"\0\0").contains("ends within the number"));
    assert!(rejected(confluent, b"{").contains("does not begin with 00"));
}

#[test]
fn a_record_that_does_not_fit_is_rejected_alone_and_can_be_redriven() {
    let narrow = |kind| vec![field("id", DataType::Int64), field("small", kind)];
    let with =
        |kind| DecoderSettings { unknown: UnknownColumns::Ignore, ..settings(FormatSettings::Avro, narrow(kind)) };
    let (rows, decoded) = decode_chunk(with(DataType::UInt8), &blocks(&file("deflate"), 0));
    assert_eq!((rows.num_rows(), decoded.rejects.len()), (60, 60));
    let reject = &decoded.rejects[0];
    assert_eq!(
        (reject.reason.as_str(), reject.offset.as_str()),
        ("column \"small\": -1 is out of range for uint8", "1")
    );
    // What `redrive` makes of it.
    let again = [reject.header.as_deref().unwrap(), b"\n", reject.raw.as_ref()].concat();
    assert!(reject.redrivable);
    let (rows, decoded) = decode_chunk(with(DataType::Int64), &records(&[("1", &again), ("2", &file("snappy"))]));
    assert_eq!((rows.num_rows(), decoded.rejects.len()), (121, 0));
    assert_eq!((&texts(&rows, "small")[0][..], &texts(&rows, "_offset")[0][..]), ("-1", "1"));
}

#[test]
fn a_broken_block_costs_no_other() {
    let file = file("snappy").to_vec();
    let header = Header::parse(&file).unwrap().unwrap().len;
    let sync = file[file.len() - 16..].to_vec();
    let ends: Vec<usize> = (header..=file.len() - 16).filter(|&at| file[at..].starts_with(&sync)).collect();
    let mut broken = file.clone();
    broken[(ends[0] + ends[1]) / 2] ^= 0x55;
    let (rows, decoded) = decode_chunk(settings(FormatSettings::Avro, schema().columns()), &blocks(&broken.into(), 0));
    assert!(ends.len() > 3 && rows.num_rows() > 80 && rows.num_rows() < 120, "{} rows", rows.num_rows());
    assert_eq!(decoded.rejects.len(), 1, "{:?}", reasons(&decoded));
    assert!(!decoded.rejects[0].redrivable);
    let last = texts(&rows, "_offset");
    assert_eq!((last.last().unwrap().as_str(), texts(&rows, "id").last().unwrap().as_str()), ("119", "119000352"));
}

/// Makes a container file.
fn container(schema: &str, codec: &str, blocks: &[(i64, Vec<u8>)]) -> Bytes {
    let mut file = b"Obj\x01".to_vec();
    push_number(&mut file, 2);
    for text in ["avro.schema", schema, "avro.codec", codec] {
        push_bytes(&mut file, text.as_bytes());
    }
    file.push(0);
    file.extend([9; 16]);
    for (records, content) in blocks {
        push_number(&mut file, *records);
        push_bytes(&mut file, content);
        file.extend([9; 16]);
    }
    file.into()
}

#[test]
fn bombs_are_rejects() {
    let list = r#"{"type":"record","name":"R","fields":[{"name":"l","type":{"type":"array","items":"null"}}]}"#;
    let tree = r#"{"type":"record","name":"T","fields":[{"name":"t","type":["null","T"]}]}"#;
    let mut many = Vec::new();
    push_number(&mut many, 1 << 40);
    let zeros = |len: usize| zstd::encode_all(&vec![0; len][..], 1).unwrap();
    let mut snappy = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    snappy.extend([0; 4]);
    let cases = [
        (container(list, "null", &[(1, many)]), "more than 1024 empty items"),
        (container(tree, "null", &[(1, vec![2; 10_000])]), "more than 128 deep"),
        (container(tree, "zstandard", &[(1, zeros(65 << 20))]), "unpacks to more than 67108864 bytes"),
        (container(tree, "snappy", &[(1, snappy)]), "unpack"),
        (container(tree, "null", &[(i64::MAX, vec![])]), "cannot be in a block of 0 bytes"),
        (container(tree, "xz", &[(1, vec![])]), "codec xz"),
        (container(list, "null", &[(1, vec![2, 0, 0])]), "l"),
    ];
    for (file, reason) in cases {
        let settings = settings(FormatSettings::Avro, vec![field("l", list_of_null())]);
        let (_, decoded) = decode_chunk(settings, &blocks(&file, 0));
        let reasons = reasons(&decoded);
        assert!(reasons.len() == 1 && reasons[0].contains(reason), "{reason}: {reasons:?}");
    }
}

fn list_of_null() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int64, false)))
}

#[test]
fn types_that_stand_in_themselves_or_in_many_places_are_json() {
    let tree = r#"{"type":"record","name":"T","fields":[{"name":"v","type":"int"},{"name":"t","type":["null","T"]}]}"#;
    let columns = AvroSchema::parse(tree).unwrap().columns();
    assert_eq!((columns[0].data_type(), is_json(&columns[1])), (&DataType::Int64, true));
    // Ten fields of a record that has ten fields of a record, and so on: ten million in all.
    let mut inner = "\"int\"".to_owned();
    for (level, rest) in REST.iter().enumerate().take(7) {
        let fields: Vec<_> = (0..10)
            .map(|n| format!(r#"{{"name":"f{n}","type":{}}}"#, if n == 0 { inner.as_str() } else { *rest }))
            .collect();
        inner = format!(r#"{{"type":"record","name":"R{level}","fields":[{}]}}"#, fields.join(","));
    }
    assert_eq!(AvroSchema::parse(&inner).unwrap().columns().len(), 10);
}

const REST: [&str; 7] = ["\"int\"", "\"R0\"", "\"R1\"", "\"R2\"", "\"R3\"", "\"R4\"", "\"R5\""];

#[test]
fn schemas_that_cannot_be_used_are_refused() {
    let record = |fields: &str| format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
    let cases = [
        ("{".to_owned(), "it is not JSON"),
        ("\"long\"".to_owned(), "it is not a record"),
        (record(r#"{"name":"a","type":"lng"}"#), "there is no type lng"),
        (record(r#"{"name":"a"}"#), "field a has no `type`"),
        (record(r#"{"name":"a\"b","type":"int"}"#), "cannot have the name"),
        (record(r#"{"name":"a","type":{"type":"enum","name":"R","symbols":[]}}"#), "type R is there twice"),
        (record(r#"{"name":"a","type":{"type":"fixed","name":"F"}}"#), "has no `size`"),
    ];
    for (text, what) in cases {
        let error = AvroSchema::parse(&text).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_more_than_a_reject(at in 0..4000_usize, xor: u8, cut in 0..4000_usize, codec in 0..4_usize) {
        let mut file = file(CODECS[codec]).to_vec();
        let header = Header::parse(&file).unwrap().unwrap().len;
        let (len, at) = (file.len(), header + at % (file.len() - header));
        file[at] ^= xor;
        file.truncate(len - cut % (len - header));
        let file = Bytes::from(file);
        let chunk = chunk(Payload::Framed { offset: 0, bytes: file.slice(header..), header: Some(file.slice(..header)) });
        let (rows, decoded) = decode_chunk(settings(FormatSettings::Avro, schema().columns()), &chunk);
        prop_assert!(rows.num_rows() + decoded.rejects.len() > 0);
    }
}
