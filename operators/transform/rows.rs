//! Rows between one operator and the next: in batches of a good size, under other columns, and on their way to the
//! quarantine as JSON, with their provenance.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{BatchCoalescer, cast};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use arrow::json::ReaderBuilder;
use arrow::json::writer::{JsonArray, Writer, WriterBuilder};
use bytes::Bytes;

use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// Rows in a batch of state: as many as DataFusion's own batches hold.
pub const STATE_BATCH_ROWS: usize = 8192;

/// Copies rows into batches of [`STATE_BATCH_ROWS`], which hold nothing but them.
pub fn coalesced(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(batches) };
    let mut coalescer = BatchCoalescer::new(first.schema(), STATE_BATCH_ROWS);
    for batch in batches {
        coalescer.push_batch(batch)?;
    }
    coalescer.finish_buffered_batch()?;
    std::iter::from_fn(|| coalescer.next_completed_batch()).map(shrunk).collect()
}

/// Gives back the memory that was reserved for rows that did not come: a few rows would hold as much as a whole batch.
fn shrunk(batch: RecordBatch) -> Result<RecordBatch> {
    let (schema, mut columns, rows) = batch.into_parts();
    columns.iter_mut().for_each(Array::shrink_to_fit);
    Ok(RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))?)
}

/// Makes quarantine entries of rows that broke `rule`, and have been sent again so often.
///
/// A row can be sent again if its JSON says all of it: a number that is none, for one, is NULL there.
pub fn quarantined(rows: &RecordBatch, rule: &str, reason: &str, attempts: u32) -> Result<Vec<Quarantined>> {
    let documents = as_json(rows)?;
    let schema = rows.schema();
    let says_all =
        |documents: &[Bytes], rows: &RecordBatch| from_json(documents, &schema).is_ok_and(|read| read == *rows);
    let all = says_all(&documents, rows);
    let mut entries = entries(rows, documents, rule, reason)?;
    for (row, entry) in entries.iter_mut().enumerate() {
        entry.attempts = attempts;
        entry.redrivable = all || says_all(std::slice::from_ref(&entry.raw), &rows.slice(row, 1));
    }
    Ok(entries)
}

/// Makes quarantine entries of rows that came too late to be used ever.
pub fn late(rows: &RecordBatch, reason: &str) -> Result<Vec<Quarantined>> {
    entries(rows, as_json(rows)?, "late", reason)
}

fn entries(rows: &RecordBatch, documents: Vec<Bytes>, rule: &str, reason: &str) -> Result<Vec<Quarantined>> {
    let [sources, partitions, offsets] = [SOURCE_COLUMN, PARTITION_COLUMN, OFFSET_COLUMN].map(|name| texts(rows, name));
    let (sources, partitions, offsets) = (sources?, partitions?, offsets?);
    let at = |column: &Option<arrow::array::StringArray>, row: usize| {
        column.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
    };
    let entry = |(row, raw): (usize, Bytes)| Quarantined {
        source: at(&sources, row),
        partition: at(&partitions, row),
        offset: at(&offsets, row),
        reason: reason.to_owned(),
        rule: rule.to_owned(),
        raw,
        key: None,
        header: None,
        redrivable: false,
        attempts: 0,
    };
    Ok(documents.into_iter().enumerate().map(entry).collect())
}

/// Gives the columns under which the rows of a query are stored and read by others: timestamps in microseconds,
/// whatever unit a function gives, since neither Postgres nor Spark knows finer ones.
pub fn stored_schema(schema: &Schema) -> SchemaRef {
    let stored = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Timestamp(_, zone) => {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            Arc::new(field.as_ref().clone().with_data_type(micros))
        }
        _ => field.clone(),
    });
    Arc::new(Schema::new(stored.collect::<Vec<_>>()))
}

/// Gives rows under the columns of `schema`, which has the same columns in the same order.
///
/// A plan may drop nullability and metadata on the way; the schema is what others were planned on.
pub fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = rows.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Ok(column.clone()) } else { cast(column, field.data_type()) }
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<std::result::Result<Vec<_>, _>>()?)?)
}

/// Gives each row as a JSON object, NULLs included.
pub fn as_json(rows: &RecordBatch) -> Result<Vec<Bytes>> {
    let mut documents = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        let mut writer: Writer<_, JsonArray> =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
        writer.write(&rows.slice(row, 1))?;
        writer.finish()?;
        let array = writer.into_inner();
        let inside = array.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        documents.push(Bytes::copy_from_slice(inside.unwrap_or(&array)));
    }
    Ok(documents)
}

/// Reads rows back that [`as_json`] has written, perhaps when their table had fewer columns: those are NULL, as they are
/// in the rows that were stored then.
///
/// # Errors
///
/// [`Data`](crate::ErrorKind::Data) if one of them has a column that `schema` does not have, lacks one that must not be
/// NULL, or has a value that is not of its column's type.
pub fn from_json(documents: &[Bytes], schema: &SchemaRef) -> Result<RecordBatch> {
    let misfit = |e: arrow::error::ArrowError| Error::data("the row does not fit the table's columns").because(e);
    let mut decoder = ReaderBuilder::new(schema.clone()).with_strict_mode(true).build_decoder().map_err(misfit)?;
    let mut batches = Vec::new();
    for document in documents {
        let mut left = document.as_ref();
        while !left.is_empty() {
            let read = decoder.decode(left).map_err(misfit)?;
            left = left.get(read..).unwrap_or_default();
            // A decoder reads no further once its batch is full.
            if read == 0 || !left.is_empty() {
                batches.extend(decoder.flush().map_err(misfit)?);
            }
        }
    }
    batches.extend(decoder.flush().map_err(misfit)?);
    Ok(arrow::compute::concat_batches(schema, &batches)?)
}

fn texts(rows: &RecordBatch, name: &str) -> Result<Option<arrow::array::StringArray>> {
    let Some(column) = rows.column_by_name(name) else { return Ok(None) };
    let text: ArrayRef = cast(column, &DataType::Utf8)?;
    let text = text.as_any().downcast_ref::<arrow::array::StringArray>().cloned();
    text.map(Some).ok_or_else(|| Error::internal("a cast to text gave another type"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
        StringViewArray, TimestampMicrosecondArray, UInt64Array,
    };
    use arrow::datatypes::{Field, Int32Type};

    use super::*;

    fn rows() -> RecordBatch {
        let lists = [Some(vec![Some(1), None]), Some(vec![]), None];
        let columns: [(&str, ArrayRef); 10] = [
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)]))),
            ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 0, 1]))),
            ("f", Arc::new(Float64Array::from(vec![Some(0.1), Some(-1e300), None]))),
            ("d", Arc::new(Decimal128Array::from(vec![12345, -1, 0]).with_precision_and_scale(38, 2).unwrap())),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
            ("s", Arc::new(StringViewArray::from(vec![Some("a \"b\"\n\u{1f600}"), Some(""), None]))),
            ("raw", Arc::new(BinaryViewArray::from(vec![Some(b"\x00\xff".as_ref()), Some(b"".as_ref()), None]))),
            ("day", Arc::new(Date32Array::from(vec![20_000, -1, 0]))),
            ("ts", Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_123_456, 0, -1]).with_timezone("UTC"))),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    #[test]
    fn a_row_comes_back_from_its_json_as_it_was() {
        let rows = rows();
        let entries = quarantined(&rows, "rule", "why", 3).unwrap();
        assert!(entries.iter().all(|entry| entry.redrivable && entry.attempts == 3));
        let documents: Vec<_> = entries.into_iter().map(|entry| entry.raw).collect();
        assert_eq!(from_json(&documents, &rows.schema()).unwrap(), rows);
        assert!(late(&rows, "why").unwrap().iter().all(|entry| !entry.redrivable));
    }

    #[test]
    fn a_row_that_its_json_does_not_say_cannot_be_sent_again() {
        let numbers = Float64Array::from(vec![1.5, f64::NAN, f64::INFINITY, 2.5]);
        let rows = RecordBatch::try_from_iter([("f", Arc::new(numbers) as ArrayRef)]).unwrap();
        let entries = quarantined(&rows, "rule", "why", 0).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.redrivable).collect::<Vec<_>>(), [true, false, false, true]);
    }

    #[test]
    fn many_rows_come_back_in_their_order() {
        let numbers: ArrayRef = Arc::new((0..5000).collect::<Int64Array>());
        let rows = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        assert_eq!(from_json(&as_json(&rows).unwrap(), &rows.schema()).unwrap(), rows);
    }

    #[test]
    fn a_row_of_other_columns_fits_no_more() {
        let rows = rows();
        let fewer = Arc::new(Schema::new(rows.schema().fields().iter().skip(1).cloned().collect::<Vec<_>>()));
        let documents = as_json(&rows).unwrap();
        let strict = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        for (documents, schema) in [
            (documents.as_slice(), &fewer),
            (&[Bytes::from_static(b"{}")], &strict),
            (&[Bytes::from_static(b"{\"n\":\"x\"}")], &strict),
            (&[Bytes::from_static(b"[1]")], &strict),
        ] {
            let error = from_json(documents, schema).unwrap_err();
            assert!(error.kind() == crate::ErrorKind::Data && error.to_string().contains("does not fit"), "{error}");
        }
        let more = from_json(&[Bytes::from_static(b"{\"n\":1}")], &rows.schema()).unwrap();
        assert_eq!((more.num_rows(), more.column(1).null_count()), (1, 1), "a column that is new is NULL");
    }
}
