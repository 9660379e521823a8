//! Framing and decoding together: however content arrives, and wherever reading goes on, it has the same records.

use arrow::datatypes::{DataType, Field};
use bytes::Bytes;

use super::reading::{Outcome, columns, read, settings, unknown};
use crate::decode::{DecoderSettings, FormatSettings, UnknownColumns};
use crate::source::framed::Grain;

/// How often reading is begun again behind a piece.
const RESUMES_MAX: usize = 4;

/// Any bytes as CSV: two of them choose the dialect and the grain.
pub(super) fn csv(data: &[u8]) {
    let Some(([dialect, fine], content)) = data.split_first_chunk::<2>() else { return };
    let format = FormatSettings::Csv {
        header: dialect & 1 == 0,
        delimiter: if dialect & 2 == 0 { b',' } else { b';' },
        quote: if dialect & 4 == 0 { b'"' } else { b'\'' },
        nulls: if dialect & 8 == 0 { vec![] } else { vec!["NULL".into()] },
    };
    let few = columns().into_iter().filter(|field| ["s", "i", "l"].contains(&field.name().as_str())).collect();
    let settings = settings(format, few, unknown(dialect >> 4));
    same_however_it_comes(&settings, content, *fine);
    within_a_small_limit(settings, content, *fine);
}

/// Any bytes as lines.
pub(super) fn raw(data: &[u8]) {
    let Some(([fine], content)) = data.split_first_chunk::<1>() else { return };
    let settings = settings(FormatSettings::Raw, vec![], UnknownColumns::Ignore);
    let whole = same_however_it_comes(&settings, content, *fine);
    if !crate::source::framed::is_packed(content) {
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        let lines = content.split_inclusive(|byte| *byte == b'\n').count();
        assert_eq!((whole.rows.num_rows(), whole.rejects.len()), (lines, 0));
    }
    within_a_small_limit(settings, content, *fine);
}

/// Any bytes as JSON, whichever way they are framed.
pub(super) fn json(data: &[u8]) {
    let Some(([fine], content)) = data.split_first_chunk::<1>() else { return };
    let columns = vec![Field::new("a", DataType::Utf8View, true)];
    let settings = settings(FormatSettings::Json, columns, UnknownColumns::Rescue);
    let whole = read(&settings, &Bytes::copy_from_slice(content), Grain::default(), 0);
    // Where a document ends that is none is a guess, and the cutter's need not be the decoder's.
    if whole.rejects.is_empty() && whole.damage.is_none() {
        same_however_it_comes(&settings, content, *fine);
    } else {
        let _ = read(&settings, &Bytes::copy_from_slice(content), grain(*fine), 0);
    }
    within_a_small_limit(settings, content, *fine);
}

/// Reads content at once, in small steps, and from each seam on; gives what it holds.
pub(super) fn same_however_it_comes(settings: &DecoderSettings, content: &[u8], fine: u8) -> Outcome {
    let content = Bytes::copy_from_slice(content);
    let whole = read(settings, &content, Grain::default(), 0);
    let pieces = read(settings, &content, grain(fine), 0);
    assert_eq!((&whole.rows, &whole.damage), (&pieces.rows, &pieces.damage), "read in small steps");
    assert_eq!(whole.rejects, pieces.rejects, "read in small steps");
    for (offset, records) in pieces.seams.iter().take(RESUMES_MAX) {
        let resumed = read(settings, &content, grain(fine), *offset);
        assert_eq!(resumed.records() + records, whole.records(), "read on from {offset}: {resumed:?}");
        let behind = whole.rows.num_rows() - resumed.rows.num_rows();
        assert_eq!(whole.rows.slice(behind, resumed.rows.num_rows()), resumed.rows, "read on from {offset}");
    }
    whole
}

/// Reads content with a limit that its records pass: none is longer than that, kept or rejected.
pub(super) fn within_a_small_limit(settings: DecoderSettings, content: &[u8], fine: u8) {
    let record_bytes_max = usize::from(fine >> 2) + 1;
    let settings = DecoderSettings { record_bytes_max, ..settings };
    let content = Bytes::copy_from_slice(content);
    let whole = read(&settings, &content, Grain::default(), 0);
    let pieces = read(&settings, &content, grain(fine), 0);
    if matches!(settings.format, FormatSettings::Raw) {
        assert_eq!((whole.rows, whole.rejects.len()), (pieces.rows, pieces.rejects.len()), "with a small limit");
    }
}

pub(super) fn grain(fine: u8) -> Grain {
    let bytes = usize::from(fine % 32);
    Grain { block_bytes: bytes + 4, step_bytes: bytes / 2 + 1, piece_bytes: bytes * 2 }
}
