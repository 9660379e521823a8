//! How fast rows land in Postgres, and what it costs that the server refuses some of them.
//!
//! 50 MB of rows, each about 100 bytes, go into a table with a CHECK and a NOT NULL constraint: by a bare binary COPY of
//! bytes that lie ready; by the commit of an epoch in which every row is good; and by one in which one row in a thousand
//! is refused. The last lines tell the ratios to the bare COPY, of one run each round in turn.

#![allow(clippy::print_stdout, reason = "the ratios are the result")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::{SinkExt, TryStreamExt};
use nexus_operators::sink::postgres::{PostgresSettings, PostgresSink};
use nexus_operators::sink::{EpochId, RefusedUpto, Sink};
use nexus_operators::store::Store;
use nexus_operators::testing::postgres::Postgres;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

#[path = "shared/size.rs"]
mod size;

/// Rows of a batch, as the decoders make them.
const BATCH_ROWS: i64 = 8192;

/// One row in so many is refused: by turns it has no site, and a negative value.
const REFUSED_OF: i64 = 1000;

/// Rounds of the ratios.
const ROUNDS: usize = 5;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS readings (id bigint, site text NOT NULL, ts timestamptz, \
    v double precision CHECK (v >= 0), note text)";

/// Rows: 51 MB in the binary format of COPY.
fn rows() -> i64 {
    size::of(500_000, 5_000).cast_signed()
}

fn batches(refused: bool) -> Vec<RecordBatch> {
    let starts = (0..rows()).step_by(usize::try_from(BATCH_ROWS).expect("it is small"));
    let batch = |start: i64| {
        let ids = || start..(start + BATCH_ROWS).min(rows());
        let is_bad = |id: i64, turn: i64| refused && id % REFUSED_OF == 500 && (id / REFUSED_OF) % 2 == turn;
        let site = |id: i64| (!is_bad(id, 0)).then(|| format!("site-{:03}", id % 100));
        let value = |id: i64| if is_bad(id, 1) { -1.0 } else { (id % 1000) as f64 };
        let columns: [(&str, ArrayRef); 5] = [
            ("id", Arc::new(Int64Array::from_iter_values(ids()))),
            ("site", Arc::new(ids().map(site).collect::<StringViewArray>())),
            (
                "ts",
                Arc::new(TimestampMicrosecondArray::from_iter_values(ids().map(|id| id << 20)).with_timezone("UTC")),
            ),
            ("v", Arc::new(Float64Array::from_iter_values(ids().map(value)))),
            ("note", Arc::new(ids().map(|id| Some(format!("{id:050}"))).collect::<StringViewArray>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
            .expect("the columns are of one length")
    };
    starts.map(batch).collect()
}

/// A server, and what goes into its table.
struct Scene {
    server: Postgres,
    client: Client,
    /// The rows as the server gives them to a COPY.
    ready: Vec<bytes::Bytes>,
    spool: Store,
    epoch: u64,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let server = Postgres::start();
        let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.expect("the server answers");
        tokio::spawn(connection);
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().to_str().expect("its path is text");
        let spool = Store::open(path, &Default::default()).await.expect("a folder can be opened");
        client.batch_execute(TABLE).await.expect("a table can be made");
        let mut scene = Self { server, client, ready: Vec::new(), spool, epoch: 0, _folder: folder };
        scene.land(&batches(false)).await;
        let ready = scene.client.copy_out("COPY readings TO STDOUT (FORMAT binary)").await.expect("rows are given");
        scene.ready = ready.try_collect().await.expect("rows are given");
        scene
    }

    async fn empty(&self) {
        self.client.batch_execute("TRUNCATE readings; CHECKPOINT").await.expect("a table can be emptied");
    }

    /// Copies the bytes that lie ready.
    async fn copy(&self) -> Duration {
        self.empty().await;
        let started = Instant::now();
        let copy = self.client.copy_in("COPY readings FROM STDIN (FORMAT binary)").await.expect("a COPY begins");
        let mut copy = std::pin::pin!(copy);
        for bytes in &self.ready {
            copy.feed(bytes.clone()).await.expect("rows are taken");
        }
        copy.finish().await.expect("rows are taken");
        started.elapsed()
    }

    /// Commits an epoch that is prepared.
    async fn land(&mut self, batches: &[RecordBatch]) -> Duration {
        self.empty().await;
        self.epoch += 1;
        let settings = PostgresSettings {
            pipeline: "bench".into(),
            sink_name: "bronze.readings".into(),
            state_id: "bench".into(),
            generation: 1,
            schema: "public".into(),
            table: "readings".into(),
            key: Vec::new(),
            append: true,
            create: true,
            rows: batches.first().expect("there are rows").schema(),
        };
        let secret = self.server.secret("url", &self.server.url());
        let mut sink = PostgresSink::new(settings, None, secret, self.spool.clone()).expect("the table fits");
        sink.check().await.expect("the table fits");
        let id = EpochId { generation: 1, epoch: self.epoch };
        for batch in batches {
            sink.write(id, batch).await.expect("rows are written");
        }
        let handle = sink.prepare(id).await.expect("an epoch is prepared").handle.expect("the epoch has rows");
        let started = Instant::now();
        sink.committer().commit(id, &handle).await.expect("an epoch is committed");
        let took = started.elapsed();
        let behind = RefusedUpto { epoch: self.epoch, rows: 0 };
        let refused = sink.refused().next(behind).await.expect("refused rows are given");
        let refused = refused.map_or(0, |(_, rows)| rows.len() as i64);
        let landed = self.client.query_one("SELECT count(*) FROM readings", &[]).await.expect("rows are counted");
        assert_eq!(landed.get::<_, i64>(0) + refused, rows());
        took
    }
}

fn postgres(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let mut scene = runtime.block_on(Scene::new());
    let (good, mixed) = (batches(false), batches(true));
    let bytes: usize = scene.ready.iter().map(bytes::Bytes::len).sum();
    let mut group = criterion.benchmark_group("postgres");
    group.throughput(Throughput::ElementsAndBytes { elements: rows().unsigned_abs(), bytes: bytes as u64 });
    group.sample_size(10);
    group.bench_function("bare copy", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| runtime.block_on(scene.copy())).sum());
    });
    group.bench_function("no row is refused", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| runtime.block_on(scene.land(&good))).sum());
    });
    group.bench_function("one row in a thousand is refused", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| runtime.block_on(scene.land(&mixed))).sum());
    });
    group.finish();
    if !size::measures() {
        return;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let bare = runtime.block_on(scene.copy()).as_secs_f64();
        let ratio = |took: Duration| took.as_secs_f64() / bare;
        rounds.push([ratio(runtime.block_on(scene.land(&good))), ratio(runtime.block_on(scene.land(&mixed)))]);
    }
    for (at, name) in ["no row is refused", "one row in a thousand is refused"].into_iter().enumerate() {
        let mut ratios: Vec<_> = rounds.iter().map(|round| round[at]).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "{name}: {:.2} times a bare COPY (median of {ROUNDS}, up to {:.2})",
            ratios[ROUNDS / 2],
            ratios[ROUNDS - 1]
        );
    }
}

criterion_group!(benches, postgres);
criterion_main!(benches);
