//! How fast whole pipelines run: generated rows through all four tiers into Parquet, and the same with an epoch every few
//! rows, which shows what an epoch costs; rows at hand through stages that store nothing, by the length of batches, by the
//! depth of channels (they have a share of `limits.memory`) and by the number of stages.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nexus::Pipeline;
use nexus::operators::clock::SystemClock;
use nexus::operators::source::memory::MemorySource;
use tokio::runtime::Runtime;

#[path = "shared/size.rs"]
mod size;

/// Rows of one run.
fn rows() -> u64 {
    size::of(1_000_000, 20_000)
}

fn pipeline(lake: &str, epoch_bytes: &str) -> Pipeline {
    let rows = rows();
    let file = format!(
        r#"
name: bench
lake: {lake}
commit: {{ every: 60s, bytes: {epoch_bytes} }}
sources:
  readings:
    generate:
      rows: {rows}
      columns:
        seq: {{ sequence: {{}} }}
        ts: {{ time: {{ start: "2026-11-01T00:00:00Z", step: 2ms }} }}
        device: {{ integer: {{ min: 1, max: 5000 }} }}
        site: {{ choice: [bend, elko, ely, reno, yuma] }}
        temp_c: {{ number: {{ min: -10, max: 45 }} }}
        status: {{ choice: [ok, ok, ok, ok, ok, ok, ok, ok, warn, error] }}
    event_time: {{ column: ts, lateness: 10s }}
bronze:
  readings: {{ from: readings }}
silver:
  readings:
    sql: |
      SELECT seq, ts, device, site, temp_c, temp_c * 9 / 5 + 32 AS temp_f FROM bronze.readings WHERE status <> 'error'
gold:
  site_minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', ts) AS minute, site, count(*) AS readings, avg(temp_c) AS mean_temp_c
      FROM silver.readings GROUP BY 1, 2
vibranium:
  busy_minutes:
    sql: SELECT minute, site, readings FROM gold.site_minutes WHERE readings > 5400
"#
    );
    Pipeline::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"))
}

fn four_tiers(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let mut group = criterion.benchmark_group("pipeline/four tiers");
    group.sample_size(10).measurement_time(Duration::from_secs(10)).throughput(Throughput::Elements(rows()));
    for epoch_bytes in ["512MiB", "16MiB", "4MiB"] {
        group.bench_function(BenchmarkId::new("epochs of", epoch_bytes), |bencher| {
            bencher.iter(|| {
                let lake = tempfile::tempdir().expect("there is a folder for temporary files");
                let lake = lake.path().to_string_lossy().into_owned();
                runtime.block_on(async {
                    let mut job = pipeline(&lake, epoch_bytes).start().await.expect("the pipeline starts");
                    let report = job.wait().await.expect("the pipeline ends well");
                    assert_eq!(report.tables["bronze.readings"].counts.rows_out, rows());
                });
            });
        });
    }
    group.finish();
}

/// Gives rows at hand, `each` in a batch.
fn batches(each: u64) -> Vec<RecordBatch> {
    let starts = (0..rows()).step_by(usize::try_from(each).expect("it is small"));
    let batch = |start: u64| {
        let ids = start.cast_signed()..(start + each).min(rows()).cast_signed();
        let values: Float64Array = ids.clone().map(|id| Some((id % 1000) as f64)).collect();
        let columns: [(&str, ArrayRef); 2] =
            [("id", Arc::new(Int64Array::from_iter_values(ids))), ("value", Arc::new(values))];
        RecordBatch::try_from_iter(columns).expect("the columns are of one length")
    };
    starts.map(batch).collect()
}

/// Runs rows through so many stages that pass them on and store nothing.
async fn pass(batches: Vec<RecordBatch>, stages: u32, memory: &str) {
    let lake = tempfile::tempdir().expect("there is a folder for temporary files");
    let mut file = format!(
        "name: bench\nlake: {}\ncommit: {{ every: 60s, bytes: 10GiB }}\nlimits: {{ memory: {memory} }}\nsources:\n  rows:\n    \
         generate: {{ columns: {{ id: {{ sequence: {{}} }} }} }}\nbronze:\n  t0: {{ from: rows, store: false }}\nsilver:\n",
        lake.path().display()
    );
    for stage in 1..=stages {
        let from = if stage == 1 { "bronze.t0".to_owned() } else { format!("silver.t{}", stage - 1) };
        file += &format!("  t{stage}: {{ store: false, sql: \"SELECT id, value + 1 AS value FROM {from}\" }}\n");
    }
    let schema = batches.first().expect("there are rows").schema();
    let columns = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    let source = MemorySource::batches(vec![("rows".into(), batches)], Arc::new(SystemClock));
    let pipeline = Pipeline::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"));
    let pipeline = pipeline.with_rows("rows", columns, None, Box::new(source)).expect("the columns can be taken");
    let mut job = pipeline.start().await.expect("the pipeline starts");
    let report = job.wait().await.expect("the pipeline ends well");
    assert_eq!(report.tables[&format!("silver.t{stages}")].counts.rows_out, rows());
}

fn passing(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let mut group = criterion.benchmark_group("pipeline/passing on");
    group.sample_size(10).measurement_time(Duration::from_secs(5)).throughput(Throughput::Elements(rows()));
    for each in [128, 1024, 8192, 65_536] {
        let batches = batches(each);
        group.bench_function(BenchmarkId::new("rows of a batch", each), |bencher| {
            bencher.iter(|| runtime.block_on(pass(batches.clone(), 2, "512MiB")));
        });
    }
    let batches = batches(8192);
    for memory in ["64MiB", "512MiB", "4GiB"] {
        group.bench_function(BenchmarkId::new("memory", memory), |bencher| {
            bencher.iter(|| runtime.block_on(pass(batches.clone(), 2, memory)));
        });
    }
    for stages in [1, 4, 16] {
        group.bench_function(BenchmarkId::new("stages", stages), |bencher| {
            bencher.iter(|| runtime.block_on(pass(batches.clone(), stages, "512MiB")));
        });
    }
    group.finish();
}

criterion_group!(benches, four_tiers, passing);
criterion_main!(benches);
