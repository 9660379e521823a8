//! What travels between a source and its decoder, and the columns that every
//! source adds.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, TimeUnit};
use bytes::Bytes;

/// Name of the provenance column that holds the source's name.
pub const SOURCE_COLUMN: &str = "_source";
/// Name of the provenance column that holds the partition (shard, object, file).
pub const PARTITION_COLUMN: &str = "_partition";
/// Name of the provenance column that holds the offset within the partition.
pub const OFFSET_COLUMN: &str = "_offset";
/// Name of the provenance column that holds the time of reading.
pub const INGESTED_AT_COLUMN: &str = "_ingested_at";
/// Name of the provenance column that holds a Kinesis record's partition key.
pub const KEY_COLUMN: &str = "_key";
/// Name of the column that holds, as JSON, what the declared columns do not name.
pub const RESCUED_COLUMN: &str = "_rescued";
/// Name of the only column of format `raw`.
pub const RAW_COLUMN: &str = "_raw";

/// A piece of one partition: whole records, in order.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The shard, object or file the records come from.
    pub partition: Arc<str>,
    /// The records.
    pub payload: Payload,
    /// When the records were read, in microseconds since the Unix epoch.
    pub read_at_us: i64,
    /// How far this partition is behind its newest record, if the service tells.
    pub lag_ms: Option<u64>,
}

/// The records of a [`Chunk`], in the form in which their source has them.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Records back to back in decompressed content, never cut in the middle of one.
    Framed {
        /// Offset of the first byte in the partition's decompressed content.
        offset: u64,
        /// The content; its framing is the source's [`crate::framing::Framing`].
        bytes: Bytes,
        /// The content's first line, where the format has a header and `bytes` lies behind it.
        header: Option<Bytes>,
    },
    /// Records that the source keeps apart; each may hold one document or several.
    Records(Vec<Record>),
    /// One row group of a Parquet file: the footer and this group's column chunks.
    RowGroup(RowGroup),
    /// Rows that are typed already (generated, or handed over by an embedding service).
    Batch {
        /// Offset of the first row in the partition.
        offset: u64,
        /// The rows, with the source's declared columns and without provenance.
        rows: RecordBatch,
    },
}

/// One undecoded record of a source that keeps records apart.
#[derive(Debug, Clone)]
pub struct Record {
    /// Place within the partition: a Kinesis sequence number, `sequence:sub` inside an aggregate.
    pub offset: String,
    /// The partition key, if the source has one.
    pub key: Option<String>,
    /// The bytes as they came.
    pub data: Bytes,
}

/// The bytes that are needed to decode one row group of a Parquet file.
#[derive(Debug, Clone)]
pub struct RowGroup {
    /// Length of the whole file in bytes.
    pub file_len: u64,
    /// Pieces of the file by their offset: the footer with the metadata, and the column chunks.
    pub pieces: Vec<(u64, Bytes)>,
    /// Which row group of the file.
    pub index: usize,
    /// Rows of the file before this row group.
    pub first_row: u64,
}

impl Chunk {
    /// Tells whether there are no records: the source waits, and has not caught up.
    pub fn is_empty(&self) -> bool {
        matches!(&self.payload, Payload::Records(records) if records.is_empty())
    }

    /// Gives the place within the partition behind so many records, or of the first one where offsets count no rows.
    pub fn offset_behind(&self, records: u64) -> String {
        match &self.payload {
            Payload::Framed { offset, .. } => offset.to_string(),
            Payload::Batch { offset, .. } => (offset + records).to_string(),
            Payload::Records(all) => all.first().map(|record| record.offset.clone()).unwrap_or_default(),
            Payload::RowGroup(group) => (group.first_row + records).to_string(),
        }
    }

    /// Gives the bytes as they came; nothing where they mean nothing without the rest of their file.
    pub fn raw(&self) -> Bytes {
        match &self.payload {
            Payload::Framed { bytes, .. } => bytes.clone(),
            Payload::Records(records) => records.iter().flat_map(|record| record.data.iter().copied()).collect(),
            Payload::RowGroup(_) | Payload::Batch { .. } => Bytes::new(),
        }
    }

    /// Gives the size in bytes that backpressure counts.
    pub fn size_bytes(&self) -> usize {
        match &self.payload {
            Payload::Framed { bytes, .. } => bytes.len(),
            Payload::Records(records) => {
                records.iter().map(|r| r.data.len() + r.offset.len() + r.key.as_ref().map_or(0, String::len)).sum()
            }
            Payload::RowGroup(group) => group.pieces.iter().map(|(_, bytes)| bytes.len()).sum(),
            Payload::Batch { rows, .. } => rows.get_array_memory_size(),
        }
    }
}

/// Gives rows whose texts are their own: a batch that was cut or picked from others shares the buffers of all of them, and
/// would be written with every text in these.
pub fn without_shared_buffers(rows: &RecordBatch) -> RecordBatch {
    let own = |column: &ArrayRef| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => column.clone(),
        }
    };
    let columns = rows.columns().iter().map(own).collect();
    // The same columns with the same rows always fit.
    RecordBatch::try_new(rows.schema(), columns).unwrap_or_else(|_| rows.clone())
}

/// The Arrow type of `timestamp` columns: microseconds, UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// How a source numbers the records of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetKind {
    /// By bytes or rows: `_offset` is an `Int64`.
    Number,
    /// By a service's sequence numbers: `_offset` is text, and there is a `_key`.
    Sequence,
}

/// Gives the provenance columns that a source of this kind adds behind its own columns.
pub fn provenance_fields(offsets: OffsetKind) -> Vec<Field> {
    let offset = match offsets {
        OffsetKind::Number => DataType::Int64,
        OffsetKind::Sequence => DataType::Utf8View,
    };
    let mut fields = vec![
        Field::new(SOURCE_COLUMN, DataType::Utf8View, false),
        Field::new(PARTITION_COLUMN, DataType::Utf8View, false),
        Field::new(OFFSET_COLUMN, offset, false),
        Field::new(INGESTED_AT_COLUMN, timestamp_type(), false),
    ];
    if offsets == OffsetKind::Sequence {
        fields.push(Field::new(KEY_COLUMN, DataType::Utf8View, true));
    }
    fields
}
