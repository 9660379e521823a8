//! The records of a chunk for an archive: byte for byte, and so that they can be read from one object again.
//!
//! A line that takes others along would cost them when it is read again, so what does not keep to its framing is not
//! archived: JSON that is none, a line of CSV whose quote is never closed, a record of which only a part is known. It is
//! told of as refused, with all its bytes.

use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use memchr::memchr2;

use super::FormatSettings;
use crate::archive::Archived;
use crate::error::{Error, Result};

/// How records of a format stand behind one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// One a line. Line breaks within a document are white space between its parts, and become spaces.
    Documents,
    /// One a line, or several where a record holds line breaks.
    Lines,
    /// With their length before them, which they lack.
    Delimited,
    /// As they are.
    Whole,
}

/// Takes records of a chunk.
pub(super) struct Archiving {
    framing: Framing,
    archived: Archived,
    /// A record with what keeps it from the next.
    framed: Vec<u8>,
}

impl Archiving {
    /// Begins; nothing for a format whose records cannot stand behind one another.
    pub(super) fn of(format: &FormatSettings) -> Option<Self> {
        let framing = match format {
            FormatSettings::Json | FormatSettings::CloudWatchLogs | FormatSettings::Batch => Framing::Documents,
            FormatSettings::Csv { .. } | FormatSettings::Raw => Framing::Lines,
            FormatSettings::Protobuf { delimited: false, .. } => Framing::Delimited,
            FormatSettings::Protobuf { delimited: true, .. } => Framing::Whole,
            FormatSettings::Parquet | FormatSettings::Avro | FormatSettings::AvroRecords { .. } => return None,
        };
        Some(Self { framing, archived: Archived::new(), framed: Vec::new() })
    }

    /// Takes a record; `header` is the line that means the same to it as it did where it came from.
    pub(super) fn push(&mut self, header: Option<&[u8]>, raw: &[u8]) {
        self.framed.clear();
        match self.framing {
            Framing::Whole => {}
            Framing::Delimited => push_length(raw.len(), &mut self.framed),
            Framing::Documents if memchr2(b'\n', b'\r', raw).is_some() => {
                let joined = raw.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte });
                self.framed.extend(joined);
                self.framed.push(b'\n');
                return self.archived.push(header, &self.framed);
            }
            Framing::Documents | Framing::Lines => {}
        }
        self.framed.extend_from_slice(raw);
        if matches!(self.framing, Framing::Documents | Framing::Lines) && !raw.ends_with(b"\n") {
            self.framed.push(b'\n');
        }
        self.archived.push(header, &self.framed);
    }

    /// Takes typed rows, each as a document of JSON.
    pub(super) fn push_rows(&mut self, rows: &RecordBatch) -> Result<()> {
        let mut text = Vec::new();
        let mut writer = LineDelimitedWriter::new(&mut text);
        let written = writer.write(rows).and_then(|()| writer.finish());
        written.map_err(|e| Error::config("rows of these columns cannot be archived as JSON").because(e))?;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            self.push(None, line.strip_suffix(b"\n").unwrap_or(line));
        }
        Ok(())
    }

    /// Takes the records out, which have arrived at this time.
    pub(super) fn take(&mut self, arrived_us: i64) -> Result<Option<RecordBatch>> {
        self.archived.take(arrived_us)
    }
}

/// Appends a length as Protocol Buffers write it: seven bits a byte, the lowest first.
fn push_length(mut length: usize, out: &mut Vec<u8>) {
    while length >= 0x80 {
        out.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    out.push(length.to_le_bytes()[0]);
}
