//! The newest state of each key, as long as it is kept: what an aggregate knows whose rows change.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, Rows, SortField};

use super::phases::reduce;
use super::query::Query;
use super::rows::STATE_BATCH_ROWS;
use super::segments::{Segment, Snapshot};
use crate::error::Result;

/// Segments that may lie side by side before the states are written as one: a restart reads so many files.
const SEGMENTS_MAX: usize = 16;

/// The newest state of each key.
pub(super) struct Versions {
    schema: SchemaRef,
    converter: RowConverter,
    keys: usize,
    /// All states that have been kept, also those that a newer one has replaced.
    kept: Vec<Kept>,
    /// The newest state of each key: which of `kept`, and which row of it.
    newest: HashMap<OwnedRow, (usize, usize)>,
    key_bytes: usize,
}

/// Versions that were kept together.
struct Kept {
    /// The epoch that made them durable; none if they are not yet.
    epoch: Option<u64>,
    states: RecordBatch,
}

impl Versions {
    pub(super) fn new(schema: &SchemaRef, keys: usize) -> Result<Self> {
        let fields = schema.fields().iter().take(keys).map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        Ok(Self { schema: schema.clone(), converter, keys, kept: Vec::new(), newest: HashMap::new(), key_bytes: 0 })
    }

    /// Brings states of an epoch together with those that are kept of the same keys; keeps and gives what they become.
    pub(super) async fn merge(&mut self, query: &Query, arrived: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let mut states = reduce(query, arrived).await?;
        let before = self.find(&states)?;
        if !before.is_empty() {
            states = reduce(query, before.into_iter().chain(states).collect()).await?;
        }
        for batch in &states {
            self.put(None, batch.clone())?;
        }
        Ok(states)
    }

    /// Goes on from a snapshot.
    pub(super) fn restore(&mut self, mut segments: Vec<Segment>) -> Result<()> {
        segments.sort_by_key(|segment| segment.epoch);
        for segment in segments {
            for states in segment.rows {
                self.put(Some(segment.epoch), states)?;
            }
        }
        Ok(())
    }

    /// Gives all batches that have been kept, in the order in which they came; states that newer ones have replaced are
    /// still in them.
    pub(super) fn batches(&self) -> impl ExactSizeIterator<Item = &RecordBatch> {
        self.kept.iter().map(|kept| &kept.states)
    }

    /// Gives where the newest states are: the batch, and the row in it.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.newest.values().copied()
    }

    /// Forgets the keys whose newest state is not to be kept.
    pub(super) fn retain(&mut self, mut kept: impl FnMut((usize, usize)) -> bool) {
        let key_bytes = &mut self.key_bytes;
        self.newest.retain(|key, place| {
            let keep = kept(*place);
            if !keep {
                *key_bytes = key_bytes.saturating_sub(key.as_ref().len());
            }
            keep
        });
    }

    /// Gives the columns of states.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Gives the keys that stand in these columns.
    pub(super) fn convert(&self, columns: &[ArrayRef]) -> Result<Rows> {
        Ok(self.converter.convert_columns(columns)?)
    }

    /// Gives the batch that the newest state of a key stands in, and its row.
    pub(super) fn newest_of(&self, key: &OwnedRow) -> Option<(&RecordBatch, usize)> {
        let (batch, row) = *self.newest.get(key)?;
        Some((&self.kept.get(batch)?.states, row))
    }

    fn keys_of(&self, states: &RecordBatch) -> Result<Rows> {
        let columns: Vec<ArrayRef> = states.columns().iter().take(self.keys).cloned().collect();
        self.convert(&columns)
    }

    /// Gives the newest states of the keys of some states.
    fn find(&self, states: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
        let mut places = Vec::new();
        for batch in states {
            let keys = self.keys_of(batch)?;
            places.extend(keys.iter().filter_map(|key| self.newest.get(&key.owned()).copied()));
        }
        self.gather(&places)
    }

    pub(super) fn gather(&self, places: &[(usize, usize)]) -> Result<Vec<RecordBatch>> {
        let kept: Vec<&RecordBatch> = self.kept.iter().map(|kept| &kept.states).collect();
        let chunks = places.chunks(STATE_BATCH_ROWS);
        chunks.map(|places| Ok(interleave_record_batch(&kept, places)?)).collect()
    }

    /// Keeps states, in place of older ones of the same keys.
    pub(super) fn put(&mut self, epoch: Option<u64>, states: RecordBatch) -> Result<()> {
        let place = self.kept.len();
        for (row, key) in self.keys_of(&states)?.iter().enumerate() {
            let bytes = key.as_ref().len();
            if self.newest.insert(key.owned(), (place, row)).is_none() {
                self.key_bytes += bytes;
            }
        }
        self.kept.push(Kept { epoch, states });
        Ok(())
    }

    /// Notes that all states are durable with this epoch, and tells which are not yet.
    pub(super) fn seal(&mut self, epoch: u64) -> Result<Snapshot> {
        let rows: usize = self.kept.iter().map(|kept| kept.states.num_rows()).sum();
        let none = self.newest.is_empty() && rows > 0;
        if none || self.live().len() >= SEGMENTS_MAX || rows > 2 * self.newest.len() + STATE_BATCH_ROWS {
            self.compact()?;
        }
        let mut added = Vec::new();
        for kept in &mut self.kept {
            if kept.epoch.is_none() {
                kept.epoch = Some(epoch);
                added.push(kept.states.clone());
            }
        }
        Ok(Snapshot { live: self.live().into_iter().collect(), added })
    }

    fn live(&self) -> BTreeSet<u64> {
        self.kept.iter().filter_map(|kept| kept.epoch).collect()
    }

    /// Forgets the states that newer ones have replaced.
    fn compact(&mut self) -> Result<()> {
        let mut places: Vec<_> = self.newest.values().copied().collect();
        places.sort_unstable();
        let newest = self.gather(&places)?;
        self.kept.clear();
        for states in newest {
            self.put(None, states)?;
        }
        Ok(())
    }

    pub(super) fn size_bytes(&self) -> usize {
        let kept: usize = self.kept.iter().map(|kept| kept.states.get_array_memory_size()).sum();
        kept + self.key_bytes + self.newest.capacity() * size_of::<(OwnedRow, (usize, usize))>()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn states(rows: &[(i64, i64)]) -> RecordBatch {
        let column = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let (keys, values) = rows.iter().copied().unzip();
        RecordBatch::try_from_iter([("key", column(keys)), ("value", column(values))]).unwrap()
    }

    fn newest(kept: &Versions, keys: &[i64]) -> Vec<i64> {
        let asked: Vec<_> = keys.iter().map(|key| (*key, 0)).collect();
        let found = kept.find(&[states(&asked)]).unwrap();
        found.iter().flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    fn none() -> Versions {
        Versions::new(&states(&[]).schema(), 1).unwrap()
    }

    #[test]
    fn the_newest_state_of_a_key_is_found() {
        let mut kept = none();
        kept.put(None, states(&[(1, 10), (2, 20)])).unwrap();
        kept.put(None, states(&[(2, 21), (3, 30)])).unwrap();
        assert_eq!(newest(&kept, &[1, 2, 3, 4]), [10, 21, 30]);
    }

    #[test]
    fn a_snapshot_has_what_is_new_and_a_restart_finds_it_all() {
        let mut kept = none();
        kept.put(None, states(&[(1, 10), (2, 20)])).unwrap();
        let first = kept.seal(1).unwrap();
        kept.put(None, states(&[(2, 21)])).unwrap();
        let second = kept.seal(2).unwrap();
        assert_eq!((first.live, second.live), (vec![1], vec![1, 2]));
        assert_eq!((first.added.len(), second.added.len()), (1, 1));
        let mut again = none();
        again.put(Some(1), first.added[0].clone()).unwrap();
        again.put(Some(2), second.added[0].clone()).unwrap();
        assert_eq!(newest(&again, &[1, 2]), [10, 21]);
        assert_eq!(again.seal(3).unwrap().added, []);
    }

    #[test]
    fn replaced_states_are_forgotten_in_time() {
        let mut kept = none();
        for epoch in 1..100 {
            kept.put(None, states(&[(1, epoch), (epoch + 1, 0)])).unwrap();
            let snapshot = kept.seal(epoch.unsigned_abs()).unwrap();
            assert!(snapshot.live.len() <= SEGMENTS_MAX + 1);
            let durable: usize = kept.kept.iter().map(|kept| kept.states.num_rows()).sum();
            assert!(durable <= kept.newest.len() + SEGMENTS_MAX, "{durable} states of {} keys", kept.newest.len());
        }
        assert_eq!(newest(&kept, &[1, 50]), [99, 0]);
    }
}
