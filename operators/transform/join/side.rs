//! One side of a join within a time bound: the rows that may still meet one of the other side.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt64Type};
use futures::TryStreamExt;

use super::meetings::{Kept, Meetings};
use super::numbers::Numbers;
use super::{Out, timeless};
use crate::error::{Error, Result};
use crate::transform::query::Query;
use crate::transform::rows::coalesced;
use crate::transform::sealed::Sealed;
use crate::transform::states::{Ends, StateLimits, States, Wanted};
use crate::transform::window::{WATERMARK_END, WATERMARK_START, Window};

/// The column with a row's number within its side. It comes last of a row's own.
pub const ROW_COLUMN: &str = "__row";

/// The column with the time of a row that has found a partner.
pub const TIME_COLUMN: &str = "__time";

/// Bits of a row's number that count rows within an epoch, as if each of them had so many.
const EPOCH_BITS: u32 = 32;

/// Keeps one side's rows as long as a row on time of the other side may meet them.
pub struct Side {
    rows: States,
    until: Window,
    partners: Option<Partners>,
    /// Its columns among those of the join.
    columns: Range<usize>,
}

/// Knows which rows of a side have found a partner.
pub struct Partners {
    meetings: Meetings,
    leave: bool,
    found: Numbers,
    /// The numbers and times of kept rows that have found a partner, as long as their files may hold them.
    log: States,
    until: Window,
    /// The numbers and times of those that have found one in the open epoch.
    fresh_found: Vec<RecordBatch>,
    /// The number of the first row of the open epoch.
    fresh_row: u64,
    next_row: u64,
}

impl Partners {
    /// Takes the query that gives [`ROW_COLUMN`] and [`TIME_COLUMN`] of each row of its first input that has a partner in
    /// the second, perhaps behind the row itself, and how long that time counts: over these two columns. With `leave`, a
    /// row leaves its side once it has found a partner.
    pub fn new(meetings: Meetings, leave: bool, until: Window, limits: StateLimits) -> Result<Self> {
        let log = noted(&meetings.query().schema())?;
        let log = States::new(log, Vec::new(), Ends::Window(until.clone()), limits)?;
        let (found, fresh_found) = Default::default();
        Ok(Self { meetings, leave, found, log, until, fresh_found, fresh_row: 0, next_row: 0 })
    }

    /// Forgets rows whose time has passed at `bound_us`, and notes which others have found a partner.
    fn note(&mut self, bound_us: i64) -> Result<()> {
        let mut blocks = self.log.blocks(Wanted::span(WATERMARK_START, bound_us))?;
        while let Some(passed) = blocks.next_block()? {
            numbers(&passed)?.values().iter().for_each(|number| self.found.remove(*number));
        }
        self.log.forget(bound_us);
        for found in self.fresh_found.drain(..) {
            let mut noted = Vec::with_capacity(found.num_rows());
            for (number, end_us) in numbers(&found)?.values().iter().zip(self.until.ends_us(&found)?) {
                // One that leaves before it was kept leaves no trace.
                let is_kept = end_us.is_some_and(|end| end > bound_us) && !(self.leave && *number >= self.fresh_row);
                if !is_kept {
                    self.found.remove(*number);
                }
                noted.push(is_kept);
            }
            self.log.add(&filter_record_batch(&found, &BooleanArray::from(noted))?)?;
        }
        Ok(())
    }
}

impl Side {
    /// Keeps rows of these columns until their time has passed; `columns` is their place among those of the join.
    pub fn new(
        kept: &SchemaRef,
        columns: Range<usize>,
        until: Window,
        partners: Option<Partners>,
        limits: StateLimits,
    ) -> Result<Self> {
        let schema = if partners.is_some() { with_row(kept) } else { kept.clone() };
        let rows = States::new(schema, Vec::new(), Ends::Window(until.clone()), limits)?;
        Ok(Self { rows, until, partners, columns })
    }

    /// Has the plans made again before the next run.
    pub fn refresh(&mut self) {
        if let Some(partners) = &mut self.partners {
            partners.meetings.refresh();
        }
    }

    /// Gives the query that finds partners.
    pub fn query(&self) -> Option<&Query> {
        self.partners.as_ref().map(|partners| partners.meetings.query())
    }

    /// Gives the rows that are kept.
    pub fn kept(&mut self) -> Kept<'_> {
        Kept::all(&mut self.rows)
    }

    /// Numbers rows that have come, where it matters which of them find a partner. Rows without a time meet nobody: they
    /// go to `alone` at once, or are dropped.
    pub async fn admit(&mut self, rows: Vec<RecordBatch>, alone: Option<&Out>) -> Result<Vec<RecordBatch>> {
        if let Some(partners) = &mut self.partners {
            partners.fresh_row = partners.next_row;
        }
        let mut admitted = Vec::with_capacity(rows.len());
        for rows in coalesced(rows)? {
            let (rows, timeless) = timeless(&self.until, rows)?;
            let Some(partners) = &mut self.partners else {
                admitted.push(rows);
                continue;
            };
            if let Some(out) = alone {
                out.give_alone(&timeless, &self.columns).await?;
            }
            let end = partners.next_row + rows.num_rows() as u64;
            let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(partners.next_row..end));
            partners.next_row = end;
            let columns = rows.columns().iter().cloned().chain([numbers]).collect();
            admitted.push(RecordBatch::try_new(with_row(&rows.schema()), columns)?);
        }
        admitted.retain(|rows| rows.num_rows() > 0);
        Ok(admitted)
    }

    /// Finds the rows that had no partner and have one now. With `paired`, they go there: whole, as they are found.
    pub async fn find(
        &mut self,
        fresh: &[RecordBatch],
        other: &mut Side,
        fresh_of_other: &[RecordBatch],
        paired: Option<&Out>,
    ) -> Result<()> {
        let Some(partners) = &mut self.partners else { return Ok(()) };
        let mut met = partners.meetings.of_first(fresh, other.kept(), fresh_of_other).await?;
        while let Some(rows) = met.try_next().await? {
            partners.fresh_found.push(tell(&rows, &self.columns, paired).await?);
        }
        drop(met);
        let kept = Kept { rows: &mut self.rows, without: Some(&partners.found) };
        let mut met = partners.meetings.of_second(kept, fresh_of_other).await?;
        while let Some(rows) = met.try_next().await? {
            partners.fresh_found.push(tell(&rows, &self.columns, paired).await?);
        }
        drop(met);
        for found in &partners.fresh_found {
            numbers(found)?.values().iter().for_each(|number| partners.found.insert(*number));
        }
        Ok(())
    }

    /// Keeps rows that have come, and drops those whose time has passed. With `alone`, those of them that have found no
    /// partner go there.
    pub async fn keep(&mut self, fresh: Vec<RecordBatch>, bound_us: i64, alone: Option<&Out>) -> Result<()> {
        let alone = alone.zip(self.partners.as_ref());
        if let Some((out, partners)) = alone {
            let mut blocks = self.rows.blocks(Wanted::span(WATERMARK_START, bound_us))?;
            while let Some(passed) = blocks.next_block()? {
                out.give_alone(&without(&passed, &partners.found)?, &self.columns).await?;
            }
        }
        self.rows.forget(bound_us);
        for rows in fresh {
            let passed = self.until.closed(&rows, bound_us)?;
            if let Some((out, partners)) = alone {
                let passed = filter_record_batch(&rows, &passed)?;
                out.give_alone(&without(&passed, &partners.found)?, &self.columns).await?;
            }
            let kept = filter_record_batch(&rows, &not(&passed)?)?;
            let leaving = self.partners.as_ref().filter(|partners| partners.leave);
            self.rows.add(&leaving.map_or(Ok(kept.clone()), |partners| without(&kept, &partners.found))?)?;
        }
        self.partners.as_mut().map_or(Ok(()), |partners| partners.note(bound_us))
    }

    /// Gives the time at which the last row passes that has found no partner, if it matters.
    pub fn last_alone_us(&mut self, fresh: &[RecordBatch]) -> Result<Option<i64>> {
        let Some(partners) = &self.partners else { return Ok(None) };
        let last = |rows: &RecordBatch| {
            let ends = self.until.ends_us(&without(rows, &partners.found)?)?;
            Ok::<_, Error>(ends.into_iter().flatten().max())
        };
        let mut last_us = None;
        for rows in fresh {
            last_us = last_us.max(last(rows)?);
        }
        let mut blocks = self.rows.blocks(Wanted::span(WATERMARK_START, WATERMARK_END))?;
        while let Some(rows) = blocks.next_block()? {
            last_us = last_us.max(last(&rows)?);
        }
        Ok(last_us)
    }

    /// Closes the epoch: tells what has to be durable of the rows, and of which have found a partner.
    pub fn seal(&mut self, epoch: u64) -> Result<[Sealed; 2]> {
        for rows in self.rows.take_mergeable()? {
            let left = self.partners.as_ref().filter(|partners| partners.leave);
            self.rows.add(&left.map_or(Ok(rows.clone()), |partners| without(&rows, &partners.found))?)?;
        }
        let rows = self.rows.seal(epoch)?;
        let Some(partners) = &mut self.partners else { return Ok([rows, Sealed::default()]) };
        for found in partners.log.take_mergeable()? {
            partners.log.add(&found)?;
        }
        Ok([rows, partners.log.seal(epoch)?])
    }

    /// Gives the rows, and which of them have found a partner, as they are kept.
    pub fn states(&mut self) -> [Option<&mut States>; 2] {
        [Some(&mut self.rows), self.partners.as_mut().map(|partners| &mut partners.log)]
    }

    /// Goes on from the files of some epochs, oldest first.
    pub fn restore(&mut self, rows: Vec<(u64, File)>, found: Vec<(u64, File)>, bound_us: i64) -> Result<()> {
        let last = rows.iter().chain(&found).map(|(epoch, _)| *epoch).max();
        self.rows.restore(rows, bound_us, Ok)?;
        let Some(partners) = &mut self.partners else { return Ok(()) };
        partners.log.restore(found, bound_us, Ok)?;
        let mut blocks = partners.log.blocks(Wanted::span(WATERMARK_START, WATERMARK_END))?;
        while let Some(found) = blocks.next_block()? {
            numbers(&found)?.values().iter().for_each(|number| partners.found.insert(*number));
        }
        // No epoch has so many rows, so those of the last one and of all before it have smaller numbers.
        partners.next_row = last.map_or(0, |last| (last + 1) << EPOCH_BITS);
        Ok(())
    }

    /// Gives the memory that is taken, in bytes.
    pub fn size_bytes(&self) -> usize {
        let of = |partners: &Partners| partners.log.size_bytes() + partners.found.size_bytes();
        self.rows.size_bytes() + self.partners.as_ref().map_or(0, of)
    }
}

/// Gives the columns of a side's rows with their number.
pub fn with_row(schema: &SchemaRef) -> SchemaRef {
    let row: FieldRef = Arc::new(Field::new(ROW_COLUMN, DataType::UInt64, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([row]).collect::<Vec<_>>()))
}

/// Leaves out the rows with some numbers.
pub fn without(rows: &RecordBatch, numbers_out: &Numbers) -> Result<RecordBatch> {
    let kept: BooleanArray = numbers(rows)?.iter().map(|row| row.map(|row| !numbers_out.contains(row))).collect();
    Ok(if kept.true_count() == rows.num_rows() { rows.clone() } else { filter_record_batch(rows, &kept)? })
}

/// Tells the number and the time of rows that have found a partner; with `paired`, they go there.
async fn tell(rows: &RecordBatch, columns: &Range<usize>, paired: Option<&Out>) -> Result<RecordBatch> {
    if let Some(out) = paired {
        out.give_alone(rows, columns).await?;
    }
    let schema = rows.schema();
    Ok(rows.project(&[schema.index_of(ROW_COLUMN)?, schema.index_of(TIME_COLUMN)?])?)
}

fn numbers(rows: &RecordBatch) -> Result<&UInt64Array> {
    let column = rows.column_by_name(ROW_COLUMN).and_then(|column| column.as_primitive_opt::<UInt64Type>());
    column.ok_or_else(|| Error::internal("rows of a join have no numbers"))
}

/// Gives the columns in which is noted which rows have found a partner.
fn noted(found: &SchemaRef) -> Result<SchemaRef> {
    let places = [found.index_of(ROW_COLUMN)?, found.index_of(TIME_COLUMN)?];
    Ok(Arc::new(found.project(&places)?))
}
