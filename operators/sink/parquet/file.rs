//! One file in the making.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path as FsPath;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::SerializedFileWriter;

use super::columns::RowGroup;
use super::records::RecordWriter;
use crate::error::{Error, Result};

/// Size of each part of an upload but the last. Some stores demand equal parts,
/// S3 demands 5 MiB and allows 10 000 parts: with 8 MiB a file may have 78 GiB,
/// and a part takes well under a second to send.
pub(super) const PART_BYTES: usize = 8 << 20;

/// A file that takes rows.
pub(super) struct OpenFile {
    writer: Writer,
    /// The file's number in its epoch.
    pub(super) number: u64,
    /// Path relative to the table's folder.
    pub(super) path: String,
    /// Where it is written now, for messages.
    target: String,
    pub(super) rows: u64,
    /// Bytes that the encoder holds; kept here because to count them means to ask every column.
    pub(super) encoder_bytes: usize,
    /// When it last took rows, in calls of `write`.
    pub(super) used_at: u64,
}

/// What makes bytes of rows.
enum Writer {
    Parquet(Box<ParquetWriter>),
    Records(Box<RecordWriter>),
}

/// Encodes rows as Parquet.
struct ParquetWriter {
    writer: SerializedFileWriter<Output>,
    schema: SchemaRef,
    /// Makes the columns of row groups.
    columns: ArrowRowGroupWriterFactory,
    /// The row group that takes rows.
    open: Option<RowGroup>,
}

/// A file that is complete, but perhaps not yet durable.
pub(super) struct FinishedFile {
    pub(super) number: u64,
    pub(super) path: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// What is left to be sent, where the file is uploaded.
    pub(super) parts: Vec<Bytes>,
}

/// Where a file's bytes go.
pub(super) enum Output {
    /// To a file on this machine; what writes to it buffers.
    Disk(File),
    /// To memory, and from there in parts to an object store.
    Parts(Parts),
}

/// Bytes cut into parts of equal size.
#[derive(Default)]
pub(super) struct Parts {
    full: Vec<Bytes>,
    last: Vec<u8>,
    /// Bytes of the parts that have been taken.
    sent_bytes: u64,
}

impl OpenFile {
    /// Starts a Parquet file.
    pub(super) fn parquet(
        output: Output,
        schema: SchemaRef,
        options: ArrowWriterOptions,
        number: u64,
        path: String,
        target: String,
    ) -> Result<Self> {
        let writer = ArrowWriter::try_new_with_options(output, schema.clone(), options);
        let parts = writer.and_then(ArrowWriter::into_serialized_writer);
        let (writer, columns) = parts.map_err(|e| failed("start", &target, e))?;
        let writer = ParquetWriter { writer, schema, columns, open: None };
        Ok(Self::new(Writer::Parquet(Box::new(writer)), number, path, target))
    }

    /// Starts a file of records, which begins with these.
    pub(super) fn records(
        output: Output,
        gzip: bool,
        rows: &RecordBatch,
        number: u64,
        path: String,
        target: String,
    ) -> Result<Self> {
        let writer = RecordWriter::start(output, gzip, rows).map_err(|e| failed("start", &target, e.into()))?;
        Ok(Self::new(Writer::Records(Box::new(writer)), number, path, target))
    }

    fn new(writer: Writer, number: u64, path: String, target: String) -> Self {
        Self { writer, number, path, target, rows: 0, encoder_bytes: 0, used_at: 0 }
    }

    /// Encodes rows.
    pub(super) async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let written = match &mut self.writer {
            Writer::Parquet(writer) => writer.encode(rows).await,
            Writer::Records(writer) => writer.write(rows).map_err(ParquetError::from),
        };
        written.map_err(|e| failed("write to", &self.target, e))?;
        self.rows += rows.num_rows() as u64;
        self.encoder_bytes = match &self.writer {
            Writer::Parquet(writer) => writer.open.as_ref().map_or(0, RowGroup::memory_bytes),
            // Of what it holds, it lets nothing go before the file ends.
            Writer::Records(_) => 0,
        };
        Ok(())
    }

    /// Ends the row group that is being encoded, so that its memory is free.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if let Writer::Parquet(writer) = &mut self.writer {
            writer.end_row_group().await.map_err(|e| failed("write to", &self.target, e))?;
        }
        self.encoder_bytes = 0;
        Ok(())
    }

    /// Gives the bytes that wait in memory to become a part.
    pub(super) fn part_bytes(&self) -> usize {
        match self.writer.output() {
            Output::Disk(_) => 0,
            Output::Parts(parts) => parts.last.capacity(),
        }
    }

    /// Takes the parts that are full.
    pub(super) fn take_parts(&mut self) -> Vec<Bytes> {
        match self.writer.output_mut() {
            Output::Disk(_) => Vec::new(),
            Output::Parts(parts) => {
                parts.sent_bytes += (parts.full.len() * PART_BYTES) as u64;
                std::mem::take(&mut parts.full)
            }
        }
    }

    /// Writes the footer, with `metadata` and the number of rows.
    pub(super) async fn finish(mut self, metadata: Vec<KeyValue>) -> Result<FinishedFile> {
        self.flush().await?;
        let (number, rows) = (self.number, self.rows);
        let (path, target) = (std::mem::take(&mut self.path), std::mem::take(&mut self.target));
        self.writer.finish(metadata, rows).map_err(|e| failed("finish", &target, e))?;
        let (bytes, parts) = match self.writer.output_mut() {
            Output::Disk(file) => {
                let size = file.metadata().map(|meta| meta.len());
                (size.map_err(|e| Error::from(e).while_doing(format!("could not look at {target}")))?, Vec::new())
            }
            Output::Parts(parts) => {
                let Parts { mut full, last, sent_bytes } = std::mem::take(parts);
                let unsent_bytes: usize = full.iter().map(Bytes::len).sum();
                let bytes = sent_bytes + unsent_bytes as u64 + last.len() as u64;
                if !last.is_empty() {
                    full.push(last.into());
                }
                (bytes, full)
            }
        };
        Ok(FinishedFile { number, path, rows, bytes, parts })
    }
}

impl Writer {
    fn output(&self) -> &Output {
        match self {
            Self::Parquet(writer) => writer.writer.inner(),
            Self::Records(writer) => writer.output(),
        }
    }

    fn output_mut(&mut self) -> &mut Output {
        match self {
            Self::Parquet(writer) => writer.writer.inner_mut(),
            Self::Records(writer) => writer.output_mut(),
        }
    }

    fn finish(&mut self, metadata: Vec<KeyValue>, rows: u64) -> Result<(), ParquetError> {
        match self {
            Self::Parquet(parquet) => {
                let writer = &mut parquet.writer;
                for pair in metadata {
                    writer.append_key_value_metadata(pair);
                }
                writer.append_key_value_metadata(KeyValue::new("nexus.rows".into(), rows.to_string()));
                // Not `into_inner`, which tells of a full disk as if it were a mistake of the encoder.
                writer.finish().map(drop)
            }
            Self::Records(writer) => writer.finish().map_err(ParquetError::from),
        }
    }
}

impl ParquetWriter {
    async fn encode(&mut self, rows: &RecordBatch) -> parquet::errors::Result<()> {
        let properties = self.writer.properties();
        let rows_max = properties.max_row_group_row_count().unwrap_or(usize::MAX);
        let bytes_max = properties.max_row_group_bytes().unwrap_or(usize::MAX);
        let mut left = rows.clone();
        while left.num_rows() > 0 {
            let group = match &mut self.open {
                Some(group) => group,
                none => {
                    let place = self.writer.flushed_row_groups().len();
                    none.insert(RowGroup::new(self.columns.create_column_writers(place)?))
                }
            };
            let now = left.slice(0, group.room(rows_max, bytes_max).min(left.num_rows()));
            left = left.slice(now.num_rows(), left.num_rows() - now.num_rows());
            group.write(self.schema.fields(), &now).await?;
            if group.room(rows_max, bytes_max) == 0 {
                self.end_row_group().await?;
            }
        }
        Ok(())
    }

    async fn end_row_group(&mut self) -> parquet::errors::Result<()> {
        let Some(group) = self.open.take() else { return Ok(()) };
        let chunks = group.close().await?;
        let mut written = self.writer.next_row_group()?;
        for chunk in chunks {
            chunk.append_to_row_group(&mut written)?;
        }
        written.close()?;
        Ok(())
    }
}

impl Output {
    /// Starts a file on this machine.
    pub(super) fn on_disk(path: &FsPath) -> Result<Self> {
        let file = File::create(path)
            .map_err(|e| Error::from(e).while_doing(format!("could not stage a file at {}", path.display())))?;
        Ok(Self::Disk(file))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Disk(file) => file.write(bytes),
            Self::Parts(parts) => Ok(parts.write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Disk(file) => file.flush(),
            Self::Parts(_) => Ok(()),
        }
    }
}

impl Parts {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let fits = bytes.len().min(PART_BYTES - self.last.len());
        let (now, _) = bytes.split_at(fits);
        // What doubles might take twice a part.
        let wanted = self.last.len() + now.len();
        if wanted > self.last.capacity() {
            let capacity = wanted.max(self.last.capacity() * 2).min(PART_BYTES);
            self.last.reserve_exact(capacity - self.last.len());
        }
        self.last.extend_from_slice(now);
        if self.last.len() == PART_BYTES {
            self.full.push(std::mem::take(&mut self.last).into());
        }
        fits
    }
}

/// Turns an error of the encoder into ours: of the disk, or of Nexus.
fn failed(what: &str, path: &str, error: ParquetError) -> Error {
    let doing = format!("could not {what} the file {path}");
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(disk) => Error::from(*disk).while_doing(doing),
            Err(cause) => Error::internal(doing).because(cause),
        },
        other => Error::internal(doing).because(Arc::new(other)),
    }
}
