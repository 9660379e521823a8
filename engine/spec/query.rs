//! A query in a file of its own (`sql_file`), with parameters put in.

use std::path::Path;

use saphyr_parser::ScalarStyle;

use super::codes;
use super::diagnostic::Diagnostic;
use super::params::Params;
use super::source::{Extent, SourceText, read_text, word_width};
use super::yaml::Scalar;

/// The largest query file in bytes; no query that people write comes near.
const QUERY_BYTES_MAX: usize = 1024 * 1024;

/// A query with its file.
#[derive(Debug, Clone)]
pub(super) struct Query {
    source: SourceText,
    scalar: Scalar,
}

impl Query {
    /// Reads a query. A diagnostic without a place says that the file cannot be read.
    pub(super) fn read(path: &str, params: &mut Params) -> Result<Query, Vec<Diagnostic>> {
        let unreadable = |why: String| {
            let message = format!("could not read the query from {path}: {why}");
            vec![Diagnostic::error(codes::NO_QUERY, path, message)]
        };
        let text = read_text(Path::new(path), QUERY_BYTES_MAX).map_err(unreadable)?;
        if text.trim().is_empty() {
            return Err(unreadable("it is empty".into()));
        }
        let text = text.replace("\r\n", "\n");
        let source = SourceText::new(path, &text);
        // To the file, its whole text is one literal block without indentation.
        let place = Extent { line: first_line(&text), column: 1, width: 1 };
        let style = ScalarStyle::Literal;
        let mut scalar = Scalar { place, text, style, substituted: Vec::new(), written: None };
        let mut found = Vec::new();
        params.substitute_scalar(&mut scalar, &source, &mut found);
        if found.is_empty() { Ok(Query { source, scalar }) } else { Err(found) }
    }

    /// Gives the query's text.
    pub(super) fn text(&self) -> &str {
        &self.scalar.text
    }

    /// Makes an error at an offset (in bytes) of the text.
    pub(super) fn diagnostic(&self, offset: usize, code: &'static str, message: String) -> Diagnostic {
        let place = self.scalar.place_of(&self.source, offset);
        let place = Extent { width: word_width(&self.scalar.text, offset), ..place };
        Diagnostic::error(code, self.source.file(), message).at(place, self.source.line(place.line))
    }
}

/// Gives the number of the first line that is not empty, from 1, where a literal block begins.
fn first_line(text: &str) -> usize {
    1 + text.len() - text.trim_start_matches('\n').len()
}
