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
