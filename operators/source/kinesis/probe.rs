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
    Ok(format!(
        "{} shards are open, records are kept for {} h",
        summary.open_shard_count, summary.retention_period_hours
    ))
}
