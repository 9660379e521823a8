use std::io::Write;

use arrow::datatypes::{DataType, Field, Fields};

use crate::batch::OffsetKind;
use crate::decode::testing::*;
use crate::decode::{DecoderSettings, FormatSettings, UnknownColumns, cloudwatch_columns};

fn cloudwatch(columns: Vec<Field>) -> DecoderSettings {
    DecoderSettings { offsets: OffsetKind::Sequence, ..settings(FormatSettings::CloudWatchLogs, columns) }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_log_event_is_a_row_and_a_control_message_is_none() {
    let (data, control) = (fixture("cloudwatch-data.json.gz"), fixture("cloudwatch-control.json.gz"));
    let (rows, decoded) =
        decode_chunk(cloudwatch(cloudwatch_columns()), &records(&[("1:0", &data), ("1:1", &control), ("2", &data)]));
    assert_eq!((rows.num_rows(), decoded.rejects.len(), decoded.skipped), (6, 0, 1));
    assert_eq!(texts(&rows, "_offset"), ["1:0", "1:0", "1:0", "2", "2", "2"]);
    assert_eq!(texts(&rows, "owner")[0], "111111111111");
    assert_eq!(texts(&rows, "log_group")[0], "CloudTrail/logs");
    assert_eq!(texts(&rows, "log_stream")[0], "111111111111_CloudTrail/logs_us-east-1");
    assert_eq!(texts(&rows, "subscription_filters")[0], "[Destination]");
    assert_eq!(texts(&rows, "id")[2], "31953106606966983378809025079804211143289615424292");
    assert_eq!(texts(&rows, "timestamp")[1], "2015-05-28T15:27:35.001Z");
    assert!(texts(&rows, "message")[0].starts_with(r#"{"eventVersion": "1.03""#));
    assert_eq!(texts(&rows, "_rescued"), ["-"; 6]);
}

#[test]
fn a_message_is_read_as_the_type_of_its_column() {
    let user = DataType::Struct(Fields::from(vec![field("type", DataType::Utf8View), field("n", DataType::Int64)]));
    let inner = Fields::from(vec![field("eventVersion", DataType::Utf8View), field("userIdentity", user)]);
    let columns = vec![field("message", DataType::Struct(inner))];
    let (rows, decoded) = decode_chunk(cloudwatch(columns), &records(&[("1", &fixture("cloudwatch-data.json.gz"))]));
    assert_eq!(decoded.rejects, []);
    assert_eq!(texts(&rows, "message")[2], "{eventVersion: 1.03, userIdentity: {type: Root, n: 2}}");
}

#[test]
fn a_bad_event_is_rejected_alone_and_can_be_redriven() {
    let envelope = br#"{"messageType":"DATA_MESSAGE","owner":"1","logGroup":"g","logStream":"s","logEvents":[
        {"id":"a","timestamp":1,"message":"{\"n\":1}"} , {"id":"b","timestamp":2,"message":"n\":1},{"},
        {"id":"c","timestamp":3,"message":"{\"n\":3}","extractedFields":{"x":"y"}}]}"#;
    let columns = || vec![field("id", DataType::Utf8View), json_field("message"), json_field("extracted_fields")];
    let (rows, decoded) = decode_chunk(cloudwatch(columns()), &records(&[("7", &gzip(envelope))]));
    assert_eq!(
        (texts(&rows, "id"), texts(&rows, "extracted_fields")),
        (vec!["a".into(), "c".into()], vec!["-".into(), r#"{"x":"y"}"#.into()])
    );
    let reject = &decoded.rejects[0];
    assert!(decoded.rejects.len() == 1 && reject.reason.contains("it is not JSON"), "{decoded:?}");
    let plain = cloudwatch(vec![field("id", DataType::Utf8View), field("message", DataType::Utf8View)]);
    let (rows, _) = decode_chunk(plain, &records(&[("7", &reject.raw)]));
    assert_eq!((texts(&rows, "id"), texts(&rows, "message")), (vec!["b".into()], vec!["n\":1},{".into()]));
}

#[test]
fn envelopes_stand_back_to_back_in_objects() {
    let data = r#"{"messageType":"DATA_MESSAGE","logEvents":[{"id":"a"},{"id":"b"}]}"#;
    let content = format!("{data}{{\"messageType\":\"CONTROL_MESSAGE\"}}\n{data}");
    let settings = DecoderSettings {
        unknown: UnknownColumns::Ignore,
        ..settings(FormatSettings::CloudWatchLogs, vec![field("id", DataType::Utf8View)])
    };
    let (rows, decoded) = decode_chunk(settings, &framed(content));
    assert_eq!((texts(&rows, "id").concat(), decoded.skipped, decoded.rejects.len()), ("abab".to_owned(), 1, 0));
}

#[test]
fn what_is_no_envelope_is_a_reject() {
    let bomb = gzip(&vec![b' '; 2 << 20]);
    let cases: [(&[u8], &str); 8] = [
        (b"\x1f\x8b\x08", "broken gzip"),
        (&bomb, "unpacks to more than 1048576 bytes"),
        (b"", "no JSON document"),
        (b"{\"messageType\":", "it is no envelope"),
        (b"[1]", "it is no envelope"),
        (br#"{"messageType":"OTHER"}"#, "its messageType is \"OTHER\""),
        (br#"{"messageType":"DATA_MESSAGE"}"#, "it has no logEvents"),
        (br#"{"messageType":"DATA_MESSAGE","logEvents":[7]}"#, "it is no log event"),
    ];
    for (data, reason) in cases {
        let (_, decoded) = decode_chunk(cloudwatch(cloudwatch_columns()), &records(&[("1", data)]));
        let found = reasons(&decoded);
        assert!(found.len() == 1 && found[0].contains(reason), "{reason}: {found:?}");
    }
}
