//! The text of a pipeline file by lines, and the way from a place inside a
//! scalar (a line and column of some SQL) back to the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use saphyr_parser::ScalarStyle;

/// A stretch of one line of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// How many characters.
    pub width: usize,
}

/// A file's name and its text by lines.
#[derive(Debug, Clone)]
pub struct SourceText {
    file: String,
    lines: Vec<String>,
}

impl SourceText {
    /// Splits `text` into lines as YAML does: after `\n`, `\r\n` and `\r`.
    pub fn new(file: impl Into<String>, text: &str) -> Self {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        Self { file: file.into(), lines: text.split('\n').map(str::to_owned).collect() }
    }

    /// Gives the file's name, as the user wrote it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Gives a line, from 1; an empty one behind the end.
    pub fn line(&self, line: usize) -> &str {
        line.checked_sub(1).and_then(|n| self.lines.get(n)).map_or("", String::as_str)
    }

    /// Moves a place behind the last text, where nothing can be shown, to the end of that text.
    pub fn within(&self, place: Extent) -> Extent {
        let text_below = self.lines.iter().skip(place.line.saturating_sub(1)).any(|line| !line.trim().is_empty());
        match self.lines.iter().rposition(|line| !line.trim().is_empty()) {
            Some(last) if !text_below => {
                let column = self.line(last + 1).trim_end().chars().count() + 1;
                Extent { line: last + 1, column, width: 1 }
            }
            _ => place,
        }
    }

    /// Gives the place in the file of the character at `offset` (in bytes) of a scalar's `value`.
    ///
    /// `start` is where the scalar begins: its first character, its quote, or the first character of a block's text.
    pub fn place_in_scalar(&self, start: Extent, style: ScalarStyle, value: &str, offset: usize) -> Extent {
        let before = value.get(..offset).unwrap_or(value);
        match style {
            ScalarStyle::Literal => self.place_in_literal(start, value, before),
            _ => self.place_in_flowing(start, style, before),
        }
    }

    /// A literal block keeps its lines. It begins, for the parser, with its first line that is not empty.
    fn place_in_literal(&self, start: Extent, value: &str, before: &str) -> Extent {
        let nth = before.matches('\n').count();
        let text_line = value.split('\n').nth(nth).unwrap_or_default();
        let empty_lines = value.len() - value.trim_start_matches('\n').len();
        let line = (start.line + nth).saturating_sub(empty_lines);
        let source_line = self.line(line);
        // The text's line is the end of the file's line; what stands before it is the indentation.
        let indent = match source_line.strip_suffix(text_line) {
            Some(indent) => indent.chars().count(),
            None => source_line.chars().take_while(|c| *c == ' ').count(),
        };
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        Extent { line, column: indent + column + 1, width: 1 }
    }

    /// The other styles fold line breaks and escape characters: the file is walked along with the text.
    fn place_in_flowing(&self, start: Extent, style: ScalarStyle, before: &str) -> Extent {
        let mut walk = Walk::new(self, start);
        match style {
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => walk.column += 1,
            _ => {}
        }
        let mut chars = before.chars().peekable();
        while let Some(c) = chars.next() {
            match walk.peek() {
                Some('\\') if style == ScalarStyle::DoubleQuoted => walk.skip_escape(),
                Some('\'') if style == ScalarStyle::SingleQuoted => walk.column += 2,
                _ if c.is_whitespace() => {
                    while chars.peek().is_some_and(|c| c.is_whitespace()) {
                        chars.next();
                    }
                    walk.skip_blanks();
                }
                Some(_) => walk.column += 1,
                None => {
                    walk.skip_blanks();
                    walk.column += 1;
                }
            }
        }
        Extent { line: walk.line, column: walk.column, width: 1 }
    }
}

/// A cursor in the file.
struct Walk<'a> {
    source: &'a SourceText,
    line: usize,
    column: usize,
    /// The characters of the line.
    chars: Vec<char>,
}

impl<'a> Walk<'a> {
    fn new(source: &'a SourceText, start: Extent) -> Self {
        let chars = source.line(start.line).chars().collect();
        Self { source, line: start.line, column: start.column, chars }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.column - 1).copied()
    }

    /// Goes on to the next character that is not white space, over line ends; stays in the file.
    fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() => self.column += 1,
                None if self.line < self.source.lines.len() => {
                    let next = Extent { line: self.line + 1, column: 1, width: 1 };
                    *self = Walk::new(self.source, next);
                }
                _ => return,
            }
        }
    }

    /// Goes over an escape of a double-quoted scalar: `\n`, `\"`, `\x41`, `\u0041`, `\U00000041`.
    fn skip_escape(&mut self) {
        self.column += 1;
        let digits = match self.peek() {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => 0,
        };
        self.column += 1 + digits;
    }
}

/// Reads a text file that has at most `bytes_max` bytes; the error says why it cannot be read.
pub fn read_text(path: &Path, bytes_max: usize) -> Result<String, String> {
    String::from_utf8(read_bytes(path, bytes_max)?).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// Reads a file that has at most `bytes_max` bytes; the error says why it cannot be read.
pub fn read_bytes(path: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > bytes_max {
        return Err(format!("it has more than {bytes_max} bytes"));
    }
    Ok(bytes)
}

/// Gives the offset in bytes of a line and column, both from 1; the end of the line if it is shorter.
pub fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines.by_ref().take(line.saturating_sub(1)).map(str::len).sum();
    let line = lines.next().unwrap_or_default().trim_end_matches('\n');
    before + line.char_indices().nth(column.saturating_sub(1)).map_or(line.len(), |(at, _)| at)
}

/// Tells whether a character is part of a word of SQL; a name may have several parts.
pub fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '"')
}

/// Gives how many characters the word at an offset (in bytes) has, at least one.
pub fn word_width(text: &str, offset: usize) -> usize {
    text.get(offset..).unwrap_or_default().chars().take_while(|c| is_part(*c)).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::yaml;

    /// Finds `mark` in the scalar and in the file, and checks that one leads to the other.
    fn leads_back(text: &str) {
        let source = SourceText::new("x.yaml", text);
        let tree = yaml::parse(text, &source).expect("the file parses");
        let scalar = tree.get("sql").expect("the scalar").scalar().expect("a scalar");
        let offset = scalar.text.find("mark").expect("the word");
        let place = source.place_in_scalar(scalar.place, scalar.style, &scalar.text, offset);
        let found: String = source.line(place.line).chars().skip(place.column - 1).take(4).collect();
        assert_eq!(found, "mark", "{place:?} of {text:?}");
    }

    #[test]
    fn every_style_of_scalar_leads_back_to_the_file() {
        leads_back("sql: mark");
        leads_back("sql: SELECT\n  a mark b");
        leads_back("sql: |\n  SELECT\n    a, mark\n");
        leads_back("sql: |\n\n  SELECT\n\n    ä, mark\n");
        leads_back("sql: |2-\n    indented mark\n");
        leads_back("sql: >\n  SELECT\n  a,\n\n  mark\n");
        leads_back("sql: >-\n  SELECT\n    more\n  mark");
        leads_back("sql: \"SELECT \\\"a\\\" \\u0041\n  mark\"");
        leads_back("sql: 'it''s ''a'' mark'");
        leads_back("sql: |\r\n  SELECT\r\n   mark\r\n");
        leads_back("{ sql: \"x mark\" }");
    }
}
