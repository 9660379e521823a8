//! The conformance suite of sources: what every [`Source`] must keep.
//!
//! ```no_run
//! # async fn check() {
//! # use std::sync::Arc;
//! use nexus_operators::source::generate::{GenerateSettings, GenerateSource, Generator};
//! use nexus_operators::testing::{clock::ManualClock, source};
//!
//! let settings = GenerateSettings {
//!     name: "numbers".into(),
//!     rows: Some(100_000),
//!     rate: None,
//!     seed: 7,
//!     columns: vec![("n".into(), Generator::Sequence)],
//! };
//! source::conforms(|_| async { Box::new(GenerateSource::new(&settings, ManualClock::at(0)).unwrap()) as _ }).await;
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use bytes::Bytes;

use crate::batch::{Chunk, Payload};
use crate::position::Cut;
use crate::source::{Source, SourceEvent};

/// Answers `Idle` in a row after which an unbounded source counts as read.
const IDLE_MAX: usize = 2;

/// Positions from which a source is read again: each costs one reading.
const RESUMES_MAX: usize = 12;

/// Seeds of the runs in which calls are dropped.
const SEEDS: std::ops::Range<u64> = 1..5;

/// What a source gave, whatever the pieces it came in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    partitions: BTreeMap<String, Content>,
    /// Partition, place and reason of what could not be read.
    pub rejects: BTreeSet<(String, String, String)>,
}

/// What one partition gave.
#[derive(Clone, Default, PartialEq)]
struct Content {
    /// Framed content at its offsets; white space, and what lies between records, are spaces.
    framed: Vec<u8>,
    headers: BTreeSet<Option<Bytes>>,
    /// Offsets and bytes of records that come apart.
    records: Vec<(String, Bytes)>,
    /// Index, first row and content of row groups.
    groups: Vec<GroupSeen>,
    rows: Option<RecordBatch>,
    row_end: u64,
}

/// Index, first row and pieces of a row group.
type GroupSeen = (usize, u64, Vec<(u64, Bytes)>);

impl Seen {
    /// Adds what a source answered; panics if it is out of order.
    pub fn add(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Chunk(chunk) if chunk.is_empty() => {}
            SourceEvent::Chunk(chunk) => self.partitions.entry(chunk.partition.to_string()).or_default().add(chunk),
            SourceEvent::Reject { partition, offset, reason, .. } => {
                let new = self.rejects.insert((partition.to_string(), offset, reason));
                assert!(new, "the same reject came twice from {partition}");
            }
            SourceEvent::Idle | SourceEvent::End => {}
        }
    }

    /// Gives the framed content of a partition, with all white space as spaces.
    pub fn text(&self, partition: &str) -> &str {
        let content = self.partitions.get(partition).map_or(&[][..], |content| &content.framed);
        std::str::from_utf8(content).expect("tests read text")
    }

    /// Gives the rows of a partition.
    pub fn rows(&self, partition: &str) -> Option<&RecordBatch> {
        self.partitions.get(partition)?.rows.as_ref()
    }

    /// Names the partitions that gave something.
    pub fn partitions(&self) -> Vec<&str> {
        self.partitions.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, records, groups) = (self.framed.len(), self.records.len(), self.groups.len());
        write!(f, "{bytes} bytes framed, {records} records, {groups} row groups, rows up to {}", self.row_end)
    }
}

impl Content {
    fn add(&mut self, chunk: Chunk) {
        let name = &chunk.partition;
        match chunk.payload {
            Payload::Framed { offset, bytes, header } => {
                let start = usize::try_from(offset).expect("tests are small");
                assert!(start >= self.framed.len(), "{name} gave offset {offset} again or out of order");
                assert!(!bytes.is_empty(), "{name} gave an empty piece at {offset}");
                self.framed.resize(start, b' ');
                self.framed.extend(bytes.iter().map(|b| if b.is_ascii_whitespace() { b' ' } else { *b }));
                self.headers.insert(header);
            }
            Payload::Records(records) => self.records.extend(records.into_iter().map(|r| (r.offset, r.data))),
            Payload::RowGroup(mut group) => {
                group.pieces.sort();
                self.groups.push((group.index, group.first_row, group.pieces));
            }
            Payload::Batch { offset, rows } => {
                assert_eq!(offset, self.row_end.max(if self.rows.is_none() { offset } else { 0 }), "rows of {name}");
                self.row_end = offset + rows.num_rows() as u64;
                let all = self.rows.iter().chain([&rows]);
                self.rows = Some(concat_batches(&rows.schema(), all).expect("batches of one schema"));
            }
        }
    }
}

/// Checks that a source keeps its contract.
///
/// `make` gives the source, not yet open, each time with the same content, as far as it lies behind the cut;
/// its clock must stand still, so that positions can be compared.
///
/// - It resumes behind every event with exactly the rest.
/// - Dropping `next` at any await loses nothing and repeats nothing.
/// - Cuts are changes, and fold to the same whatever their number.
/// - `committed` is idempotent; `End` stays.
pub async fn conforms<F, Fut>(mut make: F) -> Seen
where
    F: FnMut(Cut) -> Fut,
    Fut: Future<Output = Box<dyn Source>>,
{
    let mut whole = make(Cut::default()).await;
    let (all, _) = read(&mut *whole, &Cut::default()).await;
    let once = whole.cut();

    let mut source = make(Cut::default()).await;
    let (history, folded) = read_with_cuts(&mut *source).await;
    let last = history.last().map_or(Seen::default(), |(seen, _)| seen.clone());
    assert!(last == all, "two readings of the same content differ: {last:?}, {all:?}");
    assert_eq!(folded.advanced, once.advanced, "cuts do not fold to the cut over all");

    let step = history.len().div_ceil(RESUMES_MAX).max(1);
    for (seen, cut) in history.iter().step_by(step).chain(history.last()) {
        let mut resumed = make(cut.clone()).await;
        resumed.open(cut).await.expect("a source opens where it stood");
        let mut seen = seen.clone();
        read_on(&mut *resumed, &mut seen).await;
        assert!(seen == all, "opened at {cut:?} a source gave another rest: {seen:?}, {all:?}");
        let mut end = cut.clone();
        end.fold(&resumed.cut());
        assert_eq!(end, folded, "a source that was opened at {cut:?} ended elsewhere");
    }

    for seed in SEEDS {
        let mut source = make(Cut::default()).await;
        source.open(&Cut::default()).await.expect("a source opens");
        let seen = read_dropping(&mut *source, seed).await;
        assert!(seen == all, "dropping calls with seed {seed} changed what was read: {seen:?}, {all:?}");
        assert_eq!(source.cut(), once, "dropping calls with seed {seed} changed the positions");
    }
    all
}

/// Opens a source, reads it to its end, and gives what it gave and how many events that took.
pub async fn read(source: &mut dyn Source, cut: &Cut) -> (Seen, usize) {
    source.open(cut).await.expect("a source opens");
    let mut seen = Seen::default();
    let events = read_on(source, &mut seen).await;
    (seen, events)
}

async fn read_on(source: &mut dyn Source, seen: &mut Seen) -> usize {
    let (mut idle, mut events) = (0, 0);
    while idle < IDLE_MAX {
        match source.next().await.expect("a source gives what it has") {
            SourceEvent::Idle => idle += 1,
            SourceEvent::End => {
                assert!(source.bounded(), "only a bounded source ends");
                assert!(matches!(source.next().await, Ok(SourceEvent::End)), "an end stays");
                break;
            }
            event => {
                idle = 0;
                events += 1;
                seen.add(event);
            }
        }
        source.maintain().await.expect("a source keeps itself alive");
    }
    events
}

/// Reads with a cut, committed twice, behind each event; gives what stood at each, and the fold of all.
async fn read_with_cuts(source: &mut dyn Source) -> (Vec<(Seen, Cut)>, Cut) {
    source.open(&Cut::default()).await.expect("a source opens");
    let (mut seen, mut folded, mut history, mut idle) = (Seen::default(), Cut::default(), Vec::new(), 0);
    loop {
        let event = source.next().await.expect("a source gives what it has");
        let ended = matches!(event, SourceEvent::End);
        idle = if matches!(event, SourceEvent::Idle) { idle + 1 } else { 0 };
        seen.add(event);
        let cut = source.cut();
        assert_eq!(source.cut(), Cut::default(), "a cut is what has changed since the last one");
        source.committed(&cut).await.expect("a cut is acknowledged");
        source.committed(&cut).await.expect("a cut is acknowledged again");
        folded.fold(&cut);
        history.push((seen.clone(), folded.clone()));
        if ended || idle == IDLE_MAX {
            return (history, folded);
        }
    }
}

/// Reads while calls are dropped after a few polls.
async fn read_dropping(source: &mut dyn Source, seed: u64) -> Seen {
    let (mut seen, mut idle, mut random) = (Seen::default(), 0, seed);
    while idle < IDLE_MAX {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let polls = (random >> 33) % 4;
        let event = match poll_some(source, polls).await {
            Some(event) => event,
            None if random >> 63 == 0 => continue,
            None => source.next().await.expect("a source gives what it has"),
        };
        match event {
            SourceEvent::End => break,
            SourceEvent::Idle => idle += 1,
            event => {
                idle = 0;
                seen.add(event);
            }
        }
    }
    seen
}

async fn poll_some(source: &mut dyn Source, polls: u64) -> Option<SourceEvent> {
    let mut next = pin!(source.next());
    for _ in 0..=polls {
        if let Poll::Ready(event) = next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(event.expect("a source gives what it has"));
        }
        tokio::task::yield_now().await;
    }
    None
}
