//! Lines and fields of CSV.
//!
//! A quote opens a quoted field only as its first byte; doubled, it stands for
//! itself there. What follows a closing quote belongs to the field as it is.
//! csv-core, against which this is tested, reads it the same way.

use memchr::{memchr, memchr2};

use crate::decode::json::BOM;

/// Finds lines and fields, without copying.
pub(in crate::decode) struct Splitter<'a> {
    bytes: &'a [u8],
    at: usize,
    delimiter: u8,
    quote: u8,
    /// The first quote at or behind `at`, or the end: lines before it are split the fast way.
    next_quote: usize,
}

/// Where a line stands, without its line break.
pub(in crate::decode) struct Line {
    pub(in crate::decode) start: usize,
    pub(in crate::decode) end: usize,
    /// Whether its quotes are closed.
    pub(in crate::decode) closed: bool,
}

/// Where a field stands.
pub(in crate::decode) struct Field {
    start: usize,
    end: usize,
    /// Whether it begins with a quote.
    pub(in crate::decode) quoted: bool,
    /// Whether `start..end` holds quotes that are none of the text.
    escaped: bool,
}

/// Finds all places of a byte, eight bytes at a time: fields are short, and a call for each costs more than the field.
#[inline]
fn each_place(bytes: &[u8], byte: u8, mut found: impl FnMut(usize)) {
    const LOWS: u64 = u64::from_ne_bytes([0x7F; 8]);
    let wanted = u64::from_ne_bytes([byte; 8]);
    let (eights, rest) = bytes.as_chunks::<8>();
    for (number, eight) in eights.iter().enumerate() {
        let others = u64::from_le_bytes(*eight) ^ wanted;
        // Marks exactly the bytes that are zero: no carry goes from one to the next.
        let mut marks = !(((others & LOWS) + LOWS) | others | LOWS);
        while marks != 0 {
            found(number * 8 + (marks.trailing_zeros() >> 3) as usize);
            marks &= marks - 1;
        }
    }
    let behind = eights.len() * 8;
    rest.iter().enumerate().filter(|(_, other)| **other == byte).for_each(|(at, _)| found(behind + at));
}

impl<'a> Splitter<'a> {
    pub(in crate::decode) fn new(bytes: &'a [u8], delimiter: u8, quote: u8) -> Self {
        let at = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
        let mut splitter = Self { bytes, at, delimiter, quote, next_quote: 0 };
        splitter.find_quote();
        splitter
    }

    /// Finds the next line that is not blank, and its fields.
    pub(in crate::decode) fn next_line(&mut self, fields: &mut Vec<Field>) -> Option<Line> {
        fields.clear();
        while let Some(b'\n' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
        let start = self.at;
        let rest = self.bytes.get(start..).filter(|rest| !rest.is_empty())?;
        let line_break = memchr(b'\n', rest).map_or(self.bytes.len(), |at| start + at);
        if self.next_quote < start {
            self.find_quote();
        }
        if self.next_quote >= line_break {
            return Some(self.plain_line(start, line_break, fields));
        }
        let line = self.quoted_line(start, fields);
        if !line.closed {
            // The quote may be a slip of this line alone: the next ones are tried without it.
            fields.clear();
            self.at = line_break;
            return Some(Line { start, end: self.without_return(start, line_break), closed: false });
        }
        Some(line)
    }

    /// Gives the bytes of a line.
    pub(in crate::decode) fn bytes_of(&self, line: &Line) -> &'a [u8] {
        self.bytes.get(line.start..line.end).unwrap_or_default()
    }

    /// Gives a field's text; `scratch` holds it if it must be put together.
    #[inline]
    pub(in crate::decode) fn text<'s>(&self, field: &Field, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        let bytes: &'a [u8] = self.bytes.get(field.start..field.end).unwrap_or_default();
        if !field.escaped {
            return bytes;
        }
        scratch.clear();
        let mut rest = bytes.get(1..).unwrap_or_default();
        while let Some(at) = memchr(self.quote, rest) {
            scratch.extend_from_slice(rest.get(..at).unwrap_or_default());
            rest = rest.get(at + 1..).unwrap_or_default();
            let Some(doubled) = rest.strip_prefix(&[self.quote]) else { break };
            scratch.push(self.quote);
            rest = doubled;
        }
        scratch.extend_from_slice(rest);
        scratch
    }

    fn find_quote(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.next_quote = memchr(self.quote, rest).map_or(self.bytes.len(), |at| self.at + at);
    }

    fn plain_line(&mut self, start: usize, line_break: usize, fields: &mut Vec<Field>) -> Line {
        self.at = line_break;
        let end = self.without_return(start, line_break);
        let line = self.bytes.get(start..end).unwrap_or_default();
        let mut field_start = start;
        each_place(line, self.delimiter, |at| {
            fields.push(Field { start: field_start, end: start + at, quoted: false, escaped: false });
            field_start = start + at + 1;
        });
        fields.push(Field { start: field_start, end, quoted: false, escaped: false });
        Line { start, end, closed: true }
    }

    fn quoted_line(&mut self, start: usize, fields: &mut Vec<Field>) -> Line {
        let mut at = start;
        loop {
            let quoted = self.bytes.get(at) == Some(&self.quote);
            let close = if quoted { self.closing_quote(at) } else { None };
            if quoted && close.is_none() {
                return Line { start, end: self.bytes.len(), closed: false };
            }
            let tail = close.map_or(at, |close| close + 1);
            let rest = self.bytes.get(tail..).unwrap_or_default();
            let stop = memchr2(self.delimiter, b'\n', rest).map_or(self.bytes.len(), |stop| tail + stop);
            let ends_line = self.bytes.get(stop) != Some(&self.delimiter);
            let end = if ends_line { self.without_return(tail, stop) } else { stop };
            fields.push(match close {
                Some(close) if end == tail && !self.has_quote(at + 1, close) => {
                    Field { start: at + 1, end: close, quoted, escaped: false }
                }
                _ => Field { start: at, end, quoted, escaped: quoted },
            });
            if ends_line {
                self.at = stop;
                return Line { start, end, closed: true };
            }
            at = stop + 1;
        }
    }

    /// Finds the quote that closes the one at `open`.
    fn closing_quote(&self, open: usize) -> Option<usize> {
        let mut at = open + 1;
        loop {
            at += memchr(self.quote, self.bytes.get(at..)?)?;
            if self.bytes.get(at + 1) != Some(&self.quote) {
                return Some(at);
            }
            at += 2;
        }
    }

    fn has_quote(&self, start: usize, end: usize) -> bool {
        self.bytes.get(start..end).is_some_and(|inside| memchr(self.quote, inside).is_some())
    }

    fn without_return(&self, start: usize, end: usize) -> usize {
        let is_return = end > start && self.bytes.get(end - 1) == Some(&b'\r');
        end - usize::from(is_return)
    }
}
