//! States that are given out, a piece at a time: all files are read side by side in their order.

use arrow::array::RecordBatch;

use super::Segment;
use super::order::{Order, Place};
use crate::error::Result;
use crate::transform::window::WATERMARK_END;

/// States of windows that end in a span of time. Each piece holds all states of its windows and keys.
pub struct Pieces<'a> {
    order: &'a Order,
    cursors: Vec<Cursor<'a>>,
    piece_bytes: usize,
    /// Whether all is one piece.
    fits: bool,
    /// The end of the last window that has been given out.
    closed_until_us: &'a mut i64,
}

/// A place in a file.
struct Cursor<'a> {
    segment: &'a mut Segment,
    /// The next block.
    next: usize,
    /// The blocks behind this one hold no window of the span.
    end: usize,
    after_us: i64,
    until_us: i64,
    /// Whether places are asked for by key too.
    by_key: bool,
    loaded: Option<Loaded>,
}

/// States in memory that have not been given out.
struct Loaded {
    rows: RecordBatch,
    places: Vec<Place>,
    from: usize,
    to: usize,
}

impl<'a> Pieces<'a> {
    /// Goes through the windows that end after `after_us`, and at or before `until_us`.
    pub(super) fn new(
        order: &'a Order,
        segments: impl Iterator<Item = &'a mut Segment>,
        (after_us, until_us): (i64, i64),
        piece_bytes: usize,
        closed_until_us: &'a mut i64,
    ) -> Self {
        let mut cursors: Vec<_> = segments.map(|segment| Cursor::new(segment, after_us, until_us)).collect();
        let fits = cursors.iter().map(Cursor::bytes).sum::<usize>() <= piece_bytes;
        cursors.iter_mut().for_each(|cursor| cursor.by_key = !fits);
        Self { order, cursors, piece_bytes, fits, closed_until_us }
    }

    /// Gives the next piece; nothing when all have been given.
    pub fn next_piece(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let mut piece = Vec::new();
        let mut bytes = 0;
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
                bytes += cursor.take_until(boundary, self.order, &mut piece, self.closed_until_us)?;
            }
        }
        Ok((!piece.is_empty()).then_some(piece))
    }
}

impl<'a> Cursor<'a> {
    fn new(segment: &'a mut Segment, after_us: i64, until_us: i64) -> Self {
        let next = segment.blocks.partition_point(|block| block.last.end_us <= after_us);
        let end = segment.blocks.partition_point(|block| block.first.end_us <= until_us);
        Self { segment, next, end: end.max(next), after_us, until_us, by_key: true, loaded: None }
    }

    /// Gives what the blocks take in memory that have not been read, in bytes.
    fn bytes(&self) -> usize {
        self.segment.blocks.get(self.next..self.end).unwrap_or_default().iter().map(|block| block.bytes).sum()
    }

    /// Reads the next block if none is in memory, and tells the last place in memory; nothing at the end.
    fn load(&mut self, order: &Order) -> Result<Option<Place>> {
        while self.loaded.is_none() && self.next < self.end {
            let rows = self.segment.read(self.next)?;
            self.next += 1;
            let places = if self.by_key { order.places(&rows)? } else { order.windows(&rows)? };
            let from = places.partition_point(|place| place.end_us <= self.after_us);
            let to = places.partition_point(|place| place.end_us <= self.until_us);
            self.loaded = (from < to).then_some(Loaded { rows, places, from, to });
        }
        Ok(self.loaded.as_ref().and_then(|loaded| loaded.places.get(loaded.to - 1)).copied())
    }

    /// Takes the states that stand at `boundary` or before it, and tells their size in bytes.
    fn take_until(
        &mut self,
        boundary: Place,
        order: &Order,
        piece: &mut Vec<RecordBatch>,
        last_us: &mut i64,
    ) -> Result<usize> {
        let mut bytes = 0;
        while self.load(order)?.is_some() {
            let Some(loaded) = &mut self.loaded else { break };
            let left = loaded.places.get(loaded.from..loaded.to).unwrap_or_default();
            let count = left.partition_point(|place| *place <= boundary);
            let windows = left.iter().take(count).rev().map(|place| place.end_us);
            *last_us = windows.filter(|end| *end != WATERMARK_END).take(1).fold(*last_us, i64::max);
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
