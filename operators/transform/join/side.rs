//! One side of a join within a time bound: the rows that may still meet one of the other side.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt64Type};
use futures::TryStreamExt;

use super::{at_hand, over};
use crate::error::{Error, Result};
use crate::transform::query::{Query, failed};
use crate::transform::rows::coalesced;
use crate::transform::segments::{Segment, Segments, Snapshot};
use crate::transform::window::Window;

/// The column with a row's number within its side. It comes last.
pub const ROW_COLUMN: &str = "__row";

/// Keeps one side's rows as long as a row on time of the other side may meet them.
pub struct Side {
    rows: Segments,
    until: Window,
    partners: Option<Partners>,
}

/// Knows which rows of a side have found a partner.
pub struct Partners {
    meetings: Meetings,
    leave: bool,
    found: HashSet<u64>,
    /// The numbers and times of rows that have found a partner, as long as their files may hold them.
    log: Segments,
    until: Window,
    next_row: u64,
}

/// A query over two inputs, planned twice: for few rows of the first input, and for few of the second.
pub struct Meetings {
    few_first: Query,
    few_second: Query,
}

impl Meetings {
    /// Takes the same query twice, the first planned for few rows of its first input, the other for few of its second.
    pub fn new(few_first: Query, few_second: Query) -> Self {
        Self { few_first, few_second }
    }

    /// Gives the query.
    pub fn query(&self) -> &Query {
        &self.few_first
    }

    /// Has the plans made again before the next run.
    pub fn refresh(&mut self) {
        self.few_first.refresh();
        self.few_second.refresh();
    }

    /// Has all rows meet of which at least one is fresh: those of each input are given as kept and fresh ones.
    pub async fn run(
        &mut self,
        (kept, fresh): (Vec<RecordBatch>, &[RecordBatch]),
        (kept_second, fresh_second): (Vec<RecordBatch>, &[RecordBatch]),
    ) -> Result<Vec<datafusion::execution::SendableRecordBatchStream>> {
        let mut streams = Vec::new();
        let all_second = kept_second.into_iter().chain(fresh_second.iter().cloned()).collect();
        let of_fresh = at_hand(fresh.to_vec()).zip(at_hand(all_second));
        if let Some((first, second)) = of_fresh {
            streams.push(self.few_first.run(vec![first, second]).await?);
        }
        if let Some((first, second)) = at_hand(kept).zip(at_hand(fresh_second.to_vec())) {
            streams.push(self.few_second.run(vec![first, second]).await?);
        }
        Ok(streams)
    }
}

impl Partners {
    /// Takes the query that gives [`ROW_COLUMN`] and the time of each row of its first input that has a partner in the
    /// second, and how long that time counts. With `leave`, a row leaves its side once it has found a partner.
    pub fn new(meetings: Meetings, leave: bool, until: Window) -> Self {
        Self { meetings, leave, found: HashSet::new(), log: Segments::default(), until, next_row: 0 }
    }

    fn note(&mut self, rows: &RecordBatch) -> Result<()> {
        self.found.extend(numbers(rows)?.values());
        Ok(())
    }

    /// Keeps of some rows those that have not found a partner.
    fn alone(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let alone: BooleanArray = numbers(rows)?.iter().map(|row| row.map(|row| !self.found.contains(&row))).collect();
        Ok(filter_record_batch(rows, &alone)?)
    }
}

impl Side {
    /// Keeps rows until their time has passed.
    pub fn new(until: Window, partners: Option<Partners>) -> Self {
        Self { rows: Segments::default(), until, partners }
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
    pub fn rows(&self) -> Vec<RecordBatch> {
        self.rows.rows().cloned().collect()
    }

    /// Numbers rows that have come, where it matters which of them find a partner.
    pub fn number(&mut self, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let rows = coalesced(rows)?;
        let Some(partners) = &mut self.partners else { return Ok(rows) };
        let numbered = rows.into_iter().map(|batch| {
            let end = partners.next_row + batch.num_rows() as u64;
            let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(partners.next_row..end));
            partners.next_row = end;
            let columns = batch.columns().iter().cloned().chain([numbers]).collect();
            Ok(RecordBatch::try_new(with_row(&batch.schema()), columns)?)
        });
        numbered.collect()
    }

    /// Finds the rows that had no partner and have one now, by their numbers and times.
    pub async fn find(
        &mut self,
        fresh: &[RecordBatch],
        other: &Side,
        fresh_of_other: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>> {
        let Some(partners) = &mut self.partners else { return Ok(Vec::new()) };
        let alone = match fresh_of_other {
            [] => Vec::new(),
            _ => self.rows.rows().map(|rows| partners.alone(rows)).collect::<Result<Vec<_>>>()?,
        };
        let mut found = Vec::new();
        for rows in partners.meetings.run((alone, fresh), (other.rows(), fresh_of_other)).await? {
            found.extend(rows.try_collect::<Vec<_>>().await.map_err(failed)?);
        }
        Ok(found)
    }

    /// Keeps rows that have come, and notes which rows have found a partner. Gives those that leave for it.
    pub fn keep(&mut self, fresh: Vec<RecordBatch>, found: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        fresh.into_iter().for_each(|rows| self.rows.add(rows));
        let Some(partners) = &mut self.partners else { return Ok(Vec::new()) };
        for rows in found {
            partners.note(&rows)?;
            partners.log.add(rows);
        }
        if partners.leave { self.take_found() } else { Ok(Vec::new()) }
    }

    /// Drops the rows whose time has passed, and gives those of them that have found no partner.
    pub fn expire(&mut self, bound_us: i64) -> Result<Vec<RecordBatch>> {
        let taken = self.rows.take(|rows| over(&self.until, rows, bound_us))?;
        let Some(partners) = &mut self.partners else { return Ok(Vec::new()) };
        let alone = taken.iter().map(|rows| partners.alone(rows)).collect::<Result<Vec<_>>>()?;
        for gone in partners.log.take(|rows| over(&partners.until, rows, bound_us))? {
            for row in numbers(&gone)?.values() {
                partners.found.remove(row);
            }
        }
        Ok(alone.into_iter().filter(|rows| rows.num_rows() > 0).collect())
    }

    /// Gives the time at which the last row passes that has found no partner, if it matters.
    pub fn last_alone_us(&self) -> Result<Option<i64>> {
        let Some(partners) = &self.partners else { return Ok(None) };
        let mut last = None;
        for rows in self.rows.rows() {
            last = self.until.ends_us(&partners.alone(rows)?)?.into_iter().fold(last, Option::max);
        }
        Ok(last)
    }

    /// Closes the epoch: gives what has to be durable of the rows, and of which have found a partner.
    pub fn seal(&mut self, epoch: u64) -> Result<(Snapshot, Snapshot)> {
        merge(&mut self.rows)?;
        let rows = self.rows.seal(epoch);
        let Some(partners) = &mut self.partners else { return Ok((rows, Snapshot::default())) };
        merge(&mut partners.log)?;
        Ok((rows, partners.log.seal(epoch)))
    }

    /// Goes on from a snapshot. A segment is saved once: what has left it since is still in it.
    pub fn restore(&mut self, rows: Vec<Segment>, found: Vec<Segment>, bound_us: i64) -> Result<()> {
        self.rows.restore(rows);
        if let Some(partners) = &mut self.partners {
            partners.log.restore(found);
            let known: Vec<RecordBatch> = partners.log.rows().cloned().collect();
            known.iter().try_for_each(|rows| partners.note(rows))?;
            for rows in self.rows.rows().chain(partners.log.rows()) {
                let next = arrow::compute::max(numbers(rows)?).map_or(0, |last| last + 1);
                partners.next_row = partners.next_row.max(next);
            }
            if partners.leave {
                self.take_found()?;
            }
        }
        self.expire(bound_us).map(drop)
    }

    /// Gives the memory that is taken, in bytes.
    pub fn size_bytes(&self) -> usize {
        let partners = self
            .partners
            .as_ref()
            .map_or(0, |partners| partners.log.size_bytes() + partners.found.capacity() * size_of::<u64>());
        self.rows.size_bytes() + partners
    }

    fn take_found(&mut self) -> Result<Vec<RecordBatch>> {
        let Some(partners) = &self.partners else { return Ok(Vec::new()) };
        self.rows
            .take(|rows| Ok(numbers(rows)?.iter().map(|row| row.map(|row| partners.found.contains(&row))).collect()))
    }
}

/// Gives the columns of a side's rows with their number.
pub fn with_row(schema: &SchemaRef) -> SchemaRef {
    let row: FieldRef = Arc::new(Field::new(ROW_COLUMN, DataType::UInt64, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([row]).collect::<Vec<_>>()))
}

fn numbers(rows: &RecordBatch) -> Result<&UInt64Array> {
    let column = rows.column_by_name(ROW_COLUMN).and_then(|column| column.as_primitive_opt::<UInt64Type>());
    column.ok_or_else(|| Error::internal("rows of a join have no numbers"))
}

/// Merges small segments when there are many. Large ones are left alone, since nothing becomes less by it.
pub fn merge(segments: &mut Segments) -> Result<()> {
    coalesced(segments.take_alike())?.into_iter().for_each(|rows| segments.add(rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampMicrosecondArray;
    use datafusion::physical_expr::expressions::Column;

    use super::*;
    use crate::transform::window::Width;

    fn rows(times_us: &[Option<i64>]) -> RecordBatch {
        let times = TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        RecordBatch::try_from_iter([("at", Arc::new(times) as ArrayRef)]).unwrap()
    }

    /// A side whose rows are kept for ten microseconds.
    fn side() -> Side {
        Side::new(Window { start: Arc::new(Column::new("at", 0)), width: Width::Micros(11) }, None)
    }

    fn count(rows: &[RecordBatch]) -> usize {
        rows.iter().map(RecordBatch::num_rows).sum()
    }

    #[test]
    fn rows_are_kept_as_long_as_one_on_time_can_meet_them() {
        let mut side = side();
        side.keep(vec![rows(&[Some(0), Some(5), Some(5), None])], Vec::new()).unwrap();
        for (watermark, left) in [(i64::MIN, 3), (10, 3), (11, 2), (15, 2), (16, 0)] {
            side.expire(watermark).unwrap();
            assert_eq!(count(&side.rows()), left, "at {watermark}");
        }
    }

    #[test]
    fn a_snapshot_has_what_is_new_and_a_restart_leaves_out_what_has_passed() {
        const EPOCHS: i64 = 5_000;
        let until = |reach| Window { start: Arc::new(Column::new("at", 0)), width: Width::Micros(reach) };
        // Rows live for four epochs, and for two thousand.
        for reach in [11, 6_000] {
            let mut whole = Side::new(until(reach), None);
            let (mut saved, mut written, mut files) = (Vec::new(), 0, 0);
            for epoch in 1..EPOCHS {
                whole.keep(vec![rows(&[Some(epoch * 3), Some(epoch * 3 + 1)])], Vec::new()).unwrap();
                whole.expire(epoch * 3).unwrap();
                let epoch = epoch.unsigned_abs();
                let (snapshot, _) = whole.seal(epoch).unwrap();
                written += count(&snapshot.added);
                saved.push(Segment { epoch, rows: snapshot.added });
                saved.retain(|segment| snapshot.live.contains(&segment.epoch));
                files = files.max(saved.len());
            }
            let rows = 2 * usize::try_from(EPOCHS).unwrap();
            assert!(written < 8 * rows && files <= 40, "{written} rows were written in up to {files} files");
            let mut again = Side::new(until(reach), None);
            again.restore(saved, Vec::new(), 3 * (EPOCHS - 1)).unwrap();
            assert_eq!(count(&again.rows()), count(&whole.rows()));
        }
    }
}
