//! A folder of files, on this machine or under a prefix of an object store.
//!
//! The lake's tables and the state store both stand on it. What it adds to
//! [`object_store`]: writes on the local disk are synced before they count.

pub mod local;
#[cfg(feature = "s3")]
pub(crate) mod patient;
#[cfg(feature = "s3")]
pub mod s3;

use std::fmt;
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::{Path, PathPart};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::io::AsyncWriteExt;

use crate::aws::AwsSettings;
use crate::error::{Error, Result};
use crate::probe::Probed;

/// How buckets are opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// How objects are encrypted.
    pub encryption: Encryption,
    /// Where S3 is, and as whom it is called.
    pub aws: AwsSettings,
}

/// How objects on S3 are encrypted at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// By keys that S3 owns (SSE-S3, AES256).
    #[default]
    SseS3,
    /// By a key in AWS KMS, named by id, alias or ARN.
    Kms(String),
    /// As the bucket's own settings say: no encryption is asked for.
    BucketDefault,
}

/// A folder of files. Names are relative to it, with `/` between their parts.
#[derive(Clone)]
pub struct Store {
    url: String,
    backend: Backend,
}

/// Where a [`Store`] keeps its files.
#[derive(Clone)]
pub enum Backend {
    /// In a folder of this machine.
    Local(PathBuf),
    /// Under a prefix of an object store.
    Object {
        /// The store for whole objects.
        objects: Arc<dyn ObjectStore>,
        /// The same store, for uploads that are completed later.
        multipart: Arc<dyn MultipartStore>,
        /// The prefix, which may be empty.
        prefix: Path,
    },
}

/// A file of a [`Store`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, relative to the store.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

impl Store {
    /// Opens a folder by its URL: `s3://bucket/prefix`, `file:///path`, or a plain path.
    ///
    /// A local folder is made when it is first written to.
    pub async fn open(url: &str, access: &Access) -> Result<Self> {
        if url.starts_with("s3://") {
            return Self::open_s3(url, access).await;
        }
        if let Some(scheme) = url.split_once("://").map(|(scheme, _)| scheme).filter(|s| *s != "file") {
            return Err(Error::config(format!("could not open {url}: `{scheme}` is not known; use s3:// or a path")));
        }
        let path = PathBuf::from(url.strip_prefix("file://").unwrap_or(url));
        let path = std::path::absolute(&path).map_err(|e| Error::config(format!("could not open {url}")).because(e))?;
        Ok(Self { url: path.display().to_string(), backend: Backend::Local(path) })
    }

    /// Gives the encryption that the folder's store takes: what is wanted, but SSE-S3 of a store that speaks S3 and
    /// has no keys of its own.
    pub async fn accepted_encryption(url: &str, wanted: &Access) -> Result<Encryption> {
        #[cfg(feature = "s3")]
        if url.starts_with("s3://") && wanted.encryption == Encryption::SseS3 {
            let (bucket, prefix) = bucket_of(url)?;
            if !s3::takes_sse(&bucket, &prefix, &wanted.aws).await? {
                tracing::warn!(url, "the store refuses SSE-S3; objects are encrypted as the bucket has it");
                return Ok(Encryption::BucketDefault);
            }
        }
        #[cfg(not(feature = "s3"))]
        let _unused = url;
        Ok(wanted.encryption.clone())
    }

    /// Looks whether files can be created, read, listed and removed in a folder; what is written is removed again.
    pub async fn probe(url: &str, access: &Access) -> Probed {
        #[cfg(feature = "s3")]
        if url.starts_with("s3://") {
            return s3::probe(url, access).await;
        }
        match Self::open(url, access).await?.backend {
            Backend::Local(root) => {
                let tried = tokio::task::spawn_blocking(move || local::probe(&root)).await;
                tried.map_err(|e| Error::internal("a disk task ended early").because(e))?
            }
            Backend::Object { .. } => Ok("it can be written".to_owned()),
        }
    }

    /// Opens a store in memory, for tests and trials.
    pub fn memory() -> Self {
        let memory = Arc::new(object_store::memory::InMemory::new());
        let backend = Backend::Object { objects: memory.clone(), multipart: memory, prefix: Path::default() };
        Self { url: "memory://".into(), backend }
    }

    /// Opens a store of a backend that the caller has made.
    pub fn with_backend(url: impl Into<String>, backend: Backend) -> Self {
        Self { url: url.into(), backend }
    }

    #[cfg(feature = "s3")]
    async fn open_s3(url: &str, access: &Access) -> Result<Self> {
        let (bucket, prefix) = bucket_of(url)?;
        let s3 = Arc::new(s3::bucket(&bucket, access).await?);
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, backend: Backend::Object { objects: s3.clone(), multipart: s3, prefix } })
    }

    #[cfg(not(feature = "s3"))]
    #[allow(clippy::unused_async, reason = "the same call awaits where S3 is built in")]
    async fn open_s3(url: &str, _: &Access) -> Result<Self> {
        Err(Error::config(format!("could not open {url}: this build has no S3 support; build it with feature `s3`")))
    }

    /// Gives the folder's URL or absolute path, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Gives where the files are kept.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Gives the folder `name` below this one.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let url = format!("{}/{name}", self.url);
        let backend = match &self.backend {
            Backend::Local(root) => Backend::Local(root.join(name)),
            Backend::Object { objects, multipart, prefix } => {
                Backend::Object { objects: objects.clone(), multipart: multipart.clone(), prefix: join(prefix, name) }
            }
        };
        Self { url, backend }
    }

    /// Reads a file; nothing if there is none.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        match &self.backend {
            Backend::Local(root) => match tokio::fs::read(root.join(name)).await {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::from(e).while_doing(format!("could not read {}/{name}", self.url))),
            },
            Backend::Object { objects, prefix, .. } => match objects.get(&join(prefix, name)).await {
                Ok(answer) => Ok(Some(answer.bytes().await.map_err(|e| self.failed("read", name, e))?)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.failed("read", name, e)),
            },
        }
    }

    /// Reads a piece of a file.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if there is no such file, and
    /// [`Data`](crate::ErrorKind::Data) or [`Unavailable`](crate::ErrorKind::Unavailable) if it is shorter.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        match &self.backend {
            Backend::Local(root) => {
                self.on_disk("read", name, root.join(name), move |path| local::read_range(path, range)).await
            }
            Backend::Object { objects, prefix, .. } => {
                let length = range.end.saturating_sub(range.start);
                let got = objects.get_range(&join(prefix, name), range).await;
                let got = got.map_err(|e| self.failed("read", name, e))?;
                // A store answers with what there is.
                if got.len() as u64 == length {
                    return Ok(got);
                }
                let url = &self.url;
                Err(Error::data(format!("could not read {length} bytes of {url}/{name}: it ends after {}", got.len())))
            }
        }
    }

    /// Writes a file durably if there is none of that name; tells whether it did.
    ///
    /// The content must be unlike that of any other writer: where a reply was lost, the file that is there by now is
    /// known by it for one's own.
    pub async fn create(&self, name: &str, content: Bytes) -> Result<bool> {
        match &self.backend {
            Backend::Local(root) => {
                self.on_disk("create", name, root.join(name), move |path| {
                    let staged = local::write_beside(path, &content)?;
                    let linked = std::fs::hard_link(&staged, path);
                    std::fs::remove_file(&staged)?;
                    match linked {
                        Ok(()) => local::sync_folder_of(path).map(|()| true),
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
                        Err(e) => Err(e),
                    }
                })
                .await
            }
            Backend::Object { objects, prefix, .. } => {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match objects.put_opts(&join(prefix, name), PutPayload::from_bytes(content), options).await {
                    Ok(_) => Ok(true),
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                        Ok(false)
                    }
                    Err(e) => Err(self.failed("create", name, e)),
                }
            }
        }
    }

    /// Writes a file durably, in place of one that may be there.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<()> {
        match &self.backend {
            Backend::Local(root) => {
                self.on_disk("write", name, root.join(name), move |path| {
                    let staged = local::write_beside(path, &content)?;
                    std::fs::rename(&staged, path)?;
                    local::sync_folder_of(path)
                })
                .await
            }
            Backend::Object { objects, prefix, .. } => objects
                .put(&join(prefix, name), PutPayload::from_bytes(content))
                .await
                .map(|_| ())
                .map_err(|e| self.failed("write", name, e)),
        }
    }

    /// Opens a file to be read at any place; nothing if there is none.
    ///
    /// On the local disk it is the file itself, which can be read on after it was removed or replaced. Of an object it
    /// is a copy without a name, in the folder for temporary files, that goes when it is closed or the process ends.
    pub async fn open_file(&self, name: &str) -> Result<Option<std::fs::File>> {
        match &self.backend {
            Backend::Local(root) => match tokio::fs::File::open(root.join(name)).await {
                Ok(file) => Ok(Some(file.into_std().await)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::from(e).while_doing(format!("could not open {}/{name}", self.url))),
            },
            Backend::Object { objects, prefix, .. } => {
                let answer = match objects.get(&join(prefix, name)).await {
                    Ok(answer) => answer,
                    Err(object_store::Error::NotFound { .. }) => return Ok(None),
                    Err(e) => return Err(self.failed("read", name, e)),
                };
                let pieces = answer.into_stream().map_err(|e| self.failed("read", name, e));
                self.copy(name, pieces).await.map(Some)
            }
        }
    }

    /// Writes a file as [`put`](Self::put) does, and opens it as [`open_file`](Self::open_file) does.
    pub async fn put_and_open(&self, name: &str, content: Bytes) -> Result<std::fs::File> {
        self.put(name, content.clone()).await?;
        if matches!(self.backend, Backend::Object { .. }) {
            return self.copy(name, futures::stream::iter([Ok(content)])).await;
        }
        let gone = || Error::unavailable(format!("could not open {}/{name}: it was written, and is gone", self.url));
        self.open_file(name).await?.ok_or_else(gone)
    }

    /// Copies content to a file without a name.
    async fn copy(&self, name: &str, pieces: impl Stream<Item = Result<Bytes>>) -> Result<std::fs::File> {
        let failed = |e: std::io::Error| Error::from(e).while_doing(format!("could not copy {}/{name}", self.url));
        let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(failed)?);
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.try_next().await? {
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(file.into_std().await)
    }

    /// Removes a file; it is no error if there is none.
    pub async fn delete(&self, name: &str) -> Result<()> {
        match &self.backend {
            Backend::Local(root) => match tokio::fs::remove_file(root.join(name)).await {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::from(e).while_doing(format!("could not remove {}/{name}", self.url)))
                }
                _ => Ok(()),
            },
            Backend::Object { objects, prefix, .. } => match objects.delete(&join(prefix, name)).await {
                Err(e) if !matches!(e, object_store::Error::NotFound { .. }) => Err(self.failed("remove", name, e)),
                _ => Ok(()),
            },
        }
    }

    /// Gives a file's size; nothing if there is none.
    pub async fn size(&self, name: &str) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Local(root) => match tokio::fs::metadata(root.join(name)).await {
                Ok(meta) => Ok(Some(meta.len())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::from(e).while_doing(format!("could not look at {}/{name}", self.url))),
            },
            Backend::Object { objects, prefix, .. } => match objects.head(&join(prefix, name)).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.failed("look at", name, e)),
            },
        }
    }

    /// Lists all files below the folder `name` (all of the store if it is empty), by name.
    pub async fn list(&self, name: &str) -> Result<Vec<Entry>> {
        let mut entries = match &self.backend {
            Backend::Local(root) => {
                let root = root.clone();
                self.on_disk("list", name, root.join(name), move |folder| local::list(&root, folder)).await?
            }
            Backend::Object { objects, prefix, .. } => {
                let folder = join(prefix, name);
                let found: Vec<_> =
                    objects.list(Some(&folder)).try_collect().await.map_err(|e| self.failed("list", name, e))?;
                let root = if prefix.as_ref().is_empty() { 0 } else { prefix.as_ref().len() + 1 };
                let entry = |m: object_store::ObjectMeta| Entry {
                    name: m.location.as_ref().get(root..).unwrap_or_default().to_owned(),
                    size: m.size,
                };
                found.into_iter().map(entry).collect()
            }
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Removes the files that a process died over while it wrote them; gives how many. An object store has none.
    ///
    /// A process that still writes such a file fails: only the newest may call this.
    pub async fn remove_half_written(&self) -> Result<u64> {
        match &self.backend {
            Backend::Local(root) => self.on_disk("clear", "", root.clone(), local::remove_half_written).await,
            Backend::Object { .. } => Ok(0),
        }
    }

    fn failed(&self, what: &str, name: &str, cause: object_store::Error) -> Error {
        Error::from(cause).while_doing(format!("could not {what} {}/{name}", self.url))
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        what: &str,
        name: &str,
        path: PathBuf,
        work: impl FnOnce(&FsPath) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::task::spawn_blocking(move || work(&path)).await;
        let done = done.map_err(|e| Error::internal("a disk task ended early").because(e))?;
        done.map_err(|e| Error::from(e).while_doing(format!("could not {what} {}/{name}", self.url)))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

#[cfg(feature = "s3")]
pub(crate) fn bucket_of(url: &str) -> Result<(String, Path)> {
    let wrong = || Error::config(format!("could not open {url}"));
    let parsed = url::Url::parse(url).map_err(|e| wrong().because(e))?;
    let bucket = parsed.host_str().ok_or_else(|| Error::config(format!("could not open {url}: it names no bucket")))?;
    let prefix = Path::from_url_path(parsed.path()).map_err(|e| wrong().because(e))?;
    Ok((bucket.to_owned(), prefix))
}

/// Gives the path of `name` below `prefix`.
///
/// Names are taken as they are, so that what [`Store::list`] gives can be read;
/// only what no key may hold (`.`, `..`, control characters) is escaped.
pub fn join(prefix: &Path, name: &str) -> Path {
    let part = |part| PathPart::parse(part).unwrap_or_else(|_| PathPart::from(part));
    name.split('/').filter(|part| !part.is_empty()).fold(prefix.clone(), |path, name| path.join(part(name)))
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::store::conforms;

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms_on_a_disk() {
        let root = tempfile::tempdir().unwrap();
        let count = AtomicUsize::new(0);
        conforms(|| async {
            let folder = root.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
            Store::open(&folder.display().to_string(), &Access::default()).await.unwrap()
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms_in_memory() {
        conforms(|| async { Store::memory() }).await;
    }

    #[cfg(feature = "s3")]
    #[tokio::test(flavor = "multi_thread")]
    async fn conforms_on_s3() {
        let server = crate::testing::ministack::Ministack::start();
        let count = AtomicUsize::new(0);
        conforms(|| async { server.bucket(&format!("store-{}", count.fetch_add(1, Ordering::Relaxed))) }).await;
        // And below a prefix of a bucket that holds other things.
        let shared = server.bucket("shared");
        shared.put("other", Bytes::from_static(b"x")).await.unwrap();
        conforms(|| async { shared.below(&format!("prefix {}", count.fetch_add(1, Ordering::Relaxed))) }).await;
    }
}
