//! The suite over the stream in memory, with a crash at every place.

use super::conformance::{self, Consumer, Stream};
use super::fake::{FakeStream, settings};
use crate::position::Position;
use crate::source::Source;

#[tokio::test(start_paused = true)]
async fn every_record_once_from_every_cut() {
    let stream = FakeStream::new(3);
    conformance::every_record_once_from_every_cut(&stream, "fake", 2000).await;
    assert_eq!(stream.state().throttled, 0, "the pace is within the service's limit");
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contract_of_sources() {
    conformance::keeps_the_contract_of_sources(&FakeStream::new(3), "fake").await;
}

#[tokio::test(start_paused = true)]
async fn reshards_lose_nothing_wherever_it_crashes() {
    for commit_every in 1..4 {
        for crash_every in [1, 2, 3, 5, 7, 100] {
            let stream = FakeStream::new(3);
            conformance::reshards_lose_nothing(&stream, "fake", 10, (commit_every, crash_every)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn latest_is_the_time_of_the_first_start() {
    conformance::latest_is_the_time_of_the_first_start(&FakeStream::new(3), "fake").await;
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_a_commit_keeps_the_source_from_idle() {
    let stream = FakeStream::new(1);
    stream.put(0..10).await;
    stream.split("shardId-000000000000").await;
    stream.put(10..20).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    for _ in 0..30 {
        assert!(!consumer.step().await, "idle before the children are read");
    }
    assert_eq!(consumer.open.len(), 10);
    assert_eq!(consumer.source.reading(), ["shardId-000000000001".into(), "shardId-000000000002".into()]);
    let cut = consumer.source.cut();
    assert!(matches!(cut.advanced["shardId-000000000000"], Position::Done { .. }));
    assert_eq!(cut.advanced["shardId-000000000001"], Position::Start);
    assert_eq!(cut.advanced["shardId-000000000002"], Position::Start);
    consumer.source.committed(&cut).await.unwrap();
    consumer.committed.fold(&cut);
    consumer.read_to_idle().await;
    consumer.check(0..20);
}

#[tokio::test(start_paused = true)]
async fn shards_that_the_service_lists_no_more_are_forgotten() {
    let stream = FakeStream::new(1);
    stream.put(0..10).await;
    stream.split("shardId-000000000000").await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    assert_eq!(consumer.committed.advanced.len(), 3);
    let day = stream.state().retention;
    tokio::time::advance(day + day / 8).await;
    stream.trim();
    for _ in 0..5 {
        consumer.step().await;
        consumer.commit().await;
    }
    assert_eq!(consumer.committed.advanced.len(), 2, "{:?}", consumer.committed);
    stream.put(10..20).await;
    consumer.crash().await;
    consumer.read_to_idle().await;
    consumer.check(0..20);
}

#[tokio::test(start_paused = true)]
async fn dropping_next_at_any_await_loses_nothing() {
    let stream = FakeStream::new(3);
    stream.put(0..500).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    for ms in (0..400).map(|n| n % 11) {
        // A dropped future stands for a barrier that came in between.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(ms), consumer.step()).await;
    }
    consumer.commit().await;
    consumer.read_to_idle().await;
    consumer.check(0..500);
}

#[tokio::test(start_paused = true)]
async fn answers_that_come_under_backpressure_are_kept() {
    let stream = FakeStream::new(3);
    stream.put(0..500).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    while consumer.open.len() < 300 {
        consumer.step().await;
        consumer.source.maintain().await.unwrap();
        let asked = stream.state().reads.len();
        consumer.source.maintain().await.unwrap();
        assert_eq!(stream.state().reads.len(), asked, "backpressure asks for no more");
        // Long after an attempt would have timed out: what has come is not asked for again.
        tokio::time::advance(std::time::Duration::from_secs(100)).await;
    }
    consumer.read_to_idle().await;
    consumer.check(0..500);
    let answers = stream.state().reads.len();
    assert!(answers < 500 / 40 + 3 * 8, "{answers} calls");
}
