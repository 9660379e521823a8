//! Requests to S3 that `object_store` does not make: of a bucket's owner, and of keys with empty parts.
//!
//! S3 refuses a request whose `x-amz-expected-bucket-owner` is not the bucket's
//! account. The header must be signed, and `object_store` cannot add one; nor
//! can it name every [key](super::keys). So such a request is signed again on its way out.

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::SdkConfig;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, CredentialProvider};

use super::keys;
use crate::error::{Error, Result};
use crate::store::Encryption;
use crate::store::s3::{SdkCredentials, builder_with};

/// Prepares to read a bucket, which `owner` must own, if one is given.
pub fn bucket(config: &SdkConfig, name: &str, owner: Option<&str>) -> Result<AmazonS3Builder> {
    let credentials = config.credentials_provider().map(|provider| Arc::new(SdkCredentials(provider)));
    if owner.is_some() && credentials.is_none() {
        let text = "could not check a bucket's owner: there are no AWS credentials to sign with";
        return Err(Error::config(text));
    }
    let region = config.region().map_or("us-east-1", |region| region.as_ref()).to_owned();
    let connector = Connector { owner: owner.map(str::to_owned), region, credentials };
    Ok(builder_with(config, name, &Encryption::BucketDefault)?.with_http_connector(connector))
}

#[derive(Debug, Clone)]
struct Connector {
    owner: Option<String>,
    region: String,
    /// Nothing where requests are not signed.
    credentials: Option<Arc<SdkCredentials>>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Requests { inner, by: self.clone() }))
    }
}

#[derive(Debug)]
struct Requests {
    inner: HttpClient,
    by: Connector,
}

impl Requests {
    /// Makes a request what S3 is to see.
    async fn rewrite(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        let named = keys::in_uri(&request.uri().to_string());
        if named.is_none() && self.by.owner.is_none() {
            return Ok(());
        }
        if let Some(uri) = named {
            *request.uri_mut() = uri.parse().map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
        }
        if let Some(owner) = &self.by.owner {
            let owner = owner.parse().map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
            request.headers_mut().insert("x-amz-expected-bucket-owner", owner);
        }
        let Some(credentials) = &self.by.credentials else { return Ok(()) };
        let credential = credentials.get_credential().await.map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
        request.headers_mut().remove("authorization");
        AwsAuthorizer::new(&credential, "s3", &self.by.region).authorize(request, None);
        Ok(())
    }
}

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let lists = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
        self.rewrite(&mut request).await?;
        let response = self.inner.execute(request).await?;
        if !lists || !response.status().is_success() {
            return Ok(response);
        }
        let (mut head, body) = response.into_parts();
        let listing = keys::in_listing(&String::from_utf8_lossy(&body.bytes().await?));
        head.headers.remove("content-length");
        Ok(HttpResponse::from_parts(head, listing.into()))
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use aws_config::Region;
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use object_store::ObjectStoreExt;
    use object_store::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Reads an object, and gives the request that was made for it.
    async fn request(path: &Path, owner: Option<&str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let credentials = Credentials::new("test", "test", Some("session".into()), None, "test");
        let config = SdkConfig::builder()
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(format!("http://{}", listener.local_addr().unwrap()))
            .build();
        let store = bucket(&config, "b", owner).unwrap().build().unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let (read, request) = tokio::join!(store.get(path), answer);
        assert!(matches!(read, Err(object_store::Error::PermissionDenied { .. })), "{read:?}");
        assert_eq!(request.matches("authorization: ").count(), 1, "{request}");
        request
    }

    #[tokio::test]
    async fn the_expected_owner_is_sent_and_signed() {
        let request = request(&Path::from("k"), Some("123456789012")).await;
        assert!(request.contains("x-amz-expected-bucket-owner: 123456789012\r\n"), "{request}");
        let signed = request.lines().find_map(|line| line.split_once("SignedHeaders=")).unwrap().1;
        assert!(signed.split(',').next().unwrap().split(';').any(|h| h == "x-amz-expected-bucket-owner"), "{signed}");
    }

    #[tokio::test]
    async fn a_key_with_empty_parts_is_asked_for_as_it_is() {
        for (key, line) in [("in//a b/", "GET /b/in//a%20b/ HTTP/1.1"), ("/a", "GET /b//a HTTP/1.1")] {
            let request = request(&keys::path_of(key).unwrap(), None).await;
            assert!(request.starts_with(line), "{request}");
        }
    }
}
