//! Decompression bombs: content that is a thousand times larger than it looks.

use std::io::Write;

use crate::error::Result;

/// Bytes of content that are packed once, and then repeated: both formats let members follow one another.
const MEMBER_BYTES: usize = 1 << 20;

/// Packs `pattern` over and over with gzip, to about `bytes`.
pub fn gzip(pattern: &[u8], bytes: u64) -> Result<Vec<u8>> {
    let member = pattern.repeat(MEMBER_BYTES / pattern.len().max(1));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&member)?;
    Ok(repeated(&encoder.finish()?, &member, bytes))
}

/// Packs `pattern` over and over with zstd, to about `bytes`.
pub fn zstd(pattern: &[u8], bytes: u64) -> Result<Vec<u8>> {
    let member = pattern.repeat(MEMBER_BYTES / pattern.len().max(1));
    Ok(repeated(&zstd::encode_all(&member[..], 3)?, &member, bytes))
}

fn repeated(packed: &[u8], member: &[u8], bytes: u64) -> Vec<u8> {
    let times = usize::try_from(bytes.div_ceil(member.len() as u64)).unwrap_or(usize::MAX);
    packed.repeat(times)
}
