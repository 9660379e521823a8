//! Secrets of AWS Secrets Manager.

use super::{AwsSettings, config};
use crate::error::{Error, Result};
use crate::probe::Lacking;
use crate::secret::Secret;

/// Reads a secret from AWS Secrets Manager, and from it `key` if the secret is a JSON object.
pub async fn read_secret(id: &str, key: Option<&str>, settings: &AwsSettings) -> Result<Secret> {
    probe_secret(id, key, settings).await.map_err(|lacking| lacking.error)
}

/// Does the same, and tells what is missing if it cannot be read.
pub async fn probe_secret(id: &str, key: Option<&str>, settings: &AwsSettings) -> Result<Secret, Lacking> {
    let client = aws_sdk_secretsmanager::Client::new(&config(settings).await);
    let answer = client
        .get_secret_value()
        .secret_id(id)
        .send()
        .await
        .map_err(|e| super::lacking(format!("could not read the secret {id} from AWS Secrets Manager"), e))?;
    let text = answer
        .secret_string()
        .ok_or_else(|| Error::config(format!("the secret {id} is binary; a text secret is needed")))?;
    let Some(key) = key else { return Ok(Secret::new(text)) };
    let object: serde_json::Value = serde_json::from_str(text)
        .map_err(|_| Error::config(format!("the secret {id} is not a JSON object, so it has no key `{key}`")))?;
    match object.get(key) {
        Some(serde_json::Value::String(value)) => Ok(Secret::new(value)),
        Some(value) if value.is_number() => Ok(Secret::new(value.to_string())),
        _ => Err(Error::config(format!("the secret {id} has no text under the key `{key}`")).into()),
    }
}
