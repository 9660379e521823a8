//! What all AWS connectors share: configuration, identity, HTTP client.

use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::secret::Secret;

/// The process's AWS configuration; loading it again would resolve credentials again.
static CONFIG: OnceCell<SdkConfig> = OnceCell::const_new();

/// Gives the configuration from the environment, the profile and the machine's identity.
///
/// `AWS_ENDPOINT_URL` and its variants for one service are honoured.
pub async fn config() -> SdkConfig {
    CONFIG
        .get_or_init(|| async {
            let http = aws_smithy_http_client::Builder::new()
                .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                .build_https();
            aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await
        })
        .await
        .clone()
}

/// Reads a secret from AWS Secrets Manager, and from it `key` if the secret is a JSON object.
pub async fn read_secret(id: &str, key: Option<&str>) -> Result<Secret> {
    let client = aws_sdk_secretsmanager::Client::new(&config().await);
    let answer = client.get_secret_value().secret_id(id).send().await.map_err(|e| {
        let missing = e.as_service_error().is_some_and(|s| s.is_resource_not_found_exception());
        let text = format!("could not read the secret {id} from AWS Secrets Manager");
        let error = if missing { Error::config(text) } else { Error::unavailable(text) };
        error.because(aws_sdk_secretsmanager::Error::from(e))
    })?;
    let text = answer
        .secret_string()
        .ok_or_else(|| Error::config(format!("the secret {id} is binary; a text secret is needed")))?;
    let Some(key) = key else { return Ok(Secret::new(text)) };
    let object: serde_json::Value = serde_json::from_str(text)
        .map_err(|_| Error::config(format!("the secret {id} is not a JSON object, so it has no key `{key}`")))?;
    match object.get(key) {
        Some(serde_json::Value::String(value)) => Ok(Secret::new(value)),
        Some(value) if value.is_number() => Ok(Secret::new(value.to_string())),
        _ => Err(Error::config(format!("the secret {id} has no text under the key `{key}`"))),
    }
}
