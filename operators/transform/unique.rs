//! Deduplication: rows with the same key within a bound of event time are kept once.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};

use super::segments::{Segment, Segments, Snapshot};
use super::window::{WATERMARK_END, micros};
use crate::error::{Error, Result};

/// What a key of the open epoch takes beside its place in the map: two halves of a hash and a time.
const FRESH_KEY_BYTES: usize = 24;

/// Under this many free places a map is left as it is: making it smaller would cost more than it frees.
const FREE_PLACES_MIN: usize = 65_536;

/// Remembers the keys of rows and finds those that come again.
///
/// Keys are remembered by a hash of 128 bits (XXH3) of their encoding in
/// Arrow's row format: with ten thousand million keys the chance of one false
/// duplicate is below 10^-18.
pub struct Unique {
    key: Vec<usize>,
    time: usize,
    within_us: i64,
    converter: RowConverter,
    seen: Seen,
    log: Segments,
    fresh: Fresh,
}

/// The event times of the rows that were kept, by their key. A key may come again beyond the bound, and rows come in
/// any order, so that a key has several times.
#[derive(Default)]
struct Seen {
    newest_us: HashMap<u128, i64>,
    /// All but the newest times of keys that have several: few.
    others: BTreeSet<(u128, i64)>,
}

/// Keys of the open epoch, column by column.
#[derive(Default)]
struct Fresh {
    high: Vec<u64>,
    low: Vec<u64>,
    time_us: Vec<i64>,
}

impl Unique {
    /// Remembers the columns `key` of rows for `within_us` microseconds of the event-time column `time`.
    pub fn new(schema: &Schema, key: Vec<usize>, time: usize, within_us: i64) -> Result<Self> {
        let fields = key.iter().map(|column| SortField::new(schema.field(*column).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        Ok(Self {
            key,
            time,
            within_us,
            converter,
            seen: Seen::default(),
            log: Segments::default(),
            fresh: Fresh::default(),
        })
    }

    /// Gives the rows whose key has not been seen; the others are duplicates.
    ///
    /// A row without an event time is never a duplicate.
    pub fn first_seen(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = self.key.iter().map(|column| rows.column(*column).clone()).collect();
        let keys = self.converter.convert_columns(&columns)?;
        let times = micros(rows.column(self.time))?;
        let mut first = Vec::with_capacity(rows.num_rows());
        for (row, key) in keys.iter().enumerate() {
            if times.is_null(row) {
                first.push(true);
                continue;
            }
            let time_us = times.value(row);
            let hash = twox_hash::XxHash3_128::oneshot(key.as_ref());
            let known = self.seen.near(hash, time_us, self.within_us);
            if !known {
                self.seen.insert(hash, time_us);
                self.fresh.push(hash, time_us);
            }
            first.push(!known);
        }
        if first.iter().all(|new| *new) {
            return Ok(rows);
        }
        Ok(filter_record_batch(&rows, &BooleanArray::from(first))?)
    }

    /// Forgets the keys that no row on time can meet again, and tells what has to be durable.
    pub fn snapshot(&mut self, epoch: u64, watermark_us: i64) -> Result<Snapshot> {
        self.log.add(std::mem::take(&mut self.fresh).into_batch()?);
        // The end of input is no time: rows that come in a later run may still repeat a key.
        if watermark_us != WATERMARK_END {
            let bound_us = watermark_us.saturating_sub(self.within_us);
            self.seen.forget_before(bound_us);
            self.log.take(|rows| Ok(times(rows)?.iter().map(|t| Some(t.is_some_and(|t| t < bound_us))).collect()))?;
        }
        if self.log.want_merge() {
            let rows = self.log.take_all();
            self.log.add(arrow::compute::concat_batches(&schema(), &rows)?);
        }
        Ok(self.log.seal(epoch))
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, segments: Vec<Segment>) -> Result<()> {
        self.seen = Seen::default();
        for rows in segments.iter().flat_map(|segment| &segment.rows) {
            let (high, low, time_us) = (hashes(rows, 0)?, hashes(rows, 1)?, times(rows)?);
            for row in 0..rows.num_rows() {
                let hash = u128::from(high.value(row)) << 64 | u128::from(low.value(row));
                self.seen.insert(hash, time_us.value(row));
            }
        }
        self.log.restore(segments);
        Ok(())
    }

    /// Gives the memory that the keys take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.seen.size_bytes() + self.log.size_bytes() + self.fresh.time_us.capacity() * FRESH_KEY_BYTES
    }

    /// Gives the part of it that the open epoch has added: what its barrier may free.
    pub fn open_bytes(&self) -> usize {
        self.fresh.time_us.len() * (FRESH_KEY_BYTES + size_of::<(u128, i64)>())
    }
}

impl Seen {
    fn near(&self, key: u128, time_us: i64, within_us: i64) -> bool {
        let Some(newest_us) = self.newest_us.get(&key) else { return false };
        if newest_us.abs_diff(time_us) <= within_us.unsigned_abs() {
            return true;
        }
        let bounds = (key, time_us.saturating_sub(within_us))..=(key, time_us.saturating_add(within_us));
        self.others.range(bounds).next().is_some()
    }

    fn insert(&mut self, key: u128, time_us: i64) {
        match self.newest_us.entry(key) {
            Entry::Vacant(free) => drop(free.insert(time_us)),
            Entry::Occupied(mut newest) => {
                self.others.insert((key, time_us.min(*newest.get())));
                newest.insert(time_us.max(*newest.get()));
            }
        }
    }

    fn forget_before(&mut self, bound_us: i64) {
        self.newest_us.retain(|_, time_us| *time_us >= bound_us);
        self.others.retain(|(_, time_us)| *time_us >= bound_us);
        let (kept, places) = (self.newest_us.len(), self.newest_us.capacity());
        if places - kept > kept.max(FREE_PLACES_MIN) {
            self.newest_us.shrink_to(2 * kept);
        }
    }

    fn size_bytes(&self) -> usize {
        (self.newest_us.capacity() + self.others.len()) * size_of::<(u128, i64)>()
    }
}

impl Fresh {
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of a hash")]
    fn push(&mut self, hash: u128, time_us: i64) {
        self.high.push((hash >> 64) as u64);
        self.low.push(hash as u64);
        self.time_us.push(time_us);
    }

    fn into_batch(self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(self.high)),
            Arc::new(UInt64Array::from(self.low)),
            Arc::new(Int64Array::from(self.time_us)),
        ];
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}

/// Gives the columns in which keys are saved.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("high", DataType::UInt64, false),
        Field::new("low", DataType::UInt64, false),
        Field::new("time_us", DataType::Int64, false),
    ]))
}

fn hashes(rows: &RecordBatch, column: usize) -> Result<&UInt64Array> {
    rows.column(column).as_any().downcast_ref().ok_or_else(damaged)
}

fn times(rows: &RecordBatch) -> Result<&Int64Array> {
    rows.columns().get(2).and_then(|times| times.as_any().downcast_ref()).ok_or_else(damaged)
}

fn damaged() -> Error {
    Error::internal("a snapshot of remembered keys does not have the columns it should")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::timestamp_type;

    fn rows(keys: &[i64], times_us: &[i64]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("key", DataType::Int64, false),
            Field::new("at", timestamp_type(), false),
        ]));
        let at = arrow::array::TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(keys.to_vec())), Arc::new(at)]).unwrap()
    }

    fn unique() -> Unique {
        Unique::new(&rows(&[], &[]).schema(), vec![0], 1, 100).unwrap()
    }

    #[test]
    fn a_key_is_kept_once_within_the_bound_and_again_beyond_it() {
        let mut unique = unique();
        assert_eq!(unique.first_seen(rows(&[1, 1, 2], &[0, 50, 50])).unwrap().num_rows(), 2);
        assert_eq!(unique.first_seen(rows(&[1, 2], &[100, 151])).unwrap().num_rows(), 1, "1 is 100 later, 2 is 101");
    }

    #[test]
    fn a_key_that_was_kept_twice_is_known_at_both_times() {
        let mut unique = unique();
        assert_eq!(unique.first_seen(rows(&[1, 1], &[300, 100])).unwrap().num_rows(), 2, "200 apart");
        assert_eq!(unique.first_seen(rows(&[1], &[310])).unwrap().num_rows(), 0, "10 after the first");
        assert_eq!(unique.first_seen(rows(&[1], &[40])).unwrap().num_rows(), 0, "60 before the second");
        assert_eq!(unique.first_seen(rows(&[1], &[600])).unwrap().num_rows(), 1);
        assert_eq!(unique.first_seen(rows(&[1], &[150])).unwrap().num_rows(), 0, "50 after the second");
        assert!(unique.size_bytes() > 0);
    }

    #[test]
    fn keys_survive_a_restart_and_are_forgotten_behind_the_watermark() {
        let mut before = unique();
        before.first_seen(rows(&[1, 2], &[0, 500])).unwrap();
        let first = before.snapshot(1, 0).unwrap();
        assert_eq!(first.live, [1]);
        before.first_seen(rows(&[3], &[600])).unwrap();
        let second = before.snapshot(2, 300).unwrap();
        assert_eq!(second.live, [1, 2]);

        let mut after = unique();
        let segments = [(1, first.added), (2, second.added)];
        after.restore(segments.into_iter().map(|(epoch, rows)| Segment { epoch, rows }).collect()).unwrap();
        assert_eq!(after.first_seen(rows(&[2, 3, 4], &[501, 601, 601])).unwrap().num_rows(), 1, "only 4 is new");
        assert_eq!(before.seen.newest_us.len(), 2, "1 lies behind the watermark");
    }
}
