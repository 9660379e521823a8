//! The rows of prepared epochs, as files in the state store.
//!
//! A file is an Arrow IPC stream in a frame of Zstandard, named
//! `<generation>-<epoch>-<n>.arrow.zst`; with rows that Postgres cannot hold,
//! as the quarantine has them, `<generation>-<epoch>-<n>.refused.zst`.

use std::io::Write;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use zstd::stream::{read::Decoder, write::Encoder};

use crate::error::{Error, Result};
use crate::fail;
use crate::sink::EpochId;
use crate::store::Store;

/// Bytes of rows in one file. A commit holds one file at a time, decompressed
/// and encoded for COPY: this bounds its memory, and files of this size cost an
/// object store few requests.
const FILE_BYTES_MAX: usize = 16 << 20;

/// Fast, and a third of the size for rows that look alike.
const ZSTD_LEVEL: i32 = 1;

/// How the names of files with rows end.
pub(super) const ROWS: &str = ".arrow.zst";

/// How the names of files end with rows that Postgres cannot hold.
pub(super) const REFUSED: &str = ".refused.zst";

/// Takes rows into files.
pub(super) struct Spool {
    store: Store,
    schema: SchemaRef,
    /// How the files' names end.
    ending: &'static str,
    /// The file that takes rows.
    open: Option<OpenFile>,
    /// A file that is complete and not yet stored.
    full: Option<(String, Bytes)>,
    /// Names of the epoch's files, the open one not among them.
    names: Vec<String>,
    stored_bytes: u64,
}

struct OpenFile {
    writer: StreamWriter<Encoder<'static, Vec<u8>>>,
    bytes: usize,
}

impl Spool {
    pub(super) fn new(store: Store, schema: SchemaRef, ending: &'static str) -> Self {
        Self { store, schema, ending, open: None, full: None, names: Vec::new(), stored_bytes: 0 }
    }

    /// Stores the file that is full, if one is. It can be called again after an error.
    pub(super) async fn make_room(&mut self) -> Result<()> {
        if let Some((name, bytes)) = &self.full {
            fail::point("before_spool")?;
            if !fail::mutated("no_spool") {
                self.store.put(name, bytes.clone()).await?;
            }
            fail::point("after_spool")?;
            self.stored_bytes += bytes.len() as u64;
            self.names.push(name.clone());
            self.full = None;
        }
        Ok(())
    }

    /// Takes rows in wire form. The caller has made room.
    pub(super) fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(OpenFile::new(&self.schema)?),
        };
        file.writer.write(rows)?;
        for column in rows.columns() {
            // Of the rows alone: a slice shares the memory of the whole.
            file.bytes += column.to_data().get_slice_memory_size()?;
        }
        if file.bytes >= FILE_BYTES_MAX { self.close(id) } else { Ok(()) }
    }

    /// Stores all that is left of the epoch; gives the files' names and their size in bytes.
    pub(super) async fn finish(&mut self, id: EpochId) -> Result<(Vec<String>, u64)> {
        self.make_room().await?;
        self.close(id)?;
        self.make_room().await?;
        Ok((std::mem::take(&mut self.names), std::mem::take(&mut self.stored_bytes)))
    }

    fn close(&mut self, id: EpochId) -> Result<()> {
        if let Some(file) = self.open.take() {
            let name = format!("{}-{}-{}{}", id.generation, id.epoch, self.names.len(), self.ending);
            self.full = Some((name, file.finish()?));
        }
        Ok(())
    }
}

impl OpenFile {
    fn new(schema: &Schema) -> Result<Self> {
        let frame = Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        Ok(Self { writer: StreamWriter::try_new(frame, schema)?, bytes: 0 })
    }

    fn finish(self) -> Result<Bytes> {
        let mut frame = self.writer.into_inner()?;
        frame.flush()?;
        Ok(frame.finish()?.into())
    }
}

/// Reads the rows of a file.
pub(super) fn read(file: &[u8]) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    let frame = Decoder::new(file)?;
    let reader = StreamReader::try_new(frame, None)?;
    Ok(reader.map(|batch| batch.map_err(|e| Error::internal("a file of the spool is damaged").because(e))))
}

/// Gives the epoch in a file's name.
pub(super) fn epoch_of(name: &str) -> Option<EpochId> {
    let mut numbers = name
        .strip_suffix(ROWS)
        .or_else(|| name.strip_suffix(REFUSED))?
        .split('-')
        .map(|number| number.parse::<u64>().ok());
    let (generation, epoch) = (numbers.next()??, numbers.next()??);
    (numbers.next()?.is_some() && numbers.next().is_none()).then_some(EpochId { generation, epoch })
}
