//! Decoders: bytes to Arrow, and rejects with a reason.
//!
//! [`decoder`] makes the decoder of a source from its [`DecoderSettings`];
//! [`infer`] proposes the columns where the pipeline file declares none.
//! Values are parsed straight into typed columns, which can be rolled back to
//! the rows before: there is no tree of a document in between, and a record
//! that does not fit costs neither its neighbours nor a second try.

mod archiving;
mod avro;
pub(crate) mod base64;
mod batch;
mod cloudwatch;
mod column;
mod csv;
mod discover;
mod infer;
mod json;
mod names;
mod number;
mod parquet;
mod protobuf;
mod provenance;
mod raw;
mod rows;
mod settings;
mod steps;
#[cfg(test)]
mod testing;
mod time;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;

pub use self::avro::AvroSchema;
pub use self::cloudwatch::cloudwatch_columns;
pub use self::discover::{Discovery, FOUND_MAX};
pub use self::infer::infer;
pub use self::protobuf::ProtobufMessage;
use self::settings::Plan;
pub use self::settings::{
    AvroEncoding, AvroWriter, BATCH_ROWS_MAX, DecoderSettings, FormatSettings, RECORD_BYTES_LIMIT, UnknownColumns,
};
use self::steps::Stepped;
use crate::batch::{Chunk, Payload};
use crate::error::{Error, Result};

/// A record that does not decode, on its way to the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Place within the partition.
    pub offset: String,
    /// The bytes as they came.
    pub raw: Bytes,
    /// What is wrong, for people: column, value, expected type.
    pub reason: String,
    /// The record's key, if its source has one.
    pub key: Option<String>,
    /// The line that names the columns, if the record is a line that means nothing without.
    pub header: Option<Bytes>,
    /// Whether the bytes are the whole record, so that they may be decoded again after a fix.
    pub redrivable: bool,
}

impl Reject {
    /// Makes a reject of which not all bytes are known, or which mean nothing by themselves.
    pub fn in_part(offset: String, raw: Bytes, reason: String) -> Self {
        Self { offset, raw, reason, key: None, header: None, redrivable: false }
    }
}

/// What became of some of a chunk's records.
///
/// `rows + rejects.len()` is the number of records, where a record is what the
/// format counts: a line, a document, a row.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The good rows, in the order of their records; columns as [`Decoder::schema`] says.
    pub batches: Vec<RecordBatch>,
    /// The bad records.
    pub rejects: Vec<Reject>,
    /// Records that hold no row by their nature, such as one that only tries whether its destination can be reached.
    pub skipped: u64,
    /// The records as they came, with the columns of [`crate::archive::schema`], where they are archived.
    pub archived: Vec<RecordBatch>,
}

/// What becomes of a chunk's records, a step at a time and in their order. After an error there is no further step.
pub type Steps<'a> = Box<dyn Iterator<Item = Result<Decoded>> + Send + 'a>;

/// Turns the records of chunks into rows.
///
/// # Contract
///
/// - It is called on a CPU thread and does no input or output.
/// - One bad record never costs another: the rest of the chunk is decoded.
/// - A value that does not fit its declared type is a reject, never a NULL.
/// - It holds nothing from chunk to chunk, so that chunks may be decoded side
///   by side and in any order.
/// - A step holds about one batch, and rejects of about as many bytes, however many rows and rejects the chunk makes:
///   a MiB of `{}` is a third of a million rows. The next step is taken when the one before has been passed on.
/// - An error of kind `Data` says that nothing of the rest of the chunk can be decoded, such as a row group whose types
///   cannot be the declared ones: the rest goes to the quarantine as one reject. Any other error means a bug or a
///   limit, and stops the run.
pub trait Decoder: Send + Sync {
    /// Gives the columns of every decoded batch: the declared ones, `_rescued`
    /// where unknown columns are rescued, and the provenance.
    fn schema(&self) -> SchemaRef;
    /// Decodes one chunk, as far as its steps are taken.
    fn decode<'a>(&'a self, chunk: &'a Chunk) -> Steps<'a>;
}

/// Takes all steps of a chunk, whose rows and rejects must fit in memory together.
pub fn decode_whole(decoder: &dyn Decoder, chunk: &Chunk) -> Result<Decoded> {
    let mut whole = Decoded::default();
    for step in decoder.decode(chunk) {
        let step = step?;
        whole.batches.extend(step.batches);
        whole.rejects.extend(step.rejects);
        whole.skipped += step.skipped;
        whole.archived.extend(step.archived);
    }
    Ok(whole)
}

/// Makes the decoder of a source.
///
/// Says so (kind `Config`) if a column's type cannot be decoded, or a name is taken.
pub fn decoder(settings: DecoderSettings) -> Result<Box<dyn Decoder>> {
    Ok(Box::new(FormatDecoder { plan: Plan::new(settings)? }))
}

/// The decoder of every format: the settings say which.
struct FormatDecoder {
    plan: Plan,
}

impl FormatDecoder {
    fn steps<'a>(&'a self, chunk: &'a Chunk) -> Result<Steps<'a>> {
        let plan = &self.plan;
        Ok(match (&chunk.payload, &plan.settings.format) {
            (Payload::Batch { offset, rows }, _) => Box::new(batch::decode(plan, chunk, *offset, rows)?),
            (Payload::RowGroup(group), FormatSettings::Parquet) => Box::new(parquet::decode(plan, chunk, group)),
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::Json) => {
                Box::new(Stepped::new(plan, chunk, json::Documents::of(plan, chunk))?)
            }
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::Csv { header, delimiter, quote, nulls }) => {
                let dialect = csv::Dialect { header: *header, delimiter: *delimiter, quote: *quote, nulls };
                Box::new(Stepped::new(plan, chunk, csv::Lines::of(plan, dialect, chunk))?)
            }
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::Avro) => {
                Box::new(Stepped::new(plan, chunk, avro::Containers::of(plan, chunk)?)?)
            }
            (Payload::Records(records), FormatSettings::AvroRecords { schema, older, encoding }) => {
                let writers = avro::Writers { newest: schema, older, encoding: *encoding };
                Box::new(Stepped::new(plan, chunk, avro::Singles::of(plan, writers, records))?)
            }
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::Protobuf { message, delimited }) => {
                Box::new(Stepped::new(plan, chunk, protobuf::Messages::of(plan, message, *delimited, chunk))?)
            }
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::CloudWatchLogs) => {
                Box::new(Stepped::new(plan, chunk, cloudwatch::LogEvents::of(plan, chunk))?)
            }
            (Payload::Framed { .. } | Payload::Records(_), FormatSettings::Raw) => {
                Box::new(Stepped::new(plan, chunk, raw::Pieces::of(chunk))?)
            }
            (_, format) => {
                return Err(Error::internal(format!(
                    "could not decode a chunk of partition \"{}\": its payload is not one of format {format:?}",
                    chunk.partition
                )));
            }
        })
    }
}

impl Decoder for FormatDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.plan.schema)
    }

    fn decode<'a>(&'a self, chunk: &'a Chunk) -> Steps<'a> {
        self.steps(chunk).unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
    }
}
