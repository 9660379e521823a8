//! A stream, cut and restarted at random, beside the batch answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::catalog::{MemTable, MemorySchemaProvider};
use datafusion::prelude::SessionContext;
use nexus::job::redrive::Redrive;
use nexus::operators::clock::SystemClock;
use nexus::operators::sink::memory::{Landed, MemorySink};
use nexus::operators::source::memory::MemorySource;
use nexus::{Job, Pipeline, Report};
use tempfile::TempDir;

use super::data::{NOTHING_CSV, SITES_CSV, Stream, below, references};
use super::shapes::Table;
use super::{functions, joins};
use crate::world::Random;

/// How long one run may take; a debug build on a busy machine is slow.
const RUN_MAX: Duration = Duration::from_secs(60);

/// Bytes at which an epoch is full: from each batch for itself to all at once.
const EPOCH_BYTES: [&str; 4] = ["1B", "4KiB", "16KiB", "128MiB"];

/// The sources, as the file has them; the rows of a memory source take their place.
pub const SOURCES: &str = "sources:\n  \
    events: { generate: { rows: 1, columns: { id: { sequence: {} } } } }\n  \
    more: { generate: { rows: 1, columns: { id: { sequence: {} } } } }\n";

/// A pipeline over some streams, whose tables end in memory.
pub struct Trial {
    folder: TempDir,
    file: String,
    tables: BTreeMap<String, Landed>,
}

impl Trial {
    /// Writes a pipeline with these tables; each may have options beside its query, in YAML.
    pub fn new(random: &mut Random, tables: &[(Table, &str)]) -> Self {
        let folder = TempDir::with_prefix("nexus-oracle-").expect("could not make a folder");
        for (name, text) in [("sites", SITES_CSV), ("nothing", NOTHING_CSV)] {
            std::fs::write(folder.path().join(format!("{name}.csv")), text).expect("could not write a file");
        }
        let at = folder.path().display();
        let bytes = EPOCH_BYTES[below(random, EPOCH_BYTES.len())];
        let mut file = format!(
            "name: oracle\nlake: {at}/lake\ncommit: {{ every: 30s, bytes: {bytes} }}\n{SOURCES}reference:\n  \
             sites: {{ path: {at}/sites.csv, columns: {{ site: string, region: string, weight: int64 }} }}\n  \
             nothing: {{ path: {at}/nothing.csv, columns: {{ site: string }} }}\n"
        );
        for tier in ["bronze", "silver", "gold", "vibranium"] {
            let mut here = tables.iter().filter(|((of, ..), _)| *of == tier).peekable();
            if here.peek().is_some() {
                let _ = writeln!(file, "{tier}:");
            }
            for ((_, name, sql), options) in here {
                let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ");
                let _ = writeln!(file, "  {name}:\n    store: false\n    sql: |\n      {sql}{options}");
            }
        }
        let landed = tables.iter().map(|((tier, name, _), _)| (format!("{tier}.{name}"), Landed::default()));
        Self { folder, file, tables: landed.collect() }
    }

    /// Adds a database by the name `pg`.
    pub fn with_postgres(mut self, url: &str) -> Self {
        let at = self.folder.path().join("pg");
        std::fs::write(&at, url).expect("could not write a file");
        let _ = writeln!(self.file, "secrets:\n  pg: {{ file: {} }}", at.display());
        self
    }

    /// Gives the folder of the lake.
    pub fn lake(&self) -> std::path::PathBuf {
        self.folder.path().join("lake")
    }

    /// Gives what a table has become.
    pub fn landed(&self, table: &str) -> Vec<RecordBatch> {
        self.tables[table].batches()
    }

    async fn start(&self, random: &mut Random, streams: &[Stream]) -> Job {
        self.pipeline(&self.file, random, streams).start().await.unwrap_or_else(|e| panic!("{e}"))
    }

    fn pipeline(&self, file: &str, random: &mut Random, streams: &[Stream]) -> Pipeline {
        let mut pipeline = Pipeline::parse(file).unwrap_or_else(|e| panic!("{e}"));
        for stream in streams {
            let columns = stream.columns().iter().map(|field| field.as_ref().clone()).collect();
            let source = MemorySource::batches(stream.partitions(random), Arc::new(SystemClock));
            let time = Some((stream.time, stream.lateness));
            pipeline = pipeline.with_rows(stream.name, columns, time, Box::new(source)).expect("the source fits");
        }
        for (table, landed) in &self.tables {
            pipeline = pipeline.with_sink(table, "memory", Box::new(MemorySink::over(landed.clone())));
        }
        pipeline
    }

    /// Sends quarantined rows again through the file with a correction, dropping some of the jobs on the way.
    pub async fn redrive(&self, random: &mut Random, streams: &[Stream], (wrong, right): (&str, &str)) {
        let file = self.file.replace(wrong, right);
        loop {
            let redrive = Redrive { of: None, upto: u64::MAX };
            let pipeline = self.pipeline(&file, random, streams).redriving(redrive);
            let mut job = pipeline.start().await.unwrap_or_else(|e| panic!("{e}"));
            if below(random, 3) == 0 {
                tokio::time::sleep(Duration::from_millis(below(random, 20) as u64)).await;
                continue;
            }
            if ended(&mut job, |_| false).await.is_some_and(|report| report.epochs == 0) {
                return;
            }
        }
    }

    /// Runs to the end of input, stopping or dropping the job up to three times on the way. Gives the reports of those
    /// runs that came to their end.
    pub async fn run(&self, random: &mut Random, streams: &[Stream]) -> Vec<Report> {
        let mut reports = Vec::new();
        for _ in 0..below(random, 4) {
            let mut job = self.start(random, streams).await;
            let epochs = below(random, 5) as u64;
            if let Some(report) = ended(&mut job, |job| job.status().epochs >= epochs).await {
                reports.push(report);
                break;
            }
            if below(random, 2) == 0 {
                drop(job);
                continue;
            }
            job.stop();
            reports.extend(ended(&mut job, |_| false).await);
        }
        let mut job = self.start(random, streams).await;
        reports.extend(ended(&mut job, |_| false).await);
        reports
    }
}

/// Waits for a job's end, or until something holds; gives the report of its end.
async fn ended(job: &mut Job, holds: impl Fn(&Job) -> bool) -> Option<Report> {
    let until = tokio::time::Instant::now() + RUN_MAX;
    while !holds(job) {
        match tokio::time::timeout(Duration::from_millis(1), job.wait()).await {
            Ok(done) => return Some(done.unwrap_or_else(|e| panic!("the run failed: {e}"))),
            Err(_) => assert!(tokio::time::Instant::now() < until, "the run does not end: {:?}", job.status()),
        }
    }
    None
}

/// Gives what DataFusion answers to the tables' queries over all rows, by the table's name.
pub async fn batch_answer(streams: &[(&str, RecordBatch)], tables: &[Table]) -> BTreeMap<String, Vec<RecordBatch>> {
    let session = SessionContext::new();
    for (name, rows) in streams.iter().cloned().chain(references()) {
        session.register_batch(name, rows).expect("the name is free");
    }
    let catalog = session.catalog("datafusion").expect("the default catalog");
    for tier in ["bronze", "silver", "gold", "vibranium"] {
        catalog.register_schema(tier, Arc::new(MemorySchemaProvider::new())).expect("the name is free");
    }
    let mut answers = BTreeMap::new();
    for (tier, name, sql) in tables {
        let answer = session
            .sql(&joins::in_batch(name, &functions::in_batch(name, sql)))
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let schema = Arc::clone(answer.schema().inner());
        let rows = answer.collect().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let rows: Vec<RecordBatch> = rows
            .into_iter()
            .map(|batch| RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).expect("the columns fit"))
            .collect();
        let full = format!("{tier}.{name}");
        let kept = MemTable::try_new(schema, vec![rows.clone()]).expect("the columns fit");
        session.register_table(full.as_str(), Arc::new(kept)).expect("the name is free");
        answers.insert(full, rows);
    }
    answers
}

/// Reads all Parquet files of a folder of the lake; none if there is no such folder.
pub async fn stored(folder: &Path) -> Vec<RecordBatch> {
    if !folder.exists() {
        return Vec::new();
    }
    let session = SessionContext::new();
    let read = session.read_parquet(folder.display().to_string(), Default::default()).await.expect("it is a table");
    read.collect().await.expect("the files can be read")
}
