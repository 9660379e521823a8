//! A file of which only the needed pieces are there.

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use crate::batch::RowGroup;

/// The pieces of one file that a row group needs.
pub(super) struct Pieces {
    file_len: u64,
    /// By their offsets, ascending.
    pieces: Vec<(u64, Bytes)>,
}

impl Pieces {
    pub(super) fn new(group: &RowGroup) -> Self {
        let mut pieces = group.pieces.clone();
        pieces.sort_by_key(|(offset, _)| *offset);
        Self { file_len: group.file_len, pieces }
    }

    /// Gives what is there from `start` on in one piece; at least `length` bytes.
    fn from(&self, start: u64, length: usize) -> Result<Bytes> {
        let behind = self.pieces.partition_point(|(offset, _)| *offset <= start);
        let found = self.pieces.iter().take(behind).rev().find_map(|(offset, bytes)| {
            let skipped = usize::try_from(start - offset).ok()?;
            let there = bytes.len().checked_sub(skipped)?;
            (there >= length).then(|| bytes.slice(skipped..))
        });
        found.ok_or_else(|| {
            ParquetError::EOF(format!(
                "{length} bytes at {start} of {} are not among those that were read",
                self.file_len
            ))
        })
    }
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.file_len
    }
}

impl ChunkReader for Pieces {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start, 1)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        Ok(self.from(start, length)?.slice(..length))
    }
}
