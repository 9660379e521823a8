//! Parquet files: each that a record names is there with its size and rows, unless a later record has removed it, and
//! no other is. In a Delta table, to be there is to be in the log, where other writers may take files out.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use nexus_operators::sink::Prepared;
use nexus_operators::sink::delta::{LoggedFiles, logged_files};
use nexus_operators::sink::parquet::RemovedFile;
use nexus_operators::sink::parquet::audit::{NamedFile, TableFolder, named_files, removed_files};
use nexus_operators::store::{Entry, Store};
use nexus_operators::{ErrorKind, Result};

use super::logged::Merged;
use super::spooled::{FromSpool, Spooled};
use super::{Fault, SinkFindings, View, staged};
use crate::job::place::{PARQUET, ParquetPlace, file_stem, is_archive, parquet_place};
use crate::plan::Plan;
use crate::spec::model::TableFormat;
use crate::state::StateStore;
use crate::state::epoch_file;
use crate::state::record::CommitRecord;

/// Footers that are read at once.
const READS_MAX: usize = 16;

/// What was found in the folders of a sink.
pub struct Listed {
    /// What the names of its files begin with.
    stem: String,
    folder: TableFolder,
    /// Sizes of the table's files by their paths.
    files: BTreeMap<String, u64>,
    /// What the log of a Delta table says.
    logged: Option<LoggedFiles>,
    staged: Vec<Entry>,
    /// Where rows wait for a larger file.
    spool: Store,
    spooled: Vec<Entry>,
}

/// A file, and the epoch whose record names it.
struct Named {
    epoch: u64,
    file: NamedFile,
    /// The epoch whose commit removes it.
    removed_by: Option<u64>,
    /// Whether another file stands for it then.
    is_rewritten: bool,
}

/// What the log of a Delta table says.
struct Logged<'a> {
    files: &'a LoggedFiles,
    merged: Merged,
}

/// What has become of a file.
enum Outcome {
    Whole,
    Removed,
    TakenOut,
    /// It was to stand for files of which another writer has taken out some, and is in no version.
    Void,
    Uncommitted,
    Wrong(Fault),
}

/// Lists the folders of a sink.
pub async fn list(plan: &Plan, store: &StateStore, sink: &str) -> Result<Listed> {
    let ParquetPlace { table, staging, notes, spool } =
        parquet_place(plan, store, &plan.loaded.encryption(), sink).await?;
    let stem = file_stem(plan, sink);
    let mut folder = TableFolder::new(table, staging, notes);
    if is_archive(sink) {
        folder = folder.archived_as(stem.clone());
    }
    let spooled = if sink.ends_with(PARQUET) || is_archive(sink) { spool.list("").await? } else { Vec::new() };
    // What is staged moves into the table: listed the other way round, a file could be missed twice.
    let staged = folder.staged().list("").await?;
    // Neither is the log: a file stands in it after it has come to the folder.
    let logged = if is_delta(plan, sink) { logged_files(folder.table()).await? } else { None };
    let files = folder.list().await?.into_iter().map(|entry| (entry.name, entry.size)).collect();
    Ok(Listed { stem, folder, files, logged, staged, spool, spooled })
}

/// Tells whether the log of a Delta table says which files of a sink are its table.
fn is_delta(plan: &Plan, sink: &str) -> bool {
    let table = sink.strip_suffix(PARQUET).and_then(|of| plan.table(of.trim_end_matches('/')));
    let spec = table.and_then(|table| plan.spec_of(table));
    spec.is_some_and(|spec| plan.loaded.spec.table_format(spec) == TableFormat::Delta)
}

/// Compares the files of a sink with what the records say.
pub async fn check(view: &View<'_>, sink: &str, listed: &Listed) -> Result<(SinkFindings, Vec<Fault>)> {
    let mut findings = SinkFindings::default();
    let mut faults = Vec::new();
    let mut named: BTreeMap<String, Named> = BTreeMap::new();
    let mut waiting = Spooled::default();
    let logged = listed.logged.as_ref().map(|files| Logged { files, merged: Merged::read(view, sink, files) });
    for (record, prepared) in view.prepared(sink) {
        findings.epochs += u64::from(prepared.rows > 0);
        for RemovedFile { path, rows } in removed_of(view, sink, record, prepared, &mut faults) {
            if logged.as_ref().is_some_and(|logged| !logged.merged.is_replaced_by(&path, record.epoch)) {
                continue;
            }
            match named.get_mut(&path) {
                Some(named) if named.removed_by.is_none() && named.file.rows == rows => {
                    named.removed_by = Some(record.epoch);
                    named.is_rewritten = prepared.rewritten > 0;
                }
                // The record that named it may be gone, and known by a sum alone.
                None if is_older(view, listed, &path) => {
                    findings.redriven += if prepared.rewritten > 0 { 0 } else { rows };
                }
                _ => {
                    let expected = format!("a file of {rows} rows, of an earlier record, that is removed once");
                    let found = "no such file, or other rows".to_owned();
                    faults.push(fault(sink, listed, &path, record.epoch, expected, found));
                }
            }
        }
        let from_spool = waiting.take(view, sink, record, prepared, &mut faults);
        for file in files_of(view, sink, record, prepared, from_spool, &mut faults) {
            if let Some(other) = named.get(&file.path) {
                let expected = format!("one epoch that names it, which is {}", other.epoch);
                faults.push(fault(sink, listed, &file.path, record.epoch, expected, "this epoch too".to_owned()));
            }
            named.insert(file.path.clone(), Named { epoch: record.epoch, file, removed_by: None, is_rewritten: false });
        }
    }
    let mut looked = futures::stream::iter(named.values())
        .map(|named| {
            let looked = look(view, sink, (listed, logged.as_ref()), named);
            async move { Ok::<_, nexus_operators::Error>((named, looked.await?)) }
        })
        .buffered(READS_MAX);
    let mut uncommitted = std::collections::BTreeSet::new();
    while let Some((named, outcome)) = looked.try_next().await? {
        match outcome {
            Outcome::Whole => {
                findings.files += 1;
                findings.rows += named.file.rows;
            }
            Outcome::Removed if !named.is_rewritten => findings.redriven += named.file.rows,
            Outcome::Removed | Outcome::Void => {}
            Outcome::TakenOut => findings.taken_out += named.file.rows,
            Outcome::Uncommitted => {
                uncommitted.insert(named.removed_by.unwrap_or(named.epoch));
            }
            Outcome::Wrong(wrong) => faults.push(wrong),
        }
    }
    findings.uncommitted = uncommitted.len() as u64;
    faults.extend(unnamed(view, sink, listed, &named));
    findings.waiting = waiting.check(view, sink, (&listed.spool, &listed.spooled), &mut faults).await?;
    let uncommitted = named.values().filter(|named| !view.is_noted(sink, named.epoch));
    let uncommitted = uncommitted.map(|named| named.file.staged.as_str()).collect();
    let of = |name: &str| listed.folder.staged_by(&listed.stem, name);
    // Where epochs are gathered, files are staged beside the epochs that follow.
    let of_open = |id| staged::may_be_open(view, sink, id, waiting.is_rolled());
    faults.extend(staged::check(sink, listed.folder.staged(), &listed.staged, of, of_open, &uncommitted));
    Ok((findings, faults))
}

/// Names the files that neither a record nor a log names.
fn unnamed(view: &View<'_>, sink: &str, listed: &Listed, named: &BTreeMap<String, Named>) -> Vec<Fault> {
    let is_known = |path: &str| {
        let is_logged = |logged: &LoggedFiles| logged.active.contains_key(path) || logged.removed.contains(path);
        named.contains_key(path) || is_older(view, listed, path) || listed.logged.as_ref().is_some_and(is_logged)
    };
    let fault = |path: &String| Fault {
        of: sink.to_owned(),
        at: format!("{}/{path}", listed.folder.table().url()),
        epoch: TableFolder::written_by(&listed.stem, path).map(|id| id.epoch),
        expected: "no file that no record names".to_owned(),
        found: "such a file".to_owned(),
    };
    listed.files.keys().filter(|path| !is_known(path)).map(fault).collect()
}

/// Tells whether a file was written in an epoch whose record is gone: the sum of those does not name files.
fn is_older(view: &View<'_>, listed: &Listed, path: &str) -> bool {
    TableFolder::written_by(&listed.stem, path).is_some_and(|id| id.epoch <= view.records.base())
}

/// Gives the files that a record removes, and checks that they add up to what it says.
fn removed_of(
    view: &View<'_>,
    sink: &str,
    record: &CommitRecord,
    prepared: &Prepared,
    faults: &mut Vec<Fault>,
) -> Vec<RemovedFile> {
    // A handle that cannot be read is a fault already.
    let removed = prepared.handle.as_ref().and_then(|handle| removed_files(handle).ok()).unwrap_or_default();
    let rows = removed.iter().map(|file| file.rows).fold(0, u64::saturating_add);
    if rows != prepared.removed {
        let at = format!("{}/{}", view.store.folder().url(), epoch_file(record.epoch));
        let expected = format!("removed files with {} rows", prepared.removed);
        let found = format!("{rows} rows in {} files that it names", removed.len());
        faults.push(Fault { of: sink.to_owned(), at, epoch: Some(record.epoch), expected, found });
    }
    removed
}

/// Gives the files that a record names, and checks that they add up to what it says was prepared.
fn files_of(
    view: &View<'_>,
    sink: &str,
    record: &CommitRecord,
    prepared: &Prepared,
    from_spool: FromSpool,
    faults: &mut Vec<Fault>,
) -> Vec<NamedFile> {
    let mut wrong = |expected: String, found: String| {
        let at = format!("{}/{}", view.store.folder().url(), epoch_file(record.epoch));
        faults.push(Fault { of: sink.to_owned(), at, epoch: Some(record.epoch), expected, found });
    };
    let files = match prepared.handle.as_ref().map(named_files).transpose() {
        Ok(files) => files.unwrap_or_default(),
        Err(error) => {
            wrong("a handle of a Parquet sink".to_owned(), error.to_string());
            return Vec::new();
        }
    };
    let sum = |of: fn(&NamedFile) -> u64| files.iter().map(of).fold(0, u64::saturating_add);
    let (rows, bytes) = (sum(|file| file.rows), sum(|file| file.bytes));
    let FromSpool { put, taken } = from_spool;
    // What is not known of files that were spooled before the first record cannot be held against it.
    let expected = taken.map_or(rows, |taken| (prepared.rows + prepared.rewritten + taken).saturating_sub(put));
    if (rows, bytes, files.len() as u64) != (expected, prepared.bytes, prepared.files) {
        wrong(
            format!("files with {expected} rows and {} bytes, {} of them", prepared.bytes, prepared.files),
            format!("{rows} rows and {bytes} bytes in {} files that it names", files.len()),
        );
    }
    files
}

/// Looks at one file.
async fn look(
    view: &View<'_>,
    sink: &str,
    (listed, logged): (&Listed, Option<&Logged<'_>>),
    named: &Named,
) -> Result<Outcome> {
    let Named { epoch, file, removed_by, .. } = named;
    let wrong =
        |expected: String, found: String| Ok(Outcome::Wrong(fault(sink, listed, &file.path, *epoch, expected, found)));
    let mut size = listed.files.get(&file.path).copied();
    if let Some(Logged { files, merged }) = logged {
        let is_active = files.active.contains_key(&file.path);
        if removed_by.is_some() && !is_active {
            return Ok(Outcome::Removed);
        }
        if is_active && merged.is_carried(&file.path) {
            let found = "both in the Delta log".to_owned();
            return wrong("a file, or the one that has its rows".to_owned(), found);
        }
        if files.removed.contains(&file.path) {
            return Ok(Outcome::TakenOut);
        }
        if !is_active {
            // The order matters: what is staged may be on its way to the table.
            let is_on_its_way = !view.is_noted(sink, *epoch)
                && (size.is_some()
                    || listed.folder.is_staged(file).await?
                    || listed.folder.table().size(&file.path).await?.is_some());
            if is_on_its_way {
                return Ok(Outcome::Uncommitted);
            }
            if merged.is_void(&file.path) && view.is_noted(sink, *epoch) {
                return Ok(Outcome::Void);
            }
            return wrong("an entry of the Delta log that names it".to_owned(), "no such entry".to_owned());
        }
    } else if let Some(by) = removed_by {
        return match size {
            None => Ok(Outcome::Removed),
            Some(_) if !view.is_noted(sink, *by) => Ok(Outcome::Uncommitted),
            Some(_) => wrong(format!("no such file: epoch {by} has taken its rows"), "the file".to_owned()),
        };
    }
    if size.is_none() && !view.is_noted(sink, *epoch) {
        // The order matters: what is staged may be on its way to the table.
        if listed.folder.is_staged(file).await? {
            return Ok(Outcome::Uncommitted);
        }
        size = listed.folder.table().size(&file.path).await?;
    }
    let Some(size) = size else {
        return wrong(format!("a file of {} bytes with {} rows", file.bytes, file.rows), "no such file".to_owned());
    };
    if size != file.bytes {
        return wrong(format!("{} bytes", file.bytes), format!("{size} bytes"));
    }
    if !listed.folder.tells_rows() {
        return Ok(Outcome::Whole);
    }
    match listed.folder.rows(&file.path, size).await {
        Ok(rows) if rows == file.rows => Ok(Outcome::Whole),
        Ok(rows) => wrong(format!("{} rows", file.rows), format!("{rows} rows")),
        Err(error) if error.kind() == ErrorKind::Data => wrong(format!("{} rows", file.rows), error.to_string()),
        Err(error) => Err(error),
    }
}

fn fault(sink: &str, listed: &Listed, path: &str, epoch: u64, expected: String, found: String) -> Fault {
    let at = format!("{}/{path}", listed.folder.table().url());
    Fault { of: sink.to_owned(), at, epoch: Some(epoch), expected, found }
}
