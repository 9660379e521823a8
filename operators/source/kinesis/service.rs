//! The calls to the service, behind a seam at which tests put a stream of their own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::Builder;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{ChildShard, HashKeyRange, Shard, ShardFilter, ShardFilterType, ShardIteratorType};
use bytes::Bytes;

use super::kpl::HashRange;
use crate::error::Error;

/// How long one attempt of a call may take: an answer of 10 MB at the 2 MB/s
/// of a shard takes 5 s, and a call that hangs must not hold its shard up for long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the service, or a stand-in for it, is asked. A call is one attempt or
/// little more: the caller backs off and asks again.
#[async_trait]
pub(super) trait Service: Send + Sync {
    /// Tells how long the stream keeps records.
    async fn retention(&self) -> Result<Duration, Fault>;
    /// Lists shards, one page at a time.
    async fn list_shards(&self, page: ListPage<'_>) -> Result<ShardPage, Fault>;
    /// Gives an iterator, good for 5 minutes.
    async fn iterator(&self, shard: &str, from: &IteratorFrom) -> Result<String, Fault>;
    /// Reads at most so many records from an iterator.
    async fn records(&self, iterator: &str, records_max: u32) -> Result<Answer, Fault>;
}

/// Which page of which list of shards.
#[derive(Debug, Clone, Copy)]
pub(super) enum ListPage<'a> {
    /// The first page.
    First(Filter),
    /// The page behind one that gave this token. The token stands alone: it
    /// carries the stream and the filter.
    Next(&'a str),
}

/// Which shards to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// All that hold records or will.
    All,
    /// Those that are open.
    AtLatest,
    /// Those that were open when the oldest record was put.
    AtTrimHorizon,
    /// Those that were open at this time, in milliseconds since the Unix epoch.
    AtTime(i64),
}

/// Some shards, and how to get more.
#[derive(Debug)]
pub(super) struct ShardPage {
    /// The shards.
    pub shards: Vec<ShardFacts>,
    /// The token of the next page, if there is one.
    pub next: Option<String>,
}

/// What the service tells about a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardFacts {
    /// The shard's id.
    pub id: Arc<str>,
    /// The shards it was split from or merged of.
    pub parents: Vec<Arc<str>>,
    /// The hash keys it is responsible for.
    pub hash_range: Option<HashRange>,
    /// Whether it takes no more records (it has an ending sequence number).
    pub closed: bool,
}

/// Where an iterator begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IteratorFrom {
    /// At the oldest record.
    TrimHorizon,
    /// At the first record put at or after this time, in milliseconds since the Unix epoch.
    Time(i64),
    /// At the record with this sequence number.
    At(String),
    /// Behind the record with this sequence number.
    After(String),
}

/// What reading gave.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The records, in order.
    pub records: Vec<RawRecord>,
    /// The iterator to go on with; nothing at the end of the shard.
    pub next: Option<String>,
    /// How far the answer is behind the newest record.
    pub lag_ms: Option<u64>,
    /// At the end of the shard: its children.
    pub children: Vec<ShardFacts>,
}

/// A record as the service has it.
#[derive(Debug, Clone)]
pub(super) struct RawRecord {
    /// The sequence number.
    pub sequence: String,
    /// The partition key.
    pub key: Option<String>,
    /// The bytes.
    pub data: Bytes,
    /// When the service took it, in milliseconds since the Unix epoch.
    pub arrival_ms: Option<i64>,
}

/// Why a call failed, by what is to be done.
#[derive(Debug)]
pub(super) enum Fault {
    /// Throttled, or the service or the network is not there: back off.
    Busy(Error),
    /// The iterator is too old: make a new one.
    Expired(Error),
    /// The service does not take an argument, such as a position.
    Invalid(Error),
    /// There is no such stream or shard.
    Missing(Error),
    /// The service will not serve us: stop.
    Refused(Error),
}

impl Fault {
    /// Gives the error to report when nothing else is to be done.
    pub fn into_error(self) -> Error {
        match self {
            Fault::Busy(e) | Fault::Expired(e) | Fault::Invalid(e) | Fault::Missing(e) | Fault::Refused(e) => e,
        }
    }
}

/// Lists all shards that pass the filter, page by page.
pub(super) async fn list_all(service: &dyn Service, filter: Filter) -> Result<Vec<ShardFacts>, Fault> {
    let mut page = service.list_shards(ListPage::First(filter)).await?;
    let mut shards = page.shards;
    while let Some(token) = page.next {
        page = service.list_shards(ListPage::Next(&token)).await?;
        shards.append(&mut page.shards);
    }
    Ok(shards)
}

/// The service itself.
pub(super) struct Kinesis {
    /// Reads records, and never tries again by itself: each try counts against the shard's limit.
    data: Client,
    /// Asks about the stream, with the SDK's few retries.
    control: Client,
    stream: String,
}

impl Kinesis {
    /// Makes the clients for a stream given by name or ARN.
    pub fn new(config: &SdkConfig, stream: &str) -> Self {
        let client =
            |retry| Client::from_conf(Builder::from(config).timeout_config(timeouts()).retry_config(retry).build());
        Self {
            data: client(RetryConfig::disabled()),
            control: client(RetryConfig::standard()),
            stream: stream.to_owned(),
        }
    }

    fn name(&self) -> Option<String> {
        (!is_arn(&self.stream)).then(|| self.stream.clone())
    }

    fn arn(&self) -> Option<String> {
        is_arn(&self.stream).then(|| self.stream.clone())
    }

    fn fault<E>(&self, doing: &str, error: SdkError<E>) -> Fault
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        fault(format!("could not {doing} of the kinesis stream {}", self.stream), error)
    }
}

#[async_trait]
impl Service for Kinesis {
    async fn retention(&self) -> Result<Duration, Fault> {
        let call = self.control.describe_stream_summary().set_stream_name(self.name()).set_stream_arn(self.arn());
        let answer = call.send().await.map_err(|e| self.fault("read the summary", e))?;
        let hours = answer.stream_description_summary().map_or(24, |s| s.retention_period_hours());
        Ok(Duration::from_secs(u64::try_from(hours).unwrap_or(24) * 3600))
    }

    async fn list_shards(&self, page: ListPage<'_>) -> Result<ShardPage, Fault> {
        let call = match page {
            ListPage::First(filter) => self
                .control
                .list_shards()
                .set_stream_name(self.name())
                .set_stream_arn(self.arn())
                .set_shard_filter(shard_filter(filter)),
            ListPage::Next(token) => self.control.list_shards().next_token(token),
        };
        let answer = call.send().await.map_err(|e| self.fault("list the shards", e))?;
        Ok(ShardPage { shards: answer.shards().iter().map(facts_of).collect(), next: answer.next_token })
    }

    async fn iterator(&self, shard: &str, from: &IteratorFrom) -> Result<String, Fault> {
        let call =
            self.data.get_shard_iterator().set_stream_name(self.name()).set_stream_arn(self.arn()).shard_id(shard);
        let call = match from {
            IteratorFrom::TrimHorizon => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
            IteratorFrom::Time(ms) => {
                call.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(*ms))
            }
            IteratorFrom::At(sequence) => {
                call.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(sequence)
            }
            IteratorFrom::After(sequence) => {
                call.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(sequence)
            }
        };
        let doing = format!("get an iterator for shard {shard}");
        let answer = call.send().await.map_err(|e| self.fault(&doing, e))?;
        answer.shard_iterator.ok_or_else(|| {
            Fault::Busy(Error::unavailable(format!("kinesis gave no iterator for shard {shard} of {}", self.stream)))
        })
    }

    async fn records(&self, iterator: &str, records_max: u32) -> Result<Answer, Fault> {
        let limit = i32::try_from(records_max).unwrap_or(i32::MAX);
        let call = self.data.get_records().shard_iterator(iterator).limit(limit).set_stream_arn(self.arn());
        let answer = call.send().await.map_err(|e| self.fault("read records", e))?;
        Ok(Answer {
            records: answer.records.into_iter().map(raw).collect(),
            next: answer.next_shard_iterator,
            lag_ms: answer.millis_behind_latest.and_then(|ms| u64::try_from(ms).ok()),
            children: answer.child_shards.unwrap_or_default().iter().map(facts_of_child).collect(),
        })
    }
}

/// Gives how long calls may take.
pub(super) fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build()
}

pub(super) fn raw(record: aws_sdk_kinesis::types::Record) -> RawRecord {
    RawRecord {
        arrival_ms: record.approximate_arrival_timestamp.and_then(|t| t.to_millis().ok()),
        sequence: record.sequence_number,
        key: record.partition_key,
        data: record.data.into_inner().into(),
    }
}

pub(super) fn is_arn(stream: &str) -> bool {
    stream.starts_with("arn:")
}

fn shard_filter(filter: Filter) -> Option<ShardFilter> {
    let (kind, time) = match filter {
        Filter::All => return None,
        Filter::AtLatest => (ShardFilterType::AtLatest, None),
        Filter::AtTrimHorizon => (ShardFilterType::AtTrimHorizon, None),
        Filter::AtTime(ms) => (ShardFilterType::AtTimestamp, Some(DateTime::from_millis(ms))),
    };
    Some(ShardFilter::builder().r#type(kind).set_timestamp(time).build().expect("the type, all that it needs, is set"))
}

fn facts_of(shard: &Shard) -> ShardFacts {
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    ShardFacts {
        id: shard.shard_id().into(),
        parents: parents.into_iter().flatten().map(Arc::from).collect(),
        hash_range: shard.hash_key_range().and_then(hash_range),
        closed: shard.sequence_number_range().is_some_and(|range| range.ending_sequence_number().is_some()),
    }
}

pub(super) fn facts_of_child(child: &ChildShard) -> ShardFacts {
    ShardFacts {
        id: child.shard_id().into(),
        parents: child.parent_shards().iter().map(|parent| Arc::from(parent.as_str())).collect(),
        hash_range: child.hash_key_range().and_then(hash_range),
        closed: false,
    }
}

fn hash_range(range: &HashKeyRange) -> Option<HashRange> {
    Some(range.starting_hash_key().parse().ok()?..=range.ending_hash_key().parse().ok()?)
}

/// Sorts a failed call by what is to be done.
pub(super) fn fault<E>(doing: String, error: SdkError<E>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    let is_answer = matches!(error, SdkError::ServiceError(_)) && status < 500 && status != 429;
    let is_unbuilt = matches!(error, SdkError::ConstructionFailure(_));
    let code = if is_answer { error.code().unwrap_or_default().to_owned() } else { String::new() };
    match code.as_str() {
        _ if is_unbuilt => Fault::Refused(Error::config(doing).because(error)),
        "ExpiredIteratorException" => Fault::Expired(Error::unavailable(doing).because(error)),
        "InvalidArgumentException" => Fault::Invalid(Error::config(doing).because(error)),
        "ResourceNotFoundException" => Fault::Missing(
            Error::config(format!("{doing}; look at the name, the account and the region")).because(error),
        ),
        "AccessDeniedException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "KMSAccessDeniedException"
        | "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired"
        | "UnrecognizedClientException"
        | "ValidationException" => {
            Fault::Refused(Error::config(format!("{doing}; look at the permissions and the key")).because(error))
        }
        // Throttling under its many names, and what is not known: a wrong guess
        // here costs a back-off with a time limit, a wrong stop costs a night.
        _ => Fault::Busy(Error::unavailable(doing).because(error)),
    }
}
