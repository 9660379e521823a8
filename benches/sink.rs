//! How fast sinks take rows: an epoch written, prepared and committed.
//!
//! The rows are like those of flights: few origins, many numbers, some text.
//! Throughput is in rows and in bytes of Arrow memory. `postgres.rs` has PostgreSQL.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexus_operators::sink::memory::MemorySink;
use nexus_operators::sink::parquet::{ParquetCompression, ParquetLayout, ParquetSettings, ParquetSink, PartitionBy};
use nexus_operators::sink::{EpochId, Sink};
use nexus_operators::store::Store;
use tokio::runtime::Runtime;

#[path = "shared/size.rs"]
mod size;

/// Rows of a batch, as the decoders make them.
const BATCH_ROWS: i64 = 8192;

/// Batches of an epoch.
fn batches() -> Vec<RecordBatch> {
    (0..size::of(32, 2).cast_signed()).map(batch).collect()
}

fn batch(number: i64) -> RecordBatch {
    let ids = number * BATCH_ROWS..(number + 1) * BATCH_ROWS;
    // A fixed mix of the id's bits, so that columns neither repeat nor compress too well.
    let mixed = |id: i64| id.wrapping_mul(0x5851_f42d_4c95_7f2d) >> 33;
    let ids = || ids.clone();
    let origins: StringViewArray = ids().map(|id| Some(format!("ORIGIN-{:03}", mixed(id).rem_euclid(100)))).collect();
    let tails: StringViewArray = ids().map(|id| Some(format!("N{}", mixed(id).rem_euclid(5000)))).collect();
    let notes: StringViewArray =
        ids().map(|id| (id % 7 == 0).then(|| format!("delayed by weather, see {}", mixed(id)))).collect();
    let minute_us = 60_000_000;
    let times = TimestampMicrosecondArray::from_iter_values(ids().map(|id| id * minute_us / 100)).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 7] = [
        ("id", Arc::new(Int64Array::from_iter_values(ids()))),
        ("ts", Arc::new(times)),
        ("origin", Arc::new(origins)),
        ("tail", Arc::new(tails)),
        ("delay", Arc::new(Float64Array::from_iter_values(ids().map(|id| mixed(id).rem_euclid(600) as f64 / 4.0)))),
        ("distance", Arc::new(Int64Array::from_iter_values(ids().map(|id| mixed(id).rem_euclid(4000))))),
        ("note", Arc::new(notes)),
    ];
    RecordBatch::try_from_iter(columns).expect("the columns are of one length")
}

fn settings(rows: &RecordBatch, partition_by: Vec<PartitionBy>) -> ParquetSettings {
    ParquetSettings {
        pipeline: "bench".into(),
        tier: "silver".into(),
        table: "flights".into(),
        schema: rows.schema(),
        partition_by,
        compression: ParquetCompression::Zstd,
        layout: ParquetLayout::default(),
        open_partitions_max: 128,
        buffer_bytes: 256 << 20,
    }
}

async fn land(sink: &mut dyn Sink, epoch: u64, batches: &[RecordBatch]) {
    let id = EpochId { generation: 1, epoch };
    for batch in batches {
        sink.write(id, batch).await.expect("rows are written");
    }
    let handle = sink.prepare(id).await.expect("an epoch is prepared").handle.expect("the epoch has rows");
    sink.committer().commit(id, &handle).await.expect("an epoch is committed");
}

fn parquet(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let batches = batches();
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let tables = [
        ("one folder", vec![]),
        ("folders by hour", vec![PartitionBy::Hour("ts".into())]),
        ("a hundred folders by origin", vec![PartitionBy::Column("origin".into())]),
    ];
    let mut group = criterion.benchmark_group("parquet on a disk");
    group.throughput(Throughput::ElementsAndBytes { elements: rows as u64, bytes: bytes as u64 });
    group.sample_size(10);
    for (name, partition_by) in tables {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let root = folder.path().to_str().expect("the path is text");
        let root = runtime.block_on(Store::open(root, &Default::default())).expect("a folder can be opened");
        let below = |name| root.below(name);
        let settings = settings(&batches[0], partition_by);
        let mut sink = ParquetSink::new(settings, below("flights"), below("_staging"), below("_notes"))
            .expect("the table can be stored");
        let mut epoch = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                epoch += 1;
                runtime.block_on(land(&mut sink, epoch, &batches));
            });
        });
    }
    group.finish();
}

/// The sink of tests and of services that want the rows themselves: what an epoch costs without encoding.
fn memory(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let batches = batches();
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::ElementsAndBytes { elements: rows as u64, bytes: bytes as u64 });
    group.bench_function("an epoch", |bencher| {
        bencher.iter(|| runtime.block_on(land(&mut MemorySink::new(), 1, &batches)));
    });
    group.finish();
}

criterion_group!(benches, parquet, memory);
criterion_main!(benches);
