//! Deduplication that keeps the newest row of each key: a row replaces the one before if its place in the order is later.
//!
//! Each epoch gives the newest row of every key for which a newer one has come. A sink with a key keeps it; where rows
//! are only added, the number of the epoch in [`SEQUENCE_COLUMN`](super::keyed::SEQUENCE_COLUMN) tells which is.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{cast, filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::OwnedRow;

use super::keyed::with_number;
use super::rows;
use super::rows::STATE_BATCH_ROWS;
use super::sealed::Sealed;
use super::segments::Segment;
use super::versions::Versions;
use super::window::{WATERMARK_END, WATERMARK_START, micros};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// The columns of rows that tell which is newer, and for how long that has to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestSettings {
    /// The columns of the key.
    pub key: Vec<usize>,
    /// The column whose greatest value is the newest.
    pub order: usize,
    /// The event-time column.
    pub time: usize,
    /// For how many microseconds of event time a key is remembered.
    pub within_us: i64,
}

/// Remembers how new the newest row of each key is, and holds those of the open epoch.
pub struct Newest {
    settings: NewestSettings,
    /// The keys, each with the order and the time of its newest row.
    states: Versions,
    /// Rows of the open epoch, also those that a newer one has replaced.
    rows: Vec<RecordBatch>,
    /// The newest of them by key.
    open: HashMap<OwnedRow, Open>,
    /// Keys of rows up to this time are not remembered any more.
    forgotten_until_us: i64,
}

/// The newest row of a key in the open epoch.
struct Open {
    order: i64,
    /// Which of the batches, and which row of it.
    place: (usize, usize),
}

/// What became of rows.
#[derive(Debug, Default)]
pub struct Offered {
    /// How many were not the newest of their keys, or are so no more.
    pub older: u64,
    /// Those of which it cannot be told.
    pub unfit: Vec<Quarantined>,
}

impl Newest {
    /// Remembers keys of rows with the columns of `schema`.
    pub fn new(schema: &Schema, settings: NewestSettings) -> Result<Self> {
        let columns = settings.key.iter().map(|column| schema.field(*column).clone());
        let more = ["order", "time"].map(|name| Field::new(format!("_{name}"), DataType::Int64, false));
        let state: SchemaRef = Arc::new(Schema::new(columns.chain(more).collect::<Vec<_>>()));
        let states = Versions::new(&state, settings.key.len())?;
        let forgotten_until_us = WATERMARK_START;
        Ok(Self { settings, states, rows: Vec::new(), open: HashMap::new(), forgotten_until_us })
    }

    /// Takes rows that have been sent again so often, and holds those that are the newest of their keys.
    pub fn offer(&mut self, rows: &RecordBatch, attempts: u32) -> Result<Offered> {
        let keys = self.states.convert(&self.columns(rows))?;
        let (orders, times) = (self.orders(rows)?, micros(rows.column(self.settings.time))?);
        let mut offered = Offered::default();
        let (mut undated, mut late) = (vec![false; rows.num_rows()], vec![false; rows.num_rows()]);
        let batch = self.rows.len();
        let mut held = false;
        for (row, key) in keys.iter().enumerate() {
            if orders.is_null(row) || times.is_null(row) {
                mark(&mut undated, row);
                continue;
            }
            let (order, key) = (orders.value(row), key.owned());
            let known = self.open.get(&key).map(|open| open.order).or_else(|| self.known_order(&key));
            match known {
                Some(known) if order <= known => offered.older += 1,
                None if times.value(row) <= self.forgotten_until_us => mark(&mut late, row),
                _ => {
                    held = true;
                    let replaced = self.open.insert(key, Open { order, place: (batch, row) });
                    offered.older += u64::from(replaced.is_some());
                }
            }
        }
        if held {
            self.rows.push(rows.clone());
        }
        self.compact()?;
        let reason = "the row has no event time, or nothing in the column that tells which row is newer";
        let undated = filter_record_batch(rows, &BooleanArray::from(undated))?;
        offered.unfit.extend(rows::quarantined(&undated, "unique", reason, attempts)?);
        let reason = "the row came so late that a newer one of its key may have been forgotten";
        let late = filter_record_batch(rows, &BooleanArray::from(late))?;
        offered.unfit.extend(rows::late(&late, reason)?);
        Ok(offered)
    }

    /// Closes the epoch and gives its rows: for each key of which a newer row has come, the newest.
    pub fn close(&mut self, epoch: u64) -> Result<Vec<RecordBatch>> {
        let rows = self.take_open()?;
        for batch in &rows {
            let (orders, times) = (self.orders(batch)?, micros(batch.column(self.settings.time))?);
            let times = Int64Array::new(times.values().clone(), None);
            let more: [ArrayRef; 2] = [Arc::new(orders), Arc::new(times)];
            let columns = self.columns(batch).into_iter().chain(more).collect();
            self.states.put(None, RecordBatch::try_new(self.states.schema().clone(), columns)?)?;
        }
        rows.into_iter().map(|batch| with_number(&batch, epoch)).collect()
    }

    /// Forgets keys that no row on time can meet again, and tells what has to be durable.
    pub fn seal(&mut self, epoch: u64, watermark_us: i64) -> Result<Sealed> {
        // The end of input is no time: rows that come in a later run may still be older ones.
        if watermark_us != WATERMARK_END && watermark_us != WATERMARK_START {
            let bound_us = watermark_us.saturating_sub(self.settings.within_us);
            self.forget(bound_us)?;
        }
        self.states.seal(epoch)?.encode()
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>, forgotten_until_us: Option<i64>) -> Result<()> {
        self.states.restore(files.into_iter().map(Segment::read).collect::<Result<_>>()?)?;
        self.forget(forgotten_until_us.unwrap_or(WATERMARK_START))
    }

    /// Gives the time up to which keys have been forgotten.
    pub fn forgotten_until_us(&self) -> i64 {
        self.forgotten_until_us
    }

    /// Gives the memory that keys and rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.states.size_bytes() + self.open_bytes()
    }

    /// Gives the part of it that the open epoch has added: what its barrier frees.
    pub fn open_bytes(&self) -> usize {
        let rows: usize = self.rows.iter().map(RecordBatch::get_array_memory_size).sum();
        rows + self.open.capacity() * size_of::<(OwnedRow, Open)>()
    }

    fn columns(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.settings.key.iter().map(|column| rows.column(*column).clone()).collect()
    }

    /// Gives the places of rows in the order, as numbers.
    fn orders(&self, rows: &RecordBatch) -> Result<Int64Array> {
        let column = rows.column(self.settings.order);
        let numbers = match column.data_type() {
            DataType::Timestamp(..) => cast(&(Arc::new(micros(column)?) as ArrayRef), &DataType::Int64)?,
            DataType::Date32 => cast(&cast(column, &DataType::Int32)?, &DataType::Int64)?,
            _ => cast(column, &DataType::Int64)?,
        };
        let numbers = numbers.as_primitive_opt::<Int64Type>().cloned();
        numbers.ok_or_else(|| Error::internal("a cast to int64 gave another type"))
    }

    fn known_order(&self, key: &OwnedRow) -> Option<i64> {
        let (states, row) = self.states.newest_of(key)?;
        let orders = states.column(self.settings.key.len()).as_primitive_opt::<Int64Type>()?;
        (row < orders.len()).then(|| orders.value(row))
    }

    fn forget(&mut self, bound_us: i64) -> Result<()> {
        self.forgotten_until_us = self.forgotten_until_us.max(bound_us);
        let bound_us = self.forgotten_until_us;
        let times = self.states.batches().map(|states| {
            let times = states.column(self.settings.key.len() + 1).as_primitive_opt::<Int64Type>().cloned();
            times.ok_or_else(|| Error::internal("the times of keys are no numbers"))
        });
        let times: Vec<Int64Array> = times.collect::<Result<_>>()?;
        let time_of = |(batch, row): (usize, usize)| times.get(batch).and_then(|times| times.values().get(row));
        self.states.retain(|place| time_of(place).is_none_or(|time_us| *time_us > bound_us));
        Ok(())
    }

    /// Takes the newest rows of the open epoch out, in the order in which they came.
    fn take_open(&mut self) -> Result<Vec<RecordBatch>> {
        let mut places: Vec<_> = self.open.drain().map(|(_, open)| open.place).collect();
        places.sort_unstable();
        let rows = std::mem::take(&mut self.rows);
        let rows: Vec<&RecordBatch> = rows.iter().collect();
        let chunks = places.chunks(STATE_BATCH_ROWS);
        chunks.map(|places| Ok(interleave_record_batch(&rows, places)?)).collect()
    }

    /// Lets go of rows of the open epoch that newer ones have replaced.
    fn compact(&mut self) -> Result<()> {
        let rows: usize = self.rows.iter().map(RecordBatch::num_rows).sum();
        if rows <= 2 * self.open.len() + STATE_BATCH_ROWS {
            return Ok(());
        }
        let kept = self.take_open()?;
        for (batch, rows) in kept.iter().enumerate() {
            let (keys, orders) = (self.states.convert(&self.columns(rows))?, self.orders(rows)?);
            for (row, key) in keys.iter().enumerate() {
                self.open.insert(key.owned(), Open { order: orders.value(row), place: (batch, row) });
            }
        }
        self.rows = kept;
        Ok(())
    }
}

/// Tells whether a column's values can tell which row is newer.
pub fn is_order(data_type: &DataType) -> bool {
    use DataType as D;
    let is_number = matches!(data_type, D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::UInt8 | D::UInt16 | D::UInt32);
    is_number || matches!(data_type, D::Timestamp(..) | D::Date32)
}

fn mark(marks: &mut [bool], row: usize) {
    if let Some(mark) = marks.get_mut(row) {
        *mark = true;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::batch::timestamp_type;

    const SETTINGS: NewestSettings = NewestSettings { key: Vec::new(), order: 1, time: 1, within_us: 100 };

    fn rows(keys: &[i64], times_us: &[Option<i64>]) -> RecordBatch {
        let fields = vec![Field::new("key", DataType::Int64, true), Field::new("at", timestamp_type(), true)];
        let at = arrow::array::TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(keys.to_vec())), Arc::new(at)];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn newest() -> Newest {
        Newest::new(&rows(&[], &[]).schema(), NewestSettings { key: vec![0], ..SETTINGS }).unwrap()
    }

    /// Offers rows; gives how many were older, and how many unfit.
    fn offer(newest: &mut Newest, keys: &[i64], times_us: &[i64]) -> (u64, usize) {
        let times: Vec<_> = times_us.iter().copied().map(Some).collect();
        let offered = newest.offer(&rows(keys, &times), 0).unwrap();
        (offered.older, offered.unfit.len())
    }

    fn close(newest: &mut Newest, epoch: u64) -> Vec<(i64, i64)> {
        let given = newest.close(epoch).unwrap();
        let of = |batch: &RecordBatch| {
            let keys = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
            keys.into_iter().zip(micros(batch.column(1)).unwrap().values().to_vec()).collect::<Vec<_>>()
        };
        let mut given: Vec<_> = given.iter().flat_map(of).collect();
        given.sort_unstable();
        given
    }

    #[test]
    fn an_epoch_gives_one_row_of_a_key_if_it_is_newer_than_all_before() {
        let mut newest = newest();
        assert_eq!(offer(&mut newest, &[1, 2, 1], &[10, 10, 12]), (1, 0));
        assert_eq!(offer(&mut newest, &[1, 1], &[11, 12]), (2, 0));
        assert_eq!(close(&mut newest, 1), [(1, 12), (2, 10)]);
        assert_eq!(offer(&mut newest, &[1, 2, 3], &[12, 11, 5]), (1, 0));
        assert_eq!(close(&mut newest, 2), [(2, 11), (3, 5)]);
        assert_eq!(close(&mut newest, 3), []);
    }

    #[test]
    fn a_restart_knows_what_was_given_and_what_was_forgotten() {
        let mut before = newest();
        offer(&mut before, &[1, 2], &[10, 500]);
        close(&mut before, 1);
        let first = before.seal(1, 20).unwrap();
        offer(&mut before, &[3], &[600]);
        close(&mut before, 2);
        let second = before.seal(2, 300).unwrap();
        assert_eq!((&first.live, &second.live), (&vec![1], &vec![1, 2]));
        let file = |sealed: &Sealed| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(sealed.added.as_ref().unwrap()).unwrap();
            file
        };
        let files = vec![(1, file(&first)), (2, file(&second))];
        let mut after = newest();
        after.restore(files, Some(before.forgotten_until_us())).unwrap();
        assert_eq!(before.forgotten_until_us(), 200);
        assert_eq!(offer(&mut after, &[2, 3, 1, 1], &[499, 601, 150, 201]), (1, 1), "1 is forgotten, and 150 late");
        assert_eq!(close(&mut after, 3), [(1, 201), (3, 601)]);
        assert!(after.seal(3, WATERMARK_END).is_ok() && after.forgotten_until_us() == 200);
    }

    #[test]
    fn rows_without_a_place_in_the_order_are_unfit() {
        let offered = newest().offer(&rows(&[1, 2], &[None, Some(1)]), 2).unwrap();
        assert_eq!((offered.unfit.len(), offered.unfit[0].attempts, offered.unfit[0].redrivable), (1, 2, true));
    }

    #[test]
    fn rows_that_were_replaced_are_let_go() {
        let mut newest = newest();
        let keys: Vec<i64> = (0..1000).collect();
        for round in 0..100 {
            let times: Vec<_> = keys.iter().map(|_| round).collect();
            offer(&mut newest, &keys, &times);
            let held: usize = newest.rows.iter().map(RecordBatch::num_rows).sum();
            assert!(held <= 2 * keys.len() + STATE_BATCH_ROWS + keys.len(), "{held} rows of {} keys", keys.len());
        }
        assert_eq!(close(&mut newest, 1), keys.iter().map(|key| (*key, 99)).collect::<Vec<_>>());
    }
}
