//! Where records end: scanners that go over content once, as it comes.
//!
//! A scanner is given a buffer that begins at the start of a record and has
//! grown behind `from`; it keeps what it must know between two calls.

use memchr::{memchr, memchr2, memrchr};

use crate::framing::Framing;

/// Content that is looked at to tell how JSON is framed: no line of a sane file is longer.
const DETECT_BYTES: usize = 1024 * 1024;

/// Finds the ends of records.
#[derive(Debug)]
pub(super) enum Cutter {
    /// A record a line.
    Lines,
    /// A record a line, but for line breaks within quotes.
    Csv(Csv),
    /// JSON documents back to back, over any number of lines.
    Documents(Depth),
    /// The elements of a JSON array.
    Array(Array),
}

/// Which record end a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The last one in the buffer.
    Last,
    /// The first one: an oversized record is being skipped.
    First,
}

impl Cutter {
    /// Tells by the start of the content how its records are framed; nothing if more of it is needed.
    ///
    /// `whole` says that `start` is all there is. `resumed` says that the scan will begin behind a record.
    pub(super) fn detect(framing: Framing, start: &[u8], whole: bool, resumed: bool) -> Option<Self> {
        match framing {
            Framing::Csv { delimiter, quote, .. } => Some(Cutter::Csv(Csv::new(delimiter, quote))),
            Framing::Json => detect_json(start, whole, resumed),
            Framing::Whole | Framing::Parquet => Some(Cutter::Lines),
        }
    }

    /// Looks at `buffer[from..]`; gives where the record found ends.
    ///
    /// Of an array, the punctuation between elements is overwritten by white space, so that what is cut off
    /// reads as documents back to back and every offset stays true.
    pub(super) fn scan(&mut self, buffer: &mut [u8], from: usize, want: Want) -> Option<usize> {
        match self {
            Cutter::Lines => {
                let new = buffer.get(from..)?;
                let newline = if want == Want::First { memchr(b'\n', new) } else { memrchr(b'\n', new) };
                newline.map(|at| from + at + 1)
            }
            Cutter::Csv(csv) => csv.scan(buffer, from, want),
            Cutter::Documents(depth) => depth.scan(buffer, from, want),
            Cutter::Array(array) => array.scan(buffer, from, want),
        }
    }

    /// Tells what is wrong if the content ends here, behind a record.
    pub(super) fn unfinished(&self) -> Option<&'static str> {
        match self {
            Cutter::Array(array) if array.depth > 0 => Some("the JSON array is not closed"),
            _ => None,
        }
    }

    /// Tells whether white space may stand between records, and is none.
    pub(super) fn skips_space(&self) -> bool {
        matches!(self, Cutter::Documents(_) | Cutter::Array(_))
    }
}

fn detect_json(start: &[u8], whole: bool, resumed: bool) -> Option<Cutter> {
    let enough = whole || start.len() >= DETECT_BYTES;
    let Some(first) = start.iter().position(|byte| !byte.is_ascii_whitespace()) else {
        return enough.then_some(Cutter::Lines);
    };
    let content = start.get(first..).unwrap_or_default();
    if content.first() == Some(&b'[') {
        return Some(Cutter::Array(Array::new(resumed)));
    }
    let Some(newline) = memchr(b'\n', content) else {
        return enough.then_some(Cutter::Documents(Depth::default()));
    };
    if ends_document(content.get(..newline).unwrap_or_default()) {
        return Some(Cutter::Lines);
    }
    if !enough {
        return None;
    }
    // Within one document two lines in a row are never documents by themselves (a comma would stand between
    // them): the first line is a broken record, and costs no other.
    let lines: Vec<bool> = content.split(|byte| *byte == b'\n').take(64).map(is_document).collect();
    let in_lines = lines.windows(2).any(|pair| pair == [true, true]);
    Some(if in_lines { Cutter::Lines } else { Cutter::Documents(Depth::default()) })
}

/// Tells whether no document is open at the end of a line.
fn ends_document(line: &[u8]) -> bool {
    let mut depth = Depth::default();
    for byte in line {
        depth.step(*byte);
    }
    depth.depth == 0 && !depth.quoted
}

fn is_document(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.first() == Some(&b'{') && line.last() == Some(&b'}') && ends_document(line)
}

/// How deep in brackets a place in JSON is (RFC 8259).
#[derive(Debug, Default)]
pub(super) struct Depth {
    depth: u32,
    quoted: bool,
    escaped: bool,
    /// The last byte was a line break: a document that begins here is a new one, whatever was open.
    at_line_start: bool,
}

impl Depth {
    /// Goes over one byte; tells whether it ends a record.
    fn step(&mut self, byte: u8) -> bool {
        if self.quoted {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                // A raw line break is not allowed in a string: this one was never closed.
                b'"' | b'\n' => self.quoted = false,
                _ => {}
            }
            return false;
        }
        match byte {
            // What stands between documents is not JSON: a quote there opens nothing.
            b'"' => self.quoted = self.depth > 0,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return self.depth == 0;
            }
            b'\n' => return self.depth == 0,
            _ => {}
        }
        false
    }

    fn scan(&mut self, buffer: &[u8], from: usize, want: Want) -> Option<usize> {
        let mut found = None;
        let mut at = from;
        while let Some(byte) = buffer.get(at).copied() {
            if self.quoted && !self.escaped {
                // Long texts are passed over at the speed of a search.
                let rest = buffer.get(at..).unwrap_or_default();
                match memchr::memchr3(b'"', b'\\', b'\n', rest) {
                    Some(0) => {}
                    Some(skip) => {
                        at += skip;
                        continue;
                    }
                    None => break,
                }
            }
            if want == Want::First && self.at_line_start && byte == b'{' {
                *self = Self::default();
                return Some(at);
            }
            self.at_line_start = byte == b'\n';
            at += 1;
            if self.step(byte) {
                found = Some(at);
                if want == Want::First {
                    return found;
                }
            }
        }
        found
    }
}

/// Where the elements of a JSON array end.
#[derive(Debug)]
pub(super) struct Array {
    depth: u32,
    inner: Depth,
    /// Something that is no array stands beside the array: from there on all is one record.
    astray: bool,
}

impl Array {
    /// Starts before the array, or within it.
    fn new(within: bool) -> Self {
        Self { depth: u32::from(within), inner: Depth::default(), astray: false }
    }

    fn scan(&mut self, buffer: &mut [u8], from: usize, want: Want) -> Option<usize> {
        let mut found = None;
        for (at, byte) in buffer.iter_mut().enumerate().skip(from) {
            if self.astray {
                break;
            }
            if self.depth == 0 {
                match *byte {
                    b'[' => {
                        *byte = b' ';
                        self.depth = 1;
                    }
                    space if space.is_ascii_whitespace() => {}
                    _ => self.astray = true,
                }
                continue;
            }
            if self.inner.quoted || self.inner.depth > 0 {
                self.inner.step(*byte);
                continue;
            }
            match *byte {
                b',' | b']' => {
                    self.depth = u32::from(*byte == b',');
                    *byte = if *byte == b',' { b'\n' } else { b' ' };
                    if at > 0 {
                        found = Some(at);
                        if want == Want::First {
                            return found;
                        }
                    }
                }
                // Unlike between documents, a text is an element.
                b'"' => self.inner.quoted = true,
                _ => {
                    self.inner.step(*byte);
                }
            }
        }
        found
    }
}

/// Where the records of a CSV end (RFC 4180, and as `csv-core` reads what is not in it).
#[derive(Debug)]
pub(super) struct Csv {
    delimiter: u8,
    quote: u8,
    quoted: bool,
    /// The last byte was a quote within quotes: it closes, unless another follows.
    closing: bool,
    previous: u8,
}

impl Csv {
    pub(super) fn new(delimiter: u8, quote: u8) -> Self {
        Self { delimiter, quote, quoted: false, closing: false, previous: b'\n' }
    }

    pub(super) fn scan(&mut self, buffer: &[u8], from: usize, want: Want) -> Option<usize> {
        let mut found = None;
        let mut at = from;
        if self.closing && at < buffer.len() {
            self.closing = false;
            self.quoted = buffer.get(at) == Some(&self.quote);
            at += usize::from(self.quoted);
        }
        while at < buffer.len() {
            let rest = buffer.get(at..).unwrap_or_default();
            if self.quoted {
                let Some(quote) = memchr(self.quote, rest) else { break };
                at += quote + 1;
                match buffer.get(at) {
                    Some(next) if *next == self.quote => at += 1,
                    Some(_) => self.quoted = false,
                    None => self.closing = true,
                }
                continue;
            }
            let newline_or_quote = match want {
                Want::First => memchr2(b'\n', self.quote, rest),
                Want::Last => memchr(self.quote, rest),
            };
            let before = rest.get(..newline_or_quote.unwrap_or(rest.len())).unwrap_or_default();
            if want == Want::Last
                && let Some(newline) = memrchr(b'\n', before)
            {
                found = Some(at + newline + 1);
            }
            let Some(step) = newline_or_quote else { break };
            at += step;
            if want == Want::First && rest.get(step) == Some(&b'\n') {
                self.previous = b'\n';
                return Some(at + 1);
            }
            let previous = if at == from { self.previous } else { byte_before(buffer, at) };
            self.quoted = previous == self.delimiter || previous == b'\n' || previous == b'\r';
            at += 1;
        }
        self.previous = buffer.last().copied().unwrap_or(self.previous);
        found
    }
}

fn byte_before(buffer: &[u8], at: usize) -> u8 {
    at.checked_sub(1).and_then(|before| buffer.get(before)).copied().unwrap_or(b'\n')
}
