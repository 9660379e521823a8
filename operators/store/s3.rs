//! Buckets of Amazon S3, with the identity that all AWS connectors share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, CredentialProvider, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};

use super::patient::{PATIENCE, Patient, again, is_broken};
use super::{Access, Encryption, bucket_of};
use crate::aws::{AwsSettings, Service, endpoint_of};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::probe::{Lack, Lacking, Probed};

/// Answers of a server that has too much to do, or is not there: they say nothing of the request.
const BUSY: [&str; 5] = ["429", "500", "502", "503", "504"];

/// More calls than are made within [`PATIENCE`]: it alone ends them.
const RETRIES_MAX: usize = 100_000;

/// How often a write with SSE-S3 fails, each time beside one without it that succeeds, until it counts as refused: some
/// stores answer as if they were out of order.
const REFUSALS_MAX: usize = 4;

/// Answers to one who may not ask.
const FORBIDDEN: [&str; 2] = ["401", "403"];

/// Opens a bucket.
pub(crate) async fn bucket(name: &str, access: &Access) -> Result<Patient<AmazonS3>> {
    let built = builder_with(&crate::aws::config(&access.aws).await, name, &access.encryption)?.build();
    built.map(Patient::new).map_err(|e| Error::config(format!("could not open the bucket {name}")).because(e))
}

/// Prepares to open a bucket with the identity and endpoint of `config`.
pub(crate) fn builder_with(
    config: &aws_config::SdkConfig,
    name: &str,
    encryption: &Encryption,
) -> Result<AmazonS3Builder> {
    let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
    let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES_MAX, retry_timeout: PATIENCE };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(name)
        .with_region(region.clone())
        .with_retry(retry)
        .with_client_options(ClientOptions::new().with_timeout(Duration::from_secs(120)));
    if let Some(provider) = config.credentials_provider() {
        builder = builder.with_credentials(Arc::new(SdkCredentials(provider)));
    }
    if let Some(endpoint) = endpoint_of(config, Service::S3) {
        let plain = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(plain).with_virtual_hosted_style_request(false);
    } else if config.use_fips() == Some(true) {
        // A certificate holds for one label before the host: a bucket with dots has to stand in the path.
        let in_host = !name.contains('.');
        let bucket = if in_host { format!("{name}.") } else { String::new() };
        let endpoint = format!("https://{bucket}s3-fips.{region}.amazonaws.com");
        builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(in_host);
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
pub(super) async fn takes_sse(bucket: &str, prefix: &Path, aws: &AwsSettings) -> Result<bool> {
    let config = crate::aws::config(aws).await;
    match endpoint_of(&config, Service::S3) {
        Some(endpoint) if !endpoint.contains(".amazonaws.com") => is_sse_taken(&config, bucket, prefix).await,
        _ => Ok(true),
    }
}

async fn is_sse_taken(config: &aws_config::SdkConfig, bucket: &str, prefix: &Path) -> Result<bool> {
    // The client would try an answer of 500 or 501 again for as long as one of 503.
    let open = |encryption| -> Result<AmazonS3> { Ok(hasty(builder_with(config, bucket, encryption)?).build()?) };
    let (with, without) = (open(&Encryption::SseS3)?, open(&Encryption::BucketDefault)?);
    let name = super::join(prefix, &format!("_nexus/probe-{}", std::process::id()));
    let put = async |store: &AmazonS3| store.put(&name, PutPayload::from_static(b"probe")).await;
    let refusals = AtomicUsize::new(0);
    let taken = again(is_passing, || async {
        let Err(error) = put(&with).await else { return Ok(Some(true)) };
        match put(&without).await {
            // A store that is away must not be taken for one that refuses.
            Err(other) if is_passing(&other) => Err(other),
            Err(_) if !is_passing(&error) => Ok(None),
            Ok(_) if !is_passing(&error) || refusals.fetch_add(1, Relaxed) + 1 >= REFUSALS_MAX => Ok(Some(false)),
            _ => Err(error),
        }
    });
    // Where neither is taken, encryption is not what is wrong, and there is nothing to remove.
    let Some(taken) = taken.await? else { return Ok(true) };
    again(is_passing, || without.delete(&name)).await?;
    Ok(taken)
}

/// Has a client give up at once, where somebody waits for the answer.
pub(crate) fn hasty(builder: AmazonS3Builder) -> AmazonS3Builder {
    builder.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
}

/// Lists one object below a prefix, and looks at it.
pub(crate) async fn look_below(store: &AmazonS3, bucket: &str, prefix: &str) -> Probed {
    let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
    let listed = store.list_paginated(Some(prefix).filter(|prefix| !prefix.is_empty()), options).await;
    let listed = listed.map_err(|e| lacking(format!("could not list s3://{bucket}/{prefix}"), e))?;
    let Some(first) = listed.result.objects.first() else {
        return Ok("it can be listed, and holds nothing".to_owned());
    };
    let head = store.head(&first.location).await;
    head.map_err(|e| lacking(format!("could not look at s3://{bucket}/{}", first.location), e))?;
    Ok("it can be listed and read".to_owned())
}

/// Looks whether objects can be created, read, listed and removed below a URL, at once and in parts.
pub(super) async fn probe(url: &str, access: &Access) -> Probed {
    let (bucket, prefix) = bucket_of(url)?;
    let config = crate::aws::config(&access.aws).await;
    let open = |encryption: &Encryption| {
        let built = builder_with(&config, &bucket, encryption).map(hasty)?.build();
        built.map_err(|e| Error::config(format!("could not open the bucket {bucket}")).because(e))
    };
    // What is not reached is told before anything is tried for long.
    let folder = if prefix.is_root() { String::new() } else { format!("{prefix}/") };
    look_below(&open(&access.encryption)?, &bucket, &folder).await?;
    let store = open(&super::Store::accepted_encryption(url, access).await?)?;
    let name = super::join(&prefix, &format!("_nexus/probe-{}-{}", std::process::id(), SystemClock.now_us()));
    let failed = |what: &str, e| lacking(format!("could not {what} s3://{bucket}/{name}"), e);
    let create = || store.put_opts(&name, PutPayload::from_static(b"probe"), PutMode::Create.into());
    create().await.map_err(|e| failed("create", e))?;
    let again = create().await;
    let read = store.get(&name).await;
    // It is removed whatever else went wrong.
    store.delete(&name).await.map_err(|e| failed("remove", e))?;
    read.map_err(|e| failed("read", e))?;
    if !matches!(again, Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) {
        return Err(Lacking::thing(format!(
            "s3://{bucket} lets an object be created twice: it knows no conditional writes"
        )));
    }
    let upload = store.create_multipart(&name).await.map_err(|e| failed("begin an upload of", e))?;
    store.abort_multipart(&name, &upload).await.map_err(|e| failed("give up an upload of", e))?;
    Ok("objects can be created, read, listed and removed".to_owned())
}

/// Tells what is missing where a call has failed.
fn lacking(doing: String, error: object_store::Error) -> Lacking {
    use object_store::Error as Store;
    let has_no_credentials = |error: &object_store::Error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = cause {
            if inner.is::<CredentialsError>() {
                return true;
            }
            cause = inner.source();
        }
        false
    };
    let lack = match &error {
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => Lack::Permission,
        // A listing that is forbidden comes without a kind of its own.
        _ if has_no_credentials(&error) || has_status(&error, &FORBIDDEN) => Lack::Permission,
        Store::Generic { .. } if is_passing(&error) => Lack::Network,
        _ => Lack::Thing,
    };
    Lacking { lack, error: Error::from(error).while_doing(doing) }
}

/// Tells whether an error says nothing of the request, and the same may be asked again.
fn is_passing(error: &object_store::Error) -> bool {
    is_broken(error) || has_status(error, &BUSY)
}

fn has_status(error: &object_store::Error, wanted: &[&str]) -> bool {
    let text = error.to_string();
    wanted.iter().any(|status| text.contains(&format!("status code: {status}")))
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

#[cfg(test)]
mod tests {
    use aws_config::{Region, SdkConfig};
    use aws_credential_types::Credentials;
    use object_store::aws::AmazonS3ConfigKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Serves a bucket which answers to its n-th write, and to removals, like this.
    async fn bucket_that(answers: fn(usize, bool) -> &'static str, removals: &'static str) -> SdkConfig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut writes = 0;
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut asked = vec![0; 64 * 1024];
                let length = socket.read(&mut asked).await.unwrap();
                let asked = String::from_utf8_lossy(&asked[..length]).to_lowercase();
                let answer = if asked.starts_with("put") {
                    writes += 1;
                    answers(writes, asked.contains("x-amz-server-side-encryption"))
                } else {
                    removals
                };
                let body = "<DeleteResult><Deleted><Key>probe</Key></Deleted></DeleteResult>";
                let head = format!("ETag: \"e\"\r\nContent-Length: {}\r\nConnection: close", body.len());
                let answer = format!("HTTP/1.1 {answer}\r\n{head}\r\n\r\n{body}");
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        SdkConfig::builder()
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("t", "t", None, None, "test")))
            .endpoint_url(endpoint)
            .build()
    }

    #[tokio::test]
    async fn a_store_without_keys_is_told_from_one_that_is_out_of_order() {
        let take =
            async |answers| is_sse_taken(&bucket_that(answers, "200 OK").await, "lake", &Path::ROOT).await.unwrap();
        assert!(take(|_, _| "200 OK").await);
        assert!(!take(|_, encrypted| if encrypted { "501 Not Implemented" } else { "200 OK" }).await);
        assert!(!take(|_, encrypted| if encrypted { "400 Bad Request" } else { "200 OK" }).await);
        // So does SeaweedFS.
        assert!(!take(|_, encrypted| if encrypted { "500 Internal Server Error" } else { "200 OK" }).await);
        assert!(take(|write, _| if write < 6 { "500 Internal Server Error" } else { "200 OK" }).await);
        assert!(take(|write, encrypted| if encrypted && write < 4 { "503 Slow Down" } else { "200 OK" }).await);
        let closed = bucket_that(|_, _| "403 Forbidden", "403 Forbidden").await;
        assert!(is_sse_taken(&closed, "lake", &Path::ROOT).await.unwrap());
    }

    #[test]
    fn buckets_have_fips_hosts_where_they_are_wanted() {
        let host = |fips, bucket| {
            let config = SdkConfig::builder().region(Region::from_static("us-gov-west-1")).use_fips(fips).build();
            let builder = builder_with(&config, bucket, &Encryption::SseS3).unwrap();
            builder.get_config_value(&AmazonS3ConfigKey::Endpoint)
        };
        assert_eq!(host(true, "lake").as_deref(), Some("https://lake.s3-fips.us-gov-west-1.amazonaws.com"));
        assert_eq!(host(true, "my.lake").as_deref(), Some("https://s3-fips.us-gov-west-1.amazonaws.com"));
        assert_eq!(host(false, "lake"), None);
    }
}
