//! States over many epochs, files and restarts, against a map.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::ipc::writer::StreamWriter;
use datafusion::physical_expr::expressions::Column;

use super::*;
use crate::transform::window::{Width, Window};

/// Width of the windows.
const WIDTH_US: i64 = 10;

/// Everything in memory, and given out at once.
const LARGE: StateLimits = StateLimits { cached_bytes: usize::MAX, piece_bytes: usize::MAX };

/// Nothing in memory, and given out in small pieces.
const SMALL: StateLimits = StateLimits { cached_bytes: 0, piece_bytes: 2_000 };

/// A state: the start of its window, its key and a number.
type Row = (Option<i64>, String, i64);

fn states(rows: &[Row]) -> RecordBatch {
    let starts = TimestampMicrosecondArray::from_iter(rows.iter().map(|row| row.0)).with_timezone("UTC");
    let keys = StringArray::from_iter_values(rows.iter().map(|row| &row.1));
    let numbers = Int64Array::from_iter_values(rows.iter().map(|row| row.2));
    let columns: [(&str, ArrayRef, bool); 3] =
        [("start", Arc::new(starts), true), ("key", Arc::new(keys), true), ("number", Arc::new(numbers), true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn rows(batch: &RecordBatch) -> Vec<Row> {
    let starts = batch.column(0).as_primitive::<TimestampMicrosecondType>().iter();
    let keys = batch.column(1).as_string::<i32>().iter();
    let numbers = batch.column(2).as_primitive::<Int64Type>().values().iter();
    starts.zip(keys).zip(numbers).map(|((start, key), number)| (start, key.unwrap().to_owned(), *number)).collect()
}

/// Keeps states that do not end, by their key.
fn keyed(limits: StateLimits) -> States {
    States::new(states(&[]).schema(), vec![1], Ends::Never, limits).unwrap()
}

fn none(limits: StateLimits) -> States {
    let window = Window { start: Arc::new(Column::new("start", 0)), width: Width::Micros(WIDTH_US) };
    States::new(states(&[]).schema(), vec![0, 1], Ends::Window(window), limits).unwrap()
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
    /// Closes an epoch; what should be merged is added up by window and key.
    fn close(&mut self, states_of: &mut States, epoch: u64) {
        let mut merged: BTreeMap<(Option<i64>, String), i64> = BTreeMap::new();
        for (start, key, number) in states_of.take_mergeable().unwrap().iter().flat_map(rows) {
            *merged.entry((start, key)).or_default() += number;
        }
        let merged: Vec<Row> = merged.into_iter().map(|((start, key), number)| (start, key, number)).collect();
        states_of.add(&states(&merged)).unwrap();
        let sealed = states_of.seal(epoch).unwrap();
        if let Some(added) = sealed.added {
            states_of.adopt(epoch, file(&added)).unwrap();
            self.0.insert(epoch, added.to_vec());
        }
        self.0.retain(|epoch, _| sealed.live.contains(epoch));
        assert!(self.0.keys().eq(&sealed.live), "a file is live that was never given");
    }

    /// Gives what `none` keeps after a restart.
    fn restored(&self, mut none: States, closed_until_us: i64) -> States {
        let files = self.0.iter().map(|(epoch, content)| (*epoch, file(content)));
        none.restore(files.collect(), closed_until_us, Ok).unwrap();
        none
    }
}

/// Gives out windows, and adds up by window and key; no key may stand in two pieces.
fn given(states: &mut States, bound_us: i64) -> (BTreeMap<(Option<i64>, String), i64>, usize) {
    added_up(states.close(bound_us).unwrap())
}

fn added_up(mut pieces: Pieces<'_>) -> (BTreeMap<(Option<i64>, String), i64>, usize) {
    let mut all = BTreeMap::new();
    let mut count = 0;
    while let Some(piece) = pieces.next_piece().unwrap() {
        count += 1;
        let mut here: BTreeMap<_, i64> = BTreeMap::new();
        for (start, key, number) in piece.iter().flat_map(rows) {
            *here.entry((start, key)).or_default() += number;
        }
        for (key, number) in here {
            assert_eq!(all.insert(key.clone(), number), None, "{key:?} is in two pieces");
        }
    }
    (all, count)
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed;
    move |below| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    }
}

#[test]
fn windows_are_given_once_whatever_is_in_memory_and_whenever_it_starts_again() {
    let mut next = random(11);
    for limits in [LARGE, SMALL, StateLimits { cached_bytes: 5_000, piece_bytes: 20_000 }] {
        let (mut tested, mut durable) = (none(limits), Durable::default());
        let mut expected: BTreeMap<(Option<i64>, String), i64> = BTreeMap::new();
        let (mut watermark_us, mut most_pieces, mut most_files) = (0, 0, 0);
        for epoch in 1..=120 {
            for _ in 0..next(4) {
                let mut batch = Vec::new();
                for _ in 0..next(120) {
                    let start = watermark_us / WIDTH_US * WIDTH_US + i64::try_from(next(12)).unwrap() * WIDTH_US;
                    let start = (next(50) > 0).then_some(start);
                    let (key, number) = (format!("key {}", next(30)), i64::try_from(next(9)).unwrap());
                    *expected.entry((start, key.clone())).or_default() += number;
                    batch.push((start, key, number));
                }
                tested.add(&states(&batch)).unwrap();
            }
            if next(2) == 0 {
                watermark_us += i64::try_from(next(25)).unwrap();
                let (found, pieces) = given(&mut tested, watermark_us);
                let due = |(start, _): &(Option<i64>, String)| start.is_some_and(|at| at + WIDTH_US <= watermark_us);
                let closed: BTreeMap<_, _> = expected.extract_if(.., |key, _| due(key)).collect();
                assert_eq!(found, closed, "epoch {epoch}, up to {watermark_us}");
                most_pieces = most_pieces.max(pieces);
                assert_eq!(tested.closed_until_us(), watermark_us);
            }
            durable.close(&mut tested, epoch);
            most_files = most_files.max(durable.0.len());
            if limits.cached_bytes == 0 {
                assert!(tested.size_bytes() < 20_000, "{} bytes", tested.size_bytes());
            }
            if epoch % 17 == 0 {
                let until_us = tested.closed_until_us();
                tested = durable.restored(none(limits), until_us);
            }
        }
        let last = expected.keys().filter_map(|(start, _)| *start).max().unwrap();
        let (found, _) = given(&mut tested, WATERMARK_END);
        assert_eq!(found, expected, "the rest at the end, and what has no window");
        assert_eq!(tested.closed_until_us(), last + WIDTH_US, "later input is not late as a whole");
        durable.close(&mut tested, 1000);
        assert_eq!(durable.0.len(), 0, "the end leaves nothing");
        // Files may hold no more than a piece: with small ones there are many.
        assert!(most_files < if limits == SMALL { 120 } else { 40 }, "{most_files} files");
        assert_eq!(most_pieces > 3, limits == SMALL, "{most_pieces} pieces");
    }
}

#[test]
fn states_are_found_by_their_keys_and_stay() {
    let mut next = random(12);
    for limits in [LARGE, SMALL, StateLimits { cached_bytes: 5_000, piece_bytes: 20_000 }] {
        let (mut tested, mut durable) = (keyed(limits), Durable::default());
        let mut expected: BTreeMap<(Option<i64>, String), i64> = BTreeMap::new();
        for epoch in 1..=100 {
            let row = |next: &mut dyn FnMut(u64) -> u64| {
                (None, format!("key {}", next(3000)), i64::try_from(next(9)).unwrap())
            };
            let added: Vec<Row> = (0..next(300)).map(|_| row(&mut next)).collect();
            for (_, key, number) in &added {
                *expected.entry((None, key.clone())).or_default() += number;
            }
            tested.add(&states(&added)).unwrap();
            // What the epoch has touched, and some others that there may be.
            let mut places = tested.fresh_places().unwrap();
            assert_eq!(places.len(), added.len());
            let more: Vec<Row> = (0..next(20)).map(|_| row(&mut next)).collect();
            places.extend(tested.places(&states(&more)).unwrap());
            let sought: std::collections::BTreeSet<_> = added.iter().chain(&more).map(|row| &row.1).collect();
            let wanted = Wanted::places(places);
            let mut last_us = 7;
            let (found, _) = added_up(tested.find(wanted, Some(&mut last_us)).unwrap());
            let there = |(key, number): (&(Option<i64>, String), &i64)| {
                sought.contains(&key.1).then_some((key.clone(), *number))
            };
            assert_eq!(found, expected.iter().filter_map(there).collect(), "epoch {epoch}");
            assert_eq!(last_us, 7, "they do not end");
            durable.close(&mut tested, epoch);
            if epoch % 17 == 0 {
                tested = durable.restored(keyed(limits), WATERMARK_START);
            }
        }
    }
}

#[test]
fn states_of_known_keys_take_what_the_keys_do_however_often_they_come() {
    const KEYS: u64 = 1_000;
    let mut next = random(17);
    let (mut tested, mut durable) = (keyed(SMALL), Durable::default());
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    let whole = durable_bytes_of_keys(KEYS);
    let mut most = 0;
    for epoch in 1..=400 {
        // A whole epoch is larger than what may be merged: none of its states leaves its file by that.
        let batch: Vec<Row> = (0..100).map(|_| (None, format!("key {}", next(KEYS)), 1)).collect();
        batch.iter().for_each(|(_, key, number)| *expected.entry(key.clone()).or_default() += number);
        tested.add(&states(&batch)).unwrap();
        durable.close(&mut tested, epoch);
        most = most.max(durable.0.values().map(Vec::len).sum());
        if epoch % 41 == 0 {
            tested = durable.restored(keyed(SMALL), WATERMARK_START);
        }
        if epoch % 30 == 0 {
            let sought: Vec<Row> = (0..50).map(|_| (None, format!("key {}", next(KEYS)), 0)).collect();
            let places = tested.places(&states(&sought)).unwrap();
            let (found, _) = added_up(tested.find(Wanted::places(places), None).unwrap());
            let wanted = sought.iter().filter_map(|(_, key, _)| Some(((None, key.clone()), *expected.get(key)?)));
            assert_eq!(found, wanted.collect(), "epoch {epoch}");
        }
    }
    let (found, _) = given(&mut tested, WATERMARK_END);
    assert_eq!(found, expected.into_iter().map(|(key, number)| ((None, key), number)).collect());
    assert!(most < 8 * whole, "{most} bytes in files, and {whole} once by key");
}

/// Gives what the states of so many keys take in a file.
fn durable_bytes_of_keys(keys: u64) -> usize {
    let mut whole = keyed(LARGE);
    whole.add(&states(&(0..keys).map(|key| (None, format!("key {key}"), 1)).collect::<Vec<_>>())).unwrap();
    whole.seal(1).unwrap().added.map_or(0, |file| file.len())
}

#[test]
fn windows_can_be_looked_at_before_they_are_forgotten() {
    let (mut tested, mut durable) = (none(SMALL), Durable::default());
    for start in 0..50 {
        tested.add(&states(&[(Some(start * WIDTH_US), format!("key {start}"), start)])).unwrap();
        durable.close(&mut tested, u64::try_from(start).unwrap());
    }
    let corrected = tested.places(&states(&[(Some(30), "key 3".into(), 0), (Some(40), "none".into(), 0)])).unwrap();
    let wanted = Wanted { after_us: 400, until_us: 420, ..Wanted::places(corrected) };
    let numbers = |found: BTreeMap<_, i64>| found.into_values().collect::<Vec<_>>();
    for (forgotten_us, there) in [(0, vec![3, 40, 41]), (40, vec![40, 41]), (410, vec![41])] {
        tested.forget(forgotten_us);
        let mut last_us = 0;
        let (found, _) = added_up(tested.find(wanted.clone(), Some(&mut last_us)).unwrap());
        assert_eq!((numbers(found), last_us), (there, 420), "{forgotten_us}");
    }
}

#[test]
fn states_of_a_stream_without_order_are_read_too() {
    let before = states(&[(Some(30), "a".into(), 1), (Some(0), "b".into(), 2), (Some(10), "a".into(), 3)]);
    let mut writer = StreamWriter::try_new(Vec::new(), &before.schema()).unwrap();
    writer.write(&before).unwrap();
    writer.finish().unwrap();
    let mut restored = none(SMALL);
    restored.restore(vec![(1, file(&writer.into_inner().unwrap()))], 10, Ok).unwrap();
    let mut durable = Durable::default();
    durable.close(&mut restored, 2);
    assert!(durable.0.keys().eq(&[2]), "they are written in order from now on");
    let (found, _) = given(&mut restored, WATERMARK_END);
    let key = |start| (Some(start), "a".to_owned());
    assert_eq!(found, BTreeMap::from([(key(10), 3), (key(30), 1)]), "the first window had been given out");
}

#[test]
fn a_damaged_file_is_refused() {
    let mut whole = none(LARGE);
    whole.add(&states(&[(Some(0), "a".into(), 1)])).unwrap();
    let content = whole.seal(1).unwrap().added.unwrap();
    none(LARGE).restore(vec![(1, file(&content))], 0, Ok).unwrap();
    for damaged in [&content[..0], &content[..20], &content[..content.len() - 1]] {
        let error = none(LARGE).restore(vec![(1, file(damaged))], 0, Ok).unwrap_err();
        assert!(error.to_string().contains("a file of state is damaged"), "{error}");
    }
}
