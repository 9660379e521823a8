//! The example of the documentation, and where its paths lead.

use std::path::{Path, PathBuf};

use nexus_operators::aws::AwsSettings;
use nexus_operators::secret::SecretRef;
use serde_json::json;

use super::{FLIGHTS, SMALL, read, read_with};
use crate::spec::columns::fields;
use crate::spec::model::{
    Aggregated, Expected, Format, Given, KinesisMode, OnDataLoss, Otherwise, Roles, UnknownColumn,
};
use crate::spec::source::SourceText;
use crate::spec::units::{ByteSize, Span};
use crate::spec::validate::validate;
use crate::spec::{Tier, json_schema, load, parse, yaml};

#[test]
fn the_example_loads_without_a_warning() {
    let loaded = read(FLIGHTS).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let spec = &loaded.spec;
    assert_eq!((spec.commit.every, spec.commit.bytes), (Span::from_secs(10), ByteSize::mib(128)));
    let departures = &spec.sources["departures"];
    let columns: Vec<&str> = departures.columns.as_ref().unwrap().0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(columns, ["year", "carrier", "dep_delay", "time_hour"]);
    let fields = fields(departures.columns.as_ref().unwrap()).unwrap();
    assert_eq!(fields.iter().map(|f| f.is_nullable()).collect::<Vec<_>>(), [true, false, true, false]);
    assert!(matches!(&departures.format, Some(Format::Csv(csv)) if csv.header && csv.nulls == ["NA"]));
    assert_eq!(departures.on_unknown_column, UnknownColumn::Rescue);
    assert_eq!(spec.silver["departures"].expect["sane_delay"].otherwise, Otherwise::Quarantine);
    assert_eq!(spec.gold["hourly_delays"].postgres.as_ref().unwrap().key, ["hour", "origin"]);
    let case = &spec.tests[0];
    assert!(matches!(&case.expect["silver.departures"], Expected::Rows(rows) if rows.is_empty()));
    assert!(matches!(&case.expect["bronze.departures"], Expected::Count(count) if count.rows == 2));
}

#[test]
fn the_schema_takes_the_example() {
    let source = SourceText::new("flights.yaml", FLIGHTS);
    let validated = validate(&yaml::parse(FLIGHTS, &source).unwrap(), &source);
    assert!(validated.wrong.is_empty(), "{:?}", validated.wrong);
    let keys = json_schema()["properties"].as_object().unwrap().len();
    assert_eq!(
        validated.value.unwrap().as_object().unwrap().len(),
        keys - 5,
        "all but state, encryption, table_format, aws and lineage"
    );
}

#[test]
fn every_key_that_the_documentation_names_is_there() {
    let loaded = read(
        r#"
name: every-key
description: 12
lake: { bronze: s3://b/x, silver: s3://s, gold: ./gold, vibranium: /v }
state: s3://b/state
encryption: { kms: alias/nexus }
commit: { every: 1.5s, bytes: 1GiB, rows: 1000000 }
limits: { memory: 1GiB, record: 1MiB, open_partitions: 8, spool: 1GiB }
aws:
  region: eu-central-1
  endpoints: { kinesis: "https://k.example", s3: "https://s3.example", secretsmanager: "https://m.example", sqs: "https://q.example", sts: "https://t.example" }
  role: { arn: "arn:aws:iam::111122223333:role/lake", external_id: x, session_name: all }
lineage: { url: "http://marquez:5000/api/v1/lineage", namespace: north, every: 5m }
sources:
  intake:
    kinesis: { stream: nexus-dev-intake, start: 2026-11-21T08:00:00Z, mode: fan_out, consumer: nexus, aggregated: never, on_data_loss: continue, role: arn:aws:iam::111122223333:role/intake }
    columns: { id: int64 not null, at: timestamp, tags: "map<string, list<int8>>" }
    on_unknown_column: reject
    event_time: { column: at, lateness: 2h, idle: 1m }
    errors: { at_most: 5 % }
  uploads:
    s3:
      queue: https://sqs.us-west-2.amazonaws.com/123456789012/nexus-dev-uploads
      allow: [ "s3://nexus-dev-landing/telemetry/" ]
      bucket_owner: 123456789012
      in_flight: 4
      visibility: 90s
      object: 5GiB
      on_poison: { message: fail, missing: retry, denied: retry, region: fail, too_large: quarantine, unreadable: quarantine, receives: 5 }
      role: [arn:aws:iam::111122223333:role/hub, { arn: "arn:aws:iam::444455556666:role/reader" }]
    format: raw
  lines: { file: { path: "in/**/*.csv.zst", follow: true }, format: csv }
  trial:
    generate:
      rows: 10
      rate: 5
      seed: 7
      columns:
        id: sequence
        n: { integer: { min: -5, max: 5 } }
        x: { number: { min: 0, max: 1 } }
        who: { choice: [a, 12, true] }
        at: { time: { start: 2026-01-01T00:00:00Z, step: 1s } }
    event_time: { column: at }
bronze:
  intake: { from: intake, compression: snappy, partition_by: [date(at), "hour(at)", id], order_by: [at desc nulls last], roll: { age: 5m }, parquet: { bloom: [tags], statistics: none } }
  uploads: { from: uploads, store: false }
  trial: { sql: SELECT * FROM trial, late: drop, unique: { key: [id], within: 7d, keep: newest, order_by: n } }
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', at) AS hour FROM trial GROUP BY 1
    late: { update: { within: 1d, else: drop } }
    errors: { at_most: 0.1%, in: 1h, of_at_least: 50, late: true }
gold:
  intake:
    description: The same.
    from: bronze.intake
    expect: { good: { that: id > 0, else: fail } }
    postgres: { url: pg, auth: rds_iam, role: arn:aws:iam::111122223333:role/db, table: t, schema: s, append: true, create: false }
secrets:
  pg: { aws_secrets_manager: { id: nexus/pg, key: url, role: [] } }
tests:
  - name: one
    given: { intake: [ { id: 1, at: null, tags: { a: [1] } } ] }
    expect: { gold.intake: [ { id: 1 } ] }
"#,
    );
    let loaded = loaded.unwrap_or_else(|e| panic!("{e}"));
    let roles = |own: Option<&Roles>| {
        let roles = loaded.aws(own).roles.into_iter();
        roles.map(|role| format!("{} {}", role.arn.rsplit('/').next().unwrap(), role.session_name)).collect::<Vec<_>>()
    };
    let spec = &loaded.spec;
    let kinesis = spec.sources["intake"].kinesis.as_ref().unwrap();
    assert_eq!(roles(None), ["lake all"]);
    assert_eq!(roles(kinesis.role.as_ref()), ["intake nexus-every-key"]);
    let chain = spec.sources["uploads"].s3.as_ref().unwrap().role.as_ref();
    assert_eq!(roles(chain), ["hub nexus-every-key", "reader nexus-every-key"]);
    let Some(SecretRef::AwsSecretsManager { aws, .. }) = loaded.secret_ref("pg") else { panic!("a secret of AWS") };
    assert!(aws.roles.is_empty() && aws.endpoints.len() == 5, "{aws:?}");
    let database = loaded.database(spec.gold["intake"].postgres.as_ref().unwrap());
    assert!(matches!(&database, Some(SecretRef::RdsToken { aws, .. }) if aws.roles.len() == 1), "{database:?}");
    assert_eq!(kinesis.start, "2026-11-21T08:00:00Z");
    assert_eq!((kinesis.mode, kinesis.consumer.as_deref()), (KinesisMode::FanOut, Some("nexus")));
    assert_eq!((kinesis.aggregated, kinesis.on_data_loss), (Aggregated::Never, OnDataLoss::Continue));
    assert_eq!(spec.sources["uploads"].s3.as_ref().unwrap().bucket_owner.as_deref(), Some("123456789012"));
    assert_eq!(spec.description.as_deref(), Some("12"));
    let Given::Records(rows) = &spec.tests[0].given["intake"] else { panic!("rows") };
    assert_eq!(json!(rows), json!([{ "id": 1, "at": null, "tags": { "a": [1] } }]));
}

#[test]
fn relative_paths_begin_at_the_file() {
    let loaded = read(FLIGHTS).unwrap();
    assert_eq!(loaded.source_glob("departures").unwrap(), "/srv/data/flights-2013-*.csv.gz");
    assert_eq!(loaded.reference_path("airports").unwrap(), "/srv/data/airports.csv");
    assert_eq!(loaded.lake_root(Tier::Gold), "/srv/lake");
    assert_eq!(loaded.state_root(), "/srv/lake/_nexus/flights");
    assert_eq!(loaded.given_path(0, 0, "departures"), Some(PathBuf::from("/srv/cases/cancelled.csv")));
    assert_eq!(loaded.secret_ref("pg"), Some(SecretRef::Env("DATABASE_URL".into())));
}

#[test]
fn paths_of_overrides_begin_at_the_current_folder() {
    let here = std::env::current_dir().unwrap();
    let loaded = read_with(FLIGHTS, &[("lake", "./out")]).unwrap();
    assert_eq!(Path::new(&loaded.lake_root(Tier::Bronze)), here.join("out"));
    assert_eq!(Path::new(&loaded.state_root()), here.join("out/_nexus/flights"));
    assert_eq!(loaded.source_glob("departures").unwrap(), "/srv/data/flights-2013-*.csv.gz");
    assert_eq!(read_with(FLIGHTS, &[("lake", "/abs")]).unwrap().lake_root(Tier::Gold), "/abs");
    assert_eq!(read_with(FLIGHTS, &[("lake", "s3://b/p")]).unwrap().state_root(), "s3://b/p/_nexus/flights");
    // A parameter behind the start of a path does not change where the path begins.
    let text = SMALL.replace("./lake", "./${env}/lake") + "params: { env: dev }\n";
    assert_eq!(read_with(&text, &[("env", "prod")]).unwrap().lake_root(Tier::Gold), "/srv/prod/lake");
}

#[test]
fn a_folder_with_brackets_is_not_a_glob() {
    let loaded = parse(SMALL, "x.yaml", Path::new("/srv/[a]"), &[]).unwrap();
    assert_eq!(loaded.source_glob("orders").unwrap(), "/srv/[[]a[]]/orders.json");
}

#[test]
fn each_tier_can_have_its_own_root() {
    let text = SMALL.replace("lake: ./lake", "lake: { bronze: s3://b/x/, gold: ./gold }");
    let loaded = read(&text).unwrap();
    assert_eq!(loaded.lake_root(Tier::Gold), "/srv/gold");
    assert_eq!(loaded.lake_root(Tier::Silver), "s3://b/x/");
    assert_eq!(loaded.state_root(), "s3://b/x/_nexus/trial");
}

#[test]
fn each_tier_and_table_can_be_kept_in_a_role_of_its_own() {
    let role = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
    let names = |aws: AwsSettings| -> Vec<String> {
        aws.roles.into_iter().map(|role| role.arn.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    let lake = format!("lake: {{ bronze: {{ path: \"${{at}}/x\", role: {} }}, gold: ./gold }}", role("raw"));
    let own = format!("from: orders, role: [{}, {}]", role("hub"), role("own"));
    let text = SMALL.replace("lake: ./lake", &lake).replace("from: orders", &own);
    let text = format!("{text}params: {{ at: ./lake }}\naws: {{ role: {} }}\n", role("base"));
    let loaded = read(&text).unwrap();
    assert_eq!(loaded.lake_root(Tier::Silver), "/srv/lake/x");
    assert_eq!(names(loaded.lake_aws(Tier::Bronze, None)), ["raw"]);
    assert_eq!(names(loaded.lake_aws(Tier::Silver, None)), ["raw"]);
    assert_eq!(names(loaded.lake_aws(Tier::Gold, None)), ["base"]);
    assert_eq!(names(loaded.lake_aws(Tier::Bronze, Some("orders"))), ["hub", "own"]);
    // The state lies in the bronze tier, if the file gives it no place.
    assert_eq!(names(loaded.state_aws()), ["raw"]);
    assert_eq!(names(read(&(text.clone() + "state: ./state\n")).unwrap().state_aws()), ["base"]);
    let kept = format!("{text}state: {{ path: ./state, role: [] }}\n");
    assert!(names(read(&kept).unwrap().state_aws()).is_empty());
    let here = std::env::current_dir().unwrap();
    let moved = read_with(&text, &[("at", "./out")]).unwrap();
    assert_eq!(Path::new(&moved.lake_root(Tier::Bronze)), here.join("out/x"));
}

#[test]
fn a_number_parameter_is_a_number_also_in_quotes() {
    let text = "params: { n: 10 }\nname: trial\nlake: ./lake\nsources:\n  orders:\n    generate: { rows: \"${n}\", columns: { id: sequence } }\nbronze:\n  orders: { from: orders }\n";
    let rows = |overrides: &[(&str, &str)]| {
        read_with(text, overrides).unwrap().spec.sources["orders"].generate.as_ref().unwrap().rows
    };
    assert_eq!((rows(&[]), rows(&[("n", "20")])), (Some(10), Some(20)));
}

#[test]
fn queries_in_files_take_parameters_and_lead_back_to_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(folder.path().join("q.sql"), "-- all\nSELECT ${columns} FROM orders WHERE x\n").unwrap();
    let text = SMALL.replace("{ from: orders }", "{ sql_file: q.sql }") + "params: { columns: \"a, b, c, d, e, f\" }\n";
    std::fs::write(&file, &text).unwrap();
    let loaded = load(&file, &[]).unwrap();
    let sql = "-- all\nSELECT a, b, c, d, e, f FROM orders WHERE x\n";
    assert_eq!(loaded.sql_of(Tier::Bronze, "orders"), Some(sql));
    let x = loaded.diagnostic_in_query((Tier::Bronze, "orders"), (2, 43), "N0303", "no column x", None);
    assert!(x.file.ends_with("q.sql"), "{x}");
    let place = x.place.unwrap();
    assert_eq!((place.line, place.column), (2, 37));
    assert_eq!(&place.source_line[36..37], "x");
    std::fs::write(folder.path().join("q.sql"), "SELECT\n  ${colums}").unwrap();
    let wrong = load(&file, &[]).unwrap_err().to_string();
    assert!(wrong.contains("q.sql:2:3\n") && wrong.contains("did you mean `columns`?"), "{wrong}");
}

#[test]
fn a_place_in_sql_leads_back_to_the_file() {
    let loaded = read(FLIGHTS).unwrap();
    let shown = loaded
        .diagnostic_in_query((Tier::Silver, "departures"), (3, 7), "N0303", "no column", Some("try another".into()))
        .to_string();
    let line = 1 + FLIGHTS.lines().position(|l| l.contains("WHERE dep_delay IS NOT NULL")).unwrap();
    assert!(shown.contains(&format!("x.yaml:{line}:13\n")), "{shown}");
    assert!(shown.contains("WHERE dep_delay IS NOT NULL"), "{shown}");
    let rule = ["silver", "departures", "expect", "sane_delay", "that"];
    let shown = loaded.diagnostic_in_text(&rule, (1, 11), "N0303", "m", None).to_string();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[3][lines[4].find('^').unwrap()..].starts_with("BETWEEN"), "{shown}");
}

#[test]
fn a_place_that_is_not_there_is_what_would_hold_it() {
    let loaded = read(FLIGHTS).unwrap();
    let place = |path: &[&str]| loaded.diagnostic_at(path, "N0303", "m", None).place.unwrap().source_line;
    assert_eq!(place(&["gold", "hourly_delays", "unique", "key"]), "  hourly_delays:");
    assert_eq!(place(&["nowhere"]), FLIGHTS.lines().next().unwrap());
    assert_eq!(place(&["silver", "departures", "partition_by", "0"]), "    partition_by: [origin]");
}

#[test]
fn the_files_own_line_ends_and_mark_do_not_matter() {
    let windows = format!("\u{feff}{}", FLIGHTS.replace('\n', "\r\n"));
    let loaded = read(&windows).unwrap();
    assert_eq!(loaded.spec.gold["hourly_delays"].sql, read(FLIGHTS).unwrap().spec.gold["hourly_delays"].sql);
}
