//! Deduplication that keeps the newest row of each key: a row replaces the one before if its place in the order is later.
//!
//! Each epoch gives the newest row of every key for which a newer one has come. A sink with a key keeps it; where rows
//! are only added, the number of the epoch in [`SEQUENCE_COLUMN`](super::keyed::SEQUENCE_COLUMN) tells which is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{cast, filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::physical_expr::expressions::Column;

use super::held::Held;
use super::keyed::with_number;
use super::keys::hashes;
use super::rows;
use super::rows::STATE_BATCH_ROWS;
use super::sealed::Sealed;
use super::states::{Ends, StateLimits, States, Wanted};
use super::versions::newest;
use super::window::{WATERMARK_END, WATERMARK_START, Width, Window, micros};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// Into so many parts the time is cut for which keys are remembered: those of a part are forgotten together, and a key is
/// looked up in each.
const PARTS: i64 = 8;

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
    /// The keys, each with the order of its newest row, and with the time up to which rows of it have come.
    states: States,
    schema: SchemaRef,
    converter: RowConverter,
    /// Rows of the open epoch, also those that a newer one has replaced.
    rows: Vec<RecordBatch>,
    held: Held,
    /// The newest of them, by a hash of the key.
    open: HashMap<u128, Open>,
    /// Where rows stand that are late unless their key is remembered.
    doubtful: Vec<(usize, usize)>,
    /// Keys of rows up to this time are not remembered any more.
    forgotten_until_us: i64,
}

/// The newest row of a key in the open epoch.
struct Open {
    order: i64,
    /// The last time of a row of the key that was the newest when it came.
    time_us: i64,
    /// Which of the batches, and which row of it.
    place: (usize, usize),
}

/// How new the newest row of a key is that has been given.
#[derive(Debug, Clone, Copy)]
struct Known {
    order: i64,
    time_us: i64,
}

/// What became of rows.
#[derive(Debug, Default)]
pub struct Offered {
    /// Rows that are given: the newest of their keys.
    pub rows: Vec<RecordBatch>,
    /// How many were not the newest of their keys, or are so no more.
    pub older: u64,
    /// Those of which it cannot be told.
    pub unfit: Vec<Quarantined>,
}

impl Newest {
    /// Remembers keys of rows with the columns of `schema`.
    pub fn new(schema: &Schema, settings: NewestSettings, limits: StateLimits) -> Result<Self> {
        let columns: Vec<Field> = settings.key.iter().map(|column| schema.field(*column).clone()).collect();
        let fields = columns.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let more = ["order", "time"].map(|name| Field::new(format!("_{name}"), DataType::Int64, false));
        let schema: SchemaRef = Arc::new(Schema::new(columns.into_iter().chain(more).collect::<Vec<_>>()));
        let keys = settings.key.len();
        // A key is remembered up to a row of it that comes as late as it may.
        let remembered =
            Window { start: Arc::new(Column::new("_time", keys + 1)), width: Width::Micros(settings.within_us) };
        let ends = Ends::Steps(remembered, (settings.within_us / PARTS).max(1));
        let states = States::new(schema.clone(), (0..keys).collect(), ends, limits)?;
        let (rows, held, open, doubtful) = Default::default();
        let forgotten_until_us = WATERMARK_START;
        Ok(Self { settings, states, schema, converter, rows, held, open, doubtful, forgotten_until_us })
    }

    /// Takes rows that have been sent again so often, and holds those that may be the newest of their keys.
    pub fn offer(&mut self, rows: &RecordBatch, attempts: u32) -> Result<Offered> {
        let keys = hashes(&self.converter, &self.columns(rows))?;
        let (orders, times) = (self.orders(rows)?, micros(rows.column(self.settings.time))?);
        let mut offered = Offered::default();
        let mut undated = vec![false; rows.num_rows()];
        let batch = self.rows.len();
        let mut held = false;
        for (row, key) in keys.into_iter().enumerate() {
            if orders.is_null(row) || times.is_null(row) {
                mark(&mut undated, row);
                continue;
            }
            let (order, time_us, place) = (orders.value(row), times.value(row), (batch, row));
            match self.open.get_mut(&key) {
                Some(open) if order <= open.order => offered.older += 1,
                Some(open) => {
                    held = true;
                    offered.older += 1;
                    *open = Open { order, time_us: time_us.max(open.time_us), place };
                }
                None if time_us <= self.forgotten_until_us => {
                    held = true;
                    self.doubtful.push(place);
                }
                None => {
                    held = true;
                    self.open.insert(key, Open { order, time_us, place });
                }
            }
        }
        if held {
            self.held.add(rows);
            self.rows.push(rows.clone());
        }
        self.compact()?;
        let reason = "the row has no event time, or nothing in the column that tells which row is newer";
        let undated = filter_record_batch(rows, &BooleanArray::from(undated))?;
        offered.unfit.extend(rows::quarantined(&undated, "unique", reason, attempts)?);
        Ok(offered)
    }

    /// Closes the epoch and gives its rows: for each key of which a newer row has come, the newest.
    pub fn close(&mut self, epoch: u64) -> Result<Offered> {
        let known = self.known()?;
        let mut closed = Offered::default();
        self.judge_doubtful(&known, &mut closed)?;
        self.open.retain(|key, open| {
            let Some(known) = known.get(key) else { return true };
            let is_newer = open.order > known.order;
            closed.older += u64::from(!is_newer);
            open.time_us = open.time_us.max(known.time_us);
            is_newer
        });
        let mut newest: Vec<Open> = self.open.drain().map(|(_, open)| open).collect();
        newest.sort_unstable_by_key(|open| open.place);
        let places: Vec<_> = newest.iter().map(|open| open.place).collect();
        let rows = self.gather(&places)?;
        (self.rows, self.held) = Default::default();
        for (batch, newest) in rows.into_iter().zip(newest.chunks(STATE_BATCH_ROWS)) {
            let numbers = |of: fn(&Open) -> i64| Arc::new(newest.iter().map(of).collect::<Int64Array>()) as ArrayRef;
            self.states.add(&self.states_of(&batch, [numbers(|open| open.order), numbers(|open| open.time_us)])?)?;
            closed.rows.push(with_number(&batch, epoch)?);
        }
        Ok(closed)
    }

    /// Forgets keys that no row on time can meet again, and tells what has to be durable.
    pub fn seal(&mut self, epoch: u64, watermark_us: i64) -> Result<Sealed> {
        // The end of input is no time: rows that come in a later run may still be older ones.
        if watermark_us != WATERMARK_END && watermark_us != WATERMARK_START {
            let bound_us = watermark_us.saturating_sub(self.settings.within_us);
            self.forgotten_until_us = self.forgotten_until_us.max(bound_us);
            self.states.forget(watermark_us);
        }
        let parts = self.states.take_mergeable()?;
        for merged in self.merge(&parts)? {
            self.states.add(&merged)?;
        }
        self.states.seal(epoch)
    }

    /// Takes the file of what [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.states.adopt(epoch, file)
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>, forgotten_until_us: Option<i64>) -> Result<()> {
        self.forgotten_until_us = forgotten_until_us.unwrap_or(WATERMARK_START);
        let ended_us = forgotten_until_us.map_or(WATERMARK_START, |time| time.saturating_add(self.settings.within_us));
        self.states.restore(files, ended_us, |rows| newest(rows, self.settings.key.len()))
    }

    /// Gives the time up to which keys have been forgotten.
    pub fn forgotten_until_us(&self) -> i64 {
        self.forgotten_until_us
    }

    /// Gives the memory that keys and rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.states.size_bytes() + self.open_bytes()
    }

    /// Gives the part of it that the open epoch has added: what its barrier frees. Its keys are in memory twice then, with
    /// what was known of them.
    pub fn open_bytes(&self) -> usize {
        let doubtful = self.doubtful.capacity() * size_of::<(usize, usize)>();
        self.held.bytes() + doubtful + (self.open.capacity() + self.open.len()) * size_of::<(u128, Open)>()
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

    /// Gives the states of the keys of rows, with these orders and times.
    fn states_of(&self, rows: &RecordBatch, numbers: [ArrayRef; 2]) -> Result<RecordBatch> {
        let columns = self.columns(rows).into_iter().chain(numbers).collect();
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// Leaves of states the newest of each key.
    fn merge(&self, parts: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
        let mut newest: HashMap<u128, (Known, (usize, usize))> = HashMap::new();
        for (part, states) in parts.iter().enumerate() {
            for (row, (key, known)) in known_of(&self.converter, states)?.into_iter().enumerate() {
                let here = newest.entry(key).or_insert((known, (part, row)));
                // A later state of a key has both the greater order and the greater time.
                if known.order > here.0.order {
                    *here = (known, (part, row));
                }
            }
        }
        let mut places: Vec<_> = newest.into_values().map(|(_, place)| place).collect();
        places.sort_unstable();
        let parts: Vec<&RecordBatch> = parts.iter().collect();
        places.chunks(STATE_BATCH_ROWS).map(|places| Ok(interleave_record_batch(&parts, places)?)).collect()
    }

    /// Gives what is remembered of the keys of the open epoch.
    fn known(&mut self) -> Result<HashMap<u128, Known>> {
        let places: Vec<_> = self.open.values().map(|open| open.place).chain(self.doubtful.iter().copied()).collect();
        let mut sought = Vec::with_capacity(places.len());
        for rows in self.gather(&places)? {
            let none: ArrayRef = Arc::new(Int64Array::from_value(0, rows.num_rows()));
            sought.extend(self.states.places(&self.states_of(&rows, [none.clone(), none])?)?);
        }
        let mut known = HashMap::new();
        let mut pieces = self.states.find(Wanted::keys(&sought), None)?;
        while let Some(piece) = pieces.next_piece()? {
            for states in piece {
                for (key, here) in known_of(&self.converter, &states)? {
                    let known = known.entry(key).or_insert(here);
                    *known = if here.order > known.order { here } else { *known };
                }
            }
        }
        known.retain(|_, known: &mut Known| known.time_us > self.forgotten_until_us);
        Ok(known)
    }

    /// Finds out which of the doubtful rows are late, and takes the others for newest ones where they are.
    fn judge_doubtful(&mut self, known: &HashMap<u128, Known>, closed: &mut Offered) -> Result<()> {
        let doubtful = std::mem::take(&mut self.doubtful);
        for (rows, places) in self.gather(&doubtful)?.iter().zip(doubtful.chunks(STATE_BATCH_ROWS)) {
            let keys = hashes(&self.converter, &self.columns(rows))?;
            let (orders, times) = (self.orders(rows)?, micros(rows.column(self.settings.time))?);
            let mut late = vec![false; rows.num_rows()];
            for ((row, key), place) in keys.into_iter().enumerate().zip(places) {
                if !known.contains_key(&key) {
                    mark(&mut late, row);
                    continue;
                }
                let (order, time_us) = (orders.value(row), times.value(row));
                let fresh = Open { order, time_us, place: *place };
                match self.open.entry(key) {
                    Entry::Vacant(entry) => drop(entry.insert(fresh)),
                    Entry::Occupied(mut entry) => {
                        closed.older += 1;
                        if order > entry.get().order {
                            entry.insert(Open { time_us: time_us.max(entry.get().time_us), ..fresh });
                        }
                    }
                }
            }
            let reason = "the row came so late that a newer one of its key may have been forgotten";
            closed.unfit.extend(rows::late(&filter_record_batch(rows, &BooleanArray::from(late))?, reason)?);
        }
        Ok(())
    }

    /// Gives rows of the open epoch, in batches of [`STATE_BATCH_ROWS`].
    fn gather(&self, places: &[(usize, usize)]) -> Result<Vec<RecordBatch>> {
        let rows: Vec<&RecordBatch> = self.rows.iter().collect();
        let chunks = places.chunks(STATE_BATCH_ROWS);
        chunks.map(|places| Ok(interleave_record_batch(&rows, places)?)).collect()
    }

    /// Lets go of rows of the open epoch that newer ones have replaced.
    fn compact(&mut self) -> Result<()> {
        let rows: usize = self.rows.iter().map(RecordBatch::num_rows).sum();
        if rows <= 2 * (self.open.len() + self.doubtful.len()) + STATE_BATCH_ROWS {
            return Ok(());
        }
        let mut places: Vec<_> =
            self.open.values().map(|open| open.place).chain(self.doubtful.iter().copied()).collect();
        places.sort_unstable();
        self.rows = self.gather(&places)?;
        self.held = Held::of(&self.rows);
        let held = self.open.values_mut().map(|open| &mut open.place).chain(&mut self.doubtful);
        for place in held {
            let row = places.binary_search(place).map_err(|_| Error::internal("a row of the open epoch is gone"))?;
            *place = (row / STATE_BATCH_ROWS, row % STATE_BATCH_ROWS);
        }
        Ok(())
    }
}

/// Tells whether a column's values can tell which row is newer.
pub fn is_order(data_type: &DataType) -> bool {
    use DataType as D;
    let is_number = matches!(data_type, D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::UInt8 | D::UInt16 | D::UInt32);
    is_number || matches!(data_type, D::Timestamp(..) | D::Date32)
}

/// Gives how new the newest rows of keys are that stand in states.
fn known_of(converter: &RowConverter, states: &RecordBatch) -> Result<Vec<(u128, Known)>> {
    let [keys @ .., orders, times] = states.columns() else {
        return Err(Error::internal("states of keys have no order and no time"));
    };
    let numbers = |column: &ArrayRef| {
        let numbers = column.as_primitive_opt::<Int64Type>().cloned();
        numbers.ok_or_else(|| Error::internal("the orders and times of keys are no numbers"))
    };
    let (orders, times) = (numbers(orders)?, numbers(times)?);
    let known = orders.values().iter().zip(times.values());
    let known = known.map(|(order, time_us)| Known { order: *order, time_us: *time_us });
    Ok(hashes(converter, keys)?.into_iter().zip(known).collect())
}

fn mark(marks: &mut [bool], row: usize) {
    if let Some(mark) = marks.get_mut(row) {
        *mark = true;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;

    use bytes::Bytes;

    use super::*;
    use crate::batch::timestamp_type;

    const SETTINGS: NewestSettings = NewestSettings { key: Vec::new(), order: 1, time: 1, within_us: 100 };

    /// Nothing in memory, and looked up in small pieces.
    const LIMITS: StateLimits = StateLimits { cached_bytes: 0, piece_bytes: 1_000 };

    fn rows(keys: &[i64], times_us: &[Option<i64>]) -> RecordBatch {
        let fields = vec![Field::new("key", DataType::Int64, true), Field::new("at", timestamp_type(), true)];
        let at = arrow::array::TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(keys.to_vec())), Arc::new(at)];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn newest() -> Newest {
        Newest::new(&rows(&[], &[]).schema(), NewestSettings { key: vec![0], ..SETTINGS }, LIMITS).unwrap()
    }

    /// Offers rows; gives how many were older, and how many unfit.
    fn offer(newest: &mut Newest, keys: &[i64], times_us: &[i64]) -> (u64, usize) {
        let times: Vec<_> = times_us.iter().copied().map(Some).collect();
        let offered = newest.offer(&rows(keys, &times), 0).unwrap();
        (offered.older, offered.unfit.len())
    }

    /// Closes an epoch; gives keys and times of its rows, how many others were older, and how many unfit.
    fn close(newest: &mut Newest, epoch: u64) -> (Vec<(i64, i64)>, u64, usize) {
        let closed = newest.close(epoch).unwrap();
        let of = |batch: &RecordBatch| {
            let keys = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
            keys.into_iter().zip(micros(batch.column(1)).unwrap().values().to_vec()).collect::<Vec<_>>()
        };
        let mut given: Vec<_> = closed.rows.iter().flat_map(of).collect();
        given.sort_unstable();
        (given, closed.older, closed.unfit.len())
    }

    /// The files that are durable, by epoch.
    #[derive(Default)]
    struct Durable(BTreeMap<u64, Bytes>);

    impl Durable {
        fn seal(&mut self, newest: &mut Newest, epoch: u64, watermark_us: i64) {
            let sealed = newest.seal(epoch, watermark_us).unwrap();
            if let Some(added) = sealed.added {
                self.0.insert(epoch, added);
                newest.adopt(epoch, self.file(epoch)).unwrap();
            }
            self.0.retain(|epoch, _| sealed.live.contains(epoch));
        }

        fn restored(&self, forgotten_until_us: i64) -> Newest {
            let mut restored = newest();
            let files = self.0.keys().map(|epoch| (*epoch, self.file(*epoch))).collect();
            restored.restore(files, Some(forgotten_until_us)).unwrap();
            restored
        }

        fn file(&self, epoch: u64) -> File {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&self.0[&epoch]).unwrap();
            file
        }
    }

    #[test]
    fn an_epoch_gives_one_row_of_a_key_if_it_is_newer_than_all_before() {
        let (mut newest, mut durable) = (newest(), Durable::default());
        assert_eq!(offer(&mut newest, &[1, 2, 1], &[10, 10, 12]), (1, 0));
        assert_eq!(offer(&mut newest, &[1, 1], &[11, 12]), (2, 0));
        assert_eq!(close(&mut newest, 1), (vec![(1, 12), (2, 10)], 0, 0));
        durable.seal(&mut newest, 1, WATERMARK_START);
        assert_eq!(offer(&mut newest, &[1, 2, 3], &[12, 11, 5]), (0, 0));
        assert_eq!(close(&mut newest, 2), (vec![(2, 11), (3, 5)], 1, 0));
        durable.seal(&mut newest, 2, WATERMARK_START);
        assert_eq!(close(&mut newest, 3), (vec![], 0, 0));
    }

    #[test]
    fn a_restart_knows_what_was_given_and_what_was_forgotten() {
        let (mut before, mut durable) = (newest(), Durable::default());
        offer(&mut before, &[1, 2], &[10, 500]);
        close(&mut before, 1);
        durable.seal(&mut before, 1, 20);
        offer(&mut before, &[3], &[600]);
        close(&mut before, 2);
        durable.seal(&mut before, 2, 300);
        assert_eq!((before.forgotten_until_us(), durable.0.len()), (200, 2));
        let mut after = durable.restored(200);
        // 2 and 3 are known; 1 is forgotten, so that a row of time 150 cannot be judged, and one of 201 is a first one.
        assert_eq!(offer(&mut after, &[2, 3, 1, 1], &[499, 601, 150, 201]), (0, 0));
        assert_eq!(close(&mut after, 3), (vec![(1, 201), (3, 601)], 1, 1));
        durable.seal(&mut after, 3, WATERMARK_END);
        assert_eq!(after.forgotten_until_us(), 200);
        // A row that comes late is judged by the key that is known.
        assert_eq!(offer(&mut after, &[1, 9], &[199, 199]), (0, 0));
        assert_eq!(close(&mut after, 4), (vec![], 1, 1));
    }

    #[test]
    fn the_newest_rows_are_those_of_a_map_whatever_is_in_files() {
        let mut random = 5_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from((random >> 33) % below).unwrap()
        };
        let (mut tested, mut durable) = (newest(), Durable::default());
        // How new the newest row of each key is, and the last time of one.
        let mut known: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        let (mut now, mut forgotten_us, mut most) = (0, i64::MIN, 0);
        for epoch in 1..=400 {
            let before = known.clone();
            let (mut given, mut older, mut late, mut told) = (BTreeMap::new(), 0, 0, 0);
            for _ in 0..next(40) {
                let (key, time) = (next(200), now + next(60) - if next(20) == 0 { 150 } else { 0 });
                told += offer(&mut tested, &[key], &[time]).0;
                match known.get(&key).filter(|known| known.1 > forgotten_us) {
                    None if time <= forgotten_us => late += 1,
                    Some(known) if time <= known.0 => older += 1,
                    _ => {
                        older += u64::from(given.insert(key, time).is_some());
                        known.insert(key, (time, time));
                    }
                }
            }
            let (found, more_older, found_late) = close(&mut tested, epoch);
            let expected: Vec<_> = given.into_iter().collect();
            assert_eq!((found, told + more_older, found_late), (expected, older, late), "epoch {epoch} {before:?}");
            now += next(12);
            durable.seal(&mut tested, epoch, now);
            forgotten_us = tested.forgotten_until_us();
            most = most.max(durable.0.len());
            if epoch % 13 == 0 {
                tested = durable.restored(forgotten_us);
            }
        }
        assert!(most < 150, "{most} files: those of forgotten keys go");
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
        assert_eq!(close(&mut newest, 1).0, keys.iter().map(|key| (*key, 99)).collect::<Vec<_>>());
    }
}
