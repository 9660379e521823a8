//! Decompressed content, in small steps.
//!
//! What the content is packed with is told by its first bytes, so neither a
//! suffix nor a `Content-Encoding` can be wrong about it. gzip (RFC 1952) may
//! have several members, zstd (RFC 8878) several frames; both are one content.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};

use super::Grain;
use super::input::Input;
use crate::error::{Error, Result};

/// Bytes of decompressed content made in one step.
pub(super) const STEP_BYTES: usize = 256 * 1024;

/// Decompressed bytes of one partition: far above any real object (S3 holds 48 TiB in its largest, and nobody
/// packs telemetry into one of them), and reached by a bomb in minutes, after which it is refused.
pub const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// The largest zstd window, as a power of two: the 8 MiB that RFC 8878 asks every decoder to support, and all
/// that levels up to 19 use. A frame that asks for more would take that memory for each object in flight.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Bytes that tell how content is packed.
const MAGIC_BYTES: usize = 4;

/// The decompressed content of an [`Input`], from its start or, where it is not packed, from any offset.
pub struct Content {
    input: Input,
    /// The next raw byte to fetch.
    at: u64,
    form: Form,
    /// Decompressed bytes given so far.
    given: u64,
    limit: u64,
    truncated: bool,
    pub(super) grain: Grain,
}

enum Form {
    Unknown,
    Plain { block: Bytes },
    Gzip(Box<flate2::bufread::MultiGzDecoder<Feed>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Feed>>),
}

impl Content {
    /// Reads the content of `input` from its start; more than `limit` decompressed bytes are an error.
    pub fn new(input: Input, limit: u64) -> Self {
        Self { input, at: 0, form: Form::Unknown, given: 0, limit, truncated: false, grain: Grain::default() }
    }

    /// Tells whether the content is packed, once something has been read.
    pub fn packed(&self) -> bool {
        matches!(self.form, Form::Gzip(_) | Form::Zstd(_))
    }

    /// Tells whether the last error was that the packed content ends too early.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Goes to `offset` of content that is not packed.
    pub fn seek(&mut self, offset: u64) {
        self.at = offset;
        self.form = Form::Plain { block: Bytes::new() };
    }

    /// Appends the next few hundred KiB of content to `out`; tells whether there was any.
    ///
    /// It is cancel-safe: what has been fetched or decompressed is kept.
    pub async fn read(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        loop {
            match self.step(out) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.given += read as u64;
                    if self.packed() && self.given > self.limit {
                        return Err(Error::data(format!("the content decompresses to more than {} bytes", self.limit)));
                    }
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.fetch().await? {
                        return Ok(false);
                    }
                }
                Err(e) => {
                    self.truncated = e.kind() == io::ErrorKind::UnexpectedEof;
                    let what = if self.truncated { "ends too early" } else { "is corrupt" };
                    let packing = if matches!(self.form, Form::Gzip(_)) { "gzip" } else { "zstd" };
                    return Err(Error::data(format!("the {packing} content {what}")).because(e));
                }
            }
        }
    }

    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        let step_bytes = self.grain.step_bytes;
        match &mut self.form {
            Form::Unknown => Err(io::ErrorKind::WouldBlock.into()),
            Form::Plain { block } if block.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Form::Plain { block } => {
                let step = block.split_to(block.len().min(step_bytes));
                out.extend_from_slice(&step);
                Ok(step.len())
            }
            Form::Gzip(decoder) => read_into(decoder, out, step_bytes),
            Form::Zstd(decoder) => read_into(decoder, out, step_bytes),
        }
    }

    /// Fetches the next block and hands it to whoever waits for it; tells whether there is more to take.
    async fn fetch(&mut self) -> Result<bool> {
        let block_bytes = self.input.block_bytes().min(self.grain.block_bytes);
        let block = self.input.read_at(self.at, block_bytes).await?;
        let more = !block.is_empty();
        self.at += block.len() as u64;
        match &mut self.form {
            Form::Unknown => self.form = Form::of(block)?,
            Form::Plain { block: waiting } => *waiting = block,
            Form::Gzip(decoder) => decoder.get_mut().give(block),
            Form::Zstd(decoder) => decoder.get_mut().give(block),
        }
        Ok(more || self.packed())
    }
}

/// How content is packed.
enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    fn of(start: &[u8]) -> Option<Self> {
        match start.get(..MAGIC_BYTES)? {
            [0x1f, 0x8b, 8, _] => Some(Packing::Gzip),
            // A zstd frame, or a skippable one before it.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Some(Packing::Zstd),
            _ => None,
        }
    }
}

/// Tells by its first bytes whether content is packed.
pub fn is_packed(start: &[u8]) -> bool {
    Packing::of(start).is_some()
}

impl Form {
    /// Tells by its first bytes how content is packed.
    fn of(block: Bytes) -> Result<Self> {
        match Packing::of(&block) {
            Some(Packing::Gzip) => Ok(Form::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(Feed::new(block))))),
            Some(Packing::Zstd) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(Feed::new(block))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(Form::Zstd(Box::new(decoder)))
            }
            None => Ok(Form::Plain { block }),
        }
    }
}

/// Hands packed bytes to a decoder; it says `WouldBlock` when the next block has to be fetched first.
struct Feed {
    block: Bytes,
    ended: bool,
}

impl Feed {
    fn new(block: Bytes) -> Self {
        Self { block, ended: false }
    }

    /// Takes the next block; an empty one is the end.
    fn give(&mut self, block: Bytes) {
        self.ended = block.is_empty();
        self.block = block;
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.block.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.block)
    }

    fn consume(&mut self, amount: usize) {
        self.block.advance(amount);
    }
}

fn read_into(decoder: &mut impl Read, out: &mut Vec<u8>, step_bytes: usize) -> io::Result<usize> {
    let filled = out.len();
    out.resize(filled + step_bytes, 0);
    let read = out.get_mut(filled..).map_or(Ok(0), |room| decoder.read(room));
    out.truncate(filled + read.as_ref().copied().unwrap_or(0));
    read
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::ErrorKind;

    async fn read_all(packed: Vec<u8>, limit: u64) -> Result<(usize, usize)> {
        let mut content = Content::new(Input::Memory(packed.into()), limit);
        let (mut total, mut largest) = (0, 0);
        loop {
            let mut out = Vec::new();
            if !content.read(&mut out).await? {
                return Ok((total, largest));
            }
            largest = largest.max(out.capacity());
            total += out.len();
        }
    }

    fn gzip_bomb(bytes: usize) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![0; bytes]).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn a_bomb_takes_one_step_at_a_time_and_is_refused_at_the_limit() {
        const MIB: usize = 1024 * 1024;
        for bomb in [gzip_bomb(32 * MIB), zstd::encode_all(&vec![0; 32 * MIB][..], 1).unwrap()] {
            assert!(bomb.len() < MIB / 8);
            let (total, largest) = read_all(bomb.clone(), u64::MAX).await.unwrap();
            assert_eq!(total, 32 * MIB);
            assert!(largest <= STEP_BYTES, "{largest} bytes were made at once");
            let error = read_all(bomb, 8 * MIB as u64).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains("more than 8388608 bytes"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_zstd_frame_with_a_huge_window_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(b"little").unwrap();
        let error = read_all(encoder.finish().unwrap(), u64::MAX).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    }

    #[tokio::test]
    async fn few_bytes_and_none_are_plain() {
        for content in ["", "\x1f", "abc"] {
            assert_eq!(read_all(content.into(), 0).await.unwrap().0, content.len());
        }
    }
}
