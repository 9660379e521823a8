//! A consumer that a stream knows by name, and its subscriptions.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::Builder;
use aws_sdk_kinesis::error::DisplayErrorContext;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{
    ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream,
};
use tokio::time::Instant;

use super::fan_out::{Event, Events, Subscriber};
use super::service::{Answer, Fault, IteratorFrom, facts_of_child, fault, is_arn, raw, timeouts};
use crate::error::Error;

/// How long a consumer may take to become active, which is a matter of seconds.
const REGISTRATION_MAX: Duration = Duration::from_secs(60);

/// How long lies between two looks at a consumer that becomes active: five such calls a second are allowed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A registered consumer.
pub(super) struct Consumer {
    client: Client,
    arn: String,
}

impl Consumer {
    /// Finds a consumer by its name or ARN. One that is given by name is registered if it is not there.
    pub async fn open(config: &SdkConfig, stream: &str, consumer: &str) -> Result<Self, Fault> {
        // A subscription is silent where nobody waits for it; that is no stall.
        let config = Builder::from(config).timeout_config(timeouts()).retry_config(RetryConfig::standard());
        let config = config.stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let client = Client::from_conf(config.build());
        let arn = match is_arn(consumer) {
            true => consumer.to_owned(),
            false => registered(&client, &stream_arn(&client, stream).await?, consumer, REGISTRATION_MAX).await?,
        };
        Ok(Self { client, arn })
    }
}

async fn stream_arn(client: &Client, stream: &str) -> Result<String, Fault> {
    if is_arn(stream) {
        return Ok(stream.to_owned());
    }
    let asked = client.describe_stream_summary().stream_name(stream).send().await;
    let summary = asked.map_err(|e| fault(format!("could not read the summary of the kinesis stream {stream}"), e))?;
    let missing = || Fault::Busy(Error::unavailable(format!("the kinesis stream {stream} has no summary")));
    Ok(summary.stream_description_summary.ok_or_else(missing)?.stream_arn)
}

/// Gives the ARN of a consumer that is active, and registers it if there is none.
async fn registered(client: &Client, stream: &str, name: &str, within: Duration) -> Result<String, Fault> {
    let until = Instant::now() + within;
    let doing = |what: &str| format!("could not {what} the consumer {name} of {stream}");
    let mut state = "not there".to_owned();
    while Instant::now() < until {
        match client.describe_stream_consumer().stream_arn(stream).consumer_name(name).send().await {
            Ok(found) => {
                let Some(consumer) = found.consumer_description else { continue };
                if consumer.consumer_status == ConsumerStatus::Active {
                    return Ok(consumer.consumer_arn);
                }
                state = consumer.consumer_status.as_str().to_lowercase();
            }
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => {
                match client.register_stream_consumer().stream_arn(stream).consumer_name(name).send().await {
                    Err(e) if e.as_service_error().is_some_and(|e| e.is_limit_exceeded_exception()) => {
                        state = "not let in: the stream may have as many consumers as it can".to_owned();
                    }
                    // Another process may have registered it meanwhile.
                    Err(e) if e.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => {}
                    done => drop(done.map_err(|e| fault(doing("register"), e))?),
                }
            }
            Err(error) => match fault(doing("look at"), error) {
                Fault::Busy(error) => state = error.to_string(),
                other => return Err(other),
            },
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Fault::Refused(Error::config(format!("the consumer {name} of {stream} did not become active; it is {state}"))))
}

#[async_trait]
impl Subscriber for Consumer {
    async fn subscribe(&self, shard: &str, from: &IteratorFrom) -> Result<Box<dyn Events>, Fault> {
        let position = StartingPosition::builder();
        let position = match from {
            IteratorFrom::TrimHorizon => position.r#type(ShardIteratorType::TrimHorizon),
            IteratorFrom::Time(ms) => {
                position.r#type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(*ms))
            }
            IteratorFrom::At(sequence) => {
                position.r#type(ShardIteratorType::AtSequenceNumber).sequence_number(sequence)
            }
            IteratorFrom::After(sequence) => {
                position.r#type(ShardIteratorType::AfterSequenceNumber).sequence_number(sequence)
            }
        };
        let position = position.build().expect("the type, all that it needs, is set");
        let call = self.client.subscribe_to_shard().consumer_arn(&self.arn).shard_id(shard).starting_position(position);
        // Right after a crash the subscription of the dead process is in the way: whoever asks backs off.
        let answer = call.send().await.map_err(|e| fault(format!("could not subscribe to shard {shard}"), e))?;
        Ok(Box::new(Pushed { events: answer.event_stream, shard: shard.to_owned() }))
    }
}

/// The events of a subscription.
struct Pushed {
    events: EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>,
    shard: String,
}

#[async_trait]
impl Events for Pushed {
    async fn next(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            match self.events.recv().await {
                Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => return Ok(Some(taken(event))),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                // What is wrong for good is said when it is subscribed again.
                Err(error) => {
                    let text = format!("a subscription to shard {} broke: {}", self.shard, DisplayErrorContext(&error));
                    return Err(Fault::Busy(Error::unavailable(text)));
                }
            }
        }
    }
}

fn taken(event: SubscribeToShardEvent) -> Event {
    let answer = Answer {
        records: event.records.into_iter().map(raw).collect(),
        next: None,
        lag_ms: u64::try_from(event.millis_behind_latest).ok(),
        children: event.child_shards.unwrap_or_default().iter().map(facts_of_child).collect(),
    };
    Event { answer, continuation: Some(event.continuation_sequence_number).filter(|number| !number.is_empty()) }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::kinesis::config_of;

    /// Refuses all calls, each in its own way.
    async fn refusing(looked_at: &'static str, registered: &'static str) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = vec![0; 64 * 1024];
                let read = socket.read(&mut request).await.unwrap();
                let registers =
                    String::from_utf8_lossy(&request[..read]).contains("Kinesis_20131202.RegisterStreamConsumer");
                let body = format!("{{\"__type\":\"{}\"}}", if registers { registered } else { looked_at });
                let head = "HTTP/1.1 400 X\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close";
                let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Client::new(&config_of(&endpoint).await)
    }

    #[tokio::test]
    async fn a_stream_that_has_all_its_consumers_says_so() {
        let cases = [
            ("ResourceNotFoundException", "LimitExceededException", "as many consumers as it can"),
            ("ResourceNotFoundException", "ResourceInUseException", "it is not there"),
            ("ResourceNotFoundException", "AccessDeniedException", "could not register the consumer nexus"),
            ("AccessDeniedException", "", "could not look at the consumer nexus"),
        ];
        for (looked_at, register, words) in cases {
            let client = refusing(looked_at, register).await;
            let fault = registered(&client, "arn:aws:kinesis:x:1:stream/s", "nexus", Duration::from_millis(100)).await;
            let Err(Fault::Refused(error)) = fault else { panic!("{fault:?}") };
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
