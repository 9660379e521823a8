//! Packed content: the same bytes however it arrives, and as other readers unpack it.

use std::io::{Read, Write};

use bytes::Bytes;

use super::reading::{Outcome, read, settings};
use crate::decode::{FormatSettings, UnknownColumns};
use crate::source::framed::Grain;

/// Unpacked bytes up to which an input is looked at: little of a bomb is enough.
const UNPACKED_BYTES_MAX: u64 = 4 << 20;

/// Any bytes as packed content, or as what is packed and then damaged; three bytes choose.
pub(super) fn content(data: &[u8]) {
    let Some(([packing, fine, damage], rest)) = data.split_first_chunk::<3>() else { return };
    let mut packed = match packing % 3 {
        0 => rest.to_vec(),
        1 => gzip(rest),
        _ => zstd::encode_all(rest, 3).expect("bytes in memory can be packed"),
    };
    let is_whole = packing % 3 > 0 && *damage == 0;
    if let Some(byte) = packed.get_mut(usize::from(*damage)).filter(|_| *damage > 3) {
        *byte ^= fine | 1;
    }
    if unpacked_bytes(&packed) > UNPACKED_BYTES_MAX {
        return;
    }
    let settings = settings(FormatSettings::Raw, vec![], UnknownColumns::Ignore);
    let packed = Bytes::from(packed);
    let grain = Grain { block_bytes: usize::from(*fine) + 4, ..Grain::default() };
    let whole = read(&settings, &packed, Grain::default(), 0);
    let pieces = read(&settings, &packed, grain, 0);
    assert_eq!(whole.damage.is_some(), pieces.damage.is_some(), "read block by block");
    // What was unpacked in the same step as the damage is lost with it.
    let rows = if whole.damage.is_some() { whole.rows.num_rows().min(pieces.rows.num_rows()) } else { usize::MAX };
    let first = |outcome: &Outcome| outcome.rows.slice(0, rows.min(outcome.rows.num_rows()));
    assert_eq!(first(&whole), first(&pieces), "read block by block");
    if is_whole {
        assert_eq!(whole.damage, None, "what was packed is not damaged");
        let content = rest.strip_prefix(b"\xef\xbb\xbf").unwrap_or(rest);
        assert_eq!(whole.rows.num_rows(), content.split_inclusive(|byte| *byte == b'\n').count());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("bytes in memory can be packed")
}

/// Counts what other readers unpack.
fn unpacked_bytes(packed: &[u8]) -> u64 {
    let mut gzip = flate2::read::MultiGzDecoder::new(packed).take(UNPACKED_BYTES_MAX + 1);
    let mut counted = 0;
    let mut count = |reader: &mut dyn Read| {
        let mut block = [0; 4096];
        while let Ok(read @ 1..) = reader.read(&mut block) {
            counted += read as u64;
        }
    };
    count(&mut gzip);
    if let Ok(zstd) = zstd::stream::read::Decoder::new(packed) {
        count(&mut zstd.take(UNPACKED_BYTES_MAX + 1));
    }
    counted
}
