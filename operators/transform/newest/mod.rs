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

use crate::error::{Error, Result};
use crate::quarantine::Quarantined;
use crate::transform::held::Held;
use crate::transform::keyed::with_number;
use crate::transform::keys::hashes;
use crate::transform::rows;
use crate::transform::rows::STATE_BATCH_ROWS;
use crate::transform::sealed::Sealed;
use crate::transform::states::{Ends, StateLimits, States, Wanted};
use crate::transform::versions::newest;
use crate::transform::window::{WATERMARK_END, WATERMARK_START, Width, Window, micros};

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
mod tests;
