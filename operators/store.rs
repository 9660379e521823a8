//! A folder of files, on this machine or under a prefix of an object store.
//!
//! The lake's tables and the state store both stand on it. What it adds to
//! [`object_store`]: writes on the local disk are synced before they count.

use std::fmt;
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::{Path, PathPart};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::error::{Error, Result};

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
    pub async fn open(url: &str, encryption: &Encryption) -> Result<Self> {
        if url.starts_with("s3://") {
            return Self::open_s3(url, encryption).await;
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
    pub async fn accepted_encryption(url: &str, wanted: &Encryption) -> Result<Encryption> {
        #[cfg(feature = "s3")]
        if url.starts_with("s3://") && *wanted == Encryption::SseS3 {
            let (bucket, prefix) = bucket_of(url)?;
            if !s3::takes_sse(&bucket, &prefix).await? {
                tracing::warn!(url, "the store refuses SSE-S3; objects are encrypted as the bucket has it");
                return Ok(Encryption::BucketDefault);
            }
        }
        #[cfg(not(feature = "s3"))]
        let _unused = url;
        Ok(wanted.clone())
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
    async fn open_s3(url: &str, encryption: &Encryption) -> Result<Self> {
        let (bucket, prefix) = bucket_of(url)?;
        let s3 = Arc::new(s3::bucket(&bucket, encryption).await?);
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, backend: Backend::Object { objects: s3.clone(), multipart: s3, prefix } })
    }

    #[cfg(not(feature = "s3"))]
    #[allow(clippy::unused_async, reason = "the same call awaits where S3 is built in")]
    async fn open_s3(url: &str, _: &Encryption) -> Result<Self> {
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
                let got = objects.get_range(&join(prefix, name), range).await;
                got.map_err(|e| self.failed("read", name, e))
            }
        }
    }

    /// Writes a file durably if there is none of that name; tells whether it did.
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
fn bucket_of(url: &str) -> Result<(String, Path)> {
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

/// Files on the local disk: synced writes, and a list that skips what is half written.
pub mod local {
    use std::fs::{self, File};
    use std::io::{self, Read, Seek, SeekFrom, Write};
    use std::ops::Range;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;

    use super::Entry;

    /// Tells writers of the same process apart; the process id tells the others apart.
    static WRITES: AtomicU64 = AtomicU64::new(0);

    /// Ending of files that are being written.
    const HALF_WRITTEN: &str = ".part";

    /// Writes and syncs `content` under a name beside `path`, and gives that name.
    pub fn write_beside(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder)?;
        let number = WRITES.fetch_add(1, Ordering::Relaxed);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let staged = folder.join(format!(".{name}.{}-{number}{HALF_WRITTEN}", std::process::id()));
        let mut file = File::create(&staged)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// Reads a piece of a file.
    pub fn read_range(path: &Path, range: Range<u64>) -> io::Result<Bytes> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(range.start))?;
        let length = range.end.saturating_sub(range.start);
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length { Ok(bytes.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Makes a folder and those above it, and syncs the folders that hold the new ones.
    pub fn make_folder(folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(above) = folder.parent() {
            make_folder(above)?;
        }
        match fs::create_dir(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => sync_folder_of(folder),
        }
    }

    /// Syncs the folder that holds `path`, so that its name survives a power cut.
    pub fn sync_folder_of(path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Lists the files below `folder`, with names relative to `root`.
    pub fn list(root: &Path, folder: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let listing = match fs::read_dir(&folder) {
                Ok(listing) => listing,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for item in listing {
                let item = item?;
                let path = item.path();
                if item.file_type()?.is_dir() {
                    folders.push(path);
                } else if !path.to_string_lossy().ends_with(HALF_WRITTEN) {
                    let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                    match item.metadata() {
                        Ok(meta) => entries.push(Entry { name, size: meta.len() }),
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(entries)
    }
}

/// Buckets of Amazon S3, with the identity that all AWS connectors share.
#[cfg(feature = "s3")]
pub mod s3 {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
    use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
    use object_store::path::Path;
    use object_store::{BackoffConfig, ClientOptions, CredentialProvider, ObjectStoreExt, PutPayload, RetryConfig};

    use super::Encryption;
    use crate::error::{Error, Result};

    /// How often a write is tried again before a store is taken not to know SSE-S3.
    const PROBE_RETRIES_MAX: usize = 2;

    /// How long a call to S3 is tried again before it fails: longer than a failover of the service.
    const RETRY_FOR: Duration = Duration::from_secs(15 * 60);

    /// Opens a bucket with the process's identity.
    pub async fn bucket(name: &str, encryption: &Encryption) -> Result<AmazonS3> {
        bucket_with(&crate::aws::config().await, name, encryption)
    }

    /// Opens a bucket with the identity and endpoint of `config`.
    pub fn bucket_with(config: &aws_config::SdkConfig, name: &str, encryption: &Encryption) -> Result<AmazonS3> {
        let built = builder_with(config, name, encryption)?.build();
        built.map_err(|e| Error::config(format!("could not open the bucket {name}")).because(e))
    }

    /// Prepares to open a bucket with the identity and endpoint of `config`.
    pub(crate) fn builder_with(
        config: &aws_config::SdkConfig,
        name: &str,
        encryption: &Encryption,
    ) -> Result<AmazonS3Builder> {
        let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
        let retry =
            RetryConfig { backoff: BackoffConfig::default(), max_retries: usize::MAX, retry_timeout: RETRY_FOR };
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
        let retry = RetryConfig { max_retries: PROBE_RETRIES_MAX, ..RetryConfig::default() };
        let mut taken = [false; 2];
        for (taken, encryption) in taken.iter_mut().zip([Encryption::SseS3, Encryption::BucketDefault]) {
            let store = builder_with(&config, bucket, &encryption)?.with_retry(retry.clone()).build()?;
            *taken = store.put(&name, PutPayload::from_static(b"probe")).await.is_ok();
            if *taken {
                store.delete(&name).await?;
                break;
            }
        }
        // Where neither is taken, encryption is not what is wrong.
        Ok(taken != [false, true])
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
}
