//! Avro's binary encoding (Avro 1.12, "Binary Encoding"), written as JSON.

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, TimeDelta};

use super::schema::{AvroSchema, Type};
use crate::avro::number;
use crate::decode::base64;
use crate::decode::json::DEPTH_MAX;

/// Items of an array whose items have no bytes: what bytes cannot bound has to be bounded.
const EMPTY_ITEMS_MAX: u64 = 1024;

/// Why a datum cannot be written as JSON.
pub(super) enum Failure {
    /// Its bytes are none of the schema, so what is behind it cannot be found.
    Broken(String),
    /// A value of it is none, such as a date in a year that no calendar has.
    Value(String),
}

/// Writes the datums that some bytes begin with.
pub(super) struct Datums<'a> {
    pub(super) schema: &'a AvroSchema,
    /// What is behind the last datum.
    pub(super) left: &'a [u8],
    /// Most bytes of JSON.
    pub(super) json_bytes_max: usize,
    /// The first value that is none.
    odd: Option<String>,
}

impl<'a> Datums<'a> {
    pub(super) fn new(schema: &'a AvroSchema, bytes: &'a [u8], json_bytes_max: usize) -> Self {
        Self { schema, left: bytes, json_bytes_max, odd: None }
    }

    /// Writes the next datum to `out`, which is empty; after a value that is none, the next datum can still be written.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        self.value(0, out, 0).map_err(|why| Failure::Broken(format!("the record is not of the schema: {why}")))?;
        self.odd.take().map_or(Ok(()), |why| Err(Failure::Value(why)))
    }

    /// Writes the next value, of one of the schema's types.
    pub(super) fn value(&mut self, at: usize, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if depth >= DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep"));
        }
        if out.len() > self.json_bytes_max {
            return Err(format!("as JSON it has more than {} bytes", self.json_bytes_max));
        }
        let schema = self.schema;
        match schema.get(at) {
            Type::Null => out.extend_from_slice(b"null"),
            Type::Boolean => match self.take(1)? {
                [0] => out.extend_from_slice(b"false"),
                [1] => out.extend_from_slice(b"true"),
                _ => return Err("a truth value is neither 0 nor 1".into()),
            },
            Type::Integer => write(out, &self.number()?),
            Type::Float => match f32::from_le_bytes(self.array()?) {
                finite if finite.is_finite() => write(out, &finite),
                other => write(out, &other.to_string()),
            },
            Type::Double => match f64::from_le_bytes(self.array()?) {
                finite if finite.is_finite() => write(out, &finite),
                other => write(out, &other.to_string()),
            },
            Type::Bytes => write_base64(out, self.bytes()?),
            Type::Text => {
                let text = std::str::from_utf8(self.bytes()?).map_err(|_| "a string is not UTF-8")?;
                write(out, &text);
            }
            Type::Fixed(size) => write_base64(out, self.take(*size)?),
            Type::Symbols(symbols) => {
                let symbol = usize::try_from(self.number()?).ok().and_then(|number| symbols.get(number));
                out.extend_from_slice(symbol.ok_or("an enum has no such symbol")?.as_bytes());
            }
            Type::Array(item) => self.items(*item, out, depth, false)?,
            Type::Map(value) => self.items(*value, out, depth, true)?,
            Type::Union(branches) => {
                let branch = usize::try_from(self.number()?).ok().and_then(|number| branches.get(number));
                self.value(*branch.ok_or("a union has no such branch")?, out, depth + 1)?;
            }
            Type::Record(fields) => {
                out.push(b'{');
                for (index, (name, field)) in fields.iter().enumerate() {
                    out.extend_from_slice(if index > 0 { b",\"" } else { b"\"" });
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b"\":");
                    self.value(*field, out, depth + 1).map_err(|why| within(name, why))?;
                }
                out.push(b'}');
            }
            Type::Constant(json) => out.extend_from_slice(json.as_bytes()),
            logical => self.logical(logical, out)?,
        }
        Ok(())
    }

    /// Writes the items of an array, or the entries of a map.
    fn items(&mut self, item: usize, out: &mut Vec<u8>, depth: usize, keyed: bool) -> Result<(), String> {
        out.push(if keyed { b'{' } else { b'[' });
        let mut empty_left = EMPTY_ITEMS_MAX;
        let mut first = true;
        loop {
            let count = self.number()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                self.number()?;
            }
            let count = count.unsigned_abs();
            if !keyed && self.schema.may_be_empty(item) {
                let left = empty_left.checked_sub(count);
                empty_left = left.ok_or_else(|| format!("an array has more than {EMPTY_ITEMS_MAX} empty items"))?;
            } else if count > self.left.len() as u64 {
                return Err(format!("{count} items do not fit into {} bytes", self.left.len()));
            }
            for _ in 0..count {
                out.extend_from_slice(if first { b"" } else { b"," });
                first = false;
                if keyed {
                    let key = std::str::from_utf8(self.bytes()?).map_err(|_| "a key is not UTF-8")?;
                    write(out, &key);
                    out.push(b':');
                }
                self.value(item, out, depth + 1)?;
            }
        }
        out.push(if keyed { b'}' } else { b']' });
        Ok(())
    }

    fn logical(&mut self, of: &Type, out: &mut Vec<u8>) -> Result<(), String> {
        let (text, odd) = match of {
            Type::Date => {
                let days = self.number()?;
                let epoch = NaiveDate::default();
                let date = TimeDelta::try_days(days).and_then(|days| epoch.checked_add_signed(days));
                (date.map(|date| date.to_string()), format!("{days} days from 1970 are no date"))
            }
            Type::Time(per_second) => {
                let count = self.number()?;
                let time = parts(count, *per_second);
                let time = time.and_then(|(seconds, nanos)| {
                    NaiveTime::from_num_seconds_from_midnight_opt(u32::try_from(seconds).ok()?, nanos)
                });
                (time.map(|time| time.to_string()), format!("{count} of {per_second} a second are no time of a day"))
            }
            Type::Timestamp { per_second, utc } => {
                let count = self.number()?;
                let time =
                    parts(count, *per_second).and_then(|(seconds, nanos)| DateTime::from_timestamp(seconds, nanos));
                let text = time.map(|time| match utc {
                    true => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
                    false => time.naive_utc().format("%Y-%m-%dT%H:%M:%S%.f").to_string(),
                });
                (text, format!("{count} of {per_second} a second from 1970 are no time"))
            }
            Type::Decimal { scale, fixed, .. } => {
                let bytes = match fixed {
                    Some(size) => self.take(*size)?,
                    None => self.bytes()?,
                };
                match decimal(bytes, *scale) {
                    Some(text) => out.extend_from_slice(text.as_bytes()),
                    None => self.odd(out, format!("a decimal of {} bytes has more than 38 digits", bytes.len())),
                }
                return Ok(());
            }
            Type::Uuid => {
                let hex: String = self.take(16)?.iter().map(|byte| format!("{byte:02x}")).collect();
                let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|group| hex.get(group).unwrap_or_default());
                (Some(groups.join("-")), String::new())
            }
            _ => {
                let mut part = || Ok::<_, String>(u32::from_le_bytes(self.array()?));
                let (months, days, ms) = (part()?, part()?, part()?);
                let text = format!("{{\"months\":{months},\"days\":{days},\"milliseconds\":{ms}}}");
                out.extend_from_slice(text.as_bytes());
                return Ok(());
            }
        };
        match text {
            Some(text) => write(out, &text),
            None => self.odd(out, odd),
        }
        Ok(())
    }

    fn odd(&mut self, out: &mut Vec<u8>, why: String) {
        out.extend_from_slice(b"null");
        self.odd.get_or_insert(why);
    }

    fn number(&mut self) -> Result<i64, String> {
        match number(self.left) {
            Ok(Some((found, len))) => {
                self.left = self.left.get(len..).unwrap_or_default();
                Ok(found)
            }
            Ok(None) => Err("it ends within a number".into()),
            Err(_) => Err("a number has more than 64 bits".into()),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = self.number()?;
        let len = usize::try_from(len).map_err(|_| format!("a length is {len}"))?;
        self.take(len)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, left) = self
            .left
            .split_at_checked(len)
            .ok_or_else(|| format!("{len} bytes are said to come, and {} are left", self.left.len()))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], String> {
        self.take(LEN)?.try_into().map_err(|_| "it ends too early".into())
    }
}

/// Names the field that a reason is about.
fn within(name: &str, why: String) -> String {
    match why.strip_prefix("field ") {
        Some(inner) => format!("field {name}.{inner}"),
        None => format!("field {name}: {why}"),
    }
}

/// Splits a count into seconds and nanoseconds.
fn parts(count: i64, per_second: u32) -> Option<(i64, u32)> {
    let (seconds, rest) = (count.div_euclid(per_second.into()), count.rem_euclid(per_second.into()));
    Some((seconds, u32::try_from(rest * (1_000_000_000 / i64::from(per_second))).ok()?))
}

/// Writes an unscaled number of two's complement as a decimal number.
fn decimal(bytes: &[u8], scale: u32) -> Option<String> {
    const WIDTH: usize = size_of::<i128>();
    let fill = if bytes.first().is_some_and(|first| first & 0x80 != 0) { 0xff } else { 0 };
    let (rest, low) = bytes.split_at(bytes.len().saturating_sub(WIDTH));
    let mut wide = [fill; WIDTH];
    wide.get_mut(WIDTH - low.len()..)?.copy_from_slice(low);
    let value = i128::from_be_bytes(wide);
    let fits = rest.iter().all(|byte| *byte == fill) && (rest.is_empty() || value.is_negative() == (fill != 0));
    let digits = format!("{:0>1$}", value.unsigned_abs(), usize::try_from(scale).ok()? + 1);
    let (whole, behind) = digits.split_at(digits.len() - usize::try_from(scale).ok()?);
    let sign = if value.is_negative() { "-" } else { "" };
    let point = if behind.is_empty() { "" } else { "." };
    fits.then(|| format!("{sign}{whole}{point}{behind}"))
}

fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("numbers and texts can be written to memory");
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    base64::encode(bytes, out);
    out.push(b'"');
}
