//! States that do not end, and are replaced by newer ones of their keys: those in files that are too large to be merged
//! are written again, the next keys in each epoch.
//!
//! A sweep goes through all files that are there when it begins, from the first key to the last. What they hold of the
//! keys before the place that it has reached lies merged in newer files, whose footers tell that place. When it has come
//! to the end, they are gone. The next one begins when there is twice as much as this one has written.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use serde::{Deserialize, Serialize};

use super::file::Block;
use super::order::{Ends, owned};
use super::{Segment, States};
use crate::error::Result;

/// Pieces that may lie in files, though not one of their states may count any more, before it is looked for those.
const REPLACED_PIECES_MAX: u64 = 4;

/// What a sweep writes again in an epoch, counted in what the epoch has added: more, or it would never come to its end.
const SWEPT_OF_FRESH: u64 = 2;

/// All states of a key are merged at once: those of one whose states take so many times what a sweep may take at once stay
/// as they are.
const SWEPT_OF_KEY_MAX: u64 = 4;

/// How far a sweep has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// It goes through the files of epochs up to this; nothing between two sweeps.
    pub through_epoch: Option<u64>,
    /// What they hold of keys before this lies in newer files.
    pub until_key: u64,
    /// What it has written, in bytes.
    pub written_bytes: u64,
    /// What the one before has written: about what all states took that were not replaced.
    pub live_bytes: u64,
}

impl States {
    /// Takes the states of the next keys out of the files that a sweep goes through; they come back merged.
    pub(super) fn take_swept(&mut self) -> Result<Vec<RecordBatch>> {
        let mut taken = Vec::new();
        if !matches!(self.order.ends_by(), Ends::Never) {
            return Ok(taken);
        }
        let piece_bytes = self.limits.piece_bytes as u64;
        let bytes: u64 = self.segments.iter().map(Segment::bytes).sum();
        if self.sweep.through_epoch.is_none() {
            if bytes <= (2 * self.sweep.live_bytes).saturating_add(REPLACED_PIECES_MAX.saturating_mul(piece_bytes)) {
                return Ok(taken);
            }
            self.sweep.through_epoch = self.segments.last().map(|segment| segment.epoch);
        }
        let fresh_bytes = self.fresh.bytes();
        let Some(last_key) = self.next_swept(piece_bytes.max(SWEPT_OF_FRESH * fresh_bytes)) else {
            self.sweep = Sweep { live_bytes: bytes, ..Sweep::default() };
            return Ok(taken);
        };
        let through_epoch = self.sweep.through_epoch;
        for segment in self.segments.iter_mut().filter(|segment| Some(segment.epoch) <= through_epoch) {
            for block in 0..segment.blocks.partition_point(|block| block.first.key <= last_key) {
                let rows = segment.read(block, &self.order)?;
                let to = self.order.places(&rows)?.partition_point(|place| place.key <= last_key);
                // Of most blocks few are taken: they must not hold the others.
                taken.push(self.order.typed(&owned(&take_record_batch(&rows, &first(to))?)?)?);
            }
            segment.forget_through(last_key);
        }
        self.sweep.until_key = last_key.saturating_add(1);
        self.segments.retain(|segment| !segment.blocks.is_empty());
        self.fresh_bytes = Some(fresh_bytes);
        Ok(taken)
    }

    /// Notes that the states of an epoch have been merged, and take so much in its file.
    pub(super) fn note_swept(&mut self, file_bytes: u64) {
        let Some(fresh_bytes) = self.fresh_bytes.take() else { return };
        self.sweep.written_bytes += file_bytes.saturating_sub(fresh_bytes);
        let through_epoch = self.sweep.through_epoch;
        if !self.segments.iter().any(|segment| Some(segment.epoch) <= through_epoch) {
            self.sweep = Sweep { live_bytes: self.sweep.written_bytes, ..Sweep::default() };
        }
    }

    /// Goes on with a sweep, from what the newest file tells.
    pub(super) fn restore_sweep(&mut self, sweep: Sweep) {
        self.sweep = sweep;
        let swept = self.segments.iter_mut().filter(|segment| Some(segment.epoch) <= sweep.through_epoch);
        if let Some(last_key) = sweep.until_key.checked_sub(1) {
            swept.for_each(|segment| segment.forget_through(last_key));
        }
        self.segments.retain(|segment| !segment.blocks.is_empty());
    }

    /// Gives the last of the next keys of a sweep, whose states take about so much. Nothing if one has too many.
    fn next_swept(&self, bytes_max: u64) -> Option<u64> {
        let swept = self.segments.iter().filter(|segment| Some(segment.epoch) <= self.sweep.through_epoch);
        let blocks: Vec<_> = swept.flat_map(|segment| &segment.blocks).collect();
        let bytes_through = |key: u64| blocks.iter().map(|block| bytes_through(block, key)).sum::<u64>();
        let least = blocks.iter().map(|block| block.first.key).min()?;
        if bytes_through(least) > bytes_max {
            return (bytes_through(least) <= SWEPT_OF_KEY_MAX.saturating_mul(bytes_max)).then_some(least);
        }
        let (mut fits, mut most) = (least, u64::MAX);
        while fits < most {
            let middle = most - (most - fits) / 2;
            if bytes_through(middle) <= bytes_max {
                fits = middle;
            } else {
                most = middle - 1;
            }
        }
        Some(fits)
    }
}

/// Gives about what the states of keys up to this take of a block, in bytes: hashes lie evenly.
fn bytes_through(block: &Block, key: u64) -> u64 {
    let (first, last) = (block.first.key, block.last.key);
    let bytes = block.bytes as u64;
    if key < first {
        0
    } else if key >= last {
        bytes
    } else {
        let part = u128::from(bytes) * (u128::from(key - first) + 1) / (u128::from(last - first) + 1);
        u64::try_from(part).unwrap_or(bytes)
    }
}

/// Gives the places of the first rows.
fn first(rows: usize) -> UInt32Array {
    (0..u32::try_from(rows).unwrap_or(u32::MAX)).collect()
}

impl Segment {
    /// Forgets the states of keys up to this.
    fn forget_through(&mut self, last_key: u64) {
        let gone = self.blocks.partition_point(|block| block.last.key <= last_key);
        self.blocks.drain(..gone);
        self.first_block += gone;
        self.from_key = last_key.saturating_add(1);
        if let Some(first) = self.blocks.first_mut().filter(|first| first.first.key <= last_key) {
            // What is left of it is read again when it is asked for.
            first.bytes -= usize::try_from(bytes_through(first, last_key)).unwrap_or(first.bytes);
            first.first.key = self.from_key;
            first.rows = None;
        }
    }
}
