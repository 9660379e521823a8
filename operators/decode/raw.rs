//! No decoding: a line of a file, or a record, is a row of the column `_raw`.

use super::Decoded;
use super::column::Form;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::Plan;
use crate::batch::{Chunk, Payload};
use crate::error::Result;

/// Decodes a chunk; a line ends before its line break, and a blank line is a row too.
pub(super) fn decode(plan: &Plan, chunk: &Chunk) -> Result<Decoded> {
    let mut rows = Rows::new(plan, chunk)?;
    match &chunk.payload {
        Payload::Framed { offset, bytes, .. } => {
            let mut place = *offset;
            for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                let text = line.strip_suffix(b"\n").unwrap_or(line);
                push(&mut rows, Place::Offset(place), text.strip_suffix(b"\r").unwrap_or(text))?;
                place += line.len() as u64;
            }
        }
        Payload::Records(records) => {
            for record in records {
                push(&mut rows, Place::Record(record), &record.data)?;
            }
        }
        Payload::RowGroup(_) | Payload::Batch { .. } => {}
    }
    rows.finish()
}

fn push(rows: &mut Rows<'_>, place: Place<'_>, raw: &[u8]) -> Result<()> {
    if rows.is_too_long(raw.len()) {
        rows.reject_too_long(place, raw);
        return Ok(());
    }
    let pushed = rows.columns.iter_mut().try_for_each(|column| column.push(raw, Form::Field));
    match pushed {
        Ok(()) => rows.keep(place, raw.len()),
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
