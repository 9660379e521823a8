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
