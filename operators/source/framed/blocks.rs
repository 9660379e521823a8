//! Avro container files by blocks: the header once, then whole blocks.
//!
//! Offsets count records, as those of Parquet files do: blocks begin where their writer says, and a record within one
//! has no byte of its own. To go on, blocks are stepped over without being unpacked, and not read where they are large.

use bytes::Bytes;

use super::Step;
use super::content::Content;
use crate::avro::{Block, HEADER_BYTES_MAX, Header, invalid};
use crate::batch::Payload;
use crate::error::{Error, ErrorKind, Result};

/// Reads a container file block by block.
pub(super) struct Blocks {
    pub(super) content: Content,
    /// Leave what is no whole block alone, since more may be written.
    waits: bool,
    /// The record to go on from, which begins a block.
    resume_at: u64,
    header: Option<Bytes>,
    /// The marker behind each block.
    sync: Vec<u8>,
    /// Content behind the last piece.
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte in the content.
    base: u64,
    /// Records before the buffer.
    row: u64,
    /// Length of the whole blocks that the buffer begins with, and their records.
    ready: (usize, u64),
    ended: bool,
    failure: Option<Error>,
}

impl Blocks {
    pub(super) fn new(content: Content, waits: bool, resume_at: u64) -> Self {
        Self {
            content,
            waits,
            resume_at,
            header: None,
            sync: Vec::new(),
            buffer: Vec::new(),
            base: 0,
            row: 0,
            ready: (0, 0),
            ended: false,
            failure: None,
        }
    }

    /// Gives the number of records before the next piece.
    pub(super) fn row(&self) -> u64 {
        self.row
    }

    /// Gives what was read and not given.
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads the next piece: whole blocks of about a MiB.
    pub(super) async fn next(&mut self) -> Result<Step> {
        loop {
            let found = self.look();
            let failed = found.err();
            self.failure = self.failure.take().or(failed);
            let through = self.ended || self.failure.is_some();
            if self.ready.0 > 0 && (through || self.ready.0 >= self.content.grain.piece_bytes) {
                return Ok(self.piece());
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.ended {
                return self.finish();
            }
            match self.content.read(&mut self.buffer).await {
                Ok(more) => self.ended = !more,
                Err(e) if e.kind() == ErrorKind::Data => {
                    self.ended = true;
                    let unfinished = self.waits && self.content.truncated();
                    self.failure = (!unfinished).then_some(e);
                }
                Err(e) => return Err(e),
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Looks for whole blocks, and steps over those before the record to go on from.
    fn look(&mut self) -> Result<()> {
        if self.header.is_none() && !self.take_header()? {
            return Ok(());
        }
        while self.ready.0 < self.content.grain.piece_bytes.max(1) {
            let rest = self.buffer.get(self.ready.0..).unwrap_or_default();
            let Some(block) = Block::parse(rest)? else { return Ok(()) };
            if self.row < self.resume_at {
                if !self.step_over(block)? {
                    return Ok(());
                }
                continue;
            }
            let Some((_, sync)) = block.parts(rest) else { return Ok(()) };
            if sync != self.sync {
                return Err(invalid("a block does not end where it says, or its bytes are broken"));
            }
            self.ready.0 += block.bytes();
            self.ready.1 += block.records;
        }
        Ok(())
    }

    fn take_header(&mut self) -> Result<bool> {
        let Some(header) = Header::parse(&self.buffer)? else {
            return match self.buffer.len() {
                0..=HEADER_BYTES_MAX => Ok(false),
                _ => Err(invalid("its header is too large")),
            };
        };
        let len = header.len;
        self.sync = header.sync.to_vec();
        self.header = Some(Bytes::copy_from_slice(self.buffer.get(..len).unwrap_or_default()));
        self.drop_front(len);
        Ok(true)
    }

    /// Steps over a block; tells whether it has.
    fn step_over(&mut self, block: Block) -> Result<bool> {
        let len = block.bytes();
        if len > self.buffer.len() {
            if self.content.packed() || self.ended {
                return Ok(false);
            }
            self.base += len as u64;
            self.buffer.clear();
            self.content.seek(self.base);
        } else {
            self.drop_front(len);
        }
        self.row += block.records;
        if self.row > self.resume_at {
            let at = self.resume_at;
            return Err(invalid(&format!(
                "no block begins at record {at}, from which to go on; has it been replaced?"
            )));
        }
        Ok(true)
    }

    fn piece(&mut self) -> Step {
        let (len, records) = std::mem::take(&mut self.ready);
        let piece = Bytes::copy_from_slice(self.buffer.get(..len).unwrap_or_default());
        let offset = self.row;
        self.drop_front(len);
        self.row += records;
        let payload = Payload::Framed { offset, bytes: piece, header: self.header.clone() };
        Step::Piece { payload, next: self.row }
    }

    /// Tells what comes behind the last block.
    fn finish(&mut self) -> Result<Step> {
        if !self.buffer.is_empty() {
            let what = if self.header.is_none() { "its header" } else { "a block" };
            return if self.waits { Ok(Step::Incomplete) } else { Err(invalid(&format!("it ends within {what}"))) };
        }
        if self.row < self.resume_at {
            let (at, end) = (self.resume_at, self.row);
            return Err(invalid(&format!("it ends at record {end}, before {at}, from which to go on")));
        }
        Ok(Step::End)
    }

    fn drop_front(&mut self, len: usize) {
        self.buffer.drain(..len);
        self.base += len as u64;
    }
}
