//! States that outlive an epoch: what fits in memory, and files for the rest.
//!
//! What an epoch adds becomes a file, ordered by the time at which states end (with their window, say) and by key. Files
//! of about the same size are merged. A file is never changed: what has been given out is skipped until all of its file
//! has been. To give states out, or to look some up by their keys, is to go through all files side by side in their
//! order, a piece at a time that fits in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

mod blocks;
mod file;
mod order;
mod pieces;
mod sessions;
#[cfg(test)]
mod sessions_tests;
mod sweep;
#[cfg(test)]
mod tests;

use super::filter::Filter;
use super::held::Held;
use super::sealed::Sealed;
use super::tiers;
use super::window::{WATERMARK_END, WATERMARK_START};
use crate::error::{Error, Result};
pub use blocks::Blocks;
use file::{Block, BlockFile, Found, Ordered, encode};
use order::Order;
pub use order::{Ends, Place};
pub use pieces::{Pieces, Wanted};
pub use sessions::SessionPieces;
use sweep::Sweep;

/// What the states of a table may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateLimits {
    /// Memory of states that have a file already.
    pub cached_bytes: usize,
    /// The largest file that is merged of smaller ones, and the states that are given out at once: both are made in
    /// memory.
    pub piece_bytes: usize,
}

/// States by the time at which they end, and by key.
pub struct States {
    order: Order,
    limits: StateLimits,
    /// What has a file, or will have one once it is durable. Older ones come first.
    segments: Vec<Segment>,
    /// What has come since, in order.
    fresh: Segment,
    /// What has come last, as it came.
    open: Vec<RecordBatch>,
    /// What that takes.
    open_held: Held,
    /// How far the files have been written again that are too large to be merged.
    sweep: Sweep,
    /// What has come in the open epoch, in bytes, before states of a sweep came to it.
    fresh_bytes: Option<u64>,
    /// States that end at or before this have been given out.
    closed_until_us: i64,
    /// Up to which end `fresh` holds no states.
    settled_until_us: i64,
    /// The first time of the sessions that have been moved, and of those that are open and stand where others have been
    /// given out; nothing until it is read. The blocks tell that of all others.
    earliest_moved_us: Option<i64>,
    /// Whether everything has been given out.
    ended: bool,
}

/// States in their order.
#[derive(Default)]
struct Segment {
    /// The epoch that made them durable.
    epoch: u64,
    file: Option<BlockFile>,
    blocks: Vec<Block>,
    /// How many blocks of the file come before these, whose states lie in newer files.
    first_block: usize,
    /// So do those of keys before this.
    from_key: u64,
    /// Of sessions, which keys there are.
    filter: Option<Filter>,
}

impl States {
    /// Keeps nothing yet. `keys` are the columns of `schema` by which states are put together, and found.
    pub fn new(schema: SchemaRef, keys: Vec<usize>, ends: Ends, limits: StateLimits) -> Result<Self> {
        let column =
            |index: usize| -> Arc<dyn PhysicalExpr> { Arc::new(Column::new(schema.field(index).name(), index)) };
        let keys = keys.into_iter().map(column).collect();
        Self::with_keys(schema, keys, ends, limits)
    }

    /// Keeps nothing yet. `keys` give from states that by which they are put together, and found.
    pub fn with_keys(
        schema: SchemaRef,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        ends: Ends,
        limits: StateLimits,
    ) -> Result<Self> {
        let order = Order::new(schema, keys, ends)?;
        let (segments, fresh, open, open_held, sweep, fresh_bytes) = Default::default();
        Ok(Self {
            order,
            limits,
            segments,
            fresh,
            open,
            open_held,
            sweep,
            fresh_bytes,
            closed_until_us: WATERMARK_START,
            settled_until_us: WATERMARK_START,
            earliest_moved_us: None,
            ended: false,
        })
    }

    /// Gives the columns of states.
    pub fn schema(&self) -> &SchemaRef {
        self.order.schema()
    }

    /// Gives the time up to which states have been given out.
    pub fn closed_until_us(&self) -> i64 {
        self.closed_until_us
    }

    /// Adds states.
    pub fn add(&mut self, states: &RecordBatch) -> Result<()> {
        if states.num_rows() > 0 {
            let states = self.order.plain(states)?;
            self.open_held.add(&states);
            self.open.push(states);
        }
        Ok(())
    }

    /// Gives the states that end at or before `bound_us` and have not been given out; [`WATERMARK_END`] gives all there
    /// are.
    ///
    /// From now on they count as given out, so all pieces must be taken. Input that ends leaves no trace beyond its last
    /// end, so that later input is not late as a whole.
    pub fn close(&mut self, bound_us: i64) -> Result<Pieces<'_>> {
        self.settle()?;
        let (after_us, until_us) = self.pass(bound_us);
        let segments = self.segments.iter_mut().chain([&mut self.fresh]);
        let wanted = Wanted::span(after_us, until_us);
        Ok(Pieces::new(&self.order, segments, wanted, self.limits.piece_bytes, Some(&mut self.closed_until_us)))
    }

    /// Gives the states of sessions that end at or before `bound_us`, as [`close`](Self::close) gives those of windows.
    ///
    /// The states of a session get its first and its last time.
    pub fn close_sessions(&mut self, bound_us: i64) -> Result<SessionPieces<'_>> {
        self.settle()?;
        let (after_us, until_us) = self.pass(bound_us);
        SessionPieces::new(self, after_us, until_us)
    }

    /// Gives the first time of the sessions that have not been given out; [`WATERMARK_END`] if there are none.
    pub fn earliest_us(&self) -> Result<i64> {
        let mut earliest = WATERMARK_END;
        let Some(sessions) = self.order.sessions().filter(|_| !self.ended) else { return Ok(earliest) };
        // Where the states have been read of which others have been given out, their first time is known.
        let known_until = match self.earliest_moved_us {
            Some(first) => {
                earliest = first;
                sessions.stands_at_us(self.closed_until_us)
            }
            None => self.closed_until_us,
        };
        let blocks = self.segments.iter().chain([&self.fresh]).flat_map(|segment| &segment.blocks);
        let openings = blocks.flat_map(|block| &block.openings).filter(|(end_us, _)| *end_us > known_until);
        earliest = openings.map(|(_, first_us)| *first_us).fold(earliest, i64::min);
        for states in &self.open {
            let firsts = sessions.spans(states)?.into_iter().flatten().map(|span| span.first_us);
            earliest = firsts.fold(earliest, i64::min);
        }
        Ok(earliest)
    }

    /// Gives the states that are asked for and have not been given out, and raises `last_us` to the last of their ends.
    /// They stay.
    ///
    /// States with equal ends and keys stand at the same place; those of other keys may stand there too.
    pub fn find<'a>(&'a mut self, wanted: Wanted, last_us: Option<&'a mut i64>) -> Result<Pieces<'a>> {
        self.settle()?;
        let wanted = self.not_given(wanted);
        let segments = self.segments.iter_mut().chain([&mut self.fresh]);
        Ok(Pieces::new(&self.order, segments, wanted, self.limits.piece_bytes, last_us))
    }

    /// Gives the states that are asked for and have not been given out, block by block. They stay.
    pub fn blocks(&mut self, wanted: Wanted) -> Result<Blocks<'_>> {
        self.settle()?;
        let wanted = self.not_given(wanted);
        let segments = self.segments.iter_mut().chain([&mut self.fresh]);
        Ok(Blocks::new(&self.order, segments, wanted))
    }

    /// Gives the last end of the states that have not been given out.
    pub fn last_us(&mut self) -> Result<Option<i64>> {
        self.settle()?;
        let segments = self.segments.iter().chain([&self.fresh]);
        Ok(segments.filter_map(|segment| segment.blocks.last()).map(|block| block.last.end_us).max())
    }

    /// Gives the places of the states that the open epoch has added.
    pub fn fresh_places(&mut self) -> Result<Vec<Place>> {
        self.settle()?;
        let rows = self.fresh.blocks.iter().filter_map(|block| block.rows.as_ref());
        let mut places = Vec::new();
        for rows in rows {
            places.extend(self.order.places(rows)?);
        }
        Ok(places)
    }

    /// Gives the places where states stand, or would.
    pub fn places(&self, states: &RecordBatch) -> Result<Vec<Place>> {
        self.order.places(&self.order.plain(states)?)
    }

    /// Gives the places where states with these keys stand that do not end.
    pub fn places_of(&self, keys: &[ArrayRef], rows: usize) -> Result<Vec<Place>> {
        self.order.places_of(keys, rows)
    }

    /// Forgets the states that end at or before `bound_us`.
    pub fn forget(&mut self, bound_us: i64) {
        self.closed_until_us = self.closed_until_us.max(bound_us);
    }

    /// Takes out what the open epoch has added since it was put in order, with what was in order before; it comes back
    /// through [`add`](Self::add).
    pub fn take_fresh(&mut self) -> Result<Vec<RecordBatch>> {
        if self.open.is_empty() {
            return Ok(Vec::new());
        }
        self.open_held = Held::default();
        let blocks = std::mem::take(&mut self.fresh).blocks.into_iter().filter_map(|block| block.rows);
        let mut taken = Vec::with_capacity(self.open.len());
        for rows in blocks {
            taken.push(self.order.open(&rows, self.closed_until_us)?);
        }
        taken.append(&mut self.open);
        taken.iter().map(|rows| self.order.typed(rows)).collect()
    }

    /// Takes out the states that should be merged; they come back through [`add`](Self::add).
    pub fn take_mergeable(&mut self) -> Result<Vec<RecordBatch>> {
        self.settle()?;
        let sizes: Vec<u64> = self.segments.iter().map(Segment::bytes).collect();
        let most = self.limits.piece_bytes as u64;
        let picked = tiers::alike(self.fresh.bytes(), &sizes, most, BTreeSet::new());
        if picked.is_empty() {
            return self.take_swept();
        }
        let mut taken = Vec::new();
        let fresh = std::mem::take(&mut self.fresh);
        let segments = std::mem::take(&mut self.segments).into_iter().enumerate();
        let (merged, kept): (Vec<_>, Vec<_>) = segments.partition(|(place, _)| picked.contains(place));
        self.segments = kept.into_iter().map(|(_, segment)| segment).collect();
        for mut segment in merged.into_iter().map(|(_, segment)| segment).chain([fresh]) {
            for block in 0..segment.blocks.len() {
                let rows = self.order.open(&segment.read(block, &self.order)?, self.closed_until_us)?;
                taken.push(self.order.typed(&rows)?);
            }
        }
        Ok(taken)
    }

    /// Closes an epoch, and tells what has to be durable.
    ///
    /// What was added must be given back as a file by [`adopt`](Self::adopt).
    pub fn seal(&mut self, epoch: u64) -> Result<Sealed> {
        self.settle()?;
        let mut live: Vec<u64> = self.segments.iter().map(|segment| segment.epoch).collect();
        let mut segment = Segment { epoch, ..std::mem::take(&mut self.fresh) };
        let bytes = segment.bytes();
        self.note_swept(bytes);
        let keep = bytes <= self.limits.cached_bytes as u64;
        let filter = segment.filter.as_ref();
        let added = encode(self.order.plain_schema(), &mut segment.blocks, filter, self.sweep, keep)?;
        if added.is_some() {
            self.segments.push(segment);
            live.push(epoch);
        }
        Ok(Sealed { live, added })
    }

    /// Takes the file that [`seal`](Self::seal) has made, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        let found = BlockFile::open(file, &self.order)?;
        let segment = self.segments.last_mut().filter(|segment| segment.epoch == epoch);
        let (Found::Ordered(Ordered { file, .. }), Some(segment)) = (found, segment) else {
            return Err(Error::internal("a file of states is not what was sealed"));
        };
        segment.file = Some(file);
        self.evict();
        Ok(())
    }

    /// Goes on from the files of these epochs, oldest first. What lies in files of an earlier format goes through `update`
    /// first.
    pub fn restore(
        &mut self,
        files: Vec<(u64, File)>,
        closed_until_us: i64,
        update: impl FnOnce(Vec<RecordBatch>) -> Result<Vec<RecordBatch>>,
    ) -> Result<()> {
        self.closed_until_us = closed_until_us;
        let (mut without_order, mut earlier, mut sweep) = (Vec::new(), Vec::new(), Sweep::default());
        for (epoch, file) in files {
            match BlockFile::open(file, &self.order)? {
                Found::Ordered(Ordered { file, blocks, filter, sweep: told }) => {
                    let file = Some(file);
                    self.segments.push(Segment { epoch, file, blocks, filter, ..Segment::default() });
                    sweep = told;
                }
                Found::Rows(rows) => without_order.extend(rows),
                Found::Stream(rows) => earlier.extend(rows),
            }
        }
        self.restore_sweep(sweep);
        for rows in update(earlier)?.into_iter().chain(without_order) {
            self.add(&self.order.open(&rows, closed_until_us)?)?;
        }
        Ok(())
    }

    /// Gives the memory that the states take, in bytes.
    pub fn size_bytes(&self) -> usize {
        let segments = self.segments.iter().chain([&self.fresh]);
        segments.map(|segment| segment.index_bytes() + segment.cached_bytes()).sum::<usize>() + self.open_held.bytes()
    }

    /// Gives the part of it that the open epoch has added, and that is taken once more while it is put in order: what its
    /// barrier may free.
    pub fn open_bytes(&self) -> usize {
        2 * self.open_held.bytes()
    }

    fn not_given(&self, mut wanted: Wanted) -> Wanted {
        wanted.after_us = wanted.after_us.max(self.closed_until_us);
        wanted.places.retain(|place| place.end_us > self.closed_until_us);
        wanted
    }

    /// Goes on to a bound, and gives the ends after which, and up to which, states are to be given out now.
    fn pass(&mut self, bound_us: i64) -> (i64, i64) {
        let span = (self.closed_until_us, bound_us.max(self.closed_until_us));
        if bound_us == WATERMARK_END {
            self.ended = true;
        } else {
            self.closed_until_us = span.1;
        }
        span
    }

    /// Puts what has come in order, and leaves out what has been given out.
    fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.ended) {
            self.segments.clear();
            self.fresh = Segment::default();
        }
        let closed_until_us = self.closed_until_us;
        let is_open = |block: &Block| block.last.end_us > closed_until_us;
        self.segments.retain(|segment| segment.blocks.last().is_some_and(is_open));
        let order = &self.order;
        let given = |block: &Block| order.earliest_end_us(block.first.end_us) <= closed_until_us;
        let passed = self.settled_until_us < closed_until_us && self.fresh.blocks.iter().any(given);
        self.settled_until_us = closed_until_us;
        if self.open.is_empty() && !passed {
            return Ok(());
        }
        let mut fresh = Vec::new();
        for block in std::mem::take(&mut self.fresh.blocks).into_iter().filter(is_open) {
            let given = given(&block);
            if let Some(rows) = block.rows {
                fresh.push(if given { order.open(&rows, closed_until_us)? } else { rows });
            }
        }
        fresh.append(&mut self.open);
        self.open_held = Held::default();
        (self.fresh.blocks, self.fresh.filter) = self.order.sorted(&fresh)?;
        Ok(())
    }

    /// Forgets what is in files too until the rest fits.
    fn evict(&mut self) {
        let mut cached: usize = self.segments.iter().map(Segment::cached_bytes).sum();
        for segment in self.segments.iter_mut().filter(|segment| segment.file.is_some()) {
            if cached <= self.limits.cached_bytes {
                return;
            }
            cached -= segment.cached_bytes();
            segment.blocks.iter_mut().for_each(|block| block.rows = None);
        }
    }
}

impl Segment {
    /// Gives what the states would take in memory, in bytes.
    fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes as u64).sum()
    }

    /// Gives what the index takes in memory.
    fn index_bytes(&self) -> usize {
        let openings: usize = self.blocks.iter().map(|block| size_of_val(block.openings.as_slice())).sum();
        let filter = self.filter.as_ref().map_or(0, Filter::size_bytes);
        self.blocks.len() * size_of::<Block>() + openings + filter
    }

    /// Gives what they take now.
    fn cached_bytes(&self) -> usize {
        self.blocks.iter().filter(|block| block.rows.is_some()).map(|block| block.bytes).sum()
    }

    fn read(&mut self, block: usize, order: &Order) -> Result<RecordBatch> {
        let cached = self.blocks.get(block).and_then(|block| block.rows.clone());
        let rows = match (cached, &mut self.file) {
            (Some(rows), _) => rows,
            (None, Some(file)) => file.read(self.first_block + block)?,
            (None, None) => return Err(Error::internal("a block of states is neither in memory nor in a file")),
        };
        if block > 0 || self.from_key == 0 {
            return Ok(rows);
        }
        // Blocks are in order: only in the first there may be keys on both sides.
        let from = order.places(&rows)?.partition_point(|place| place.key < self.from_key);
        Ok(rows.slice(from, rows.num_rows() - from))
    }
}
