//! Joins over many epochs, files and restarts, against the answer of a batch.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::{Int64Type, Schema};
use arrow::ipc::writer::StreamWriter;
use datafusion::physical_expr::expressions::Column;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::testing::clock::ManualClock;
use crate::transform::leaf::{Leaf, LeafExec, StreamTable};
use crate::transform::states::StateLimits;
use crate::transform::window::Width;

/// Everything in memory.
const LARGE: StateLimits = StateLimits { cached_bytes: usize::MAX, piece_bytes: usize::MAX };

/// Nothing in memory, and little read at once.
const SMALL: StateLimits = StateLimits { cached_bytes: 0, piece_bytes: 4_000 };

/// How far a row of the right may lie behind one of the left, at least and at most.
type Band = (i64, i64);

/// A row: its number, its time and its key.
type Row = (i64, Option<i64>, Option<i64>);

/// A row that comes out: the numbers of both sides.
type Pair = (Option<i64>, Option<i64>);

/// What a join is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tested {
    Within(JoinKind, Band),
    AsOf { same_time: bool },
}

const KINDS: [JoinKind; 5] = [JoinKind::Inner, JoinKind::Left, JoinKind::Full, JoinKind::Semi, JoinKind::Anti];

/// Around it, long before, and long behind: then a row has passed before its partners come, or after.
const BANDS: [Band; 3] = [(-5, 30), (-70, -45), (40, 60)];

fn batch(rows: &[Row]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter(rows.iter().map(|row| row.1)).with_timezone("UTC");
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("c0", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))), true),
        ("c1", Arc::new(times), true),
        ("c2", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn joined(sides: usize) -> SchemaRef {
    let one = batch(&[]).schema();
    let fields = one.fields().iter().cycle().take(3 * sides).enumerate();
    Arc::new(Schema::new(
        fields.map(|(n, field)| field.as_ref().clone().with_name(format!("c{n}"))).collect::<Vec<_>>(),
    ))
}

async fn query(sql: &str, leaves: &[(&str, Arc<Leaf>)]) -> Query {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for (name, leaf) in leaves {
        session.register_table(*name, Arc::new(StreamTable(leaf.clone()))).unwrap();
    }
    let state = session.state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    Query::new(state, plan, leaves.iter().map(|(_, leaf)| leaf.clone()).collect(), ManualClock::at(0)).await.unwrap()
}

/// Makes a query of the rows of both sides, in this order, of which some are numbered.
async fn meetings(select: &str, order: [&str; 2], join: &str, numbered: [bool; 2], (least, most): Band) -> Meetings {
    let mut queries = Vec::new();
    for few in 0..2 {
        let leaf = |place: usize| {
            let schema = if numbered[place] { with_row(&batch(&[]).schema()) } else { batch(&[]).schema() };
            if place == few { Leaf::of_few(schema) } else { Leaf::new(schema) }
        };
        let [first, second] = order;
        let sql = format!(
            "SELECT {select} FROM {first} {join} {second} ON l.c2 = r.c2 AND r.c1 >= l.c1 + INTERVAL '{least} microseconds'
             AND r.c1 <= l.c1 + INTERVAL '{most} microseconds'"
        );
        queries.push(query(&sql, &[(first, leaf(0)), (second, leaf(1))]).await);
    }
    let second = queries.pop().unwrap();
    Meetings::new(queries.pop().unwrap(), second)
}

fn window(name: &str, reach_us: i64) -> Window {
    Window { start: Arc::new(Column::new(name, 1)), width: Width::Micros(reach_us + 1) }
}

async fn bounded(kind: JoinKind, band: Band, limits: StateLimits) -> Bounded {
    let numbered = [kind != JoinKind::Inner, kind == JoinKind::Full];
    let kept = batch(&[]).schema();
    let mut sides = Vec::new();
    for (place, reach_us) in [band.1, -band.0].into_iter().enumerate() {
        let order = if place == 0 { ["l", "r"] } else { ["r", "l"] };
        let mut partners = None;
        if numbered[place] {
            let own = if kind == JoinKind::Semi { "l.c0, l.c1, l.c2, " } else { "" };
            let select = format!("{own}{0}.{ROW_COLUMN}, {0}.c1 AS {TIME_COLUMN}", order[0]);
            let numbers = [numbered[place], numbered[1 - place]];
            let found = meetings(&select, order, "LEFT SEMI JOIN", numbers, band).await;
            let leave = matches!(kind, JoinKind::Semi | JoinKind::Anti);
            partners = Some(Partners::new(found, leave, window(TIME_COLUMN, reach_us), limits).unwrap());
        }
        sides.push(Side::new(&kept, 3 * place..3 * place + 3, window("c1", reach_us), partners, limits).unwrap());
    }
    let pairs = "l.c0, l.c1, l.c2, r.c0 AS c3, r.c1 AS c4, r.c2 AS c5";
    let pairs = match kind.gives_pairs() {
        true => Some(meetings(pairs, ["l", "r"], "JOIN", numbered, band).await),
        false => None,
    };
    Bounded::new(kind, sides.try_into().ok().unwrap(), pairs)
}

fn as_of(same_time: bool, limits: StateLimits) -> AsOf {
    let side = || AsOfSide::new(Arc::new(Column::new("c1", 1)), vec![Arc::new(Column::new("c2", 2))]);
    let schema = batch(&[]).schema();
    AsOf::new([side(), side()], same_time, &[schema.clone(), schema], limits).unwrap()
}

async fn join(tested: Tested, limits: StateLimits) -> Join {
    let (meeting, sides) = match tested {
        Tested::Within(kind, band) => {
            (Meeting::Bounded(Box::new(bounded(kind, band, limits).await)), 1 + usize::from(kind.gives_pairs()))
        }
        Tested::AsOf { same_time } => (Meeting::AsOf(Box::new(as_of(same_time, limits))), 2),
    };
    let leaf = || Leaf::new(batch(&[]).schema());
    let above = Leaf::new(joined(sides));
    Join::new(Parts {
        left: query("SELECT * FROM l", &[("l", leaf())]).await,
        right: query("SELECT * FROM r", &[("r", leaf())]).await,
        kept: [batch(&[]).schema(), batch(&[]).schema()],
        above: query("SELECT * FROM met", &[("met", above)]).await,
        joined: joined(sides),
        meeting,
        behind_us: 0,
    })
}

/// Gives what comes out at a barrier.
async fn close(join: &mut Join, watermark_us: i64) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut closing = join.close(watermark_us).unwrap();
    while let Some(rows) = closing.next().await.unwrap() {
        let number = |place: usize| rows.column(place).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
        let right = if rows.num_columns() > 3 { number(3) } else { vec![None; rows.num_rows()] };
        pairs.extend(number(0).into_iter().zip(right));
    }
    pairs
}

/// What a batch gives: rows that meet, and rows that are alone.
fn answer(tested: Tested, left: &[Row], right: &[Row]) -> Vec<Pair> {
    let pair = |l: &Row, r: Option<&Row>| (Some(l.0), r.map(|r| r.0));
    let mut pairs = Vec::new();
    match tested {
        Tested::Within(kind, (least, most)) => {
            let meet = |l: &Row, r: &Row| {
                let within = |l: i64, r: i64| r >= l + least && r <= l + most;
                l.2.is_some() && l.2 == r.2 && l.1.zip(r.1).is_some_and(|(l, r)| within(l, r))
            };
            for l in left {
                let partners: Vec<&Row> = right.iter().filter(|r| meet(l, r)).collect();
                match kind {
                    JoinKind::Semi if !partners.is_empty() => pairs.push(pair(l, None)),
                    JoinKind::Left | JoinKind::Full | JoinKind::Anti if partners.is_empty() => {
                        pairs.push(pair(l, None))
                    }
                    _ if kind.gives_pairs() => pairs.extend(partners.into_iter().map(|r| pair(l, Some(r)))),
                    _ => {}
                }
            }
            if kind == JoinKind::Full {
                let alone = right.iter().filter(|r| !left.iter().any(|l| meet(l, r)));
                pairs.extend(alone.map(|r| (None, Some(r.0))));
            }
        }
        Tested::AsOf { same_time } => {
            for l in left {
                let fits = |l: i64, r: i64| r < l || same_time && r == l;
                let candidates = right
                    .iter()
                    .filter(|r| l.2.is_some() && l.2 == r.2 && l.1.zip(r.1).is_some_and(|(l, r)| fits(l, r)));
                pairs.push(pair(l, candidates.max_by_key(|r| (r.1, r.0))));
            }
        }
    }
    pairs.sort_unstable();
    pairs
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// The files that are durable, by kind and epoch.
#[derive(Default)]
struct Durable(HashMap<&'static str, BTreeMap<u64, Vec<u8>>>);

impl Durable {
    fn seal(&mut self, join: &mut Join, epoch: u64) {
        for (kind, sealed) in join.seal(epoch).unwrap() {
            let files = self.0.entry(kind).or_default();
            if let Some(added) = sealed.added {
                join.adopt(kind, epoch, file(&added)).unwrap();
                files.insert(epoch, added.to_vec());
            }
            files.retain(|epoch, _| sealed.live.contains(epoch));
            assert!(files.keys().eq(&sealed.live), "a file is live that was never given");
        }
    }

    fn restore(&self, join: &mut Join, passed_us: i64) {
        let files =
            |files: &BTreeMap<u64, Vec<u8>>| files.iter().map(|(epoch, content)| (*epoch, file(content))).collect();
        join.restore(self.0.iter().map(|(kind, of)| (*kind, files(of))).collect(), passed_us).unwrap();
    }

    fn count(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

/// Numbers without an order that can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, below: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(self.0 >> 33).unwrap() % below
    }

    /// Gives rows that are on time at a watermark, and numbers them on.
    fn rows(&mut self, watermark_us: i64, next: &mut i64) -> Vec<Row> {
        let count = if self.below(3) == 0 { 0 } else { self.below(120) };
        let mut rows = Vec::new();
        for _ in 0..count {
            let at = (self.below(40) > 0).then(|| watermark_us + self.below(60));
            let key = (self.below(40) > 0).then(|| self.below(25));
            rows.push((*next, at, key));
            *next += 1;
        }
        rows
    }
}

#[tokio::test]
async fn a_join_gives_what_a_batch_does_whatever_is_in_memory_and_whenever_it_starts_again() {
    let within = BANDS.into_iter().flat_map(|band| KINDS.map(|kind| Tested::Within(kind, band)));
    let all: Vec<Tested> = within.chain([true, false].map(|same_time| Tested::AsOf { same_time })).collect();
    for (seed, tested) in (1..).zip(all.iter().copied()) {
        equals_the_batch(seed, tested, SMALL).await;
    }
    for tested in all.into_iter().step_by(4) {
        equals_the_batch(99, tested, LARGE).await;
    }
}

async fn equals_the_batch(seed: u64, tested: Tested, limits: StateLimits) {
    let mut random = Random(seed);
    let (mut running, mut durable) = (join(tested, limits).await, Durable::default());
    let (mut all, mut next) = ([Vec::new(), Vec::new()], 0);
    let (mut given, mut watermark_us) = (Vec::new(), 0);
    for epoch in 1..=40 {
        for (side, all) in all.iter_mut().enumerate() {
            let rows = random.rows(watermark_us, &mut next);
            // Of several epochs one has rows of one side only.
            if random.below(4) > 0 {
                rows.chunks(50).for_each(|rows| running.absorb(side, batch(rows)));
                all.extend(rows);
            }
        }
        watermark_us += if random.below(2) == 0 { random.below(25) } else { 0 };
        given.extend(close(&mut running, watermark_us).await);
        assert_eq!(running.passed_us(), watermark_us);
        durable.seal(&mut running, epoch);
        if limits == SMALL {
            assert!(running.size_bytes() < 20_000, "{tested:?}: {} bytes", running.size_bytes());
        }
        if epoch % 13 == 0 {
            let passed_us = running.passed_us();
            running = join(tested, limits).await;
            durable.restore(&mut running, passed_us);
        }
    }
    given.extend(close(&mut running, WATERMARK_END).await);
    given.sort_unstable();
    let expected = answer(tested, &all[0], &all[1]);
    assert!(expected.len() > 50, "{tested:?}: only {} rows", expected.len());
    assert_eq!(given, expected, "{tested:?} {limits:?}, seed {seed}");
}

#[tokio::test]
async fn what_is_collected_are_the_few_rows() {
    for join in ["JOIN", "LEFT SEMI JOIN"] {
        for on in ["l.c2 = r.c2 AND l.c1 < r.c1", "l.c1 < r.c1", "l.c1 < r.c1 AND l.c2 + r.c2 > 3"] {
            for few in 0..2 {
                let schema = batch(&[]).schema();
                let (rows, leaf) = (Leaf::of_few(schema.clone()), Leaf::new(schema));
                let leaves =
                    if few == 0 { [("l", rows.clone()), ("r", leaf)] } else { [("l", leaf), ("r", rows.clone())] };
                let query = query(&format!("SELECT l.c0 FROM l {join} r ON {on}"), &leaves).await;
                let mut node = query.physical().clone();
                while node.children().len() == 1 {
                    node = node.children()[0].clone();
                }
                // Joins collect their first input.
                while let Some(first) = node.children().first().map(|first| Arc::clone(first)) {
                    node = first;
                }
                let scan = (node.as_ref() as &dyn std::any::Any).downcast_ref::<LeafExec>().unwrap();
                assert!(Arc::ptr_eq(scan.leaf(), &rows), "{join} on {on}, few at {few}");
            }
        }
    }
}

#[tokio::test]
async fn rows_of_streams_without_order_are_read_too() {
    let old = |rows: &RecordBatch| {
        let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema()).unwrap();
        writer.write(rows).unwrap();
        writer.finish().unwrap();
        file(&writer.into_inner().unwrap())
    };
    let numbered = |rows: &RecordBatch, numbers: &[u64]| {
        let numbers: ArrayRef = Arc::new(UInt64Array::from(numbers.to_vec()));
        let columns = rows.columns().iter().cloned().chain([numbers]).collect();
        RecordBatch::try_new(with_row(&rows.schema()), columns).unwrap()
    };
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![10]).with_timezone("UTC"));
    let numbers: ArrayRef = Arc::new(UInt64Array::from(vec![4]));
    let found = RecordBatch::try_from_iter([(ROW_COLUMN, numbers), (TIME_COLUMN, times)]).unwrap();
    let kept = batch(&[(1, Some(10), Some(1)), (2, Some(10), Some(2)), (3, Some(-40), Some(3))]);
    let mut within = join(Tested::Within(JoinKind::Left, (0, 30)), SMALL).await;
    let left = vec![(3, old(&numbered(&kept, &[4, 5, 6])))];
    within.restore(BTreeMap::from([(LEFT, left), (LEFT_FOUND, vec![(4, old(&found))])]), 0).unwrap();
    within.absorb(1, batch(&[(7, Some(12), Some(1))]));
    let given = close(&mut within, 20).await;
    assert_eq!(given, [(Some(1), Some(7))], "one had passed before");
    Durable::default().seal(&mut within, 5);
    assert_eq!(close(&mut within, WATERMARK_END).await, [(Some(2), None)], "the other one had found a partner");

    let mut newest = join(Tested::AsOf { same_time: true }, SMALL).await;
    let right = batch(&[(8, Some(1), Some(1)), (9, Some(3), Some(1)), (10, Some(30), Some(1))]);
    newest.restore(BTreeMap::from([(LEFT, vec![(3, old(&kept))]), (RIGHT, vec![(3, old(&right))])]), 5).unwrap();
    let mut given = close(&mut newest, 11).await;
    given.sort_unstable();
    assert_eq!(given, [(Some(1), Some(9)), (Some(2), None)]);
}

#[tokio::test]
async fn what_has_found_a_partner_is_forgotten_in_time() {
    for kind in [JoinKind::Left, JoinKind::Semi] {
        let (mut running, mut durable) = (join(Tested::Within(kind, (0, 5)), SMALL).await, Durable::default());
        for epoch in 1..=50 {
            let now = i64::try_from(epoch).unwrap() * 10;
            running.absorb(0, batch(&[(now, Some(now), Some(1)), (now + 1, Some(now + 3), Some(2))]));
            running.absorb(1, batch(&[(now, Some(now - 7), Some(2)), (now, Some(now), Some(1))]));
            // One finds its partner at once, and the one that was kept in the epoch before.
            assert_eq!(close(&mut running, now - 5).await.len(), if epoch == 1 { 1 } else { 2 }, "{kind:?} {epoch}");
            durable.seal(&mut running, epoch);
        }
        close(&mut running, 1_000).await;
        durable.seal(&mut running, 51);
        assert_eq!((running.size_bytes(), durable.count()), (0, 0), "{kind:?}");
    }
}

#[tokio::test]
async fn of_rows_of_a_key_the_newest_stays() {
    const KEYS: i64 = 200;
    let (mut running, mut durable) = (join(Tested::AsOf { same_time: true }, SMALL).await, Durable::default());
    let mut most = 0;
    for now in 0..200 {
        let right: Vec<Row> = (0..KEYS).map(|key| (now * KEYS + key, Some(now), Some(key))).collect();
        running.absorb(1, batch(&right));
        assert_eq!(close(&mut running, now).await, []);
        durable.seal(&mut running, now.unsigned_abs() + 1);
        let bytes: usize = durable.0.values().flat_map(BTreeMap::values).map(Vec::len).sum();
        most = most.max(bytes);
    }
    assert!(most < 100_000, "{most} bytes of {KEYS} keys");
    running.absorb(0, batch(&[(-1, Some(300), Some(7))]));
    assert_eq!(close(&mut running, WATERMARK_END).await, [(Some(-1), Some(199 * KEYS + 7))]);
}
