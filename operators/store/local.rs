//! Files on the local disk: synced writes, and a list that skips what is half written.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::Entry;
use crate::error::Error;
use crate::probe::{Lack, Lacking, Probed};

/// Tells writers of the same process apart; the process id tells the others apart.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Ending of files that are being written.
const HALF_WRITTEN: &str = ".part";

/// Looks whether files can be made in a folder, or in the one in which it would be made. Nothing is left there.
pub fn probe(folder: &Path) -> Probed {
    let there = folder.ancestors().find(|above| above.exists()).unwrap_or(folder);
    let failed = |e: io::Error| {
        let is_forbidden = matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        let lack = if is_forbidden { Lack::Permission } else { Lack::Thing };
        Lacking { lack, error: Error::from(e).while_doing(format!("could not make a file in {}", there.display())) }
    };
    tempfile::tempfile_in(there).map_err(failed)?;
    Ok(if there == folder { "it can be written" } else { "it can be made" }.to_owned())
}

/// Writes and syncs `content` under a name beside `path`, and gives that name.
pub fn write_beside(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder)?;
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = folder.join(format!(".{name}.{}-{number}{HALF_WRITTEN}", std::process::id()));
    let written = File::create(&staged).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(staged),
        Err(error) => {
            // Half of a file would take the room that is missing. The error that counts is that of the write.
            let _ = fs::remove_file(&staged);
            Err(error)
        }
    }
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
    each_file(folder, |file| {
        let path = file.path();
        if is_half_written(&path) {
            return Ok(());
        }
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        match file.metadata() {
            Ok(meta) => entries.push(Entry { name, size: meta.len() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    })?;
    Ok(entries)
}

/// Removes the files below `folder` that a process died over while it wrote them; gives how many.
pub fn remove_half_written(folder: &Path) -> io::Result<u64> {
    let mut removed = 0;
    each_file(folder, |file| {
        let path = file.path();
        if !is_half_written(&path) {
            return Ok(());
        }
        removed += 1;
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    })?;
    Ok(removed)
}

fn is_half_written(path: &Path) -> bool {
    path.to_string_lossy().ends_with(HALF_WRITTEN)
}

/// Visits the files below a folder, which may come and go meanwhile.
fn each_file(folder: &Path, mut visit: impl FnMut(&fs::DirEntry) -> io::Result<()>) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for item in listing {
            let item = item?;
            if item.file_type()?.is_dir() {
                folders.push(item.path());
            } else {
                visit(&item)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_file_is_not_listed_and_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        let whole = folder.path().join("below/whole");
        fs::rename(write_beside(&whole, b"all").unwrap(), &whole).unwrap();
        let half = write_beside(&folder.path().join("below/half"), b"a").unwrap();

        let names = || list(folder.path(), folder.path()).unwrap().into_iter().map(|entry| entry.name);
        assert_eq!(names().collect::<Vec<_>>(), ["below/whole"]);
        assert_eq!(remove_half_written(folder.path()).unwrap(), 1);
        assert!(whole.is_file() && !half.exists());
        assert_eq!(remove_half_written(&folder.path().join("none")).unwrap(), 0);
    }
}
