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
