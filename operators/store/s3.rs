//! Buckets of Amazon S3, with the identity that all AWS connectors share.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, CredentialProvider, ObjectStoreExt, PutPayload, RetryConfig};

use super::Encryption;
use super::patient::{PATIENCE, Patient, again, is_broken};
use crate::error::{Error, Result};

/// Answers of a server that has too much to do, or is not there: they say nothing of the request.
const BUSY: [&str; 5] = ["429", "500", "502", "503", "504"];

/// Opens a bucket with the process's identity.
pub(crate) async fn bucket(name: &str, encryption: &Encryption) -> Result<Patient<AmazonS3>> {
    let built = builder_with(&crate::aws::config().await, name, encryption)?.build();
    built.map(Patient::new).map_err(|e| Error::config(format!("could not open the bucket {name}")).because(e))
}

/// Prepares to open a bucket with the identity and endpoint of `config`.
pub(crate) fn builder_with(
    config: &aws_config::SdkConfig,
    name: &str,
    encryption: &Encryption,
) -> Result<AmazonS3Builder> {
    let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
    let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: usize::MAX, retry_timeout: PATIENCE };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(name)
        .with_region(region)
        .with_retry(retry)
        .with_client_options(ClientOptions::new().with_timeout(Duration::from_secs(120)));
    if let Some(provider) = config.credentials_provider() {
        builder = builder.with_credentials(Arc::new(SdkCredentials(provider)));
    }
    if let Some(endpoint) = endpoint(config) {
        let plain = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(plain).with_virtual_hosted_style_request(false);
    }
    Ok(match encryption {
        Encryption::SseS3 => {
            let key: AmazonS3ConfigKey = "aws_server_side_encryption".parse().map_err(Error::from)?;
            builder.with_config(key, "AES256")
        }
        Encryption::Kms(key) => builder.with_sse_kms_encryption(key),
        Encryption::BucketDefault => builder,
    })
}

/// Tells whether an endpoint that is not Amazon's takes objects with SSE-S3: some stores that speak S3 have no
/// keys of their own, and fail every such write.
///
/// It writes and removes a small object below `prefix`.
pub(super) async fn takes_sse(bucket: &str, prefix: &Path) -> Result<bool> {
    let config = crate::aws::config().await;
    if endpoint(&config).is_none_or(|endpoint| endpoint.contains(".amazonaws.com")) {
        return Ok(true);
    }
    let name = super::join(prefix, &format!("_nexus/probe-{}", std::process::id()));
    // The client would try an answer of 501 again for as long as one of 503.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut taken = [false; 2];
    for (taken, encryption) in taken.iter_mut().zip([Encryption::SseS3, Encryption::BucketDefault]) {
        let store = builder_with(&config, bucket, &encryption)?.with_retry(retry.clone()).build()?;
        match again(is_passing, || store.put(&name, PutPayload::from_static(b"probe"))).await {
            Ok(_) => *taken = true,
            // A store that is away must not be taken for one that refuses.
            Err(error) if is_passing(&error) => return Err(error.into()),
            Err(_) => continue,
        }
        again(is_passing, || store.delete(&name)).await?;
        break;
    }
    // Where neither is taken, encryption is not what is wrong.
    Ok(taken != [false, true])
}

/// Tells whether an error says nothing of the request, and the same may be asked again.
fn is_passing(error: &object_store::Error) -> bool {
    let text = error.to_string();
    is_broken(error) || BUSY.iter().any(|status| text.contains(&format!("status code: {status}")))
}

/// Finds the endpoint that the environment or the profile sets for S3, else for all services.
fn endpoint(config: &aws_config::SdkConfig) -> Option<String> {
    std::env::var("AWS_ENDPOINT_URL_S3").ok().or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Hands the credentials of the AWS SDK's chain to [`object_store`].
#[derive(Debug)]
pub(crate) struct SdkCredentials(pub(crate) SharedCredentialsProvider);

#[async_trait]
impl CredentialProvider for SdkCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let found = self
            .0
            .provide_credentials()
            .await
            .map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })?;
        Ok(Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        }))
    }
}
