//! Parquet files by row groups: the footer once, then just the column chunks.

use std::collections::VecDeque;

use bytes::Bytes;
use parquet::file::metadata::{
    ColumnChunkMetaData, FooterTail, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};

use super::input::Input;
use crate::batch::RowGroup;
use crate::contained::contained;
use crate::error::{Error, Result};

/// Bytes of a footer: 64 MiB describe some hundred thousand column chunks.
const FOOTER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Encoded bytes of one row group: four times the 128 MiB that writers aim at. It is held in memory as a whole.
const ROW_GROUP_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bytes at the end of a file that tell the footer's length.
const TAIL_BYTES: u64 = 8;

/// Reads a Parquet file row group by row group.
pub(super) struct RowGroups {
    input: Input,
    /// Rows before this one have been read; it is where a row group begins.
    row: u64,
    footer: Option<Footer>,
    /// Which row group is next.
    index: usize,
    /// What has been fetched of the next row group, so that a dropped read goes on.
    fetched: Vec<(u64, Bytes)>,
    /// What is still to be fetched of it, by first byte and the byte behind the last.
    missing: Option<VecDeque<(u64, u64)>>,
    filling: Vec<u8>,
}

struct Footer {
    file_len: u64,
    at: u64,
    bytes: Bytes,
    metadata: ParquetMetaData,
}

impl RowGroups {
    /// Starts at the row group that begins with row `row`.
    pub(super) fn new(input: Input, row: u64) -> Self {
        let (fetched, filling) = (Vec::new(), Vec::new());
        Self { input, row, footer: None, index: 0, fetched, missing: None, filling }
    }

    /// Gives the number of rows that have been read.
    pub(super) fn row(&self) -> u64 {
        self.row
    }

    /// Reads the next row group and tells the row behind it; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(RowGroup, u64)>> {
        if self.footer.is_none() {
            let footer = Footer::read(&self.input).await?;
            self.index = footer.find(self.row)?;
            self.footer = Some(footer);
        }
        let footer = self.footer.as_ref().ok_or_else(|| Error::internal("a parquet footer was lost"))?;
        let Some(group) = footer.metadata.row_groups().get(self.index) else { return Ok(None) };
        let rows = u64::try_from(group.num_rows()).map_err(|_| invalid("a row group has less than no rows"))?;
        if self.missing.is_none() {
            self.missing = Some(footer.ranges(group)?);
        }
        let missing = self.missing.get_or_insert_default();
        while let Some((start, end)) = missing.front().copied() {
            let at = start + self.filling.len() as u64;
            if at >= end {
                self.fetched.push((start, std::mem::take(&mut self.filling).into()));
                missing.pop_front();
                continue;
            }
            let block = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.input.block_bytes());
            let read = self.input.read_at(at, block).await?;
            if read.is_empty() {
                return Err(invalid("the file ends within a row group"));
            }
            self.filling.extend_from_slice(&read);
        }
        let mut pieces = std::mem::take(&mut self.fetched);
        pieces.push((footer.at, footer.bytes.clone()));
        let found = RowGroup { file_len: footer.file_len, pieces, index: self.index, first_row: self.row };
        self.missing = None;
        self.index += 1;
        self.row += rows;
        Ok(Some((found, self.row)))
    }
}

impl Footer {
    async fn read(input: &Input) -> Result<Self> {
        let file_len = input.size()?;
        let tail_at = file_len.checked_sub(TAIL_BYTES).ok_or_else(|| invalid("it is shorter than a footer"))?;
        let tail = input.read_at(tail_at, TAIL_BYTES as usize).await?;
        let tail: [u8; TAIL_BYTES as usize] =
            tail.as_ref().try_into().map_err(|_| invalid("it became shorter while it was read"))?;
        let tail = FooterTail::try_new(&tail).map_err(|e| invalid("its end is no footer").because(e))?;
        if tail.is_encrypted_footer() {
            return Err(invalid("it is encrypted"));
        }
        let length = tail.metadata_length() as u64;
        let at = tail_at.checked_sub(length).ok_or_else(|| invalid("its footer is longer than the file"))?;
        if length > FOOTER_BYTES_MAX {
            return Err(invalid(&format!("its footer of {length} bytes is larger than {FOOTER_BYTES_MAX}")));
        }
        let bytes = input.read_at(at, usize::try_from(file_len - at).unwrap_or(usize::MAX)).await?;
        let encoded = bytes.get(..tail.metadata_length()).ok_or_else(|| invalid("it ends within its footer"))?;
        let metadata = contained(|| ParquetMetaDataReader::decode_metadata(encoded))
            .ok_or_else(|| invalid("its footer is broken"))?
            .map_err(|e| invalid("its footer cannot be decoded").because(e))?;
        Ok(Self { file_len, at, bytes, metadata })
    }

    /// Finds the row group that begins with `row`.
    fn find(&self, row: u64) -> Result<usize> {
        let mut first = 0;
        let groups = self.metadata.row_groups();
        for (index, group) in groups.iter().enumerate() {
            if first == row {
                return Ok(index);
            }
            first += u64::try_from(group.num_rows()).map_err(|_| invalid("a row group has less than no rows"))?;
        }
        if first == row {
            return Ok(groups.len());
        }
        Err(invalid(&format!("no row group begins at row {row}, from which to go on; has it been replaced?")))
    }

    /// Gives the ranges of a row group's column chunks, joined where they touch.
    fn ranges(&self, group: &RowGroupMetaData) -> Result<VecDeque<(u64, u64)>> {
        let mut chunks = group.columns().iter().map(|c| self.range(c)).collect::<Result<Vec<_>>>()?;
        chunks.sort_unstable();
        let mut ranges: VecDeque<(u64, u64)> = VecDeque::new();
        for (start, end) in chunks {
            match ranges.back_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push_back((start, end)),
            }
        }
        let bytes: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        if bytes > ROW_GROUP_BYTES_MAX {
            return Err(invalid(&format!(
                "a row group of {bytes} bytes is larger than {ROW_GROUP_BYTES_MAX}; write smaller row groups"
            )));
        }
        Ok(ranges)
    }

    fn range(&self, chunk: &ColumnChunkMetaData) -> Result<(u64, u64)> {
        // `byte_range` panics where a damaged footer holds a negative number.
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let range = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        let range = range.and_then(|(start, len)| Some((start, start.checked_add(len)?)));
        range.filter(|(_, end)| *end <= self.at).ok_or_else(|| invalid("a column chunk lies outside the file"))
    }
}

fn invalid(why: &str) -> Error {
    Error::data(format!("the parquet file cannot be read: {why}"))
}
