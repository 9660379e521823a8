//! JSON documents straight into columns: no tree in between.
//!
//! The document's bytes are read once, by the declared types. UTF-8 is checked
//! for a whole chunk at once, or document by document where a chunk holds bytes
//! that are none.

mod cursor;
mod object;
mod resync;

use std::str;

pub(super) use cursor::{Cursor, DEPTH_MAX};
use object::Reader;
use resync::Resync;

use super::column::{Column, Form, Misfit, quoted};
use super::names::Names;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::{Plan, UnknownColumns};
use super::steps::Records;
use crate::batch::{Chunk, Payload, Record};
use crate::error;

/// The byte order mark, which some writers put before UTF-8.
pub(super) const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Why a document does not decode.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is no JSON, so where it ends is a guess.
    Syntax {
        /// The byte that is wrong.
        at: usize,
        /// What stands there.
        what: &'static str,
    },
    /// It does not fit the columns, for this reason.
    Misfit(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Failure::Misfit(reason)
    }
}

impl From<Misfit> for Failure {
    fn from(_: Misfit) -> Self {
        Failure::Misfit("the value makes the batch too large".into())
    }
}

/// The documents of a chunk, framed or in records.
pub(super) enum Documents<'a> {
    Framed { offset: u64, documents: Stretch<'a> },
    Records { plan: &'a Plan, left: &'a [Record], open: Option<Stretch<'a>> },
}

impl<'a> Documents<'a> {
    pub(super) fn of(plan: &'a Plan, chunk: &'a Chunk) -> Self {
        match &chunk.payload {
            Payload::Framed { offset, bytes, .. } => {
                Documents::Framed { offset: *offset, documents: Stretch::new(plan, bytes) }
            }
            Payload::Records(records) => Documents::Records { plan, left: records, open: None },
            Payload::RowGroup(_) | Payload::Batch { .. } => Documents::Records { plan, left: &[], open: None },
        }
    }
}

impl Records for Documents<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> error::Result<bool> {
        match self {
            Documents::Framed { offset, documents } => {
                documents.decode(rows, |start| Place::Offset(*offset + start as u64))
            }
            Documents::Records { plan, left, open } => {
                while let Some((record, behind)) = left.split_first() {
                    let place = Place::Record(record);
                    if rows.is_too_long(record.data.len()) {
                        rows.reject_too_long(place, &record.data);
                    } else {
                        let documents = open.get_or_insert_with(|| Stretch::new(plan, &record.data));
                        if documents.decode(rows, |_| place)? {
                            return Ok(true);
                        }
                        if documents.found == 0 {
                            rows.reject_apart(place, &record.data, "the record holds no JSON document".into());
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

/// The documents in one stretch of bytes.
pub(super) struct Stretch<'a> {
    bytes: &'a [u8],
    names: &'a Names,
    cursor: Cursor<'a>,
    reader: Reader<'a>,
    /// Whether all bytes are UTF-8, so that documents need not be looked at one by one.
    is_utf8: bool,
    resync: Resync<'a>,
    rescued: Vec<u8>,
    /// How many documents there were so far, good and bad.
    found: usize,
}

impl<'a> Stretch<'a> {
    fn new(plan: &'a Plan, bytes: &'a [u8]) -> Self {
        let mut cursor = Cursor::new(bytes);
        if bytes.starts_with(BOM) {
            cursor.move_to(BOM.len());
        }
        Self {
            bytes,
            names: &plan.names,
            cursor,
            reader: Reader::new(plan.settings.unknown),
            is_utf8: str::from_utf8(bytes).is_ok(),
            resync: Resync::new(bytes),
            rescued: Vec::new(),
            found: 0,
        }
    }

    /// Decodes documents into `rows` until these are full; tells whether there may be more.
    fn decode<'p>(&mut self, rows: &mut Rows<'_>, place: impl Fn(usize) -> Place<'p>) -> error::Result<bool> {
        while let Some(start) = next_document(&mut self.cursor) {
            let failure = self.document(rows, start).err().map(|failure| self.behind_bad(start, failure));
            let end = self.cursor.at();
            let raw = self.bytes.get(start..end).unwrap_or_default().trim_ascii_end();
            match failure {
                _ if rows.is_too_long(raw.len()) => rows.reject_too_long(place(start), raw),
                None => rows.keep(place(start), raw)?,
                Some(Failure::Misfit(reason)) => rows.reject(place(start), raw, reason),
                // In an archive it might take the lines behind it for its own.
                Some(failure) => rows.reject_apart(place(start), raw, self.reason(start, raw, failure)),
            }
            self.found += 1;
            if rows.is_full() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn document(&mut self, rows: &mut Rows<'_>, start: usize) -> Result<(), Failure> {
        if self.cursor.peek() != Some(b'{') {
            let value = self.cursor.skip_value(0)?;
            let value = quoted(value, Form::Number);
            return Err(Failure::Misfit(format!("{value} is not a JSON object")));
        }
        self.reader.clear();
        let len = rows.len();
        self.reader.object(&mut self.cursor, self.names, &mut rows.columns, len, None, 0)?;
        if !self.is_utf8 && str::from_utf8(self.cursor.since(start)).is_err() {
            return Err(Failure::Misfit("the record is not UTF-8".into()));
        }
        self.rescued.clear();
        self.reader.append_rescued(&mut self.rescued);
        Ok(rows.push_rescued(&mut self.rescued)?)
    }

    /// Goes behind a bad document; gives what is wrong.
    #[cold]
    fn behind_bad(&mut self, start: usize, failure: Failure) -> Failure {
        self.cursor.move_to(start);
        // A value that does not fit may be one of the next document, if this one is cut short.
        let failure = match (failure, self.cursor.skip_value(0)) {
            (misfit @ Failure::Misfit(_), Ok(_)) => return misfit,
            (Failure::Misfit(_), Err(syntax)) => syntax,
            (syntax, _) => syntax,
        };
        self.cursor.move_to(self.resync.end_of_bad(start, self.found));
        failure
    }

    #[cold]
    fn reason(&self, start: usize, raw: &[u8], failure: Failure) -> String {
        match failure {
            Failure::Misfit(reason) => reason,
            Failure::Syntax { .. } if str::from_utf8(raw).is_err() => "the record is not UTF-8".into(),
            // What is wrong may stand behind the record's guessed end: then the record is cut short.
            Failure::Syntax { at, .. } if at >= start + raw.len() => {
                format!("the record is not JSON: it ends in the middle, at byte {}", raw.len())
            }
            Failure::Syntax { at, what } => format!("the record is not JSON: {what} at byte {}", at - start),
        }
    }
}

/// Reads a document that a decoder has made of a record, into columns that the record has not touched.
pub(super) fn decode_document(rows: &mut Rows<'_>, plan: &Plan, text: &[u8]) -> Result<(), String> {
    let (mut cursor, mut reader) = (Cursor::new(text), Reader::new(plan.settings.unknown));
    let len = rows.len();
    reader.object(&mut cursor, &plan.names, &mut rows.columns, len, None, 0).map_err(|failure| match failure {
        Failure::Misfit(reason) => reason,
        Failure::Syntax { at, what } => format!("as JSON, the record has {what} at byte {at}"),
    })?;
    let mut rescued = Vec::new();
    reader.append_rescued(&mut rescued);
    rows.push_rescued(&mut rescued)
}

/// Reads `text`, which is UTF-8, as the JSON value of a nested column; fields that no column declares are appended to
/// the object that is open in `rescued`.
pub(super) fn decode_value(
    column: &mut Column,
    text: &[u8],
    unknown: UnknownColumns,
    rescued: &mut Vec<u8>,
) -> Result<(), String> {
    let (mut cursor, mut reader) = (Cursor::new(text), Reader::new(unknown));
    cursor.skip_space();
    let read = reader.value(&mut cursor, column, 0).and_then(|()| {
        cursor.skip_space();
        if cursor.peek().is_some() { cursor.syntax("something behind the value") } else { Ok(()) }
    });
    reader.append_rescued(rescued);
    read.map_err(|failure| match failure {
        Failure::Misfit(reason) => reason,
        Failure::Syntax { at, what } => {
            let value = quoted(text, Form::Field);
            format!("column \"{}\": {value} is not JSON: {what} at byte {at}", column.path)
        }
    })
}

/// Goes to the next document: past white space and the punctuation of an array around the documents.
pub(super) fn next_document(cursor: &mut Cursor<'_>) -> Option<usize> {
    while let Some(b' ' | b'\n' | b'\r' | b'\t' | b'[' | b',' | b']') = cursor.peek() {
        cursor.advance();
    }
    cursor.peek().map(|_| cursor.at())
}

#[cfg(test)]
mod tests;
