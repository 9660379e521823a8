//! Where a document ends that is no JSON, so that it costs no other one.
//!
//! In content with a document a line, a bad one ends with its line at the
//! latest. Otherwise it ends where its brackets balance, if they do, or before
//! the next line that looks like the start of a document.

use memchr::{memchr, memchr_iter, memchr2};

/// How often the bytes may be searched for balanced brackets, all bad documents taken together: content that is
/// nothing but opening brackets must not cost the square of its length.
const SEARCHES_MAX: usize = 16;

pub(super) struct Resync<'a> {
    bytes: &'a [u8],
    /// Bytes that may still be searched for balanced brackets.
    budget: usize,
    /// Whether the documents stand in lines; found out when it is first asked for.
    in_lines: Option<bool>,
}

impl<'a> Resync<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, budget: bytes.len().saturating_mul(SEARCHES_MAX), in_lines: None }
    }

    /// Finds the end of the bad document at `start`; always behind `start`.
    pub(super) fn end_of_bad(&mut self, start: usize, documents_before: usize) -> usize {
        let bytes = self.bytes;
        let in_lines = *self.in_lines.get_or_insert_with(|| in_lines(bytes, start, documents_before));
        let rest = bytes.get(start..).unwrap_or_default();
        let line = memchr(b'\n', rest).unwrap_or(rest.len());
        let within = if in_lines { rest.get(..line).unwrap_or(rest) } else { rest };
        let end = if rest.first() == Some(&b'{') {
            let searched = within.get(..self.budget).unwrap_or(within);
            let balanced = balanced_end(searched);
            self.budget -= balanced.unwrap_or(searched.len());
            balanced.unwrap_or_else(|| match in_lines {
                true => line,
                false => next_start(bytes, start).map_or(rest.len(), |at| at - start),
            })
        } else if in_lines && !self.follows_on_its_line(start) {
            line
        } else {
            // What begins no object ends before the next thing that may.
            rest.get(1..).and_then(|behind| memchr2(b'\n', b'{', behind)).map_or(rest.len(), |at| at + 1)
        };
        start + end.max(1)
    }

    /// Tells whether something stands before `start` on its line.
    fn follows_on_its_line(&self, start: usize) -> bool {
        let before = self.bytes.get(..start).unwrap_or_default();
        before.rsplit(|&byte| byte == b'\n').next().is_some_and(has_content)
    }
}

/// Tells whether the content has a document (or several) a line, by what comes before the bad document at `start`
/// or, if that is the first, by the line behind it.
fn in_lines(bytes: &[u8], start: usize, documents_before: usize) -> bool {
    let before = bytes.get(..start).unwrap_or_default();
    if documents_before > 0 {
        // The bad document's own line counts only if another one has begun it.
        return before.split(|&byte| byte == b'\n').filter(|line| has_content(line)).count() <= documents_before;
    }
    let mut lines = bytes.get(start..).unwrap_or_default().split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default().trim_ascii_end();
    if !first.starts_with(b"{") {
        return true;
    }
    match lines.find(|line| !line.trim_ascii().is_empty()) {
        // Nothing but the opening bracket: what follows are the object's fields.
        Some(_) if first == b"{" => false,
        Some(next) => next.starts_with(b"{") || first.ends_with(b"}"),
        None => true,
    }
}

/// Tells whether a line holds more than white space and the punctuation of an array.
fn has_content(line: &[u8]) -> bool {
    line.iter().any(|byte| !b" \t\r[],".contains(byte))
}

/// Finds where the brackets of the object at the start of `bytes` balance, whatever stands between them.
fn balanced_end(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b'"' => loop {
                at += 1;
                at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
                if bytes.get(at) == Some(&b'"') {
                    break;
                }
                at += 1;
            },
            _ => {}
        }
        at += 1;
    }
    None
}

/// Finds the next line that begins an object and is indented as the line of `start` is.
fn next_start(bytes: &[u8], start: usize) -> Option<usize> {
    let before = bytes.get(..start)?;
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
    let indentation = before.get(line_start..)?;
    let indentation = indentation.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    memchr_iter(b'\n', bytes.get(start..)?).map(|at| start + at + 1).find_map(|line| {
        let behind = bytes.get(line..)?;
        let spaces = behind.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        (spaces == indentation && behind.get(spaces) == Some(&b'{')).then_some(line + spaces)
    })
}
