//! As-of joins: each row of the left with the newest row of the right of the same keys that is not newer than itself.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::physical_expr::PhysicalExpr;

use super::seek::{KeyRows, Newness, Seek};
use super::{Out, timeless};
use crate::error::Result;
use crate::transform::query::failed;
use crate::transform::rows::coalesced;
use crate::transform::sealed::Sealed;
use crate::transform::states::{Ends, StateLimits, States, Wanted};
use crate::transform::window::{WATERMARK_START, Width, Window};

/// One side of an as-of join.
pub struct AsOfSide {
    /// A row's time, as a window of a microsecond.
    time: Window,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

/// Has each row of the left meet the newest one of the right.
///
/// A row of the left comes out when the watermark has passed it: then no row on time can be the newest for it any more.
/// Of the right, all rows are kept that the watermark has not passed, and of the others the newest of each key.
pub struct AsOf {
    left: AsOfSide,
    right: AsOfSide,
    /// Rows of the left by their time.
    left_rows: States,
    /// Rows of the right by their keys.
    right_rows: States,
    /// Whether a row of the right may have the very time of the left's.
    same_time: bool,
    keys: RowConverter,
    newness: Newness,
    /// What rows that come out at once take, in bytes, and the rows beside them that they meet.
    piece_bytes: usize,
    /// Rows of the right before this are replaced by newer ones.
    passed_us: i64,
}

impl AsOfSide {
    /// Takes what gives the time of a row and its keys.
    pub fn new(time: Arc<dyn PhysicalExpr>, keys: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Self { time: Window { start: time, width: Width::Micros(1) }, keys }
    }

    fn keys_of(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows).and_then(|key| key.into_array(rows.num_rows()));
        self.keys.iter().map(|expr| key(expr).map_err(failed)).collect()
    }
}

impl AsOf {
    /// Takes both sides, whose keys are of the same types, and their columns, of which those of the right may be NULL.
    pub fn new(
        [left, right]: [AsOfSide; 2],
        same_time: bool,
        schemas: &[SchemaRef; 2],
        limits: StateLimits,
    ) -> Result<Self> {
        let [left_schema, right_schema] = schemas;
        let fields = left.keys.iter().map(|key| Ok(SortField::new(key.data_type(left_schema).map_err(failed)?)));
        let keys = RowConverter::new(fields.collect::<Result<_>>()?)?;
        let left_rows = States::new(left_schema.clone(), Vec::new(), Ends::Window(left.time.clone()), limits)?;
        let right_rows = States::with_keys(right_schema.clone(), right.keys.clone(), Ends::Never, limits)?;
        let newness = Newness::new(right_schema)?;
        let (piece_bytes, passed_us) = (limits.piece_bytes / 2, WATERMARK_START);
        Ok(Self { left, right, left_rows, right_rows, same_time, keys, newness, piece_bytes, passed_us })
    }

    /// Takes fresh rows of both sides, gives the rows of the left whose time has passed, with what they have met, and
    /// tells up to which time rows are late from now on.
    ///
    /// Without a time the input has ended: all rows of the left come out.
    pub async fn meet(
        &mut self,
        [left, right]: [Vec<RecordBatch>; 2],
        time_us: Option<i64>,
        passed_us: i64,
        out: &Out,
    ) -> Result<i64> {
        for rows in coalesced(left)? {
            let (rows, timeless) = timeless(&self.left.time, rows)?;
            self.left_rows.add(&rows)?;
            give(out, &timeless, &self.newness.nobody(timeless.num_rows())?).await?;
        }
        for rows in coalesced(right)? {
            self.right_rows.add(&self.findable(&rows)?)?;
        }
        let bound_us = match time_us {
            Some(time_us) => time_us,
            None => self.left_rows.last_us()?.map_or(passed_us, |last| last.max(passed_us)),
        };
        let mut due = self.left_rows.blocks(Wanted::span(WATERMARK_START, bound_us))?;
        let mut looking = LookUp {
            left: &self.left,
            right: &self.right,
            rows: &mut self.right_rows,
            same_time: self.same_time,
            keys: &self.keys,
            newness: &self.newness,
            held_bytes_max: self.piece_bytes,
        };
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while let Some(rows) = due.next_block()? {
            bytes += rows.get_array_memory_size();
            piece.push(rows);
            if bytes > self.piece_bytes {
                looking.give(std::mem::take(&mut piece), out).await?;
                bytes = 0;
            }
        }
        looking.give(piece, out).await?;
        self.left_rows.forget(bound_us);
        self.passed_us = bound_us;
        Ok(bound_us)
    }

    /// Closes the epoch: tells what has to be durable of each side.
    pub fn seal(&mut self, epoch: u64) -> Result<[[Sealed; 2]; 2]> {
        for rows in self.left_rows.take_mergeable()? {
            self.left_rows.add(&rows)?;
        }
        let merged = self.right_rows.take_mergeable()?;
        for rows in self.newest(merged)? {
            self.right_rows.add(&rows)?;
        }
        let none = Sealed::default;
        Ok([[self.left_rows.seal(epoch)?, none()], [self.right_rows.seal(epoch)?, none()]])
    }

    /// Gives what is kept of each side.
    pub fn states(&mut self) -> [[Option<&mut States>; 2]; 2] {
        [[Some(&mut self.left_rows), None], [Some(&mut self.right_rows), None]]
    }

    /// Goes on from the files of some epochs.
    pub fn restore(&mut self, [left, right]: [[Vec<(u64, File)>; 2]; 2], passed_us: i64) -> Result<()> {
        let ([left, _], [right, _]) = (left, right);
        self.passed_us = passed_us;
        self.left_rows.restore(left, passed_us, Ok)?;
        self.right_rows.restore(right, WATERMARK_START, Ok)
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.left_rows.size_bytes() + self.right_rows.size_bytes()
    }

    /// Keeps of fresh rows of the right those that can be found: with a time and with keys.
    fn findable(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let keys = KeyRows::new(&self.keys, &self.right.keys_of(rows)?)?;
        let ends = self.right.time.ends_us(rows)?;
        let mark = ends.iter().enumerate().map(|(row, end)| end.is_some() && keys.is_known(row));
        Ok(filter_record_batch(rows, &mark.map(Some).collect::<BooleanArray>())?)
    }

    /// Leaves out rows of the right that newer ones have replaced.
    fn newest(&self, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let (mut keys, mut ends) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for rows in &rows {
            keys.push(KeyRows::new(&self.keys, &self.right.keys_of(rows)?)?);
            ends.push(self.right.time.ends_us(rows)?);
        }
        self.newness.newest(rows, &keys, &ends, self.passed_us)
    }
}

/// Looks up what rows of the left meet.
struct LookUp<'a> {
    left: &'a AsOfSide,
    right: &'a AsOfSide,
    rows: &'a mut States,
    same_time: bool,
    keys: &'a RowConverter,
    newness: &'a Newness,
    held_bytes_max: usize,
}

impl LookUp<'_> {
    /// Gives each row of the left with the one that it meets, or NULLs.
    async fn give(&mut self, ready: Vec<RecordBatch>, out: &Out) -> Result<()> {
        let (mut keys, mut ends, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for rows in &ready {
            let columns = self.left.keys_of(rows)?;
            let of_rows = KeyRows::new(self.keys, &columns)?;
            let stand = self.rows.places_of(&columns, rows.num_rows())?.into_iter().enumerate();
            places.extend(stand.filter(|(row, _)| of_rows.is_known(*row)).map(|(_, place)| place));
            keys.push(of_rows);
            ends.push(self.left.time.ends_us(rows)?);
        }
        let mut seek = Seek::new(self.newness, self.same_time, &keys, &ends, self.held_bytes_max);
        let mut blocks = self.rows.blocks(Wanted::places(places))?;
        while let Some(rows) = blocks.next_block()? {
            let keys = KeyRows::new(self.keys, &self.right.keys_of(&rows)?)?;
            seek.pass(&rows, &keys, &self.right.time.ends_us(&rows)?)?;
        }
        let counts: Vec<usize> = ready.iter().map(RecordBatch::num_rows).collect();
        let met = seek.met(&counts)?;
        for (rows, met) in ready.iter().zip(met) {
            give(out, rows, &met).await?;
        }
        Ok(())
    }
}

/// Gives rows of the left beside what they have met.
async fn give(out: &Out, left: &RecordBatch, right: &RecordBatch) -> Result<()> {
    if left.num_rows() == 0 {
        return Ok(());
    }
    let columns = left.columns().iter().chain(right.columns()).cloned().collect();
    out.give(&RecordBatch::try_new(out.joined.clone(), columns)?).await
}
