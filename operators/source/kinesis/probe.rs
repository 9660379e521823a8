//! Whether a stream is there, and may be read.

use aws_sdk_kinesis::Client;

use super::service::is_arn;
use super::{KinesisSettings, Mode};
use crate::aws::{config, lacking};
use crate::probe::{Lack, Lacking, Probed};

/// Asks for a stream's summary and its shards.
pub async fn probe(settings: &KinesisSettings) -> Probed {
    let stream = settings.stream.as_str();
    let client = Client::new(&config(&settings.aws).await);
    let named = |by_arn| (is_arn(stream) == by_arn).then(|| stream.to_owned());
    let summary = client.describe_stream_summary().set_stream_name(named(false)).set_stream_arn(named(true)).send();
    let summary = summary.await.map_err(|e| lacking(format!("could not read the summary of {stream}"), e))?;
    let shards = client.list_shards().set_stream_name(named(false)).set_stream_arn(named(true)).max_results(1).send();
    shards.await.map_err(|e| lacking(format!("could not list the shards of {stream}"), e))?;
    let Some(summary) = summary.stream_description_summary else {
        return Err(Lacking::thing(format!("the stream {stream} has no summary")));
    };
    if summary.stream_status.as_str() == "DELETING" {
        return Err(Lacking::thing(format!("the stream {stream} is being deleted")));
    }
    let hours = summary.retention_period_hours;
    let words = format!("{} shards are open, records are kept for {hours} h", summary.open_shard_count);
    match &settings.mode {
        Mode::Poll => Ok(words),
        Mode::FanOut { consumer } => Ok(format!("{words}; {}", look_at(&client, &summary.stream_arn, consumer).await?)),
    }
}

/// Looks at a consumer, which a run registers if it is named and not there.
async fn look_at(client: &Client, stream: &str, consumer: &str) -> Probed {
    let call = client.describe_stream_consumer();
    let call = match is_arn(consumer) {
        true => call.consumer_arn(consumer),
        false => call.stream_arn(stream).consumer_name(consumer),
    };
    match call.send().await.map_err(|e| lacking(format!("could not look at the consumer {consumer}"), e)) {
        Ok(_) => Ok(format!("the consumer {consumer} is registered")),
        Err(lacking) if lacking.lack == Lack::Thing && !is_arn(consumer) => {
            Ok(format!("the consumer {consumer} is yet to be registered"))
        }
        Err(lacking) => Err(lacking),
    }
}
