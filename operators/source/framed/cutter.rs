//! Where records end: scanners that go over content once, as it comes.
//!
//! A scanner is given a buffer that begins at the start of a record and has
//! grown behind `from`; it keeps what it must know between two calls.

use memchr::{memchr, memchr2, memrchr};

use crate::framing::Framing;

/// Content that is looked at to tell how JSON is framed: no line of a sane file is longer.
const DETECT_BYTES: usize = 1024 * 1024;

/// Lines that are looked at: whoever writes some documents on one line and some over several does so early.
const DETECT_LINES: usize = 64;

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
    /// Records with their length before them.
    Delimited(Delimited),
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
            Framing::Delimited => Some(Cutter::Delimited(Delimited::default())),
            Framing::Whole | Framing::Parquet | Framing::Avro => Some(Cutter::Lines),
        }
    }

    /// Cuts between documents, from outside of any.
    pub(super) fn documents() -> Self {
        Cutter::Documents(Depth::default())
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
            Cutter::Delimited(delimited) => delimited.scan(buffer, from, want),
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
    let end = if whole { content.len() } else { memrchr(b'\n', content).unwrap_or_default() };
    let lines = content.get(..end).unwrap_or_default().split(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = lines.filter(|line| !line.trim_ascii().is_empty()).take(DETECT_LINES).collect();
    let [first, behind @ ..] = lines.as_slice() else { return enough.then_some(Cutter::documents()) };
    if behind.is_empty() && !ends_document(first) && !enough {
        return None;
    }
    // What opens at the start of a line behind an open document is a new one: the open one is a broken record,
    // which costs no other. A document over several lines goes on with something else.
    let goes_on = |pair: &[&[u8]]| matches!(pair, [line, next] if !next.starts_with(b"{") && !ends_document(line));
    let documents = lines.windows(2).any(goes_on) || (whole && memchr(b'\n', content).is_none());
    Some(if documents { Cutter::documents() } else { Cutter::Lines })
}

/// Tells whether no document is open at the end of a line.
fn ends_document(line: &[u8]) -> bool {
    let mut depth = Depth::default();
    for byte in line {
        depth.step(*byte);
    }
    depth.depth == 0 && !depth.quoted
}

/// Where in records with their length before them a scan stands.
#[derive(Debug, Default)]
pub(super) struct Delimited {
    /// What is known of the length that is being read, and of how many bits.
    len: u64,
    bits: u32,
    /// Bytes of the record that are to come.
    left: u64,
}

impl Delimited {
    fn scan(&mut self, buffer: &[u8], from: usize, want: Want) -> Option<usize> {
        let (mut at, mut found) = (from, None);
        while at < buffer.len() {
            if self.left == 0 {
                let byte = buffer.get(at).copied().unwrap_or_default();
                at += 1;
                let part = u64::from(byte & 0x7f);
                let fits = self.bits < 63 || self.bits == 63 && part <= 1;
                // What has more than 64 bits is longer than all content: it ends nowhere.
                self.len = if fits { self.len | part << self.bits } else { u64::MAX };
                self.bits = self.bits.saturating_add(7);
                if byte & 0x80 != 0 {
                    continue;
                }
                self.left = std::mem::take(&mut self.len);
                self.bits = 0;
            } else {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len() - at);
                at += here;
                self.left -= here as u64;
            }
            if self.left == 0 {
                found = Some(at);
                if want == Want::First {
                    break;
                }
            }
        }
        found
    }
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// Cuts content that arrives in parts, each time at the last record end; gives the pieces.
    fn cut(framing: Framing, content: &[u8], parts: &[Index]) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::detect(framing, content, true, false).unwrap();
        let mut arrivals: Vec<usize> = parts.iter().map(|part| part.index(content.len() + 1)).collect();
        arrivals.push(content.len());
        arrivals.sort_unstable();
        let (mut pieces, mut buffer, mut at) = (Vec::new(), Vec::new(), 0);
        for arrival in arrivals {
            let from = buffer.len();
            buffer.extend_from_slice(&content[at..arrival]);
            at = arrival;
            if let Some(end) = cutter.scan(&mut buffer, from, Want::Last) {
                let rest = buffer.split_off(end);
                pieces.push(std::mem::replace(&mut buffer, rest));
            }
        }
        pieces.push(buffer);
        pieces
    }

    fn documents(pieces: &[Vec<u8>]) -> Vec<serde_json::Value> {
        let documents = |piece: &Vec<u8>| {
            let all: Result<Vec<serde_json::Value>, _> =
                serde_json::Deserializer::from_slice(piece).into_iter().collect();
            all.unwrap_or_else(|e| panic!("{e} in the piece {}", String::from_utf8_lossy(piece)))
        };
        pieces.iter().flat_map(documents).collect()
    }

    /// Reads CSV as the decoder does.
    fn fields(pieces: &[Vec<u8>]) -> Vec<String> {
        let mut found = Vec::new();
        for piece in pieces {
            let (mut reader, mut input, mut field) = (csv_core::Reader::new(), piece.as_slice(), [0; 256]);
            loop {
                let (result, read, written) = reader.read_field(input, &mut field);
                input = &input[read..];
                match result {
                    csv_core::ReadFieldResult::Field { record_end } => {
                        found.push(String::from_utf8_lossy(&field[..written]).into_owned());
                        if record_end {
                            found.push("<end>".into());
                        }
                    }
                    csv_core::ReadFieldResult::End => break,
                    _ => {}
                }
            }
        }
        found
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let text = "[a-z\"\\\\{}\\[\\],\n ]{0,6}";
        let leaf = prop_oneof![
            any::<i32>().prop_map(Into::into),
            any::<bool>().prop_map(Into::into),
            Just(serde_json::Value::Null),
            text.prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 16, 4, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Into::into),
                vec((text, inner), 0..4).prop_map(|all| serde_json::Value::Object(all.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = serde_json::Value> {
        vec(("[a-z\"]{1,3}", value()), 0..4).prop_map(|all| serde_json::Value::Object(all.into_iter().collect()))
    }

    fn show(value: &serde_json::Value, pretty: bool) -> String {
        if pretty { serde_json::to_string_pretty(value).unwrap() } else { value.to_string() }
    }

    #[test]
    fn a_small_document_before_large_ones_does_not_make_them_lines() {
        let content = b"{}\n{}\n{\n  \"a\": 0\n}\n";
        assert_eq!(documents(&cut(Framing::Json, content, &[])).len(), 3);
        let broken = b"{}\n{\"a\": 1,\n{\"b\": 2}\n";
        assert!(matches!(Cutter::detect(Framing::Json, broken, true, false), Some(Cutter::Lines)));
    }

    proptest! {
        #[test]
        fn arrays_are_cut_between_elements(
            values in vec(value(), 0..8), pretty: bool, parts in vec(any::<Index>(), 0..12),
        ) {
            let content = show(&serde_json::Value::from(values.clone()), pretty);
            prop_assert_eq!(documents(&cut(Framing::Json, content.as_bytes(), &parts)), values);
        }

        #[test]
        fn documents_are_cut_between_documents(
            values in vec(object(), 1..8), pretty: bool, separator in "[ \n]{0,2}", parts in vec(any::<Index>(), 0..12),
        ) {
            let content = values.iter().map(|v| show(v, pretty)).collect::<Vec<_>>().join(&separator);
            prop_assert_eq!(documents(&cut(Framing::Json, content.as_bytes(), &parts)), values);
        }

        #[test]
        fn csv_is_cut_where_a_csv_reader_sees_records(
            content in "[a,\"\n\r;]{0,40}", parts in vec(any::<Index>(), 0..12),
        ) {
            let framing = Framing::Csv { header: false, quote: b'"', delimiter: b',' };
            let pieces = cut(framing, content.as_bytes(), &parts);
            prop_assert_eq!(pieces.concat(), content.as_bytes());
            prop_assert_eq!(fields(&pieces), fields(&[content.into_bytes()]));
        }
    }
}
