//! Whether a queue and the objects that it announces may be read.

use aws_sdk_sqs::types::QueueAttributeName;

use super::{S3Settings, requests};
use crate::aws::{config, lacking};
use crate::probe::{Lacking, Probed};
use crate::store::bucket_of;
use crate::store::s3::{hasty, look_below};

/// Asks how many messages a queue holds. None is received: it would be hidden from others.
pub async fn probe_queue(settings: &S3Settings) -> Probed {
    let client = aws_sdk_sqs::Client::new(&config(&settings.aws).await);
    let messages = QueueAttributeName::ApproximateNumberOfMessages;
    let call = client.get_queue_attributes().queue_url(&settings.queue).attribute_names(messages.clone()).send();
    let answer =
        call.await.map_err(|e| lacking(format!("could not ask the queue {} for its length", settings.queue), e))?;
    let count = answer.attributes().and_then(|all| all.get(&messages)).map_or("0", String::as_str);
    Ok(format!("{count} messages wait"))
}

/// Lists one object below a prefix that may be read, and looks at it.
pub async fn probe_prefix(settings: &S3Settings, prefix: &str) -> Probed {
    let config = config(&settings.aws).await;
    let (bucket, _) = bucket_of(prefix)?;
    let builder = requests::bucket(&config, &bucket, settings.bucket_owner.as_deref())?;
    let store =
        hasty(builder).build().map_err(|e| Lacking::thing(format!("could not open the bucket {bucket}: {e}")))?;
    // As it is written: a prefix need not end between two parts of a key.
    let below = prefix.trim_start_matches("s3://").split_once('/').map_or("", |(_, key)| key);
    look_below(&store, &bucket, below).await
}
