//! The calls to SQS.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Builder;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    Message as SqsMessage, MessageSystemAttributeName,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use crate::error::{Error, ErrorKind, Result};

/// Messages that one call takes, deletes or extends: the service's limit.
const BATCH_MESSAGES: i32 = 10;

/// Calls made side by side where there are more messages than one call takes.
const CALLS_AT_ONCE: usize = 4;

/// How long the service holds an empty answer back. Longer saves little, and what an abandoned call receives
/// stays invisible for a while.
const POLL_SECONDS: i32 = 5;

/// The longest that a message is kept from coming again: a permission that is corrected shows soon after.
const POSTPONE_SECONDS_MAX: i32 = 15 * 60;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one attempt of a call may take: longer than the service holds an empty answer back. Without it a call that is
/// never answered would stop the source for good.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers that only a change of the pipeline file or of permissions turns into others.
const CONFIG_CODES: [&str; 8] = [
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "AccessDenied",
    "AccessDeniedException",
    "InvalidAddress",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// A queue.
#[derive(Debug, Clone)]
pub struct Queue {
    client: Client,
    url: String,
    visibility: Duration,
}

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// The same whenever the message is sent again.
    pub id: String,
    /// What deletes and extends it; another one each time.
    pub receipt: String,
    /// The content.
    pub body: Bytes,
    /// How often it was received, this time included.
    pub receives: u32,
}

/// Which of several messages a call did not reach.
pub struct Outcome {
    /// Those for which it worked, by their place in the call.
    pub done: Vec<usize>,
    /// Those for which it never will.
    pub refused: Vec<usize>,
    /// The first failure of a call as a whole, after which the rest is to be tried again.
    pub failure: Option<Error>,
}

impl Queue {
    /// Names a queue; nothing is called yet.
    pub fn new(config: &SdkConfig, url: &str, visibility: Duration) -> Self {
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT);
        let timeouts = timeouts.connect_timeout(CONNECT_TIMEOUT).build();
        let client = Client::from_conf(Builder::from(config).timeout_config(timeouts).build());
        Self { client, url: url.to_owned(), visibility }
    }

    /// Receives up to ten messages; waits a few seconds for one if `wait` is set.
    pub async fn receive(self, wait: bool) -> Result<Vec<Received>> {
        let call = self.client.receive_message().queue_url(&self.url);
        let answer = call
            .max_number_of_messages(BATCH_MESSAGES)
            .wait_time_seconds(if wait { POLL_SECONDS } else { 0 })
            .visibility_timeout(self.visibility_seconds())
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .send()
            .await
            .map_err(|e| self.failed("receive messages from", e))?;
        Ok(answer.messages.unwrap_or_default().into_iter().map(received).collect())
    }

    /// Makes messages invisible for another while.
    pub async fn extend(&self, receipts: &[&str]) -> Outcome {
        self.hide(receipts, self.visibility_seconds()).await
    }

    /// Has messages that were received so often come again later each time.
    pub async fn postpone(&self, receipts: &[&str], receives: u32) -> Outcome {
        let seconds = self.visibility_seconds();
        let factor = 1_i32.checked_shl(receives.saturating_sub(1)).unwrap_or(i32::MAX);
        self.hide(receipts, seconds.saturating_mul(factor).min(POSTPONE_SECONDS_MAX.max(seconds))).await
    }

    async fn hide(&self, receipts: &[&str], seconds: i32) -> Outcome {
        self.in_batches(receipts, |batch| async move {
            let mut call = self.client.change_message_visibility_batch().queue_url(&self.url);
            for (at, receipt) in batch {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(at.to_string());
                let entry = entry.receipt_handle(receipt).visibility_timeout(seconds).build();
                call = call.entries(entry.map_err(|e| Error::internal("could not build an SQS call").because(e))?);
            }
            let answer = call.send().await.map_err(|e| self.failed("extend messages of", e))?;
            Ok((answer.successful.into_iter().map(|e| e.id).collect(), answer.failed))
        })
        .await
    }

    /// Deletes messages.
    pub async fn delete(&self, receipts: &[&str]) -> Outcome {
        self.in_batches(receipts, |batch| async move {
            let mut call = self.client.delete_message_batch().queue_url(&self.url);
            for (at, receipt) in batch {
                let entry =
                    DeleteMessageBatchRequestEntry::builder().id(at.to_string()).receipt_handle(receipt).build();
                call = call.entries(entry.map_err(|e| Error::internal("could not build an SQS call").because(e))?);
            }
            let answer = call.send().await.map_err(|e| self.failed("delete messages of", e))?;
            Ok((answer.successful.into_iter().map(|e| e.id).collect(), answer.failed))
        })
        .await
    }

    async fn in_batches<F>(&self, receipts: &[&str], call: impl Fn(Vec<(usize, String)>) -> F) -> Outcome
    where
        F: Future<Output = Result<(Vec<String>, Vec<BatchResultErrorEntry>)>>,
    {
        let all: Vec<_> = receipts.iter().enumerate().map(|(at, receipt)| (at, (*receipt).to_owned())).collect();
        let batches: Vec<_> = all.chunks(BATCH_MESSAGES as usize).map(<[_]>::to_vec).collect();
        let answers: Vec<_> = stream::iter(batches).map(call).buffer_unordered(CALLS_AT_ONCE).collect().await;
        let mut outcome = Outcome { done: Vec::new(), refused: Vec::new(), failure: None };
        for answer in answers {
            match answer {
                Ok((done, failed)) => {
                    outcome.done.extend(done.iter().filter_map(|id| id.parse::<usize>().ok()));
                    for entry in failed {
                        tracing::warn!(queue = self.url, code = entry.code, "SQS refused one message of a batch");
                        if entry.sender_fault {
                            outcome.refused.extend(entry.id.parse::<usize>().ok());
                        }
                    }
                }
                Err(e) => outcome.failure = outcome.failure.or(Some(e)),
            }
        }
        outcome
    }

    fn visibility_seconds(&self) -> i32 {
        i32::try_from(self.visibility.as_secs()).unwrap_or(i32::MAX).max(1)
    }

    fn failed<E>(&self, what: &str, error: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata,
        aws_sdk_sqs::Error: From<SdkError<E, HttpResponse>>,
    {
        let config = error.code().is_some_and(|code| CONFIG_CODES.contains(&code));
        let kind = if config { ErrorKind::Config } else { ErrorKind::Unavailable };
        Error::new(kind, format!("could not {what} the queue {}", self.url)).because(aws_sdk_sqs::Error::from(error))
    }
}

fn received(message: SqsMessage) -> Received {
    let receives =
        message.attributes.as_ref().and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount));
    Received {
        receives: receives.and_then(|count| count.parse().ok()).unwrap_or(1),
        id: message.message_id.unwrap_or_default(),
        receipt: message.receipt_handle.unwrap_or_default(),
        body: message.body.unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use aws_config::Region;
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers batches of SQS: of three messages the second is refused for good, and the third for now. Gives a queue,
    /// and what it was asked.
    async fn serve() -> (Queue, Arc<Mutex<Vec<Value>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                let body = loop {
                    socket.read_buf(&mut request).await.unwrap();
                    let text = String::from_utf8_lossy(&request);
                    let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
                    if let Some::<Value>(body) = body {
                        break body;
                    }
                };
                let id = |entry: &Value| entry["Id"].as_str().unwrap().to_owned();
                let ids: Vec<_> = body["Entries"].as_array().unwrap().iter().map(id).collect();
                let of = |rest: u32| ids.iter().filter(move |id| id.parse::<u32>().unwrap() % 3 == rest);
                let failed =
                    |id: &String, code: &str, for_good: bool| json!({"Id": id, "SenderFault": for_good, "Code": code});
                let answer = json!({
                    "Successful": of(0).map(|id| json!({"Id": id})).collect::<Vec<_>>(),
                    "Failed": of(1).map(|id| failed(id, "ReceiptHandleIsInvalid", true))
                        .chain(of(2).map(|id| failed(id, "InternalError", false))).collect::<Vec<_>>(),
                })
                .to_string();
                heard.lock().unwrap().push(body);
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\nconnection: close";
                let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let config = SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("t", "t", None, None, "test")))
            .endpoint_url(endpoint)
            .build();
        (Queue::new(&config, "http://queue/q", Duration::from_secs(60)), asked)
    }

    #[tokio::test]
    async fn what_a_batch_fails_in_part_is_told_apart() {
        let (queue, asked) = serve().await;
        let receipts: Vec<_> = (0..23).map(|n| format!("r{n}")).collect();
        let receipts: Vec<_> = receipts.iter().map(String::as_str).collect();
        for outcome in [queue.delete(&receipts).await, queue.extend(&receipts).await] {
            let (mut done, mut refused) = (outcome.done, outcome.refused);
            done.sort_unstable();
            refused.sort_unstable();
            // The others are neither: they are tried again.
            assert_eq!(done, (0..23).step_by(3).collect::<Vec<_>>());
            assert_eq!(refused, (1..23).step_by(3).collect::<Vec<_>>());
            assert!(outcome.failure.is_none());
        }
        let asked = asked.lock().unwrap();
        let sizes: Vec<_> = asked.iter().map(|call| call["Entries"].as_array().unwrap().len()).collect();
        assert_eq!((sizes.len(), sizes.iter().sum::<usize>(), sizes.iter().max()), (6, 46, Some(&10)));
    }

    #[tokio::test]
    async fn a_message_comes_again_the_later_the_more_often_it_came() {
        let (queue, asked) = serve().await;
        for receives in [1, 2, 3, 4, 9, 1000] {
            queue.postpone(&["r"], receives).await;
        }
        let asked = asked.lock().unwrap();
        let seconds: Vec<_> =
            asked.iter().map(|call| call["Entries"][0]["VisibilityTimeout"].as_i64().unwrap()).collect();
        assert_eq!(seconds, [60, 120, 240, 480, 900, 900]);
    }
}
