//! A message as JSON, by its descriptor (protobuf.dev, "ProtoJSON Format"), with the names that the `.proto` file has and
//! with 64-bit numbers as numbers.

use chrono::{DateTime, SecondsFormat};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::wire::{Wire, fields, take};
use crate::decode::base64;
use crate::decode::json::DEPTH_MAX;
use crate::decode::names::Names;

/// What the record's message is read for.
pub(super) struct Wanted<'a> {
    /// The declared columns: a field that is not among them and has its default is left out.
    pub(super) names: &'a Names,
    /// Most bytes of JSON.
    pub(super) json_bytes_max: usize,
}

/// Messages that ProtoJSON writes in a form of their own.
pub(super) enum WellKnown {
    Timestamp,
    Duration,
    Wrapper,
    Struct,
    Value,
    List,
}

impl WellKnown {
    pub(super) fn of(message: &MessageDescriptor) -> Option<Self> {
        Some(match message.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => WellKnown::Timestamp,
            "Duration" => WellKnown::Duration,
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue" => WellKnown::Wrapper,
            "Struct" => WellKnown::Struct,
            "Value" => WellKnown::Value,
            "ListValue" => WellKnown::List,
            _ => return None,
        })
    }
}

/// Writes the message of a record to `out`, which is empty.
pub(super) fn write_message(
    message: &MessageDescriptor,
    bytes: &[u8],
    out: &mut Vec<u8>,
    wanted: &Wanted<'_>,
) -> Result<(), String> {
    let mut writer = Writer { out, json_bytes_max: wanted.json_bytes_max };
    let written = writer.object(message, bytes, 0, Some(wanted.names));
    written.map_err(|why| format!("the record is no message {}: {why}", message.full_name()))
}

struct Writer<'o> {
    out: &'o mut Vec<u8>,
    json_bytes_max: usize,
}

impl Writer<'_> {
    fn object(
        &mut self,
        message: &MessageDescriptor,
        bytes: &[u8],
        depth: usize,
        wanted: Option<&Names>,
    ) -> Result<(), String> {
        if depth >= DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep"));
        }
        let found = fields(bytes)?;
        self.out.push(b'{');
        let start = self.out.len();
        for same in found.chunk_by(|a, b| a.0 == b.0) {
            let Some((number, _)) = same.first() else { continue };
            self.check_size()?;
            match message.get_field(*number) {
                Some(field) => {
                    self.key(start, field.name());
                    self.field(&field, same, depth).map_err(|why| format!("field {}: {why}", field.name()))?;
                }
                // The descriptor is older than the record.
                None => {
                    self.key(start, &number.to_string());
                    self.unknown(same);
                }
            }
        }
        for field in message.fields().filter(|field| !field.supports_presence()) {
            let is_there = found.binary_search_by_key(&field.number(), |(number, _)| *number).is_ok();
            if !is_there && wanted.is_none_or(|names| names.find(field.name().as_bytes(), 0).is_some()) {
                self.key(start, field.name());
                self.default(&field);
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn key(&mut self, start: usize, name: &str) {
        if self.out.len() > start {
            self.out.push(b',');
        }
        self.write(name);
        self.out.push(b':');
    }

    /// Writes what is meant by a field that is not there and cannot be missing.
    fn default(&mut self, field: &FieldDescriptor) {
        let text: &[u8] = match field.kind() {
            _ if field.is_map() => b"{}",
            _ if field.is_list() => b"[]",
            Kind::Bool => b"false",
            Kind::String | Kind::Bytes => b"\"\"",
            Kind::Enum(of) => return self.write(of.default_value().name()),
            Kind::Message(_) => b"null",
            _ => b"0",
        };
        self.out.extend_from_slice(text);
    }

    fn unknown(&mut self, values: &[(u32, Wire<'_>)]) {
        if values.len() > 1 {
            self.out.push(b'[');
        }
        for (index, (_, value)) in values.iter().enumerate() {
            self.out.extend_from_slice(if index > 0 { b"," } else { b"" });
            match value {
                Wire::Varint(number) | Wire::Fixed64(number) => self.write(number),
                Wire::Fixed32(number) => self.write(number),
                Wire::Bytes(bytes) => self.base64(bytes),
            }
        }
        if values.len() > 1 {
            self.out.push(b']');
        }
    }

    fn field(&mut self, field: &FieldDescriptor, values: &[(u32, Wire<'_>)], depth: usize) -> Result<(), String> {
        let kind = field.kind();
        if field.is_map() {
            return self.map(&kind, values, depth);
        }
        if field.is_list() {
            return self.list(&kind, values, depth);
        }
        match (&kind, values) {
            // Of a message that comes several times, all parts count, and are read as one.
            (Kind::Message(message), [_, _, ..]) => {
                let mut joined = Vec::new();
                for (_, value) in values {
                    joined.extend_from_slice(bytes_of(value)?);
                }
                self.message(message, &joined, depth)
            }
            (_, values) => {
                let Some((_, value)) = values.last() else { return Ok(()) };
                self.value(&kind, value, depth)
            }
        }
    }

    fn list(&mut self, kind: &Kind, values: &[(u32, Wire<'_>)], depth: usize) -> Result<(), String> {
        self.out.push(b'[');
        let start = self.out.len();
        for (_, value) in values {
            match (value, packed_wire_type(kind)) {
                (Wire::Bytes(packed), Some(wire_type)) => {
                    let mut left = *packed;
                    while !left.is_empty() {
                        self.comma(start);
                        let value = take(&mut left, wire_type)?;
                        self.value(kind, &value, depth)?;
                    }
                }
                (value, _) => {
                    self.comma(start);
                    self.value(kind, value, depth)?;
                }
            }
            self.check_size()?;
        }
        self.out.push(b']');
        Ok(())
    }

    /// Writes a map, which is a list of entries; of a key that comes twice, the reader of the JSON takes the last.
    fn map(&mut self, kind: &Kind, values: &[(u32, Wire<'_>)], depth: usize) -> Result<(), String> {
        let Kind::Message(entry) = kind else { return Err("it is a map without entries".into()) };
        let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        self.out.push(b'{');
        let start = self.out.len();
        for (_, value) in values {
            let parts = fields(bytes_of(value)?)?;
            let part = |number| parts.iter().rfind(|(found, _)| *found == number).map(|(_, value)| value);
            self.comma(start);
            let is_text = matches!(key_field.kind(), Kind::String);
            self.out.extend_from_slice(if is_text { b"" } else { b"\"" });
            match part(1) {
                Some(key) => self.value(&key_field.kind(), key, depth)?,
                None => self.default_value(&key_field.kind(), depth)?,
            }
            self.out.extend_from_slice(if is_text { b":" } else { b"\":" });
            match part(2) {
                Some(value) => self.value(&value_field.kind(), value, depth)?,
                None => self.default_value(&value_field.kind(), depth)?,
            }
            self.check_size()?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn default_value(&mut self, kind: &Kind, depth: usize) -> Result<(), String> {
        let empty = match kind {
            Kind::String | Kind::Bytes | Kind::Message(_) => Wire::Bytes(&[]),
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Wire::Fixed64(0),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Wire::Fixed32(0),
            _ => Wire::Varint(0),
        };
        self.value(kind, &empty, depth)
    }

    fn value(&mut self, kind: &Kind, value: &Wire<'_>, depth: usize) -> Result<(), String> {
        match (kind, value) {
            (Kind::Double, Wire::Fixed64(bits)) => self.float(f64::from_bits(*bits)),
            (Kind::Float, Wire::Fixed32(bits)) => match f32::from_bits(*bits) {
                finite if finite.is_finite() => self.write(&finite),
                other => self.float(other.into()),
            },
            (Kind::Int64, Wire::Varint(bits)) | (Kind::Sfixed64, Wire::Fixed64(bits)) => {
                self.write(&bits.cast_signed())
            }
            (Kind::Uint64, Wire::Varint(bits)) | (Kind::Fixed64, Wire::Fixed64(bits)) => self.write(bits),
            // A negative number comes with 64 bits; the low ones count.
            (Kind::Int32, Wire::Varint(bits)) => self.write(&low(*bits).cast_signed()),
            (Kind::Uint32, Wire::Varint(bits)) => self.write(&low(*bits)),
            (Kind::Sint32, Wire::Varint(bits)) => {
                let bits = low(*bits);
                self.write(&((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed()));
            }
            (Kind::Sint64, Wire::Varint(bits)) => {
                self.write(&((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed()));
            }
            (Kind::Fixed32, Wire::Fixed32(bits)) => self.write(bits),
            (Kind::Sfixed32, Wire::Fixed32(bits)) => self.write(&bits.cast_signed()),
            (Kind::Bool, Wire::Varint(bits)) => self.write(&(*bits != 0)),
            (Kind::Enum(of), Wire::Varint(bits)) => {
                let number = low(*bits).cast_signed();
                match of.get_value(number) {
                    Some(value) => self.write(value.name()),
                    None => self.write(&number),
                }
            }
            (Kind::String, Wire::Bytes(bytes)) => {
                self.write(std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?);
            }
            (Kind::Bytes, Wire::Bytes(bytes)) => self.base64(bytes),
            (Kind::Message(message), Wire::Bytes(bytes)) => self.message(message, bytes, depth)?,
            (kind, _) => return Err(format!("its value has the wire type of another kind than {kind:?}")),
        }
        Ok(())
    }

    fn message(&mut self, message: &MessageDescriptor, bytes: &[u8], depth: usize) -> Result<(), String> {
        if depth >= DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep"));
        }
        match WellKnown::of(message) {
            None => self.object(message, bytes, depth + 1, None)?,
            Some(WellKnown::Timestamp) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                let time = u32::try_from(nanos).ok().and_then(|nanos| DateTime::from_timestamp(seconds, nanos));
                let time = time.ok_or_else(|| format!("{seconds} s and {nanos} ns from 1970 are no time"))?;
                self.write(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true));
            }
            Some(WellKnown::Duration) => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
                let (whole, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
                let behind = match nanos {
                    0 => String::new(),
                    _ if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
                    _ if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
                    _ => format!(".{nanos:09}"),
                };
                self.write(&format!("{sign}{whole}{behind}s"));
            }
            Some(WellKnown::Wrapper) => {
                let found = fields(bytes)?;
                let kind = message.get_field(1).map(|field| field.kind()).ok_or("its descriptor has no value")?;
                match found.iter().rfind(|(number, _)| *number == 1) {
                    Some((_, value)) => self.value(&kind, value, depth)?,
                    None => self.default_value(&kind, depth)?,
                }
            }
            Some(WellKnown::Struct | WellKnown::List) => {
                let found = fields(bytes)?;
                let field = message.get_field(1).ok_or("its descriptor has no fields")?;
                if found.is_empty() {
                    self.default(&field);
                } else {
                    self.field(&field, &found, depth + 1)?;
                }
            }
            Some(WellKnown::Value) => match fields(bytes)?.last() {
                Some((number, value)) if *number > 1 => {
                    let kind = message.get_field(*number).map(|field| field.kind()).ok_or("it has no such kind")?;
                    self.value(&kind, value, depth + 1)?;
                }
                _ => self.out.extend_from_slice(b"null"),
            },
        }
        Ok(())
    }

    fn comma(&mut self, start: usize) {
        if self.out.len() > start {
            self.out.push(b',');
        }
    }

    fn check_size(&self) -> Result<(), String> {
        let max = self.json_bytes_max;
        if self.out.len() > max { Err(format!("as JSON it has more than {max} bytes")) } else { Ok(()) }
    }

    fn float(&mut self, value: f64) {
        if value.is_finite() { self.write(&value) } else { self.write(&value.to_string()) }
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        base64::encode(bytes, self.out);
        self.out.push(b'"');
    }

    fn write<T: serde::Serialize + ?Sized>(&mut self, value: &T) {
        serde_json::to_writer(&mut *self.out, value).expect("numbers and texts can be written to memory");
    }
}

/// Gives the wire type of the items of a packed list; nothing for kinds that are not packed.
fn packed_wire_type(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => None,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Some(1),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Some(5),
        _ => Some(0),
    }
}

fn bytes_of<'a>(value: &Wire<'a>) -> Result<&'a [u8], String> {
    match value {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err("its value has the wire type of another kind".into()),
    }
}

fn low(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default()
}

/// Reads the two numbers of a `Timestamp` or `Duration`.
fn seconds_and_nanos(bytes: &[u8]) -> Result<(i64, i32), String> {
    let (mut seconds, mut nanos) = (0, 0);
    for (number, value) in fields(bytes)? {
        match (number, value) {
            (1, Wire::Varint(bits)) => seconds = bits.cast_signed(),
            (2, Wire::Varint(bits)) => nanos = low(bits).cast_signed(),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}
