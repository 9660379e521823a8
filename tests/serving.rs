//! The pages of `nexus run --listen`: alive, ready or not and why, and the counters.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::endless::endless_pipeline;
use crate::servers::{free_port, postgres, proxy::Proxy};
use crate::world::{World, table_files};

/// Sends a request with these headers; gives the status, the head and the body, or nothing if nobody listens.
pub fn request(port: u16, what: &str, headers: &[&str]) -> Option<(u16, String, String)> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket has timeouts");
    let host = if headers.iter().any(|header| header.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(connection, "{what} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, head.to_owned(), body.to_owned()))
}

/// Asks for a page; gives the status and the body, or nothing if nobody listens.
fn page(port: u16, path: &str) -> Option<(u16, String)> {
    request(port, &format!("GET {path}"), &[]).map(|(status, _, body)| (status, body))
}

/// Gives the values of a page of metrics, by name and labels.
pub fn metrics(port: u16) -> BTreeMap<String, f64> {
    let (status, text) = page(port, "/metrics").expect("the pages are served");
    assert_eq!(status, 200);
    let values = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a metric has a value");
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line} has no number")))
    });
    values.collect()
}

#[test]
fn a_dead_postgres_makes_a_run_not_ready_until_it_is_back() {
    let mut world = World::new().with_postgres();
    let lake = world.path("lake");
    let proxy = Proxy::start(postgres::shared().port, u64::MAX);
    let direct = world.env("DATABASE_URL").to_owned();
    let port_of = |port: u16| format!(":{port}/");
    world.set("DATABASE_URL", &direct.replace(&port_of(postgres::shared().port), &port_of(proxy.port)));
    let pipeline = endless_pipeline(&world, &lake);
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8"), "--listen", &address];
    // An interval is 200 ms: a machine that is busy must not look like a dead database.
    let mut running = world.start(&[&args[..], &["--ready-within", "30"]].concat());
    let status = |path: &str| page(port, path).map(|(status, _)| status);

    running.until("it is ready", || status("/ready") == Some(200));
    running.until("it has committed", || table_files(&lake, "bronze/ticks") >= 2);
    running.until("all sinks have", || metrics(port).contains_key("nexus_last_commit_timestamp_seconds"));
    let before = metrics(port);
    assert_eq!(before["nexus_up"], 1.0);
    assert!(before["nexus_epochs_total"] >= 1.0 && before["nexus_generation"] == 1.0);
    assert!(before["nexus_source_read_rows_total{source=\"ticks\"}"] > 0.0);
    assert!(before["process_resident_memory_bytes"] > 1e6);
    assert_eq!(before["nexus_memory_limit_bytes"], 512.0 * 1024.0 * 1024.0);
    assert!(before.contains_key("nexus_channel_bytes{channel=\"sink bronze.ticks/postgres\"}"), "{before:?}");
    for sink in ["parquet", "postgres"] {
        let held = format!("nexus_sink_buffer_bytes{{table=\"bronze.ticks\",sink=\"{sink}\"}}");
        running.until("the sink holds rows", || metrics(port)[&held] > 0.0);
    }
    running.until("so do all sinks", || metrics(port)["nexus_memory_bytes{component=\"sinks\"}"] > 0.0);

    proxy.close();
    running.until("it is not ready", || status("/ready") == Some(503));
    let (_, why) = page(port, "/ready").expect("the pages are served");
    assert!(why.contains("bronze.ticks/postgres") && !why.contains("bronze.ticks/parquet"), "{why}");
    assert_eq!(status("/health"), Some(200));
    let during = metrics(port);
    assert!(during["nexus_uncommitted_seconds"] > 6.0 && during["nexus_spooled_bytes"] > 0.0, "{during:?}");

    proxy.open();
    running.until("it is ready again", || status("/ready") == Some(200));
    let after = metrics(port);
    let last_commit = "nexus_last_commit_timestamp_seconds";
    assert!(after[last_commit] > before[last_commit]);
    let rows = |of: &BTreeMap<String, f64>| of["nexus_sink_rows_total{table=\"bronze.ticks\",sink=\"postgres\"}"];
    assert!(rows(&after) > rows(&before));
    running.signal("TERM");
    running.wait().expect_code(0);
}

#[test]
fn a_run_is_alive_and_not_ready_before_its_sources_are_open() {
    let world = World::new();
    let lake = world.path("lake");
    // The queue's host does not answer, and the first call to it is tried for a while.
    let nobody = free_port();
    let pipeline = world.file(
        "waits.yaml",
        &format!(
            "name: waits\nlake: {}\nsources:\n  uploads:\n    \
             s3: {{ queue: \"http://127.0.0.1:{nobody}/000000000000/none\", allow: [\"s3://none/\"] }}\n    \
             format: raw\nbronze:\n  uploads: {{ from: uploads }}\n",
            lake.display()
        ),
    );
    let silent = std::net::TcpListener::bind(("127.0.0.1", nobody)).expect("the port was free just now");
    let mut world = world.with_aws();
    world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{nobody}"));
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut running =
        world.start(&["run", pipeline.to_str().expect("the tests' paths are UTF-8"), "--listen", &address]);

    running.until("it is alive", || page(port, "/health").is_some_and(|(status, _)| status == 200));
    let (status, why) = page(port, "/ready").expect("the pages are served");
    assert!(status == 503 && why.contains("not open"), "{status} {why}");
    assert_eq!(metrics(port)["nexus_up"], 0.0);
    assert_eq!(page(port, "/none").map(|(status, _)| status), Some(404));
    // A stop in mid-start ends the process, though nobody answers it.
    running.signal("TERM");
    let said = running.wait().expect_code(0).said();
    assert!(said.contains("nothing was read"), "{said}");
    drop(silent);
}
