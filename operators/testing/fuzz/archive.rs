//! An archive: its objects read as the records did.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field};
use arrow::util::display::array_value_to_string;
use bytes::Bytes;

use super::reading::{read, settings};
use crate::batch::{Chunk, Payload, RAW_COLUMN, Record};
use crate::decode::{DecoderSettings, FormatSettings, ProtobufMessage, UnknownColumns, decode_whole, decoder};
use crate::source::framed::Grain;

/// The types of tests/fixtures/binary/order.proto.
const DESCRIPTOR: &[u8] = include_bytes!("../../../tests/fixtures/binary/order.desc");

/// Stands between two records.
const BETWEEN: u8 = 0xff;

/// The mark of UTF-8, which means something at the start of content only.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Any bytes as records with a byte between them, of a format that the first byte chooses.
pub(super) fn archive(data: &[u8]) {
    let Some(([choice], content)) = data.split_first_chunk::<1>() else { return };
    let (format, columns) = format(*choice);
    let breaks = |byte: &u8| matches!(byte, b'\n' | b'\r');
    // What a line break is within a raw record is not known behind it.
    let is_marked = content.windows(MARK.len()).any(|bytes| bytes == MARK);
    if is_marked || format == FormatSettings::Raw && content.iter().any(breaks) {
        return;
    }
    let settings = DecoderSettings { archives: true, ..settings(format, columns, UnknownColumns::Ignore) };
    let record = |data: &[u8]| Record { offset: "7".into(), key: None, data: Bytes::copy_from_slice(data) };
    let payload = Payload::Records(content.split(|byte| *byte == BETWEEN).map(record).collect());
    let chunk = Chunk { partition: "fuzzed".into(), payload, read_at_us: 0, lag_ms: None };
    let decoder = decoder(settings.clone()).expect("the settings are good");
    let mut objects: BTreeMap<Option<Vec<u8>>, Vec<u8>> = BTreeMap::new();
    let whole = decode_whole(&*decoder, &chunk).expect("records can be decoded");
    for records in &whole.archived {
        let (headers, records) = (records.column(1).as_binary_view(), records.column(2).as_binary_view());
        for (header, record) in headers.iter().zip(records) {
            let object = objects.entry(header.map(<[u8]>::to_vec)).or_default();
            object.extend_from_slice(record.expect("each record has bytes"));
        }
    }
    let mut found = Vec::new();
    for (header, records) in objects {
        let lines = header.map(|header| [&header, b"\n".as_slice()].concat()).unwrap_or_default();
        let object = packed(&[lines, records].concat());
        let again = DecoderSettings { format: kept_as(&settings.format), archives: false, ..settings.clone() };
        let outcome = read(&again, &object, Grain::default(), 0);
        assert_eq!(outcome.damage, None, "an object of the archive is damaged");
        found.extend(values(&outcome.rows));
    }
    let mut expected: Vec<String> = whole.batches.iter().flat_map(values).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "what is read again");
}

fn format(choice: u8) -> (FormatSettings, Vec<Field>) {
    static MESSAGE: LazyLock<ProtobufMessage> =
        LazyLock::new(|| ProtobufMessage::find(DESCRIPTOR, "nexus.test.Order").expect("the descriptors are good"));
    let few = || ["a", "b"].map(|name| Field::new(name, DataType::Utf8View, true)).to_vec();
    let csv = |header| FormatSettings::Csv { header, delimiter: b',', quote: b'"', nulls: Vec::new() };
    match choice % 6 {
        0 => (FormatSettings::Json, few()),
        1 => (csv(true), few()),
        2 => (csv(false), few()),
        3 => (FormatSettings::Raw, Vec::new()),
        delimited => {
            let format = FormatSettings::Protobuf { message: MESSAGE.clone(), delimited: delimited == 4 };
            (format, MESSAGE.columns())
        }
    }
}

/// Gives the format as which an object reads.
fn kept_as(format: &FormatSettings) -> FormatSettings {
    match format {
        FormatSettings::Protobuf { message, .. } => {
            FormatSettings::Protobuf { message: message.clone(), delimited: true }
        }
        other => other.clone(),
    }
}

fn packed(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all").into()
}

/// Gives the rows without their provenance, as text. Line breaks between the parts of a document may be spaces.
fn values(rows: &RecordBatch) -> Vec<String> {
    let schema = rows.schema();
    let is_own = |name: &str| name == RAW_COLUMN || !name.starts_with('_');
    let own: Vec<usize> = (0..rows.num_columns()).filter(|at| is_own(schema.field(*at).name())).collect();
    let text = |row: usize| {
        let value = |at: &usize| match rows.column(*at).is_null(row) {
            true => "NULL".to_owned(),
            false => array_value_to_string(rows.column(*at), row).expect("it has a text").replace(['\n', '\r'], " "),
        };
        own.iter().map(value).collect::<Vec<_>>().join("|")
    };
    (0..rows.num_rows()).map(text).collect()
}
