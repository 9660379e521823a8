//! Deduplication: rows with the same key within a bound of event time are kept once.

use std::fs::File;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, SortField};

use super::keys::{KeyLimits, Keys, hashes};
use super::sealed::Sealed;
use super::window::{WATERMARK_END, micros};
use crate::error::Result;

/// Remembers the keys of rows and finds those that come again.
///
/// Keys are remembered by their [`hashes`].
pub struct Unique {
    key: Vec<usize>,
    time: usize,
    within_us: i64,
    converter: RowConverter,
    keys: Keys,
}

impl Unique {
    /// Remembers the columns `key` of rows for `within_us` microseconds of the event-time column `time`.
    pub fn new(schema: &Schema, key: Vec<usize>, time: usize, within_us: i64, limits: KeyLimits) -> Result<Self> {
        let fields = key.iter().map(|column| SortField::new(schema.field(*column).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        Ok(Self { key, time, within_us, converter, keys: Keys::new(within_us, limits) })
    }

    /// Gives the rows whose key has not been seen; the others are duplicates.
    ///
    /// A row without an event time is never a duplicate.
    pub fn first_seen(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = self.key.iter().map(|column| rows.column(*column).clone()).collect();
        let times = micros(rows.column(self.time))?;
        let mut first = Vec::with_capacity(rows.num_rows());
        for (row, key) in hashes(&self.converter, &columns)?.into_iter().enumerate() {
            first.push(times.is_null(row) || self.keys.insert(key, times.value(row))?);
        }
        if first.iter().all(|new| *new) {
            return Ok(rows);
        }
        Ok(filter_record_batch(&rows, &BooleanArray::from(first))?)
    }

    /// Forgets keys that no row on time can meet again, and tells what has to be durable.
    ///
    /// A file that it adds must be given back by [`adopt`](Self::adopt) before the next row is.
    pub fn seal(&mut self, epoch: u64, watermark_us: i64) -> Result<Sealed> {
        // The end of input is no time: rows that come in a later run may still repeat a key.
        let is_time = watermark_us != WATERMARK_END;
        let bound_us = if is_time { watermark_us.saturating_sub(self.within_us) } else { i64::MIN };
        self.keys.seal(epoch, bound_us)
    }

    /// Takes the file that [`seal`](Self::seal) has added, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.keys.adopt(epoch, file)
    }

    /// Goes on from the files of these epochs, oldest first.
    pub fn restore(&mut self, files: Vec<(u64, File)>) -> Result<()> {
        self.keys.restore(files)
    }

    /// Gives the memory that the keys take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.keys.size_bytes()
    }

    /// Gives the part of it that the open epoch has added: what its barrier may free.
    pub fn open_bytes(&self) -> usize {
        self.keys.open_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};

    use super::*;
    use crate::batch::timestamp_type;

    const LIMITS: KeyLimits = KeyLimits { map_bytes: 1 << 20, file_bytes: 1 << 20 };

    fn rows(keys: &[i64], times_us: &[i64]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("key", DataType::Int64, false),
            Field::new("at", timestamp_type(), false),
        ]));
        let at = arrow::array::TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(keys.to_vec())), Arc::new(at)]).unwrap()
    }

    fn unique(limits: KeyLimits) -> Unique {
        Unique::new(&rows(&[], &[]).schema(), vec![0], 1, 100, limits).unwrap()
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    /// The files that are durable, by epoch.
    #[derive(Default)]
    struct Durable(BTreeMap<u64, Vec<u8>>);

    impl Durable {
        fn close(&mut self, unique: &mut Unique, epoch: u64, watermark_us: i64) {
            let sealed = unique.seal(epoch, watermark_us).unwrap();
            if let Some(added) = sealed.added {
                unique.adopt(epoch, file(&added)).unwrap();
                self.0.insert(epoch, added.to_vec());
            }
            self.0.retain(|epoch, _| sealed.live.contains(epoch));
            assert!(self.0.keys().eq(&sealed.live), "a file is live that was never given");
        }

        fn restore(&self, unique: &mut Unique) {
            unique.restore(self.0.iter().map(|(epoch, content)| (*epoch, file(content))).collect()).unwrap();
        }
    }

    #[test]
    fn a_key_is_kept_once_within_the_bound_and_again_beyond_it() {
        let mut unique = unique(LIMITS);
        assert_eq!(unique.first_seen(rows(&[1, 1, 2], &[0, 50, 50])).unwrap().num_rows(), 2);
        assert_eq!(unique.first_seen(rows(&[1, 2], &[100, 151])).unwrap().num_rows(), 1, "1 is 100 later, 2 is 101");
    }

    #[test]
    fn a_key_that_was_kept_twice_is_known_at_both_times() {
        for restarted in [false, true] {
            let mut unique = unique(LIMITS);
            assert_eq!(unique.first_seen(rows(&[1, 1], &[300, 100])).unwrap().num_rows(), 2, "200 apart");
            if restarted {
                let mut durable = Durable::default();
                durable.close(&mut unique, 1, 0);
                durable.restore(&mut unique);
            }
            assert_eq!(unique.first_seen(rows(&[1], &[310])).unwrap().num_rows(), 0, "10 after the first");
            assert_eq!(unique.first_seen(rows(&[1], &[40])).unwrap().num_rows(), 0, "60 before the second");
            assert_eq!(unique.first_seen(rows(&[1], &[600])).unwrap().num_rows(), 1);
            assert_eq!(unique.first_seen(rows(&[1], &[150])).unwrap().num_rows(), 0, "50 after the second");
            assert!(unique.size_bytes() > 0);
        }
    }

    #[test]
    fn keys_survive_a_restart_and_are_forgotten_behind_the_watermark() {
        let (mut before, mut durable) = (unique(LIMITS), Durable::default());
        before.first_seen(rows(&[1, 2], &[0, 500])).unwrap();
        durable.close(&mut before, 1, 0);
        before.first_seen(rows(&[3], &[600])).unwrap();
        durable.close(&mut before, 2, 300);
        assert!(durable.0.keys().eq(&[1, 2]));

        let mut after = unique(LIMITS);
        durable.restore(&mut after);
        assert_eq!(after.first_seen(rows(&[2, 3, 4], &[501, 601, 601])).unwrap().num_rows(), 1, "only 4 is new");
        durable.close(&mut before, 3, 601);
        assert!(durable.0.keys().eq(&[2]), "all that the first file holds lies behind the watermark");
        durable.close(&mut before, 4, WATERMARK_END);
        assert!(durable.0.keys().eq(&[2]), "the end of input is no time");
    }

    /// Keys that overflow the map and the files again and again, against a map that forgets nothing, over restarts.
    #[test]
    fn many_files_remember_what_one_map_does() {
        const BATCH: u64 = 500;
        const SPREAD: u64 = 3_000;
        let small = KeyLimits { map_bytes: 64 << 10, file_bytes: 96 << 10 };
        let (mut tested, mut durable) = (unique(small), Durable::default());
        let mut known: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        let (mut random, mut most_files) = (7_u64, 0);
        for epoch in 1..=200_u64 {
            let (mut keys, mut times) = (Vec::new(), Vec::new());
            for row in 0..BATCH {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                keys.push(i64::try_from((random >> 33) % SPREAD + epoch * 100).unwrap());
                times.push(i64::try_from(epoch * 10 + row % 10).unwrap());
            }
            let mut expected = 0;
            for (key, time) in keys.iter().zip(&times) {
                let seen = known.entry(*key).or_default();
                if !seen.iter().any(|at| at.abs_diff(*time) <= 100) {
                    seen.push(*time);
                    expected += 1;
                }
            }
            assert_eq!(tested.first_seen(rows(&keys, &times)).unwrap().num_rows(), expected, "epoch {epoch}");
            durable.close(&mut tested, epoch, times[0]);
            most_files = most_files.max(durable.0.len());
            let bytes: usize = durable.0.values().map(Vec::len).sum();
            assert!(bytes < 1 << 20, "{bytes} bytes for keys of the last ten epochs");
            if epoch % 23 == 0 {
                tested = unique(small);
                durable.restore(&mut tested);
            }
        }
        assert!((3..=24).contains(&most_files), "{most_files} files");
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let mut unique_keys = unique(LIMITS);
        unique_keys.first_seen(rows(&[1, 2, 3], &[0, 1, 2])).unwrap();
        let whole = unique_keys.seal(1, 0).unwrap().added.unwrap();
        unique(LIMITS).restore(vec![(1, file(&whole))]).unwrap();
        let mut other = whole.to_vec();
        let filter = other.len() - 80;
        other[filter] ^= 1;
        for damaged in [&whole[..0], &whole[..10], &whole[..whole.len() - 1], &whole[24..], other.as_slice()] {
            assert!(unique(LIMITS).restore(vec![(1, file(damaged))]).is_err());
        }
        let mut later = whole.to_vec();
        let version = later.len() - 56;
        later[version] += 1;
        let error = unique(LIMITS).restore(vec![(1, file(&later))]).unwrap_err();
        assert!(error.to_string().contains("format version 2"), "{error}");
    }
}
