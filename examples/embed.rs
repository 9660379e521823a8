//! A service that embeds Nexus: its own source, its own sink, and its own SQL
//! function, in a job that is watched and then stopped gracefully.
//!
//! The service has a journal of readings, which never ends. The source reads
//! the journal and keeps its place as a position; the sink keeps an alarm book,
//! to which an epoch is added at once or not at all. The job is stopped after a
//! while and started again, and each reading is judged exactly once.
//!
//!     cargo run --example embed

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{AsArray, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use async_trait::async_trait;
use datafusion::common::cast::as_float64_array;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use nexus::operators::batch::{Chunk, Payload, Record};
use nexus::operators::position::{Cut, Position};
use nexus::operators::sink::{Committer, EpochId, Handle, Prepared, Sink};
use nexus::operators::source::{Source, SourceEvent};
use nexus::{Error, Job, Pipeline, Result};

/// The pipeline: the file says what the records look like, the service brings them.
const FILE: &str = "
name: boilers
lake: LAKE
commit: { every: 50ms }
sources:
  readings:
    file: { path: readings.jsonl }
    columns: { boiler: string not null, celsius: float64, at: timestamp not null }
    event_time: { column: at, lateness: 1s }
silver:
  readings:
    sql: SELECT boiler, fahrenheit(celsius) AS degrees, at FROM readings
gold:
  minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', at) AS minute, count(*) AS readings, max(degrees) AS hottest
      FROM silver.readings GROUP BY 1
vibranium:
  alarms:
    sql: SELECT boiler, degrees, at FROM silver.readings WHERE degrees > 200
    store: false
";

/// The lines that the service has written so far. Each is kept, so that any of them can be read again.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

/// Reads the journal from a line on.
struct JournalSource {
    journal: Journal,
    next_line: usize,
    cut_line: usize,
}

/// What the alarm book holds: alarms of epochs that are prepared, and those that stand in it.
#[derive(Clone, Default)]
struct AlarmBook(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    prepared: BTreeMap<EpochId, Vec<f64>>,
    written: BTreeMap<EpochId, Vec<f64>>,
}

/// Writes alarms to the book.
struct AlarmSink {
    book: AlarmBook,
    open: Vec<f64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let folder = tempfile::tempdir()?;
    let (journal, book) = (Journal::default(), AlarmBook::default());

    // The service goes about its work: a reading every second, of which each tenth is too hot.
    journal.write(0..600);
    let mut job = start(folder.path(), &journal, &book).await?;
    until(&job, |job| job.status().tables["silver.readings"].counts.rows_out >= 600).await?;
    let status = job.status();
    println!("while it runs: {} epochs, {} readings", status.epochs, status.sources["readings"].rows);

    job.stop();
    let report = job.wait().await?;
    println!("stopped after {} readings; {} alarms are in the book", report.sources["readings"].rows, book.alarms());
    assert_eq!(book.alarms(), 60, "every tenth of 600");

    // More readings come while the job is away. The next one goes on behind the last commit.
    journal.write(600..1200);
    let mut job = start(folder.path(), &journal, &book).await?;
    until(&job, |job| job.status().tables["silver.readings"].counts.rows_out >= 600).await?;
    let stopper = job.stopper();
    tokio::spawn(async move { stopper.stop() });
    let report = job.wait().await?;
    println!("and again after {} readings; {} alarms are in the book", report.sources["readings"].rows, book.alarms());
    assert_eq!(report.sources["readings"].rows, 600, "none of the first 600 came again");
    assert_eq!(book.alarms(), 120, "every tenth of 1200, each once");
    let minutes = report.tables["gold.minutes"].counts.rows_out;
    println!("{minutes} minutes are complete and stand in the lake at {}", folder.path().display());
    Ok(())
}

async fn start(lake: &std::path::Path, journal: &Journal, book: &AlarmBook) -> Result<Job, Box<dyn StdError>> {
    let file = FILE.replace("LAKE", &lake.display().to_string());
    let source = JournalSource { journal: journal.clone(), next_line: 0, cut_line: 0 };
    let sink = AlarmSink { book: book.clone(), open: Vec::new() };
    let pipeline = Pipeline::parse(&file)?
        .with_source("readings", Box::new(source))?
        .with_sink("vibranium.alarms", "book", Box::new(sink))
        .with_function(fahrenheit());
    Ok(pipeline.start().await?)
}

/// Waits until something holds of a job; it gives up after half a minute.
async fn until(job: &Job, holds: impl Fn(&Job) -> bool) -> Result<()> {
    let waiting = async {
        while !holds(job) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, waiting).await.map_err(|e| Error::unavailable("the job makes no headway").because(e))
}

/// Makes the SQL function `fahrenheit(celsius)`.
fn fahrenheit() -> ScalarUDF {
    let convert = |arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let celsius = as_float64_array(&arrays[0])?;
        let degrees: Float64Array = celsius.unary(|celsius| celsius * 1.8 + 32.0);
        Ok(ColumnarValue::Array(Arc::new(degrees)))
    };
    let number = DataType::Float64;
    create_udf("fahrenheit", vec![number.clone()], number, Volatility::Immutable, Arc::new(convert))
}

impl Journal {
    fn write(&self, seconds: std::ops::Range<usize>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend(seconds.map(|second| {
            let celsius = if second % 10 == 0 { 120.0 } else { 80.0 };
            let at = format!("2026-11-01T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
            format!(r#"{{"boiler":"north","celsius":{celsius},"at":"{at}"}}"#)
        }));
    }

    fn read(&self, from: usize, lines_max: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().skip(from).take(lines_max).cloned().collect()
    }
}

#[async_trait]
impl Source for JournalSource {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        if let Some(Position::Offset { offset, .. }) = committed.advanced.get("journal") {
            self.next_line = usize::try_from(*offset).map_err(|e| Error::config("a line of the journal").because(e))?;
            self.cut_line = self.next_line;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        let lines = self.journal.read(self.next_line, 100);
        if lines.is_empty() {
            return Ok(SourceEvent::Idle);
        }
        let first = self.next_line;
        self.next_line += lines.len();
        let record = |(place, line): (usize, String)| Record {
            offset: (first + place).to_string(),
            key: None,
            data: line.into_bytes().into(),
        };
        let records = lines.into_iter().enumerate().map(record).collect();
        let payload = Payload::Records(records);
        Ok(SourceEvent::Chunk(Chunk { partition: "journal".into(), payload, read_at_us: 0, lag_ms: None }))
    }

    fn cut(&mut self) -> Cut {
        let mut moved = Cut::default();
        if self.cut_line != self.next_line {
            self.cut_line = self.next_line;
            let position = Position::Offset { offset: self.next_line as u64, identity: None };
            moved.advanced.insert("journal".to_owned(), position);
        }
        moved
    }

    fn reading(&self) -> Vec<Arc<str>> {
        vec!["journal".into()]
    }

    /// A journal that is cut off behind its readers would do so here.
    async fn committed(&mut self, _: &Cut) -> Result<()> {
        Ok(())
    }

    async fn maintain(&mut self) -> Result<()> {
        Ok(())
    }

    fn bounded(&self) -> bool {
        false
    }
}

impl AlarmBook {
    fn alarms(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).written.values().map(Vec::len).sum()
    }
}

#[async_trait]
impl Sink for AlarmSink {
    async fn write(&mut self, _: EpochId, rows: &RecordBatch) -> Result<()> {
        let degrees = rows.column_by_name("degrees").and_then(|column| column.as_primitive_opt::<Float64Type>());
        let degrees = degrees.ok_or_else(|| Error::config("the table of alarms has no column `degrees`"))?;
        self.open.extend(degrees.iter().flatten());
        Ok(())
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        let alarms = std::mem::take(&mut self.open);
        if alarms.is_empty() {
            return Ok(Prepared::default());
        }
        let rows = alarms.len() as u64;
        self.book.0.lock().unwrap_or_else(PoisonError::into_inner).prepared.insert(id, alarms);
        let handle = serde_json::to_value(id).map_err(|e| Error::internal("could not write a handle").because(e))?;
        Ok(Prepared { handle: Some(handle), rows, bytes: 8 * rows, ..Prepared::default() })
    }

    fn end(&mut self) {}

    fn held_bytes(&self) -> usize {
        self.open.len() * size_of::<f64>()
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(self.book.clone())
    }
}

#[async_trait]
impl Committer for AlarmBook {
    /// To commit twice is to commit once.
    async fn commit(&self, id: EpochId, _: &Handle) -> Result<()> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(alarms) = pages.prepared.remove(&id) {
            pages.written.insert(id, alarms);
        }
        if pages.written.contains_key(&id) {
            return Ok(());
        }
        Err(Error::internal(format!("epoch {} was never prepared", id.epoch)))
    }

    /// Throws away what an earlier process prepared and never recorded.
    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pages.prepared.len();
        let kept = |id: &EpochId| serde_json::to_value(id).is_ok_and(|handle| keep.contains(&handle));
        pages.prepared.retain(|id, _| id.generation >= generation || kept(id));
        Ok((before - pages.prepared.len()) as u64)
    }
}
