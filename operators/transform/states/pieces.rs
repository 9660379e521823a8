//! States that are asked for, a piece at a time: all files are read side by side in their order.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use super::order::{Order, Place};
use super::{Block, Segment};
use crate::error::Result;
use crate::transform::window::WATERMARK_END;

/// Which states are asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// All that end behind this,
    pub after_us: i64,
    /// and at or before this.
    pub until_us: i64,
    /// And those that stand here, in order.
    pub places: Vec<Place>,
    /// And those of keys with these hashes, whenever they end; in order.
    pub keys: Vec<u64>,
}

/// States that are asked for. Each piece holds all of them with the same end and key.
pub struct Pieces<'a> {
    order: &'a Order,
    cursors: Vec<Cursor<'a>>,
    piece_bytes: usize,
    /// Whether all is one piece.
    fits: bool,
    /// What becomes the last end that has been given.
    last_us: Option<&'a mut i64>,
}

/// A place in a file.
struct Cursor<'a> {
    segment: &'a mut Segment,
    wanted: Arc<Wanted>,
    /// The next block.
    next: usize,
    /// Whether places are asked for by key too.
    by_key: bool,
    loaded: Option<Loaded>,
}

/// States in memory that have not been given.
pub(super) struct Loaded {
    rows: RecordBatch,
    places: Vec<Place>,
    from: usize,
    to: usize,
}

impl Wanted {
    /// Asks for the states that end in a span of time.
    pub fn span(after_us: i64, until_us: i64) -> Self {
        Self { after_us, until_us, places: Vec::new(), keys: Vec::new() }
    }

    /// Asks for the states that stand at some places.
    pub fn places(mut places: Vec<Place>) -> Self {
        places.sort_unstable();
        places.dedup();
        Self { places, ..Self::span(WATERMARK_END, WATERMARK_END) }
    }

    /// Asks for the states of the keys of those that stand at some places.
    pub fn keys(places: &[Place]) -> Self {
        let mut keys: Vec<u64> = places.iter().map(|place| place.key).collect();
        keys.sort_unstable();
        keys.dedup();
        Self { keys, ..Self::span(WATERMARK_END, WATERMARK_END) }
    }

    fn is_wanted(&self, place: &Place) -> bool {
        self.is_in_span(place)
            || self.places.binary_search(place).is_ok()
            || self.keys.binary_search(&place.key).is_ok()
    }

    /// Tells whether only a span is asked for.
    pub(super) fn is_span(&self) -> bool {
        self.places.is_empty() && self.keys.is_empty()
    }

    fn is_in_span(&self, place: &Place) -> bool {
        place.end_us > self.after_us && place.end_us <= self.until_us
    }

    /// Tells whether a block may hold states that are asked for.
    pub(super) fn may_be_in(&self, block: &Block) -> bool {
        let Block { first, last, .. } = block;
        let place = self.places.get(self.places.partition_point(|place| place < first));
        // In a block with several ends there may be any key.
        let keys = if first.end_us == last.end_us { first.key..=last.key } else { 0..=u64::MAX };
        let key = self.keys.get(self.keys.partition_point(|key| key < keys.start()));
        (last.end_us > self.after_us && first.end_us <= self.until_us)
            || place.is_some_and(|place| place <= last)
            || key.is_some_and(|key| keys.contains(key))
    }

    /// Leaves of states, which are in order, those that are asked for.
    pub(super) fn of(&self, rows: RecordBatch, mut places: Vec<Place>) -> Result<Loaded> {
        if self.is_span() {
            let from = places.partition_point(|place| place.end_us <= self.after_us);
            let to = places.partition_point(|place| place.end_us <= self.until_us);
            return Ok(Loaded { rows, places, from, to });
        }
        let wanted: Vec<bool> = places.iter().map(|place| self.is_wanted(place)).collect();
        let mut marks = wanted.iter();
        places.retain(|_| marks.next().is_some_and(|wanted| *wanted));
        let rows = filter_record_batch(&rows, &BooleanArray::from(wanted))?;
        let to = places.len();
        Ok(Loaded { rows, places, from: 0, to })
    }
}

impl Loaded {
    /// Gives the states.
    pub(super) fn into_rows(self) -> RecordBatch {
        self.rows.slice(self.from, self.to.saturating_sub(self.from))
    }
}

impl<'a> Pieces<'a> {
    /// Goes through the states of all segments that are asked for.
    pub(super) fn new(
        order: &'a Order,
        segments: impl Iterator<Item = &'a mut Segment>,
        wanted: Wanted,
        piece_bytes: usize,
        last_us: Option<&'a mut i64>,
    ) -> Self {
        let wanted = Arc::new(wanted);
        let cursor = |segment| Cursor { segment, wanted: wanted.clone(), next: 0, by_key: true, loaded: None };
        let mut cursors: Vec<_> = segments.map(cursor).collect();
        let fits = cursors.iter().map(Cursor::bytes).sum::<usize>() <= piece_bytes;
        let by_key = !fits || !wanted.is_span();
        cursors.iter_mut().for_each(|cursor| cursor.by_key = by_key);
        Self { order, cursors, piece_bytes, fits, last_us }
    }

    /// Gives the next piece; nothing when all have been given.
    pub fn next_piece(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let mut piece = Vec::new();
        let (mut bytes, mut last) = (0, None);
        while bytes < self.piece_bytes || self.fits {
            let mut boundary = None;
            for cursor in &mut self.cursors {
                if let Some(last) = cursor.load(self.order)? {
                    boundary = Some(boundary.map_or(last, |known: Place| known.min(last)));
                }
            }
            let Some(boundary) = boundary else { break };
            let boundary = if self.fits { Place::LAST } else { boundary };
            for cursor in &mut self.cursors {
                bytes += cursor.take_until(boundary, self.order, &mut piece, &mut last)?;
            }
        }
        if let (Some(last_us), Some(last)) = (&mut self.last_us, last) {
            **last_us = last.max(**last_us);
        }
        Ok((!piece.is_empty()).then_some(piece))
    }
}

impl Cursor<'_> {
    /// Gives what the blocks take in memory that are asked for, in bytes.
    fn bytes(&self) -> usize {
        let wanted = self.segment.blocks.iter().filter(|block| self.wanted.may_be_in(block));
        wanted.map(|block| block.bytes).sum()
    }

    /// Reads the next block if none is in memory, and tells the last place in memory; nothing at the end.
    fn load(&mut self, order: &Order) -> Result<Option<Place>> {
        while self.loaded.is_none() {
            let mut blocks = self.segment.blocks.iter().enumerate().skip(self.next);
            let Some((block, _)) = blocks.find(|(_, block)| self.wanted.may_be_in(block)) else {
                self.next = self.segment.blocks.len();
                break;
            };
            self.next = block + 1;
            let rows = self.segment.read(block, order)?;
            let places = if self.by_key { order.places(&rows)? } else { order.ends(&rows)? };
            self.loaded = Some(self.wanted.of(rows, places)?).filter(|loaded| loaded.from < loaded.to);
        }
        Ok(self.loaded.as_ref().and_then(|loaded| loaded.places.get(loaded.to - 1)).copied())
    }

    /// Takes the states that stand at `boundary` or before it, and tells their size in bytes.
    fn take_until(
        &mut self,
        boundary: Place,
        order: &Order,
        piece: &mut Vec<RecordBatch>,
        last_us: &mut Option<i64>,
    ) -> Result<usize> {
        let mut bytes = 0;
        while self.load(order)?.is_some() {
            let Some(loaded) = &mut self.loaded else { break };
            let left = loaded.places.get(loaded.from..loaded.to).unwrap_or_default();
            let count = left.partition_point(|place| *place <= boundary);
            let mut ends = left.iter().take(count).rev().map(|place| place.end_us);
            *last_us = ends.find(|end| *end != WATERMARK_END).max(*last_us);
            if count > 0 {
                piece.push(order.typed(&loaded.rows.slice(loaded.from, count))?);
                bytes += loaded.rows.get_array_memory_size() * count / loaded.places.len();
                loaded.from += count;
            }
            if loaded.from < loaded.to {
                break;
            }
            self.loaded = None;
        }
        Ok(bytes)
    }
}
