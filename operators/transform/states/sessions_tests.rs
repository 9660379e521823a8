//! States of sessions over many epochs, files and restarts, against a list of rows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::ipc::writer::StreamWriter;

use super::*;
use crate::transform::session::Sessions;

/// Rows this far apart are of two sessions.
const GAP_US: i64 = 1_600;

/// Everything in memory, and given out at once.
const LARGE: StateLimits = StateLimits { cached_bytes: usize::MAX, piece_bytes: usize::MAX };

/// Nothing in memory, and given out in small pieces.
const SMALL: StateLimits = StateLimits { cached_bytes: 0, piece_bytes: 2_000 };

/// A state: its first time, its key, its last time, and a number.
type State = (Option<i64>, Option<String>, Option<i64>, i64);

/// A session, and the sum of its numbers.
type Sums = BTreeMap<(Option<i64>, Option<String>, Option<i64>), i64>;

fn states(rows: &[State]) -> RecordBatch {
    let times =
        |times: Vec<Option<i64>>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) };
    let numbers = Int64Array::from_iter_values(rows.iter().map(|row| row.3));
    let columns: [(&str, ArrayRef, bool); 4] = [
        ("first", times(rows.iter().map(|row| row.0).collect()), true),
        ("key", Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1.as_ref()))), true),
        ("last", times(rows.iter().map(|row| row.2).collect()), true),
        ("number", Arc::new(numbers), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn rows(batch: &RecordBatch) -> Vec<State> {
    let times = |column: usize| batch.column(column).as_primitive::<TimestampMicrosecondType>().iter();
    let keys = batch.column(1).as_string::<i32>().iter().map(|key| key.map(str::to_owned));
    let numbers = batch.column(3).as_primitive::<Int64Type>().values().iter();
    let rows = times(0).zip(keys).zip(times(2)).zip(numbers);
    rows.map(|(((first, key), last), number)| (first, key, last, *number)).collect()
}

fn sessions() -> Sessions {
    Sessions::new(0, 2, 3, GAP_US)
}

fn none(limits: StateLimits) -> States {
    let keys = sessions().keys().to_vec();
    States::new(states(&[]).schema(), keys, Ends::Session(sessions()), limits).unwrap()
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// Adds up what has equal keys and times, as an aggregate does.
fn added_up(states: &[RecordBatch]) -> Sums {
    let mut sums = Sums::new();
    for (first, key, last, number) in states.iter().flat_map(rows) {
        *sums.entry((first, key, last)).or_default() += number;
    }
    sums
}

/// Unites states that were taken out, and puts them back.
fn put_back(tested: &mut States, taken: Vec<RecordBatch>) {
    let sums = added_up(&sessions().unite(taken).unwrap()).into_iter();
    let united: Vec<State> = sums.map(|((first, key, last), number)| (first, key, last, number)).collect();
    tested.add(&states(&united)).unwrap();
}

/// What the sessions of rows are, by the simplest means.
fn sessions_of(rows: &[State]) -> Sums {
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    let mut found: Vec<State> = Vec::new();
    for (first, key, last, number) in sorted {
        match found.last_mut() {
            Some(open)
                if open.1 == key
                    && open.2.zip(first).is_none_or(|(a, b)| b - a < GAP_US)
                    && open.2.is_some() == first.is_some() =>
            {
                open.2 = open.2.max(last);
                open.3 += number;
            }
            _ => found.push((first, key, last, number)),
        }
    }
    found.into_iter().map(|(first, key, last, number)| ((first, key, last), number)).collect()
}

/// The files that are durable, by epoch.
#[derive(Default)]
struct Durable(BTreeMap<u64, Vec<u8>>);

impl Durable {
    /// Closes an epoch.
    fn close(&mut self, tested: &mut States, epoch: u64) {
        let fresh = tested.take_fresh().unwrap();
        put_back(tested, fresh);
        let merged = tested.take_mergeable().unwrap();
        put_back(tested, merged);
        let sealed = tested.seal(epoch).unwrap();
        if let Some(added) = sealed.added {
            tested.adopt(epoch, file(&added)).unwrap();
            self.0.insert(epoch, added.to_vec());
        }
        self.0.retain(|epoch, _| sealed.live.contains(epoch));
        assert!(self.0.keys().eq(&sealed.live), "a file is live that was never given");
    }

    fn restored(&self, mut restored: States, closed_until_us: i64) -> States {
        let files = self.0.iter().map(|(epoch, content)| (*epoch, file(content)));
        restored.restore(files.collect(), closed_until_us, |rows| sessions().unite(rows)).unwrap();
        restored
    }
}

/// Gives out sessions, and adds up by session; none may stand in two pieces.
fn given(tested: &mut States, bound_us: i64) -> (Sums, usize) {
    let fresh = tested.take_fresh().unwrap();
    put_back(tested, fresh);
    let mut pieces = tested.close_sessions(bound_us).unwrap();
    let (mut all, mut count) = (Sums::new(), 0);
    while let Some(piece) = pieces.next_piece().unwrap() {
        count += 1;
        for (session, number) in added_up(&piece) {
            assert_eq!(all.insert(session.clone(), number), None, "{session:?} is in two pieces");
        }
    }
    (all, count)
}

/// Numbers that seem random, from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, below: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(self.0 >> 33).unwrap() % below
    }
}

/// What a run is like.
#[derive(Debug, Clone, Copy)]
struct Run {
    limits: StateLimits,
    seed: u64,
    keys: i64,
    /// How far rows lie ahead of the watermark.
    ahead_us: i64,
    hash: Option<fn(&[u8]) -> u64>,
}

/// Goes through many epochs, and compares what is given out at each; tells the most pieces and the most files at once.
fn run(run: Run) -> (usize, usize) {
    let mut random = Random(run.seed);
    let with_hash = |mut tested: States| {
        tested.order.hash = run.hash.unwrap_or(tested.order.hash);
        tested
    };
    let (mut tested, mut durable) = (with_hash(none(run.limits)), Durable::default());
    let mut open: Vec<State> = Vec::new();
    let (mut watermark_us, mut most_pieces, mut most_files) = (0, 0, 0);
    for epoch in 1..=80 {
        for _ in 0..random.below(4) {
            let mut batch = Vec::new();
            for _ in 0..random.below(60) {
                let far = if random.below(400) == 0 { 1_000_000_000 } else { 0 };
                let time = watermark_us + far + random.below(run.ahead_us);
                let time = (random.below(80) > 0).then_some(time);
                let key = random.below(run.keys);
                let key = (key > 0).then(|| format!("key {key}"));
                batch.push((time, key, time, random.below(9)));
            }
            open.extend(batch.iter().cloned());
            tested.add(&states(&batch)).unwrap();
        }
        if random.below(3) > 0 {
            let step_us = if random.below(10) == 0 { 5 * GAP_US } else { GAP_US / 3 };
            watermark_us += random.below(step_us);
            let (found, pieces) = given(&mut tested, watermark_us);
            let (mut due, mut still) = (Sums::new(), BTreeSet::new());
            for (session, number) in sessions_of(&open) {
                match session.2 {
                    Some(last) if last + GAP_US <= watermark_us => drop(due.insert(session, number)),
                    _ => drop(still.insert(session)),
                }
            }
            assert_eq!(found, due, "{run:?}, epoch {epoch}, up to {watermark_us}");
            let is_in =
                |row: &State, (first, key, last): &(_, _, _)| row.1 == *key && *first <= row.0 && row.0 <= *last;
            open.retain(|row| !due.keys().any(|session| is_in(row, session)));
            let earliest = still.iter().filter_map(|(first, ..)| *first).min().unwrap_or(WATERMARK_END);
            assert_eq!(tested.earliest_us().unwrap(), earliest, "{run:?}, epoch {epoch}, up to {watermark_us}");
            assert_eq!(tested.closed_until_us(), watermark_us);
            most_pieces = most_pieces.max(pieces);
            durable.close(&mut tested, epoch);
            assert_eq!(tested.earliest_us().unwrap(), earliest, "{run:?}, epoch {epoch}, once it is durable");
        } else {
            durable.close(&mut tested, epoch);
        }
        most_files = most_files.max(durable.0.len());
        if run.limits.cached_bytes == 0 {
            let cached: usize = tested.segments.iter().map(Segment::cached_bytes).sum();
            assert_eq!((cached, tested.open_bytes()), (0, 0), "all lies in files");
        }
        if epoch % 7 == 0 {
            tested = durable.restored(with_hash(none(run.limits)), tested.closed_until_us());
        }
    }
    let expected = sessions_of(&open);
    let last = expected.keys().filter_map(|(.., last)| *last).max().unwrap();
    let (found, pieces) = given(&mut tested, WATERMARK_END);
    assert_eq!(found, expected, "the rest at the end, and what has no time");
    assert_eq!(tested.closed_until_us(), last + GAP_US, "later input is not late as a whole");
    assert_eq!(tested.earliest_us().unwrap(), WATERMARK_END);
    durable.close(&mut tested, 1000);
    assert_eq!(durable.0.len(), 0, "the end leaves nothing");
    (most_pieces.max(pieces), most_files)
}

#[test]
fn sessions_are_given_once_whatever_is_in_memory_and_whenever_it_starts_again() {
    for (limits, seed) in [(LARGE, 11), (SMALL, 12), (StateLimits { cached_bytes: 5_000, piece_bytes: 20_000 }, 13)] {
        for (keys, ahead_us, seed) in [(40, 3 * GAP_US, seed), (400, 20 * GAP_US, seed + 10), (3, GAP_US, seed + 20)] {
            let (pieces, files) = run(Run { limits, seed, keys, ahead_us, hash: None });
            assert!(pieces == 1 || limits != LARGE, "{pieces} pieces");
            assert!(pieces > 3 || limits != SMALL || keys < 40, "{pieces} pieces of {keys} keys");
            assert!(files < if limits == SMALL { 70 } else { 40 }, "{files} files");
        }
    }
}

#[test]
fn sessions_of_keys_with_the_same_hash_stay_apart() {
    for (limits, seed) in [(LARGE, 41), (SMALL, 42)] {
        let few = |key: &[u8]| u64::from(key.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) % 3) << 62;
        run(Run { limits, seed, keys: 12, ahead_us: 3 * GAP_US, hash: Some(few) });
    }
}

fn at(time: i64, key: &str, number: i64) -> State {
    (Some(time), Some(key.to_owned()), Some(time), number)
}

fn whole(first: i64, key: &str, last: i64) -> (Option<i64>, Option<String>, Option<i64>) {
    (Some(first), Some(key.to_owned()), Some(last))
}

/// A file of an earlier format.
fn stream(rows: &[State]) -> File {
    let mut writer = StreamWriter::try_new(Vec::new(), &states(&[]).schema()).unwrap();
    writer.write(&states(rows)).unwrap();
    writer.finish().unwrap();
    file(&writer.into_inner().unwrap())
}

#[test]
fn sessions_go_on_over_streams_of_an_earlier_format() {
    // In those, the states of a session stay until it has ended as a whole.
    let before = stream(&[at(0, "a", 1), at(0, "b", 2)]);
    let behind = stream(&[at(1_500, "a", 4), at(1_700, "c", 8)]);
    let mut restored = none(SMALL);
    restored.restore(vec![(1, before), (2, behind)], 1_650, |rows| sessions().unite(rows)).unwrap();
    assert_eq!(restored.earliest_us().unwrap(), 0, "`a` is open");
    let mut durable = Durable::default();
    durable.close(&mut restored, 3);
    assert!(durable.0.keys().eq(&[3]), "they are written in order from now on");
    let mut restored = durable.restored(none(SMALL), 1_650);
    restored.add(&states(&[at(3_000, "a", 16)])).unwrap();
    let (found, _) = given(&mut restored, 3_300);
    assert_eq!(found, BTreeMap::from([(whole(1_700, "c", 1_700), 8)]));
    assert_eq!(restored.earliest_us().unwrap(), 0);
    let (found, _) = given(&mut restored, 4_600);
    assert_eq!(found, BTreeMap::from([(whole(0, "a", 3_000), 21)]));
}

#[test]
fn files_in_the_order_of_another_hash_are_read_as_rows() {
    let (mut tested, mut durable) = (none(SMALL), Durable::default());
    tested.add(&states(&[at(10, "a", 1), at(10, "b", 2)])).unwrap();
    durable.close(&mut tested, 1);
    tested.add(&states(&[at(1_500, "a", 4), at(1_700, "c", 8)])).unwrap();
    assert_eq!(given(&mut tested, 1_650).0, BTreeMap::from([(whole(10, "b", 10), 2)]));
    durable.close(&mut tested, 2);
    assert_eq!(durable.0.len(), 2, "the first file is needed until the part of the gap has passed that it stands in");
    let mut other = none(SMALL);
    other.order.hash = |_| 7;
    let mut restored = durable.restored(other, 1_650);
    assert_eq!(restored.earliest_us().unwrap(), 10);
    let (found, _) = given(&mut restored, WATERMARK_END);
    assert_eq!(found, BTreeMap::from([(whole(10, "a", 1_500), 5), (whole(1_700, "c", 1_700), 8)]));
}

#[test]
fn a_restart_reads_the_ends_of_files_only() {
    let (mut tested, mut durable) = (none(SMALL), Durable::default());
    let many: Vec<State> = (0..20_000).map(|n| at(n, &format!("key {n}"), n)).collect();
    tested.add(&states(&many)).unwrap();
    durable.close(&mut tested, 1);
    let content = durable.0.get_mut(&1).unwrap();
    assert!(tested.segments[0].blocks.len() > 10, "there are blocks enough");
    // But for the first block, by which the order is checked, nothing is read.
    let half = content.len() / 2;
    content[half - 10_000..half].fill(0xff);
    let restored = durable.restored(none(SMALL), 0);
    assert_eq!(restored.earliest_us().unwrap(), 0);
    assert_eq!(restored.segments[0].cached_bytes(), 0);
    assert!(restored.segments[0].filter == tested.segments[0].filter && restored.segments[0].filter.is_some());
}

#[test]
fn a_block_is_looked_into_only_if_a_session_may_go_on_there() {
    let (mut tested, mut durable) = (none(SMALL), Durable::default());
    let many = |keys: std::ops::Range<i64>, time: i64| -> Vec<State> {
        keys.map(|n| at(time, &format!("key {n}"), n)).collect()
    };
    tested.add(&states(&many(0..300, 100))).unwrap();
    durable.close(&mut tested, 1);
    // Other keys, later.
    tested.add(&states(&many(300..9_000, 1_000))).unwrap();
    durable.close(&mut tested, 2);
    tested.segments[1].file = None;
    let (found, _) = given(&mut tested, 100 + GAP_US);
    assert_eq!(found.len(), 300, "they have ended, and no other file was read");
}
