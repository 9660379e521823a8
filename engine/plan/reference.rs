//! Reference tables: static rows to join with, read again when they grow old.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use nexus_operators::batch::OffsetKind;
use nexus_operators::clock::SharedClock;
use nexus_operators::decode::{self, BATCH_ROWS_MAX, DecoderSettings, FormatSettings, UnknownColumns};
use nexus_operators::position::Cut;
use nexus_operators::source::file::{FileSettings, FileSource, Found, find};
use nexus_operators::source::{Source, SourceEvent};
use nexus_operators::{Error, ErrorKind, Result};

use crate::state::record::{ReferenceFile, ReferenceVersion};

/// Where a reference table is read from.
#[derive(Debug, Clone)]
pub struct ReferenceSettings {
    /// Its name.
    pub name: String,
    /// An absolute path or glob.
    pub glob: String,
    /// How the bytes read.
    pub format: FormatSettings,
    /// The declared columns; inferred if not given.
    pub columns: Option<Vec<Field>>,
    /// Read it again when it is older than this.
    pub refresh: Option<Duration>,
    /// The largest record.
    pub record_bytes_max: usize,
}

/// A reference table: its rows as they were read last, and as the open epochs use them.
pub struct ReferenceTable {
    settings: ReferenceSettings,
    schema: SchemaRef,
    clock: SharedClock,
    /// The lock is held to swap or to copy pointers only, so it need not be async.
    versions: RwLock<Versions>,
}

/// The versions that are in use.
#[derive(Debug)]
struct Versions {
    newest: Arc<Version>,
    /// From which epochs on a version is used, oldest first.
    pinned: VecDeque<(u64, Arc<Version>)>,
}

/// The rows as they were read at one time.
#[derive(Debug)]
pub struct Version {
    /// What commit records tell of it.
    pub told: ReferenceVersion,
    found: Vec<Found>,
    batches: Vec<RecordBatch>,
}

impl ReferenceTable {
    /// Reads a reference table.
    pub async fn load(settings: ReferenceSettings, clock: SharedClock) -> Result<Self> {
        let columns = match &settings.columns {
            Some(columns) => columns.clone(),
            None => infer(&settings.glob, &settings.format)?,
        };
        let schema = Arc::new(Schema::new(columns));
        let newest = Arc::new(read_version(&settings, &schema, &clock, 1).await?);
        let versions = RwLock::new(Versions { newest, pinned: VecDeque::new() });
        Ok(Self { settings, schema, clock, versions })
    }

    /// Gives the name under which queries read it.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Gives the columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Gives how old the rows may get.
    pub fn refresh_every(&self) -> Option<Duration> {
        self.settings.refresh
    }

    /// Counts on from the version that an earlier process has used: the same files are the same version.
    pub fn count_from(&self, known: &ReferenceVersion) {
        let mut versions = self.write();
        let newest = &versions.newest;
        let version = if newest.told.files == known.files { known.version } else { known.version + 1 };
        let told = ReferenceVersion { version, ..newest.told.clone() };
        let counted = Version { told, found: newest.found.clone(), batches: newest.batches.clone() };
        versions.newest = Arc::new(counted);
    }

    /// Reads the table again if its files have changed; open epochs keep the rows that they use. A failure keeps the rows
    /// that are there.
    pub async fn refresh(&self) {
        let newest = self.newest();
        let name = &self.settings.name;
        let found = match find_files(&self.settings.glob).await {
            Ok(found) if found == newest.found => return,
            Ok(_) => read_version(&self.settings, &self.schema, &self.clock, newest.told.version + 1).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(version) => {
                let ReferenceVersion { version: number, rows, .. } = version.told;
                tracing::info!(reference = name, version = number, rows, "read anew");
                self.write().newest = Arc::new(version);
            }
            Err(error) => {
                tracing::warn!(reference = name, %error, "could not refresh; the rows read before stay");
            }
        }
    }

    /// Has all tables use the newest version from an epoch on. It is called before any stage begins that epoch, and once
    /// all have begun the one before.
    pub fn pin(&self, epoch: u64) {
        let mut versions = self.write();
        let newest = versions.newest.clone();
        versions.pinned.push_back((epoch, newest));
        while versions.pinned.len() > EPOCHS_OPEN_MAX {
            versions.pinned.pop_front();
        }
    }

    /// Gives the version that an epoch uses.
    pub fn version_of(&self, epoch: u64) -> Arc<Version> {
        let versions = self.read();
        let pinned = versions.pinned.iter().rev().find(|(from, _)| *from <= epoch);
        pinned.map_or_else(|| versions.newest.clone(), |(_, version)| version.clone())
    }

    fn newest(&self) -> Arc<Version> {
        self.read().newest.clone()
    }

    fn read(&self) -> RwLockReadGuard<'_, Versions> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Versions> {
        self.versions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ReferenceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReferenceTable({})", self.settings.name)
    }
}

/// A reference table as one query reads it: the version that the query's open epoch uses.
#[derive(Debug)]
pub struct ReferenceView {
    table: Arc<ReferenceTable>,
    /// The lock is held to swap or to copy a pointer only, so it need not be async.
    version: RwLock<Arc<Version>>,
}

impl ReferenceView {
    /// Looks at the newest version.
    pub fn new(table: Arc<ReferenceTable>) -> Self {
        let version = RwLock::new(table.newest());
        Self { table, version }
    }

    /// Looks at the version that an epoch uses. Tells whether it is another than before, so that a plan that holds its
    /// rows has to be made anew.
    pub fn turn_to(&self, epoch: u64) -> bool {
        let wanted = self.table.version_of(epoch);
        let mut version = self.version.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = !Arc::ptr_eq(&version, &wanted);
        *version = wanted;
        is_other
    }
}

#[async_trait]
impl TableProvider for ReferenceView {
    fn schema(&self) -> SchemaRef {
        self.table.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let version = self.version.read().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = std::slice::from_ref(&version.batches);
        Ok(MemorySourceConfig::try_new_exec(rows, self.table.schema.clone(), projection.cloned())?)
    }
}

/// Versions that are used at once: while one epoch is closed, the next has begun.
const EPOCHS_OPEN_MAX: usize = 2;

/// How often a table is read again at once because its files have changed meanwhile.
const READS_MAX: usize = 3;

/// Reads the rows, and what tells them from those of another time: files that did not change meanwhile.
async fn read_version(
    settings: &ReferenceSettings,
    schema: &SchemaRef,
    clock: &SharedClock,
    version: u64,
) -> Result<Version> {
    for _ in 0..READS_MAX {
        let found = find_files(&settings.glob).await?;
        let batches = read(settings, schema, clock).await?;
        if find_files(&settings.glob).await? != found {
            continue;
        }
        let changed_us = |changed: Option<SystemTime>| {
            let since = changed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        };
        let file = |found: &Found| ReferenceFile {
            path: found.path.to_string_lossy().into_owned(),
            bytes: found.size,
            changed_us: changed_us(found.changed),
        };
        let files = found.iter().map(file).collect();
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let told = ReferenceVersion { version, read_at_us: clock.now_us(), rows, files };
        return Ok(Version { told, found, batches });
    }
    Err(Error::unavailable(format!(
        "could not read reference table {}: its files change while they are read; put new content in place by a rename",
        settings.name
    )))
}

async fn find_files(glob: &str) -> Result<Vec<Found>> {
    let glob = glob.to_owned();
    let found = tokio::task::spawn_blocking(move || find(&glob)).await;
    found.map_err(|e| Error::internal("a disk task ended early").because(e))?
}

/// Bytes of the first file that columns are inferred from: some ten thousand records of usual size.
const SAMPLE_BYTES: usize = 4 * 1024 * 1024;

/// Infers the columns of files from the first of them.
pub fn infer(glob: &str, format: &FormatSettings) -> Result<Vec<Field>> {
    let sample = nexus_operators::source::sample::sample(glob, format.framing(), SAMPLE_BYTES)?;
    decode::infer(format, &sample).map_err(|e| e.while_doing(format!("could not infer the columns of {glob}")))
}

async fn read(settings: &ReferenceSettings, schema: &SchemaRef, clock: &SharedClock) -> Result<Vec<RecordBatch>> {
    let columns: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    let wanted: Vec<usize> = (0..columns.len()).collect();
    let decoder = decode::decoder(DecoderSettings {
        source: settings.name.as_str().into(),
        format: settings.format.clone(),
        columns,
        unknown: UnknownColumns::Ignore,
        offsets: OffsetKind::Number,
        batch_rows_max: BATCH_ROWS_MAX,
        record_bytes_max: settings.record_bytes_max,
        archives: false,
    })?;
    let files = FileSettings {
        name: settings.name.clone(),
        glob: settings.glob.clone(),
        relative_to: None,
        follow: false,
        framing: settings.format.framing(),
        record_bytes_max: settings.record_bytes_max,
    };
    let mut source = FileSource::new(files, clock.clone());
    source.open(&Cut::default()).await?;
    let mut rows = Vec::new();
    loop {
        match source.next().await? {
            SourceEvent::End => return Ok(rows),
            SourceEvent::Idle => {}
            SourceEvent::Reject { partition, offset, reason, .. } => {
                return Err(bad_row(settings, &partition, &offset, &reason));
            }
            SourceEvent::Chunk(chunk) => {
                for decoded in decoder.decode(&chunk) {
                    let decoded = decoded?;
                    if let Some(reject) = decoded.rejects.first() {
                        return Err(bad_row(settings, &chunk.partition, &reject.offset, &reject.reason));
                    }
                    for batch in decoded.batches {
                        rows.push(batch.project(&wanted)?);
                    }
                }
            }
        }
    }
}

/// A reference table with a bad row would silently join to nothing: it is refused as a whole.
fn bad_row(settings: &ReferenceSettings, partition: &str, offset: &str, reason: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("could not read reference table {}: {partition} at byte {offset}: {reason}", settings.name),
    )
}
