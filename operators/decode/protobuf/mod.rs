//! Protocol Buffers: messages of a type that a descriptor file describes, one a record or one behind the other.
//!
//! A message is written as JSON by its descriptor, and then fitted to the declared columns by name, as a JSON document
//! is (docs/decisions/0024).

mod message;
mod wire;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

use self::message::{Wanted, WellKnown, write_message};
use self::wire::varint;
use super::avro::{COLUMN_DEPTH_MAX, JSON_FACTOR, SHAPE_FIELDS_MAX};
use super::column::json_field;
use super::json;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::Plan;
use super::steps::Records;
use crate::batch::{Chunk, Payload, Record, timestamp_type};
use crate::contained::contained;
use crate::error::{Error, Result};

/// A type of messages, by its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtobufMessage(MessageDescriptor);

impl ProtobufMessage {
    /// Finds a message, by its full name, in a descriptor set as `protoc --descriptor_set_out --include_imports` writes
    /// it; says (kind `Config`) what is wrong.
    pub fn find(descriptors: &[u8], name: &str) -> Result<Self> {
        let pool = contained(|| DescriptorPool::decode(descriptors))
            .ok_or_else(|| Error::config("the descriptor file is broken"))?
            .map_err(|e| {
                let hint = "write it with `protoc --include_imports --descriptor_set_out=FILE`";
                Error::config(format!("the descriptor file cannot be used; {hint}")).because(e)
            })?;
        let found = pool.get_message_by_name(name.trim_start_matches('.'));
        found.map(Self).ok_or_else(|| {
            let own = pool.all_messages().filter(|message| !message.full_name().starts_with("google.protobuf."));
            let known: Vec<String> = own.take(10).map(|message| message.full_name().to_owned()).collect();
            Error::config(format!("the descriptor file has no message `{name}`; it has `{}`", known.join("`, `")))
        })
    }

    /// Gives the columns that the message asks for.
    pub fn columns(&self) -> Vec<Field> {
        let mut shape = Shape { within: vec![self.0.clone()], left: SHAPE_FIELDS_MAX };
        self.0.fields().map(|field| shape.column(&field)).collect()
    }
}

/// Makes columns of fields.
struct Shape {
    /// The messages that a field stands in: one that stands in itself is JSON.
    within: Vec<MessageDescriptor>,
    /// How many fields may still be made, over all levels.
    left: usize,
}

impl Shape {
    fn column(&mut self, field: &FieldDescriptor) -> Field {
        self.left = self.left.saturating_sub(1);
        match self.data_type(field) {
            Some(data_type) => Field::new(field.name(), data_type, true),
            None => json_field(field.name()),
        }
    }

    /// Gives the type of a column; nothing if only JSON holds all values.
    fn data_type(&mut self, field: &FieldDescriptor) -> Option<DataType> {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return None };
            let key = Field::new("key", DataType::Utf8View, false);
            let entries = Fields::from(vec![key, self.column(&entry.map_entry_value_field())]);
            return Some(DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false));
        }
        let plain = self.kind_type(&field.kind())?;
        Some(if field.is_list() { DataType::List(Arc::new(Field::new_list_field(plain, true))) } else { plain })
    }

    fn kind_type(&mut self, kind: &Kind) -> Option<DataType> {
        Some(match kind {
            Kind::Double => DataType::Float64,
            Kind::Float => DataType::Float32,
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => DataType::Int32,
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => DataType::Int64,
            Kind::Uint32 | Kind::Fixed32 => DataType::UInt32,
            Kind::Uint64 | Kind::Fixed64 => DataType::UInt64,
            Kind::Bool => DataType::Boolean,
            Kind::String | Kind::Enum(_) => DataType::Utf8View,
            Kind::Bytes => DataType::BinaryView,
            Kind::Message(message) => match WellKnown::of(message) {
                Some(WellKnown::Timestamp) => timestamp_type(),
                Some(WellKnown::Duration) => DataType::Utf8View,
                Some(WellKnown::Wrapper) => self.kind_type(&message.get_field(1)?.kind())?,
                Some(WellKnown::Struct | WellKnown::Value | WellKnown::List) => return None,
                None => return self.nested(message),
            },
        })
    }

    fn nested(&mut self, message: &MessageDescriptor) -> Option<DataType> {
        let too_deep = self.within.len() > COLUMN_DEPTH_MAX || self.within.contains(message);
        if too_deep || self.left == 0 || message.fields().len() == 0 {
            return None;
        }
        self.within.push(message.clone());
        let fields = message.fields().map(|field| self.column(&field)).collect();
        self.within.pop();
        Some(DataType::Struct(fields))
    }
}

/// The messages of a chunk.
pub(super) struct Messages<'a> {
    plan: &'a Plan,
    message: &'a MessageDescriptor,
    delimited: bool,
    left: &'a [Record],
    /// The record or content that is open, and its place.
    open: Option<(Origin<'a>, &'a [u8])>,
    json: Vec<u8>,
}

/// Where an open stretch of bytes stands.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Content { offset: u64 },
    Record(&'a Record),
}

impl<'a> Messages<'a> {
    pub(super) fn of(plan: &'a Plan, message: &'a ProtobufMessage, delimited: bool, chunk: &'a Chunk) -> Self {
        let (left, open) = match &chunk.payload {
            Payload::Framed { offset, bytes, .. } => {
                (&[][..], Some((Origin::Content { offset: *offset }, bytes.as_ref())))
            }
            Payload::Records(records) => (records.as_slice(), None),
            Payload::RowGroup(_) | Payload::Batch { .. } => (&[][..], None),
        };
        Self { plan, message: &message.0, delimited, left, open, json: Vec::new() }
    }

    /// Decodes one message; `raw` is it with its length, if it has one before it.
    fn message(&mut self, rows: &mut Rows<'_>, place: Place<'_>, raw: &[u8], framed: bool) -> Result<()> {
        if rows.is_too_long(raw.len()) {
            rows.reject_too_long(place, raw);
            return Ok(());
        }
        let bytes = if framed { split(raw).map(|(head, _)| raw.get(head..).unwrap_or_default()) } else { Some(raw) };
        self.json.clear();
        let wanted = Wanted {
            names: &self.plan.names,
            json_bytes_max: self.plan.settings.record_bytes_max.saturating_mul(JSON_FACTOR),
        };
        let written = match bytes {
            Some(bytes) => write_message(self.message, bytes, &mut self.json, &wanted),
            None => Err("the record ends within the message whose length it begins with".into()),
        };
        match written.and_then(|()| json::decode_document(rows, self.plan, &self.json)) {
            Ok(()) => rows.keep(place, raw)?,
            Err(reason) if bytes.is_some() => rows.reject(place, raw, reason),
            Err(reason) => rows.reject_apart(place, raw, reason),
        }
        Ok(())
    }
}

/// Splits off a message with its length before it; gives the length of that and of both, or nothing if it is cut off.
fn split(bytes: &[u8]) -> Option<(usize, usize)> {
    let (len, head) = varint(bytes)?;
    let whole = head.checked_add(usize::try_from(len).ok()?)?;
    (whole <= bytes.len()).then_some((head, whole))
}

impl Records for Messages<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        loop {
            while let Some((origin, bytes)) = self.open.take() {
                let whole = split(bytes).map_or(bytes.len(), |(_, whole)| whole);
                let (raw, behind) = bytes.split_at(whole);
                let (place, next) = match origin {
                    Origin::Content { offset } => {
                        (Place::Offset(offset), Origin::Content { offset: offset + whole as u64 })
                    }
                    Origin::Record(record) => (Place::Record(record), origin),
                };
                self.message(rows, place, raw, true)?;
                self.open = (!behind.is_empty()).then_some((next, behind));
                if rows.is_full() {
                    return Ok(true);
                }
            }
            let Some((record, behind)) = self.left.split_first() else { return Ok(false) };
            self.left = behind;
            if self.delimited && !record.data.is_empty() {
                self.open = Some((Origin::Record(record), &record.data));
            } else {
                self.message(rows, Place::Record(record), &record.data, self.delimited)?;
            }
            if rows.is_full() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests;
