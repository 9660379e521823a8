//! The contract of sinks as a suite that every sink must pass.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use crate::sink::{EpochId, Handle, Sink};

/// How often a commit may wait before it ends.
const BREAKS_MAX: u64 = 200;

/// A sink under test, and what a reader of its target sees.
pub trait Target: Send {
    /// Makes a fresh sink over the same target, as a new process would.
    ///
    /// Its rows have the columns of [`schema`], and the key, if it has one, is `id`.
    fn sink(&self) -> impl Future<Output = Box<dyn Sink>> + Send;
    /// Gives the `id` of each visible row, in any order.
    fn visible(&self) -> impl Future<Output = Vec<i64>> + Send;
    /// Gives how many things are staged: files, uploads, epochs.
    fn staged(&self) -> impl Future<Output = usize> + Send;
}

/// Gives the columns of the rows that the suite writes.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("origin", DataType::Utf8View, true),
    ]))
}

/// Makes rows with these ids. Their origins are few, and one is NULL.
pub fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let origin = |id: i64| match id % 4 {
        0 => Some("JFK"),
        1 => Some("LGA"),
        2 => Some("a/b=c ../é"),
        _ => None,
    };
    let origins: StringViewArray = ids.clone().map(origin).collect();
    let columns: Vec<Arc<dyn Array>> = vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(origins)];
    RecordBatch::try_new(schema(), columns).expect("the columns are those of the schema")
}

/// Gives the ids in a batch that a reader has read.
pub fn ids(batch: &RecordBatch) -> Vec<i64> {
    let column = batch.column_by_name("id").expect("rows have an id");
    column.as_primitive::<Int64Type>().values().to_vec()
}

/// Runs the whole suite; each call of `target` gives a new and empty target.
///
/// # Panics
///
/// Where the sink breaks the contract.
pub async fn conforms<T: Target, F: Future<Output = T>>(target: impl Fn() -> F) {
    nothing_is_visible_before_the_commit(target().await).await;
    epochs_without_rows_prepare_nothing(target().await).await;
    a_fresh_process_commits(target().await).await;
    commits_are_idempotent(target().await).await;
    a_commit_that_breaks_off_is_done_again(target().await).await;
    sweep_removes_what_no_record_names(target().await).await;
    sweep_spares_its_own_generation(target().await).await;
    many_epochs_land_whole(target().await).await;
    memory_is_told_until_it_is_free(target().await).await;
}

fn id(generation: u64, epoch: u64) -> EpochId {
    EpochId { generation, epoch }
}

async fn prepared(sink: &mut dyn Sink, id: EpochId, ids: std::ops::Range<i64>) -> Handle {
    let count = ids.end - ids.start;
    let middle = ids.start + count / 2;
    sink.write(id, &rows(ids.start..middle)).await.expect("rows are written");
    sink.write(id, &rows(middle..ids.end)).await.expect("rows are written");
    let prepared = sink.prepare(id).await.expect("an epoch is prepared");
    assert_eq!(i64::try_from(prepared.rows).expect("few rows"), count, "prepare counts the rows");
    assert!(prepared.bytes > 0, "prepare counts the bytes");
    // Through text, as a commit record does.
    let handle = prepared.handle.expect("an epoch with rows has a handle");
    serde_json::from_str(&handle.to_string()).expect("a handle is JSON")
}

async fn sees(target: &impl Target, expected: impl IntoIterator<Item = i64>) {
    let mut visible = target.visible().await;
    visible.sort_unstable();
    assert_eq!(visible, expected.into_iter().collect::<Vec<_>>());
}

async fn nothing_is_visible_before_the_commit(target: impl Target) {
    let mut sink = target.sink().await;
    let handle = prepared(sink.as_mut(), id(1, 1), 0..20).await;
    sees(&target, []).await;
    sink.committer().commit(id(1, 1), &handle).await.expect("an epoch is committed");
    sees(&target, 0..20).await;
    assert_eq!(target.staged().await, 0, "a commit leaves nothing staged");
}

async fn epochs_without_rows_prepare_nothing(target: impl Target) {
    let mut sink = target.sink().await;
    sink.write(id(1, 1), &rows(0..0)).await.expect("no rows are written");
    let empty = sink.prepare(id(1, 1)).await.expect("an epoch is prepared");
    assert_eq!(empty, crate::sink::Prepared::default());
    let handle = prepared(sink.as_mut(), id(1, 2), 0..4).await;
    sink.committer().commit(id(1, 2), &handle).await.expect("an epoch is committed");
    let empty = sink.prepare(id(1, 3)).await.expect("an epoch is prepared");
    assert_eq!(empty.handle, None);
    sees(&target, 0..4).await;
}

async fn a_fresh_process_commits(target: impl Target) {
    let handle = prepared(target.sink().await.as_mut(), id(1, 1), 0..10).await;
    sees(&target, []).await;
    let committer = target.sink().await.committer();
    committer.sweep(2, std::slice::from_ref(&handle)).await.expect("a sweep spares what it is told to keep");
    committer.commit(id(1, 1), &handle).await.expect("another process commits");
    sees(&target, 0..10).await;
}

async fn commits_are_idempotent(target: impl Target) {
    let mut sink = target.sink().await;
    let first = prepared(sink.as_mut(), id(1, 1), 0..10).await;
    let second = prepared(sink.as_mut(), id(1, 2), 10..20).await;
    for (epoch, handle) in [(1, &first), (1, &first), (2, &second)] {
        sink.committer().commit(id(1, epoch), handle).await.expect("an epoch is committed");
    }
    target.sink().await.committer().commit(id(1, 2), &second).await.expect("another process commits again");
    sees(&target, 0..20).await;
}

/// Breaks commits off at each place where they wait, and has another process do them again.
async fn a_commit_that_breaks_off_is_done_again(target: impl Target) {
    let mut sink = target.sink().await;
    let committer = sink.committer();
    let mut end = 0;
    for polls in 0..BREAKS_MAX {
        let number = id(1, polls + 1);
        let handle = prepared(sink.as_mut(), number, end..end + 4).await;
        end += 4;
        let done = within_polls(polls, committer.commit(number, &handle)).await;
        let again = target.sink().await.committer().commit(number, &handle).await;
        again.expect("a commit that has broken off is done again");
        sees(&target, 0..end).await;
        if let Some(done) = done {
            done.expect("an epoch is committed");
            assert_eq!(target.staged().await, 0, "commits leave nothing staged");
            return;
        }
    }
    panic!("a commit does not end within {BREAKS_MAX} polls");
}

/// Waits for a future, and drops it after some polls.
async fn within_polls<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

async fn sweep_removes_what_no_record_names(target: impl Target) {
    let mut sink = target.sink().await;
    let named = prepared(sink.as_mut(), id(1, 1), 0..10).await;
    let lost = prepared(sink.as_mut(), id(1, 2), 10..20).await;
    sink.write(id(1, 3), &rows(20..30)).await.expect("rows are written");
    drop(sink);

    let committer = target.sink().await.committer();
    assert!(committer.sweep(2, std::slice::from_ref(&named)).await.expect("a sweep") > 0);
    committer.commit(id(1, 1), &named).await.expect("what was kept can be committed");
    assert_eq!(target.staged().await, 0, "a sweep and a commit leave nothing staged");
    assert!(committer.commit(id(1, 2), &lost).await.is_err(), "what was swept cannot be committed");
    sees(&target, 0..10).await;
    assert_eq!(committer.sweep(3, &[]).await.expect("a sweep"), 0, "there is nothing left to sweep");
}

async fn sweep_spares_its_own_generation(target: impl Target) {
    let mut sink = target.sink().await;
    let handle = prepared(sink.as_mut(), id(2, 7), 0..10).await;
    assert_eq!(sink.committer().sweep(2, &[]).await.expect("a sweep"), 0);
    sink.committer().commit(id(2, 7), &handle).await.expect("an epoch is committed");
    sees(&target, 0..10).await;
}

async fn many_epochs_land_whole(target: impl Target) {
    let mut sink = target.sink().await;
    let committer = sink.committer();
    let mut waiting = Vec::new();
    for epoch in 0_i64..20 {
        let number = id(1, epoch.unsigned_abs());
        waiting.push((number, prepared(sink.as_mut(), number, epoch * 10..epoch * 10 + 10).await));
        // The committing half lags behind, as it may.
        if epoch % 3 == 0 {
            for (number, handle) in waiting.drain(..) {
                committer.commit(number, &handle).await.expect("an epoch is committed");
            }
        }
    }
    for (number, handle) in waiting {
        committer.commit(number, &handle).await.expect("an epoch is committed");
    }
    sees(&target, 0..200).await;
    assert_eq!(target.staged().await, 0);
}

async fn memory_is_told_until_it_is_free(target: impl Target) {
    let mut sink = target.sink().await;
    assert_eq!(sink.held_bytes(), 0);
    let mut last = 0;
    for (epoch, end) in [(1, 100), (2, 10_000)] {
        sink.write(id(1, epoch), &rows(0..end)).await.expect("rows are written");
        let held = sink.held_bytes();
        assert!(held > last, "{end} rows take {held} bytes, fewer ones {last}");
        last = held;
        sink.prepare(id(1, epoch)).await.expect("an epoch is prepared");
        assert_eq!(sink.held_bytes(), 0, "what is prepared takes no memory");
    }
}
