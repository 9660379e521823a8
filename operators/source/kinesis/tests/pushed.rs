//! The suite over the stream in memory when it pushes records, and what goes wrong with subscriptions.

use std::time::Duration;

use super::super::service::IteratorFrom;
use super::conformance::{self, Consumer, Stream};
use super::fake::{Break, Call, FakeStream, settings};

fn pushing(shards: usize) -> FakeStream {
    let mut stream = FakeStream::new(shards);
    stream.pushes = true;
    stream
}

#[tokio::test(start_paused = true)]
async fn every_record_once_from_every_cut() {
    conformance::every_record_once_from_every_cut(&pushing(3), "fake", 2000).await;
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contract_of_sources() {
    conformance::keeps_the_contract_of_sources(&pushing(3), "fake").await;
}

#[tokio::test(start_paused = true)]
async fn reshards_lose_nothing_wherever_it_crashes() {
    for commit_every in 1..4 {
        for crash_every in [1, 2, 3, 5, 7, 100] {
            conformance::reshards_lose_nothing(&pushing(3), "fake", 10, (commit_every, crash_every)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn latest_is_the_time_of_the_first_start() {
    conformance::latest_is_the_time_of_the_first_start(&pushing(3), "fake").await;
}

#[tokio::test(start_paused = true)]
async fn the_mode_may_change_between_two_starts() {
    let mut stream = FakeStream::new(3);
    let (mut committed, mut rows) = (crate::position::Cut::default(), Vec::new());
    for round in 0..6_u64 {
        stream.put(round * 100..(round + 1) * 100).await;
        stream.pushes = round % 2 == 1;
        let mut consumer = Consumer::resume(&stream, settings(), committed, rows).await;
        for _ in 0..2 {
            consumer.step().await;
        }
        consumer.commit().await;
        (committed, rows) = (consumer.committed.clone(), consumer.rows.clone());
    }
    let mut consumer = Consumer::resume(&stream, settings(), committed, rows).await;
    consumer.read_to_idle().await;
    consumer.check(0..600);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_ends_is_taken_out_again_behind_its_last_number() {
    let stream = pushing(1);
    stream.put(0..10).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(1000) {
        assert!(consumer.step().await, "nothing is put");
    }
    let taken = stream.state().subscriptions.clone();
    assert_eq!(taken.len(), 4, "one every five minutes: {taken:?}");
    let numbers: Vec<_> = taken.iter().skip(1).map(|(_, from, _)| format!("{from:?}")).collect();
    assert!(taken.iter().skip(1).all(|(_, from, _)| matches!(from, IteratorFrom::After(_))), "{taken:?}");
    // The number moves on though there is no record.
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    stream.put(10..20).await;
    consumer.read_to_idle().await;
    consumer.check(0..20);
}

#[tokio::test(start_paused = true)]
async fn a_silent_subscription_is_taken_out_again() {
    let stream = pushing(1);
    stream.put(0..100).await;
    stream.breaks(Call::Event, Break::Silence, 2);
    let mut consumer = Consumer::new(&stream, settings()).await;
    let start = tokio::time::Instant::now();
    consumer.read_to_idle().await;
    consumer.check(0..100);
    assert_eq!(stream.state().subscriptions.len(), 3);
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_subscription_of_a_dead_process_is_waited_for() {
    let stream = pushing(2);
    stream.put(0..100).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.step().await;
    consumer.commit().await;
    consumer.crash().await;
    consumer.read_to_idle().await;
    consumer.check(0..100);
    assert!(stream.state().in_use > 0, "the new process was not in the way of the old one");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_breaks_loses_nothing() {
    for with in [Break::Busy, Break::Expired, Break::Invalid] {
        let stream = pushing(3);
        stream.put(0..500).await;
        let mut consumer = Consumer::new(&stream, settings()).await;
        for _ in 0..10 {
            stream.breaks(Call::Event, with, 2);
            consumer.step().await;
        }
        stream.state().faults.clear();
        consumer.read_to_idle().await;
        consumer.check(0..500);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_waited_for_is_not_taken() {
    let stream = pushing(1);
    stream.put(0..500).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.step().await;
    let seen = consumer.open.len();
    for _ in 0..20 {
        // As under backpressure.
        crate::source::Source::maintain(&mut consumer.source).await.unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    consumer.step().await;
    assert!(consumer.open.len() <= seen + 80, "{} records were held", consumer.open.len());
    consumer.read_to_idle().await;
    consumer.check(0..500);
}
