//! How long an epoch takes from its barrier to its commit, step by step: of a pipeline of three tiers into Parquet on a
//! disk that commits every 100 ms, one run, whose epochs are given to criterion one after the other.
//!
//! The steps follow one another: from when the one before was done by all until this one was.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexus::Pipeline;
use nexus::job::steps::{EpochTold, STEPS};
use tokio::runtime::Runtime;

#[path = "shared/size.rs"]
mod size;

/// Rows a second.
const RATE: u64 = 20_000;

/// Epochs a second.
const EPOCHS: u64 = 10;

/// Seconds of the run: its epochs are as many as are told without being taken.
const SECONDS: u64 = 6;

async fn epochs() -> Vec<EpochTold> {
    let lake = tempfile::tempdir().expect("there is a folder for temporary files");
    let file = format!(
        r#"
name: bench
lake: {}
commit: {{ every: 100ms }}
sources:
  readings:
    generate:
      rows: {}
      rate: {RATE}
      columns:
        seq: {{ sequence: {{}} }}
        ts: {{ time: {{ start: "2026-11-01T00:00:00Z", step: 50ms }} }}
        site: {{ choice: [bend, elko, ely, reno, yuma] }}
        temp_c: {{ number: {{ min: -10, max: 45 }} }}
    event_time: {{ column: ts, lateness: 10s }}
bronze:
  readings: {{ from: readings }}
silver:
  readings: {{ sql: "SELECT seq, ts, site, temp_c * 9 / 5 + 32 AS temp_f FROM bronze.readings WHERE temp_c > 0" }}
gold:
  minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', ts) AS minute, site, count(*) AS readings, avg(temp_f) AS mean_f
      FROM silver.readings GROUP BY 1, 2
"#,
        lake.path().display(),
        size::of(RATE * SECONDS, RATE / 2)
    );
    let pipeline = Pipeline::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"));
    let mut job = pipeline.start().await.expect("the pipeline starts");
    let mut told = job.progress().epochs.follow();
    job.wait().await.expect("the pipeline ends well");
    job.progress().epochs.unfollow();
    let mut epochs = Vec::new();
    while let Some(epoch) = told.recv().await {
        epochs.push(epoch);
    }
    assert!(!epochs.is_empty(), "epochs are told of");
    epochs
}

fn commits(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let epochs = runtime.block_on(epochs());
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(100));
    group.throughput(Throughput::Elements(RATE / EPOCHS));
    for (at, step) in STEPS.into_iter().enumerate() {
        // A step of no time cannot be measured.
        let times: Vec<_> = epochs.iter().map(|epoch| epoch.steps()[at].1.max(Duration::from_nanos(1))).collect();
        let mut next = times.iter().cycle();
        group.bench_function(step.name(), |bencher| {
            bencher.iter_custom(|times| next.by_ref().take(times as usize).sum())
        });
    }
    let times: Vec<_> = epochs.iter().map(EpochTold::total).collect();
    let mut next = times.iter().cycle();
    group.bench_function("all", |bencher| bencher.iter_custom(|times| next.by_ref().take(times as usize).sum()));
    group.finish();
}

criterion_group!(benches, commits);
criterion_main!(benches);
