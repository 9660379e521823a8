//! Decoders: bytes to Arrow, and rejects with a reason.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use crate::batch::Chunk;
use crate::error::Result;

/// A record that does not decode, on its way to the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Place within the partition.
    pub offset: String,
    /// The bytes as they came.
    pub raw: Bytes,
    /// What is wrong, for people: column, value, expected type.
    pub reason: String,
}

/// What became of a chunk's records.
///
/// `rows + rejects.len()` is the number of records, where a record is what the
/// format counts: a line, a document, a row.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The good rows, in the order of their records; columns as [`Decoder::schema`] says.
    pub batches: Vec<RecordBatch>,
    /// The bad records.
    pub rejects: Vec<Reject>,
}

/// Turns the records of chunks into rows.
///
/// # Contract
///
/// - It is called on a CPU thread and does no input or output.
/// - One bad record never costs another: the rest of the chunk is decoded.
/// - A value that does not fit its declared type is a reject, never a NULL.
/// - It holds nothing from chunk to chunk, so that chunks may be decoded side
///   by side and in any order.
/// - An error (as opposed to a reject) means a bug or a limit, and stops the run.
pub trait Decoder: Send + Sync {
    /// Gives the columns of every decoded batch: the declared ones, `_rescued`
    /// where unknown columns are rescued, and the provenance.
    fn schema(&self) -> SchemaRef;
    /// Decodes one chunk.
    fn decode(&self, chunk: &Chunk) -> Result<Decoded>;
}
