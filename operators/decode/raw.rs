//! No decoding: a line of a file, or a record, is a row of the column `_raw`.

use memchr::memchr;

use super::column::Form;
use super::provenance::Place;
use super::rows::Rows;
use super::steps::Records;
use crate::batch::{Chunk, Payload, Record};
use crate::error::Result;

/// The lines or records of a chunk. A line ends before its line break, and a blank line is a row too.
pub(super) enum Pieces<'a> {
    Lines { offset: u64, left: &'a [u8] },
    Records { left: &'a [Record] },
}

impl<'a> Pieces<'a> {
    pub(super) fn of(chunk: &'a Chunk) -> Self {
        match &chunk.payload {
            Payload::Framed { offset, bytes, .. } => Pieces::Lines { offset: *offset, left: bytes },
            Payload::Records(records) => Pieces::Records { left: records },
            Payload::RowGroup(_) | Payload::Batch { .. } => Pieces::Records { left: &[] },
        }
    }
}

impl Records for Pieces<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        while !rows.is_full() {
            match self {
                Pieces::Lines { left: [], .. } => return Ok(false),
                Pieces::Lines { offset, left } => {
                    let (line, behind) = left.split_at(memchr(b'\n', left).map_or(left.len(), |end| end + 1));
                    let text = line.strip_suffix(b"\n").unwrap_or(line);
                    push(rows, Place::Offset(*offset), text.strip_suffix(b"\r").unwrap_or(text))?;
                    *offset += line.len() as u64;
                    *left = behind;
                }
                Pieces::Records { left } => {
                    let Some((record, behind)) = left.split_first() else { return Ok(false) };
                    push(rows, Place::Record(record), &record.data)?;
                    *left = behind;
                }
            }
        }
        Ok(true)
    }
}

fn push(rows: &mut Rows<'_>, place: Place<'_>, raw: &[u8]) -> Result<()> {
    if rows.is_too_long(raw.len()) {
        rows.reject_too_long(place, raw);
        return Ok(());
    }
    let pushed = rows.columns.iter_mut().try_for_each(|column| column.push(raw, Form::Field));
    match pushed {
        Ok(()) => rows.keep(place, raw),
        Err(reason) => {
            rows.reject(place, raw, reason);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::batch::OffsetKind;
    use crate::decode::testing::*;
    use crate::decode::{DecoderSettings, FormatSettings};

    #[test]
    fn every_line_and_every_record_is_a_row() {
        let raw = || settings(FormatSettings::Raw, vec![]);
        let (batch, _) = decode_chunk(raw(), &framed(&b"a\xFF\r\n\nb"[..]));
        assert_eq!(texts(&batch, "_raw"), ["61ff", "", "62"]);
        assert_eq!(texts(&batch, "_offset"), ["1000", "1004", "1005"]);
        assert_eq!(batch.num_columns(), 5);

        let settings = DecoderSettings { offsets: OffsetKind::Sequence, record_bytes_max: 4, ..raw() };
        let (batch, decoded) = decode_chunk(settings, &records(&[("7", b"a\nb"), ("8", b"too long"), ("9", b"")]));
        assert_eq!(texts(&batch, "_raw"), ["610a62", ""]);
        assert_eq!(texts(&batch, "_offset"), ["7", "9"]);
        assert_eq!(reasons(&decoded), ["the record has 8 bytes, more than the limit of 4 (limits.record)"]);
    }
}
