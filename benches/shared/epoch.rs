//! One epoch of a table, from batches that are decoded.

use arrow::array::RecordBatch;
use futures::StreamExt;
use futures::stream::select_all;
use nexus::operators::transform::Transform;
use nexus::operators::transform::query::Running;

/// Runs one epoch up to a watermark, and gives the rows that came out.
pub async fn run(transform: &mut Transform, batches: &[RecordBatch], watermark_us: i64) -> usize {
    let Running { inputs, rows } = transform.start().await.expect("the query starts");
    let numbered = rows.into_iter().enumerate();
    let mut rows = select_all(numbered.map(|(stream, rows)| rows.map(move |batch| (stream, batch))));
    let feed = async move {
        for batch in batches {
            for input in &inputs {
                input.send(batch.clone()).await;
            }
        }
    };
    let drain = async {
        let mut out = 0;
        while let Some((stream, batch)) = rows.next().await {
            let rows = transform.absorb(stream, batch.expect("the query runs")).expect("states are kept");
            out += rows.map_or(0, |batch| batch.num_rows());
        }
        out
    };
    let ((), mut out) = futures::join!(feed, drain);
    let mut windows = transform.close(1, watermark_us).await.expect("the windows close");
    while let Some(batch) = windows.next().await.expect("the query runs") {
        out += batch.num_rows();
    }
    out
}
