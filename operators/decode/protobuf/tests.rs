use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use proptest::prelude::*;

use crate::batch::OffsetKind;
use crate::decode::column::{is_json, type_name};
use crate::decode::testing::*;
use crate::decode::{DecoderSettings, FormatSettings, ProtobufMessage, UnknownColumns};

fn order() -> ProtobufMessage {
    ProtobufMessage::find(&fixture("order.desc"), "nexus.test.Order").unwrap()
}

fn protobuf(columns: Vec<Field>, delimited: bool) -> DecoderSettings {
    settings(FormatSettings::Protobuf { message: order(), delimited }, columns)
}

fn declared(batch: &RecordBatch) -> RecordBatch {
    batch.project(&(0..order().columns().len()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn messages_of_another_tool_are_read_as_it_means_them() {
    let lines = framed(fixture("order.jsonl"));
    let (expected, decoded) = decode_chunk(settings(FormatSettings::Json, order().columns()), &lines);
    assert_eq!(decoded.rejects, []);

    let orders = hex_lines("order.hex");
    let given: Vec<(&str, &[u8])> = orders.iter().map(|order| ("7", order.as_slice())).collect();
    let single = DecoderSettings { offsets: OffsetKind::Sequence, ..protobuf(order().columns(), false) };
    let (rows, decoded) = decode_chunk(single, &records(&given));
    assert_eq!(decoded.rejects, []);
    assert_eq!(declared(&rows), declared(&expected));

    let (rows, decoded) = decode_chunk(protobuf(order().columns(), true), &framed(fixture("order.delimited")));
    assert_eq!((decoded.rejects.len(), declared(&rows)), (0, declared(&expected)));
    let offsets = texts(&rows, "_offset");
    assert_eq!(offsets[..3], ["1000", "1001", &(1002 + orders[1].len()).to_string()]);
}

#[test]
fn columns_are_typed_by_the_descriptor() {
    let columns: Vec<_> =
        order().columns().iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type(), is_json(f)))).collect();
    let line = "struct<sku: string, price: float64, inner: struct<state: string, depth: int32>>";
    let expected = format!(
        "id: int64, small: int32, zig: int64, fixed: uint32, big: uint64, ok: bool, ratio: float64, share: float32, \
         name: string, raw: binary, state: string, note: string, at: timestamp, took: string, count: int64, \
         tags: list<string>, numbers: list<int32>, stock: map<string, int64>, lines: list<{line}>, \
         by_number: map<string, {line}>, card: string, cash: {line}, more: json"
    );
    assert_eq!(columns.join(", "), expected);
}

#[test]
fn fields_that_no_column_or_descriptor_has_go_by_the_policy() {
    // Field 1 and field 900 as a number, field 901 twice as bytes.
    let data = b"\x08\x07\xa0\x38\x05\xaa\x38\x01a\xaa\x38\x01b\x58\x01";
    let decode = |unknown| {
        let settings = DecoderSettings { unknown, ..protobuf(vec![field("id", DataType::Int64)], false) };
        decode_chunk(settings, &records(&[("1", data)]))
    };
    let (rows, _) = decode(UnknownColumns::Rescue);
    assert_eq!(texts(&rows, "id"), ["7"]);
    assert_eq!(texts(&rows, "_rescued"), [r#"{"state":"PAID","900":5,"901":["YQ==","Yg=="]}"#]);
    assert_eq!(decode(UnknownColumns::Ignore).0.num_rows(), 1);
    assert_eq!(reasons(&decode(UnknownColumns::Reject).1), [r#"column "state" is not declared"#]);
}

#[test]
fn parts_of_a_message_are_read_as_one_and_of_a_value_the_last_counts() {
    // `cash` (22) in two parts: sku and price; `id` twice.
    let data = b"\x08\x07\x08\x09\xb2\x01\x03\x0a\x01a\xb2\x01\x09\x11\0\0\0\0\0\0\xf0\x3f";
    let columns = order().columns().into_iter().filter(|f| ["id", "cash"].contains(&f.name().as_str())).collect();
    let (rows, _) = decode_chunk(protobuf(columns, false), &records(&[("1", data)]));
    assert_eq!(
        (texts(&rows, "id")[0].as_str(), texts(&rows, "cash")[0].as_str()),
        ("9", "{sku: a, price: 1.0, inner: -}")
    );
}

#[test]
fn what_is_no_message_is_a_reject() {
    let cases: [(&[u8], &str); 7] = [
        (b"\x08", "it ends within a number"),
        (b"\x00\x00", "it has a field of number 0"),
        (b"\x0b", "a group of proto2"),
        (b"\x0f", "a field of wire type 7"),
        (b"\x4a\x09x", "it ends within a field"),
        (b"\x4a\x01\xff", "field name: it is not UTF-8"),
        (b"\x0d\0\0\0\0", "field id: its value has the wire type of another kind"),
    ];
    for (data, reason) in cases {
        let (_, decoded) = decode_chunk(protobuf(order().columns(), false), &records(&[("1", data)]));
        let found = reasons(&decoded);
        assert!(found.len() == 1 && found[0].contains(reason), "{reason}: {found:?}");
    }
    let mut nested = Vec::new();
    for _ in 0..300 {
        // A list value within a value of the struct's entry: `more.x` nested without end.
        let mut list = vec![0x0a];
        push(&mut list, &nested);
        nested = vec![0x32];
        push(&mut nested, &list);
    }
    let mut entry = b"\x0a\x01x\x12".to_vec();
    push(&mut entry, &nested);
    let mut fields = vec![0x0a];
    push(&mut fields, &entry);
    let mut bomb = vec![0xba, 0x01];
    push(&mut bomb, &fields);
    let (_, decoded) = decode_chunk(protobuf(order().columns(), false), &records(&[("1", &bomb)]));
    assert!(reasons(&decoded)[0].contains("nested more than 128 deep"), "{:?}", reasons(&decoded));
    // Two bytes a field.
    let many = b"\x52\x00".repeat(1_100_000);
    let settings = DecoderSettings { record_bytes_max: 4 << 20, ..protobuf(order().columns(), false) };
    let (_, decoded) = decode_chunk(settings, &records(&[("1", &many)]));
    assert!(reasons(&decoded)[0].contains("more than 1048576 fields"), "{:?}", reasons(&decoded));
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}

#[test]
fn a_cut_off_message_is_a_reject_behind_good_ones() {
    let whole = fixture("order.delimited");
    let (rows, decoded) = decode_chunk(protobuf(order().columns(), true), &framed(whole[..whole.len() - 1].to_vec()));
    assert_eq!((rows.num_rows(), decoded.rejects.len()), (39, 1));
    assert!(reasons(&decoded)[0].contains("ends within the message"));
}

#[test]
fn a_message_that_is_not_there_is_named_among_those_that_are() {
    let error = ProtobufMessage::find(&fixture("order.desc"), "Order").unwrap_err().to_string();
    assert!(error.contains("no message `Order`") && error.contains("nexus.test.Order"), "{error}");
    assert!(ProtobufMessage::find(b"{}", "Order").unwrap_err().to_string().contains("--include_imports"));
}

proptest! {
    #[test]
    fn no_bytes_are_more_than_rows_and_rejects(at: usize, xor: u8, cut: usize, delimited: bool) {
        let mut content = fixture("order.delimited");
        let len = content.len();
        content[at % len] ^= xor;
        content.truncate(len - cut % (len / 2));
        let (rows, decoded) = decode_chunk(protobuf(order().columns(), delimited), &framed(content));
        prop_assert!(rows.num_rows() + decoded.rejects.len() > 0);
    }
}
