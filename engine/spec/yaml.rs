//! YAML as a tree in which every key and value knows its place.
//!
//! The subset is what a pipeline file needs: one document, no aliases, no
//! tags, no key twice.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::codes;
use super::diagnostic::Diagnostic;
use super::source::{Extent, SourceText};

/// The largest pipeline file, in bytes: a thousand tables with long queries, and small enough to hold many times.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The deepest nesting. The model needs seven levels, rows in test cases some more; recursion over the tree is safe.
pub const DEPTH_MAX: usize = 64;

/// The most keys and values: ten thousand tables, or a test case of as many rows; every check is quick on so many.
pub const NODES_MAX: usize = 200_000;

/// A value with its place.
#[derive(Debug, Clone)]
pub enum Node {
    /// Text, a number, true, false, or nothing.
    Scalar(Scalar),
    /// `[a, b]`, or lines that begin with `-`.
    List {
        /// Where it begins.
        place: Extent,
        /// What it holds.
        items: Vec<Node>,
    },
    /// `{ a: b }`, or lines with keys.
    Map {
        /// Where it begins.
        place: Extent,
        /// Its keys and their values, in the order of the file.
        entries: Vec<Entry>,
    },
}

/// A scalar as it was written.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// Where its token begins.
    pub place: Extent,
    /// The text, without quotes and indentation.
    pub text: String,
    /// How it was written; only plain ones can be other than text.
    pub style: ScalarStyle,
    /// What took the place of `${name}` in it.
    pub substituted: Vec<Substitution>,
    /// The text before substitution, if anything was substituted or unescaped.
    pub written: Option<String>,
}

/// What took the place of a `${name}` in a scalar's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Substitution {
    /// Where the value begins in the new text, in bytes.
    pub offset: usize,
    /// Length of the value in bytes.
    pub bytes: usize,
    /// Where `${name}` began in the text of the file, in bytes.
    pub written_offset: usize,
    /// Length of `${name}` in bytes.
    pub written_bytes: usize,
    /// The value was given with `--set`.
    pub overridden: bool,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key's text.
    pub key: String,
    /// Where the key stands.
    pub place: Extent,
    /// The value.
    pub value: Node,
}

/// A scalar by the rules of YAML's core schema.
#[derive(Debug, Clone, PartialEq)]
pub enum Plain<'a> {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a point or an exponent.
    Number(f64),
    /// Anything else.
    Text(&'a str),
}

impl Node {
    /// Tells where it stands.
    pub fn place(&self) -> Extent {
        match self {
            Node::Scalar(scalar) => scalar.place,
            Node::List { place, .. } | Node::Map { place, .. } => *place,
        }
    }

    /// Gives the value of a key, if it is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// Gives the entries; none if it is no map.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Node::Map { entries, .. } => entries,
            _ => &[],
        }
    }

    /// Gives the scalar, if it is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match self {
            Node::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Tells whether nothing was written.
    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(|s| s.resolve() == Plain::Null)
    }
}

impl Scalar {
    /// Gives what the scalar is by itself, when nothing else is known of it.
    pub fn resolve(&self) -> Plain<'_> {
        let text = self.text.as_str();
        // `"${rows}"` must be quoted inside braces, and is a number all the same.
        let all_substituted =
            matches!(self.substituted.as_slice(), [one] if one.offset == 0 && one.bytes == text.len());
        if self.style != ScalarStyle::Plain && !all_substituted {
            return Plain::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
            "true" | "True" | "TRUE" => Plain::Bool(true),
            "false" | "False" | "FALSE" => Plain::Bool(false),
            _ => number(text).unwrap_or(Plain::Text(text)),
        }
    }

    /// Gives the place in the file of the character at `offset` (in bytes) of the text.
    pub fn place_of(&self, source: &SourceText, offset: usize) -> Extent {
        let written = self.written.as_deref().unwrap_or(&self.text);
        source.place_in_scalar(self.place, self.style, written, self.written_offset(offset))
    }

    /// Gives the offset in the text as it was written, for an offset in the text after substitution.
    fn written_offset(&self, offset: usize) -> usize {
        let mut written = offset;
        for s in &self.substituted {
            if offset >= s.offset + s.bytes {
                written = s.written_offset + s.written_bytes + (offset - s.offset - s.bytes);
            } else if offset >= s.offset {
                return s.written_offset;
            }
        }
        written
    }
}

fn number(text: &str) -> Option<Plain<'_>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |prefix, radix| digits.strip_prefix(prefix).and_then(|d: &str| i128::from_str_radix(d, radix).ok());
    if let Some(integer) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return (digits == text).then_some(Plain::Integer(integer));
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') || digits.contains(['i', 'n', 'I', 'N']) {
        return None;
    }
    if let Ok(integer) = text.parse() {
        return Some(Plain::Integer(integer));
    }
    text.parse().ok().filter(|n: &f64| n.is_finite()).map(Plain::Number)
}

/// Parses a file. The first mistake ends it: what follows could mean anything.
pub fn parse(text: &str, source: &SourceText) -> Result<Node, Diagnostic> {
    if text.len() > FILE_BYTES_MAX {
        let message = format!("the file is too large: {} bytes, at most {FILE_BYTES_MAX}", text.len());
        return Err(Diagnostic::error(codes::TOO_LARGE, source.file(), message).with_hint("split it into pipelines"));
    }
    let mut builder = Builder { source, open: Vec::new(), root: None, nodes: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            let message = format!("the file is not YAML: {}", e.info());
            let place = source.within(extent(*e.marker(), 1));
            let hint = syntax_hint(e.info(), source.line(place.line)).map(str::to_owned);
            Diagnostic { hint, ..builder.error(codes::SYNTAX, place, message) }
        })?;
        builder.take(event, span)?;
    }
    match builder.root.take() {
        Some(root) => Ok(root),
        None => {
            let first = Extent { line: 1, column: 1, width: 1 };
            let error = builder.error(codes::WRONG_TYPE, first, "the file is empty");
            Err(error.with_hint("a pipeline begins with `name:`"))
        }
    }
}

/// Makes the tree from the parser's events.
struct Builder<'a> {
    source: &'a SourceText,
    /// The lists and maps around the current place, the innermost last.
    open: Vec<Open>,
    root: Option<Node>,
    /// How many keys and values there have been.
    nodes: usize,
}

struct Open {
    node: Node,
    /// The key that waits for its value, in a map.
    key: Option<(String, Extent)>,
    /// The keys there have been, in a map, with their lines.
    keys: HashMap<String, usize>,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Diagnostic> {
        let place = self.extent(span);
        match event {
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(tag.is_some(), place)?;
                let scalar = Scalar { place, text: text.into_owned(), style, substituted: Vec::new(), written: None };
                self.add(Node::Scalar(scalar))
            }
            Event::SequenceStart(_, tag) => {
                self.refuse_tag(tag.is_some(), place)?;
                self.push(Node::List { place, items: Vec::new() })
            }
            Event::MappingStart(_, tag) => {
                self.refuse_tag(tag.is_some(), place)?;
                self.push(Node::Map { place, entries: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.add(open.node),
                None => Ok(()),
            },
            Event::Alias(_) => Err(self
                .error(codes::NOT_SUPPORTED, place, "an alias (`*name`) is not allowed in a pipeline file")
                .with_hint("write the value out, or use a parameter: `${name}`")),
            Event::DocumentStart(_) if self.root.is_some() => Err(self
                .error(codes::SEVERAL_DOCUMENTS, place, "the file holds several documents")
                .with_hint("a pipeline is one file; move what follows `---` to an own one")),
            _ => Ok(()),
        }
    }

    fn refuse_tag(&self, tagged: bool, place: Extent) -> Result<(), Diagnostic> {
        match tagged {
            true => Err(self
                .error(codes::NOT_SUPPORTED, place, "a tag (`!name`) is not allowed in a pipeline file")
                .with_hint("leave it out; types follow from the key")),
            false => Ok(()),
        }
    }

    fn push(&mut self, node: Node) -> Result<(), Diagnostic> {
        if self.open.len() >= DEPTH_MAX {
            let message = format!("the file is nested too deeply: at most {DEPTH_MAX} levels");
            return Err(self.error(codes::TOO_LARGE, node.place(), message));
        }
        if self.open.last().is_some_and(|o| matches!(o.node, Node::Map { .. }) && o.key.is_none()) {
            return Err(self.error(codes::NOT_SUPPORTED, node.place(), "a key must be a text"));
        }
        self.open.push(Open { node, key: None, keys: HashMap::new() });
        Ok(())
    }

    /// Adds a whole value to the list or map around it.
    fn add(&mut self, node: Node) -> Result<(), Diagnostic> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("the file holds too many keys and values: at most {NODES_MAX}");
            return Err(self.error(codes::TOO_LARGE, node.place(), message));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node, open.key.take()) {
            (Node::Map { entries, .. }, Some((key, place))) => entries.push(Entry { key, place, value: node }),
            (Node::Map { .. }, None) => {
                let Node::Scalar(scalar) = node else { return Ok(()) };
                if let Some(first) = open.keys.insert(scalar.text.clone(), scalar.place.line) {
                    let message = format!("the key `{}` is given twice", scalar.text);
                    let hint = format!("it is given first in line {first}");
                    return Err(self.error(codes::DUPLICATE_KEY, scalar.place, message).with_hint(hint));
                }
                open.key = Some((scalar.text, scalar.place));
            }
            (Node::List { items, .. }, _) => items.push(node),
            (Node::Scalar(_), _) => {}
        }
        Ok(())
    }

    /// Marks what stands in the first line of a span.
    fn extent(&self, span: Span) -> Extent {
        let start = extent(span.start, 1);
        let end = match span.start.line() == span.end.line() {
            true => span.end.col(),
            false => self.source.line(start.line).trim_end().chars().count(),
        };
        Extent { width: end.saturating_sub(span.start.col()).max(1), ..start }
    }

    fn error(&self, code: &'static str, place: Extent, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, self.source.file(), message).at(place, self.source.line(place.line))
    }
}

/// Says what people most often mean when they write what the parser stumbles over.
fn syntax_hint(info: &str, line: &str) -> Option<&'static str> {
    let indented = line.trim_start_matches(' ');
    if indented.starts_with('\t') {
        Some("indent with spaces; YAML takes no tabs")
    } else if line.contains("${") && line.contains('{') && info.contains("flow") {
        Some("inside braces and brackets, put `${name}` in quotes: `\"${name}\"`")
    } else if info.contains("mapping values are not allowed") {
        Some("put a text that holds `: ` in quotes")
    } else if info.contains("unexpected character") {
        Some("put a text that begins with a special character in quotes")
    } else {
        None
    }
}

fn extent(start: Marker, width: usize) -> Extent {
    Extent { line: start.line().max(1), column: start.col() + 1, width }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (&'static str, Option<(usize, usize)>) {
        let error = parse(text, &SourceText::new("x.yaml", text)).expect_err("a mistake");
        (error.code, error.place.map(|p| (p.line, p.column)))
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let text = "a:\n  b: [1, two]\n";
        let tree = parse(text, &SourceText::new("x.yaml", text)).unwrap();
        let entry = &tree.get("a").unwrap().entries()[0];
        assert_eq!(entry.place, Extent { line: 2, column: 3, width: 1 });
        let Node::List { items, .. } = &entry.value else { panic!("a list") };
        assert_eq!(items[1].place(), Extent { line: 2, column: 10, width: 3 });
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        let plain = |text: &str| {
            let scalar = Scalar {
                place: Extent::default(),
                text: text.to_owned(),
                style: ScalarStyle::Plain,
                substituted: Vec::new(),
                written: None,
            };
            format!("{:?}", scalar.resolve())
        };
        assert_eq!(plain("~"), "Null");
        assert_eq!(plain("true"), "Bool(true)");
        assert_eq!(plain("-12"), "Integer(-12)");
        assert_eq!(plain("0x1F"), "Integer(31)");
        assert_eq!(plain("1.5e3"), "Number(1500.0)");
        assert_eq!(plain("2013-01-01"), "Text(\"2013-01-01\")");
        assert_eq!(plain("inf"), "Text(\"inf\")");
        assert_eq!(plain("1e999"), "Text(\"1e999\")");
        assert_eq!(plain("10s"), "Text(\"10s\")");
    }

    #[test]
    fn what_a_pipeline_file_does_not_need_is_refused_at_its_place() {
        assert_eq!(refused("a: 1\nb: 2\na: 3"), ("N0003", Some((3, 1))));
        assert_eq!(refused("a: &x 1\nb: *x"), ("N0004", Some((2, 4))));
        assert_eq!(refused("a: !secret x"), ("N0004", Some((1, 4))));
        assert_eq!(refused("a: 1\n---\nb: 1"), ("N0005", Some((2, 1))));
        assert_eq!(refused("? [a]\n: 1").0, "N0004");
        assert_eq!(refused(&"[".repeat(DEPTH_MAX + 1)), ("N0006", Some((1, DEPTH_MAX + 1))));
        assert_eq!(refused(&" ".repeat(FILE_BYTES_MAX + 1)), ("N0006", None));
        assert_eq!(refused(&format!("[{}]", "1,".repeat(NODES_MAX + 1))).0, "N0006");
        assert_eq!(refused(""), ("N0103", Some((1, 1))));
        assert_eq!(refused("a: [1, 2").0, "N0002");
    }

    #[test]
    fn common_slips_have_a_hint() {
        let hint = |text: &str| parse(text, &SourceText::new("x.yaml", text)).expect_err("a mistake");
        let hint = |text: &str| hint(text).hint.clone().unwrap_or_else(|| panic!("{}", hint(text)));
        assert!(hint("a:\n\tb: 1").contains("spaces"));
        assert!(hint("a: { rows: ${rows} }").contains("`\"${name}\"`"));
        assert!(hint("a: struct<b: int8>").contains("quotes"));
        assert!(hint("a: @b").contains("quotes"));
    }

    #[test]
    fn offsets_lead_back_through_substitutions() {
        let scalar = Scalar {
            place: Extent::default(),
            text: "ab VALUE cd".to_owned(),
            style: ScalarStyle::Plain,
            substituted: vec![Substitution {
                offset: 3,
                bytes: 5,
                written_offset: 3,
                written_bytes: 4,
                overridden: false,
            }],
            written: Some("ab ${x} cd".to_owned()),
        };

        assert_eq!([0, 2, 3, 6, 8, 9].map(|o| scalar.written_offset(o)), [0, 2, 3, 3, 7, 8]);
    }
}
