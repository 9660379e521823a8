//! Traces and logs: what they tell, and what they do not.

use serde_json::Value;

use crate::lineage::taking_posts;
use crate::world::{World, run_args};

/// What must be in no log and no trace: values of rows that are good, that do not decode, that break a rule and that a
/// database refuses, and secrets.
const UNTOLD: [&str; 5] = ["anna@example.org", "not-a-number", "too-hot", "twice-the-key", "s3cret"];

const PIPELINE: &str = "name: told
lake: ./lake
commit: { every: 100ms }
sources:
  readings:
    file: { path: in.json }
    format: json
    columns: { id: int64 not null, mail: string, note: string, temp_c: float64, ts: timestamp }
    event_time: { column: ts }
bronze:
  readings: { from: readings }
silver:
  readings:
    sql: SELECT id, mail, note, temp_c, ts FROM bronze.readings
    expect: { sane: { that: temp_c < 50 } }
    postgres: { url: pg, table: readings, append: true }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, count(*) AS n, max(mail) AS mail FROM silver.readings GROUP BY 1
secrets:
  pg: { env: DATABASE_URL }
";

fn world() -> World {
    let world = World::new().with_postgres();
    let good =
        "{\"id\":1,\"mail\":\"anna@example.org\",\"note\":\"n\",\"temp_c\":20,\"ts\":\"2026-11-01T00:00:00Z\"}\n";
    let twice = good.replace("\"n\"", "\"twice-the-key\"");
    let hot = good.replace("\"id\":1", "\"id\":2").replace("20", "90").replace("\"n\"", "\"too-hot\"");
    let bad = good.replace("\"id\":1", "\"id\":\"not-a-number\"");
    world.file("in.json", &[good, &twice, &hot, &bad].concat());
    world.file("told.yaml", PIPELINE);
    // The second row of a key is refused, with words that hold it.
    world
        .change_postgres("CREATE TABLE readings (id int8 UNIQUE, mail text, note text, temp_c float8, ts timestamptz)");
    world
}

fn untold(what: &str, text: &str) {
    for secret in UNTOLD {
        assert!(!text.contains(secret), "{secret} is in {what}:\n{text}");
    }
}

#[test]
fn an_epoch_is_a_trace_and_its_stages_are_spans() {
    let mut world = world();
    let (port, told) = taking_posts();
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}"));
    world.set("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret%20key");
    world.set("OTEL_SERVICE_NAME", "telling");
    world.set("RUST_LOG", "info,nexus=trace,nexus_operators=trace");
    world.set("NEXUS_LOG_FORMAT", "json");
    let pipeline = world.path("told.yaml");
    let report = world.path("report.json").display().to_string();
    let finished = world.nexus(&run_args(&pipeline, &report, &[])).expect_code(0);

    let requests: Vec<_> = told.try_iter().collect();
    assert!(!requests.is_empty(), "no trace was delivered");
    for (head, body) in &requests {
        assert!(head.starts_with("post /v1/traces http/1.1") && head.contains("api-key: s3cret key"), "{head}");
        untold("a trace", body);
    }
    let first: Value = serde_json::from_str(&requests[0].1).expect("a trace is JSON");
    let resource = first["resourceSpans"][0]["resource"]["attributes"].to_string();
    assert!(resource.contains("\"service.name\"") && resource.contains("telling"), "{resource}");
    let spans = first["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("a trace has spans");
    let names: Vec<_> = spans.iter().filter_map(|span| span["name"].as_str()).collect();
    for name in [
        "epoch",
        "cut readings",
        "decode readings",
        "transform gold.hours",
        "prepare silver.readings/parquet",
        "record told",
        "commit silver.readings/postgres",
    ] {
        assert!(names.contains(&name), "{name} is no span: {names:?}");
    }
    let root = &spans[0];
    let nanos = |span: &Value, key: &str| span[key].as_str().and_then(|text| text.parse::<u64>().ok()).expect("a time");
    for span in &spans[1..] {
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&root["traceId"], &root["spanId"]));
        assert!(nanos(span, "startTimeUnixNano") >= nanos(root, "startTimeUnixNano"), "{span}");
        assert!(nanos(span, "endTimeUnixNano") <= nanos(root, "endTimeUnixNano"), "{span}");
    }

    // The logs are JSON, a line each, and tell no more.
    untold("the logs", &finished.stderr);
    assert!(finished.stderr.lines().count() > 0, "nothing is logged");
    for line in finished.stderr.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(event[field].is_string(), "{field} is missing: {line}");
        }
    }
    // That all of it came is in the report: nothing was left out because it was never met.
    let report: Value = serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("it is JSON");
    assert_eq!(report["sources"]["readings"]["quarantined"], 1, "{report}");
    assert_eq!(report["tables"]["silver.readings"]["quarantined"], 1, "{report}");
    assert_eq!(report["sinks"]["silver.readings"]["quarantine"]["rows"], 2, "{report}");
}

#[test]
fn a_collector_that_is_away_holds_nobody_up() {
    let mut world = world();
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{}", crate::servers::free_port()));
    let pipeline = world.path("told.yaml").display().to_string();
    let said = world.nexus(&["run", &pipeline]).expect_code(0).said();
    assert!(said.contains("traces are dropped until they are taken again"), "{said}");
    world.set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let refused = world.nexus(&["run", &pipeline]).expect_code(1).said();
    assert!(refused.contains("OTEL_EXPORTER_OTLP_PROTOCOL is grpc"), "{refused}");
    world.set("OTEL_SDK_DISABLED", "true");
    world.set("NEXUS_LOG_FORMAT", "xml");
    let refused = world.nexus(&["run", &pipeline]).expect_code(1).said();
    assert!(refused.contains("it may be text or json"), "{refused}");
}
