//! How fast whole pipelines run: generated rows through all four tiers into
//! Parquet, and the same with an epoch every few rows, which shows what an
//! epoch costs.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nexus::Pipeline;
use tokio::runtime::Runtime;

/// Rows of one run.
const ROWS: u64 = 1_000_000;

fn pipeline(lake: &str, epoch_bytes: &str) -> Pipeline {
    let file = format!(
        r#"
name: bench
lake: {lake}
commit: {{ every: 60s, bytes: {epoch_bytes} }}
sources:
  readings:
    generate:
      rows: {ROWS}
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
    group.sample_size(10).measurement_time(Duration::from_secs(10)).throughput(Throughput::Elements(ROWS));
    for epoch_bytes in ["512MiB", "16MiB", "4MiB"] {
        group.bench_function(BenchmarkId::new("epochs of", epoch_bytes), |bencher| {
            bencher.iter(|| {
                let lake = tempfile::tempdir().expect("there is a folder for temporary files");
                let lake = lake.path().to_string_lossy().into_owned();
                runtime.block_on(async {
                    let mut job = pipeline(&lake, epoch_bytes).start().await.expect("the pipeline starts");
                    let report = job.wait().await.expect("the pipeline ends well");
                    assert_eq!(report.tables["bronze.readings"].counts.rows_out, ROWS);
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, four_tiers);
criterion_main!(benches);
