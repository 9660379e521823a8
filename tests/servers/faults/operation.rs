//! What a request asks for, and the ways in which that can fail.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::http::{Answer, Head};

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An error of the service.
    ServerError,
    /// The service asks for fewer requests: 503 of S3.
    SlowDown,
    /// The connection is reset before the request is read.
    Reset,
    /// The connection is reset when half of the request's body has come.
    ResetInRequest,
    /// The connection is closed in the middle of the answer's body.
    ResetInAnswer,
    /// The answer's body comes in drops.
    Slow,
    /// The request is obeyed, and the connection closed without an answer.
    LostReply,
    /// The request is never answered, nor obeyed.
    Hang,
    /// Another write of the same object is under way: 409 of S3.
    Conflict,
    /// An error in the body of an answer whose status is 200.
    ErrorInAnswer,
    /// An answer that was right when the same was asked first.
    OldListing,
    /// A throughput, of a shard, that is used up.
    Throttled,
    /// Too many calls of a kind in a second.
    LimitExceeded,
    /// An iterator that is too old.
    ExpiredIterator,
    /// No records, though there are some.
    EmptyBehind,
    /// Messages come again that were delivered, and perhaps deleted, before.
    Redelivered,
    /// Messages come in another order.
    Shuffled,
    /// A message is not deleted, and comes again, since its receipt is too old.
    InvalidReceipt,
    /// Some messages of a batch are not deleted.
    PartialBatch,
    /// Whoever asks may not.
    Forbidden,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Get,
    Look,
    List,
    Put,
    Create,
    Begin,
    Part,
    Complete,
    Abort,
    Delete,
    Receive,
    DeleteMessages,
    Extend,
    Records,
    Iterator,
    Shards,
    Other,
}

/// A request that has been read.
pub struct Request {
    /// The head.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
    /// What it asks for.
    pub operation: Operation,
    /// And of what: a key, a prefix, a shard.
    pub of: String,
}

impl Operation {
    /// Finds out what is asked of S3, and of which key. Buckets have a new name in each run, and are left out.
    pub fn of_s3(head: &Head) -> (Self, String) {
        let key = head.path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
        match head.method.as_str() {
            "GET" if head.asks("list-type") => (Self::List, head.parameter("prefix").to_owned()),
            "GET" => (Self::Get, key),
            "HEAD" => (Self::Look, key),
            "PUT" if head.asks("partNumber") => (Self::Part, key),
            "PUT" if head.header("if-none-match").is_some() => (Self::Create, key),
            "PUT" => (Self::Put, key),
            "POST" if head.asks("uploads") => (Self::Begin, key),
            "POST" if head.asks("uploadId") => (Self::Complete, key),
            "POST" if head.asks("delete") => (Self::Delete, key),
            "DELETE" if head.asks("uploadId") => (Self::Abort, key),
            _ => (Self::Other, key),
        }
    }

    /// Finds out what is asked of SQS or Kinesis.
    pub fn of_json(head: &Head, body: &[u8], iterators: &HashMap<String, String>) -> (Self, String) {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let name = head.header("x-amz-target").and_then(|target| target.split('.').nth(1)).unwrap_or_default();
        let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        match name {
            "ReceiveMessage" => (Self::Receive, String::new()),
            "DeleteMessageBatch" => (Self::DeleteMessages, String::new()),
            "ChangeMessageVisibilityBatch" => (Self::Extend, String::new()),
            "GetRecords" => (Self::Records, iterators.get(&text("ShardIterator")).cloned().unwrap_or_default()),
            "GetShardIterator" => (Self::Iterator, text("ShardId")),
            "ListShards" | "DescribeStreamSummary" => (Self::Shards, name.to_owned()),
            _ => (Self::Other, String::new()),
        }
    }

    /// Gives the ways in which this fails.
    pub fn faults(self, hangs: bool) -> &'static [Fault] {
        use Fault as F;
        match (self, hangs) {
            (Self::Look, true) => &[F::Hang, F::ServerError, F::SlowDown, F::Reset, F::LostReply],
            (Self::Get, _) => &[F::ServerError, F::SlowDown, F::Reset, F::ResetInAnswer, F::Slow],
            (Self::Look, _) => &[F::ServerError, F::SlowDown, F::Reset, F::LostReply],
            (Self::List, _) => &[F::ServerError, F::SlowDown, F::Reset, F::OldListing, F::ResetInAnswer, F::OldListing],
            (Self::Put | Self::Part, _) => {
                &[F::ServerError, F::SlowDown, F::Reset, F::ResetInRequest, F::LostReply, F::Slow]
            }
            (Self::Create, _) => {
                &[F::ServerError, F::SlowDown, F::Reset, F::ResetInRequest, F::Conflict, F::LostReply, F::Conflict]
            }
            (Self::Begin, _) => &[F::ServerError, F::SlowDown, F::Reset, F::LostReply, F::ResetInAnswer],
            (Self::Complete, _) => {
                &[F::ServerError, F::SlowDown, F::Reset, F::LostReply, F::ResetInAnswer, F::ErrorInAnswer]
            }
            (Self::Abort, _) => &[F::ServerError, F::SlowDown, F::Reset, F::LostReply],
            (Self::Delete, _) => &[F::ServerError, F::SlowDown, F::Reset, F::LostReply, F::ResetInAnswer],
            (Self::Receive, _) => &[F::Redelivered, F::Shuffled, F::ServerError, F::LostReply, F::ResetInAnswer],
            (Self::DeleteMessages, _) => &[F::InvalidReceipt, F::PartialBatch, F::ServerError, F::LostReply],
            (Self::Extend, _) => &[F::ServerError, F::LostReply],
            (Self::Records, _) => {
                &[F::Throttled, F::ExpiredIterator, F::EmptyBehind, F::ServerError, F::ResetInAnswer, F::Slow]
            }
            (Self::Iterator, _) => &[F::Throttled, F::ServerError, F::LostReply],
            (Self::Shards, _) => &[F::LimitExceeded, F::ServerError, F::LimitExceeded, F::LostReply],
            (Self::Other, _) => &[],
        }
    }

    /// Gives how much more often this fails than others: where most depends on it, most is to be seen.
    pub fn weight(self) -> f64 {
        match self {
            Self::Create | Self::Complete => 6.0,
            Self::List => 3.0,
            Self::Get => 2.0,
            // There are few of them.
            Self::Shards => 2.0,
            _ => 1.0,
        }
    }

    fn is_s3(self) -> bool {
        !matches!(
            self,
            Self::Receive | Self::DeleteMessages | Self::Extend | Self::Records | Self::Iterator | Self::Shards
        )
    }
}

impl Fault {
    /// Gives the answer of a service that does not obey.
    pub fn answer(self, request: &Request) -> Answer {
        let xml = |status, code: &str| {
            let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>injected</Message></Error>");
            Answer::new(status, "application/xml", text)
        };
        let json = |status, body: Value| Answer::new(status, "application/x-amz-json-1.1", body.to_string());
        let error = |status, kind: &str| json(status, json!({ "__type": kind, "message": "injected" }));
        match self {
            Fault::Forbidden if request.head.header("x-amz-target").is_some() => error(400, "AccessDeniedException"),
            Fault::Forbidden => xml(403, "AccessDenied"),
            Fault::SlowDown => xml(503, "SlowDown"),
            Fault::Conflict => xml(409, "ConditionalRequestConflict"),
            Fault::ErrorInAnswer => xml(200, "InternalError"),
            Fault::Throttled => error(400, "ProvisionedThroughputExceededException"),
            Fault::LimitExceeded => error(400, "LimitExceededException"),
            Fault::ExpiredIterator => error(400, "ExpiredIteratorException"),
            Fault::EmptyBehind => {
                let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                let again = &asked["ShardIterator"];
                json(200, json!({ "Records": [], "NextShardIterator": again, "MillisBehindLatest": 4000 }))
            }
            _ if request.operation.is_s3() => xml(500, "InternalError"),
            _ => error(500, "InternalFailure"),
        }
    }
}
