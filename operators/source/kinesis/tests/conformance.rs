//! What must hold over any stream that keeps the service's rules.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::super::service::ShardFacts;
use super::super::{Aggregated, KinesisSettings, KinesisSource, Mode, OnDataLoss, Start};
use crate::aws::AwsSettings;
use crate::batch::Payload;
use crate::position::{Cut, Position};
use crate::source::{Source, SourceEvent};
use crate::testing::source::conforms;

/// More events than any test needs: one that goes on for ever ends here.
const EVENTS_MAX: usize = 20_000;

/// A stream that the suite can write to and reshard.
#[async_trait]
pub trait Stream: Sync {
    /// Makes a source that reads the stream.
    fn source(&self, settings: KinesisSettings) -> KinesisSource;
    /// Puts one record for each number; its bytes are the number in digits.
    async fn put(&self, numbers: Range<u64>);
    /// Lists the shards.
    async fn shards(&self) -> Vec<ShardFacts>;
    /// Splits a shard into halves.
    async fn split(&self, shard: &str);
    /// Merges two adjacent shards.
    async fn merge(&self, a: &str, b: &str);
}

/// The contract of all sources, over a stream that is at rest.
pub async fn keeps_the_contract_of_sources<S: Stream>(stream: &S, name: &str) {
    stream.put(0..300).await;
    let seen = conforms(|_| async { Box::new(stream.source(settings(name, Start::Earliest))) as _ }).await;
    assert!(seen.rejects.is_empty(), "{seen:?}");
}

/// Reads, commits and crashes as the engine does.
pub struct Consumer<'a, S> {
    stream: &'a S,
    settings: KinesisSettings,
    pub source: KinesisSource,
    pub committed: Cut,
    /// Committed rows.
    pub rows: Vec<Row>,
    /// Rows of the open epoch.
    pub open: Vec<Row>,
    parents: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    events: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub shard: Arc<str>,
    pub offset: String,
    pub data: String,
}

impl<'a, S: Stream> Consumer<'a, S> {
    pub async fn new(stream: &'a S, settings: KinesisSettings) -> Self {
        Self::resume(stream, settings, Cut::default(), Vec::new()).await
    }

    pub async fn resume(stream: &'a S, settings: KinesisSettings, committed: Cut, rows: Vec<Row>) -> Self {
        let mut source = stream.source(settings.clone());
        source.open(&committed).await.unwrap();
        Self { stream, settings, source, committed, rows, open: Vec::new(), parents: BTreeMap::new(), events: 0 }
    }

    /// Asks for one event; tells whether it was `Idle`.
    pub async fn step(&mut self) -> bool {
        self.events += 1;
        assert!(self.events < EVENTS_MAX, "reads for ever: {:?}", self.source);
        match self.source.next().await.unwrap() {
            SourceEvent::Idle => true,
            event @ (SourceEvent::End | SourceEvent::Reject { .. }) => panic!("a stream gives records: {event:?}"),
            SourceEvent::Chunk(chunk) => {
                let Payload::Records(records) = chunk.payload else { panic!("no records") };
                if !records.is_empty() {
                    self.check_parents(&chunk.partition).await;
                }
                self.open.extend(records.into_iter().map(|record| Row {
                    shard: chunk.partition.clone(),
                    offset: record.offset,
                    data: String::from_utf8(record.data.to_vec()).unwrap(),
                }));
                false
            }
        }
    }

    async fn check_parents(&mut self, shard: &Arc<str>) {
        if !self.parents.contains_key(shard) {
            self.parents = self.stream.shards().await.into_iter().map(|s| (s.id, s.parents)).collect();
        }
        for parent in &self.parents[shard] {
            let position = self.committed.advanced.get(parent.as_ref());
            let is_done = matches!(position, None | Some(Position::Done { .. }));
            assert!(is_done, "{shard} was read before the end of {parent} was committed: {position:?}");
        }
    }

    /// Commits all that was read.
    pub async fn commit(&mut self) {
        let cut = self.source.cut();
        // A cut goes through the commit record.
        let cut = serde_json::from_str(&serde_json::to_string(&cut).unwrap()).unwrap();
        self.committed.fold(&cut);
        self.rows.append(&mut self.open);
        self.source.committed(&cut).await.unwrap();
    }

    /// Loses all that was not committed.
    pub async fn crash(&mut self) {
        let (committed, rows) = (self.committed.clone(), std::mem::take(&mut self.rows));
        let events = self.events;
        *self = Self::resume(self.stream, self.settings.clone(), committed, rows).await;
        self.events = events;
    }

    /// Reads and commits until the source says that it has caught up.
    pub async fn read_to_idle(&mut self) {
        while !self.step().await {
            self.commit().await;
        }
        self.commit().await;
    }

    /// Checks that each of these numbers was read once, and each shard in order.
    pub fn check(&self, numbers: Range<u64>) {
        let mut read: Vec<u64> = self.rows.iter().map(|row| row.data.parse().unwrap()).collect();
        read.sort_unstable();
        let missing: Vec<_> = numbers.clone().filter(|n| read.binary_search(n).is_err()).collect();
        assert!(missing.is_empty(), "{} numbers are missing: {missing:?}", missing.len());
        assert_eq!(read, numbers.collect::<Vec<_>>(), "records came twice");
        let mut newest: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for row in &self.rows {
            let place = (row.offset.len(), row.offset.as_str());
            let before = newest.insert(&row.shard, place);
            assert!(before < Some(place), "shard {} was read out of order", row.shard);
        }
    }
}

pub fn settings(stream: &str, start: Start) -> KinesisSettings {
    KinesisSettings {
        name: "intake".into(),
        stream: stream.into(),
        start,
        mode: Mode::Poll,
        aggregated: Aggregated::Auto,
        on_data_loss: OnDataLoss::Fail,
        aws: AwsSettings::default(),
    }
}

async fn open_shards(stream: &impl Stream) -> Vec<Arc<str>> {
    let mut open: Vec<_> = stream.shards().await.into_iter().filter(|s| !s.closed).collect();
    open.sort_by_key(|shard| *shard.hash_range.as_ref().unwrap().start());
    open.into_iter().map(|shard| shard.id).collect()
}

/// Every record once from the oldest on, and again from each of several cuts.
pub async fn every_record_once_from_every_cut(stream: &impl Stream, name: &str, total: u64) {
    stream.put(0..total).await;
    let settings = settings(name, Start::Earliest);
    let mut consumer = Consumer::new(stream, settings.clone()).await;
    let mut cuts = Vec::new();
    while !consumer.step().await {
        consumer.commit().await;
        cuts.push((consumer.committed.clone(), consumer.rows.len()));
    }
    consumer.check(0..total);
    assert_eq!(consumer.rows.iter().map(|row| &row.shard).collect::<BTreeSet<_>>().len(), 3);
    assert!(cuts.len() > 2);
    for (cut, rows) in cuts.iter().step_by((cuts.len() / 6).max(1)) {
        let rows = consumer.rows[..*rows].to_vec();
        let mut resumed = Consumer::resume(stream, settings.clone(), cut.clone(), rows).await;
        resumed.read_to_idle().await;
        resumed.check(0..total);
    }
}

/// Splits and merges in turn under load, with a crash every `crash_every` events and a commit every `commit_every`.
pub async fn reshards_lose_nothing(
    stream: &impl Stream,
    name: &str,
    reshards: usize,
    (commit_every, crash_every): (usize, usize),
) {
    let mut consumer = Consumer::new(stream, settings(name, Start::Earliest)).await;
    // The first cut stands before any crash: from now on "the oldest record" is decided.
    consumer.commit().await;
    let mut total = 0;
    let mut events = 0;
    for round in 0..reshards {
        stream.put(total..total + 60).await;
        let open = open_shards(stream).await;
        match round % 2 {
            0 => stream.split(&open[round % open.len()]).await,
            _ => stream.merge(&open[round % (open.len() - 1)], &open[round % (open.len() - 1) + 1]).await,
        }
        stream.put(total + 60..total + 120).await;
        total += 120;
        for _ in 0..10 {
            events += 1;
            consumer.step().await;
            if events % commit_every == 0 {
                consumer.commit().await;
            }
            if events % crash_every == 0 {
                consumer.crash().await;
            }
        }
    }
    consumer.crash().await;
    consumer.read_to_idle().await;
    consumer.check(0..total);
    let reading: BTreeSet<_> = consumer.source.reading().into_iter().collect();
    assert_eq!(reading, open_shards(stream).await.into_iter().collect());
}

/// "Latest" is a time from the first cut on: a crash before the first record loses nothing put since.
pub async fn latest_is_the_time_of_the_first_start(stream: &impl Stream, name: &str) {
    stream.put(0..40).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut consumer = Consumer::new(stream, settings(name, Start::Latest)).await;
    consumer.commit().await;
    assert!(consumer.committed.advanced.values().all(|p| matches!(p, Position::Time { .. })));
    assert_eq!(consumer.committed.advanced.len(), 3);
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.put(40..80).await;
    consumer.crash().await;
    let open = open_shards(stream).await;
    stream.split(&open[1]).await;
    stream.put(80..120).await;
    consumer.read_to_idle().await;
    consumer.check(40..120);
}
