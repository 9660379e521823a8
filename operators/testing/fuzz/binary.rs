//! Avro, Protocol Buffers and log events: broken ones are damage or rejects, and however content arrives, it has the same
//! records.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field};
use bytes::Bytes;

use super::framing::{grain, same_however_it_comes, within_a_small_limit};
use super::parquet::changed;
use super::reading::{decode, read, settings, unknown};
use crate::batch::{Chunk, OffsetKind, Payload, Record};
use crate::decode::{
    AvroEncoding, AvroSchema, DecoderSettings, FormatSettings, ProtobufMessage, UnknownColumns, cloudwatch_columns,
    decoder,
};
use crate::source::framed::Grain;

const SCHEMA_TEXT: &str = include_str!("../../../tests/fixtures/binary/reading.avsc");
const DESCRIPTOR: &[u8] = include_bytes!("../../../tests/fixtures/binary/order.desc");
const FILES: [&[u8]; 4] = [
    include_bytes!("../../../tests/fixtures/binary/small-null.avro"),
    include_bytes!("../../../tests/fixtures/binary/small-deflate.avro"),
    include_bytes!("../../../tests/fixtures/binary/small-snappy.avro"),
    include_bytes!("../../../tests/fixtures/binary/small-zstandard.avro"),
];

/// Any bytes as a container file, as changes to a good one, or as single records: a byte chooses.
pub(super) fn avro(data: &[u8]) {
    let Some(([choice, fine], rest)) = data.split_first_chunk::<2>() else { return };
    static SCHEMA: LazyLock<Arc<AvroSchema>> =
        LazyLock::new(|| Arc::new(AvroSchema::parse(SCHEMA_TEXT).expect("the schema is good")));
    let schema = Arc::clone(&SCHEMA);
    let columns = if choice & 0x80 == 0 { schema.columns() } else { vec![Field::new("id", DataType::UInt8, true)] };
    let with = |format| settings(format, columns.clone(), unknown(choice >> 4));
    if let Some(encoding) = match choice & 7 {
        0 => Some(AvroEncoding::Datum),
        1 => Some(AvroEncoding::SingleObject),
        2 => Some(AvroEncoding::Confluent { id: None }),
        _ => None,
    } {
        let format = FormatSettings::AvroRecords { schema, older: Vec::new(), encoding };
        return records(&with(format), rest);
    }
    let file = FILES.get(usize::from(choice & 7).wrapping_sub(4));
    let content = file.map_or_else(|| rest.to_vec(), |file| changed(file, rest));
    let settings = with(FormatSettings::Avro);
    records(&settings, &content);
    let whole = read(&settings, &Bytes::copy_from_slice(&content), Grain::default(), 0);
    // A header whose schema is wrong costs each piece one reject, and pieces differ.
    if whole.rejects.iter().all(|reject| reject.redrivable) {
        same_however_it_comes(&settings, &content, *fine);
    } else {
        let _ = read(&settings, &content.into(), grain(*fine), 0);
    }
}

/// Any bytes as messages, one behind the other or alone.
pub(super) fn protobuf(data: &[u8]) {
    let Some(([choice, fine], content)) = data.split_first_chunk::<2>() else { return };
    static MESSAGE: LazyLock<ProtobufMessage> =
        LazyLock::new(|| ProtobufMessage::find(DESCRIPTOR, "nexus.test.Order").expect("the descriptors are good"));
    let message = &*MESSAGE;
    let columns = if choice & 1 == 0 { message.columns() } else { vec![Field::new("id", DataType::Int8, true)] };
    let with = |delimited| {
        settings(
            FormatSettings::Protobuf { message: message.clone(), delimited },
            columns.clone(),
            unknown(choice >> 1),
        )
    };
    records(&with(false), content);
    records(&with(true), content);
    same_however_it_comes(&with(true), content, *fine);
    within_a_small_limit(with(true), content, *fine);
}

/// Any bytes as what a subscription sends, in a record or in an object.
pub(super) fn cloudwatch(data: &[u8]) {
    let Some(([choice, fine], content)) = data.split_first_chunk::<2>() else { return };
    let mut columns = cloudwatch_columns();
    if choice & 1 == 1 {
        let message = columns.iter_mut().filter(|field| field.name() == "message");
        message
            .for_each(|field| *field = Field::new_list("message", Field::new_list_field(DataType::Int64, true), true));
    }
    let settings = settings(FormatSettings::CloudWatchLogs, columns, UnknownColumns::Reject);
    records(&settings, content);
    let _ = read(&settings, &Bytes::copy_from_slice(content), grain(*fine), 0);
}

/// Decodes bytes as records: as a whole and cut in two. What is rejected whole is rejected again.
fn records(settings: &DecoderSettings, content: &[u8]) {
    let settings = DecoderSettings { offsets: OffsetKind::Sequence, ..settings.clone() };
    let decoder = decoder(settings.clone()).expect("the settings are good");
    let (first, second) = content.split_at(content.len() / 2);
    let record = |data: &[u8]| Record { offset: "7".into(), key: None, data: Bytes::copy_from_slice(data) };
    let chunk = |records| {
        let payload = Payload::Records(records);
        Chunk { partition: "fuzzed".into(), payload, read_at_us: 0, lag_ms: None }
    };
    let given = chunk([content, first, second].map(record).to_vec());
    let (mut batches, mut rejects) = (Vec::new(), Vec::new());
    decode(&*decoder, &settings, &given, &mut batches, &mut rejects);
    for reject in rejects.into_iter().filter(|reject| reject.redrivable) {
        let data = match &reject.header {
            Some(header) => Bytes::from([header.as_ref(), b"\n", reject.raw.as_ref()].concat()),
            None => reject.raw.clone(),
        };
        let again = chunk(vec![Record { offset: reject.offset.clone(), key: None, data }]);
        let (mut batches, mut rejects) = (Vec::new(), Vec::new());
        decode(&*decoder, &settings, &again, &mut batches, &mut rejects);
        assert!(batches.is_empty() && !rejects.is_empty(), "{reject:?} became {batches:?}");
    }
}
