//! JSON documents straight into columns: no tree in between.
//!
//! The document's bytes are read once, by the declared types. UTF-8 is checked
//! for a whole chunk at once, or document by document where a chunk holds bytes
//! that are none.

mod cursor;
mod object;
mod resync;

use std::str;

pub(super) use cursor::Cursor;
use object::Reader;
use resync::Resync;

use super::Decoded;
use super::column::{Column, Form, Misfit, quoted};
use super::names::Names;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::{Plan, UnknownColumns};
use crate::batch::{Chunk, Payload};
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

/// Decodes a chunk of documents, framed or in records.
pub(super) fn decode(plan: &Plan, chunk: &Chunk) -> error::Result<Decoded> {
    let mut rows = Rows::new(plan, chunk)?;
    match &chunk.payload {
        Payload::Framed { offset, bytes, .. } => {
            let mut documents = Documents::new(plan, bytes);
            documents.decode(&mut rows, |start| Place::Offset(offset + start as u64))?;
        }
        Payload::Records(records) => {
            for record in records {
                let place = Place::Record(record);
                if rows.is_too_long(record.data.len()) {
                    rows.reject_too_long(place, &record.data);
                } else if Documents::new(plan, &record.data).decode(&mut rows, |_| place)? == 0 {
                    rows.reject(place, &record.data, "the record holds no JSON document".into());
                }
            }
        }
        Payload::RowGroup(_) | Payload::Batch { .. } => {}
    }
    rows.finish()
}

/// The documents in one stretch of bytes.
struct Documents<'a> {
    bytes: &'a [u8],
    names: &'a Names,
    cursor: Cursor<'a>,
    reader: Reader<'a>,
    /// Whether all bytes are UTF-8, so that documents need not be looked at one by one.
    is_utf8: bool,
    resync: Resync<'a>,
    rescued: Vec<u8>,
}

impl<'a> Documents<'a> {
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
        }
    }

    /// Decodes all documents into `rows`; gives how many there were, good and bad.
    fn decode<'p>(&mut self, rows: &mut Rows<'_>, place: impl Fn(usize) -> Place<'p>) -> error::Result<usize> {
        let mut documents = 0;
        while let Some(start) = next_document(&mut self.cursor) {
            let failure = self.document(rows, start).err().map(|failure| self.behind_bad(start, failure, documents));
            let end = self.cursor.at();
            let raw = self.bytes.get(start..end).unwrap_or_default().trim_ascii_end();
            match failure {
                _ if rows.is_too_long(raw.len()) => rows.reject_too_long(place(start), raw),
                None => rows.keep(place(start), raw.len())?,
                Some(failure) => rows.reject(place(start), raw, self.reason(start, raw, failure)),
            }
            documents += 1;
        }
        Ok(documents)
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

    /// Goes behind a bad document, `before` documents of these bytes having come before it; gives what is wrong.
    #[cold]
    fn behind_bad(&mut self, start: usize, failure: Failure, before: usize) -> Failure {
        self.cursor.move_to(start);
        // A value that does not fit may be one of the next document, if this one is cut short.
        let failure = match (failure, self.cursor.skip_value(0)) {
            (misfit @ Failure::Misfit(_), Ok(_)) => return misfit,
            (Failure::Misfit(_), Err(syntax)) => syntax,
            (syntax, _) => syntax,
        };
        self.cursor.move_to(self.resync.end_of_bad(start, before));
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
