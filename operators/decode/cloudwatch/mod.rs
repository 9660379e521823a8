//! What CloudWatch Logs sends to a subscription (Amazon CloudWatch Logs, "Real-time processing of log data with
//! subscriptions"): JSON envelopes, each packed by gzip where a record holds it, with several log events.
//!
//! A log event is a row. An envelope of type `CONTROL_MESSAGE` only tries whether the destination can be reached: it is
//! counted, and no row.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use chrono::{DateTime, SecondsFormat};
use serde::de::IgnoredAny;

use super::column::{is_json, json_field};
use super::json::{Cursor, Failure, decode_document, next_document};
use super::provenance::Place;
use super::rows::Rows;
use super::settings::Plan;
use super::steps::Records;
use crate::batch::{Chunk, Payload, Record, timestamp_type};
use crate::error::Result;

/// Bytes of an unpacked record: CloudWatch Logs sends at most 1 MiB packed, which text packs into from some 20 MiB. In the
/// tests so few that a bomb takes no time.
const UNPACKED_BYTES_MAX: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Gives the columns of log events.
pub fn cloudwatch_columns() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8View, false);
    let filters = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8View, true)));
    vec![
        text("owner"),
        text("log_group"),
        text("log_stream"),
        Field::new("subscription_filters", filters, true),
        text("id"),
        Field::new("timestamp", timestamp_type(), false),
        text("message"),
        json_field("extracted_fields"),
    ]
}

/// What an envelope holds, as JSON. What is not named here is left out.
#[derive(Default)]
struct Envelope<'a> {
    message_type: Option<&'a str>,
    /// The columns that it gives all of its events, with their names in it and their values.
    fields: [(&'static str, &'static str, Option<&'a str>); 4],
    log_events: Option<&'a str>,
}

impl<'a> Envelope<'a> {
    fn parse(text: &'a [u8]) -> Result<Self, String> {
        let mut found = Self {
            fields: [
                ("owner", "owner", None),
                ("log_group", "logGroup", None),
                ("log_stream", "logStream", None),
                ("subscription_filters", "subscriptionFilters", None),
            ],
            ..Self::default()
        };
        for_each_field(text, |name, value| match name {
            "messageType" => found.message_type = Some(value),
            "logEvents" => found.log_events = Some(value),
            other => {
                if let Some((_, _, place)) = found.fields.iter_mut().find(|(_, name, _)| *name == other) {
                    *place = Some(value);
                }
            }
        })?;
        Ok(found)
    }
}

/// Gives the names and values of an object, both as they stand in it.
fn for_each_field<'t>(text: &'t [u8], mut give: impl FnMut(&'t str, &'t str)) -> Result<(), String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    let mut cursor = Cursor::new(text.as_bytes());
    let mut read = || -> Result<(), Failure> {
        if cursor.peek() != Some(b'{') {
            return cursor.syntax("no object");
        }
        cursor.open(0)?;
        let mut more = !cursor.closes(b'}');
        while more {
            let key = cursor.key()?;
            let end = cursor.at();
            let value = cursor.skip_value(1)?;
            let name = str::from_utf8(key.raw).unwrap_or_default();
            give(name, text.get(end..end + value.len()).unwrap_or_default());
            more = cursor.goes_on(b'}')?;
        }
        Ok(())
    };
    read().map_err(|failure| match failure {
        Failure::Misfit(why) => why,
        Failure::Syntax { at, what } => format!("it has {what} at byte {at}"),
    })
}

/// The log events of a chunk.
pub(super) struct LogEvents<'a> {
    plan: &'a Plan,
    /// Whether a message is JSON, and read as the type of its column.
    message_is_json: bool,
    left: &'a [Record],
    open: Option<Open<'a>>,
    json: Vec<u8>,
}

/// Envelopes back to back, and how far they have been read.
struct Open<'a> {
    record: Option<&'a Record>,
    /// Offset of the text, where there is no record.
    offset: u64,
    text: Cow<'a, [u8]>,
    at: usize,
    /// How many envelopes there were.
    found: usize,
    envelope: Option<OpenEnvelope>,
}

/// An envelope whose events are being read.
struct OpenEnvelope {
    /// Its events, as a JSON array, and how far they have been read.
    events: String,
    next: usize,
    /// Its fields as JSON, an object that is open: by column, and by the names of an envelope.
    columns: Vec<u8>,
    around: Vec<u8>,
}

impl<'a> LogEvents<'a> {
    pub(super) fn of(plan: &'a Plan, chunk: &'a Chunk) -> Self {
        let message = plan.declared.iter().find(|field| field.name() == "message");
        let (left, open) = match &chunk.payload {
            Payload::Framed { offset, bytes, .. } => {
                (&[][..], Some(Open { offset: *offset, ..Open::new(None, Cow::Borrowed(bytes)) }))
            }
            Payload::Records(records) => (records.as_slice(), None),
            Payload::RowGroup(_) | Payload::Batch { .. } => (&[][..], None),
        };
        let message_is_json = message.is_some_and(|field| field.data_type().is_nested() || is_json(field));
        Self { plan, message_is_json, left, open, json: Vec::new() }
    }

    /// Decodes one event of the open envelope; tells whether there was one.
    fn event(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let place = open.place();
        let Some(envelope) = &mut open.envelope else { return Ok(false) };
        self.json.clear();
        self.json.extend_from_slice(&envelope.columns);
        let Some(event) = envelope.next_event() else {
            open.envelope = None;
            return Ok(false);
        };
        let text = envelope.events.as_bytes().get(event).unwrap_or_default();
        let written = write_event(text, self.plan, self.message_is_json, &mut self.json);
        match written.and_then(|()| decode_document(rows, self.plan, &self.json)) {
            Ok(()) => rows.keep_apart(place, text.len())?,
            // Again an envelope, of one event.
            Err(reason) => rows.reject_apart(place, &[&envelope.around, text, b"]}"].concat(), reason),
        }
        Ok(true)
    }

    /// Opens the next envelope, or rejects what is none; tells whether there was one.
    fn envelope(&mut self, rows: &mut Rows<'_>) -> bool {
        let Some(open) = &mut self.open else { return false };
        let mut cursor = Cursor::new(&open.text);
        cursor.move_to(open.at);
        let Some(start) = next_document(&mut cursor) else {
            if let (0, Some(record)) = (open.found, open.record) {
                rows.reject_apart(Place::Record(record), &record.data, "the record holds no JSON document".into());
            }
            self.open = None;
            return false;
        };
        open.found += 1;
        let whole = cursor.skip_value(0).is_ok();
        open.at = start;
        let place = open.place();
        open.at = if whole { cursor.at() } else { open.text.len() };
        let text = open.text.get(start..open.at).unwrap_or_default();
        if whole {
            rows.archive(text);
        }
        let read = Envelope::parse(text).map_err(|why| format!("it is no envelope: {why}"));
        match read.and_then(|envelope| OpenEnvelope::new(self.plan, &envelope)) {
            Ok(Some(envelope)) => open.envelope = Some(envelope),
            Ok(None) => rows.skip(),
            Err(why) => rows.reject_apart(place, text, format!("the record is not of CloudWatch Logs: {why}")),
        }
        true
    }
}

impl Records for LogEvents<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        loop {
            while self.event(rows)? || self.envelope(rows) {
                if rows.is_full() {
                    return Ok(true);
                }
            }
            let Some((record, behind)) = self.left.split_first() else { return Ok(false) };
            self.left = behind;
            match unpacked(&record.data) {
                Ok(text) => self.open = Some(Open::new(Some(record), text)),
                Err(why) => rows.reject_apart(Place::Record(record), &record.data, why),
            }
        }
    }
}

impl<'a> Open<'a> {
    fn new(record: Option<&'a Record>, text: Cow<'a, [u8]>) -> Self {
        Self { record, offset: 0, text, at: 0, found: 0, envelope: None }
    }

    fn place(&self) -> Place<'a> {
        self.record.map_or(Place::Offset(self.offset + self.at as u64), Place::Record)
    }
}

impl OpenEnvelope {
    /// Opens an envelope; nothing if it is one that holds no events.
    fn new(plan: &Plan, envelope: &Envelope<'_>) -> Result<Option<Self>, String> {
        match envelope.message_type {
            Some("\"DATA_MESSAGE\"") => {}
            Some("\"CONTROL_MESSAGE\"") => return Ok(None),
            other => return Err(format!("its messageType is {}", other.unwrap_or("missing"))),
        }
        let events = envelope.log_events.filter(|events| events.starts_with('['));
        let events = events.ok_or("it has no logEvents")?.to_owned();
        let (mut columns, mut around) = (b"{".to_vec(), b"{\"messageType\":\"DATA_MESSAGE\"".to_vec());
        for (column, name, value) in envelope.fields {
            let Some(value) = value else { continue };
            push_field(&mut around, name, value);
            if is_declared(plan, column) {
                push_field(&mut columns, column, value);
            }
        }
        around.extend_from_slice(b",\"logEvents\":[");
        Ok(Some(Self { events, next: 1, columns, around }))
    }

    /// Gives the next event. The array has been read as JSON before.
    fn next_event(&mut self) -> Option<Range<usize>> {
        let mut cursor = Cursor::new(self.events.as_bytes());
        cursor.move_to(self.next);
        cursor.take(b',');
        cursor.skip_space();
        if cursor.peek() == Some(b']') {
            return None;
        }
        let start = cursor.at();
        cursor.skip_value(0).ok()?;
        let end = cursor.at();
        cursor.skip_space();
        self.next = cursor.at();
        Some(start..end)
    }
}

/// Appends an event's fields to the object that is open in `out`, and closes it.
fn write_event(text: &[u8], plan: &Plan, message_is_json: bool, out: &mut Vec<u8>) -> Result<(), String> {
    let (mut message, mut time) = (None, None);
    for_each_field(text, |name, value| match name {
        "message" => message = Some(value),
        "timestamp" => time = Some(value),
        "id" if is_declared(plan, "id") => push_field(out, "id", value),
        "extractedFields" if is_declared(plan, "extracted_fields") => push_field(out, "extracted_fields", value),
        _ => {}
    })
    .map_err(|why| format!("it is no log event: {why}"))?;
    if let Some(time) = time.filter(|_| is_declared(plan, "timestamp")) {
        let read = time.parse().ok().and_then(DateTime::from_timestamp_millis);
        let read = read.map(|time| format!("\"{}\"", time.to_rfc3339_opts(SecondsFormat::Millis, true)));
        push_field(out, "timestamp", read.as_deref().unwrap_or(time));
    }
    if let Some(message) = message.filter(|_| is_declared(plan, "message")) {
        if message_is_json {
            let inner: String = serde_json::from_str(message).map_err(|_| "column \"message\": it is not a text")?;
            // It must be one value, so that it cannot close the document around it.
            serde_json::from_str::<IgnoredAny>(&inner)
                .map_err(|e| format!("column \"message\": it is not JSON: {e}"))?;
            push_field(out, "message", inner.trim());
        } else {
            push_field(out, "message", message);
        }
    }
    out.push(b'}');
    Ok(())
}

fn is_declared(plan: &Plan, column: &str) -> bool {
    plan.names.find(column.as_bytes(), 0).is_some()
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &str) {
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(format!("\"{name}\":{value}").as_bytes());
}

/// Unpacks a record, if it is packed.
fn unpacked(data: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !data.starts_with(&[0x1f, 0x8b]) {
        return Ok(Cow::Borrowed(data));
    }
    let mut text = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(data).take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut text);
    match read {
        Err(e) => Err(format!("the record is broken gzip: {e}")),
        Ok(len) if len as u64 > UNPACKED_BYTES_MAX => {
            Err(format!("the record unpacks to more than {UNPACKED_BYTES_MAX} bytes"))
        }
        Ok(_) => Ok(Cow::Owned(text)),
    }
}

#[cfg(test)]
mod tests;
