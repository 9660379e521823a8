//! Comma-separated values (RFC 4180, as leniently as csv-core) into columns.

mod split;

use std::str;

use bytes::Bytes;
use split::Field;
pub(super) use split::Splitter;

use super::column::{Column, Form, Misfit, Values};
use super::json;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::{Plan, UnknownColumns};
use super::steps::Records;
use crate::batch::{Chunk, Payload, Record};
use crate::error::Result;

/// How a CSV reads.
#[derive(Clone, Copy)]
pub(super) struct Dialect<'a> {
    /// Whether the first record names the columns.
    pub(super) header: bool,
    pub(super) delimiter: u8,
    pub(super) quote: u8,
    /// Texts that mean NULL.
    pub(super) nulls: &'a [String],
}

/// The lines of a chunk. With a header, framed content has it in the chunk's `header` or as its first record;
/// a record of a source that keeps records apart is like a small file and begins with its own.
pub(super) enum Lines<'a> {
    Framed { offset: u64, lines: Stretch<'a>, layout: Layout },
    Records { plan: &'a Plan, dialect: Dialect<'a>, left: &'a [Record], open: Option<(Stretch<'a>, Layout)> },
}

impl<'a> Lines<'a> {
    pub(super) fn of(plan: &'a Plan, dialect: Dialect<'a>, chunk: &'a Chunk) -> Self {
        match &chunk.payload {
            Payload::Framed { offset, bytes, header } => {
                let mut lines = Stretch::new(plan, dialect, bytes);
                let layout = match header.as_ref().filter(|_| dialect.header) {
                    Some(header) => Stretch::new(plan, dialect, header).header(),
                    None => lines.layout(),
                };
                Lines::Framed { offset: *offset, lines, layout }
            }
            Payload::Records(records) => Lines::Records { plan, dialect, left: records, open: None },
            Payload::RowGroup(_) | Payload::Batch { .. } => Lines::Records { plan, dialect, left: &[], open: None },
        }
    }
}

impl Records for Lines<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        match self {
            Lines::Framed { offset, lines, layout } => {
                rows.header.clone_from(&layout.header);
                lines.decode(rows, layout, |start| Place::Offset(*offset + start as u64))
            }
            Lines::Records { plan, dialect, left, open } => {
                while let Some((record, behind)) = left.split_first() {
                    let place = Place::Record(record);
                    if rows.is_too_long(record.data.len()) {
                        rows.reject_too_long(place, &record.data);
                    } else {
                        let (lines, layout) = open.get_or_insert_with(|| {
                            let mut lines = Stretch::new(plan, *dialect, &record.data);
                            let layout = lines.layout();
                            (lines, layout)
                        });
                        rows.header.clone_from(&layout.header);
                        if lines.decode(rows, layout, |_| place)? {
                            return Ok(true);
                        }
                        if lines.found == 0 {
                            rows.header = None;
                            let what = if dialect.header { "no line behind its header" } else { "no line" };
                            rows.reject_apart(place, &record.data, format!("the record holds {what}"));
                        }
                    }
                    (*left, *open) = (behind, None);
                    if rows.is_full() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

/// Which field of a line goes where.
pub(super) struct Layout {
    targets: Vec<Target>,
    /// Declared columns that the lines do not have.
    missing: Vec<usize>,
    /// The line that names the columns; nothing if the declaration does.
    header: Option<Bytes>,
    /// Whether that line ends where it seems to.
    closed: bool,
}

enum Target {
    /// To this declared column.
    Column(usize),
    /// To none: the header names a column that is not declared.
    Unknown(String),
}

/// The lines in one stretch of bytes.
pub(super) struct Stretch<'a> {
    plan: &'a Plan,
    dialect: Dialect<'a>,
    splitter: Splitter<'a>,
    /// Whether all bytes are UTF-8, so that fields need not be looked at one by one.
    is_utf8: bool,
    fields: Vec<Field>,
    /// A field without its escapes.
    text: Vec<u8>,
    rescued: Vec<u8>,
    /// How many lines there were so far, good and bad, but for the header.
    found: usize,
}

impl<'a> Stretch<'a> {
    fn new(plan: &'a Plan, dialect: Dialect<'a>, bytes: &'a [u8]) -> Self {
        Self {
            plan,
            dialect,
            splitter: Splitter::new(bytes, dialect.delimiter, dialect.quote),
            is_utf8: str::from_utf8(bytes).is_ok(),
            fields: Vec::new(),
            text: Vec::new(),
            rescued: Vec::new(),
            found: 0,
        }
    }

    fn layout(&mut self) -> Layout {
        if self.dialect.header {
            return self.header();
        }
        let targets = (0..self.plan.declared.len()).map(Target::Column).collect();
        Layout { targets, missing: Vec::new(), header: None, closed: true }
    }

    /// Reads the next line as the names of the columns. Of a name that comes twice, the last counts.
    fn header(&mut self) -> Layout {
        let mut names = Vec::new();
        let (mut header, mut closed) = (Bytes::new(), true);
        if let Some(line) = self.splitter.next_line(&mut self.fields) {
            header = Bytes::copy_from_slice(self.splitter.bytes_of(&line));
            closed = line.closed;
            for field in &self.fields {
                let name = self.splitter.text(field, &mut self.text);
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        let declared = &self.plan.declared;
        let mut sources: Vec<Option<usize>> = vec![None; declared.len()];
        let mut targets: Vec<Target> = names.into_iter().map(Target::Unknown).collect();
        for (column, field) in declared.iter().enumerate() {
            let named = |target: &Target| matches!(target, Target::Unknown(name) if name == field.name());
            if let Some(at) = targets.iter().rposition(named) {
                sources[column] = Some(at);
            }
        }
        for (column, source) in sources.iter().enumerate() {
            if let Some(target) = source.and_then(|at| targets.get_mut(at)) {
                *target = Target::Column(column);
            }
        }
        let missing = sources.iter().enumerate().filter(|(_, source)| source.is_none()).map(|(column, _)| column);
        Layout { targets, missing: missing.collect(), header: Some(header), closed }
    }

    /// Decodes lines into `rows` until these are full; tells whether there may be more.
    fn decode<'p>(&mut self, rows: &mut Rows<'_>, layout: &Layout, place: impl Fn(usize) -> Place<'p>) -> Result<bool> {
        while let Some(line) = self.splitter.next_line(&mut self.fields) {
            let raw = self.splitter.bytes_of(&line);
            if rows.is_too_long(raw.len()) {
                rows.reject_too_long(place(line.start), raw);
            } else {
                let decoded = if line.closed {
                    self.line(rows, layout)
                } else {
                    Err("the record has a quote that is never closed".into())
                };
                match decoded {
                    Ok(()) => rows.keep(place(line.start), raw)?,
                    Err(reason) if line.closed && layout.closed => rows.reject(place(line.start), raw, reason),
                    Err(reason) => rows.reject_apart(place(line.start), raw, reason),
                }
            }
            self.found += 1;
            if rows.is_full() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn line(&mut self, rows: &mut Rows<'_>, layout: &Layout) -> Result<(), String> {
        let (is, want) = (self.fields.len(), layout.targets.len());
        if is != want {
            let what = if layout.header.is_some() { "the header has" } else { "the declared columns are" };
            return Err(format!("the record has {is} fields, but {what} {want}"));
        }
        self.rescued.clear();
        for (field, target) in self.fields.iter().zip(&layout.targets) {
            let text = self.splitter.text(field, &mut self.text);
            match target {
                Target::Column(at) => {
                    let column = rows.columns.get_mut(*at).ok_or("the record has no such column")?;
                    let value = Value { text, quoted: field.quoted, is_utf8: self.is_utf8 };
                    value.push(column, self.dialect.nulls, self.plan.settings.unknown, &mut self.rescued)?;
                }
                Target::Unknown(name) => match self.plan.settings.unknown {
                    UnknownColumns::Ignore => {}
                    UnknownColumns::Reject => return Err(format!("column \"{name}\" is not declared")),
                    UnknownColumns::Rescue => rescue(name, text, field.quoted, &mut self.rescued)?,
                },
            }
        }
        for &at in &layout.missing {
            rows.columns.get_mut(at).map_or(Ok(()), Column::push_missing)?;
        }
        rows.push_rescued(&mut self.rescued)
    }
}

/// One field of a line, without its quotes.
struct Value<'a> {
    text: &'a [u8],
    quoted: bool,
    /// Whether it is known to be UTF-8.
    is_utf8: bool,
}

impl Value<'_> {
    #[inline]
    fn push(
        &self,
        column: &mut Column,
        nulls: &[String],
        unknown: UnknownColumns,
        rescued: &mut Vec<u8>,
    ) -> Result<(), String> {
        let text = self.text;
        if text.is_empty() && !(self.quoted && matches!(column.values, Values::Text(_)))
            || nulls.iter().any(|null| null.as_bytes() == text)
        {
            return column.push_null();
        }
        if let Values::Scalar(_) = column.values {
            return column.push(text, Form::Field);
        }
        if !self.is_utf8 && str::from_utf8(text).is_err() {
            return Err(format!("{}: it is not UTF-8", column.reason(Misfit::NotA, text, Form::Field)));
        }
        match column.values {
            Values::Text(_) => column.push(text, Form::Field),
            _ => json::decode_value(column, text, unknown, rescued),
        }
    }
}

/// Appends a field that no column declares to the JSON object in `rescued`.
fn rescue(name: &str, text: &[u8], quoted: bool, rescued: &mut Vec<u8>) -> Result<(), String> {
    let text = str::from_utf8(text).map_err(|_| format!("column \"{name}\": the field is not UTF-8"))?;
    let value = (quoted || !text.is_empty()).then_some(text);
    rescued.push(if rescued.is_empty() { b'{' } else { b',' });
    // Writing text to memory does not fail.
    let written = serde_json::to_writer(&mut *rescued, name).and_then(|()| {
        rescued.push(b':');
        serde_json::to_writer(&mut *rescued, &value)
    });
    written.map_err(|error| format!("column \"{name}\": the field could not be rescued: {error}"))
}

#[cfg(test)]
mod tests;
