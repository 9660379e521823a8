//! A pipeline inside of an axum service: readings come in by `POST /readings`, the minutes of each site are read by
//! `GET /minutes`, and `GET /status` tells what is committed.
//!
//! The service answers a POST once the pipeline has taken the rows, which waits while the pipeline is behind: the back
//! pressure of the pipeline is that of the service. When it is told to stop, it stops taking requests, has the pipeline
//! drain, and ends. Here it asks itself a few times, and then stops.
//!
//!     cargo run --example service

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::json::ReaderBuilder;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use nexus::operators::batch::timestamp_type;
use nexus::operators::clock::SystemClock;
use nexus::operators::sink::memory::{Landed, MemorySink};
use nexus::operators::source::memory::{MemoryHandle, MemorySource};
use nexus::operators::transform::rows::as_json;
use nexus::{Job, Pipeline};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};

const FILE: &str = "
name: readings
lake: LAKE
commit: { every: 50ms }
silver:
  readings:
    sql: SELECT at, site, celsius FROM readings
    expect:
      sane: { that: celsius BETWEEN -60 AND 90, else: quarantine }
gold:
  minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', at) AS minute, site, count(*) AS readings, avg(celsius) AS mean
      FROM silver.readings GROUP BY 1, 2
# The service brings this one by `with_rows`: its columns are those of the batches.
sources:
  readings: { generate: { rows: 1, columns: { at: { time: { start: \"2026-11-01T00:00:00Z\", step: 1s } } } } }
";

/// Batches that may wait for the pipeline before a POST has to.
const BATCHES_WAITING_MAX: usize = 16;

/// What the handlers share.
struct Service {
    rows: MemoryHandle,
    minutes: Landed,
    /// Locked to ask for the status only.
    job: Mutex<Job>,
    columns: Arc<Schema>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let folder = tempfile::tempdir()?;
    let columns = vec![
        Field::new("at", timestamp_type(), false),
        Field::new("site", DataType::Utf8View, false),
        Field::new("celsius", DataType::Float64, true),
    ];
    let (rows, source) = MemorySource::fed(BATCHES_WAITING_MAX, Arc::new(SystemClock));
    let sink = MemorySink::new();
    let minutes = sink.landed();
    let file = FILE.replace("LAKE", &folder.path().display().to_string());
    let pipeline = Pipeline::parse(&file)?
        .with_rows("readings", columns.clone(), Some(("at", Duration::ZERO)), Box::new(source))?
        .with_sink("gold.minutes", "service", Box::new(sink));
    let job = Mutex::new(pipeline.start().await?);
    let service = Arc::new(Service { rows, minutes, job, columns: Arc::new(Schema::new(columns)) });

    let router = Router::new()
        .route("/readings", post(take))
        .route("/minutes", get(show))
        .route("/status", get(status))
        .with_state(service.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // A real service waits for a signal here.
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move { drop(stopped.await) });
    let serving = tokio::spawn(async move { serving.await });

    let body = r#"{"at":"2026-11-01T08:00:05Z","site":"reno","celsius":20}
{"at":"2026-11-01T08:00:25Z","site":"reno","celsius":24}
{"at":"2026-11-01T08:00:40Z","site":"reno","celsius":850}
{"at":"2026-11-01T08:01:10Z","site":"reno","celsius":21}"#;
    println!("POST /readings: {}", ask(address, "POST", "/readings", body).await?);
    println!("POST of nonsense: {}", ask(address, "POST", "/readings", "nonsense").await?);
    // The minute is given out once a later reading has been committed.
    while service.minutes.rows() < 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let minutes = ask(address, "GET", "/minutes", "").await?;
    println!("GET /minutes: {minutes}");
    assert!(minutes.contains(r#""readings":2,"mean":22.0"#), "the third reading is beyond belief: {minutes}");
    println!("GET /status: {}", ask(address, "GET", "/status", "").await?);

    stop.send(()).map_err(|()| "the service has ended already")?;
    serving.await??;
    let mut job = service.job.lock().await;
    job.stop();
    let report = job.wait().await?;
    println!("stopped: {} rows are committed", report.sources["readings"].rows);
    Ok(())
}

/// Takes readings, one JSON object a line.
async fn take(State(service): State<Arc<Service>>, body: String) -> (StatusCode, Json<Value>) {
    let wrong = |error: &dyn StdError| (StatusCode::BAD_REQUEST, Json(json!({ "error": error.to_string() })));
    let reader = match ReaderBuilder::new(service.columns.clone()).build(body.as_bytes()) {
        Ok(reader) => reader,
        Err(error) => return wrong(&error),
    };
    let mut taken = 0;
    for rows in reader {
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => return wrong(&error),
        };
        taken += rows.num_rows();
        if let Err(error) = service.rows.send(rows).await {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error.to_string() })));
        }
    }
    (StatusCode::ACCEPTED, Json(json!({ "taken": taken })))
}

/// Shows the minutes that are complete and committed.
async fn show(State(service): State<Arc<Service>>) -> Result<Json<Vec<Value>>, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let mut minutes = Vec::new();
    for rows in service.minutes.batches() {
        for row in as_json(&rows).map_err(failed)? {
            minutes.push(serde_json::from_slice(&row).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?);
        }
    }
    Ok(Json(minutes))
}

async fn status(State(service): State<Arc<Service>>) -> Json<Value> {
    let report = service.job.lock().await.status();
    Json(json!({ "epochs": report.epochs, "rows": report.sources["readings"].rows }))
}

/// Asks the service, as its clients do; gives the status and the body.
async fn ask(address: std::net::SocketAddr, method: &str, path: &str, body: &str) -> Result<String, Box<dyn StdError>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.lines().next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status);
    Ok(format!("{status}: {body}"))
}
