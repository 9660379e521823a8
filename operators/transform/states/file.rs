//! A file of states in their order: an Arrow IPC file, whose footer says which block holds which places.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::writer::FileWriter;
use bytes::Bytes;

use super::order::{Order, Place};
use super::sweep::Sweep;
use crate::error::{Error, Result};
use crate::transform::filter::Filter;

/// Under this name the footer holds the index: for each block the ends and the hashes of the keys of its
/// first and its last state, and its size in memory, as JSON.
const INDEX: &str = "nexus.blocks";

/// Under this name it tells how far a sweep had come, as JSON.
const SWEEP: &str = "nexus.sweep";

/// Under this name the footer holds what is asked of sessions: for each block its [`Block::openings`], and the words of
/// the filter of their keys, as JSON.
const SESSIONS: &str = "nexus.sessions";

/// What an Arrow IPC file begins with; a stream does not.
const MAGIC: &[u8] = b"ARROW1";

/// An end at which states of sessions stand, and the first time of all that stand there.
pub type Opening = (i64, i64);

/// States that are read at once.
pub struct Block {
    /// Where its first state stands.
    pub first: Place,
    /// Where its last state stands.
    pub last: Place,
    /// What it takes in memory, in bytes.
    pub bytes: usize,
    /// Of sessions, the first times by ends, in order.
    pub openings: Vec<Opening>,
    /// The states, if they are in memory.
    pub rows: Option<RecordBatch>,
}

/// An open file of states.
pub struct BlockFile(Box<FileReader<BufReader<File>>>);

/// A file of states in order.
pub struct Ordered {
    /// The file.
    pub file: BlockFile,
    /// What it holds, none of it in memory.
    pub blocks: Vec<Block>,
    /// Of sessions, which keys there are.
    pub filter: Option<Filter>,
    /// How far a sweep had come.
    pub sweep: Sweep,
}

/// What was found in a file.
pub enum Found {
    /// States in order.
    Ordered(Ordered),
    /// States in another order than this program's.
    Rows(Vec<RecordBatch>),
    /// States of an earlier format, without order.
    Stream(Vec<RecordBatch>),
}

impl BlockFile {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// `Config` if it is damaged.
    pub fn open(mut file: File, order: &Order) -> Result<Found> {
        let mut magic = [0; MAGIC.len()];
        // Who has just written it stands at its end.
        file.rewind()?;
        let is_file = file.read_exact(&mut magic).is_ok() && magic == MAGIC;
        file.rewind()?;
        if !is_file {
            let rows = StreamReader::try_new_buffered(file, None).and_then(Iterator::collect).map_err(damaged)?;
            return Ok(Found::Stream(rows));
        }
        let mut reader = FileReader::try_new_buffered(file, None).map_err(damaged)?;
        let sweep = reader.custom_metadata().get(SWEEP);
        let sweep = sweep.map_or(Ok(Sweep::default()), |sweep| serde_json::from_str(sweep)).map_err(damaged)?;
        if let Some((blocks, filter)) = blocks(&mut reader, order)? {
            return Ok(Found::Ordered(Ordered { file: Self(Box::new(reader)), blocks, filter, sweep }));
        }
        if sweep.through_epoch.is_some() {
            let message = "a state was being written again by another version of this program, which orders keys \
                           otherwise; run that version for some epochs more";
            return Err(Error::config(message));
        }
        // The first block has been read already.
        reader.set_index(0).map_err(damaged)?;
        Ok(Found::Rows(reader.collect::<std::result::Result<_, _>>().map_err(damaged)?))
    }

    /// Reads a block.
    pub fn read(&mut self, block: usize) -> Result<RecordBatch> {
        read(&mut self.0, block)
    }
}

/// Makes a file of states in order; nothing if there is none. Unless they are to be kept, they leave the memory on the way.
pub fn encode(
    schema: &SchemaRef,
    blocks: &mut [Block],
    filter: Option<&Filter>,
    sweep: Sweep,
    keep: bool,
) -> Result<Option<Bytes>> {
    if blocks.is_empty() {
        return Ok(None);
    }
    // In a file they take about what they take in memory; what is too little would be taken twice while it grows.
    let bytes: usize = blocks.iter().map(|block| block.bytes).sum();
    let mut writer = FileWriter::try_new(Vec::with_capacity(bytes), schema)?;
    for block in blocks.iter_mut() {
        let rows = if keep { block.rows.clone() } else { block.rows.take() };
        rows.iter().try_for_each(|rows| writer.write(rows))?;
    }
    let entry = |block: &Block| (block.first.end_us, block.first.key, block.last.end_us, block.last.key, block.bytes);
    let failed = |e| Error::internal("could not write an index").because(e);
    let index: Vec<_> = blocks.iter().map(entry).collect();
    writer.write_metadata(INDEX, serde_json::to_string(&index).map_err(failed)?);
    if sweep != Sweep::default() {
        writer.write_metadata(SWEEP, serde_json::to_string(&sweep).map_err(failed)?);
    }
    if let Some(filter) = filter {
        let openings: Vec<_> = blocks.iter().map(|block| &block.openings).collect();
        let words: Vec<u32> = filter.bytes().map(u32::from_le_bytes).collect();
        writer.write_metadata(SESSIONS, serde_json::to_string(&(openings, words)).map_err(failed)?);
    }
    writer.finish()?;
    Ok(Some(writer.into_inner()?.into()))
}

/// Reads a file's index; nothing if it has none, or one by another hash.
fn blocks(reader: &mut FileReader<BufReader<File>>, order: &Order) -> Result<Option<(Vec<Block>, Option<Filter>)>> {
    let Some(index) = reader.custom_metadata().get(INDEX) else { return Ok(None) };
    let index: Vec<(i64, u64, i64, u64, usize)> = serde_json::from_str(index).map_err(damaged)?;
    if index.len() != reader.num_batches() || index.is_empty() {
        return Err(damaged(format!("{} blocks, and {} in the index", reader.num_batches(), index.len())));
    }
    let block = |(first_end, first_key, last_end, last_key, bytes)| {
        let [first, last] = [(first_end, first_key), (last_end, last_key)].map(|(end_us, key)| Place { end_us, key });
        Block { first, last, bytes, openings: Vec::new(), rows: None }
    };
    let mut blocks: Vec<_> = index.into_iter().map(block).collect();
    // Another version of this program may hash otherwise.
    let places = order.places(&read(reader, 0)?)?;
    let same = places.first() == blocks.first().map(|block| &block.first);
    if !same || order.sessions().is_none() {
        return Ok(same.then_some((blocks, None)));
    }
    let Some(index) = reader.custom_metadata().get(SESSIONS) else { return Ok(None) };
    let (openings, words): (Vec<Vec<Opening>>, Vec<u32>) = serde_json::from_str(index).map_err(damaged)?;
    if openings.len() != blocks.len() || words.is_empty() {
        let (expected, found) = (blocks.len(), openings.len());
        return Err(damaged(format!("{expected} blocks, and {found} with a filter of {} words", words.len())));
    }
    blocks.iter_mut().zip(openings).for_each(|(block, openings)| block.openings = openings);
    let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    Ok(Some((blocks, Some(Filter::from_bytes(&words)))))
}

fn read(reader: &mut FileReader<BufReader<File>>, block: usize) -> Result<RecordBatch> {
    reader.set_index(block).map_err(damaged)?;
    reader.next().transpose().map_err(damaged)?.ok_or_else(|| damaged(format!("block {block} is missing")))
}

fn damaged(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::config("a file of state is damaged; restore it from a copy of the state").because(cause)
}
