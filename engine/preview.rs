//! Previews: a table made of a little of what the real sources have.
//!
//! Nothing is committed: the pipeline runs in a folder of its own that is removed afterwards, claims no generation of
//! the real one, stores no table and acknowledges nothing to the sources.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use nexus_operators::clock::{SharedClock, SystemClock};
use nexus_operators::position::Cut;
use nexus_operators::sink::memory::MemorySink;
use nexus_operators::source::{Source, SourceEvent};
use nexus_operators::{Error, Result};
use tokio::time::Instant;

use crate::Report;
use crate::pipeline::{BuildError, Pipeline};
use crate::plan::Plan;
use crate::spec::{Loaded, Tier, model, suggest};
use crate::trial::{TrialFolder, in_folder};

/// The name under which a preview listens to its table.
const LISTENER: &str = "preview";

/// How much a preview reads.
#[derive(Debug, Clone, Copy)]
pub struct PreviewSettings {
    /// Of each source, reading ends with the piece that reaches so many bytes.
    pub bytes_max: u64,
    /// How long a source may have nothing to read before it counts as empty.
    pub wait: Duration,
}

/// What a preview has shown.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The table's columns.
    pub columns: SchemaRef,
    /// All rows that the table got.
    pub rows: Vec<RecordBatch>,
    /// What was read, and what became of it.
    pub report: Report,
}

/// Shows a table, `tier.table`, or the rows of a source, as the end of input would leave them if the sources had no more
/// than is read.
///
/// # Errors
///
/// What is wrong with the file, and `Config` where there is no such table; whatever the sources fail with.
pub async fn preview(loaded: &Loaded, name: &str, settings: PreviewSettings) -> Result<Preview, BuildError> {
    let folder = TrialFolder::new();
    let mut part = in_folder(loaded, &folder.path());
    let table = only(&mut part, name).await?;
    let clock: SharedClock = Arc::new(SystemClock);
    let plan = Pipeline::new(part.clone()).plan().await?;
    let columns = plan.table(&table).map(|table| table.schema.clone());
    let columns = columns.ok_or_else(|| BuildError::Operator(Error::internal(format!("{table} is not planned"))))?;
    let mut pipeline = Pipeline::new(part.clone()).without_stores();
    for source in plan.opened_sources() {
        let Some(source) = plan.sources.get(&source) else { continue };
        let real = source.operator(&part, &clock).map_err(BuildError::Operator)?;
        pipeline = pipeline.with_planned(source.clone(), Box::new(Sampled::new(real, settings)));
    }
    let sink = MemorySink::new();
    let landed = sink.landed();
    let mut job = pipeline.with_sink(&table, LISTENER, Box::new(sink)).start().await?;
    let report = job.wait().await.map_err(BuildError::Operator)?;
    let rows = landed.batches();
    // A table that changes has the number of the epoch beside its columns.
    let columns = rows.first().map_or(columns, RecordBatch::schema);
    Ok(Preview { columns, rows, report })
}

/// Leaves only what a table needs in the file; of a source, a table that takes all of its rows. Gives the table's name.
async fn only(part: &mut Loaded, name: &str) -> Result<String, BuildError> {
    if part.spec.sources.contains_key(name) {
        let all = serde_json::json!({ "from": name });
        let all: model::Table = serde_json::from_value(all)
            .map_err(|e| BuildError::Operator(Error::internal("could not make a table of a source").because(e)))?;
        Tier::ALL.into_iter().for_each(|tier| part.spec.tables_mut(tier).clear());
        part.spec.bronze.insert(name.to_owned(), all);
        return Ok(format!("{}.{name}", Tier::Bronze));
    }
    let plan = Pipeline::new(part.clone()).plan().await?;
    if plan.table(name).is_none() {
        let known = plan.tables.iter().map(|table| table.name()).chain(plan.sources.keys().cloned());
        let known: Vec<String> = known.collect();
        let hint = suggest::hint(name, known.iter().map(String::as_str)).unwrap_or_default();
        return Err(BuildError::Operator(Error::config(format!("there is no table or source `{name}`; {hint}"))));
    }
    let needed = needed(&plan, name);
    for tier in Tier::ALL {
        part.spec.tables_mut(tier).retain(|table, _| needed.contains(&format!("{tier}.{table}")));
    }
    Ok(name.to_owned())
}

/// Gives the names of a table and of all that it reads.
fn needed(plan: &Plan, name: &str) -> BTreeSet<String> {
    let mut needed = BTreeSet::from([name.to_owned()]);
    // Each table stands behind those that it reads.
    for table in plan.tables.iter().rev() {
        if needed.contains(&table.name()) {
            needed.extend(table.inputs.iter().cloned());
        }
    }
    needed
}

/// The beginning of what a source has, which is never told that anything was committed.
struct Sampled {
    source: Box<dyn Source>,
    /// Bytes that may still be read.
    left: u64,
    /// Whether anything has come.
    has_read: bool,
    /// When a source that has given nothing counts as empty.
    until: Instant,
    ended: bool,
}

impl Sampled {
    fn new(source: Box<dyn Source>, settings: PreviewSettings) -> Self {
        let until = Instant::now() + settings.wait;
        Self { source, left: settings.bytes_max.max(1), has_read: false, until, ended: false }
    }
}

#[async_trait]
impl Source for Sampled {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        self.source.open(committed).await
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if self.ended {
            return Ok(SourceEvent::End);
        }
        let event = self.source.next().await?;
        let is_late = Instant::now() >= self.until;
        match &event {
            SourceEvent::Chunk(chunk) => {
                self.has_read |= !chunk.is_empty();
                self.left = self.left.saturating_sub(chunk.size_bytes() as u64);
                self.ended = self.left == 0 || chunk.is_empty() && is_late;
            }
            SourceEvent::Reject { .. } => self.has_read = true,
            SourceEvent::Idle => self.ended = self.has_read || is_late,
            SourceEvent::End => self.ended = true,
        }
        Ok(event)
    }

    fn cut(&mut self) -> Cut {
        self.source.cut()
    }

    fn reading(&self) -> Vec<Arc<str>> {
        self.source.reading()
    }

    /// Not told to the service: what was read belongs to the pipeline's own runs.
    async fn committed(&mut self, _: &Cut) -> Result<()> {
        Ok(())
    }

    async fn maintain(&mut self) -> Result<()> {
        self.source.maintain().await
    }

    fn bounded(&self) -> bool {
        true
    }
}
