//! JSON values into columns, by the declared types.

use std::collections::HashMap;
use std::sync::Arc;

use super::Failure;
use super::cursor::{Cursor, Text};
use crate::decode::column::{Column, Form, ListColumn, MapColumn, Misfit, StructColumn, Values};
use crate::decode::names::Names;
use crate::decode::settings::UnknownColumns;

/// Up to so many fields, looking for a name twice by comparing all beats hashing.
const COMPARED_MAX: usize = 16;

/// What is read beside the columns' values, reused from record to record.
pub(super) struct Reader<'a> {
    unknown: UnknownColumns,
    /// Fields of the record that no column declares.
    rescued: Vec<Rescued<'a>>,
    /// A field name without its escapes.
    name: Vec<u8>,
}

struct Rescued<'a> {
    /// The path of the struct the field stands in; nothing for a field of the record itself.
    parent: Option<Arc<str>>,
    /// Name and value as they stand in the record.
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(unknown: UnknownColumns) -> Self {
        Self { unknown, rescued: Vec::new(), name: Vec::new() }
    }

    /// Forgets what the record before has left.
    pub(super) fn clear(&mut self) {
        self.rescued.clear();
    }

    /// Reads the fields of an object, whose opening bracket is the next byte, into columns that have `len` values.
    pub(super) fn object(
        &mut self,
        cursor: &mut Cursor<'a>,
        names: &Names,
        columns: &mut [Column],
        len: usize,
        parent: Option<&Arc<str>>,
        depth: usize,
    ) -> Result<(), Failure> {
        cursor.open(depth)?;
        let (mut found, mut guess) = (0, 0);
        // Which of the first 64 columns have their value: asking each column would cost a call a field.
        let mut seen = 0_u64;
        let mut more = !cursor.closes(b'}');
        while more {
            cursor.skip_space();
            // Records mostly keep the declared order: then a field is known by one comparison.
            let at = if names.key(guess).is_some_and(|key| cursor.take_key(key)) {
                cursor.skip_space();
                Some(guess)
            } else {
                let key = cursor.key()?;
                let at = self.find(key, names, guess)?;
                if at.is_none() {
                    self.unknown_field(cursor, key, parent, depth)?;
                }
                at
            };
            if let Some((at, column)) = at.and_then(|at| Some((at, columns.get_mut(at)?))) {
                guess = at + 1;
                let bit = u32::try_from(at).ok().and_then(|at| 1_u64.checked_shl(at)).unwrap_or(0);
                // Of a field that comes twice, the last counts.
                if seen & bit != 0 || bit == 0 && column.len() > len {
                    column.truncate(len);
                } else {
                    found += 1;
                    seen |= bit;
                }
                self.value(cursor, column, depth + 1)?;
            }
            more = cursor.goes_on(b'}')?;
        }
        if found < columns.len() {
            for column in columns.iter_mut().filter(|column| column.len() == len) {
                column.push_missing()?;
            }
        }
        Ok(())
    }

    /// Finds the column of a field; `guess` is the one whose turn it is.
    fn find(&mut self, key: Text<'a>, names: &Names, guess: usize) -> Result<Option<usize>, Failure> {
        if !key.escaped {
            return Ok(names.find(key.raw, guess));
        }
        self.name.clear();
        key.unescape(&mut self.name)?;
        Ok(names.find(&self.name, guess))
    }

    fn unknown_field(
        &mut self,
        cursor: &mut Cursor<'a>,
        key: Text<'a>,
        parent: Option<&Arc<str>>,
        depth: usize,
    ) -> Result<(), Failure> {
        let value = cursor.skip_value(depth + 1)?;
        match self.unknown {
            UnknownColumns::Ignore => {}
            UnknownColumns::Rescue => {
                self.rescued.push(Rescued { parent: parent.map(Arc::clone), name: key.raw, value });
            }
            UnknownColumns::Reject => {
                let name = String::from_utf8_lossy(key.raw);
                let path = parent.map_or_else(|| name.to_string(), |parent| format!("{parent}.{name}"));
                return Err(Failure::Misfit(format!("column \"{path}\" is not declared")));
            }
        }
        Ok(())
    }

    /// Appends the rescued fields to a JSON object that is open, or begins one.
    pub(super) fn append_rescued(&self, out: &mut Vec<u8>) {
        let last: Option<HashMap<&[u8], usize>> =
            (self.rescued.len() > COMPARED_MAX).then(|| self.own().map(|(at, field)| (field.name, at)).collect());
        for (at, field) in self.rescued.iter().enumerate() {
            let comes_again = match &last {
                _ if field.parent.is_some() => false,
                Some(last) => last.get(field.name).is_some_and(|&last| last > at),
                None => self.own().any(|(later, other)| later > at && other.name == field.name),
            };
            if comes_again {
                continue;
            }
            out.extend_from_slice(if out.is_empty() { b"{\"" } else { b",\"" });
            if let Some(parent) = &field.parent {
                for byte in parent.bytes() {
                    if matches!(byte, b'"' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                out.push(b'.');
            }
            out.extend_from_slice(field.name);
            out.extend_from_slice(b"\":");
            out.extend_from_slice(field.value);
        }
    }

    /// Gives the rescued fields of the record itself, with their places among all.
    fn own(&self) -> impl Iterator<Item = (usize, &Rescued<'a>)> {
        self.rescued.iter().enumerate().filter(|(_, field)| field.parent.is_none())
    }

    /// Reads the value at the cursor into `column`; `depth` values stand around it.
    #[inline]
    pub(super) fn value(&mut self, cursor: &mut Cursor<'a>, column: &mut Column, depth: usize) -> Result<(), Failure> {
        if !matches!(column.values, Values::Text(_) | Values::Scalar(_)) {
            return self.nested(cursor, column, depth);
        }
        match cursor.peek() {
            Some(b'"') => {
                let text = cursor.string()?;
                if text.escaped {
                    return self.escaped(text, column);
                }
                Ok(column.push(text.raw, Form::Text)?)
            }
            Some(b'-' | b'0'..=b'9') => Ok(column.push(cursor.number()?, Form::Number)?),
            Some(b'n') => {
                cursor.word(b"null")?;
                Ok(column.push_null()?)
            }
            Some(b't') => Ok(column.push(cursor.word(b"true")?, Form::Truth)?),
            Some(b'f') => Ok(column.push(cursor.word(b"false")?, Form::Truth)?),
            _ => misfit(cursor, column, depth),
        }
    }

    #[cold]
    fn escaped(&mut self, text: Text<'a>, column: &mut Column) -> Result<(), Failure> {
        if let Values::Text(texts) = &mut column.values {
            return texts.push_with(|bytes| text.unescape(bytes));
        }
        self.name.clear();
        text.unescape(&mut self.name)?;
        Ok(column.push(&self.name, Form::Text)?)
    }

    fn nested(&mut self, cursor: &mut Cursor<'a>, column: &mut Column, depth: usize) -> Result<(), Failure> {
        if cursor.peek() == Some(b'n') {
            cursor.word(b"null")?;
            return Ok(column.push_null()?);
        }
        let path = &column.path;
        match (&mut column.values, cursor.peek()) {
            (Values::Json(texts), _) => Ok(texts.push(cursor.skip_value(depth)?)?),
            (Values::List(list), Some(b'[')) => self.list(cursor, list, depth),
            (Values::Map(map), Some(b'{')) => self.map(cursor, map, depth),
            (Values::Struct(fields), Some(b'{')) => {
                let len = fields.len();
                let StructColumn { names, columns, .. } = fields.as_mut();
                self.object(cursor, names, columns, len, Some(path), depth)?;
                fields.seal();
                Ok(())
            }
            _ => misfit(cursor, column, depth),
        }
    }

    fn list(&mut self, cursor: &mut Cursor<'a>, list: &mut ListColumn, depth: usize) -> Result<(), Failure> {
        cursor.open(depth)?;
        let mut more = !cursor.closes(b']');
        while more {
            cursor.skip_space();
            self.value(cursor, &mut list.item, depth + 1)?;
            more = cursor.goes_on(b']')?;
        }
        Ok(list.seal()?)
    }

    /// Reads an object as a map. Its entries are gone through twice, since of a key that comes twice only the last
    /// value may be kept.
    fn map(&mut self, cursor: &mut Cursor<'a>, map: &mut MapColumn, depth: usize) -> Result<(), Failure> {
        let mut entries: Vec<(Vec<u8>, usize)> = Vec::new();
        let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
        cursor.open(depth)?;
        let mut more = !cursor.closes(b'}');
        while more {
            let key = cursor.key()?;
            let mut name = Vec::with_capacity(key.raw.len());
            key.unescape(&mut name)?;
            last.insert(name.clone(), entries.len());
            entries.push((name, cursor.at()));
            cursor.skip_value(depth + 1)?;
            more = cursor.goes_on(b'}')?;
        }
        let end = cursor.at();
        for (at, (name, value)) in entries.iter().enumerate() {
            if last.get(name) == Some(&at) {
                map.keys.push(name, Form::Text)?;
                cursor.move_to(*value);
                self.value(cursor, &mut map.values, depth + 1)?;
            }
        }
        cursor.move_to(end);
        Ok(map.seal()?)
    }
}

/// Reads a value of the wrong kind, to quote it.
#[cold]
fn misfit(cursor: &mut Cursor<'_>, column: &Column, depth: usize) -> Result<(), Failure> {
    let value = cursor.skip_value(depth)?;
    Err(Failure::Misfit(column.reason(Misfit::NotA, value, Form::Number)))
}
