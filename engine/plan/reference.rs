//! Reference tables: static rows to join with, read again when they grow old.

use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;

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
use nexus_operators::source::file::{FileSettings, FileSource};
use nexus_operators::source::{Source, SourceEvent};
use nexus_operators::{Error, ErrorKind, Result};

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

/// A reference table, as DataFusion sees it.
pub struct ReferenceTable {
    settings: ReferenceSettings,
    schema: SchemaRef,
    clock: SharedClock,
    /// The lock is held to swap or to copy pointers only, so it need not be async.
    rows: RwLock<Version>,
}

/// The rows as they were read at one time.
#[derive(Debug, Clone)]
struct Version {
    number: u64,
    read_at_us: i64,
    rows: Arc<Vec<RecordBatch>>,
}

impl ReferenceTable {
    /// Reads a reference table.
    pub async fn load(settings: ReferenceSettings, clock: SharedClock) -> Result<Self> {
        let columns = match &settings.columns {
            Some(columns) => columns.clone(),
            None => infer(&settings.glob, &settings.format)?,
        };
        let schema = Arc::new(Schema::new(columns));
        let rows = read(&settings, &schema, &clock).await?;
        let version = Version { number: 1, read_at_us: clock.now_us(), rows: Arc::new(rows) };
        Ok(Self { settings, schema, clock, rows: RwLock::new(version) })
    }

    /// Reads the table again if it is older than it may be. A failure keeps the rows that are there.
    pub async fn refresh_if_due(&self) {
        let Some(refresh) = self.settings.refresh else { return };
        let age_us = self.clock.now_us().saturating_sub(self.version().read_at_us);
        if u128::from(age_us.unsigned_abs()) < refresh.as_micros() {
            return;
        }
        match read(&self.settings, &self.schema, &self.clock).await {
            Ok(rows) => {
                let mut version = self.rows.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                version.number += 1;
                version.read_at_us = self.clock.now_us();
                version.rows = Arc::new(rows);
            }
            Err(error) => {
                tracing::warn!(reference = self.settings.name, %error, "could not refresh; the rows read before stay");
            }
        }
    }

    /// Gives the number of times that the table has been read.
    pub fn version_number(&self) -> u64 {
        self.version().number
    }

    fn version(&self) -> Version {
        self.rows.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for ReferenceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReferenceTable({})", self.settings.name)
    }
}

#[async_trait]
impl TableProvider for ReferenceTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
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
        let rows = self.version().rows;
        Ok(MemorySourceConfig::try_new_exec(&[rows.as_ref().clone()], self.schema.clone(), projection.cloned())?)
    }
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
