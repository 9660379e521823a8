//! Reading JSON (RFC 8259) token by token from bytes.

use super::Failure;
use crate::decode::names::Key;

/// How deep values may be nested: no record of people's making comes near, and the stack of a thread holds it
/// many times over.
pub(in crate::decode) const DEPTH_MAX: usize = 128;

/// A place in bytes that hold JSON.
pub(in crate::decode) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where escapes are resolved that nobody keeps.
    scratch: Vec<u8>,
}

/// The inside of a string, as it stands between the quotes.
#[derive(Clone, Copy)]
pub(in crate::decode) struct Text<'a> {
    pub(in crate::decode) raw: &'a [u8],
    pub(in crate::decode) escaped: bool,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(in crate::decode) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, scratch: Vec::new() }
    }

    pub(in crate::decode) fn at(&self) -> usize {
        self.at
    }

    pub(in crate::decode) fn move_to(&mut self, at: usize) {
        self.at = at;
    }

    /// Gives the bytes from `start` to here.
    pub(in crate::decode) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.at).unwrap_or_default()
    }

    #[inline]
    pub(in crate::decode) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(in crate::decode) fn advance(&mut self) {
        self.at += 1;
    }

    /// Takes the next byte if it is `byte`.
    #[inline]
    pub(in crate::decode) fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    /// Takes the next bytes if they are a field's name and colon.
    #[inline]
    pub(in crate::decode) fn take_key(&mut self, key: &Key) -> bool {
        let is = self.bytes.get(self.at..).is_some_and(|rest| key.begins(rest));
        self.at += if is { key.len() } else { 0 };
        is
    }

    #[inline]
    pub(in crate::decode) fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[cold]
    pub(in crate::decode) fn syntax<T>(&self, what: &'static str) -> Result<T, Failure> {
        Err(Failure::Syntax { at: self.at, what })
    }

    /// Reads a string; the opening quote is the next byte.
    #[inline]
    pub(in crate::decode) fn string(&mut self) -> Result<Text<'a>, Failure> {
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = plain_end(self.bytes, self.at);
            match self.peek() {
                Some(b'"') => {
                    let raw = self.bytes.get(start..self.at).unwrap_or_default();
                    self.at += 1;
                    return Ok(Text { raw, escaped, at: start });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(_) => return self.syntax("a control character within a string"),
                None => {
                    self.at = self.bytes.len();
                    return self.syntax("a string without its end");
                }
            }
        }
    }

    /// Reads a number; its first byte is the next.
    #[inline]
    pub(in crate::decode) fn number(&mut self) -> Result<&'a [u8], Failure> {
        let start = self.at;
        self.take(b'-');
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.skip_digits(),
            _ => return self.syntax("a number without digits"),
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(self.since(start))
    }

    fn digits(&mut self) -> Result<(), Failure> {
        let start = self.at;
        self.skip_digits();
        if self.at == start { self.syntax("a number without digits") } else { Ok(()) }
    }

    #[inline]
    fn skip_digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    /// Reads one of the words `true`, `false` and `null`.
    #[inline]
    pub(in crate::decode) fn word(&mut self, word: &'static [u8]) -> Result<&'static [u8], Failure> {
        let end = self.at + word.len();
        if self.bytes.get(self.at..end) != Some(word) {
            return self.syntax("something that is no value");
        }
        self.at = end;
        Ok(word)
    }

    /// Reads any value, checks it, and gives its bytes; `depth` values stand around it.
    pub(in crate::decode) fn skip_value(&mut self, depth: usize) -> Result<&'a [u8], Failure> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => {
                let text = self.string()?;
                self.check(text)?;
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
            }
            Some(b't') => {
                self.word(b"true")?;
            }
            Some(b'f') => {
                self.word(b"false")?;
            }
            Some(b'n') => {
                self.word(b"null")?;
            }
            Some(b'[') => {
                self.open(depth)?;
                if !self.closes(b']') {
                    loop {
                        self.skip_space();
                        self.skip_value(depth + 1)?;
                        if !self.goes_on(b']')? {
                            break;
                        }
                    }
                }
            }
            Some(b'{') => {
                self.open(depth)?;
                if !self.closes(b'}') {
                    loop {
                        let key = self.key()?;
                        self.check(key)?;
                        self.skip_value(depth + 1)?;
                        if !self.goes_on(b'}')? {
                            break;
                        }
                    }
                }
            }
            Some(_) => return self.syntax("something that is no value"),
            None => return self.syntax("the end in the middle of a value"),
        }
        Ok(self.since(start))
    }

    /// Takes the opening bracket that is the next byte.
    #[inline]
    pub(in crate::decode) fn open(&mut self, depth: usize) -> Result<(), Failure> {
        if depth >= DEPTH_MAX {
            return self.syntax("more than 128 values nested in one another");
        }
        self.at += 1;
        Ok(())
    }

    /// Takes `bracket` if the list or object ends right away.
    #[inline]
    pub(in crate::decode) fn closes(&mut self, bracket: u8) -> bool {
        self.skip_space();
        self.take(bracket)
    }

    /// Takes the comma or `bracket` behind a value; tells whether another value follows.
    #[inline]
    pub(in crate::decode) fn goes_on(&mut self, bracket: u8) -> Result<bool, Failure> {
        self.skip_space();
        if self.take(b',') {
            return Ok(true);
        }
        if self.take(bracket) {
            return Ok(false);
        }
        match self.peek() {
            None => self.syntax("the end in the middle of a value"),
            Some(_) if bracket == b'}' => self.syntax("neither \",\" nor \"}\" behind a field"),
            Some(_) => self.syntax("neither \",\" nor \"]\" behind an item"),
        }
    }

    /// Reads a field's name and the colon, up to its value.
    #[inline]
    pub(in crate::decode) fn key(&mut self) -> Result<Text<'a>, Failure> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return self.syntax("no field name in quotes");
        }
        let key = self.string()?;
        self.skip_space();
        if !self.take(b':') {
            return self.syntax("no \":\" behind a field name");
        }
        self.skip_space();
        Ok(key)
    }

    /// Checks the escapes of a text that nobody keeps.
    fn check(&mut self, text: Text<'a>) -> Result<(), Failure> {
        if !text.escaped {
            return Ok(());
        }
        self.scratch.clear();
        text.unescape(&mut self.scratch)
    }
}

impl Text<'_> {
    /// Appends the text that the escapes stand for.
    pub(in crate::decode) fn unescape(&self, out: &mut Vec<u8>) -> Result<(), Failure> {
        let mut rest = self.raw;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            let (plain, escape) = rest.split_at(at);
            out.extend_from_slice(plain);
            let Some(len) = append_escaped(escape, out) else {
                return Err(Failure::Syntax { at: self.at, what: "an escape that stands for no character" });
            };
            rest = escape.get(len..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
        Ok(())
    }
}

/// Appends the character of the escape at the start of `text`; gives the escape's length.
fn append_escaped(text: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let byte = match text.get(1)? {
        byte @ (b'"' | b'\\' | b'/') => *byte,
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let unit = hex4(text.get(2..6)?)?;
            // A character beyond 16 bits is a pair: a high surrogate and a low one. Neither stands alone.
            let (code, len) = match unit {
                0xD800..0xDC00 => {
                    let low = match text.get(6..12)? {
                        [b'\\', b'u', digits @ ..] => hex4(digits)?,
                        _ => return None,
                    };
                    let low = low.checked_sub(0xDC00).filter(|&low| low < 0x400)?;
                    (0x10000 + ((unit - 0xD800) << 10) + low, 12)
                }
                unit => (unit, 6),
            };
            let character = char::from_u32(code)?;
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(len);
        }
        _ => return None,
    };
    out.push(byte);
    Some(2)
}

fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

/// Finds the first quote, backslash or control character from `at` on, eight bytes at a time.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    // Marks the bytes that are zero; above the first, others may be marked too ("Bit Twiddling Hacks").
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (quotes | backslashes | controls) & HIGHS;
        if marks != 0 {
            return at + (marks.trailing_zeros() >> 3) as usize;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\').unwrap_or(rest.len())
}
