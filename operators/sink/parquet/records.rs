//! Files of records: what an archive holds, byte for byte.

use std::io::{self, BufWriter, Write};

use arrow::array::{Array, AsArray, RecordBatch};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::file::Output;

/// Writes records one behind the other, below the line that they share, if they do.
///
/// Its rows are those of [`crate::archive::schema`]. What its encoder holds is some hundred KiB.
pub(super) enum RecordWriter {
    /// Packed by gzip (RFC 1952).
    Gzip(GzEncoder<Output>),
    /// As they are.
    Plain(BufWriter<Output>),
}

impl RecordWriter {
    /// Starts a file with the header of the first of `rows`.
    pub(super) fn start(output: Output, gzip: bool, rows: &RecordBatch) -> io::Result<Self> {
        let mut writer = match gzip {
            true => Self::Gzip(GzEncoder::new(output, Compression::default())),
            false => Self::Plain(BufWriter::new(output)),
        };
        let header = rows.column(1).as_binary_view();
        if !header.is_empty() && header.is_valid(0) {
            writer.write_all(header.value(0))?;
            writer.write_all(b"\n")?;
        }
        Ok(writer)
    }

    pub(super) fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        rows.column(2).as_binary_view().iter().flatten().try_for_each(|record| self.write_all(record))
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.try_finish(),
            Self::Plain(buffer) => buffer.flush(),
        }
    }

    pub(super) fn output(&self) -> &Output {
        match self {
            Self::Gzip(encoder) => encoder.get_ref(),
            Self::Plain(buffer) => buffer.get_ref(),
        }
    }

    pub(super) fn output_mut(&mut self) -> &mut Output {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Plain(buffer) => buffer.get_mut(),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Plain(buffer) => buffer.write_all(bytes),
        }
    }
}
