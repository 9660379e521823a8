//! Reads from buckets of one account only.
//!
//! S3 refuses a request whose `x-amz-expected-bucket-owner` is not the bucket's
//! account. The header must be signed, and `object_store` cannot add one, so
//! the request is signed again on its way out.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, CredentialProvider};

/// The identity that requests are signed with.
pub type Credentials = Arc<dyn CredentialProvider<Credential = AwsCredential>>;

/// Makes a store refuse buckets that `owner` does not own.
pub fn expect_owner(builder: AmazonS3Builder, owner: &str, region: &str, credentials: Credentials) -> AmazonS3Builder {
    let (owner, region) = (owner.to_owned(), region.to_owned());
    builder.with_http_connector(OwnerConnector { owner, region, credentials })
}

#[derive(Debug, Clone)]
struct OwnerConnector {
    owner: String,
    region: String,
    credentials: Credentials,
}

impl HttpConnector for OwnerConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(OwnerService { inner, signing: self.clone() }))
    }
}

#[derive(Debug)]
struct OwnerService {
    inner: HttpClient,
    signing: OwnerConnector,
}

#[async_trait]
impl HttpService for OwnerService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let OwnerConnector { owner, region, credentials } = &self.signing;
        let owner = owner.parse().map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
        let credential = credentials.get_credential().await.map_err(|e| HttpError::new(HttpErrorKind::Request, e))?;
        request.headers_mut().remove("authorization");
        request.headers_mut().insert("x-amz-expected-bucket-owner", owner);
        AwsAuthorizer::new(&credential, "s3", region).authorize(&mut request, None);
        self.inner.execute(request).await
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{ObjectStoreExt, StaticCredentialProvider};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_expected_owner_is_sent_and_signed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (key_id, secret_key) = ("test".to_owned(), "test".to_owned());
        let credential = AwsCredential { key_id, secret_key, token: Some("session".into()) };
        let credentials: Credentials = Arc::new(StaticCredentialProvider::new(credential));
        let builder = AmazonS3Builder::new().with_bucket_name("b").with_region("eu-west-1").with_endpoint(endpoint);
        let builder = builder.with_allow_http(true).with_credentials(credentials.clone());
        let store = expect_owner(builder, "123456789012", "eu-west-1", credentials).build().unwrap();
        let path = Path::from("k");
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let (read, request) = tokio::join!(store.get(&path), answer);
        assert!(matches!(read, Err(object_store::Error::PermissionDenied { .. })), "{read:?}");
        assert!(request.contains("x-amz-expected-bucket-owner: 123456789012\r\n"), "{request}");
        let signed = request.lines().find_map(|line| line.split_once("SignedHeaders=")).unwrap().1;
        assert!(signed.split(',').next().unwrap().split(';').any(|h| h == "x-amz-expected-bucket-owner"), "{signed}");
        assert_eq!(request.matches("authorization: ").count(), 1);
    }
}
