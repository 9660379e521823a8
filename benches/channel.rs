//! What a channel between two stages costs for each batch, by its depth, and what a barrier costs.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nexus::job::channel::{Barrier, Item, channel, fan_out};
use tokio::runtime::Runtime;

#[path = "shared/size.rs"]
mod size;

/// Rows of a batch, as the decoders make them.
const BATCH_ROWS: i64 = 8192;

/// A channel's depth where it is not what is measured.
const DEPTH_BYTES: usize = 16 << 20;

fn items() -> u64 {
    size::of(20_000, 200)
}

/// Sends so many items to each of `readers` tasks that take them.
async fn through(item: &Item, depth_bytes: usize, readers: usize) {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..readers).map(|_| channel(depth_bytes)).unzip();
    let taken = receivers.into_iter().map(|mut receiver| {
        tokio::spawn(async move {
            let mut taken = 0;
            while receiver.recv().await.is_some() {
                taken += 1;
            }
            taken
        })
    });
    let taken: Vec<_> = taken.collect();
    for _ in 0..items() {
        fan_out(&senders, item).await.expect("the readers live");
    }
    drop(senders);
    for taken in taken {
        assert_eq!(taken.await.expect("the reader ends well"), items());
    }
}

fn channels(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let column = Int64Array::from_iter_values(0..BATCH_ROWS);
    let batch = RecordBatch::try_from_iter([("id", Arc::new(column) as _)]).expect("one column is of one length");
    let bytes = batch.get_array_memory_size() as u64 * items();
    let batch = Item::Batch(batch);
    let barrier = Item::Barrier(Barrier { epoch: 1, watermark_us: Some(0), last: false });
    let mut group = criterion.benchmark_group("channel");
    group.sample_size(20).throughput(Throughput::ElementsAndBytes { elements: items(), bytes });
    for depth_kib in [128, 1024, 16_384] {
        group.bench_function(BenchmarkId::new("batches, KiB of depth", depth_kib), |bencher| {
            bencher.iter(|| runtime.block_on(through(&batch, depth_kib << 10, 1)));
        });
    }
    group.throughput(Throughput::Elements(items()));
    group.bench_function("batches to four readers", |bencher| {
        bencher.iter(|| runtime.block_on(through(&batch, DEPTH_BYTES, 4)));
    });
    group.bench_function("barriers", |bencher| {
        bencher.iter(|| runtime.block_on(through(&barrier, DEPTH_BYTES, 1)));
    });
    group.finish();
}

criterion_group!(benches, channels);
criterion_main!(benches);
