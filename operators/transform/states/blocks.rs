//! States block by block, as they lie in memory and in files: for whoever needs all that are asked for, in any order.

use arrow::array::RecordBatch;

use super::Segment;
use super::order::Order;
use super::pieces::Wanted;
use crate::error::Result;

/// States that are asked for, of which no more than a block is read at once.
pub struct Blocks<'a> {
    order: &'a Order,
    segments: Vec<&'a mut Segment>,
    wanted: Wanted,
    /// The segment that is read, and its next block.
    next: (usize, usize),
}

impl<'a> Blocks<'a> {
    /// Goes through the states of all segments that are asked for.
    pub(super) fn new(order: &'a Order, segments: impl Iterator<Item = &'a mut Segment>, wanted: Wanted) -> Self {
        Self { order, segments: segments.collect(), wanted, next: (0, 0) }
    }

    /// Gives the next states; nothing when all have been given.
    pub fn next_block(&mut self) -> Result<Option<RecordBatch>> {
        let by_key = !self.wanted.is_span();
        while let Some(segment) = self.segments.get_mut(self.next.0) {
            let mut blocks = segment.blocks.iter().enumerate().skip(self.next.1);
            let Some((block, _)) = blocks.find(|(_, block)| self.wanted.may_be_in(block)) else {
                self.next = (self.next.0 + 1, 0);
                continue;
            };
            self.next.1 = block + 1;
            let rows = segment.read(block, self.order)?;
            let places = if by_key { self.order.places(&rows)? } else { self.order.ends(&rows)? };
            let rows = self.wanted.of(rows, places)?.into_rows();
            if rows.num_rows() > 0 {
                return self.order.typed(&rows).map(Some);
            }
        }
        Ok(None)
    }
}
