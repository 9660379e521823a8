//! What an audit asks of a table's files: which a handle names, which are there, and how many rows their footers tell.
//!
//! Only footers are read. That a file's pages are whole is not proven by it.

use std::ops::Range;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::commit::{Files, RemovedFile, Rewrite, Staged, epoch_of_file, epoch_of_note, read};
use crate::error::{Error, Result};
use crate::sink::{EpochId, Handle, spool};
use crate::store::{Backend, Entry, Store};

/// Bytes at the end of a file that are read at once: they hold the whole footer of all but the largest files.
const FOOTER_BYTES: usize = 64 << 10;

/// A file that a handle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// Path relative to the table's folder.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// Name of what stands for it among [`TableFolder::staged`] until it is committed.
    pub staged: String,
}

/// Gives the files that a handle of a [`ParquetSink`](super::ParquetSink) names.
///
/// # Errors
///
/// [`Internal`](crate::ErrorKind::Internal) if it is not such a handle.
pub fn named_files(handle: &Handle) -> Result<Vec<NamedFile>> {
    let named = read(handle)?.into_files().map(|file| NamedFile {
        path: file.path,
        bytes: file.bytes,
        rows: file.rows,
        staged: match file.staged {
            Staged::File(name) => name,
            Staged::Upload { note, .. } => note,
        },
    });
    Ok(named.collect())
}

/// Gives the files that the commit of a handle of a [`ParquetSink`](super::ParquetSink) removes.
///
/// # Errors
///
/// [`Internal`](crate::ErrorKind::Internal) if it is not such a handle.
pub fn removed_files(handle: &Handle) -> Result<Vec<RemovedFile>> {
    let Files { removes, rewrites, .. } = read(handle)?;
    Ok(removes.into_iter().chain(rewrites.into_iter().flat_map(|rewrite| rewrite.replaces)).collect())
}

/// Files of a table that are put in the place of others, by their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replacement {
    /// The new files.
    pub files: Vec<String>,
    /// Those that they stand for.
    pub replaces: Vec<String>,
}

/// Gives which files the commit of a handle puts in the place of which.
///
/// # Errors
///
/// [`Internal`](crate::ErrorKind::Internal) if it is not such a handle.
pub fn replacements(handle: &Handle) -> Result<Vec<Replacement>> {
    let replacement = |rewrite: Rewrite| Replacement {
        files: rewrite.files.into_iter().map(|file| file.path).collect(),
        replaces: rewrite.replaces.into_iter().map(|file| file.path).collect(),
    };
    Ok(read(handle)?.rewrites.into_iter().map(replacement).collect())
}

/// Gives the names of the files of the spool whose rows the files of a handle hold, and that its commit removes.
///
/// # Errors
///
/// [`Internal`](crate::ErrorKind::Internal) if it is not such a handle.
pub fn spent_files(handle: &Handle) -> Result<Vec<String>> {
    Ok(read(handle)?.spent)
}

/// Tells which epoch has spooled the file of this name; nothing if no epoch has.
pub fn spooled_by(name: &str) -> Option<EpochId> {
    spool::epoch_of(name)
}

/// The folders of one [`ParquetSink`](super::ParquetSink), as they are given to it.
#[derive(Debug, Clone)]
pub struct TableFolder {
    table: Store,
    staged: Store,
    on_disk: bool,
    /// The name that the files of an archive begin with; nothing for a table of Parquet files.
    archived_as: Option<String>,
}

impl TableFolder {
    /// Looks at the folders of a sink.
    pub fn new(table: Store, staging: Store, notes: Store) -> Self {
        let on_disk = matches!(table.backend(), Backend::Local(_));
        Self { table, staged: if on_disk { staging } else { notes }, on_disk, archived_as: None }
    }

    /// Says that the files are those of an archive, which begin with this name. Others may lie beside them.
    #[must_use]
    pub fn archived_as(self, name: String) -> Self {
        Self { archived_as: Some(name), ..self }
    }

    /// Tells whether the files tell how many rows they hold.
    pub fn tells_rows(&self) -> bool {
        self.archived_as.is_none()
    }

    /// Gives the table's folder.
    pub fn table(&self) -> &Store {
        &self.table
    }

    /// Gives the folder of what is prepared: the files themselves on a local disk, notes about uploads otherwise.
    pub fn staged(&self) -> &Store {
        &self.staged
    }

    /// Lists the files of the table.
    pub async fn list(&self) -> Result<Vec<Entry>> {
        let mut found = self.table.list("").await?;
        found.retain(|entry| match &self.archived_as {
            None => entry.name.ends_with(".parquet") && !is_hidden(&entry.name),
            Some(name) => is_in_hour(&entry.name) && Self::written_by(name, &entry.name).is_some(),
        });
        Ok(found)
    }

    /// Tells which epoch of `pipeline` has staged what bears this name; nothing if no epoch has.
    pub fn staged_by(&self, pipeline: &str, name: &str) -> Option<EpochId> {
        if self.on_disk { epoch_of_file(pipeline, name) } else { epoch_of_note(name) }
    }

    /// Tells which epoch of `pipeline` has written the file of this path; nothing if no epoch has.
    pub fn written_by(pipeline: &str, path: &str) -> Option<EpochId> {
        epoch_of_file(pipeline, super::base_name(path))
    }

    /// Tells whether a file that is not yet committed can still be: it is staged.
    pub async fn is_staged(&self, file: &NamedFile) -> Result<bool> {
        let size = self.staged.size(&file.staged).await?;
        Ok(size.is_some_and(|size| !self.on_disk || size == file.bytes))
    }

    /// Reads a file's number of rows from its footer.
    ///
    /// # Errors
    ///
    /// [`Data`](crate::ErrorKind::Data) if the footer is damaged.
    pub async fn rows(&self, path: &str, size: u64) -> Result<u64> {
        let rows = self.footer(path, size).await?.file_metadata().num_rows();
        let wrong = || format!("the footer of {}/{path} tells {rows} rows", self.table.url());
        u64::try_from(rows).map_err(|e| Error::data(wrong()).because(e))
    }

    /// Reads a file's footer.
    ///
    /// # Errors
    ///
    /// [`Data`](crate::ErrorKind::Data) if it is damaged.
    pub async fn footer(&self, path: &str, size: u64) -> Result<ParquetMetaData> {
        let doing = || format!("could not read the footer of {}/{path}", self.table.url());
        let fetch = Pieces { table: &self.table, path };
        let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(FOOTER_BYTES));
        reader.load_and_finish(fetch, size).await.map_err(|e| match e {
            ParquetError::External(cause) => match cause.downcast::<Error>() {
                Ok(error) => error.while_doing(doing()),
                Err(cause) => Error::data(doing()).because(cause),
            },
            damaged => Error::data(doing()).because(damaged),
        })
    }
}

/// Tells whether a path is none of the table's own: folders that begin with `_` or `.` hold what readers keep beside the
/// rows, such as the checkpoints of a Delta log. A partition folder may begin so as well.
fn is_hidden(path: &str) -> bool {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').any(|folder| folder.starts_with(['_', '.']) && !folder.contains('='))
}

/// Tells whether a path lies in the folder of an hour, `yyyy/MM/dd/HH`, and in no folder of that.
fn is_in_hour(path: &str) -> bool {
    let mut parts = path.split('/');
    let is_number = |part: Option<&str>, digits: usize| {
        part.is_some_and(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    [4, 2, 2, 2].into_iter().all(|digits| is_number(parts.next(), digits)) && parts.count() == 1
}

/// Reads pieces of one file.
struct Pieces<'a> {
    table: &'a Store,
    path: &'a str,
}

impl MetadataFetch for Pieces<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let (table, path) = (self.table, self.path);
        async move { table.get_range(path, range).await.map_err(|e| ParquetError::External(Box::new(e))) }.boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_footer_that_is_none_is_bad_data() {
        let table = Store::memory();
        table.put("a.parquet", Bytes::from_static(b"PAR1 this is not a footer PAR1")).await.unwrap();
        let folder = TableFolder::new(table, Store::memory(), Store::memory());
        let entry = folder.list().await.unwrap().remove(0);
        let error = folder.rows(&entry.name, entry.size).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Data, "{error}");
        assert!(error.to_string().contains("a.parquet"), "{error}");
    }

    #[test]
    fn names_tell_their_epoch() {
        let id = Some(EpochId { generation: 3, epoch: 14 });
        assert_eq!(TableFolder::written_by("a-b", "x=1/a-b-3-14-0.parquet"), id);
        assert_eq!(TableFolder::written_by("a", "x=1/a-b-3-14-0.parquet"), None);
        assert_eq!(TableFolder::written_by("a", "copy.parquet"), None);
    }
}
