//! The suite over kinesis-local.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, StreamStatus};

use super::super::service::{Filter, Kinesis, ShardFacts, list_all};
use super::super::{KinesisSettings, KinesisSource, Mode, Start};
use super::conformance::{self, Consumer, Stream};
use crate::clock::SystemClock;
use crate::error::ErrorKind;
use crate::position::Cut;
use crate::source::Source;
use crate::testing::kinesis::KinesisServer;

/// Records in one call: what kinesis-local takes well within a client's patience.
const PUT_RECORDS: u64 = 100;

struct LocalStream {
    server: KinesisServer,
    client: Client,
    name: String,
    arn: String,
    mode: Mode,
}

impl LocalStream {
    async fn new(name: &str) -> Self {
        let server = KinesisServer::start().await.unwrap();
        let client = server.client();
        client.create_stream().stream_name(name).shard_count(3).send().await.unwrap();
        let mut stream = Self { server, client, name: name.into(), arn: String::new(), mode: Mode::Poll };
        stream.arn = stream.wait_until_active().await;
        stream
    }

    async fn wait_until_active(&self) -> String {
        loop {
            let answer = self.client.describe_stream_summary().stream_name(&self.name).send().await.unwrap();
            let summary = answer.stream_description_summary.unwrap();
            if summary.stream_status == StreamStatus::Active {
                return summary.stream_arn;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[async_trait]
impl Stream for LocalStream {
    fn source(&self, settings: KinesisSettings) -> KinesisSource {
        let settings = KinesisSettings { mode: self.mode.clone(), ..settings };
        KinesisSource::new(settings, Arc::new(SystemClock), Some(self.server.config()))
    }

    async fn put(&self, numbers: std::ops::Range<u64>) {
        let entry = |number: &u64| {
            let entry = PutRecordsRequestEntry::builder().partition_key(number.to_string());
            entry.data(Blob::new(number.to_string())).build().unwrap()
        };
        for batch in numbers.collect::<Vec<_>>().chunks(PUT_RECORDS as usize) {
            let entries = batch.iter().map(entry).collect();
            let call = self.client.put_records().stream_name(&self.name).set_records(Some(entries));
            assert_eq!(call.send().await.unwrap().failed_record_count(), Some(0));
        }
    }

    async fn shards(&self) -> Vec<ShardFacts> {
        list_all(&Kinesis::new(&self.server.config(), &self.name), Filter::All).await.unwrap()
    }

    async fn split(&self, shard: &str) {
        let facts = self.shards().await.into_iter().find(|facts| facts.id.as_ref() == shard).unwrap();
        let (start, end) = facts.hash_range.unwrap().into_inner();
        let middle = (start + (end - start) / 2 + 1).to_string();
        let call = self.client.split_shard().stream_name(&self.name).shard_to_split(shard);
        call.new_starting_hash_key(middle).send().await.unwrap();
        self.wait_until_active().await;
    }

    async fn merge(&self, a: &str, b: &str) {
        let call = self.client.merge_shards().stream_name(&self.name).shard_to_merge(a);
        call.adjacent_shard_to_merge(b).send().await.unwrap();
        self.wait_until_active().await;
    }
}

#[tokio::test]
async fn every_record_once_from_every_cut() {
    let stream = LocalStream::new("intake").await;
    // By name here, by ARN below.
    conformance::every_record_once_from_every_cut(&stream, "intake", 2000).await;
}

#[tokio::test]
async fn keeps_the_contract_of_sources() {
    let stream = LocalStream::new("intake").await;
    conformance::keeps_the_contract_of_sources(&stream, "intake").await;
}

#[tokio::test]
async fn reshards_lose_nothing() {
    let stream = LocalStream::new("intake").await;
    conformance::reshards_lose_nothing(&stream, &stream.arn, 4, (2, 5)).await;
}

#[tokio::test]
async fn latest_is_the_time_of_the_first_start() {
    let stream = LocalStream::new("intake").await;
    conformance::latest_is_the_time_of_the_first_start(&stream, "intake").await;
}

/// The emulator never ends a closed shard of which records are pushed, so that resharding is left to the fake.
#[tokio::test]
async fn records_that_are_pushed_come_once_and_the_mode_may_change() {
    let mut stream = LocalStream::new("intake").await;
    stream.mode = Mode::FanOut { consumer: "nexus".into() };
    stream.put(0..200).await;
    let settings = conformance::settings("intake", Start::Earliest);
    let mut consumer = Consumer::new(&stream, settings.clone()).await;
    consumer.read_to_idle().await;
    consumer.check(0..200);
    let (committed, rows) = (consumer.committed.clone(), consumer.rows.clone());
    drop(consumer);
    stream.put(200..300).await;
    stream.mode = Mode::Poll;
    let mut consumer = Consumer::resume(&stream, settings.clone(), committed, rows).await;
    consumer.read_to_idle().await;
    consumer.check(0..300);
    let (committed, rows) = (consumer.committed.clone(), consumer.rows.clone());
    drop(consumer);
    stream.put(300..400).await;
    // The consumer is there already: by its ARN now.
    let found = stream.client.list_stream_consumers().stream_arn(&stream.arn).send().await.unwrap();
    stream.mode = Mode::FanOut { consumer: found.consumers()[0].consumer_arn().into() };
    let mut consumer = Consumer::resume(&stream, settings, committed, rows).await;
    consumer.read_to_idle().await;
    consumer.check(0..400);
}

#[tokio::test]
async fn what_cannot_be_opened_says_so() {
    let server = KinesisServer::start().await.unwrap();
    let open = async |config| {
        let settings = conformance::settings("nowhere", Start::Earliest);
        KinesisSource::new(settings, Arc::new(SystemClock), Some(config)).open(&Cut::default()).await.unwrap_err()
    };
    let missing = open(server.config()).await;
    assert_eq!(missing.kind(), ErrorKind::Config);
    assert!(missing.to_string().contains("nowhere"), "{missing}");
    let config = server.config();
    drop(server);
    assert_eq!(open(config).await.kind(), ErrorKind::Unavailable);
}
