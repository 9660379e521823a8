//! The quarantine: a table of what could not be used, with the reason.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewBuilder, RecordBatch, StringViewBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN, timestamp_type};
use crate::error::Result;

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
    /// Which rule it broke: `decode`, `late`, or the name of an expectation.
    pub rule: String,
    /// The record's bytes as they came, or the row as JSON.
    pub raw: Bytes,
}

/// Gives the columns of every quarantine table.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("table", DataType::Utf8View, false),
        Field::new("reason", DataType::Utf8View, false),
        Field::new("rule", DataType::Utf8View, false),
        Field::new("raw", DataType::BinaryView, false),
        Field::new(SOURCE_COLUMN, DataType::Utf8View, true),
        Field::new(PARTITION_COLUMN, DataType::Utf8View, true),
        Field::new(OFFSET_COLUMN, DataType::Utf8View, true),
        Field::new("quarantined_at", timestamp_type(), false),
    ]))
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
    for row in rows {
        tables.append_value(table);
        reasons.append_value(&row.reason);
        rules.append_value(&row.rule);
        raws.append_value(&row.raw);
        sources.append_option(row.source.as_deref());
        partitions.append_option(row.partition.as_deref());
        offsets.append_option(row.offset.as_deref());
    }
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
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
