//! OpenLineage events: what they tell of a run, and that nobody waits for who takes them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{World, run_args};

/// Two sources, a reference table, and sinks of both kinds.
const PIPELINE: &str = "name: shop
lake: ./lake
commit: { every: 100ms }
lineage: { TARGET, every: 1s }
sources:
  orders:
    file: { path: in-*.json }
    format: json
    columns: { id: int64 not null, site: string, price: float64, ts: timestamp }
    event_time: { column: ts }
reference:
  sites: { path: sites.csv }
bronze:
  orders: { from: orders }
gold:
  days:
    sql: |
      SELECT date_bin(INTERVAL '1 day', o.ts) AS day, s.city, sum(o.price) AS worth, count(*) AS n
      FROM bronze.orders o JOIN sites s ON s.site = o.site GROUP BY 1, 2
    postgres: { url: pg, table: days, key: [day, city] }
secrets:
  pg: { env: DATABASE_URL }
";

fn world() -> World {
    let world = World::new().with_postgres();
    world.file("sites.csv", "site,city\ns0,Oslo\ns1,Bergen\n");
    let line = |id: usize| {
        format!(
            "{{\"id\":{id},\"site\":\"s{}\",\"price\":0.5,\"ts\":\"2026-11-0{}T00:00:00Z\"}}\n",
            id % 2,
            1 + id / 50
        )
    };
    world.file("in-1.json", &(0..100).map(line).collect::<String>());
    world
}

fn pipeline(world: &World, target: &str) -> String {
    world.file("shop.yaml", &PIPELINE.replace("TARGET", target)).display().to_string()
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("there are no events");
    text.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["eventType"].as_str().expect("an event has a type")).collect()
}

/// Every facet says who made it and where it is described.
fn check_facets(facets: &Value) {
    for (name, facet) in facets.as_object().expect("facets are a map") {
        let described = facet["_schemaURL"].as_str().unwrap_or_default();
        assert!(described.starts_with("https://openlineage.io/spec/facets/"), "{name}: {facet}");
        assert!(facet["_producer"].is_string(), "{name}: {facet}");
    }
}

#[test]
fn a_run_tells_what_it_reads_and_writes() {
    let world = world();
    let file = pipeline(&world, "file: runs/shop.jsonl, namespace: north");
    world.run(Path::new(&file), &[]);
    let events = events(&world.path("runs/shop.jsonl"));
    assert_eq!((kinds(&events)[0], kinds(&events)[events.len() - 1]), ("START", "COMPLETE"));
    for event in &events {
        assert_eq!(event["run"]["runId"], events[0]["run"]["runId"]);
        assert_eq!((&event["job"]["namespace"], &event["job"]["name"]), (&json!("north"), &json!("shop")));
        check_facets(&event["job"]["facets"]);
        for dataset in event["inputs"].as_array().into_iter().chain(event["outputs"].as_array()).flatten() {
            check_facets(&dataset["facets"]);
        }
    }
    let last = &events[events.len() - 1];
    assert_eq!(last["job"]["facets"]["jobType"]["processingType"], "BATCH");
    let path = |name: &str| json!(world.path(name).display().to_string());
    let named = |datasets: &Value| -> Vec<Value> {
        let datasets = datasets.as_array().expect("datasets are a list");
        datasets.iter().map(|dataset| json!([dataset["namespace"], dataset["name"]])).collect()
    };
    assert_eq!(named(&last["inputs"]), [json!(["file", path("in-*.json")]), json!(["file", path("sites.csv")])]);
    let (address, database) = world.env("DATABASE_URL").rsplit_once('/').expect("it is a URL");
    let host = address.rsplit_once('@').map_or(address.trim_start_matches("postgres://"), |(_, host)| host);
    let database = database.split('?').next().unwrap_or_default();
    let days = json!([format!("postgres://{host}"), format!("{database}.public.days")]);
    assert_eq!(
        named(&last["outputs"]),
        [json!(["file", path("lake/bronze/orders")]), json!(["file", path("lake/gold/days")]), days]
    );
    assert_eq!(last["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"], 100);
    assert_eq!(last["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 100);
    let postgres = &last["outputs"][2];
    assert_eq!(postgres["outputFacets"]["outputStatistics"]["rowCount"], 4);
    let fields = &postgres["facets"]["columnLineage"]["fields"];
    let from = |name: &str, field: &str, how: &str| {
        json!([{
            "namespace": "file", "name": path(name), "field": field,
            "transformations": [{ "type": "DIRECT", "subtype": how, "description": "", "masking": false }],
        }])
    };
    assert_eq!(fields["worth"]["inputFields"], from("in-*.json", "price", "AGGREGATION"));
    assert_eq!(fields["city"]["inputFields"], from("sites.csv", "city", "IDENTITY"));
    assert_eq!(fields["day"]["inputFields"], from("in-*.json", "ts", "TRANSFORMATION"));
    assert_eq!(fields["n"]["inputFields"], json!([]));
    let text = std::fs::read_to_string(world.path("runs/shop.jsonl")).expect("there are events");
    assert!(!text.contains("password") && !text.contains(world.env("DATABASE_URL")), "a secret is told");
}

#[test]
fn a_run_that_fails_says_why_and_one_that_is_stopped_has_ended_well() {
    let world = world();
    let file = pipeline(&world, "file: runs.jsonl");
    let text = std::fs::read_to_string(&file).expect("it was just written");
    world.file(
        "shop.yaml",
        &text.replace("{ from: orders }", "{ from: orders, expect: { few: { that: id < 50, else: fail } } }"),
    );
    world.nexus(&["run", &file]).expect_code(1);
    let told = events(&world.path("runs.jsonl"));
    assert_eq!(kinds(&told), ["START", "FAIL"]);
    let error = &told[1]["run"]["facets"]["errorMessage"];
    assert!(error["message"].as_str().is_some_and(|message| message.contains("few")), "{error}");
    assert_eq!(error["programmingLanguage"], "RUST");

    world.file("shop.yaml", &text.replace("path: in-*.json", "path: in-*.json, follow: true"));
    let mut running = world.start(&["run", &file]);
    running.until("it tells that it goes on", || kinds(&events(&world.path("runs.jsonl"))).contains(&"RUNNING"));
    running.signal("TERM");
    running.wait().expect_code(0);
    let told = events(&world.path("runs.jsonl")).split_off(2);
    assert_eq!(kinds(&told), ["START", "RUNNING", "COMPLETE"]);
    assert_eq!(told[0]["job"]["facets"]["jobType"]["processingType"], "STREAMING");
    assert_eq!(told[1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 100);
}

/// Reads one request, and gives its head and body.
fn read_request(connection: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                return (head, body.to_owned());
            }
        }
        let count = connection.read(&mut piece).expect("the client hangs up");
        assert!(count > 0, "the request is cut short: {text}");
        bytes.extend_from_slice(&piece[..count]);
    }
}

/// Takes what is posted to a port of loopback, and passes on the head and the body of each request.
pub fn taking_posts() -> (u16, mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("could not listen");
    let port = listener.local_addr().expect("it listens").port();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("could not accept");
            let request = read_request(&mut connection);
            let _ = tell.send(request);
            let _ = connection.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, told)
}

#[test]
fn events_are_posted_to_an_address() {
    let world = world();
    let (port, told) = taking_posts();
    let file = pipeline(&world, &format!("url: 'http://127.0.0.1:{port}/api/v1/lineage'"));
    world.run(Path::new(&file), &[]);
    let requests: Vec<_> = told.try_iter().collect();
    let events: Vec<Value> = requests.iter().map(|(_, body)| serde_json::from_str(body).expect("it is JSON")).collect();
    assert!(requests[0].0.starts_with("post /api/v1/lineage http/1.1"), "{}", requests[0].0);
    assert!(requests[0].0.contains("content-type: application/json"), "{}", requests[0].0);
    assert_eq!((kinds(&events)[0], kinds(&events)[events.len() - 1]), ("START", "COMPLETE"));
}

#[test]
fn a_dead_address_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("could not listen");
    let silent = listener.local_addr().expect("it listens").port();
    // Nobody accepts on the one, and nobody listens on the other.
    for port in [silent, 1] {
        let world = world();
        let file = pipeline(&world, &format!("url: 'http://127.0.0.1:{port}/'"));
        let started = Instant::now();
        let mut said = String::new();
        world.run_to_report(|world, report| {
            let finished = world.nexus(&run_args(Path::new(&file), report, &[]));
            said = finished.said();
            finished
        });
        assert!(started.elapsed() < Duration::from_secs(30), "the run took {:?}", started.elapsed());
        assert!(said.contains("WARN nexus::lineage"), "it is not said that events are lost:\n{said}");
    }
}

#[test]
fn a_target_that_cannot_be_meant_is_refused() {
    let world = world();
    for (target, words) in [
        ("namespace: north", "N0604"),
        ("file: a.jsonl, url: 'http://127.0.0.1:1/'", "N0604"),
        ("url: 'http://user:secret-word@127.0.0.1/'", "N0604"),
        ("url: 'ftp://127.0.0.1/'", "N0407"),
        ("file: 's3://bucket/a.jsonl'", "N0407"),
    ] {
        let said = world.nexus(&["check", &pipeline(&world, target)]).expect_code(2).said();
        assert!(said.contains(words) && !said.contains("secret-word"), "{target}:\n{said}");
    }
}
