//! Records as they came, on their way to an archive: rows of bytes that its objects hold one behind the other.
//!
//! A record that does not decode is told of beside the archive as Amazon Data Firehose does it ("Handle failure in data
//! transformation", in its developer guide): a line of JSON with the record in base64.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewBuilder, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::Serialize;

use crate::batch::timestamp_type;
use crate::decode::base64;
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// Why a whole record was refused.
const NOT_DECODED: &str = "DecodeFailed";

/// Why a record was refused of which only the beginning is known.
const NOT_WHOLE: &str = "DecodeFailed.InPart";

/// Gives the columns of archived records: when they arrived, the line that their object begins with, if their format has
/// one, and the bytes, with what keeps them from the next record.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("arrived_at", timestamp_type(), false),
        Field::new("header", DataType::BinaryView, true),
        Field::new("record", DataType::BinaryView, false),
    ]))
}

/// Archived records under construction.
pub(crate) struct Archived {
    headers: BinaryViewBuilder,
    records: BinaryViewBuilder,
    rows: usize,
}

impl Archived {
    pub(crate) fn new() -> Self {
        // Records that follow on each other mostly have the same header.
        let headers = BinaryViewBuilder::new().with_deduplicate_strings();
        Self { headers, records: BinaryViewBuilder::new(), rows: 0 }
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, header: Option<&[u8]>, record: &[u8]) {
        self.headers.append_option(header);
        self.records.append_value(record);
        self.rows += 1;
    }

    /// Takes the records out, which have arrived at this time; nothing if there are none.
    pub(crate) fn take(&mut self, arrived_us: i64) -> Result<Option<RecordBatch>> {
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            return Ok(None);
        }
        let arrived = TimestampMicrosecondArray::from_value(arrived_us, rows).with_timezone("UTC");
        let columns: Vec<ArrayRef> =
            vec![Arc::new(arrived), Arc::new(self.headers.finish()), Arc::new(self.records.finish())];
        Ok(Some(RecordBatch::try_new(schema(), columns)?))
    }
}

/// A record that was refused, with the names that Amazon Data Firehose has for it, and behind them where it came from.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Refused<'a> {
    attempts_made: u32,
    arrival_timestamp: i64,
    error_code: &'static str,
    error_message: &'a str,
    attempt_ending_timestamp: i64,
    raw_data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_key: Option<&'a str>,
}

/// Gives the lines that tell of records that do not decode, which arrived at one time and were refused at another, both in
/// microseconds since the Unix epoch.
pub fn refused(rows: &[Quarantined], arrived_us: i64, refused_us: i64) -> Result<Option<RecordBatch>> {
    let mut archived = Archived::new();
    for row in rows {
        let refused = Refused {
            attempts_made: row.attempts + 1,
            arrival_timestamp: arrived_us.div_euclid(1000),
            error_code: if row.redrivable { NOT_DECODED } else { NOT_WHOLE },
            error_message: &row.reason,
            attempt_ending_timestamp: refused_us.div_euclid(1000),
            raw_data: base64::encoded(&row.raw),
            source: row.source.as_deref(),
            partition: row.partition.as_deref(),
            offset: row.offset.as_deref(),
            partition_key: row.key.as_deref(),
        };
        let mut line = serde_json::to_vec(&refused)
            .map_err(|e| Error::internal("could not write a refused record as json").because(e))?;
        line.push(b'\n');
        archived.push(None, &line);
    }
    archived.take(arrived_us)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::array::{Array, AsArray};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_refused_record_is_told_of_as_firehose_does() {
        let row = Quarantined {
            source: Some("clicks".into()),
            partition: Some("shardId-000000000000".into()),
            offset: Some("49590338271490256608559692538361571095921575989136588898".into()),
            reason: "column \"n\": \"x\" is not an int64".into(),
            rule: "decode".into(),
            raw: Bytes::from_static(b"{\"n\":\"x\"}"),
            key: None,
            header: None,
            redrivable: true,
            attempts: 0,
        };
        let cut = Quarantined { redrivable: false, ..row.clone() };
        let batch = refused(&[row, cut], 1_793_000_000_123_456, 1_793_000_000_999_999).unwrap().unwrap();
        let lines = batch.column(2).as_binary_view();
        let line = std::str::from_utf8(lines.value(0)).unwrap();
        let expected = concat!(
            r#"{"attemptsMade":1,"arrivalTimestamp":1793000000123,"errorCode":"DecodeFailed","#,
            r#""errorMessage":"column \"n\": \"x\" is not an int64","attemptEndingTimestamp":1793000000999,"#,
            r#""rawData":"eyJuIjoieCJ9","source":"clicks","partition":"shardId-000000000000","#,
            r#""offset":"49590338271490256608559692538361571095921575989136588898"}"#,
            "\n",
        );
        assert_eq!(line, expected);
        assert!(std::str::from_utf8(lines.value(1)).unwrap().contains("\"errorCode\":\"DecodeFailed.InPart\""));
        assert!(batch.column(1).is_null(0));
        assert!(refused(&[], 0, 0).unwrap().is_none());
    }
}
