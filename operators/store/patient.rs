//! A store whose calls are made again where its client gives up too early.
//!
//! The client of [`object_store`] waits and tries again where the service answers with an error of its own, but not
//! where a connection breaks under a listing, a removal, an abort or a conditional write: for it cannot know whether the
//! service has obeyed. Here it is known: all calls may be made twice, and a conditional write that finds its own content
//! has succeeded before.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::HttpError;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::Instant;

/// How long a call is made again before it fails: longer than a failover of the service.
pub(super) const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The first pause between two calls; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause: what is behind a broken connection is seldom away for longer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A store that bears broken connections.
#[derive(Debug, Clone)]
pub(crate) struct Patient<S> {
    store: Arc<S>,
}

impl<S> Patient<S> {
    /// Wraps a store.
    pub(crate) fn new(store: S) -> Self {
        Self { store: Arc::new(store) }
    }
}

impl<S: ObjectStore> Patient<S> {
    /// Writes an object if there is none, or if the one that is there has come from an earlier call.
    async fn create(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let refused = match self.store.put_opts(at, payload.clone(), options).await {
            Err(error @ (Error::AlreadyExists { .. } | Error::Precondition { .. })) => error,
            done => return done,
        };
        let found = match self.store.get(at).await {
            Ok(found) => found,
            // Another write was under way when this one came, and has not succeeded.
            Err(Error::NotFound { .. }) => return Err(conflict(refused)),
            Err(error) => return Err(error),
        };
        let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
        let is_own = Bytes::from(payload) == found.bytes().await?;
        if is_own { Ok(PutResult { e_tag, version }) } else { Err(refused) }
    }
}

/// Makes a call until it succeeds, fails for good, or has failed for too long.
pub(super) async fn again<T, F: Future<Output = Result<T>>>(
    passes: impl Fn(&Error) -> bool,
    call: impl Fn() -> F,
) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    let mut pause = PAUSE_MIN;
    loop {
        match call().await {
            Err(error) if passes(&error) && Instant::now() < until => {
                tracing::info!(%error, ?pause, "a call to the object store failed; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            done => return done,
        }
    }
}

/// Tells whether there was no answer, or half of one.
pub(super) fn is_broken(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<HttpError>() || error.is::<Conflict>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A conditional write that met another, of which nothing has come.
#[derive(Debug)]
struct Conflict(Error);

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "another write was under way: {}", self.0)
    }
}

impl std::error::Error for Conflict {}

fn conflict(refused: Error) -> Error {
    Error::Generic { store: "S3", source: Box::new(Conflict(refused)) }
}

impl<S: fmt::Display> fmt::Display for Patient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Patient<S> {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode == PutMode::Create {
            return again(is_broken, || self.create(at, payload.clone(), options.clone())).await;
        }
        again(is_broken, || self.store.put_opts(at, payload.clone(), options.clone())).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        again(is_broken, || self.store.put_multipart_opts(at, options.clone())).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        again(is_broken, || self.store.get_opts(at, options.clone())).await
    }

    fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.store.clone();
        let delete = move |at: Path| {
            let store = store.clone();
            async move { again(is_broken, || store.delete(&at)).await.map(|()| at) }
        };
        all.and_then(delete).boxed()
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, below) = (self.store.clone(), below.cloned());
        let listing = async move {
            let found: Vec<_> = again(is_broken, || store.list(below.as_ref()).try_collect()).await?;
            Ok::<_, Error>(futures::stream::iter(found).map(Ok))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        again(is_broken, || self.store.list_with_delimiter(below)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        again(is_broken, || self.store.copy_opts(from, to, options.clone())).await
    }
}

#[async_trait]
impl<S: MultipartStore> MultipartStore for Patient<S> {
    async fn create_multipart(&self, at: &Path) -> Result<MultipartId> {
        again(is_broken, || self.store.create_multipart(at)).await
    }

    async fn put_part(&self, at: &Path, id: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        again(is_broken, || self.store.put_part(at, id, part, data.clone())).await
    }

    async fn complete_multipart(&self, at: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        again(is_broken, || self.store.complete_multipart(at, id, parts.clone())).await
    }

    async fn abort_multipart(&self, at: &Path, id: &MultipartId) -> Result<()> {
        again(is_broken, || self.store.abort_multipart(at, id)).await
    }
}
