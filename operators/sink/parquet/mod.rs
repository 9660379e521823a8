//! Parquet files in the lake: one table, with Hive partition folders.
//!
//! Rows are encoded as they come, one open file for each partition folder. On a
//! local disk an epoch's files are written to a staging folder, synced when the
//! epoch is prepared and renamed into the table's folder when it is committed.
//! On an object store they are sent as multipart uploads, which are completed
//! at the commit. Either way no reader sees a file before its epoch's commit
//! record exists.
//!
//! Decision: a column that names partition folders stands there only, not in the
//! files, as Hive, Spark, Delta and pyarrow expect; [`folder_values`] reads it
//! back. A folder's name has no type, so each file's footer says it, under
//! `nexus.partition_columns`: `[{"name":"origin","type":"string"}]`, with the
//! types of the pipeline file, and `timestamp_ntz` for one without a zone. As in
//! Hive an empty text is the same as NULL. The folders of `date(ts)` and
//! `hour(ts)` are more columns to most readers (`ts_date`, `ts_hour`); `ts`
//! itself stays in the file.
//!
//! Files hold plain Parquet types: microseconds for all times, no dictionaries
//! of Arrow, no Arrow schema in the footer. With [`FileContent::Records`] they
//! hold the bytes of records instead: an archive.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Float64Array, RecordBatch, StringArray};
//! # use nexus_operators::sink::parquet::{ParquetCompression, ParquetLayout, ParquetSettings, ParquetSink, PartitionBy};
//! # use nexus_operators::sink::{EpochId, Sink};
//! # use nexus_operators::store::Store;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rows = RecordBatch::try_from_iter([
//!     ("origin", Arc::new(StringArray::from(vec!["JFK", "LGA"])) as _),
//!     ("dep_delay", Arc::new(Float64Array::from(vec![4.0, -2.0])) as _),
//! ])?;
//! let settings = ParquetSettings {
//!     pipeline: "flights".into(),
//!     tier: "silver".into(),
//!     table: "departures".into(),
//!     schema: rows.schema(),
//!     partition_by: vec![PartitionBy::Column("origin".into())],
//!     compression: ParquetCompression::Zstd,
//!     layout: ParquetLayout::default(),
//!     open_partitions_max: 64,
//!     buffer_bytes: 64 << 20,
//! };
//! let lake = Store::memory();
//! let (table, staging, notes) = (lake.below("silver/departures"), lake.below("_staging"), lake.below("_notes"));
//! let mut sink = ParquetSink::new(settings, table, staging, notes)?;
//!
//! let id = EpochId { generation: 1, epoch: 1 };
//! sink.write(id, &rows).await?;
//! let handle = sink.prepare(id).await?.handle.ok_or("no rows")?;
//! assert!(lake.list("silver").await?.is_empty());
//!
//! sink.committer().commit(id, &handle).await?;
//! let files = lake.list("silver").await?;
//! assert_eq!(files[0].name, "silver/departures/origin=JFK/flights-1-1-0.parquet");
//! # Ok(()) }
//! ```

pub mod audit;
mod columns;
mod commit;
mod encoding;
#[cfg(test)]
#[cfg(feature = "testing")]
mod fault_tests;
mod file;
#[cfg(test)]
mod layout_tests;
mod partition;
mod place;
mod records;
mod rewrite;
mod roll;
mod schema;
mod settings;
mod sort;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
mod upload;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::properties::WriterProperties;

pub use self::commit::RemovedFile;
pub(super) use self::commit::leaving_replaced;
use self::commit::{Files, ParquetCommitter, PreparedFile, Rewrite, Staged, blocking};
use self::file::{FinishedFile, OpenFile, Output, Parts};
use self::partition::{Group, Router};
pub use self::partition::{PartitionBy, folder_values};
use self::place::{Place, base_name, file_name, note_name};
pub use self::roll::{Roll, RollingPlace, RollingSink, Waiting, is_over};
use self::schema::StoredSchema;
pub use self::schema::stored_columns;
pub use self::settings::{
    BloomFilter, FileContent, OrderBy, ParquetCompression, ParquetLayout, ParquetSettings, ParquetStatistics,
    is_ordered,
};
use self::settings::{metadata, properties};
use self::sort::Sorter;
use self::upload::Uploads;
use super::{Committer, EpochId, Prepared, Sink};
use crate::error::{Error, Result};
use crate::store::{Store, join, local};

/// What a file that has just been opened takes at least.
const OPEN_FILE_BYTES: usize = 4 << 10;

/// Files that are synced at once: a disk joins syncs that come together.
const SYNCS_MAX: usize = 8;

/// Writes a table's rows to Parquet files.
///
/// A [`Data`](crate::ErrorKind::Data) error of `write`, and an
/// [`Unavailable`](crate::ErrorKind::Unavailable) one of an object store, come
/// before any row of the call was taken: the call may be made again, without
/// the bad rows. After any other error the sink answers no more: drop it. A
/// failed `prepare` may be called again.
///
/// On an object store its calls need a tokio runtime with I/O and time.
pub struct ParquetSink {
    settings: ParquetSettings,
    stored: StoredSchema,
    properties: WriterProperties,
    router: Router,
    place: Place,
    /// Rows of the open epoch that are to be sorted; nothing if they are stored as they come.
    sorter: Option<Sorter>,
    /// The uploads of the open epoch; nothing on a local disk.
    uploads: Option<Uploads>,
    /// Open files, by the number of their folder.
    open: HashMap<usize, OpenFile>,
    finished: Vec<FinishedFile>,
    /// Files of earlier epochs that go when the next one is committed.
    removes: Vec<RemovedFile>,
    /// The numbers of files that stand for committed ones, and these.
    rewrites: Vec<(Range<u64>, Vec<RemovedFile>)>,
    /// Files started in this epoch.
    files: u64,
    /// Calls of `write`, for telling which file was used least recently.
    writes: u64,
    staging_made: bool,
    /// Why the open epoch cannot go on.
    broken: Option<String>,
}

impl ParquetSink {
    /// Makes a sink for the table in folder `table`.
    ///
    /// `staging` is a folder of the same disk, for this sink alone; it is not
    /// used on an object store. `notes` is a folder of the state store, for this
    /// sink alone; it is not used on a local disk.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a column that Parquet readers
    /// cannot read, a partition column that is not there or names no folder,
    /// partition columns that leave no column for the files, or an order or a
    /// bloom filter of columns that have none.
    pub fn new(settings: ParquetSettings, table: Store, staging: Store, notes: Store) -> Result<Self> {
        let stored = StoredSchema::of(&settings.schema, &settings.table)?;
        let router = match settings.layout.content {
            FileContent::Parquet => Router::new(&settings.partition_by, stored.schema(), &settings.table)?,
            FileContent::Records { .. } => Router::of_records(stored.schema(), &settings.table)?,
        };
        let place = Place::new(&table, &staging, notes)?;
        let uploads = match &place {
            Place::Disk { .. } => None,
            Place::Objects(objects) => Some(Uploads::new(objects.multipart.clone(), objects.notes.clone())),
        };
        let properties = properties(&settings, router.file_schema())?;
        let sorter = sorter(&settings, stored.schema())?;
        Ok(Self {
            settings,
            stored,
            properties,
            router,
            place,
            sorter,
            uploads,
            open: HashMap::new(),
            finished: Vec::new(),
            removes: Vec::new(),
            rewrites: Vec::new(),
            files: 0,
            writes: 0,
            staging_made: false,
            broken: None,
        })
    }

    /// Has the commit of the next epoch that is prepared remove files of the table: its rows stand for theirs.
    ///
    /// Every sink must have committed the epochs that wrote them, for good: their commits find the files no more.
    #[must_use]
    pub fn removing(self, files: Vec<RemovedFile>) -> Self {
        Self { removes: files, ..self }
    }

    /// Encodes rows. It is all CPU work and writes to the disk's cache.
    async fn encode(&mut self, id: EpochId, groups: Vec<Group>) -> Result<()> {
        self.writes += 1;
        // To add up what thousands of open files hold for each of them would take the square of their number.
        let mut unseen_bytes = 0;
        for Group { folder, rows } in groups {
            unseen_bytes += rows.get_array_memory_size() + OPEN_FILE_BYTES;
            if !self.open.contains_key(&folder) {
                self.open_file(id, folder, &rows).await?;
            }
            if let Some(file) = self.open.get_mut(&folder) {
                file.used_at = self.writes;
                file.write(&rows).await?;
                if let Some(uploads) = &mut self.uploads {
                    send_parts(uploads, file);
                }
            }
            if unseen_bytes > self.open_bytes_max() / 32 {
                unseen_bytes = 0;
                self.shrink(id).await?;
            }
        }
        self.shrink(id).await
    }

    /// Opens a file that begins with `rows`.
    async fn open_file(&mut self, id: EpochId, folder: usize, rows: &RecordBatch) -> Result<()> {
        if self.open.len() >= self.settings.open_partitions_max.max(1)
            && let Some(oldest) = self.open.iter().min_by_key(|(_, file)| file.used_at).map(|(folder, _)| *folder)
        {
            self.finish_file(id, oldest).await?;
        }
        let number = self.files;
        self.files += 1;
        let content = self.settings.layout.content;
        let name = file_name(&self.settings.pipeline, id, number, content);
        let folder_path = self.router.folder(folder);
        let path = if folder_path.is_empty() { name.clone() } else { format!("{folder_path}/{name}") };
        let (output, target) = match &self.place {
            Place::Disk { staging, .. } => {
                if !self.staging_made {
                    local::make_folder(staging)
                        .map_err(|e| Error::from(e).while_doing(format!("could not make {}", staging.display())))?;
                    self.staging_made = true;
                }
                let target = staging.join(&name);
                (Output::on_disk(&target)?, target.display().to_string())
            }
            Place::Objects(objects) => {
                let target = join(&objects.prefix, &path);
                if let Some(uploads) = &mut self.uploads {
                    uploads.begin(number, target.clone(), note_name(id, number));
                }
                (Output::Parts(Parts::default()), target.to_string())
            }
        };
        let file = match content {
            FileContent::Records { gzip } => OpenFile::records(output, gzip, rows, number, path, target)?,
            FileContent::Parquet => {
                let options = ArrowWriterOptions::new()
                    .with_skip_arrow_metadata(true)
                    .with_properties(encoding::fitting(&self.properties, rows)?);
                OpenFile::parquet(output, self.router.file_schema().clone(), options, number, path, target)?
            }
        };
        self.open.insert(folder, file);
        Ok(())
    }

    async fn finish_file(&mut self, id: EpochId, folder: usize) -> Result<()> {
        let Some(file) = self.open.remove(&folder) else { return Ok(()) };
        let mut file = file.finish(metadata(&self.settings, self.router.partition_columns(), id)).await?;
        if let Some(uploads) = &mut self.uploads {
            for part in file.parts.drain(..) {
                uploads.add(file.number, part);
            }
        }
        self.finished.push(file);
        Ok(())
    }

    /// Brings the memory under its bound by ending row groups, and files where that is not enough.
    async fn shrink(&mut self, id: EpochId) -> Result<()> {
        while self.open_bytes() > self.open_bytes_max() {
            let by_encoder = self.open.iter().max_by_key(|(_, file)| file.encoder_bytes);
            let by_part = self.open.iter().max_by_key(|(_, file)| file.part_bytes());
            let (Some((&encoding, encoder)), Some((&waiting, part))) = (by_encoder, by_part) else { break };
            let (encoder_bytes, part_bytes) = (encoder.encoder_bytes, part.part_bytes());
            if encoder_bytes == 0 && part_bytes == 0 {
                break;
            }
            if encoder_bytes < part_bytes {
                // Less than a part cannot be sent but as the last one of its file.
                self.finish_file(id, waiting).await?;
            } else if let Some(file) = self.open.get_mut(&encoding) {
                file.flush().await?;
                if let Some(uploads) = &mut self.uploads {
                    send_parts(uploads, file);
                }
            }
        }
        Ok(())
    }

    /// Gives how much open files may hold. Where files are uploaded, half of the
    /// memory is for what is being sent, so that sending goes on while rows are encoded.
    /// Where rows are sorted, a quarter of it is for those.
    fn open_bytes_max(&self) -> usize {
        let sorted_bytes = if self.sorter.is_some() { self.settings.buffer_bytes / 4 } else { 0 };
        let bytes = self.settings.buffer_bytes - sorted_bytes;
        if self.uploads.is_some() { bytes / 2 } else { bytes }
    }

    /// Encodes the rows that wait to be sorted. It can be called again after an upload has failed.
    async fn encode_sorted(&mut self, id: EpochId) -> Result<()> {
        loop {
            let Some(sorter) = &mut self.sorter else { return Ok(()) };
            let sorted = sorter.next();
            let Some(rows) = self.breaking(sorted)? else { return Ok(()) };
            let encoded = match self.router.route(rows) {
                Ok(groups) => self.encode(id, groups).await,
                Err(error) => Err(error),
            };
            self.breaking(encoded)?;
            if let Some(uploads) = &mut self.uploads {
                uploads.advance(self.settings.buffer_bytes / 2).await?;
            }
        }
    }

    /// Gives the bytes that open files hold.
    fn open_bytes(&self) -> usize {
        self.open.values().map(|file| file.encoder_bytes + file.part_bytes()).sum()
    }

    /// Makes the epoch's files durable.
    async fn settle(&mut self) -> Result<()> {
        if let Some(uploads) = &mut self.uploads {
            return uploads.advance(0).await;
        }
        let Place::Disk { staging, .. } = &self.place else { return Ok(()) };
        let names = self.finished.iter().map(|file| staging.join(base_name(&file.path)));
        let mut names: Vec<_> = names.collect();
        names.push(staging.clone());
        futures::stream::iter(names)
            .map(|path| async move {
                let doing = format!("could not sync {}", path.display());
                blocking(move || std::fs::File::open(path)?.sync_all()).await.map_err(|e| e.while_doing(doing))
            })
            .buffer_unordered(SYNCS_MAX)
            .try_collect()
            .await
    }

    fn prepared_files(&self, id: EpochId) -> Result<Vec<(u64, PreparedFile)>> {
        let staged = |file: &FinishedFile| -> Result<Staged> {
            match &self.uploads {
                None => Ok(Staged::File(base_name(&file.path).to_owned())),
                Some(uploads) => {
                    let uploaded = uploads.uploaded(file.number)?;
                    Ok(Staged::Upload { id: uploaded.id, note: note_name(id, file.number), parts: uploaded.parts })
                }
            }
        };
        let prepared = |file: &FinishedFile| -> Result<(u64, PreparedFile)> {
            let staged = staged(file)?;
            Ok((file.number, PreparedFile { path: file.path.clone(), bytes: file.bytes, rows: file.rows, staged }))
        };
        self.finished.iter().map(prepared).collect()
    }

    fn check(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Error::internal(format!("the Parquet sink of {} has failed: {why}", self.settings.table))),
        }
    }

    fn breaking<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
        }
        result
    }
}

#[async_trait]
impl Sink for ParquetSink {
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        self.check()?;
        if let Some(uploads) = &mut self.uploads {
            uploads.advance(self.settings.buffer_bytes / 2).await?;
        }
        if rows.num_rows() == 0 {
            return Ok(());
        }
        // Bad data is found here, before any row of the call is taken.
        let rows = self.stored.store(rows)?;
        let groups = self.router.route(rows.clone())?;
        let taken = match &mut self.sorter {
            Some(sorter) => sorter.push(rows),
            None => self.encode(id, groups).await,
        };
        self.breaking(taken)
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        self.check()?;
        self.encode_sorted(id).await?;
        let folders: Vec<usize> = self.open.keys().copied().collect();
        for folder in folders {
            let finished = self.finish_file(id, folder).await;
            self.breaking(finished)?;
            if let Some(uploads) = &mut self.uploads {
                uploads.advance(self.settings.buffer_bytes / 2).await?;
            }
        }
        if self.finished.is_empty() && self.removes.is_empty() && self.rewrites.is_empty() {
            return Ok(Prepared::default());
        }
        self.settle().await?;
        let files = self.prepared_files(id)?;
        let removed = self.removes.iter().map(|file| file.rows).sum();
        let mut prepared = Prepared { files: files.len() as u64, removed, ..Prepared::default() };
        prepared.bytes = files.iter().map(|(_, file)| file.bytes).sum();
        let mut handle = Files { removes: self.removes.clone(), ..Files::default() };
        handle.rewrites = self.rewrites.iter().map(|(_, replaced)| Rewrite::of(replaced.clone())).collect();
        for (number, file) in files {
            match self.rewrites.iter().position(|(numbers, _)| numbers.contains(&number)) {
                Some(place) => {
                    handle.rewrites.get_mut(place).into_iter().for_each(|into| into.files.push(file.clone()))
                }
                None => {
                    prepared.rows += file.rows;
                    handle.files.push(file);
                }
            }
        }
        handle.files.sort_by(|a, b| a.path.cmp(&b.path));
        for rewrite in &handle.rewrites {
            prepared.rewritten += rewrite.rows()?;
        }
        prepared.removed += prepared.rewritten;
        let handle = serde_json::to_value(handle);
        prepared.handle = Some(handle.map_err(|e| Error::internal("could not write a handle").because(e))?);
        self.finished.clear();
        self.removes.clear();
        self.rewrites.clear();
        self.files = 0;
        self.router.reset();
        if let Some(uploads) = &mut self.uploads {
            uploads.reset();
        }
        Ok(prepared)
    }

    fn end(&mut self) {}

    fn held_bytes(&self) -> usize {
        let sorted = self.sorter.as_ref().map_or(0, Sorter::held_bytes);
        let unsent = self.uploads.as_ref().map_or(0, Uploads::unsent_bytes);
        self.open_bytes() + sorted + unsent
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(ParquetCommitter { pipeline: self.settings.pipeline.clone(), place: self.place.clone() })
    }
}

/// Makes what sorts rows of these columns, if the files are to be sorted.
fn sorter(settings: &ParquetSettings, columns: &SchemaRef) -> Result<Option<Sorter>> {
    let order_by = &settings.layout.order_by;
    if order_by.is_empty() {
        return Ok(None);
    }
    Sorter::new(columns.clone(), order_by, &settings.table, settings.buffer_bytes / 4).map(Some)
}

fn send_parts(uploads: &mut Uploads, file: &mut OpenFile) {
    for part in file.take_parts() {
        uploads.add(file.number, part);
    }
}

/// Gives the folder of a file, relative to the table's; empty if there are no partitions.
pub fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}
