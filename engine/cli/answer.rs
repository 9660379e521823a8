//! Rows as people and programs want them: a table, CSV, JSON or Parquet, on standard output or in a file.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use futures::{Stream, StreamExt};

use crate::{Error, Result};

/// How rows are shown or written.
#[derive(Debug, Clone, clap::Args)]
pub struct Answer {
    /// How rows are written; as the suffix of --output says, or as a table, if not given.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the rows to this file instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns with borders, for people.
    Table,
    /// Comma-separated values, with a header.
    Csv,
    /// A JSON object a line.
    Json,
    /// A Parquet file.
    Parquet,
}

impl Answer {
    /// Writes all rows; gives how many they were.
    pub async fn write<S>(&self, columns: &SchemaRef, mut rows: S) -> Result<u64>
    where
        S: Stream<Item = Result<RecordBatch, DataFusionError>> + Unpin,
    {
        let written = self.write_all(columns, &mut rows).await;
        if let (Err(_), Some(path)) = (&written, &self.output) {
            // Half an answer looks like a whole one. What cannot be removed could not be written either.
            drop(std::fs::remove_file(path));
        }
        written
    }

    async fn write_all<S>(&self, columns: &SchemaRef, rows: &mut S) -> Result<u64>
    where
        S: Stream<Item = Result<RecordBatch, DataFusionError>> + Unpin,
    {
        let gone = Arc::new(AtomicBool::new(false));
        // Nothing is written before the first rows are there: a query that fails leaves a file that was there alone.
        let mut next = rows.next().await.transpose().map_err(failed)?;
        let mut writer = self.writer(columns, Out { to: self.open()?, gone: gone.clone() })?;
        let mut count = 0;
        while let Some(batch) = next {
            count += batch.num_rows() as u64;
            writer.write(batch)?;
            if gone.load(Ordering::Relaxed) {
                return Ok(count);
            }
            next = rows.next().await.transpose().map_err(failed)?;
        }
        writer.finish(columns)?;
        Ok(count)
    }

    fn open(&self) -> Result<Box<dyn Write + Send>> {
        let Some(path) = &self.output else { return Ok(Box::new(io::stdout())) };
        let file = File::create(path);
        let file = file.map_err(|e| Error::config(format!("could not write {}", path.display())).because(e))?;
        Ok(Box::new(BufWriter::new(file)))
    }

    fn writer(&self, columns: &SchemaRef, out: Out) -> Result<Writer> {
        Ok(match self.format() {
            Format::Table => Writer::Table(out, Vec::new()),
            Format::Csv => {
                // A header also where no row follows.
                let mut writer = csv::WriterBuilder::new().with_header(true).build(out);
                writer.write(&RecordBatch::new_empty(columns.clone()))?;
                Writer::Csv(Box::new(writer))
            }
            Format::Json => Writer::Json(WriterBuilder::new().with_explicit_nulls(true).build(out)),
            Format::Parquet if self.output.is_none() && io::stdout().is_terminal() => {
                return Err(Error::config(
                    "a Parquet file is nothing to read on a terminal; say where with `--output`",
                ));
            }
            Format::Parquet => {
                let writer = ArrowWriter::try_new(out, columns.clone(), None);
                Writer::Parquet(Box::new(writer.map_err(|e| failed(e.into()))?))
            }
        })
    }

    fn format(&self) -> Format {
        let suffix = self.output.as_ref().and_then(|path| path.extension()?.to_str());
        self.format.unwrap_or(match suffix {
            Some("csv") => Format::Csv,
            Some("json" | "jsonl" | "ndjson") => Format::Json,
            Some("parquet") => Format::Parquet,
            _ => Format::Table,
        })
    }
}

/// What writes rows in one format.
enum Writer {
    Table(Out, Vec<RecordBatch>),
    Csv(Box<csv::Writer<Out>>),
    Json(arrow::json::Writer<Out, LineDelimited>),
    Parquet(Box<ArrowWriter<Out>>),
}

impl Writer {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        match self {
            Writer::Table(_, all) => all.push(rows),
            Writer::Csv(writer) => writer.write(&rows)?,
            Writer::Json(writer) => writer.write(&rows)?,
            Writer::Parquet(writer) => writer.write(&rows).map_err(|e| failed(e.into()))?,
        }
        Ok(())
    }

    fn finish(self, columns: &SchemaRef) -> Result<()> {
        match self {
            Writer::Table(mut out, all) => {
                let table = pretty_format_batches_with_schema(columns.clone(), &all)?;
                writeln!(out, "{table}").and_then(|()| out.flush())?;
            }
            Writer::Csv(writer) => writer.into_inner().flush()?,
            Writer::Json(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush()?;
            }
            Writer::Parquet(writer) => writer.into_inner().map_err(|e| failed(e.into()))?.flush()?,
        }
        Ok(())
    }
}

/// Where rows go. A reader that has gone away is no error.
struct Out {
    to: Box<dyn Write + Send>,
    /// Shared with the loop that writes, which ends when it is set.
    gone: Arc<AtomicBool>,
}

impl Out {
    fn unless_gone<T>(&self, done: io::Result<T>, instead: T) -> io::Result<T> {
        match done {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.gone.store(true, Ordering::Relaxed);
                Ok(instead)
            }
            done => done,
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes);
        self.unless_gone(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.to.flush();
        self.unless_gone(flushed, ())
    }
}

/// Gives what DataFusion says of a query that it could not run.
pub fn failed(error: DataFusionError) -> Error {
    Error::config("could not run the query").because(error)
}
