//! Sessions that are given out, a piece at a time.
//!
//! A state ends with what its epoch knew of the session. When that has passed, its session is whole unless a state that
//! ends later goes on with it. Such a state is looked up by its key, in the newest files first: it is enough to find
//! one. Then what has ended is moved: it comes back with the times of both, and ends as late. So no state that has
//! ended is asked for again, and a file is left behind as a whole.

use std::ops::RangeInclusive;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::row::Rows;

use super::file::{Block, Opening};
use super::order::{Order, owned};
use super::{Segment, States};
use crate::error::{Error, Result};
use crate::transform::session::{Sessions, Span};
use crate::transform::window::WATERMARK_END;

/// Sessions that end in a span of time. Each piece holds whole ones.
pub struct SessionPieces<'a> {
    states: &'a mut States,
    sessions: Sessions,
    after_us: i64,
    until_us: i64,
    /// The hashes of the keys fall into so many parts of the same size, each of which is a piece.
    parts: u64,
    /// The next of them.
    next: u64,
}

/// A session that has ended, as far as is known.
struct Ended<'a> {
    hash: u64,
    span: Span,
    end_us: i64,
    keys: Option<&'a Rows>,
    row: usize,
    /// Whether a state goes on with it that ends later.
    goes_on: bool,
}

impl<'a> SessionPieces<'a> {
    /// Goes through the sessions that end after `after_us`, and at or before `until_us`.
    pub(super) fn new(states: &'a mut States, after_us: i64, until_us: i64) -> Result<Self> {
        let sessions = states.order.sessions().cloned();
        let sessions = sessions.ok_or_else(|| Error::internal("these states are not of sessions"))?;
        let mut pieces = Self { states, sessions, after_us, until_us, parts: 0, next: 0 };
        if after_us < until_us || pieces.states.earliest_moved_us.is_none() {
            let every = 0..=u64::MAX;
            let segments = pieces.states.segments.iter().chain([&pieces.states.fresh]);
            let blocks = segments.flat_map(|segment| &segment.blocks);
            let bytes: u64 =
                blocks.filter(|block| pieces.may_end_in(block, &every)).map(|block| block.bytes as u64).sum();
            pieces.parts = bytes.div_ceil((pieces.states.limits.piece_bytes as u64).max(1));
            pieces.states.earliest_moved_us = Some(WATERMARK_END);
        }
        Ok(pieces)
    }

    /// Gives the states of the next sessions; nothing when all have been given.
    pub fn next_piece(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        while self.next < self.parts {
            let keys = self.part(self.next);
            self.next += 1;
            let ended = self.ended(&keys)?;
            let given = self.give(ended)?;
            if !given.is_empty() {
                return Ok(Some(given));
            }
        }
        Ok(None)
    }

    /// Gives the hashes of a part.
    fn part(&self, number: u64) -> RangeInclusive<u64> {
        let first = |number| (u128::from(u64::MAX) + 1) * u128::from(number) / u128::from(self.parts);
        let [first, next] = [first(number), first(number + 1)].map(|hash| u64::try_from(hash).unwrap_or(u64::MAX));
        if number + 1 == self.parts { first..=u64::MAX } else { first..=next - 1 }
    }

    /// Tells whether a block may hold states of these keys that end in the span of time, or stand at its end.
    fn may_end_in(&self, block: &Block, keys: &RangeInclusive<u64>) -> bool {
        block.last.end_us > self.after_us
            && self.states.order.earliest_end_us(block.first.end_us) <= self.until_us
            && (block.first.end_us < block.last.end_us
                || (block.first.key <= *keys.end() && *keys.start() <= block.last.key))
    }

    /// Gives the states of these keys that end in the span of time.
    fn ended(&mut self, keys: &RangeInclusive<u64>) -> Result<Vec<RecordBatch>> {
        let stands_at_us = self.sessions.stands_at_us(self.until_us);
        let mut ended = Vec::new();
        for segment in 0..=self.states.segments.len() {
            for block in 0..self.segment(segment).blocks.len() {
                let may = self.segment(segment).blocks.get(block).is_some_and(|block| self.may_end_in(block, keys));
                if !may {
                    continue;
                }
                let rows = self.read(segment, block)?;
                let spans = self.sessions.spans(&rows)?;
                let mut marks = Vec::with_capacity(spans.len());
                for span in spans {
                    let end_us = self.sessions.end_us(span);
                    marks.push(end_us > self.after_us && end_us <= self.until_us);
                    if let Some(span) = span
                        && end_us > self.until_us
                        && self.sessions.stands_at_us(end_us) <= stands_at_us
                    {
                        self.opens(span);
                    }
                }
                ended.extend(self.of_keys(picked(&rows, marks)?, keys)?);
            }
        }
        Ok(ended)
    }

    /// Leaves of states those of some keys; nothing if there are none.
    fn of_keys(&self, states: Option<RecordBatch>, keys: &RangeInclusive<u64>) -> Result<Option<RecordBatch>> {
        match states {
            Some(states) if self.parts > 1 => {
                let places = self.states.order.places(&states)?;
                picked(&states, places.iter().map(|place| keys.contains(&place.key)).collect())
            }
            states => Ok(states),
        }
    }

    /// Gives the states of whole sessions, and moves those of others.
    fn give(&mut self, ended: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let later = if self.until_us == WATERMARK_END { Vec::new() } else { self.later(&ended)? };
        let spans = self.sessions.find(&ended.iter().chain(&later).collect::<Vec<_>>())?;
        let mut given = Vec::with_capacity(ended.len());
        for (states, spans) in ended.iter().zip(spans) {
            let states = self.sessions.with_spans(states, &spans)?;
            let mut moved = Vec::with_capacity(spans.len());
            for span in spans {
                let end_us = self.sessions.end_us(span);
                moved.push(end_us > self.until_us);
                if end_us != WATERMARK_END && end_us <= self.until_us {
                    self.states.closed_until_us = self.states.closed_until_us.max(end_us);
                }
                if let Some(span) = span.filter(|_| end_us > self.until_us) {
                    self.opens(span);
                }
            }
            let whole = picked(&states, moved.iter().map(|moved| !moved).collect())?;
            if let Some(moved) = picked(&states, moved)? {
                self.states.add(&moved)?;
            }
            if let Some(whole) = whole {
                given.push(self.states.order.typed(&whole)?);
            }
        }
        Ok(given)
    }

    /// Gives states that go on with sessions that have ended, without their accumulators: of each one at least, if
    /// there are any.
    fn later(&mut self, ended: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
        let keys = ended.iter().map(|states| self.states.order.keys(states)).collect::<Result<Vec<_>>>()?;
        let mut sought = sought(&self.states.order, &self.sessions, ended, &keys)?;
        let mut later = Vec::new();
        // What is not in order yet was moved just now, and is of other keys.
        for segment in (0..=self.states.segments.len()).rev() {
            let may_have = |ended: &Ended<'_>| {
                self.segment(segment).filter.as_ref().is_none_or(|filter| filter.may_have(ended.hash.into()))
            };
            let may: Vec<usize> = (0..sought.len()).filter(|place| sought.get(*place).is_some_and(may_have)).collect();
            let hashes: Vec<u64> = may.iter().filter_map(|place| sought.get(*place)).map(|ended| ended.hash).collect();
            let last_us = may.iter().filter_map(|place| sought.get(*place)).map(|ended| ended.end_us).max();
            let Some(last_us) = last_us else { continue };
            for block in 0..self.segment(segment).blocks.len() {
                let may = self.segment(segment).blocks.get(block).is_some_and(|block| {
                    let goes_on = |(end_us, first_us): &Opening| *end_us > self.until_us && *first_us < last_us;
                    block.openings.iter().any(goes_on) && may_hold(block, &hashes)
                });
                if may {
                    let rows = self.read(segment, block)?;
                    later.extend(self.going_on(&rows, &mut sought, last_us)?);
                }
            }
            sought.retain(|ended| !ended.goes_on);
        }
        Ok(later)
    }

    /// Leaves of states those that go on with a session, without their accumulators.
    fn going_on(&self, rows: &RecordBatch, sought: &mut [Ended<'_>], last_us: i64) -> Result<Option<RecordBatch>> {
        let rows = self.sessions.without_accumulators(rows)?;
        let spans = self.sessions.spans(&rows)?;
        let may = |span: &Option<Span>| {
            span.is_some_and(|span| span.first_us < last_us) && self.sessions.end_us(*span) > self.until_us
        };
        let Some(rows) = picked(&rows, spans.iter().map(may).collect())? else { return Ok(None) };
        let keys = self.states.order.keys(&rows)?;
        let mut marks = Vec::with_capacity(rows.num_rows());
        for (row, span) in spans.iter().filter(|span| may(span)).flatten().enumerate() {
            let key = keys.as_ref().map(|keys| keys.row(row));
            let hash = key.map_or(0, |key| (self.states.order.hash)(key.as_ref()));
            let from = sought.partition_point(|ended| ended.hash < hash);
            let mut goes_on = false;
            for ended in sought.iter_mut().skip(from).take_while(|ended| ended.hash == hash) {
                let same = span.first_us < ended.end_us && ended.keys.map(|keys| keys.row(ended.row)) == key;
                ended.goes_on |= same;
                goes_on |= same;
            }
            marks.push(goes_on);
        }
        picked(&rows, marks)
    }

    /// Notes a session that has not been given out.
    fn opens(&mut self, span: Span) {
        let earliest = self.states.earliest_moved_us.get_or_insert(WATERMARK_END);
        *earliest = span.first_us.min(*earliest);
    }

    /// Gives a segment; what is not durable comes last.
    fn segment(&self, number: usize) -> &Segment {
        self.states.segments.get(number).unwrap_or(&self.states.fresh)
    }

    fn read(&mut self, segment: usize, block: usize) -> Result<RecordBatch> {
        let States { segments, fresh, order, .. } = &mut *self.states;
        segments.get_mut(segment).unwrap_or(fresh).read(block, order)
    }
}

/// Gives the sessions of states, each once, by the hashes of their keys. What has no time goes on with nothing.
fn sought<'a>(
    order: &Order,
    sessions: &Sessions,
    states: &[RecordBatch],
    keys: &'a [Option<Rows>],
) -> Result<Vec<Ended<'a>>> {
    let found = sessions.find(&states.iter().collect::<Vec<_>>())?;
    let mut sought = Vec::with_capacity(found.iter().map(Vec::len).sum());
    for (spans, keys) in found.into_iter().zip(keys) {
        let keys = keys.as_ref();
        for (row, span) in spans.into_iter().enumerate() {
            let Some(span) = span else { continue };
            let hash = keys.map_or(0, |keys| (order.hash)(keys.row(row).as_ref()));
            sought.push(Ended { hash, span, end_us: sessions.end_us(Some(span)), keys, row, goes_on: false });
        }
    }
    sought.sort_unstable_by_key(|ended| (ended.hash, ended.span));
    let key = |ended: &Ended<'a>| ended.keys.map(|keys| keys.row(ended.row));
    sought.dedup_by(|a, b| (a.hash, a.span) == (b.hash, b.span) && key(a) == key(b));
    Ok(sought)
}

/// Gives the states that are marked, on their own: they may be few, and stay when the others have gone. Nothing if there
/// are none.
fn picked(states: &RecordBatch, marks: Vec<bool>) -> Result<Option<RecordBatch>> {
    match marks.iter().filter(|mark| **mark).count() {
        0 => Ok(None),
        all if all == states.num_rows() => Ok(Some(states.clone())),
        _ => Ok(Some(owned(&filter_record_batch(states, &BooleanArray::from(marks))?)?)),
    }
}

/// Tells whether a block may hold states whose keys have one of these hashes, which are in order.
fn may_hold(block: &Block, hashes: &[u64]) -> bool {
    if block.first.end_us < block.last.end_us {
        return true;
    }
    let from = hashes.partition_point(|hash| *hash < block.first.key);
    hashes.get(from).is_some_and(|hash| *hash <= block.last.key)
}
