//! Streams of bytes, cut into pieces of whole records.
//!
//! A [`Framed`] reads one partition (a file, an object, a buffer): it fetches
//! blocks, unpacks them, finds where records end, and gives pieces of about
//! 1 MiB that never end in the middle of a record. Offsets are bytes of the
//! unpacked content (rows, for Parquet and Avro), and reading goes on from any offset
//! that it has given before.
//!
//! Invariant: it is cancel-safe. A call that is dropped keeps what it has
//! fetched, and the next one goes on from there.

mod blocks;
mod content;
mod cutter;
mod input;
mod row_groups;

use std::sync::Arc;

use bytes::Bytes;

use self::blocks::Blocks;
pub(crate) use self::content::is_packed;
use self::content::{CONTENT_BYTES_MAX, Content, STEP_BYTES};
use self::cutter::{Csv, Cutter, Want};
pub use self::input::{Input, ObjectInput};
use self::row_groups::RowGroups;
use crate::batch::Payload;
use crate::error::{Error, ErrorKind, Result};
use crate::framing::Framing;

/// Bytes after which a piece is cut: large enough that what each piece costs disappears, small enough that a
/// handful in flight fit any budget.
const PIECE_BYTES: usize = 1024 * 1024;

/// How finely a partition is read: in the tests, so finely that little content has every seam there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grain {
    /// Bytes of a block, unless the input's own are fewer.
    pub(crate) block_bytes: usize,
    /// Bytes of content made in one step: what a bomb can take before a limit is looked at.
    pub(crate) step_bytes: usize,
    /// Bytes after which a piece is cut.
    pub(crate) piece_bytes: usize,
}

impl Default for Grain {
    fn default() -> Self {
        Self { block_bytes: usize::MAX, step_bytes: STEP_BYTES, piece_bytes: PIECE_BYTES }
    }
}

/// Bytes of a broken end that are kept for the quarantine: enough to recognise it by.
const REJECT_BYTES: usize = 64 * 1024;

/// Bytes of content that are there before its framing is told from them: packed content may come in parts as small as
/// its writer's flushes, and a first line alone says little.
const START_BYTES: usize = 64 * 1024;

/// The mark of UTF-8 that some editors put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How a partition is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramedSettings {
    /// How records stand one behind the other.
    pub framing: Framing,
    /// The largest record. Of a longer one only the beginning is given on, one byte more than this, and the
    /// decoder, which has the same limit, rejects it.
    pub record_bytes_max: usize,
    /// Leave a last record without an end alone, since more may be written to it.
    pub waits: bool,
}

/// What comes next in a partition.
#[derive(Debug)]
pub enum Step {
    /// Whole records.
    Piece {
        /// The records.
        payload: Payload,
        /// Where reading goes on behind them.
        next: u64,
    },
    /// What is left is no whole record yet. Open the partition again at the last offset when it has grown.
    Incomplete,
    /// All has been read.
    End,
}

/// Reads one partition.
pub struct Framed {
    name: Arc<str>,
    reader: Reader,
}

enum Reader {
    Records(Box<Records>),
    RowGroups(Box<RowGroups>),
    Blocks(Box<Blocks>),
}

impl Framed {
    /// Reads the partition `name` from `offset`, which is 0 or was given by an earlier reader.
    pub fn new(name: Arc<str>, input: Input, settings: FramedSettings, offset: u64) -> Self {
        let reader = match settings.framing {
            Framing::Parquet => Reader::RowGroups(Box::new(RowGroups::new(input, offset))),
            Framing::Avro => {
                let content = Content::new(input, CONTENT_BYTES_MAX);
                Reader::Blocks(Box::new(Blocks::new(content, settings.waits, offset)))
            }
            _ => Reader::Records(Box::new(Records::new(input, settings, offset))),
        };
        Self { name, reader }
    }

    /// Reads in smaller steps.
    #[cfg(feature = "testing")]
    #[must_use]
    pub(crate) fn with_grain(mut self, grain: Grain) -> Self {
        match &mut self.reader {
            Reader::Records(records) => records.content.grain = grain,
            Reader::Blocks(blocks) => blocks.content.grain = grain,
            Reader::RowGroups(_) => {}
        }
        self
    }

    /// Reads the next piece.
    ///
    /// An error of kind [`Data`](crate::ErrorKind::Data) comes behind all whole records before the damage, and
    /// means that the partition cannot be read on.
    pub async fn next(&mut self) -> Result<Step> {
        let step = match &mut self.reader {
            Reader::Records(records) => records.next().await,
            Reader::Blocks(blocks) => blocks.next().await,
            Reader::RowGroups(groups) => match groups.next().await {
                Ok(Some((group, next))) => Ok(Step::Piece { payload: Payload::RowGroup(group), next }),
                Ok(None) => Ok(Step::End),
                Err(e) => Err(e),
            },
        };
        step.map_err(|e| e.while_doing(format!("could not read {}", self.name)))
    }

    /// Gives the offset behind the last piece, or behind the whole content after [`Step::End`].
    pub fn offset(&self) -> u64 {
        match &self.reader {
            Reader::Records(records) => records.base,
            Reader::Blocks(blocks) => blocks.row(),
            Reader::RowGroups(groups) => groups.row(),
        }
    }

    /// Gives the beginning of what was read and not given, for the quarantine.
    pub fn rest(&self) -> Bytes {
        let rest = match &self.reader {
            Reader::Records(records) => {
                records.oversized.as_ref().map_or(records.buffer.as_slice(), |o| o.first.as_slice())
            }
            Reader::Blocks(blocks) => blocks.rest(),
            Reader::RowGroups(_) => &[],
        };
        Bytes::copy_from_slice(rest.get(..rest.len().min(REJECT_BYTES)).unwrap_or_default())
    }
}

struct Records {
    content: Content,
    settings: FramedSettings,
    /// Where to go on; reached once there is a cutter and `base` is this.
    resume_at: u64,
    /// Known once enough of the content's start has been seen.
    cutter: Option<Cutter>,
    header: Option<Bytes>,
    /// Content behind the last piece.
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte.
    base: u64,
    /// How much of the buffer the cutter has gone over.
    scanned: usize,
    /// The last record end in the buffer; 0 if there is none.
    record_end: usize,
    oversized: Option<Oversized>,
    /// Documents are cut within a line that is too long to be one record; behind them it goes on by lines.
    within_line: bool,
    ended: bool,
    failure: Option<Error>,
}

/// A record that is longer than the limit, while its end is looked for.
struct Oversized {
    offset: u64,
    first: Vec<u8>,
}

impl Records {
    fn new(input: Input, settings: FramedSettings, resume_at: u64) -> Self {
        Self {
            content: Content::new(input, CONTENT_BYTES_MAX),
            settings,
            resume_at,
            cutter: None,
            header: None,
            buffer: Vec::new(),
            base: 0,
            scanned: 0,
            record_end: 0,
            oversized: None,
            within_line: false,
            ended: false,
            failure: None,
        }
    }

    async fn next(&mut self) -> Result<Step> {
        loop {
            if self.cutter.is_none() {
                self.begin()?;
            }
            if self.cutter.is_some() && self.skip_to_resume()? {
                if let Some(step) = self.cut() {
                    return step;
                }
            } else if self.ended {
                return self.finish();
            }
            self.fill().await?;
            // Unpacking is work without an await: a long skip must let others run.
            tokio::task::consume_budget().await;
        }
    }

    /// Reads on; damage is kept until the records before it are given.
    async fn fill(&mut self) -> Result<()> {
        match self.content.read(&mut self.buffer).await {
            Ok(more) => self.ended = !more,
            Err(e) if e.kind() == ErrorKind::Data => {
                self.ended = true;
                let unfinished = self.settings.waits && self.content.truncated();
                self.failure = (!unfinished).then_some(e);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Learns from the start of the content how it is framed, and takes the header off.
    fn begin(&mut self) -> Result<()> {
        if self.buffer.len() < START_BYTES && !self.ended {
            return Ok(());
        }
        let is_text = self.settings.framing != Framing::Delimited;
        let mark = if is_text && self.buffer.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let start = self.buffer.get(mark..).unwrap_or_default();
        let Some(cutter) = Cutter::detect(self.settings.framing, start, self.ended, self.resume_at > 0) else {
            return Ok(());
        };
        if let Framing::Csv { header: true, quote, delimiter } = self.settings.framing {
            let found = Csv::new(delimiter, quote).scan(start, 0, Want::First);
            let last = (self.ended && !self.settings.waits).then_some(start.len());
            let Some(end) = found.or(last) else {
                if self.buffer.len() > self.settings.record_bytes_max {
                    return Err(Error::data(format!("its header is longer than {}", self.settings.record_bytes_max)));
                }
                return Ok(());
            };
            self.header = Some(Bytes::copy_from_slice(start.get(..end).unwrap_or_default()));
            self.drop_front(mark + end);
        } else {
            self.drop_front(mark);
        }
        self.cutter = Some(cutter);
        if self.resume_at > self.base && !self.content.packed() {
            self.content.seek(self.resume_at);
            self.buffer.clear();
            self.base = self.resume_at;
            self.ended = false;
        }
        Ok(())
    }

    /// Drops what lies before the offset to go on from; tells whether that is reached.
    fn skip_to_resume(&mut self) -> Result<bool> {
        if self.base < self.resume_at {
            let ahead = usize::try_from(self.resume_at - self.base).unwrap_or(usize::MAX);
            self.drop_front(ahead.min(self.buffer.len()));
        }
        if self.base < self.resume_at && self.ended && self.failure.is_none() {
            let (at, end) = (self.resume_at, self.base);
            return Err(Error::data(format!("it ends at {end}, before the offset {at} from which to go on")));
        }
        Ok(self.base >= self.resume_at)
    }

    /// Cuts off what is due: about a piece, or all there is at the end.
    fn cut(&mut self) -> Option<Result<Step>> {
        if self.oversized.is_some() {
            return self.skip_oversized();
        }
        if self.buffer.len() < self.content.grain.piece_bytes && !self.ended {
            return None;
        }
        self.scan();
        let too_long = self.record_end == 0 && self.buffer.len() > self.settings.record_bytes_max;
        if too_long && self.settings.framing == Framing::Json && matches!(self.cutter, Some(Cutter::Lines)) {
            // The line may hold many documents, of which only the one at its limit must be cut short.
            self.cutter = Some(Cutter::documents());
            self.within_line = true;
            self.scanned = 0;
            self.scan();
        }
        if self.record_end == 0 && self.buffer.len() > self.settings.record_bytes_max {
            let mut first = std::mem::take(&mut self.buffer);
            let offset = self.base;
            self.base += first.len() as u64;
            self.scanned = 0;
            first.truncate(self.settings.record_bytes_max.saturating_add(1));
            self.oversized = Some(Oversized { offset, first });
            return self.skip_oversized();
        }
        let last = self.ended && self.failure.is_none() && !self.settings.waits;
        let skips_space = self.cutter.as_ref().is_some_and(Cutter::skips_space);
        // The bracket behind an array stays with what follows: every position within an array has it ahead.
        let ends_here = last && !(skips_space && self.record_end > 0);
        let end = if ends_here { self.buffer.len() } else { self.record_end };
        if end > 0 {
            let offset = self.base;
            let piece = self.take_front(end);
            if skips_space && piece.trim_ascii().is_empty() {
                return if self.ended { Some(self.finish()) } else { None };
            }
            return Some(Ok(self.piece(offset, piece)));
        }
        if self.ended { Some(self.finish()) } else { None }
    }

    /// Looks for the end of an oversized record, and gives its beginning once that is found.
    fn skip_oversized(&mut self) -> Option<Result<Step>> {
        let cutter = self.cutter.as_mut()?;
        let end = cutter.scan(&mut self.buffer, 0, Want::First);
        self.drop_front(end.unwrap_or(self.buffer.len()));
        if end.is_none() && (!self.ended || self.settings.waits || self.failure.is_some()) {
            return if self.ended { Some(self.finish()) } else { None };
        }
        let Oversized { offset, first } = self.oversized.take()?;
        Some(Ok(self.piece(offset, first)))
    }

    fn scan(&mut self) {
        if let Some(cutter) = &mut self.cutter {
            if let Some(end) = cutter.scan(&mut self.buffer, self.scanned, Want::Last) {
                self.record_end = end;
            }
            self.scanned = self.buffer.len();
        }
    }

    /// Tells what comes behind the last piece.
    fn finish(&mut self) -> Result<Step> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let skips_space = self.cutter.as_ref().is_some_and(Cutter::skips_space);
        let blank = self.buffer.is_empty() || (skips_space && self.buffer.trim_ascii().is_empty());
        if self.settings.waits && (!blank || self.oversized.is_some() || self.content.truncated()) {
            return Ok(Step::Incomplete);
        }
        self.drop_front(self.buffer.len());
        match self.cutter.as_ref().and_then(Cutter::unfinished) {
            Some(_) if self.settings.waits => Ok(Step::Incomplete),
            Some(what) => {
                self.cutter = Some(Cutter::Lines);
                Err(Error::data(what))
            }
            None => Ok(Step::End),
        }
    }

    fn piece(&mut self, offset: u64, bytes: Vec<u8>) -> Step {
        if std::mem::take(&mut self.within_line) {
            self.cutter = Some(Cutter::Lines);
            self.scanned = 0;
            self.record_end = 0;
        }
        let payload = Payload::Framed { offset, bytes: bytes.into(), header: self.header.clone() };
        Step::Piece { payload, next: self.base }
    }

    fn drop_front(&mut self, len: usize) {
        self.buffer.drain(..len);
        self.moved(len);
    }

    fn take_front(&mut self, len: usize) -> Vec<u8> {
        let mut rest = Vec::new();
        if !self.ended {
            let piece_bytes = self.content.grain.piece_bytes;
            rest.reserve(piece_bytes + piece_bytes / 2);
        }
        rest.extend_from_slice(self.buffer.get(len..).unwrap_or_default());
        let mut piece = std::mem::replace(&mut self.buffer, rest);
        piece.truncate(len);
        // A small piece must not hold a large buffer while it waits in a channel that counts its length.
        if piece.len() < piece.capacity() / 2 {
            piece.shrink_to_fit();
        }
        self.moved(len);
        piece
    }

    fn moved(&mut self, len: usize) {
        self.base += len as u64;
        self.scanned = self.scanned.saturating_sub(len);
        self.record_end = self.record_end.saturating_sub(len);
    }
}
