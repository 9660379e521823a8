use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::batch::OffsetKind;
use crate::decode::testing::*;
use crate::decode::{DecoderSettings, FormatSettings, UnknownColumns, infer};

fn json_settings(columns: Vec<arrow::datatypes::Field>) -> DecoderSettings {
    settings(FormatSettings::Json, columns)
}

fn ids() -> DecoderSettings {
    json_settings(vec![field("id", DataType::Int64)])
}

#[test]
fn every_type_is_read() {
    let line = r#"{"b":true,"i8":-128,"i64":9223372036854775807,"u64":"18446744073709551615","f32":1.5,"f64":-0.0,
        "dec":12.3,"s":"a\n\u00e9\ud83d\ude00","bin":"Zm9v","d":"2013-01-02","t":"01:02:03.5",
        "ts":"2013-01-02T03:04:05.000006+01:00","l":[1,null,3],"st":{"y":"z","x":1},"m":{"k":1,"l":2,"k":3},
        "j": {"any": [1, "x"]} } {"s":12.50,"i64":1.0,"j":"text","l":[],"b":"F"} {}"#;
    let (batch, decoded) = decode_chunk(json_settings(every_type()), &framed(line));
    assert_eq!(reasons(&decoded), [""; 0]);
    let first: Vec<String> = every_type().iter().map(|f| texts(&batch, f.name()).remove(0)).collect();
    assert_eq!(
        first,
        [
            "true",
            "-128",
            "9223372036854775807",
            "18446744073709551615",
            "1.5",
            "-0.0",
            "12.30",
            "a\né😀",
            "666f6f",
            "2013-01-02",
            "01:02:03.500",
            "2013-01-02T02:04:05.000006Z",
            "[1, -, 3]",
            "{x: 1, y: z}",
            "{l: 2.0, k: 3.0}",
            r#"{"any": [1, "x"]}"#
        ]
    );
    assert_eq!(texts(&batch, "s")[1..], ["12.50", "-"]);
    assert_eq!(texts(&batch, "i64")[1..], ["1", "-"]);
    assert_eq!(texts(&batch, "j")[1..], [r#""text""#, "-"]);
    assert_eq!(texts(&batch, "l")[1..], ["[]", "-"]);
    assert_eq!(texts(&batch, "b")[1..], ["false", "-"]);
    assert_eq!(texts(&batch, "_rescued"), ["-", "-", "-"]);
    assert_eq!(texts(&batch, "_source"), ["flights"; 3]);
    assert_eq!(texts(&batch, "_partition"), ["2013.json"; 3]);
    assert_eq!(texts(&batch, "_offset")[0], "1000");
    assert_eq!(texts(&batch, "_ingested_at")[0], "1970-01-01T00:00:00.000007Z");
}

#[test]
fn a_misfit_is_rejected_with_its_reason() {
    let cases = [
        (r#"{"f64":"abc"}"#, r#"column "f64": "abc" is not a float64"#),
        (r#"{"i8":128}"#, r#"column "i8": 128 is out of range for int8"#),
        (r#"{"i64":1.5}"#, r#"column "i64": 1.5 is not an int64"#),
        (r#"{"u64":-1}"#, r#"column "u64": -1 is out of range for uint64"#),
        (r#"{"f64":1e309}"#, r#"column "f64": 1e309 is out of range for float64"#),
        (r#"{"dec":1.234}"#, r#"column "dec": 1.234 has more digits behind the point than decimal(10, 2)"#),
        (r#"{"b":1}"#, r#"column "b": 1 is not a bool"#),
        (r#"{"i64":true}"#, r#"column "i64": true is not an int64"#),
        (
            r#"{"ts":1700000000}"#,
            r#"column "ts": 1700000000 is a number, not a timestamp; declare int64 and convert it in SQL"#,
        ),
        (r#"{"d":"2013-02-29"}"#, r#"column "d": "2013-02-29" is not a date"#),
        (r#"{"bin":"%"}"#, r#"column "bin": "%" is not a binary"#),
        (r#"{"s":{"a":1}}"#, r#"column "s": {"a":1} is not a string"#),
        (r#"{"l":5}"#, r#"column "l": 5 is not a list<int64>"#),
        (r#"{"l":[1,"x"]}"#, r#"column "l[]": "x" is not an int64"#),
        (r#"{"st":{"x":"?"}}"#, r#"column "st.x": "?" is not an int64"#),
        (r#"{"st":[]}"#, r#"column "st": [] is not a struct<x: int64, y: string>"#),
        (r#"{"m":{"k":"?"}}"#, r#"column "m[]": "?" is not a float64"#),
        (r#"[1]"#, "1 is not a JSON object"),
        (r#"null"#, "null is not a JSON object"),
        (r#"{"j":tru}"#, "the record is not JSON: something that is no value at byte 5"),
        (r#"{"s":"\ud800"}"#, "the record is not JSON: an escape that stands for no character at byte 6"),
        (r#"{"s":"\ude00\ud83d"}"#, "the record is not JSON: an escape that stands for no character at byte 6"),
        (r#"{"zz":"\x"}"#, "the record is not JSON: an escape that stands for no character at byte 7"),
        ("{\"s\":\"a\tb\"}", "the record is not JSON: a control character within a string at byte 7"),
        (r#"{"i64":01}"#, "the record is not JSON: neither \",\" nor \"}\" behind a field at byte 8"),
        (r#"{"i64":1,}"#, "the record is not JSON: no field name in quotes at byte 9"),
        (r#"{"i64":"#, "the record is not JSON: the end in the middle of a value at byte 7"),
    ];
    for (document, reason) in cases {
        let content = format!("{{\"i64\":1}}\n{document}\n{{\"i64\":2}}\n");
        let (batch, decoded) = decode_chunk(json_settings(every_type()), &framed(content));
        assert_eq!(texts(&batch, "i64"), ["1", "2"], "{document}");
        let found = reasons(&decoded)[0].replace("it ends in the middle, at", "the end in the middle of a value at");
        assert_eq!(found, reason, "{document}");
        assert_eq!(decoded.rejects[0].raw, document.trim_start_matches('[').trim_end_matches(']').as_bytes());
        assert_eq!(decoded.rejects[0].offset, if document.starts_with('[') { "1011" } else { "1010" });
    }
    let long = format!(r#"{{"f64":"{}"}}"#, "ä".repeat(80));
    let (_, decoded) = decode_chunk(json_settings(every_type()), &framed(long));
    assert_eq!(reasons(&decoded), [format!("column \"f64\": \"{}…\" is not a float64", "ä".repeat(50))]);
}

#[test]
fn one_bad_document_never_costs_another() {
    let cases: [(&str, &[&str], &[&str]); 12] = [
        ("{\"id\":1}\ngarbage\nmore\n{\"id\":2}", &["1", "2"], &["garbage", "more"]),
        ("{\"id\":1}\n{\"id\":2,\"x\":\n{\"id\":3}\n", &["1", "3"], &["{\"id\":2,\"x\":"]),
        ("{\"id\":2,\"x\":\n{\"id\":3}\n{\"id\":4}", &["3", "4"], &["{\"id\":2,\"x\":"]),
        ("{\"id\":1}{\"id\":?}{\"id\":3}", &["1", "3"], &["{\"id\":?}"]),
        ("{\"id\":1}\n{\"id\":?} {\"id\":3}\n{\"id\":4}", &["1", "3", "4"], &["{\"id\":?}"]),
        ("[{\"id\":1},{\"id\":\"]},{\"},{\"id\":3}]", &["1", "3"], &["{\"id\":\"]},{\"}"]),
        (
            "[\n  {\n    \"id\": 1\n  },\n  {\n    \"id\": ?, \"n\": {}\n  },\n  {\n    \"id\": 3\n  }\n]",
            &["1", "3"],
            &["{\n    \"id\": ?, \"n\": {}\n  }"],
        ),
        (
            "{\n  \"id\": {\n    \"id\": 9\n  ]\n}\n{\n  \"id\": 3\n}\n",
            &["3"],
            &["{\n  \"id\": {\n    \"id\": 9\n  ]\n}"],
        ),
        ("{\n  \"id\": {\n    \"id\": 9\n  \n{\n  \"id\": 3\n}\n", &["3"], &["{\n  \"id\": {\n    \"id\": 9"]),
        ("{\"id\":1}}\n{\"id\":2}", &["1", "2"], &["}"]),
        ("{\"id\":\"unclosed}\n{\"id\":2}\n", &["2"], &["{\"id\":\"unclosed}"]),
        ("[1,{\"id\":2},tru,{\"id\":3}]", &["2", "3"], &["1", "tru,"]),
    ];
    for (content, good, bad) in cases {
        let (batch, decoded) = decode_chunk(ids(), &framed(content));
        assert_eq!(texts(&batch, "id"), good, "{content}");
        let raws: Vec<_> = decoded.rejects.iter().map(|reject| str::from_utf8(&reject.raw).unwrap()).collect();
        assert_eq!(raws, bad, "{content}");
    }
}

#[test]
fn of_a_field_that_comes_twice_the_last_counts() {
    let content = r#"{"id":1,"x":1,"id":2,"x":{"id":3}} {"id":"?","id":5} {"id":7,"id":null}"#;
    let (batch, decoded) = decode_chunk(ids(), &framed(content));
    assert_eq!(texts(&batch, "id"), ["2", "-"]);
    assert_eq!(texts(&batch, "_rescued"), [r#"{"x":{"id":3}}"#, "-"]);
    let many: Vec<_> = (0..100).map(|at| field(&format!("f{at}"), DataType::Int64)).collect();
    let content: Vec<String> = (0..200).map(|at| format!("\"f{}\":{at},\"x{}\":{at}", at % 100, at % 50)).collect();
    let (batch, _) = decode_chunk(json_settings(many), &framed(format!("{{{}}}", content.join(","))));
    assert_eq!((texts(&batch, "f0"), texts(&batch, "f99")), (vec!["100".into()], vec!["199".into()]));
    let rescued: Value = serde_json::from_str(&texts(&batch, "_rescued")[0]).unwrap();
    assert_eq!(rescued, Value::from_iter((0..50).map(|at| (format!("x{at}"), Value::from(at + 150)))));
    assert_eq!(texts(&batch, "_rescued")[0].matches(':').count(), 50);
    assert_eq!(reasons(&decoded), [r#"column "id": "?" is not an int64"#]);
}

#[test]
fn unknown_fields_go_by_the_policy() {
    let content = r#"{"a\"b":[1, 2],"st":{"z":{},"x":1},"i64":1,"e":null}"#;
    let with = |unknown| DecoderSettings { unknown, ..json_settings(every_type()) };
    let (batch, _) = decode_chunk(with(UnknownColumns::Rescue), &framed(content));
    assert_eq!(texts(&batch, "_rescued"), [r#"{"a\"b":[1, 2],"st.z":{},"e":null}"#]);
    assert_eq!(texts(&batch, "st"), ["{x: 1, y: -}"]);
    let (batch, _) = decode_chunk(with(UnknownColumns::Ignore), &framed(content));
    assert_eq!(batch.num_rows(), 1);
    assert!(batch.column_by_name("_rescued").is_none());
    let (_, decoded) = decode_chunk(with(UnknownColumns::Reject), &framed(content));
    assert_eq!(reasons(&decoded), [r#"column "a\"b" is not declared"#]);
    assert_eq!(decoded.rejects[0].raw, content.as_bytes());
}

#[test]
fn not_null_holds_at_every_depth() {
    let inner = DataType::Struct(vec![field("x", DataType::Int64).with_nullable(false)].into());
    let columns = vec![field("id", DataType::Int64).with_nullable(false), field("st", inner)];
    let content = r#"{"id":1,"st":null} {"st":{"x":1}} {"id":null} {"id":4,"st":{}} {"id":5,"st":{"x":5}}"#;
    let (batch, decoded) = decode_chunk(json_settings(columns), &framed(content));
    assert_eq!(texts(&batch, "id"), ["1", "5"]);
    assert_eq!(
        reasons(&decoded),
        [
            r#"column "id": is missing, but declared not null"#,
            r#"column "id": is null, but declared not null"#,
            r#"column "st.x": is missing, but declared not null"#
        ]
    );
}

#[test]
fn records_keep_their_offset_and_key() {
    let chunk = records(&[
        ("49", b"\xEF\xBB\xBF{\"id\":1}\n\n{\"id\":2}"),
        ("50", b"[{\"id\":3},{\"id\":\"x\"}]"),
        ("51", b" \n"),
        ("52", b"{\"id\":4"),
        ("53", b"{\"id\":5}"),
    ]);
    let (batch, decoded) = decode_chunk(DecoderSettings { offsets: OffsetKind::Sequence, ..ids() }, &chunk);
    assert_eq!(texts(&batch, "id"), ["1", "2", "3", "5"]);
    assert_eq!(texts(&batch, "_offset"), ["49", "49", "50", "53"]);
    assert_eq!(texts(&batch, "_key"), ["key 49", "key 49", "key 50", "key 53"]);
    let rejects: Vec<_> = decoded.rejects.iter().map(|r| (r.offset.as_str(), r.reason.as_str())).collect();
    assert_eq!(
        rejects,
        [
            ("50", "column \"id\": \"x\" is not an int64"),
            ("51", "the record holds no JSON document"),
            ("52", "the record is not JSON: it ends in the middle, at byte 7"),
        ]
    );
}

#[test]
fn depth_and_size_have_limits() {
    let nested = |depth: usize| format!("{{\"id\":1,\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for (content, rows) in [(nested(127), 1), (nested(128), 0), (nested(200_000), 0)] {
        let content = format!("{content}\n{{\"id\":2}}");
        let (batch, decoded) = decode_chunk(ids(), &framed(content));
        assert_eq!((batch.num_rows(), decoded.rejects.len()), (rows + 1, 1 - rows));
    }
    let hostile = "{\n".repeat(100_000);
    let (_, decoded) = decode_chunk(ids(), &framed(hostile));
    assert!(!decoded.rejects.is_empty());

    let content = format!("{{\"id\":1,\"x\":\"{}\"}}\n{{\"id\":2}}", "x".repeat(100_000));
    let (batch, decoded) = decode_chunk(DecoderSettings { record_bytes_max: 1000, ..ids() }, &framed(content));
    assert_eq!(texts(&batch, "id"), ["2"]);
    assert_eq!(reasons(&decoded), ["the record has 100015 bytes, more than the limit of 1000 (limits.record)"]);
    assert_eq!(decoded.rejects[0].raw.len(), 64 << 10);
}

#[test]
fn bytes_that_are_no_text_cost_only_their_document() {
    let (batch, decoded) =
        decode_chunk(ids(), &framed(&b"{\"id\":1}\n{\"id\":2,\"x\":\"\xFF\"}\n{\"id\":3,\"x\":\"\xC3\xA4\"}"[..]));
    assert_eq!(texts(&batch, "id"), ["1", "3"]);
    assert_eq!(reasons(&decoded), ["the record is not UTF-8"]);
}

#[test]
fn batches_are_cut_at_the_bound() {
    let content: String = (0..25).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let (batch, decoded) = decode_chunk(DecoderSettings { batch_rows_max: 10, ..ids() }, &framed(content));
    assert_eq!(decoded.batches.iter().map(|b| b.num_rows()).collect::<Vec<_>>(), [10, 10, 5]);
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values().to_vec(), (0..25).collect::<Vec<_>>());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[a-z]{0,30}", Just("\u{1F600}\"\\/\u{8}\u{c}\n\r\t\u{0}\u{ffff}".to_string())]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..5).prop_map(Value::from_iter),
        ]
    })
}

prop_compose! {
    fn document()(
        id in prop::option::of(prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), -9_i64..10]),
        f in prop::option::of(prop_oneof![any::<f64>().prop_filter("finite", |f| f.is_finite()), Just(-0.0), Just(1e308)]),
        s in prop::option::of(text()),
        l in prop::option::of(prop::collection::vec(any::<i64>(), 0..5)),
        m in prop::option::of(prop::collection::btree_map(text(), any::<i32>(), 0..4)),
        j in prop::option::of(any_json()),
        x in prop::option::of(any_json()),
        order in Just(["id", "f", "s", "l", "m", "j", "x"]).prop_shuffle(),
    ) -> Value {
        let all = json!({"id": id, "f": f, "s": s, "l": l, "m": m, "j": j, "x": x});
        let kept = order.iter().filter(|name| !all[**name].is_null() || **name < "k");
        Value::Object(kept.map(|name| (name.to_string(), all[*name].clone())).collect::<Map<_, _>>())
    }
}

fn oracle_columns() -> Vec<arrow::datatypes::Field> {
    vec![
        field("id", DataType::Int64),
        field("f", DataType::Float64),
        field("s", DataType::Utf8View),
        field("l", list(DataType::Int64)),
        field("m", map(DataType::Int32)),
        json_field("j"),
    ]
}

/// Renders documents as sources deliver them.
fn render(documents: &[Value], form: usize) -> String {
    let lines = documents.iter().map(Value::to_string);
    match form {
        0 => lines.collect::<Vec<_>>().join("\n"),
        1 => lines.collect::<Vec<_>>().join(""),
        2 => lines.collect::<Vec<_>>().join("\r\n\r\n"),
        3 => Value::from(documents.to_vec()).to_string(),
        4 => serde_json::to_string_pretty(documents).unwrap(),
        _ => documents.iter().map(|d| serde_json::to_string_pretty(d).unwrap() + "\n").collect(),
    }
}

proptest! {
    #[test]
    fn values_agree_with_serde_json(documents in prop::collection::vec(document(), 0..6), form in 0_usize..6) {
        let (batch, decoded) = decode_chunk(json_settings(oracle_columns()), &framed(render(&documents, form)));
        prop_assert_eq!(reasons(&decoded), [""; 0]);
        prop_assert_eq!(batch.num_rows(), documents.len());
        for (row, document) in documents.iter().enumerate() {
            let is = |name: &str| batch.column_by_name(name).unwrap().slice(row, 1);
            let valid = |name: &str| is(name).is_valid(0);
            let want = |name: &str| Some(&document[name]).filter(|value| !value.is_null());
            prop_assert_eq!(valid("id").then(|| is("id").as_primitive::<Int64Type>().value(0)), want("id").map(|v| v.as_i64().unwrap()));
            prop_assert_eq!(valid("f").then(|| is("f").as_primitive::<Float64Type>().value(0).to_bits()), want("f").map(|v| v.as_f64().unwrap().to_bits()));
            prop_assert_eq!(valid("s").then(|| is("s").as_string_view().value(0).to_string()), want("s").map(|v| v.as_str().unwrap().to_string()));
            let items = valid("l").then(|| is("l").as_list::<i32>().value(0).as_primitive::<Int64Type>().values().to_vec());
            prop_assert_eq!(items.map(Value::from), want("l").cloned());
            let entries = valid("m").then(|| is("m").as_map().value(0));
            let entries = entries.map(|e| {
                let values = e.column(1).as_primitive::<arrow::datatypes::Int32Type>();
                e.column(0).as_string_view().iter().zip(values).map(|(k, v)| (k.unwrap().to_string(), Value::from(v))).collect::<Map<_, _>>()
            });
            prop_assert_eq!(entries.map(Value::from), want("m").cloned());
            let parsed = |name: &str| valid(name).then(|| serde_json::from_str::<Value>(is(name).as_string_view().value(0)).unwrap());
            prop_assert_eq!(parsed("j"), want("j").cloned());
            prop_assert_eq!(parsed("_rescued"), document.get("x").map(|x| json!({"x": x})));
        }
    }

    #[test]
    fn any_bytes_are_rows_or_rejects(
        documents in prop::collection::vec(document(), 1..5), form in 0_usize..6,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 0..6),
        as_record: bool,
    ) {
        let mut bytes = render(&documents, form).into_bytes();
        for (at, byte, edit) in &edits {
            if bytes.is_empty() { break }
            let at = at.index(bytes.len());
            match edit { 0 => bytes[at] = *byte, 1 => bytes.insert(at, *byte), _ => { bytes.remove(at); } }
        }
        let chunk = if as_record { records(&[("7", &bytes)]) } else { framed(bytes.clone()) };
        let (batch, decoded) = decode_chunk(json_settings(oracle_columns()), &chunk);
        // Every byte that is more than white space or an array's punctuation belongs to a row or a reject.
        prop_assert!(edits.len() > 2 || batch.num_rows() + decoded.rejects.len() > 0);
        if edits.is_empty() {
            prop_assert_eq!((batch.num_rows(), decoded.rejects.len()), (documents.len(), 0));
        }
    }

    #[test]
    fn a_broken_line_leaves_the_others_alone(
        documents in prop::collection::vec(document(), 2..6), broken: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let broken = broken.index(documents.len());
        let lines: Vec<Vec<u8>> = documents.iter().enumerate().map(|(at, document)| {
            let mut line = document.to_string().into_bytes();
            for (place, byte) in edits.iter().filter(|(_, byte)| at == broken && *byte != b'\n') {
                let place = place.index(line.len());
                line[place] = *byte;
            }
            line
        }).collect();
        let whole = decode_chunk(json_settings(oracle_columns()), &framed(lines.join(&b'\n'))).0;
        let offsets = whole.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().values().to_vec();
        let mut offset = 1000;
        for (at, line) in lines.iter().enumerate() {
            prop_assert!(at == broken || offsets.contains(&offset), "line {} of {:?}", at, lines);
            offset += line.len() as i64 + 1;
        }
    }

    #[test]
    fn where_content_is_cut_makes_no_difference(
        documents in prop::collection::vec(document(), 2..8), form in 0_usize..3, cut: prop::sample::Index, batch_rows_max in 1_usize..5,
    ) {
        let cut = cut.index(documents.len());
        let head = render(&documents[..cut], form);
        let tail = render(&documents[cut..], form);
        let settings = || DecoderSettings { batch_rows_max, ..json_settings(oracle_columns()) };
        let (whole, _) = decode_chunk(settings(), &framed(head.clone() + &tail));
        let (first, _) = decode_chunk(settings(), &framed(head.clone()));
        let second = crate::batch::Payload::Framed { offset: 1000 + head.len() as u64, bytes: tail.into(), header: None };
        let (second, _) = decode_chunk(settings(), &chunk(second));
        prop_assert_eq!(whole.slice(0, cut), first);
        prop_assert_eq!(whole.slice(cut, documents.len() - cut), second);
    }

    #[test]
    fn inferred_columns_fit_what_they_were_inferred_from(documents in prop::collection::vec(document(), 1..6), form in 0_usize..6) {
        let content = render(&documents, form);
        let Ok(columns) = infer(&FormatSettings::Json, content.as_bytes()) else {
            prop_assert!(documents.iter().all(|document| document.as_object().unwrap().is_empty()));
            return Ok(());
        };
        let (batch, decoded) = decode_chunk(json_settings(columns), &framed(content));
        prop_assert_eq!(reasons(&decoded), [""; 0]);
        prop_assert_eq!(texts(&batch, "_rescued"), vec!["-"; documents.len()]);
    }
}
