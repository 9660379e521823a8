//! Failures of the service, one by one.

use std::time::Duration;

use tokio::time::Instant;

use super::super::kpl::encoder::aggregate;
use super::super::service::IteratorFrom;
use super::super::{Aggregated, KinesisSettings, OnDataLoss, Start};
use super::conformance::{Consumer, Stream};
use super::fake::{Break, Call, FakeStream, settings};
use crate::error::ErrorKind;
use crate::position::{Cut, Position};
use crate::source::{Source, SourceEvent};

const SHARD: &str = "shardId-000000000000";

fn at(sequence: &str, sub_sequence: Option<u64>) -> Cut {
    let mut cut = Cut::default();
    cut.advanced.insert(SHARD.into(), Position::Sequence { sequence: sequence.into(), sub_sequence });
    cut
}

fn lenient() -> KinesisSettings {
    KinesisSettings { on_data_loss: OnDataLoss::Continue, ..settings() }
}

/// Every failure that passes must leave every record read once.
async fn reads_all_in_spite_of(call: Call, with: Break, times: usize) -> FakeStream {
    let stream = FakeStream::new(2);
    stream.put(0..300).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.step().await;
    stream.breaks(call, with, times);
    consumer.read_to_idle().await;
    consumer.check(0..300);
    assert!(stream.state().faults.iter().all(|(c, _)| *c == Call::List), "the failures did not happen");
    stream
}

#[tokio::test(start_paused = true)]
async fn throttles_are_waited_out() {
    reads_all_in_spite_of(Call::Records, Break::Busy, 30).await;
    let stream = reads_all_in_spite_of(Call::Iterator, Break::Busy, 0).await;
    stream.breaks(Call::Iterator, Break::Busy, 10);
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    consumer.check(0..300);
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_is_made_anew_behind_the_last_record() {
    let stream = reads_all_in_spite_of(Call::Records, Break::Expired, 3).await;
    let after = |(_, from): &&(_, IteratorFrom)| matches!(from, IteratorFrom::After(_));
    assert!(stream.state().iterators.iter().filter(after).count() >= 1);
}

#[tokio::test(start_paused = true)]
async fn backpressure_renews_iterators_before_they_expire() {
    let stream = FakeStream::new(1);
    stream.put(0..100).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.step().await;
    tokio::time::advance(Duration::from_secs(900)).await;
    consumer.read_to_idle().await;
    consumer.check(0..100);
    let state = stream.state();
    assert_eq!((state.iterators.len(), state.expired), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_broken_iterator_is_not_used_for_ever() {
    reads_all_in_spite_of(Call::Records, Break::Invalid, 4).await;
}

#[tokio::test(start_paused = true)]
async fn empty_answers_that_lag_are_no_idle() {
    reads_all_in_spite_of(Call::Records, Break::Gap, 25).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_without_iterator_and_children_is_looked_up() {
    let stream = reads_all_in_spite_of(Call::Records, Break::BareEnd, 3).await;
    assert!(stream.shards().await.iter().all(|shard| !shard.closed));
    stream.split(SHARD).await;
    stream.put(300..330).await;
    // Closed, but not read to its end: nothing may be skipped.
    stream.breaks(Call::Records, Break::BareEnd, 2);
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    consumer.check(0..330);
    // Closed and read to its end, and the service never names the children.
    stream.state().names_children = false;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    consumer.check(0..330);
}

#[tokio::test(start_paused = true)]
async fn an_iterator_with_children_is_asked_again() {
    reads_all_in_spite_of(Call::Records, Break::EndAndIterator, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_denied_but_listed_is_read_on() {
    reads_all_in_spite_of(Call::Records, Break::Missing, 2).await;
}

#[tokio::test(start_paused = true)]
async fn listings_that_fail_are_asked_again() {
    let stream = FakeStream::new(2);
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.commit().await;
    stream.put(0..50).await;
    stream.split(SHARD).await;
    stream.put(50..100).await;
    stream.breaks(Call::List, Break::Busy, 6);
    consumer.read_to_idle().await;
    consumer.check(0..100);
    stream.breaks(Call::List, Break::Refused, 1);
    let error = read_to_error(&mut consumer).await;
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn no_success_for_a_quarter_of_an_hour_is_unavailable() {
    let stream = FakeStream::new(1);
    let mut consumer = Consumer::new(&stream, settings()).await;
    stream.breaks(Call::Iterator, Break::Busy, 100_000);
    let start = Instant::now();
    let error = read_to_error(&mut consumer).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("15 minutes") && error.to_string().contains("throttled"), "{error}");
    assert!(start.elapsed() >= Duration::from_secs(900), "{:?}", start.elapsed());
    stream.state().faults.clear();
    stream.put(0..20).await;
    consumer.read_to_idle().await;
    consumer.check(0..20);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stops() {
    let stream = FakeStream::new(1);
    let mut consumer = Consumer::new(&stream, settings()).await;
    stream.breaks(Call::Records, Break::Refused, 1);
    assert_eq!(read_to_error(&mut consumer).await.kind(), ErrorKind::Config);
    stream.breaks(Call::List, Break::Missing, 1);
    assert_eq!(stream.source(settings()).open(&Cut::default()).await.unwrap_err().kind(), ErrorKind::Config);
    stream.breaks(Call::List, Break::Busy, 1);
    assert_eq!(stream.source(settings()).open(&Cut::default()).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

async fn read_to_error(consumer: &mut Consumer<'_, FakeStream>) -> crate::Error {
    for _ in 0..5000 {
        if let Err(error) = consumer.source.next().await {
            return error;
        }
    }
    panic!("no error came");
}

#[tokio::test(start_paused = true)]
async fn a_position_that_is_refused_is_data_loss() {
    let stream = FakeStream::new(1);
    stream.put(0..30).await;
    for _ in 0..2 {
        stream.breaks(Call::Iterator, Break::Invalid, 2);
        let mut strict = Consumer::resume(&stream, settings(), at("5", None), Vec::new()).await;
        for _ in 0..2 {
            let error = read_to_error(&mut strict).await;
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("on_data_loss: continue"), "{error}");
        }
        assert!(strict.source.cut().is_empty());
    }
    stream.breaks(Call::Iterator, Break::Invalid, 1);
    let mut lenient = Consumer::resume(&stream, lenient(), at("5", None), Vec::new()).await;
    lenient.read_to_idle().await;
    lenient.check(0..30);
    let from = stream.state().iterators.last().unwrap().1.clone();
    assert_eq!(from, IteratorFrom::TrimHorizon);
    // Refused wrongly: what was read is there again, and is not handed on again.
    let middle = lenient.rows[9].offset.clone();
    stream.breaks(Call::Iterator, Break::Invalid, 1);
    let rows = lenient.rows[..10].to_vec();
    let settings = KinesisSettings { on_data_loss: OnDataLoss::Continue, ..settings() };
    let mut again = Consumer::resume(&stream, settings, at(&middle, None), rows).await;
    again.read_to_idle().await;
    again.check(0..30);
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_stands_at_the_horizon_is_data_loss() {
    let stream = FakeStream::new(1);
    let retention = stream.state().retention;
    let committed = stream.put_into(SHARD, "k", "0");
    for number in 1..11 {
        tokio::time::advance(retention / 10).await;
        stream.put_into(SHARD, "k", number.to_string());
    }
    // Well within the retention: no alarm.
    let mut behind = Consumer::resume(&stream, settings(), at(&committed, None), Vec::new()).await;
    behind.read_to_idle().await;
    behind.check(1..11);
    // The committed record and the next are trimmed, the one after stands at the horizon.
    tokio::time::advance(retention / 10 * 2 - Duration::from_secs(30)).await;
    stream.trim();
    let mut strict = Consumer::resume(&stream, settings(), at(&committed, None), Vec::new()).await;
    assert_eq!(read_to_error(&mut strict).await.kind(), ErrorKind::Config);
    assert_eq!(read_to_error(&mut strict).await.kind(), ErrorKind::Config, "it stays an error");
    let mut lenient = Consumer::resume(&stream, lenient(), at(&committed, None), Vec::new()).await;
    lenient.read_to_idle().await;
    lenient.check(2..11);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_vanished_unread_is_data_loss() {
    let stream = FakeStream::new(2);
    stream.put(0..10).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.commit().await;
    stream.split(SHARD).await;
    let retention = stream.state().retention;
    tokio::time::advance(retention * 2).await;
    stream.trim();
    stream.put(10..60).await;
    let error = stream.source(settings()).open(&at("7", None)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains(SHARD), "{error}");
    let mut committed = consumer.committed.clone();
    committed.fold(&at("7", None));
    let mut lenient = Consumer::resume(&stream, lenient(), committed, Vec::new()).await;
    lenient.read_to_idle().await;
    lenient.check(10..60);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_shard_keeps_its_start_time_young() {
    let stream = FakeStream::new(1);
    let settings = KinesisSettings { start: Start::Latest, ..settings() };
    let mut consumer = Consumer::new(&stream, settings.clone()).await;
    consumer.commit().await;
    let first = consumer.committed.clone();
    let retention = stream.state().retention;
    for _ in 0..8 {
        consumer.read_to_idle().await;
        tokio::time::advance(retention / 4).await;
    }
    consumer.crash().await;
    stream.put(0..5).await;
    consumer.read_to_idle().await;
    consumer.check(0..5);
    // One that was down all the time cannot know what it missed.
    assert_eq!(stream.source(settings).open(&first).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn a_start_time_is_taken_as_it_is() {
    let stream = FakeStream::new(3);
    stream.put(0..50).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let ms = crate::clock::Clock::now_us(&stream.clock) / 1000;
    stream.put(50..100).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    stream.split(SHARD).await;
    stream.put(100..150).await;
    let from = |ms| KinesisSettings { start: Start::At(ms), ..settings() };
    let mut consumer = Consumer::new(&stream, from(ms)).await;
    consumer.read_to_idle().await;
    consumer.check(50..150);
    let mut oldest = Consumer::new(&stream, from(ms - 10_i64.pow(9))).await;
    oldest.read_to_idle().await;
    oldest.check(0..150);
    let error = stream.source(from(ms + 10_i64.pow(9))).open(&Cut::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn aggregates_are_opened_and_resumed_in_the_middle() {
    let stream = FakeStream::new(1);
    stream.put_into(SHARD, "0", "0");
    let packed = aggregate(&[("a", None, b"1"), ("b", Some("7"), b"2"), ("a", None, b"3")]);
    let sequence = stream.put_into(SHARD, "packed", packed.clone());
    stream.put_into(SHARD, "4", "4");
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    let data: Vec<_> = consumer.rows.iter().map(|row| row.data.as_str()).collect();
    assert_eq!(data, ["0", "1", "2", "3", "4"]);
    assert_eq!(consumer.rows[2].offset, format!("{sequence}:1"));
    for (sub, rest) in [(None, "4"), (Some(0), "234"), (Some(1), "34"), (Some(2), "4"), (Some(9), "4")] {
        let mut resumed = Consumer::resume(&stream, settings(), at(&sequence, sub), Vec::new()).await;
        resumed.read_to_idle().await;
        let data: String = resumed.rows.iter().map(|row| row.data.as_str()).collect();
        assert_eq!(data, rest, "{sub:?}");
    }
    let never = KinesisSettings { aggregated: Aggregated::Never, ..settings() };
    let mut source = stream.source(never);
    source.open(&Cut::default()).await.unwrap();
    let SourceEvent::Chunk(chunk) = source.next().await.unwrap() else { panic!("no chunk") };
    let crate::batch::Payload::Records(records) = chunk.payload else { panic!("no records") };
    assert_eq!((records.len(), &records[1].data, &records[1].offset), (3, &packed, &sequence));
    assert_eq!(chunk.lag_ms, Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_aggregate_for_another_shard_is_read_past() {
    let stream = FakeStream::new(2);
    let elsewhere = aggregate(&[("k", Some(&u128::MAX.to_string()), b"1")]);
    let sequence = stream.put_into(SHARD, "k", elsewhere);
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    assert!(consumer.rows.is_empty());
    assert_eq!(consumer.committed.advanced[SHARD], at(&sequence, None).advanced[SHARD]);
}

#[tokio::test(start_paused = true)]
async fn shards_are_asked_fast_when_behind_and_slowly_at_the_tip() {
    let stream = FakeStream::new(1);
    stream.put(0..400).await;
    let mut consumer = Consumer::new(&stream, settings()).await;
    consumer.read_to_idle().await;
    let calls = stream.state().reads.clone();
    let gaps: Vec<_> = calls.windows(2).map(|w| w[1].1 - w[0].1).collect();
    assert!(gaps.iter().take(8).all(|gap| (200..=260).contains(&gap.as_millis())), "{gaps:?}");
    assert!(gaps.last().unwrap() >= &Duration::from_millis(990), "{gaps:?}");
    assert_eq!(stream.state().throttled, 0);
}

#[tokio::test(start_paused = true)]
async fn large_records_are_read_at_the_pace_of_a_shard() {
    const MIB: usize = 1024 * 1024;
    let stream = FakeStream::new(1);
    for bytes in [1, 1, 10, 3, 10, 10].into_iter().chain([1; 30]) {
        stream.put_into(SHARD, "k", "x".repeat(bytes * MIB));
    }
    let mut consumer = Consumer::new(&stream, settings()).await;
    let start = Instant::now();
    consumer.read_to_idle().await;
    assert_eq!(consumer.rows.iter().map(|row| row.data.len()).sum::<usize>(), 65 * MIB);
    assert_eq!(stream.state().throttled, 0, "no call may come before the bytes of the last are paid for");
    assert!(start.elapsed() < Duration::from_secs(65 / 2 + 10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_source_says_that_it_is_idle_though_next_is_dropped_often() {
    let stream = FakeStream::new(2);
    stream.put(0..10).await;
    let mut source = stream.source(settings());
    source.open(&Cut::default()).await.unwrap();
    let mut idle = 0;
    for _ in 0..100 {
        // An engine drops `next` whenever it has something else to ask of the source.
        let dropped = tokio::time::timeout(Duration::from_millis(200), source.next()).await;
        idle += usize::from(matches!(dropped, Ok(Ok(SourceEvent::Idle))));
    }
    assert!(idle >= 5, "idle was said {idle} times in 20 s");
}
