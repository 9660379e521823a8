//! Rows of prepared epochs that are not yet where they go, as files in the state store.
//!
//! A file is an Arrow IPC stream in a frame of Zstandard, named
//! `<generation>-<epoch>-<n>.arrow.zst`; with rows that Postgres cannot hold,
//! as the quarantine has them, `<generation>-<epoch>-<n>.refused.zst`.

use std::collections::VecDeque;
use std::io::Write;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use zstd::stream::{read::Decoder, write::Encoder};

use crate::error::{Error, Result};
use crate::fail;
use crate::quarantine::{attempts_of, noting};
use crate::sink::{EpochId, SpooledFile};
use crate::store::Store;

/// Bytes of rows in one file. A commit holds one file at a time, decompressed
/// and encoded for COPY, and the next one as it is stored (decompressed too,
/// once rows were refused): this bounds its memory, and files of this size
/// cost an object store few requests.
const FILE_BYTES_MAX: usize = 16 << 20;

/// Fast, and a third of the size for rows that look alike.
const ZSTD_LEVEL: i32 = 1;

/// What the compressor keeps of the rows it was given last, at level 1: its window, in which it looks for what it has
/// seen before.
const WINDOW_BYTES: usize = 512 << 10;

/// How the names of files with rows end.
pub(crate) const ROWS: &str = ".arrow.zst";

/// How the names of files end with rows that Postgres cannot hold.
pub(crate) const REFUSED: &str = ".refused.zst";

/// Takes rows into files.
pub(crate) struct Spool {
    store: Store,
    schema: SchemaRef,
    /// How the files' names end.
    ending: &'static str,
    /// The file that takes rows.
    open: Option<OpenFile>,
    /// Files that are complete and not yet stored.
    full: VecDeque<(SpooledFile, Bytes)>,
    /// The epoch's files that are stored.
    stored: Vec<SpooledFile>,
}

struct OpenFile {
    writer: StreamWriter<Encoder<'static, Vec<u8>>>,
    bytes: usize,
    rows: u64,
    /// How often the rows have been sent again: all of a file as often.
    attempts: u32,
}

impl Spool {
    pub(crate) fn new(store: Store, schema: SchemaRef, ending: &'static str) -> Self {
        Self { store, schema, ending, open: None, full: VecDeque::new(), stored: Vec::new() }
    }

    /// Stores the files that are full. It can be called again after an error.
    pub(crate) async fn make_room(&mut self) -> Result<()> {
        while let Some((file, bytes)) = self.full.front() {
            fail::point("before_spool")?;
            if !fail::mutated("no_spool") {
                self.store.put(&file.name, bytes.clone()).await?;
            }
            fail::point("after_spool")?;
            self.stored.push(file.clone());
            self.full.pop_front();
        }
        Ok(())
    }

    /// Takes rows in wire form. The caller has made room.
    pub(crate) fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        let attempts = attempts_of(&rows.schema());
        if self.open.as_ref().is_some_and(|file| file.attempts != attempts) {
            self.close(id)?;
        }
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(OpenFile::new(&self.schema, attempts)?),
        };
        file.writer.write(rows)?;
        file.rows += rows.num_rows() as u64;
        for column in rows.columns() {
            // Of the rows alone: a slice shares the memory of the whole.
            file.bytes += column.to_data().get_slice_memory_size()?;
        }
        if file.bytes >= FILE_BYTES_MAX { self.close(id) } else { Ok(()) }
    }

    /// Gives the bytes of memory that rows take which are not yet stored.
    pub(crate) fn held_bytes(&self) -> usize {
        let full: usize = self.full.iter().map(|(_, bytes)| bytes.len()).sum();
        full + self.open.as_ref().map_or(0, OpenFile::held_bytes)
    }

    /// Stores all that is left of the epoch; gives its files.
    pub(crate) async fn finish(&mut self, id: EpochId) -> Result<Vec<SpooledFile>> {
        self.make_room().await?;
        self.close(id)?;
        self.make_room().await?;
        Ok(std::mem::take(&mut self.stored))
    }

    fn close(&mut self, id: EpochId) -> Result<()> {
        if let Some(file) = self.open.take() {
            let number = self.stored.len() + self.full.len();
            let name = format!("{}-{}-{number}{}", id.generation, id.epoch, self.ending);
            let rows = file.rows;
            let bytes = file.finish()?;
            self.full.push_back((SpooledFile { name, rows, bytes: bytes.len() as u64 }, bytes));
        }
        Ok(())
    }
}

impl OpenFile {
    fn new(schema: &SchemaRef, attempts: u32) -> Result<Self> {
        let frame = Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        let schema = if attempts > 0 { noting(schema, attempts) } else { schema.clone() };
        Ok(Self { writer: StreamWriter::try_new(frame, &schema)?, bytes: 0, rows: 0, attempts })
    }

    fn held_bytes(&self) -> usize {
        self.bytes.min(WINDOW_BYTES) + self.writer.get_ref().get_ref().capacity()
    }

    fn finish(self) -> Result<Bytes> {
        let mut frame = self.writer.into_inner()?;
        frame.flush()?;
        Ok(frame.finish()?.into())
    }
}

/// Reads the rows of a file.
pub(crate) fn read(file: &[u8]) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    let frame = Decoder::new(file)?;
    let reader = StreamReader::try_new(frame, None)?;
    Ok(reader.map(|batch| batch.map_err(|e| Error::internal("a file of the spool is damaged").because(e))))
}

/// Tells how often the rows of a file have been sent again.
#[cfg(feature = "postgres")]
pub(crate) fn attempts(file: &[u8]) -> Result<u32> {
    Ok(attempts_of(&StreamReader::try_new(Decoder::new(file)?, None)?.schema()))
}

/// Gives the epoch in a file's name.
pub(crate) fn epoch_of(name: &str) -> Option<EpochId> {
    let mut numbers = name
        .strip_suffix(ROWS)
        .or_else(|| name.strip_suffix(REFUSED))?
        .split('-')
        .map(|number| number.parse::<u64>().ok());
    let (generation, epoch) = (numbers.next()??, numbers.next()??);
    (numbers.next()?.is_some() && numbers.next().is_none()).then_some(EpochId { generation, epoch })
}
