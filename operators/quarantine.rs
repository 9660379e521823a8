//! The quarantine: a table of what could not be used, with the reason.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewBuilder, BooleanArray, Int32Array, RecordBatch, StringViewBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

pub mod read;

use crate::batch::{KEY_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN, timestamp_type};
use crate::error::Result;

/// The rule of rows of a table that Postgres has refused, which all other sinks have taken.
pub const REFUSED_RULE: &str = "refused by postgres";

const REASON: &str = "reason";
const RULE: &str = "rule";
const RAW: &str = "raw";
const HEADER: &str = "header";
const REDRIVABLE: &str = "redrivable";
const ATTEMPTS: &str = "attempts";

/// The metadata of a batch's schema that tells how often its rows have been sent again.
const ATTEMPTS_OF_BATCH: &str = "nexus.attempts";

/// One record or row that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The source it came from, if known.
    pub source: Option<String>,
    /// Its partition, if known.
    pub partition: Option<String>,
    /// Its place within the partition, if known.
    pub offset: Option<String>,
    /// What is wrong, for people.
    pub reason: String,
    /// Which rule it broke: `decode`, `late`, or the name of an expectation; `redrive` if it fits its table no more.
    pub rule: String,
    /// The record's bytes as they came, or the row as JSON.
    pub raw: Bytes,
    /// The record's key, if its source has one.
    pub key: Option<String>,
    /// The line that names the columns, if the record is a line that means nothing without.
    pub header: Option<Bytes>,
    /// Whether `raw` is all that is needed to send it again.
    pub redrivable: bool,
    /// How often it has been sent again.
    pub attempts: u32,
}

/// Gives the columns of every quarantine table.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("table", DataType::Utf8View, false),
        Field::new(REASON, DataType::Utf8View, false),
        Field::new(RULE, DataType::Utf8View, false),
        Field::new(RAW, DataType::BinaryView, false),
        Field::new(SOURCE_COLUMN, DataType::Utf8View, true),
        Field::new(PARTITION_COLUMN, DataType::Utf8View, true),
        Field::new(OFFSET_COLUMN, DataType::Utf8View, true),
        Field::new("quarantined_at", timestamp_type(), false),
        // Files that were written before these columns do not have them.
        Field::new(KEY_COLUMN, DataType::Utf8View, true),
        Field::new(HEADER, DataType::BinaryView, true),
        Field::new(REDRIVABLE, DataType::Boolean, true),
        Field::new(ATTEMPTS, DataType::Int32, true),
    ]))
}

/// Notes with rows that are sent again how often they have been, for whoever may refuse them once more.
pub fn with_attempts(rows: &RecordBatch, attempts: u32) -> Result<RecordBatch> {
    Ok(rows.clone().with_schema(noting(&rows.schema(), attempts))?)
}

/// Gives a schema that tells how often its rows have been sent again.
pub(crate) fn noting(schema: &Schema, attempts: u32) -> SchemaRef {
    let mut metadata = schema.metadata().clone();
    metadata.insert(ATTEMPTS_OF_BATCH.to_owned(), attempts.to_string());
    Arc::new(schema.clone().with_metadata(metadata))
}

/// Tells how often rows of a schema have been sent again.
pub(crate) fn attempts_of(schema: &Schema) -> u32 {
    schema.metadata().get(ATTEMPTS_OF_BATCH).and_then(|attempts| attempts.parse().ok()).unwrap_or(0)
}

/// Makes a batch of the quarantine table of `table` (a source's or a table's name).
pub fn batch(table: &str, rows: &[Quarantined], now_us: i64) -> Result<RecordBatch> {
    let mut tables = StringViewBuilder::new();
    let mut reasons = StringViewBuilder::new();
    let mut rules = StringViewBuilder::new();
    let mut raws = BinaryViewBuilder::new();
    let mut sources = StringViewBuilder::new();
    let mut partitions = StringViewBuilder::new();
    let mut offsets = StringViewBuilder::new();
    let mut keys = StringViewBuilder::new();
    let mut headers = BinaryViewBuilder::new();
    for row in rows {
        tables.append_value(table);
        reasons.append_value(&row.reason);
        rules.append_value(&row.rule);
        raws.append_value(&row.raw);
        sources.append_option(row.source.as_deref());
        partitions.append_option(row.partition.as_deref());
        offsets.append_option(row.offset.as_deref());
        keys.append_option(row.key.as_deref());
        headers.append_option(row.header.as_deref());
    }
    let redrivable = BooleanArray::from_iter(rows.iter().map(|row| Some(row.redrivable)));
    let attempts = rows.iter().map(|row| i32::try_from(row.attempts).unwrap_or(i32::MAX));
    let attempts = Int32Array::from_iter_values(attempts);
    let times = TimestampMicrosecondArray::from_value(now_us, rows.len()).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(tables.finish()),
        Arc::new(reasons.finish()),
        Arc::new(rules.finish()),
        Arc::new(raws.finish()),
        Arc::new(sources.finish()),
        Arc::new(partitions.finish()),
        Arc::new(offsets.finish()),
        Arc::new(times),
        Arc::new(keys.finish()),
        Arc::new(headers.finish()),
        Arc::new(redrivable),
        Arc::new(attempts),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
