//! Makes prepared files visible, and removes those that will never be.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path as FsPath, PathBuf};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::multipart::PartId;
use serde::{Deserialize, Serialize};

use super::place::{Objects, Place};
use super::upload::Note;
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::{Committer, EpochId, Handle};
use crate::store::{Entry, join, local};

/// Files that are completed at once.
const COMPLETIONS_MAX: usize = 16;

/// The files of an epoch, as they stand in the commit record.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Files {
    pub(super) files: Vec<PreparedFile>,
    /// Files of earlier epochs that go when this one is committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) removes: Vec<RemovedFile>,
    /// Names of files of the spool whose rows `files` hold; they go when the epoch is committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) spent: Vec<String>,
    /// Files that stand for committed ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rewrites: Vec<Rewrite>,
}

/// Files that are put in the place of committed files of the same folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rewrite {
    /// The new files.
    pub(super) files: Vec<PreparedFile>,
    /// Those that they stand for.
    pub(super) replaces: Vec<RemovedFile>,
}

/// A committed file whose rows an epoch has taken out of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedFile {
    /// Path relative to the table's folder.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
}

/// A file that is durable, but not visible.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PreparedFile {
    /// Path relative to the table's folder, once it is committed.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    #[serde(flatten)]
    pub(super) staged: Staged,
}

/// Where the bytes of a prepared file are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Staged {
    /// In a file of this name in the staging folder.
    File(String),
    /// In the parts of an upload.
    Upload {
        id: String,
        /// Name of the note in the state store.
        note: String,
        /// What the store calls the parts, in their order.
        parts: Vec<String>,
    },
}

/// Publishes the files of a [`ParquetSink`](super::ParquetSink).
pub(super) struct ParquetCommitter {
    pub(super) pipeline: String,
    pub(super) place: Place,
}

#[async_trait]
impl Committer for ParquetCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        let files = read(handle)?;
        self.publish(files).await.map_err(|e| e.while_doing(format!("could not commit epoch {}", id.epoch)))
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let mut kept = HashSet::new();
        for handle in keep {
            kept.extend(read(handle)?.into_files().map(|file| match file.staged {
                Staged::File(name) => name,
                Staged::Upload { note, .. } => note,
            }));
        }
        let stale = |name: &str| {
            let of = match &self.place {
                Place::Disk { .. } => epoch_of_file(&self.pipeline, name),
                Place::Objects(_) => epoch_of_note(name),
            };
            of.is_some_and(|of| of.generation < generation) && !kept.contains(name)
        };
        match &self.place {
            Place::Disk { staging, .. } => {
                let folder = staging.clone();
                let found = blocking(move || local::list(&folder, &folder)).await;
                let found = found.map_err(|e| e.while_doing(format!("could not list {}", staging.display())))?;
                let names = found.into_iter().map(|entry| entry.name).filter(|name| stale(name)).collect();
                remove_all(staging.clone(), names).await
            }
            Place::Objects(objects) => {
                let found = objects.notes.list("").await?;
                objects.abort_all(found.into_iter().filter(|entry| stale(&entry.name)).collect()).await
            }
        }
    }
}

impl Files {
    /// Gives all files that are put into the table.
    pub(super) fn into_files(self) -> impl Iterator<Item = PreparedFile> {
        self.files.into_iter().chain(self.rewrites.into_iter().flat_map(|rewrite| rewrite.files))
    }
}

impl Rewrite {
    /// Begins with the files that are replaced.
    pub(super) fn of(replaces: Vec<RemovedFile>) -> Self {
        Self { files: Vec::new(), replaces }
    }

    /// Counts the rows, which are as many as before.
    pub(super) fn rows(&self) -> Result<u64> {
        let before = self.replaces.iter().map(|file| file.rows).sum::<u64>();
        let after = self.files.iter().map(|file| file.rows).sum::<u64>();
        if before == after {
            return Ok(after);
        }
        Err(Error::internal(format!("files with {before} rows were to be rewritten, and {after} rows were written")))
    }
}

impl ParquetCommitter {
    async fn publish(&self, Files { files, removes, rewrites, .. }: Files) -> Result<()> {
        match &self.place {
            Place::Disk { table, staging } => {
                rename_all(table.clone(), staging.clone(), files).await?;
                for Rewrite { files, replaces } in rewrites {
                    rename_all(table.clone(), staging.clone(), files).await?;
                    fail::point("before_removal")?;
                    remove_durably(replaces.iter().map(|file| table.join(&file.path)).collect()).await?;
                    fail::point("after_removal")?;
                }
            }
            Place::Objects(objects) => {
                objects.complete_all(files).await?;
                futures::stream::iter(rewrites)
                    .map(|rewrite| async move {
                        // The notes stay until the replaced files are gone: what they tell of is not done before.
                        let notes = objects.complete_each(rewrite.files).await?;
                        objects.remove_all(rewrite.replaces).await?;
                        objects.remove_notes(notes).await
                    })
                    .buffer_unordered(COMPLETIONS_MAX)
                    .try_collect::<()>()
                    .await?;
            }
        }
        self.remove(removes).await
    }

    /// Removes files; those that an earlier call has removed are gone.
    async fn remove(&self, files: Vec<RemovedFile>) -> Result<()> {
        for file in files {
            fail::point("before_removal")?;
            match &self.place {
                Place::Disk { table, .. } => remove_durably(vec![table.join(&file.path)]).await?,
                Place::Objects(objects) => match objects.objects.delete(&join(&objects.prefix, &file.path)).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => return Err(Error::from(e).while_doing(format!("could not remove {}", file.path))),
                },
            }
            fail::point("after_removal")?;
        }
        Ok(())
    }
}

impl Objects {
    async fn complete_all(&self, files: Vec<PreparedFile>) -> Result<()> {
        let notes = self.complete_each(files).await?;
        // Only now: a note that is gone says that its file needs nothing more.
        self.remove_notes(notes).await
    }

    async fn complete_each(&self, files: Vec<PreparedFile>) -> Result<Vec<String>> {
        futures::stream::iter(files)
            .map(|file| self.complete(file))
            .buffer_unordered(COMPLETIONS_MAX)
            .try_collect()
            .await
    }

    /// Removes files by as few requests as the store allows; those that an earlier call has removed are gone.
    async fn remove_all(&self, files: Vec<RemovedFile>) -> Result<()> {
        fail::point("before_removal")?;
        let paths: Vec<_> = files.iter().map(|file| Ok(join(&self.prefix, &file.path))).collect();
        let mut removed = self.objects.delete_stream(futures::stream::iter(paths).boxed());
        while let Some(done) = removed.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(Error::from(e).while_doing("could not remove files that were merged")),
            }
        }
        fail::point("after_removal")
    }

    async fn remove_notes(&self, notes: Vec<String>) -> Result<()> {
        futures::stream::iter(notes)
            .map(|note| async move {
                fail::point("before_note_removal")?;
                self.notes.delete(&note).await?;
                fail::point("after_note_removal")
            })
            .buffer_unordered(COMPLETIONS_MAX)
            .try_collect()
            .await
    }

    /// Completes an upload and gives the name of its note.
    async fn complete(&self, file: PreparedFile) -> Result<String> {
        let Staged::Upload { id, note, parts } = file.staged else {
            return Err(Error::internal(format!(
                "{} was prepared on a local disk, but the table is not on one",
                file.path
            )));
        };
        let path = join(&self.prefix, &file.path);
        let parts = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        fail::point("before_file")?;
        let Err(error) = self.multipart.complete_multipart(&path, &id, parts).await else {
            fail::point("after_file")?;
            return Ok(note);
        };
        // An earlier call may have completed it, and only its answer been lost.
        match self.objects.head(&path).await {
            Ok(found) if found.size == file.bytes => Ok(note),
            Ok(found) => Err(Error::internal(format!(
                "{path} has {} bytes, but {} were prepared: another program has written it",
                found.size, file.bytes
            ))),
            Err(object_store::Error::NotFound { .. }) if matches!(error, object_store::Error::NotFound { .. }) => {
                Err(Error::internal(format!(
                    "the prepared file {path} is lost: its upload {id} is gone and there is no such object; \
                     does a lifecycle rule abort uploads too early"
                )))
            }
            Err(_) => Err(Error::from(error).while_doing(format!("could not complete the upload of {path}"))),
        }
    }

    async fn abort_all(&self, notes: Vec<Entry>) -> Result<u64> {
        let aborted: Vec<()> = futures::stream::iter(notes)
            .map(|entry| self.abort(entry.name))
            .buffer_unordered(COMPLETIONS_MAX)
            .try_collect()
            .await?;
        Ok(aborted.len() as u64)
    }

    async fn abort(&self, name: String) -> Result<()> {
        let Some(json) = self.notes.get(&name).await? else { return Ok(()) };
        let note: Note = serde_json::from_slice(&json)
            .map_err(|e| Error::internal(format!("could not read the note {}/{name}", self.notes.url())).because(e))?;
        let path = join(&object_store::path::Path::ROOT, &note.path);
        match self.multipart.abort_multipart(&path, &note.upload).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            // Stores answer differently for an upload that was completed: the object tells.
            Err(error) if self.objects.head(&path).await.is_err() => {
                return Err(Error::from(error).while_doing(format!("could not abort the upload of {path}")));
            }
            Err(_) => {}
        }
        self.notes.delete(&name).await
    }
}

/// Renames staged files into the table's folder, and syncs the folders that they come into.
async fn rename_all(table: PathBuf, staging: PathBuf, files: Vec<PreparedFile>) -> Result<()> {
    blocking(move || {
        let mut folders = BTreeSet::new();
        for file in &files {
            let target = table.join(&file.path);
            let Staged::File(name) = &file.staged else {
                return Ok(Err(format!(
                    "{} was prepared on an object store, but the table is on a local disk",
                    file.path
                )));
            };
            if let Some(folder) = target.parent().filter(|folder| !folders.contains(*folder)) {
                local::make_folder(folder)?;
                folders.insert(folder.to_owned());
            }
            fail::point("before_file").map_err(io::Error::other)?;
            match std::fs::rename(staging.join(name), &target) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => match size_of(&target)? {
                    Some(size) if size == file.bytes => {}
                    Some(size) => {
                        return Ok(Err(format!(
                            "{} has {size} bytes, but {} were prepared: another program has written it",
                            target.display(),
                            file.bytes
                        )));
                    }
                    None => {
                        return Ok(Err(format!(
                            "the prepared file {} is lost: it is neither there nor staged as {}",
                            target.display(),
                            staging.join(name).display()
                        )));
                    }
                },
                renamed => renamed?,
            }
            fail::point("after_file").map_err(io::Error::other)?;
        }
        for folder in folders {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(Ok(()))
    })
    .await?
    .map_err(Error::internal)
}

fn size_of(path: &FsPath) -> io::Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

async fn remove_all(staging: PathBuf, names: Vec<String>) -> Result<u64> {
    blocking(move || {
        for name in &names {
            match std::fs::remove_file(staging.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(names.len() as u64)
    })
    .await
}

/// Removes files so that they are gone after a power failure too: their rows would be there twice.
async fn remove_durably(paths: Vec<PathBuf>) -> Result<()> {
    blocking(move || {
        for path in &paths {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let folders: BTreeSet<&FsPath> = paths.iter().filter_map(|path| path.parent()).collect();
        for folder in folders {
            match std::fs::File::open(folder) {
                Ok(folder) => folder.sync_all()?,
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Err(_) => {}
            }
        }
        Ok(())
    })
    .await
}

/// Runs disk work where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| Error::internal("a disk task ended early").because(e))??)
}

/// Gives the handle of an epoch whose commit brings the same files to their places, and leaves those that they stand for.
pub(in crate::sink) fn leaving_replaced(handle: &Handle) -> Result<Handle> {
    let mut files = read(handle)?;
    let rewrites = std::mem::take(&mut files.rewrites);
    files.files.extend(rewrites.into_iter().flat_map(|rewrite| rewrite.files));
    serde_json::to_value(files).map_err(|e| Error::internal("could not write a handle").because(e))
}

pub(super) fn read(handle: &Handle) -> Result<Files> {
    Files::deserialize(handle).map_err(|e| Error::internal("could not read the handle of a Parquet sink").because(e))
}

/// Gives the epoch in `<pipeline>-<generation>-<epoch>-<n>`, with the ending of any content.
pub(super) fn epoch_of_file(pipeline: &str, name: &str) -> Option<EpochId> {
    let name = name.strip_suffix(".parquet").or_else(|| name.strip_suffix(".gz")).unwrap_or(name);
    epoch_of(name.strip_prefix(pipeline)?.strip_prefix('-')?)
}

/// Gives the epoch in `<generation>-<epoch>-<n>.json`.
pub(super) fn epoch_of_note(name: &str) -> Option<EpochId> {
    epoch_of(name.strip_suffix(".json")?)
}

fn epoch_of(numbers: &str) -> Option<EpochId> {
    let mut numbers = numbers.split('-').map(|number| number.parse::<u64>().ok());
    let (generation, epoch) = (numbers.next()??, numbers.next()??);
    (numbers.next()?.is_some() && numbers.next().is_none()).then_some(EpochId { generation, epoch })
}
