//! What is wrong with a pipeline file, and where, in the form of `rustc`.
//!
//! ```text
//! error[N0102]: unknown key `expct` in a table
//!   --> pipelines/flights.yaml:12:5
//!    |
//! 12 |     expct:
//!    |     ^^^^^
//!    = did you mean `expect`?
//! ```

use std::fmt;

use super::source::Extent;

/// The widest piece of a source line that is shown, so that a file without line breaks does not flood the terminal.
const LINE_CHARS_MAX: usize = 160;

/// How many characters are shown before the caret when a long line is cut.
const LEAD_CHARS: usize = 60;

/// Whether the pipeline can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, and something is probably not meant.
    Warning,
}

/// One thing that is wrong with a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the pipeline can run.
    pub severity: Severity,
    /// A code of [`CODES`](super::codes::CODES), such as `N0102`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The file as the user named it.
    pub file: String,
    /// Where in the file; nothing if the file cannot be read, or if the command line is at fault.
    pub place: Option<Box<Place>>,
    /// What to try.
    pub hint: Option<String>,
}

/// A place in a file, with the line that stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// How many characters are marked.
    pub width: usize,
    /// The line itself.
    pub source_line: String,
}

impl Diagnostic {
    /// Makes an error at no place in particular.
    pub fn error(code: &'static str, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), file: file.into(), place: None, hint: None }
    }

    /// Puts it at a place of its file.
    #[must_use]
    pub fn at(mut self, extent: Extent, source_line: impl Into<String>) -> Self {
        let Extent { line, column, width } = extent;
        self.place = Some(Box::new(Place { line, column, width, source_line: source_line.into() }));
        self
    }

    /// Says what to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes it a warning.
    #[must_use]
    pub fn as_warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Writes it for a terminal, in colour if `colour`.
    pub fn render(&self, colour: bool) -> String {
        let paint = |style: &str, text: &str| match colour {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let (style, severity) = match self.severity {
            Severity::Error => ("1;31", "error"),
            Severity::Warning => ("1;33", "warning"),
        };
        let head = paint(style, &format!("{severity}[{}]", self.code));
        let message = paint("1", &format!(": {}", visible(&self.message)));
        let file = visible(&self.file);
        let mut lines = vec![format!("{head}{message}")];
        let gutter = self.place.as_ref().map_or(1, |p| p.line.to_string().len());
        let blank = " ".repeat(gutter);
        match &self.place {
            Some(place) => {
                let (source_line, lead, width) = place.shown();
                lines.push(format!("{blank}{} {file}:{}:{}", paint("1;34", "-->"), place.line, place.column));
                lines.push(format!("{blank} {}", paint("1;34", "|")));
                lines.push(format!("{} {source_line}", paint("1;34", &format!("{} |", place.line))));
                let caret = paint(style, &"^".repeat(width));
                lines.push(format!("{blank} {} {}{caret}", paint("1;34", "|"), " ".repeat(lead)));
            }
            None if file.is_empty() => {}
            None => lines.push(format!("{blank}{} {file}", paint("1;34", "-->"))),
        }
        for hint in self.hint.iter().flat_map(|hint| hint.split('\n')) {
            lines.push(format!("{blank} {} {}", paint("1;34", "="), visible(hint)));
        }
        let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        lines.join("\n")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Place {
    /// Gives the line as it is shown, how many characters stand before the caret, and the caret's width.
    fn shown(&self) -> (String, usize, usize) {
        let chars: Vec<char> = visible(&self.source_line).chars().collect();
        let before = self.column.saturating_sub(1).min(chars.len());
        let cut = chars.len() > LINE_CHARS_MAX;
        let from = if cut { before.saturating_sub(LEAD_CHARS) } else { 0 };
        let shown: String = chars.iter().skip(from).take(LINE_CHARS_MAX).collect();
        let lead = before - from;
        let room = shown.chars().count().saturating_sub(lead).max(1);
        (shown.trim_end().to_owned(), lead, self.width.clamp(1, room))
    }
}

/// Takes the effect out of characters that would move the cursor or change the terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\n' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Everything that is wrong with a pipeline file, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Puts the diagnostics in the order of the file, those without a place first.
    pub fn new(mut all: Vec<Diagnostic>) -> Self {
        all.sort_by_key(place_of);
        all.dedup();
        Self(all)
    }

    /// Tells whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives them in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// Writes them for a terminal, an empty line between two, in colour if `colour`.
    pub fn render(&self, colour: bool) -> String {
        let rendered: Vec<String> = self.0.iter().map(|d| d.render(colour)).collect();
        rendered.join("\n\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        Self(vec![one])
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

fn place_of(diagnostic: &Diagnostic) -> Option<(usize, usize)> {
    diagnostic.place.as_ref().map(|p| (p.line, p.column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Diagnostic {
        Diagnostic::error("N0102", "x.yaml", "unknown key `expct` in a table")
            .at(Extent { line: 12, column: 5, width: 5 }, "    expct:")
            .with_hint("did you mean `expect`?")
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        assert_eq!(
            example().render(false),
            "error[N0102]: unknown key `expct` in a table\n  --> x.yaml:12:5\n   |\n12 |     expct:\n   |     ^^^^^\n   = did you mean `expect`?"
        );
        let coloured = example().render(true);
        assert!(coloured.starts_with("\x1b[1;31merror[N0102]\x1b[0m"), "{coloured}");
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let line = format!("{}bad{}", "x".repeat(1000), "y".repeat(1000));
        let shown = Diagnostic::error("N0102", "x.yaml", "m").at(Extent { line: 1, column: 1001, width: 3 }, line);
        let shown = shown.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[3].len(), 4 + LINE_CHARS_MAX);
        let caret = lines[4].find('^').expect("a caret");
        assert_eq!(&lines[3][caret..caret + 3], "bad");
    }

    #[test]
    fn control_characters_of_the_file_do_not_reach_the_terminal() {
        let place = Extent { line: 1, column: 1, width: 1 };
        let shown = Diagnostic::error("N0102", "x\x1b.yaml", "\x1b[2J").at(place, "a\x1b[31mb").with_hint("\x07");
        assert!(!shown.to_string().contains(['\x1b', '\x07']), "{shown}");
    }

    #[test]
    fn they_come_in_the_order_of_the_file() {
        let at = |line| Diagnostic::error("N0102", "x", "m").at(Extent { line, column: 1, width: 1 }, "");
        let sorted = Diagnostics::new(vec![at(3), at(1), Diagnostic::error("N0202", "", "m"), at(2)]);
        let lines: Vec<usize> = sorted.iter().map(|d| d.place.as_ref().map_or(0, |p| p.line)).collect();
        assert_eq!(lines, [0, 1, 2, 3]);
    }
}
