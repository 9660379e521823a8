//! As-of joins: each row of the left with the newest row of the right of the same keys that is not newer than itself.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExpr;

use super::side::merge;
use super::{at_hand, over};
use crate::error::Result;
use crate::transform::query::failed;
use crate::transform::rows::coalesced;
use crate::transform::segments::{Segment, Segments, Snapshot};
use crate::transform::window::{Width, Window};

/// Rows that may be replaced by newer ones of their keys before they are looked for: the price of looking is paid once
/// for so many.
const REPLACED_MAX: usize = 8192;

/// One side of an as-of join.
pub struct AsOfSide {
    rows: Segments,
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
    /// Whether a row of the right may have the very time of the left's.
    same_time: bool,
    keys: RowConverter,
    /// Which of several rows of the same keys and time counts: the greatest by its columns, one after the other.
    order: RowConverter,
    ordered: Vec<usize>,
    none: RecordBatch,
    kept_min: usize,
}

/// Where a row of the right lies, and the end of its time.
#[derive(Clone, Copy)]
struct Place {
    end_us: i64,
    batch: usize,
    row: usize,
}

impl AsOfSide {
    /// Takes what gives the time of a row and its keys.
    pub fn new(time: Arc<dyn PhysicalExpr>, keys: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Self { rows: Segments::default(), time: Window { start: time, width: Width::Micros(1) }, keys }
    }

    fn keys_of(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows).and_then(|key| key.into_array(rows.num_rows()));
        self.keys.iter().map(|expr| key(expr).map_err(failed)).collect()
    }

    fn size_bytes(&self) -> usize {
        self.rows.size_bytes()
    }
}

impl AsOf {
    /// Takes both sides, whose keys are of the same types, and the columns of the right, which may be NULL.
    pub fn new([left, right]: [AsOfSide; 2], same_time: bool, schemas: &[SchemaRef; 2]) -> Result<Self> {
        let [left_schema, right_schema] = schemas;
        let fields = left.keys.iter().map(|key| Ok(SortField::new(key.data_type(left_schema).map_err(failed)?)));
        let keys = RowConverter::new(fields.collect::<Result<_>>()?)?;
        let field = |column: usize| SortField::new(right_schema.field(column).data_type().clone());
        let comparable = |column: &usize| RowConverter::supports_fields(&[field(*column)]);
        let ordered: Vec<usize> = (0..right_schema.fields().len()).filter(comparable).collect();
        let order = RowConverter::new(ordered.iter().map(|column| field(*column)).collect())?;
        let nothing = right_schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let none = RecordBatch::try_new(right_schema.clone(), nothing)?;
        Ok(Self { left, right, same_time, keys, order, ordered, none, kept_min: 0 })
    }

    /// Takes fresh rows of both sides, and gives the rows of the left whose time has passed, with what they have met,
    /// and up to which time rows are late from now on.
    ///
    /// Without a time the input has ended: all rows of the left come out.
    pub fn meet(
        &mut self,
        [left, right]: [Vec<RecordBatch>; 2],
        time_us: Option<i64>,
        passed_us: i64,
        joined: &SchemaRef,
    ) -> Result<(Vec<SendableRecordBatchStream>, i64)> {
        coalesced(left)?.into_iter().for_each(|rows| self.left.rows.add(rows));
        for rows in coalesced(right)? {
            self.right.rows.add(self.findable(&rows)?);
        }
        let bound_us = match time_us {
            Some(time_us) => time_us,
            None => {
                let mut last = passed_us;
                for rows in self.left.rows.rows() {
                    last = self.left.time.ends_us(rows)?.into_iter().flatten().fold(last, i64::max);
                }
                last
            }
        };
        let ready = self.left.rows.take(|rows| over(&self.left.time, rows, bound_us))?;
        let met = self.met(ready, joined)?;
        self.forget(bound_us)?;
        Ok((at_hand(met).into_iter().collect(), bound_us))
    }

    /// Closes the epoch: gives what has to be durable of each side.
    pub fn seal(&mut self, epoch: u64) -> Result<((Snapshot, Snapshot), (Snapshot, Snapshot))> {
        merge(&mut self.left.rows)?;
        merge(&mut self.right.rows)?;
        let none = Snapshot::default;
        Ok(((self.left.rows.seal(epoch), none()), (self.right.rows.seal(epoch), none())))
    }

    /// Goes on from a snapshot. A segment is saved once: what has left it since is still in it.
    pub fn restore(&mut self, left: Vec<Segment>, right: Vec<Segment>, passed_us: i64) -> Result<()> {
        self.left.rows.restore(left);
        self.right.rows.restore(right);
        self.left.rows.take(|rows| over(&self.left.time, rows, passed_us)).map(drop)
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.left.size_bytes() + self.right.size_bytes()
    }

    /// Keeps of fresh rows of the right those that can be found: with a time and with keys.
    fn findable(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let keys = self.right.keys_of(rows)?;
        let known = known(&keys);
        let ends = self.right.time.ends_us(rows)?;
        let mark = ends.iter().enumerate().map(|(row, end)| end.is_some() && is_known(known.as_ref(), row));
        Ok(filter_record_batch(rows, &mark.map(Some).collect::<BooleanArray>())?)
    }

    /// Puts beside each row of the left the one that it meets, or NULLs.
    fn met(&self, ready: Vec<RecordBatch>, joined: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let mut keys = Vec::with_capacity(ready.len());
        for rows in &ready {
            let columns = self.left.keys_of(rows)?;
            keys.push((known(&columns), self.rows_of(&columns)?));
        }
        let mut candidates: HashMap<&[u8], Vec<Place>> = HashMap::new();
        for (rows, (known, keys)) in ready.iter().zip(&keys) {
            let sought = (0..rows.num_rows()).filter(|row| is_known(known.as_ref(), *row));
            candidates.extend(sought.map(|row| (key_at(keys.as_ref(), row), Vec::new())));
        }
        let kept: Vec<&RecordBatch> = self.right.rows.rows().collect();
        for (batch, rows) in kept.iter().enumerate() {
            let keys = self.rows_of(&self.right.keys_of(rows)?)?;
            for (row, end_us) in self.right.time.ends_us(rows)?.into_iter().enumerate() {
                if let (Some(places), Some(end_us)) = (candidates.get_mut(key_at(keys.as_ref(), row)), end_us) {
                    places.push(Place { end_us, batch, row });
                }
            }
        }
        let order = Order::new(self, &kept);
        candidates.values_mut().for_each(|places| places.sort_by(|a, b| order.compare(*a, *b)));
        let sources: Vec<&RecordBatch> = [&self.none].into_iter().chain(kept.iter().copied()).collect();
        let mut met = Vec::with_capacity(ready.len());
        for (rows, (known, keys)) in ready.iter().zip(&keys) {
            let ends = self.left.time.ends_us(rows)?;
            let newest = ends.into_iter().enumerate().map(|(row, end_us)| {
                let key = is_known(known.as_ref(), row).then(|| key_at(keys.as_ref(), row));
                let places = key.and_then(|key| candidates.get(key)).zip(end_us);
                let found = places.and_then(|(places, end_us)| self.newest(places, end_us));
                found.map_or((0, 0), |place| (place.batch + 1, place.row))
            });
            let right = interleave_record_batch(&sources, &newest.collect::<Vec<_>>())?;
            let columns = rows.columns().iter().chain(right.columns()).cloned().collect();
            met.push(RecordBatch::try_new(joined.clone(), columns)?);
        }
        Ok(met)
    }

    /// Finds among places in their order the last one that a row whose time ends at `end_us` may meet.
    fn newest(&self, places: &[Place], end_us: i64) -> Option<Place> {
        let met = places.partition_point(|place| place.end_us < end_us || self.same_time && place.end_us == end_us);
        met.checked_sub(1).and_then(|last| places.get(last)).copied()
    }

    /// Forgets rows of the right that newer ones have replaced before `bound_us`, once they may be many.
    fn forget(&mut self, bound_us: i64) -> Result<()> {
        let rows: usize = self.right.rows.rows().map(RecordBatch::num_rows).sum();
        if rows <= 2 * self.kept_min + REPLACED_MAX {
            return Ok(());
        }
        let kept: Vec<&RecordBatch> = self.right.rows.rows().collect();
        let keys = kept.iter().map(|rows| self.rows_of(&self.right.keys_of(rows)?)).collect::<Result<Vec<_>>>()?;
        let order = Order::new(self, &kept);
        let mut newest: HashMap<&[u8], Place> = HashMap::new();
        let mut marks = Vec::with_capacity(kept.len());
        for (batch, (rows, keys)) in kept.iter().zip(&keys).enumerate() {
            let ends = self.right.time.ends_us(rows)?;
            for (row, end_us) in ends.iter().enumerate() {
                let Some(end_us) = end_us.filter(|end_us| *end_us <= bound_us) else { continue };
                let place = Place { end_us, batch, row };
                let known = newest.entry(key_at(keys.as_ref(), row)).or_insert(place);
                if order.compare(*known, place).is_lt() {
                    *known = place;
                }
            }
            marks.push(ends.into_iter().map(|end| end.is_some_and(|end| end <= bound_us)).collect::<Vec<bool>>());
        }
        for place in newest.values() {
            if let Some(mark) = marks.get_mut(place.batch).and_then(|marks| marks.get_mut(place.row)) {
                *mark = false;
            }
        }
        let mut marks = marks.into_iter();
        self.right.rows.take(|_| Ok(marks.next().unwrap_or_default().into_iter().map(Some).collect()))?;
        self.kept_min = self.right.rows.rows().map(RecordBatch::num_rows).sum();
        Ok(())
    }

    /// Converts keys to bytes; nothing if there are no keys, which are the same for all rows.
    fn rows_of(&self, keys: &[ArrayRef]) -> Result<Option<Rows>> {
        if keys.is_empty() { Ok(None) } else { Ok(Some(self.keys.convert_columns(keys)?)) }
    }
}

/// The order of rows of the right: by time, and then by their columns, which are looked at where it matters only.
struct Order<'a> {
    of: &'a AsOf,
    kept: &'a [&'a RecordBatch],
    rows: Vec<OnceCell<Option<Rows>>>,
}

impl<'a> Order<'a> {
    fn new(of: &'a AsOf, kept: &'a [&'a RecordBatch]) -> Self {
        Self { of, kept, rows: kept.iter().map(|_| OnceCell::new()).collect() }
    }

    fn compare(&self, a: Place, b: Place) -> Ordering {
        a.end_us.cmp(&b.end_us).then_with(|| {
            let row = |place: Place| self.rows_of(place.batch).map(|rows| rows.row(place.row));
            row(a).cmp(&row(b))
        })
    }

    fn rows_of(&self, batch: usize) -> Option<&Rows> {
        let convert = || {
            let columns = self.kept.get(batch)?.project(&self.of.ordered).ok()?;
            self.of.order.convert_columns(columns.columns()).ok()
        };
        self.rows.get(batch)?.get_or_init(convert).as_ref()
    }
}

/// Tells which rows have all keys; nothing if all do.
fn known(keys: &[ArrayRef]) -> Option<NullBuffer> {
    keys.iter().fold(None, |known, key| NullBuffer::union(known.as_ref(), key.logical_nulls().as_ref()))
}

fn is_known(known: Option<&NullBuffer>, row: usize) -> bool {
    known.is_none_or(|known| known.is_valid(row))
}

fn key_at(keys: Option<&Rows>, row: usize) -> &[u8] {
    keys.map_or(&[], |keys| keys.row(row).data())
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::{Int64Type, Schema};
    use datafusion::physical_expr::expressions::Column;
    use futures::{FutureExt, TryStreamExt};

    use super::*;

    fn rows(rows: &[(Option<i64>, Option<i64>, i64)]) -> RecordBatch {
        let times = TimestampMicrosecondArray::from(rows.iter().map(|row| row.0).collect::<Vec<_>>());
        let keys: Int64Array = rows.iter().map(|row| row.1).collect();
        let values: Int64Array = rows.iter().map(|row| Some(row.2)).collect();
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("at", Arc::new(times.with_timezone("UTC")), true),
            ("k", Arc::new(keys), true),
            ("v", Arc::new(values), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn joined() -> SchemaRef {
        let one = rows(&[]).schema();
        Arc::new(Schema::new(one.fields().iter().chain(one.fields()).cloned().collect::<Vec<_>>()))
    }

    fn as_of() -> AsOf {
        let side = || AsOfSide::new(Arc::new(Column::new("at", 0)), vec![Arc::new(Column::new("k", 1))]);
        let schema = rows(&[]).schema();
        AsOf::new([side(), side()], true, &[schema.clone(), schema]).unwrap()
    }

    /// Gives the values of the left with those that they have met.
    fn met(
        of: &mut AsOf,
        left: &[RecordBatch],
        right: &[RecordBatch],
        time_us: Option<i64>,
    ) -> Vec<(i64, Option<i64>)> {
        let (met, _) = of.meet([left.to_vec(), right.to_vec()], time_us, i64::MIN, &joined()).unwrap();
        let mut values = Vec::new();
        for stream in met {
            let batches: Vec<RecordBatch> = stream.try_collect().now_or_never().expect("it is at hand").unwrap();
            for batch in batches {
                let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
                values.extend(column(2).into_iter().map(|v| v.expect("a value")).zip(column(5)));
            }
        }
        values
    }

    #[test]
    fn a_row_meets_the_newest_of_its_key_that_is_not_newer() {
        let mut of = as_of();
        let left =
            [rows(&[(Some(10), Some(1), 1), (Some(10), Some(2), 2), (Some(20), Some(1), 3), (None, Some(1), 4)])];
        let right =
            [rows(&[(Some(10), Some(1), 50), (Some(11), Some(1), 60), (Some(9), None, 70), (None, Some(2), 80)])];
        assert_eq!(met(&mut of, &left, &right, Some(10)), [(4, None)], "who has no time meets nobody");
        let same_time = [rows(&[(Some(10), Some(1), 55), (Some(10), Some(1), 52)])];
        assert_eq!(met(&mut of, &[], &same_time, Some(11)), [(1, Some(55)), (2, None)], "the greatest of one time");
        assert_eq!(met(&mut of, &[rows(&[(Some(15), None, 5)])], &[], None), [(3, Some(60)), (5, None)]);
    }

    #[test]
    fn only_the_newest_row_of_each_key_stays() {
        let mut of = as_of();
        for now in 0..200 {
            let right: Vec<_> = (0..200).map(|k| (Some(now), Some(k), now)).collect();
            met(&mut of, &[], &[rows(&right)], Some(now));
            let kept: usize = of.right.rows.rows().map(RecordBatch::num_rows).sum();
            assert!(kept <= 2 * 400 + REPLACED_MAX + 200, "{kept} rows of 200 keys");
        }
        let found = met(&mut of, &[rows(&[(Some(300), Some(7), 1)])], &[], None);
        assert_eq!(found, [(1, Some(199))]);
    }
}
