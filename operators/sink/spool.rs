//! Rows of prepared epochs that are not yet where they go, as files in the state store.
//!
//! A file is an Arrow IPC stream in a frame of LZ4, named
//! `<generation>-<epoch>-<n>.arrow.lz4`; with rows that Postgres cannot hold,
//! as the quarantine has them, `<generation>-<epoch>-<n>.refused.lz4`. Earlier
//! versions wrote frames of Zstandard (`.zst`), which are read too.

use std::collections::VecDeque;
use std::io::Read;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use crate::error::{Error, Result};
use crate::fail;
use crate::quarantine::{attempts_of, noting};
use crate::sink::{EpochId, SpooledFile};
use crate::store::Store;

/// Bytes of rows in one file. A commit holds one file at a time, decompressed
/// and encoded for COPY, and the next one as it is stored: this bounds its
/// memory, and files of this size cost an object store few requests.
const FILE_BYTES_MAX: usize = 16 << 20;

/// What the compressor takes at once. LZ4 is half the size for rows that look alike, for a third of the time that
/// Zstandard takes, which makes them smaller: they are written once, read once, and gone.
const BLOCK: (BlockSize, usize) = (BlockSize::Max256KB, 256 << 10);

/// How a frame of Zstandard begins (RFC 8878).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How the names of files with rows end.
pub(crate) const ROWS: &str = ".arrow.lz4";

/// How the names of files end with rows that Postgres cannot hold.
pub(crate) const REFUSED: &str = ".refused.lz4";

/// How both ended in earlier versions.
const EARLIER: [&str; 2] = [".arrow.zst", ".refused.zst"];

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
    writer: StreamWriter<FrameEncoder<Vec<u8>>>,
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
        // Damage is found by the checksums.
        let info = FrameInfo::new().block_size(BLOCK.0).block_checksums(true);
        let frame = FrameEncoder::with_frame_info(info, Vec::new());
        let schema = if attempts > 0 { noting(schema, attempts) } else { schema.clone() };
        Ok(Self { writer: StreamWriter::try_new(frame, &schema)?, bytes: 0, rows: 0, attempts })
    }

    fn held_bytes(&self) -> usize {
        self.bytes.min(2 * BLOCK.1) + self.writer.get_ref().get_ref().capacity()
    }

    fn finish(self) -> Result<Bytes> {
        let frame = self.writer.into_inner()?;
        let bytes = frame.finish().map_err(|e| Error::internal("could not pack rows").because(e))?;
        Ok(bytes.into())
    }
}

/// Reads the rows of a file.
pub(crate) fn read(file: &[u8]) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    Ok(open(file)?.map(|batch| batch.map_err(|e| Error::internal("a file of the spool is damaged").because(e))))
}

/// Tells how often the rows of a file have been sent again.
#[cfg(feature = "postgres")]
pub(crate) fn attempts(file: &[u8]) -> Result<u32> {
    Ok(attempts_of(&open(file)?.schema()))
}

fn open<'a>(file: &'a [u8]) -> Result<StreamReader<Box<dyn Read + Send + 'a>>> {
    let frame: Box<dyn Read + Send + 'a> = match file.starts_with(&ZSTD_MAGIC) {
        true => Box::new(zstd::stream::read::Decoder::new(file)?),
        false => Box::new(FrameDecoder::new(file)),
    };
    Ok(StreamReader::try_new(frame, None)?)
}

/// Gives the epoch in a file's name.
pub(crate) fn epoch_of(name: &str) -> Option<EpochId> {
    let numbers = [ROWS, REFUSED].into_iter().chain(EARLIER).find_map(|ending| name.strip_suffix(ending))?;
    let mut numbers = numbers.split('-').map(|number| number.parse::<u64>().ok());
    let (generation, epoch) = (numbers.next()??, numbers.next()??);
    (numbers.next()?.is_some() && numbers.next().is_none()).then_some(EpochId { generation, epoch })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    #[tokio::test]
    async fn rows_come_back_and_those_of_earlier_versions_too() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), &Default::default()).await.unwrap();
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..50_000).map(|n| format!("a row that looks like all others but for {n}"))));
        let rows = RecordBatch::try_from_iter([("text", texts)]).unwrap();
        let mut spool = Spool::new(store.clone(), rows.schema(), ROWS);
        let id = EpochId { generation: 2, epoch: 7 };
        spool.write(id, &rows).unwrap();
        let files = spool.finish(id).await.unwrap();
        let [file] = &files[..] else { panic!("{files:?}") };
        assert_eq!((file.name.as_str(), file.rows, epoch_of(&file.name)), ("2-7-0.arrow.lz4", 50_000, Some(id)));
        let content = store.get(&file.name).await.unwrap().unwrap();
        assert!(content.len() < rows.get_array_memory_size() / 2, "{} bytes", content.len());
        assert_eq!(read(&content).unwrap().collect::<Result<Vec<_>>>().unwrap(), std::slice::from_ref(&rows));

        let mut damaged = content.to_vec();
        damaged[content.len() / 2] ^= 1;
        let found = read(&damaged).and_then(Iterator::collect::<Result<Vec<_>>>);
        assert!(found.is_err() || found.unwrap() != [rows.clone()]);

        let mut earlier = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let mut writer = StreamWriter::try_new(&mut earlier, &rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let earlier = earlier.finish().unwrap();
        assert_eq!(read(&earlier).unwrap().collect::<Result<Vec<_>>>().unwrap(), [rows]);
        assert_eq!(epoch_of("2-7-0.refused.zst"), Some(id));
        assert_eq!(epoch_of("2-7.arrow.lz4"), None);
    }
}
