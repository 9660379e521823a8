//! Where a table's files are staged and where they become visible.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;

use super::FileContent;
use crate::error::{Error, Result};
use crate::sink::EpochId;
use crate::store::{Backend, Store};

/// The table's folder, and what stands before it.
#[derive(Clone)]
pub(super) enum Place {
    /// On this machine: files are staged in a folder, and renamed.
    Disk { table: PathBuf, staging: PathBuf },
    /// On an object store: files are uploaded, and the upload is completed.
    Objects(Objects),
}

/// A folder of an object store, and the notes about uploads to it.
#[derive(Clone)]
pub(super) struct Objects {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) multipart: Arc<dyn MultipartStore>,
    pub(super) prefix: Path,
    pub(super) notes: Store,
}

impl Place {
    pub(super) fn new(table: &Store, staging: &Store, notes: Store) -> Result<Self> {
        match (table.backend(), staging.backend()) {
            (Backend::Local(table), Backend::Local(staging)) => {
                Ok(Self::Disk { table: table.clone(), staging: staging.clone() })
            }
            (Backend::Object { objects, multipart, prefix }, _) => Ok(Self::Objects(Objects {
                objects: objects.clone(),
                multipart: multipart.clone(),
                prefix: prefix.clone(),
                notes,
            })),
            (Backend::Local(_), Backend::Object { .. }) => Err(Error::config(format!(
                "files for {} cannot be staged in {}: both must be on the same disk",
                table.url(),
                staging.url()
            ))),
        }
    }
}

/// Gives the name of a file.
pub(super) fn file_name(pipeline: &str, id: EpochId, number: u64, content: FileContent) -> String {
    format!("{pipeline}-{}-{}-{number}{}", id.generation, id.epoch, content.ending())
}

/// Gives the name of the note about a file's upload.
pub(super) fn note_name(id: EpochId, number: u64) -> String {
    format!("{}-{}-{number}.json", id.generation, id.epoch)
}

/// Gives the name at the end of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
