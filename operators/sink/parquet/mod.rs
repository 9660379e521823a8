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
//! of Arrow, no Arrow schema in the footer.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Float64Array, RecordBatch, StringArray};
//! # use nexus_operators::sink::parquet::{ParquetCompression, ParquetSettings, ParquetSink, PartitionBy};
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
mod commit;
mod encoding;
#[cfg(test)]
#[cfg(feature = "testing")]
mod fault_tests;
mod file;
mod partition;
mod place;
mod schema;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
mod upload;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

pub use self::commit::RemovedFile;
use self::commit::{Files, ParquetCommitter, PreparedFile, Staged, blocking};
use self::file::{FinishedFile, OpenFile, Output, Parts};
use self::partition::{Group, Router};
pub use self::partition::{PartitionBy, folder_values};
use self::place::Place;
use self::schema::StoredSchema;
pub use self::schema::stored_columns;
use self::upload::Uploads;
use super::{Committer, EpochId, Prepared, Sink};
use crate::error::{Error, Result};
use crate::store::{Store, join, local};

/// Encoded bytes after which a row group ends. Readers share the work of a file
/// by row groups and skip whole ones by their statistics, which asks for small
/// ones; each costs a request for every column, which asks for large ones. With
/// 64 MiB a column chunk is some MiB, which is what object stores give fastest.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Rows after which a row group ends, as in most writers: DuckDB and Spark
/// divide their work by about as many.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// What a file that has just been opened takes at least.
const OPEN_FILE_BYTES: usize = 4 << 10;

/// Files that are synced at once: a disk joins syncs that come together.
const SYNCS_MAX: usize = 8;

/// How the files of a table are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParquetCompression {
    /// Zstandard at level 1: nearly as fast as Snappy, and a third smaller.
    #[default]
    Zstd,
    /// Snappy, for readers that know nothing newer.
    Snappy,
    /// LZ4 without a frame.
    Lz4,
    /// Gzip, for readers of old.
    Gzip,
    /// None.
    Uncompressed,
}

/// What a [`ParquetSink`] is told.
#[derive(Debug, Clone)]
pub struct ParquetSettings {
    /// The pipeline's name; the files' names begin with it.
    pub pipeline: String,
    /// The table's tier, for the files' metadata.
    pub tier: String,
    /// The table's name, for the files' metadata and for errors.
    pub table: String,
    /// The columns of the rows that will come.
    pub schema: SchemaRef,
    /// The levels of partition folders, the outermost first.
    pub partition_by: Vec<PartitionBy>,
    /// How the files are compressed.
    pub compression: ParquetCompression,
    /// Most files that are open at once.
    pub open_partitions_max: usize,
    /// Most memory in bytes for rows that are encoded and not yet written or sent.
    pub buffer_bytes: usize,
}

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
    /// The uploads of the open epoch; nothing on a local disk.
    uploads: Option<Uploads>,
    /// Open files, by the number of their folder.
    open: HashMap<usize, OpenFile>,
    finished: Vec<FinishedFile>,
    /// Files of earlier epochs that go when the next one is committed.
    removes: Vec<RemovedFile>,
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
    /// cannot read, a partition column that is not there or names no folder, or
    /// partition columns that leave no column for the files.
    pub fn new(settings: ParquetSettings, table: Store, staging: Store, notes: Store) -> Result<Self> {
        let stored = StoredSchema::of(&settings.schema, &settings.table)?;
        let router = Router::new(&settings.partition_by, stored.schema(), &settings.table)?;
        let place = Place::new(&table, &staging, notes)?;
        let uploads = match &place {
            Place::Disk { .. } => None,
            Place::Objects(objects) => Some(Uploads::new(objects.multipart.clone(), objects.notes.clone())),
        };
        let properties = properties(settings.compression)?;
        Ok(Self {
            settings,
            stored,
            properties,
            router,
            place,
            uploads,
            open: HashMap::new(),
            finished: Vec::new(),
            removes: Vec::new(),
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
    fn encode(&mut self, id: EpochId, groups: Vec<Group>) -> Result<()> {
        self.writes += 1;
        // To add up what thousands of open files hold for each of them would take the square of their number.
        let mut unseen_bytes = 0;
        for Group { folder, rows } in groups {
            unseen_bytes += rows.get_array_memory_size() + OPEN_FILE_BYTES;
            if !self.open.contains_key(&folder) {
                self.open_file(id, folder, &rows)?;
            }
            if let Some(file) = self.open.get_mut(&folder) {
                file.used_at = self.writes;
                file.write(&rows)?;
                if let Some(uploads) = &mut self.uploads {
                    send_parts(uploads, file);
                }
            }
            if unseen_bytes > self.held_bytes_max() / 32 {
                unseen_bytes = 0;
                self.shrink(id)?;
            }
        }
        self.shrink(id)
    }

    /// Opens a file that begins with `rows`.
    fn open_file(&mut self, id: EpochId, folder: usize, rows: &RecordBatch) -> Result<()> {
        if self.open.len() >= self.settings.open_partitions_max.max(1)
            && let Some(oldest) = self.open.iter().min_by_key(|(_, file)| file.used_at).map(|(folder, _)| *folder)
        {
            self.finish_file(id, oldest)?;
        }
        let number = self.files;
        self.files += 1;
        let name = file_name(&self.settings.pipeline, id, number);
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
        let options = ArrowWriterOptions::new()
            .with_skip_arrow_metadata(true)
            .with_properties(encoding::fitting(&self.properties, rows)?);
        let schema = self.router.file_schema().clone();
        let file = OpenFile::new(output, schema, options, number, path, target)?;
        self.open.insert(folder, file);
        Ok(())
    }

    fn finish_file(&mut self, id: EpochId, folder: usize) -> Result<()> {
        let Some(file) = self.open.remove(&folder) else { return Ok(()) };
        let mut file = file.finish(metadata(&self.settings, self.router.partition_columns(), id))?;
        if let Some(uploads) = &mut self.uploads {
            for part in file.parts.drain(..) {
                uploads.add(file.number, part);
            }
        }
        self.finished.push(file);
        Ok(())
    }

    /// Brings the memory under its bound by ending row groups, and files where that is not enough.
    fn shrink(&mut self, id: EpochId) -> Result<()> {
        while self.held_bytes() > self.held_bytes_max() {
            let by_encoder = self.open.iter().max_by_key(|(_, file)| file.encoder_bytes);
            let by_part = self.open.iter().max_by_key(|(_, file)| file.part_bytes());
            let (Some((&encoding, encoder)), Some((&waiting, part))) = (by_encoder, by_part) else { break };
            let (encoder_bytes, part_bytes) = (encoder.encoder_bytes, part.part_bytes());
            if encoder_bytes == 0 && part_bytes == 0 {
                break;
            }
            if encoder_bytes < part_bytes {
                // Less than a part cannot be sent but as the last one of its file.
                self.finish_file(id, waiting)?;
            } else if let Some(file) = self.open.get_mut(&encoding) {
                file.flush()?;
                if let Some(uploads) = &mut self.uploads {
                    send_parts(uploads, file);
                }
            }
        }
        Ok(())
    }

    /// Gives how much open files may hold. Where files are uploaded, half of the
    /// memory is for what is being sent, so that sending goes on while rows are encoded.
    fn held_bytes_max(&self) -> usize {
        if self.uploads.is_some() { self.settings.buffer_bytes / 2 } else { self.settings.buffer_bytes }
    }

    /// Gives the bytes that open files hold.
    fn held_bytes(&self) -> usize {
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

    fn prepared_files(&self, id: EpochId) -> Result<Vec<PreparedFile>> {
        let staged = |file: &FinishedFile| -> Result<Staged> {
            match &self.uploads {
                None => Ok(Staged::File(base_name(&file.path).to_owned())),
                Some(uploads) => {
                    let uploaded = uploads.uploaded(file.number)?;
                    Ok(Staged::Upload { id: uploaded.id, note: note_name(id, file.number), parts: uploaded.parts })
                }
            }
        };
        let prepared = |file: &FinishedFile| -> Result<PreparedFile> {
            Ok(PreparedFile { path: file.path.clone(), bytes: file.bytes, rows: file.rows, staged: staged(file)? })
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
        let groups = self.router.route(self.stored.store(rows)?)?;
        let encoded = self.encode(id, groups);
        self.breaking(encoded)
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        self.check()?;
        let folders: Vec<usize> = self.open.keys().copied().collect();
        for folder in folders {
            let finished = self.finish_file(id, folder);
            self.breaking(finished)?;
            if let Some(uploads) = &mut self.uploads {
                uploads.advance(self.settings.buffer_bytes / 2).await?;
            }
        }
        if self.finished.is_empty() && self.removes.is_empty() {
            return Ok(Prepared::default());
        }
        self.settle().await?;
        let mut files = self.prepared_files(id)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let removed = self.removes.iter().map(|file| file.rows).sum();
        let mut prepared = Prepared { files: files.len() as u64, removed, ..Prepared::default() };
        for file in &files {
            prepared.rows += file.rows;
            prepared.bytes += file.bytes;
        }
        let handle = serde_json::to_value(Files { files, removes: self.removes.clone() });
        prepared.handle = Some(handle.map_err(|e| Error::internal("could not write a handle").because(e))?);
        self.finished.clear();
        self.removes.clear();
        self.files = 0;
        self.router.reset();
        if let Some(uploads) = &mut self.uploads {
            uploads.reset();
        }
        Ok(prepared)
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(ParquetCommitter { pipeline: self.settings.pipeline.clone(), place: self.place.clone() })
    }
}

fn send_parts(uploads: &mut Uploads, file: &mut OpenFile) {
    for part in file.take_parts() {
        uploads.add(file.number, part);
    }
}

fn file_name(pipeline: &str, id: EpochId, number: u64) -> String {
    format!("{pipeline}-{}-{}-{number}.parquet", id.generation, id.epoch)
}

fn note_name(id: EpochId, number: u64) -> String {
    format!("{}-{}-{number}.json", id.generation, id.epoch)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn properties(compression: ParquetCompression) -> Result<WriterProperties> {
    let compression = match compression {
        ParquetCompression::Zstd => {
            let level = ZstdLevel::try_new(1).map_err(|e| Error::internal("zstd has no level 1").because(e))?;
            Compression::ZSTD(level)
        }
        ParquetCompression::Snappy => Compression::SNAPPY,
        ParquetCompression::Lz4 => Compression::LZ4_RAW,
        ParquetCompression::Gzip => Compression::GZIP(GzipLevel::default()),
        ParquetCompression::Uncompressed => Compression::UNCOMPRESSED,
    };
    Ok(WriterProperties::builder()
        .set_compression(compression)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(true)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_created_by(format!("nexus version {}", env!("CARGO_PKG_VERSION")))
        .build())
}

/// Gives what the footer says about where the rows come from; the file adds their number.
fn metadata(settings: &ParquetSettings, partition_columns: Option<&str>, id: EpochId) -> Vec<KeyValue> {
    let origin = [
        ("nexus.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("nexus.pipeline", settings.pipeline.clone()),
        ("nexus.tier", settings.tier.clone()),
        ("nexus.table", settings.table.clone()),
        ("nexus.generation", id.generation.to_string()),
        ("nexus.epoch", id.epoch.to_string()),
    ];
    let columns = partition_columns.map(|columns| ("nexus.partition_columns", columns.to_owned()));
    origin.into_iter().chain(columns).map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect()
}
