//! An object store that is away for a while. The time is tokio's, so a test that pauses it need not wait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::Instant;

use crate::store::patient::Patient;
use crate::store::{Backend, Store};

/// Objects in memory that nobody reaches until a time has come.
#[derive(Debug, Clone)]
struct Outage {
    objects: Arc<InMemory>,
    until: Instant,
}

/// Opens an empty store that is away from now on for so long. It is called as a bucket of S3 is.
pub fn store_away_for(time: Duration) -> Store {
    let outage = Patient::new(Outage { objects: Arc::new(InMemory::new()), until: Instant::now() + time });
    let (objects, multipart) = (Arc::new(outage.clone()), Arc::new(outage));
    Store::with_backend("s3://away", Backend::Object { objects, multipart, prefix: Path::ROOT })
}

impl Outage {
    fn reach(&self) -> Result<&Arc<InMemory>> {
        if Instant::now() >= self.until {
            return Ok(&self.objects);
        }
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        Err(Error::Generic { store: "S3", source: Box::new(HttpError::new(HttpErrorKind::Connect, refused)) })
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that is away")
    }
}

#[async_trait]
impl ObjectStore for Outage {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.reach()?.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.reach()?.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.reach()?.get_opts(at, options).await
    }

    fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.reach() {
            Ok(objects) => objects.delete_stream(all),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.reach() {
            Ok(objects) => objects.list(below),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.reach()?.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.reach()?.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Outage {
    async fn create_multipart(&self, at: &Path) -> Result<MultipartId> {
        self.reach()?.create_multipart(at).await
    }

    async fn put_part(&self, at: &Path, id: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        self.reach()?.put_part(at, id, part, data).await
    }

    async fn complete_multipart(&self, at: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.reach()?.complete_multipart(at, id, parts).await
    }

    async fn abort_multipart(&self, at: &Path, id: &MultipartId) -> Result<()> {
        self.reach()?.abort_multipart(at, id).await
    }
}
