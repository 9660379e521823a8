//! Several mistakes at once, and mistakes that must not lead to others.

use super::{SMALL, read, read_with, wrong};

#[test]
fn five_mistakes_are_five_diagnostics() {
    let file = r#"name: flights
lake: ./lake
commit: { every: ten seconds }
sources:
  departures:
    file: { path: data/*.csv, folow: true }
    columns:
      carrier: strng not null
bronze:
  departures: { from: departures }
silver:
  departures:
    sql: SELECT * FROM bronze.departures
    expct:
      sane: { that: dep_delay < 2000, else: quarantin }
"#;
    let expected = r#"error[N0105]: `ten seconds` is not a length of time
 --> x.yaml:3:18
  |
3 | commit: { every: ten seconds }
  |                  ^^^^^^^^^^^
  = write a number and a unit, such as `500ms`, `10s`, `5m`, `2h`, `1d`

error[N0102]: unknown key `folow` in `file`
 --> x.yaml:6:31
  |
6 |     file: { path: data/*.csv, folow: true }
  |                               ^^^^^
  = did you mean `follow`?

error[N0401]: there is no type `strng`
 --> x.yaml:8:16
  |
8 |       carrier: strng not null
  |                ^^^^^
  = did you mean `string`?

error[N0102]: unknown key `expct` in a table
  --> x.yaml:14:5
   |
14 |     expct:
   |     ^^^^^
   = did you mean `expect`?

error[N0104]: `quarantin` is not a choice of `else`
  --> x.yaml:15:45
   |
15 |       sane: { that: dep_delay < 2000, else: quarantin }
   |                                             ^^^^^^^^^
   = did you mean `quarantine`? available: `keep`, `drop`, `quarantine`, `fail`"#;
    assert_eq!(wrong(file), expected);
}

#[test]
fn a_misspelt_section_is_one_mistake() {
    let shown = wrong(&SMALL.replace("sources:", "souces:"));
    assert_eq!(shown.matches("error[").count(), 1, "{shown}");
    assert!(shown.contains("did you mean `sources`?"), "{shown}");
}

#[test]
fn what_is_broken_still_has_its_name() {
    let shown = wrong(&SMALL.replace("{ path: orders.json }", "orders.json"));
    assert_eq!(shown.matches("error[").count(), 1, "{shown}");
    assert!(shown.contains("`file` must be a mapping, and is the text `orders.json`"), "{shown}");
}

#[test]
fn shapes_are_told_apart_by_what_is_written() {
    let format = |format: &str| SMALL.replace("orders.json }", &format!("orders.json }}, format: {format}"));
    for good in ["json", "csv", "{ csv: }", "{ csv: { delimiter: \";\", header: true } }", "parquet"] {
        read(&format(good)).unwrap_or_else(|e| panic!("{good}: {e}"));
    }
    for (bad, message) in [
        ("cvs", "`cvs` is not a choice of `format`"),
        ("{ cvs: {} }", "did you mean `csv`?"),
        ("{ json: {} }", "`json` takes no value"),
        ("{ csv: {}, json: {} }", "`format` holds exactly one key, not 2"),
        ("[csv]", "`format` must be one of several choices, and is a list"),
        ("", "`format` must be one of several choices, and is nothing"),
        ("{ csv: { delimiter: \"||\" } }", "`delimiter` is one character, not 2"),
    ] {
        let shown = wrong(&format(bad));
        assert!(shown.contains(message) && shown.matches("error[").count() == 1, "{bad}: {shown}");
    }
    let lake = |lake: &str| SMALL.replace("./lake", lake);
    assert!(wrong(&lake("[a, b]")).contains("`lake` must be a text or a mapping, and is a list"));
    assert!(wrong(&lake("{ silver: x }")).contains("the key `bronze` is missing in `lake`"));
    assert!(wrong(&(SMALL.to_owned() + "encryption: kms\n")).contains("`kms` needs a value"));
    read(&lake("12")).unwrap();
}

#[test]
fn an_empty_section_is_empty() {
    read(&(SMALL.to_owned() + "silver:\ncommit:\n")).unwrap();
    assert!(wrong(&(SMALL.to_owned() + "tests:\n")).contains("`tests` must be a list, and is nothing"));
}

#[test]
fn a_connection_url_is_not_shown() {
    let shown = wrong(&SMALL.replace(
        "{ from: orders }",
        "{ from: orders, postgres: { url: \"postgres://u:hunter2@h/d\", table: t, append: true } }",
    ));
    assert!(shown.contains("error[N0306]") && shown.contains("url: ***"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_reference_table_is_no_input_and_a_near_table_is_named() {
    let shown = wrong(&(SMALL.replace("from: orders", "from: rates") + "reference:\n  rates: { path: rates.csv }\n"));
    assert!(shown.contains("`rates` is a reference table"), "{shown}");
    let shown = wrong(&(SMALL.replace("  orders: { from", "  paid: { from") + "silver:\n  all: { from: paid }\n"));
    assert!(shown.contains("did you mean `bronze.paid`?"), "{shown}");
}

#[test]
fn several_overrides_are_checked_at_once() {
    let text = SMALL.replace("./lake", "${lake}") + "params: { lake: ./lake, on: true, x: 1.5 }\n";
    let shown = read_with(&text, &[("on", "yes"), ("x", "2"), ("lak", "s")]).unwrap_err().to_string();
    assert!(shown.contains("error[N0203]: `--set on=yes` does not give true or false"), "{shown}");
    assert!(shown.contains("error[N0202]: `--set lak=s`"), "{shown}");
    assert_eq!(shown.matches("error[").count(), 2, "{shown}");
}

#[test]
fn a_cycle_is_reported_once() {
    let tables = "silver:\n  a: { from: silver.c }\n  b: { from: silver.c }\n  c: { from: silver.d }\n  d: { from: silver.c }\n  e: { from: silver.e }\n";
    let shown = wrong(&(SMALL.to_owned() + tables));
    assert!(shown.contains("the table reads itself: silver.c <- silver.d <- silver.c"), "{shown}");
    assert!(shown.contains("the table reads itself: silver.e <- silver.e"), "{shown}");
    assert_eq!(shown.matches("error[N0305]").count(), 2, "{shown}");
}

#[test]
fn test_cases_name_sources_and_tables() {
    let case =
        "tests:\n  - name: one\n    given: { order: [] }\n    expect: { bronze.order: [], orders: { rows: 1 } }\n";
    let shown = wrong(&(SMALL.to_owned() + case));
    assert_eq!(shown.matches("error[N0303]").count(), 3, "{shown}");
    assert!(shown.contains("did you mean `bronze.orders`?"), "{shown}");
}

#[test]
fn a_source_is_checked_as_a_whole() {
    let source = |source: &str| {
        format!("name: trial\nlake: ./lake\nsources:\n  orders: {source}\nbronze:\n  orders: {{ from: orders }}\n")
    };
    for (bad, code) in [
        ("{}", "N0402"),
        ("{ file: { path: s3://b/x } }", "N0407"),
        ("{ file: { path: \"\" } }", "N0407"),
        ("{ file: { path: x }, format: { csv: { header: false } } }", "N0403"),
        ("{ kinesis: { stream: \"\" }, format: raw }", "N0407"),
        ("{ kinesis: { stream: s }, format: parquet, columns: { a: json } }", "N0404"),
        ("{ kinesis: { stream: s }, columns: {} }", "N0403"),
        ("{ s3: { queue: uploads, allow: [s3://b/] }, format: raw }", "N0407"),
        ("{ s3: { queue: https://q, allow: [] }, format: raw }", "N0408"),
        ("{ s3: { queue: https://q, allow: [\"s3:///x\"] }, format: raw }", "N0408"),
        ("{ s3: { queue: https://q, allow: [s3://b], bucket_owner: 12 }, format: raw }", "N0106"),
        ("{ s3: { queue: https://q, allow: [s3://b], in_flight: 0 }, format: raw }", "N0603"),
        ("{ s3: { queue: https://q, allow: [s3://b], visibility: 1s }, format: raw }", "N0603"),
        ("{ s3: { queue: https://q, allow: [s3://b], visibility: 13h }, format: raw }", "N0603"),
        ("{ s3: { queue: https://q, allow: [s3://b], object: 0B }, format: raw }", "N0603"),
        ("{ s3: { queue: https://q, allow: [s3://b], on_poison: { receives: 0 } }, format: raw }", "N0603"),
        ("{ s3: { queue: https://q, allow: [s3://b/x], reconcile: 1h }, format: raw }", "N0408"),
        ("{ s3: { queue: https://q, allow: [s3://b/x/], reconcile: 10d }, format: raw }", "N0603"),
        (
            "{ file: { path: x }, format: { avro: { schema: '{\"type\": \"record\", \"name\": \"A\", \"fields\": []}' } }, columns: { a: json } }",
            "N0411",
        ),
        ("{ kinesis: { stream: s }, format: { avro: { schema_file: no.avsc } } }", "N0411"),
        ("{ kinesis: { stream: s }, format: { avro: { encoding: confluent } }, columns: { a: json } }", "N0411"),
        ("{ kinesis: { stream: s }, format: { avro: { schema_id: 7 } }, columns: { a: json } }", "N0411"),
        ("{ kinesis: { stream: s }, format: avro }", "N0403"),
        ("{ kinesis: { stream: s }, format: { protobuf: { descriptor: no.desc, message: M } } }", "N0411"),
        ("{ kinesis: { stream: s }, format: cloudwatch_logs, columns: { mesage: string } }", "N0411"),
        ("{ kinesis: { stream: s }, format: avro, columns: { a: json }, on_unknown_column: evolve }", "N0410"),
        ("{ generate: { columns: {} } }", "N0409"),
        ("{ generate: { columns: { a: { choice: [] } } } }", "N0409"),
        ("{ generate: { columns: { a: { time: { start: now, step: 1s } } } } }", "N0406"),
        ("{ generate: { columns: { a: sequence }, rate: 0 } }", "N0603"),
        ("{ generate: { columns: { a: sequence } }, format: json }", "N0404"),
        ("{ generate: { columns: { a: sequence } }, event_time: { column: a } }", "N0405"),
        ("{ file: { path: x }, columns: { a: int8 }, event_time: { column: b } }", "N0405"),
        ("{ file: { path: x }, columns: { _offset: int8 } }", "N0302"),
    ] {
        let shown = wrong(&source(bad));
        assert!(shown.starts_with(&format!("error[{code}]")) && shown.matches("error[").count() == 1, "{bad}: {shown}");
    }
}
