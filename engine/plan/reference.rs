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
use nexus_operators::aws::AwsSettings;
use nexus_operators::batch::{Chunk, OffsetKind};
use nexus_operators::clock::SharedClock;
use nexus_operators::decode::{self, BATCH_ROWS_MAX, DecoderSettings, FormatSettings, UnknownColumns};
use nexus_operators::source::framed::{Framed, FramedSettings, Step};
use nexus_operators::source::pattern::{Named, Pattern};
use nexus_operators::source::sample::sample_of;
use nexus_operators::{Error, ErrorKind, Result};

use crate::state::record::{ReferenceFile, ReferenceVersion};

/// Where a reference table is read from.
#[derive(Debug, Clone)]
pub struct ReferenceSettings {
    /// Its name.
    pub name: String,
    /// An absolute path or glob, or the same on S3.
    pub path: String,
    /// As whom S3 is read.
    pub aws: AwsSettings,
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
    pattern: Pattern,
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
    found: Vec<Named>,
    batches: Vec<RecordBatch>,
}

impl ReferenceTable {
    /// Reads a reference table.
    pub async fn load(settings: ReferenceSettings, clock: SharedClock) -> Result<Self> {
        let pattern = Pattern::open(&settings.path, &settings.aws).await?;
        let columns = match &settings.columns {
            Some(columns) => columns.clone(),
            None => infer_first(&pattern, &settings.format).await?,
        };
        let schema = Arc::new(Schema::new(columns));
        let newest = Arc::new(read_version(&settings, &pattern, &schema, &clock, 1).await?);
        let versions = RwLock::new(Versions { newest, pinned: VecDeque::new() });
        Ok(Self { settings, pattern, schema, clock, versions })
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
        let version = newest.told.version + 1;
        let found = match find(&self.pattern).await {
            Ok(found) if found == newest.found => return,
            Ok(_) => read_version(&self.settings, &self.pattern, &self.schema, &self.clock, version).await,
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

/// How long S3 may take to tell what is there: somebody waits for `nexus check`.
const FIND_MAX: Duration = Duration::from_secs(30);

/// How often a table is read again at once because its files have changed meanwhile.
const READS_MAX: usize = 3;

/// Reads the rows, and what tells them from those of another time: files that did not change meanwhile.
async fn read_version(
    settings: &ReferenceSettings,
    pattern: &Pattern,
    schema: &SchemaRef,
    clock: &SharedClock,
    version: u64,
) -> Result<Version> {
    for _ in 0..READS_MAX {
        let found = find(pattern).await?;
        let read = read(settings, pattern, &found, schema, clock).await;
        // What is wrong with content that has changed meanwhile does not count.
        if find(pattern).await? != found {
            continue;
        }
        let batches = read?;
        let changed_us = |changed: Option<SystemTime>| {
            let since = changed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        };
        let file = |found: &Named| ReferenceFile {
            path: found.name.clone(),
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

/// Finds the files, of which there must be some.
async fn find(pattern: &Pattern) -> Result<Vec<Named>> {
    let nowhere = || Error::config(format!("no file matches {}", pattern.text()));
    let away = |_| {
        let seconds = FIND_MAX.as_secs();
        Error::unavailable(format!("could not look for {}: there was no answer within {seconds} s", pattern.text()))
    };
    let found = tokio::time::timeout(FIND_MAX, pattern.find()).await.map_err(away)??;
    if found.is_empty() { Err(nowhere()) } else { Ok(found) }
}

/// Bytes of the first file that columns are inferred from: some ten thousand records of usual size.
const SAMPLE_BYTES: usize = 4 * 1024 * 1024;

/// Infers the columns of files from the first of them.
pub fn infer(glob: &str, format: &FormatSettings) -> Result<Vec<Field>> {
    let sample = nexus_operators::source::sample::sample(glob, format.framing(), SAMPLE_BYTES)?;
    decode::infer(format, &sample).map_err(|e| e.while_doing(format!("could not infer the columns of {glob}")))
}

async fn infer_first(pattern: &Pattern, format: &FormatSettings) -> Result<Vec<Field>> {
    let found = find(pattern).await?;
    let first = found.first().ok_or_else(|| Error::internal("nothing was found"))?;
    let failed = |e: Error| e.while_doing(format!("could not infer the columns of {}", first.name));
    let sample = sample_of(&pattern.input(first).await?, format.framing(), SAMPLE_BYTES).await.map_err(failed)?;
    decode::infer(format, &sample).map_err(failed)
}

async fn read(
    settings: &ReferenceSettings,
    pattern: &Pattern,
    found: &[Named],
    schema: &SchemaRef,
    clock: &SharedClock,
) -> Result<Vec<RecordBatch>> {
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
    let framing = settings.format.framing();
    let framed = FramedSettings { framing, record_bytes_max: settings.record_bytes_max, waits: false };
    let mut rows = Vec::new();
    for file in found {
        let partition: Arc<str> = file.name.as_str().into();
        let mut reader = Framed::new(partition.clone(), pattern.input(file).await?, framed, 0);
        while let Step::Piece { payload, .. } = next(settings, file, &mut reader).await? {
            let read_at_us = clock.now_us();
            let chunk = Chunk { partition: partition.clone(), payload, read_at_us, lag_ms: None };
            for decoded in decoder.decode(&chunk) {
                let decoded = decoded?;
                if let Some(reject) = decoded.rejects.first() {
                    return Err(bad_row(settings, &partition, &reject.offset, &reject.reason));
                }
                for batch in decoded.batches {
                    rows.push(batch.project(&wanted)?);
                }
            }
        }
    }
    Ok(rows)
}

async fn next(settings: &ReferenceSettings, file: &Named, reader: &mut Framed) -> Result<Step> {
    let step = reader.next().await;
    step.map_err(|e| match e.kind() {
        ErrorKind::Data => bad_row(settings, &file.name, &reader.offset().to_string(), &e.to_string()),
        _ => e,
    })
}

/// A reference table with a bad row would silently join to nothing: it is refused as a whole.
fn bad_row(settings: &ReferenceSettings, partition: &str, offset: &str, reason: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("could not read reference table {}: {partition} at byte {offset}: {reason}", settings.name),
    )
}
