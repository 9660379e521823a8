//! How fast transforms take rows: an epoch through a filter, a projection, rules, windows, a deduplication, a join, from
//! batches that are decoded already.
//!
//! Throughput is in rows and in bytes of Arrow memory.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexus::Pipeline;
use nexus::operators::batch::Payload;
use nexus::operators::clock::SystemClock;
use nexus::operators::decode::decode_whole;
use nexus::operators::position::Cut;
use nexus::operators::source::SourceEvent;
use nexus::operators::transform::expect::judge;
use nexus::operators::transform::keys::KeyLimits;
use nexus::operators::transform::states::StateLimits;
use nexus::operators::transform::unique::Unique;
use nexus::operators::transform::window::WATERMARK_END;
use nexus::plan::Plan;
use tokio::runtime::Runtime;

#[path = "shared/epoch.rs"]
mod epoch;
#[path = "shared/size.rs"]
mod size;

/// Rows of one run: about a second of a fast source.
fn rows() -> u64 {
    size::of(1_000_000, 20_000)
}

/// Memory of open windows: all of them.
const LIMITS: StateLimits = StateLimits { cached_bytes: 1 << 30, piece_bytes: 1 << 30 };

/// Readings like those of `pipelines/generated.yaml`, and the queries that are measured.
const PIPELINE: &str = r#"
name: bench
lake: /tmp/nexus-bench-unused
sources:
  readings:GENERATED
  others:GENERATED
silver:
  filtered:
    sql: SELECT * FROM readings WHERE status <> 'error' AND temp_c > 0
  projected:
    sql: SELECT seq, ts, site, temp_c * 9 / 5 + 32 AS temp_f, round(humidity) AS humidity FROM readings
  both:
    sql: SELECT seq, ts, site, temp_c * 9 / 5 + 32 AS temp_f FROM readings WHERE status <> 'error'
    unique: { key: [seq], within: 1d }
  judged:
    sql: SELECT seq, ts, temp_c, humidity, status FROM readings
    expect:
      sane: { that: temp_c BETWEEN -60 AND 90, else: quarantine }
      humid: { that: humidity BETWEEN 0 AND 99, else: drop }
      fine: { that: status <> 'error', else: keep }
  joined:
    sql: |
      SELECT l.seq, l.ts, l.temp_c, r.humidity
      FROM readings l JOIN others r ON l.seq = r.seq AND r.ts BETWEEN l.ts - INTERVAL '1 second' AND l.ts + INTERVAL '1 second'
gold:
  minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', ts) AS minute, site, count(*) AS readings, avg(temp_c) AS mean_c,
             min(temp_c) AS min_c, max(temp_c) AS max_c, avg(humidity) AS mean_humidity
      FROM readings WHERE status <> 'error' GROUP BY 1, 2
"#;

/// What both sources are.
const GENERATED: &str = r#"
    generate:
      rows: ROWS
      columns:
        seq: { sequence: {} }
        ts: { time: { start: "2026-11-01T00:00:00Z", step: 2ms } }
        site: { choice: [bend, elko, ely, reno, yuma] }
        temp_c: { number: { min: -10, max: 45 } }
        humidity: { number: { min: 0, max: 100 } }
        status: { choice: [ok, ok, ok, ok, ok, ok, ok, ok, warn, error] }
    event_time: { column: ts, lateness: 10s }"#;

async fn plan() -> Plan {
    let file = PIPELINE.replace("GENERATED", GENERATED).replace("ROWS", &rows().to_string());
    let pipeline = Pipeline::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"));
    pipeline.plan().await.unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Generates and decodes the input once.
async fn batches(plan: &Plan) -> Vec<RecordBatch> {
    let source = plan.sources.get("readings").expect("the pipeline has it");
    let decoder = source.decoder().expect("the columns can be decoded");
    let mut operator = source.operator(&plan.loaded, &(Arc::new(SystemClock) as _)).expect("it can be generated");
    operator.open(&Cut::default()).await.expect("generated rows need nothing");
    let mut batches = Vec::new();
    loop {
        match operator.next().await.expect("generated rows do not fail") {
            SourceEvent::Chunk(chunk) => {
                assert!(matches!(chunk.payload, Payload::Batch { .. }));
                batches.extend(decode_whole(&*decoder, &chunk).expect("generated rows decode").batches);
            }
            SourceEvent::End => return batches,
            other => panic!("{other:?}"),
        }
    }
}

fn transforms(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let plan = runtime.block_on(plan());
    let batches = runtime.block_on(batches(&plan));
    let bytes = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
    let tables = [
        ("filter", "silver.filtered"),
        ("project", "silver.projected"),
        ("filter and project", "silver.both"),
        ("minute windows", "gold.minutes"),
        ("join", "silver.joined"),
    ];
    for (name, table) in tables {
        let mut group = criterion.benchmark_group(format!("transform/{name}"));
        group.sample_size(10).measurement_time(Duration::from_secs(5));
        let mut transform =
            runtime.block_on(plan.table(table).expect("it is there").transform(LIMITS)).expect("it is planned");
        group.throughput(Throughput::ElementsAndBytes { elements: rows(), bytes });
        group.bench_function("epoch", |bencher| {
            bencher.iter(|| runtime.block_on(epoch::run(&mut transform, &batches, WATERMARK_END)));
        });
        group.finish();
    }
}

/// Three rules over rows of which one in a hundred breaks the second, and one in ten the third.
fn expectations(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let plan = runtime.block_on(plan());
    let table = plan.table("silver.judged").expect("it is there");
    let names = ["seq", "ts", "temp_c", "humidity", "status"];
    let batches = runtime.block_on(batches(&plan));
    let batches = batches.iter().map(|batch| {
        let at = names.map(|name| batch.schema().index_of(name).expect("the column is there"));
        batch.project(&at).expect("the columns are there")
    });
    let batches: Vec<RecordBatch> = batches.collect();
    let bytes = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
    let mut group = criterion.benchmark_group("transform/expectations");
    group.sample_size(10).throughput(Throughput::ElementsAndBytes { elements: rows(), bytes });
    group.bench_function("three rules", |bencher| {
        bencher.iter(|| {
            let kept = batches.iter().map(|batch| {
                let judged = judge("silver.judged", &table.rules, batch.clone(), 0).expect("the rules can be asked");
                judged.kept.num_rows() as u64 + judged.dropped
            });
            assert_eq!(kept.sum::<u64>(), rows());
        });
    });
    group.finish();
}

fn deduplication(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let plan = runtime.block_on(plan());
    let batches = runtime.block_on(batches(&plan));
    let table = plan.table("silver.both").expect("it is there");
    let first = batches.first().expect("there are rows").schema();
    let keyed = ["seq", "ts"].map(|name| first.index_of(name).expect("the column is there"));
    let wanted: Vec<RecordBatch> = batches.iter().map(|b| b.project(&keyed).expect("the columns are there")).collect();
    let schema = wanted.first().expect("there are rows").schema();
    let (_, _, within_us) = table.unique.clone().expect("the table is deduplicated");
    let mut group = criterion.benchmark_group("transform/unique");
    group.sample_size(10).throughput(Throughput::Elements(rows()));
    let column = |name: &str| schema.index_of(name).expect("the column is there");
    group.bench_function("rows", |bencher| {
        bencher.iter(|| {
            let limits = KeyLimits { map_bytes: 256 << 20, file_bytes: 64 << 20 };
            let unique = Unique::new(&schema, vec![column("seq")], column("ts"), within_us, limits);
            let mut unique = unique.expect("the key can be encoded");
            let kept = wanted.iter().map(|b| unique.first_seen(b.clone()).expect("keys").num_rows());
            assert_eq!(kept.sum::<usize>() as u64, rows());
        });
    });
    group.finish();
}

criterion_group!(benches, transforms, expectations, deduplication);
criterion_main!(benches);
