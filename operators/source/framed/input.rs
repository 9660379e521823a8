//! Where the bytes of one partition come from: read by ranges, so that a read
//! that was dropped half way can be made again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use crate::error::{Error, Result};

/// Bytes of one read from the local disk: large enough that a system call is nothing beside it.
const FILE_BLOCK_BYTES: usize = 512 * 1024;

/// Bytes of one range read of an object: some 40 ms of transfer hide the 20 ms until the first byte, and
/// eight objects at once stay within 32 MiB.
const OBJECT_BLOCK_BYTES: usize = 4 * 1024 * 1024;

/// The bytes of a file, an object, or a buffer, at any offset.
#[derive(Debug, Clone)]
pub enum Input {
    /// A buffer in memory.
    Memory(Bytes),
    /// A file of this machine. It may grow while it is read.
    File(Arc<File>),
    /// An object of a store.
    Object(ObjectInput),
}

/// One version of an object.
#[derive(Debug, Clone)]
pub struct ObjectInput {
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The key.
    pub path: Path,
    /// The version to read, where the bucket keeps versions.
    pub version: Option<String>,
    /// What the entity tag must be, so that all ranges come from the same content.
    pub etag: Option<String>,
    /// Length in bytes.
    pub size: u64,
}

impl Input {
    /// Gives how many bytes are best read at once.
    pub fn block_bytes(&self) -> usize {
        match self {
            Input::Memory(_) | Input::File(_) => FILE_BLOCK_BYTES,
            Input::Object(_) => OBJECT_BLOCK_BYTES,
        }
    }

    /// Gives the present length in bytes.
    pub fn size(&self) -> Result<u64> {
        match self {
            Input::Memory(bytes) => Ok(bytes.len() as u64),
            Input::File(file) => Ok(file.metadata()?.len()),
            Input::Object(object) => Ok(object.size),
        }
    }

    /// Reads up to `len` bytes at `offset`; fewer only at the end, none behind it.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        match self {
            Input::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let until = from.saturating_add(len).min(bytes.len());
                Ok(bytes.slice(from..until))
            }
            Input::File(file) => {
                let file = Arc::clone(file);
                let read = tokio::task::spawn_blocking(move || read_file(&file, offset, len)).await;
                Ok(read.map_err(|e| Error::internal("a disk task ended early").because(e))??)
            }
            Input::Object(object) => object.read_at(offset, len).await,
        }
    }
}

impl ObjectInput {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let until = offset.saturating_add(len as u64).min(self.size);
        if offset >= until {
            return Ok(Bytes::new());
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(offset..until)),
            version: self.version.clone(),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let answer = self.store.get_opts(&self.path, options).await.map_err(|e| self.failed(e))?;
        answer.bytes().await.map_err(|e| self.failed(e))
    }

    fn failed(&self, cause: object_store::Error) -> Error {
        use object_store::Error as Store;
        match cause {
            Store::NotFound { .. } => Error::data("the object was removed while it was read").because(cause),
            Store::Precondition { .. } => Error::data("the object was overwritten while it was read").because(cause),
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
                Error::data("access to the object was denied while it was read").because(cause)
            }
            _ => Error::from(cause),
        }
    }
}

fn read_file(file: &File, offset: u64, len: usize) -> std::io::Result<Bytes> {
    let mut block = vec![0; len];
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    block.truncate(filled);
    Ok(block.into())
}
