use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field as Column};
use bytes::Bytes;
use proptest::prelude::*;

use crate::batch::{OffsetKind, Payload};
use crate::decode::testing::*;
use crate::decode::{DecoderSettings, FormatSettings, UnknownColumns, infer};

fn csv_settings(header: bool, columns: Vec<Column>) -> DecoderSettings {
    let nulls = vec!["NA".to_string()];
    settings(FormatSettings::Csv { header, delimiter: b',', quote: b'"', nulls }, columns)
}

fn flights() -> Vec<Column> {
    vec![field("carrier", DataType::Utf8View), field("flight", DataType::Int64), field("delay", DataType::Float64)]
}

#[test]
fn columns_are_found_by_the_header() {
    let content = "\u{FEFF}flight,gate,carrier\r\n 1 ,A1,UA\r\n2,,\"\"\r\n\r\nNA,\"x,\"\"y\"\"\nz\",\n";
    let (batch, decoded) = decode_chunk(csv_settings(true, flights()), &framed(content));
    assert_eq!(reasons(&decoded), [""; 0]);
    assert_eq!(texts(&batch, "flight"), ["1", "2", "-"]);
    assert_eq!(texts(&batch, "carrier"), ["UA", "", "-"]);
    assert_eq!(texts(&batch, "delay"), ["-", "-", "-"]);
    assert_eq!(texts(&batch, "_rescued"), [r#"{"gate":"A1"}"#, r#"{"gate":null}"#, r#"{"gate":"x,\"y\"\nz"}"#]);
    assert_eq!(texts(&batch, "_offset"), ["1024", "1035", "1044"]);

    let reject = DecoderSettings { unknown: UnknownColumns::Reject, ..csv_settings(true, flights()) };
    let (_, decoded) = decode_chunk(reject, &framed(content));
    assert_eq!(reasons(&decoded), [r#"column "gate" is not declared"#; 3]);
    let ignore = DecoderSettings { unknown: UnknownColumns::Ignore, ..csv_settings(true, flights()) };
    assert_eq!(decode_chunk(ignore, &framed(content)).0.num_rows(), 3);
}

#[test]
fn the_header_comes_with_a_later_chunk() {
    let later = chunk(Payload::Framed {
        offset: 5000,
        bytes: Bytes::from_static(b"UA,3\n"),
        header: Some(Bytes::from_static(b"\xEF\xBB\xBFcarrier,flight\r\n")),
    });
    let (batch, _) = decode_chunk(csv_settings(true, flights()), &later);
    assert_eq!((texts(&batch, "carrier"), texts(&batch, "flight")), (vec!["UA".into()], vec!["3".into()]));
    assert_eq!(texts(&batch, "_offset"), ["5000"]);
}

#[test]
fn a_misfit_is_rejected_with_its_reason() {
    let content = "UA,1,abc\nUA,1\nUA,1,2,3\nUA,1.5,2\n\"UA,5,6\nUA,7,8";
    let (batch, decoded) = decode_chunk(csv_settings(false, flights()), &framed(content));
    assert_eq!(texts(&batch, "flight"), ["7"]);
    assert_eq!(
        reasons(&decoded),
        [
            r#"column "delay": "abc" is not a float64"#,
            "the record has 2 fields, but the declared columns are 3",
            "the record has 4 fields, but the declared columns are 3",
            r#"column "flight": "1.5" is not an int64"#,
            "the record has a quote that is never closed",
        ]
    );
    assert_eq!(decoded.rejects[0].raw, &b"UA,1,abc"[..]);
    assert_eq!(decoded.rejects[1].offset, "1009");
    assert_eq!(decoded.rejects[4].raw, &b"\"UA,5,6"[..]);
}

#[test]
fn every_type_is_read() {
    let content = "true,-128,1,2,1.5,NaN,12.3,s,raw,2013-01-02,01:02:03,2013-01-02 03:04:05,\"[1,2]\",\"{\"\"x\"\":1,\
                   \"\"z\"\":2}\",\"{\"\"k\"\":1}\",\"\"\"j\"\"\"\n,,,,,,,,,,,,,,,\n,,,,,,,,,,,,[1,,,,\n,,,,,,,,,,,,[1] 2,,,\n";
    let (batch, decoded) = decode_chunk(csv_settings(false, every_type()), &framed(content));
    let first: Vec<String> = every_type().iter().map(|f| texts(&batch, f.name()).remove(0)).collect();
    assert_eq!(
        first,
        [
            "true",
            "-128",
            "1",
            "2",
            "1.5",
            "NaN",
            "12.30",
            "s",
            "726177",
            "2013-01-02",
            "01:02:03",
            "2013-01-02T03:04:05Z",
            "[1, 2]",
            "{x: 1, y: -}",
            "{k: 1.0}",
            r#""j""#
        ]
    );
    assert_eq!(texts(&batch, "_rescued"), [r#"{"st.z":2}"#, "-"]);
    assert!(every_type().iter().all(|f| texts(&batch, f.name())[1] == "-"));
    assert_eq!(
        reasons(&decoded),
        [
            "the record has 17 fields, but the declared columns are 16",
            r#"column "l": "[1] 2" is not JSON: something behind the value at byte 4"#
        ]
    );
}

#[test]
fn records_are_small_files() {
    let chunk = records(&[("1", b"flight\n1\n2\n"), ("2", b"flight\n"), ("3", b"flight,carrier\n3,\xFF\n")]);
    let (batch, decoded) =
        decode_chunk(DecoderSettings { offsets: OffsetKind::Sequence, ..csv_settings(true, flights()) }, &chunk);
    assert_eq!(texts(&batch, "flight"), ["1", "2"]);
    assert_eq!(texts(&batch, "_offset"), ["1", "1"]);
    assert_eq!(
        reasons(&decoded),
        [
            "the record holds no line behind its header",
            "column \"carrier\": \"\u{FFFD}\" is not a string: it is not UTF-8"
        ]
    );
}

/// Reads CSV with csv-core, as an oracle.
fn oracle(bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut reader = csv_core::Reader::new();
    let (mut rest, mut records) = (bytes, Vec::new());
    let (mut out, mut ends) = (vec![0; bytes.len() + 1], vec![0; bytes.len() + 1]);
    loop {
        let (mut written, mut fields) = (0, 0);
        loop {
            let (result, read, out_len, ends_len) = reader.read_record(rest, &mut out[written..], &mut ends[fields..]);
            rest = &rest[read..];
            written += out_len;
            fields += ends_len;
            match result {
                csv_core::ReadRecordResult::Record => break,
                csv_core::ReadRecordResult::End => return records,
                _ => {}
            }
        }
        let starts = std::iter::once(0).chain(ends[..fields].iter().copied());
        records.push(starts.zip(&ends[..fields]).map(|(start, end)| out[start..*end].to_vec()).collect());
    }
}

proptest! {
    #[test]
    fn fields_agree_with_csv_core(content in "[ab,\"\n é]{0,60}", with_nulls: bool) {
        let columns = vec![field("a", DataType::Utf8View), field("b", DataType::Utf8View)];
        let mut settings = csv_settings(false, columns);
        settings.format = FormatSettings::Csv {
            header: false, delimiter: b',', quote: b'"', nulls: if with_nulls { vec!["a".into()] } else { vec![] },
        };
        let (batch, decoded) = decode_chunk(settings, &framed(content.clone()));
        if reasons(&decoded).iter().any(|reason| reason.contains("never closed")) {
            // Here csv-core makes one field of all that follows.
            return Ok(());
        }
        let (good, bad): (Vec<_>, Vec<_>) = oracle(content.as_bytes()).into_iter().partition(|fields| fields.len() == 2);
        prop_assert_eq!(decoded.rejects.len(), bad.len());
        prop_assert_eq!(batch.num_rows(), good.len());
        for (at, name) in ["a", "b"].into_iter().enumerate() {
            let is = batch.column_by_name(name).unwrap().as_string_view();
            for (is, want) in is.iter().zip(&good) {
                let want = std::str::from_utf8(&want[at]).unwrap();
                prop_assert_eq!(is.unwrap_or(if with_nulls && want == "a" { "a" } else { "" }), want);
                prop_assert!(!(with_nulls && is == Some("a")));
            }
        }
    }

    #[test]
    fn any_bytes_are_rows_or_rejects(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b",\"\n\r1a{}[]"[..])], 0..200), header: bool) {
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.iter().all(|&byte| byte == b'\r')).count();
        let (batch, decoded) = decode_chunk(csv_settings(header, every_type()), &framed(bytes.clone()));
        let records = batch.num_rows() + decoded.rejects.len();
        prop_assert!(records <= lines);
        if !bytes.contains(&b'"') && !header {
            prop_assert_eq!(records, lines);
        }
    }

    #[test]
    fn inferred_columns_fit_what_they_were_inferred_from(
        lines in prop::collection::vec(prop::array::uniform2("[0-9]{0,3}|-?[0-9]{1,20}|[-+.0-9eE]{1,6}|20[0-9]{2}-1[0-2]-[0-3][0-9]|2013-01-01[T ]12:30(:15)?(Z|)|true|FALSE|x|NA"), 1..6),
    ) {
        let content: String = lines.iter().map(|[a, b]| format!("{a},{b}\n")).collect();
        let settings = csv_settings(true, vec![]);
        let content = format!("a,b\n{content}");
        let columns = infer(&settings.format, content.as_bytes()).unwrap();
        let (batch, decoded) = decode_chunk(DecoderSettings { columns, ..settings }, &framed(content.clone()));
        prop_assert_eq!(reasons(&decoded), [""; 0]);
        prop_assert_eq!(batch.num_rows(), lines.len());
    }
}
