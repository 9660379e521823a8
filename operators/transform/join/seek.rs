//! Rows that look for the newest row of another stream with their keys: these pass by once, in any order.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};

use crate::error::Result;

/// Which of several rows of the same keys and time counts: the greatest by its columns, one after the other.
pub struct Newness {
    converter: RowConverter,
    columns: Vec<usize>,
    /// What a row meets that meets nobody: NULLs.
    nobody: RecordBatch,
}

/// The keys of some rows.
pub struct KeyRows {
    /// Which rows have all keys; nothing if all do.
    known: Option<NullBuffer>,
    /// The keys as bytes; nothing if there are none, which are the same for all rows.
    rows: Option<Rows>,
}

/// Rows that look for the newest one.
pub struct Seek<'a> {
    newness: &'a Newness,
    /// Whether it may be of their very time.
    same_time: bool,
    /// For each key where its rows stand in `ends_us`.
    spans: HashMap<&'a [u8], Range<usize>>,
    /// The ends of their times, in order within a key.
    ends_us: Vec<i64>,
    /// The newest row that has passed of those that a row may meet, but not the row before it of the same key.
    best: Vec<Option<Candidate>>,
    /// Which row of which batch each of them is.
    origins: Vec<(usize, usize)>,
    passed: Passed<'a>,
    /// What the rows that have passed may take in memory, before those are left out that are not the newest any more.
    held_bytes_max: usize,
}

/// A row that has passed, and the end of its time.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    end_us: i64,
    batch: usize,
    row: usize,
}

/// Batches of which some rows have been the newest.
struct Passed<'a> {
    newness: &'a Newness,
    batches: Vec<RecordBatch>,
    /// Their rows in their order, which is looked at only where two are of the same time.
    ordered: Vec<OnceCell<Option<Rows>>>,
    bytes: usize,
}

impl Newness {
    /// Takes the columns of rows, which may be NULL.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        let field = |column: usize| SortField::new(schema.field(column).data_type().clone());
        let comparable = |column: &usize| RowConverter::supports_fields(&[field(*column)]);
        let columns: Vec<usize> = (0..schema.fields().len()).filter(comparable).collect();
        let converter = RowConverter::new(columns.iter().map(|column| field(*column)).collect())?;
        let nothing = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let nobody = RecordBatch::try_new(schema.clone(), nothing)?;
        Ok(Self { converter, columns, nobody })
    }

    /// Gives beside each of some rows that met nobody what it meets.
    pub fn nobody(&self, rows: usize) -> Result<RecordBatch> {
        Ok(interleave_record_batch(&[&self.nobody], &vec![(0, 0); rows])?)
    }

    /// Leaves out the rows that newer ones of the same keys have replaced at `bound_us`, where their times end.
    pub fn newest(
        &self,
        rows: Vec<RecordBatch>,
        keys: &[KeyRows],
        ends_us: &[Vec<Option<i64>>],
        bound_us: i64,
    ) -> Result<Vec<RecordBatch>> {
        let mut passed = Passed::new(self);
        rows.into_iter().for_each(|rows| passed.hold(rows));
        let mut newest: HashMap<&[u8], Candidate> = HashMap::new();
        let mut kept = Vec::with_capacity(keys.len());
        for (batch, (keys, ends_us)) in keys.iter().zip(ends_us).enumerate() {
            for (row, end_us) in ends_us.iter().enumerate() {
                let Some(end_us) = end_us.filter(|end_us| *end_us <= bound_us) else { continue };
                let here = Candidate { end_us, batch, row };
                let known = newest.entry(keys.at(row)).or_insert(here);
                if passed.compare(*known, here).is_lt() {
                    *known = here;
                }
            }
            kept.push(ends_us.iter().map(|end| end.is_some_and(|end| end > bound_us)).collect::<Vec<bool>>());
        }
        for newest in newest.values() {
            if let Some(kept) = kept.get_mut(newest.batch).and_then(|kept| kept.get_mut(newest.row)) {
                *kept = true;
            }
        }
        let marked = passed.batches.iter().zip(kept);
        marked.map(|(rows, kept)| Ok(filter_record_batch(rows, &BooleanArray::from(kept))?)).collect()
    }
}

impl KeyRows {
    /// Converts the keys of rows.
    pub fn new(converter: &RowConverter, keys: &[ArrayRef]) -> Result<Self> {
        let known =
            keys.iter().fold(None, |known, key| NullBuffer::union(known.as_ref(), key.logical_nulls().as_ref()));
        let rows = if keys.is_empty() { None } else { Some(converter.convert_columns(keys)?) };
        Ok(Self { known, rows })
    }

    /// Tells whether a row has all keys.
    pub fn is_known(&self, row: usize) -> bool {
        self.known.as_ref().is_none_or(|known| known.is_valid(row))
    }

    fn at(&self, row: usize) -> &[u8] {
        self.rows.as_ref().map_or(&[], |rows| rows.row(row).data())
    }
}

impl<'a> Seek<'a> {
    /// Takes the keys of rows, batch by batch, and the ends of their times.
    pub fn new(
        newness: &'a Newness,
        same_time: bool,
        keys: &'a [KeyRows],
        ends_us: &[Vec<Option<i64>>],
        held_bytes_max: usize,
    ) -> Self {
        let mut seeking = Vec::new();
        for (batch, (keys, ends_us)) in keys.iter().zip(ends_us).enumerate() {
            let rows = ends_us.iter().enumerate().filter(|(row, _)| keys.is_known(*row));
            seeking.extend(rows.filter_map(|(row, end_us)| Some((keys.at(row), (*end_us)?, (batch, row)))));
        }
        seeking.sort_unstable();
        let mut spans: HashMap<&[u8], Range<usize>> = HashMap::new();
        for (place, (key, _, _)) in seeking.iter().enumerate() {
            spans.entry(key).or_insert(place..place).end = place + 1;
        }
        let ends_us = seeking.iter().map(|(_, end_us, _)| *end_us).collect();
        let origins: Vec<_> = seeking.into_iter().map(|(_, _, origin)| origin).collect();
        let (best, passed) = (vec![None; origins.len()], Passed::new(newness));
        Self { newness, same_time, spans, ends_us, best, origins, passed, held_bytes_max }
    }

    /// Has rows pass by, with their keys and the ends of their times.
    pub fn pass(&mut self, rows: &RecordBatch, keys: &KeyRows, ends_us: &[Option<i64>]) -> Result<()> {
        let batch = self.passed.batches.len();
        self.passed.hold(rows.clone());
        let mut is_held = false;
        for (row, end_us) in ends_us.iter().enumerate() {
            let (Some(span), Some(end_us)) = (self.spans.get(keys.at(row)), *end_us) else { continue };
            let times = self.ends_us.get(span.clone()).unwrap_or_default();
            let too_early = times.partition_point(|time| *time < end_us || !self.same_time && *time == end_us);
            let Some(best) = self.best.get_mut(span.start + too_early).filter(|_| too_early < times.len()) else {
                continue;
            };
            let here = Candidate { end_us, batch, row };
            if best.is_none_or(|best| self.passed.compare(best, here).is_lt()) {
                *best = Some(here);
                is_held = true;
            }
        }
        if !is_held {
            self.passed.let_go();
        } else if self.passed.bytes > self.held_bytes_max {
            self.compact()?;
        }
        Ok(())
    }

    /// Gives beside the rows of each batch, of which there are so many, what each of them meets.
    pub fn met(mut self, rows: &[usize]) -> Result<Vec<RecordBatch>> {
        for span in self.spans.values() {
            let mut newest: Option<Candidate> = None;
            for best in self.best.get_mut(span.clone()).unwrap_or_default() {
                newest = match (newest, *best) {
                    (Some(before), Some(here)) if self.passed.compare(before, here).is_gt() => Some(before),
                    (before, here) => here.or(before),
                };
                *best = newest;
            }
        }
        let mut places: Vec<Vec<(usize, usize)>> = rows.iter().map(|rows| vec![(0, 0); *rows]).collect();
        for ((batch, row), best) in self.origins.iter().zip(&self.best) {
            let place = places.get_mut(*batch).and_then(|places| places.get_mut(*row));
            if let (Some(place), Some(best)) = (place, best) {
                *place = (best.batch + 1, best.row);
            }
        }
        let sources: Vec<&RecordBatch> = [&self.newness.nobody].into_iter().chain(&self.passed.batches).collect();
        places.iter().map(|places| Ok(interleave_record_batch(&sources, places)?)).collect()
    }

    /// Copies the rows that are the newest, and lets go of the others.
    fn compact(&mut self) -> Result<()> {
        let newest: Vec<&mut Candidate> = self.best.iter_mut().flatten().collect();
        let places: Vec<(usize, usize)> = newest.iter().map(|newest| (newest.batch, newest.row)).collect();
        let copied = interleave_record_batch(&self.passed.batches.iter().collect::<Vec<_>>(), &places)?;
        for (row, newest) in newest.into_iter().enumerate() {
            (newest.batch, newest.row) = (0, row);
        }
        self.passed = Passed::new(self.newness);
        self.passed.hold(copied);
        // What is needed is needed: it is looked at again when there is twice as much.
        self.held_bytes_max = self.held_bytes_max.max(2 * self.passed.bytes);
        Ok(())
    }
}

impl<'a> Passed<'a> {
    fn new(newness: &'a Newness) -> Self {
        Self { newness, batches: Vec::new(), ordered: Vec::new(), bytes: 0 }
    }

    fn hold(&mut self, rows: RecordBatch) {
        self.bytes += rows.get_array_memory_size();
        self.batches.push(rows);
        self.ordered.push(OnceCell::new());
    }

    /// Lets go of the last batch.
    fn let_go(&mut self) {
        self.bytes -= self.batches.pop().map_or(0, |rows| rows.get_array_memory_size());
        self.ordered.pop();
    }

    fn compare(&self, a: Candidate, b: Candidate) -> Ordering {
        a.end_us.cmp(&b.end_us).then_with(|| {
            let row = |of: Candidate| self.ordered(of.batch).map(|rows| rows.row(of.row));
            row(a).cmp(&row(b))
        })
    }

    fn ordered(&self, batch: usize) -> Option<&Rows> {
        let convert = || {
            let columns = self.batches.get(batch)?.project(&self.newness.columns).ok()?;
            self.newness.converter.convert_columns(columns.columns()).ok()
        };
        self.ordered.get(batch)?.get_or_init(convert).as_ref()
    }
}
