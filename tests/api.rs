//! The API of `nexus run --listen`: it follows its document, masks what it is told to mask, takes orders, and lets in
//! whom it should.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::endless::counted;
use crate::servers::{free_port, script, test_env};
use crate::serving::{metrics, request};
use crate::world::{Running, World};

/// A token as `openssl rand -hex 16` makes one.
pub const TOKEN: &str = "8c2f4f0e6a7b4d0f9a5be3d1c6f70a12";

/// Writes a pipeline over rows of which some break a rule, with a place on the map, a column that is masked, and one whose
/// values would be markup in a page.
pub fn watched_pipeline(world: &World, lake: &Path) -> PathBuf {
    world.file(
        "watched.yaml",
        &format!(
            "name: watched
description: Readings of devices that somebody looks at.
lake: {}
commit: {{ every: 300ms }}
sources:
  ticks:
    generate:
      rate: 2000
      seed: 1
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 10ms }} }}
        site: {{ choice: [reno, \"<b>yuma</b>\", bend] }}
        mail: {{ choice: [anna@example.org, otto@example.org] }}
        lat: {{ number: {{ min: 38, max: 44 }} }}
        lon: {{ number: {{ min: -122, max: -111 }} }}
        temp_c: {{ number: {{ min: -10, max: 45 }} }}
    event_time: {{ column: ts, lateness: 1s }}
    mask: [mail]
bronze:
  ticks: {{ from: ticks }}
silver:
  ticks:
    description: Readings that can be trusted.
    sql: SELECT n, ts, site, upper(mail) AS who, lat, lon, temp_c FROM bronze.ticks
    expect:
      sane_temperature: {{ that: temp_c < 44 }}
    mask: [n]
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS ticks, max(who) AS who FROM silver.ticks GROUP BY 1
",
            lake.display()
        ),
    )
}

/// Starts the pipeline, and waits until an epoch is committed.
pub fn start(world: &World, address: &str, more: &[&str]) -> (Running, u16) {
    let pipeline = watched_pipeline(world, &world.path("lake"));
    let port = free_port();
    let listen = format!("{address}:{port}");
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8"), "--listen", &listen];
    let mut running = world.start(&[&args[..], more].concat());
    let bearer = format!("Authorization: Bearer {TOKEN}");
    running.until("an epoch is committed", || {
        // Where nobody may see the API, the first rows are enough.
        let Some((status, _, body)) = request(port, "GET /api/v1/epochs", &[&bearer]) else { return false };
        body.contains("\"total_s\"")
            || status == 403 && request(port, "GET /ready", &[]).is_some_and(|(ready, ..)| ready == 200)
    });
    (running, port)
}

fn get(port: u16, path: &str) -> Value {
    let (status, _, body) = request(port, &format!("GET /api/v1/{path}"), &[]).expect("the API is served");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path} is no JSON ({e}): {body}"))
}

fn post(port: u16, order: &str, headers: &[&str]) -> (u16, String) {
    let headers = [&["Content-Length: 0"], headers].concat();
    let answer = request(port, &format!("POST /api/v1/{order}"), &headers);
    answer.map(|(status, _, body)| (status, body)).expect("the API is served")
}

#[test]
fn answers_follow_the_document_and_orders_are_obeyed() {
    let world = World::new();
    let (mut running, port) = start(&world, "127.0.0.1", &[]);
    // The document by a linter, each answer by the document, the metrics by the client of Prometheus.
    let checked = script("api.py", &[&format!("http://127.0.0.1:{port}"), "docs/metrics.md"], &[]);
    println!("{checked}");

    promtool_has_nothing_to_say(port);

    let pipeline = get(port, "pipeline");
    assert_eq!((&pipeline["name"], &pipeline["state"]), (&json!("watched"), &json!("running")));
    let edge = json!({ "from": "bronze.ticks", "to": "silver.ticks", "channel": "bronze.ticks to silver.ticks" });
    assert!(pipeline["edges"].as_array().is_some_and(|edges| edges.contains(&edge)), "{pipeline}");
    running.until("rates are known", || get(port, "tables")["tables"][0]["rows_per_s"].as_f64() > Some(0.0));
    let rules = get(port, "quarantine");
    let rule = &rules["rules"][0];
    assert_eq!((&rule["of"], &rule["rule"]), (&json!("silver.ticks"), &json!("sane_temperature")));
    assert!(rule["rows"].as_u64() > Some(0) && rule["recent"][0]["reason"].is_string(), "{rules}");

    // What is masked is in no sample, whatever was made of it; what a table alone masks is in those below it.
    for (table, masked, shown) in [
        ("bronze.ticks", ["mail"].as_slice(), "n"),
        ("silver.ticks", &["n", "who"], "site"),
        ("gold.seconds", &["who"], "ticks"),
    ] {
        running.until("there are rows", || get(port, &format!("tables/{table}/sample"))["rows"][0].is_object());
        let sample = get(port, &format!("tables/{table}/sample"));
        assert!(!sample.to_string().to_lowercase().contains("example.org"), "{sample}");
        let row = &sample["rows"][0];
        assert!(masked.iter().all(|column| row[column].is_null()) && !row[shown].is_null(), "{table}: {row}");
    }
    let (status, _, body) = request(port, "GET /api/v1/tables/gold.none/sample", &[]).expect("the API is served");
    assert_eq!((status, body.as_str()), (404, "{\"error\":\"there is no table gold.none\"}"));

    let rows = || get(port, "sources")["sources"][0]["rows"].as_u64().expect("rows are counted");
    assert_eq!(post(port, "pause", &[]), (200, "{\"state\":\"paused\"}".to_owned()));
    assert_eq!(metrics(port)["nexus_paused"], 1.0);
    // What was read goes on to its commit; then nothing moves.
    running.until("all is committed", || {
        get(port, "tables")["tables"][0]["fates"]["out"].as_u64() == Some(rows())
            && get(port, "pipeline")["waiting_s"] == 0.0
    });
    let paused = rows();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(rows(), paused, "a paused source reads");
    assert_eq!(post(port, "resume", &[]).0, 200);
    running.until("it reads again", || rows() > paused);
    assert_eq!(post(port, "drain", &[]), (200, "{\"state\":\"draining\"}".to_owned()));
    running.wait().expect_code(0);
    counted(&world.path("lake"));
}

/// Has the linter of Prometheus look at the metrics, where it could be installed.
fn promtool_has_nothing_to_say(port: u16) {
    let own = test_env().join("bin/promtool");
    let program = if own.exists() { own } else { "promtool".into() };
    let mut command = Command::new(program);
    let started =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut linter) = started.spawn() else {
        println!("there is no promtool here");
        return;
    };
    let (_, _, page) = request(port, "GET /metrics", &[]).expect("the metrics are served");
    let mut to = linter.stdin.take().expect("its input is piped");
    to.write_all(page.as_bytes()).expect("it reads its input");
    drop(to);
    let output = linter.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "promtool says:\n{}", String::from_utf8_lossy(&said));
}

#[test]
fn pages_of_other_sites_reach_nothing() {
    let world = World::new();
    let (running, port) = start(&world, "127.0.0.1", &[]);
    let status = |what: &str, headers: &[&str]| request(port, what, headers).map(|(status, ..)| status);
    assert_eq!(status("GET /api/v1/tables", &["Host: rebound.example.org"]), Some(421));
    assert_eq!(status("GET /metrics", &["Host: rebound.example.org"]), Some(421));
    assert_eq!(status("GET /health", &["Host: 10.1.2.3"]), Some(200));
    assert_eq!(post(port, "drain", &["Origin: https://example.org"]).0, 403);
    assert_eq!(post(port, "drain", &["Sec-Fetch-Site: cross-site"]).0, 403);
    assert_eq!(status("GET /api/v1/drain", &[]), Some(405));
    assert_eq!(get(port, "pipeline")["state"], json!("running"));
    let (_, head, _) = request(port, "GET /", &[]).expect("the console is served");
    for part in ["content-security-policy: default-src 'none'", "nosniff", "same-origin", "no-store"] {
        assert!(head.contains(part), "{part}: {head}");
    }
    running.signal("TERM");
    running.wait().expect_code(0);
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let mut world = World::new();
    let (running, port) = start(&world, "0.0.0.0", &[]);
    let status =
        |path: &str, headers: &[&str]| request(port, &format!("GET {path}"), headers).map(|(status, ..)| status);
    let (refused, _, why) = request(port, "GET /api/v1/tables", &[]).expect("the port is open");
    assert!(refused == 403 && why.contains("--token-file or NEXUS_TOKEN"), "{refused} {why}");
    assert_eq!([status("/", &[]), status("/metrics", &[])], [Some(403); 2]);
    let open = ["/health", "/ready"].map(|path| status(path, &["Host: nexus.internal"]));
    assert_eq!(open, [Some(200); 2]);
    running.signal("TERM");
    running.wait().expect_code(0);

    let file = world.file("token", &format!("{TOKEN}\n"));
    let (running, port) =
        start(&world, "0.0.0.0", &["--token-file", file.to_str().expect("the tests' paths are UTF-8")]);
    let status =
        |path: &str, headers: &[&str]| request(port, &format!("GET {path}"), headers).map(|(status, ..)| status);
    let right = format!("Authorization: Bearer {TOKEN}");
    for path in ["/api/v1/tables", "/metrics"] {
        let wrong = "Authorization: Bearer 8c2f4f0e6a7b4d0f9a5be3d1c6f70a13";
        assert_eq!(
            [status(path, &[]), status(path, &[wrong]), status(path, &[&right])],
            [Some(401), Some(401), Some(200)]
        );
    }
    assert_eq!([status("/health", &[]), status("/ready", &[]), status("/", &[])], [Some(200); 3]);

    // `nexus top` takes the token as the run does; and shows the run.
    let address = format!("127.0.0.1:{port}");
    let refused = world.nexus(&["top", &address, "--once"]).expect_code(1).said();
    assert!(refused.contains("refuses: send the token"), "{refused}");
    world.set("NEXUS_TOKEN", TOKEN);
    let frame = world.nexus(&["top", &address, "--once"]).expect_code(0).stdout;
    for part in
        ["watched  running, ready", "gold.seconds", "SOURCE", "HELD UP", "EPOCH", "silver.ticks: sane_temperature"]
    {
        assert!(frame.contains(part), "{part} is not in the frame:\n{frame}");
    }
    running.signal("TERM");
    running.wait().expect_code(0);
    let nobody = world.nexus(&["top", &address, "--once"]).expect_code(1).said();
    assert!(nobody.contains("no run answers on"), "{nobody}");
    let nowhere = world.nexus(&["top", "rubbish", "--once"]).expect_code(1).said();
    assert!(nowhere.contains("`rubbish` is no address"), "{nowhere}");
    world.set("NEXUS_TOKEN", "short");
    let short = world.nexus(&["top", &address, "--once"]).expect_code(1).said();
    assert!(short.contains("openssl rand"), "{short}");
}

/// `make api-fuzz` runs it: requests that schemathesis makes up find no failure.
#[test]
fn schemathesis_finds_nothing() {
    let Some(program) = std::env::var_os("NEXUS_TEST_SCHEMATHESIS") else { return };
    let examples = std::env::var("NEXUS_TEST_EXAMPLES").unwrap_or_else(|_| "20".to_owned());
    let world = World::new();
    let (running, port) = start(&world, "127.0.0.1", &[]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                  unsupported_method";
    let mut command = Command::new(program);
    command.args(["run", &format!("http://127.0.0.1:{port}/api/v1/openapi.json"), "--checks", checks]);
    // To drain would end the run.
    command.args(["--exclude-operation-id", "drain", "--max-examples", &examples]).current_dir(world.path(""));
    let output = command.output().expect("could not start schemathesis");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(output.status.success(), "schemathesis has found something:\n{said}");
    running.signal("TERM");
    running.wait().expect_code(0);
}
