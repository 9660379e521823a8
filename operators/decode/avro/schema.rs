//! Avro schemas (Avro 1.12, "Schema Declaration"): parsed once, into types that refer to one another by number, so that
//! one may hold itself.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use serde_json::{Map, Value};

use crate::batch::timestamp_type;
use crate::decode::column::json_field;
use crate::error::{Error, Result};

/// Types of a schema: each of some ten thousand columns has one.
const TYPES_MAX: usize = 100_000;

/// How deep in types a column goes that is made of a schema; what is deeper is JSON.
pub(in crate::decode) const COLUMN_DEPTH_MAX: usize = 8;

/// Fields of such columns, over all levels: types that are used in many places multiply. What comes behind is JSON.
pub(in crate::decode) const SHAPE_FIELDS_MAX: usize = 10_000;

/// Digits of the widest decimal column.
const DECIMAL_DIGITS_MAX: u64 = 38;

/// A type, and what it is made of by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Null,
    Boolean,
    /// `int` and `long`.
    Integer,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    /// The symbols as JSON texts.
    Symbols(Vec<String>),
    Array(usize),
    Map(usize),
    Union(Vec<usize>),
    /// Names and types of the fields.
    Record(Vec<(String, usize)>),
    Date,
    /// How many make a second.
    Time(u32),
    /// How many make a second, and whether they count from a moment or from a local midnight.
    Timestamp {
        per_second: u32,
        utc: bool,
    },
    /// Digits in all and behind the point; the length where it is fixed.
    Decimal {
        precision: u64,
        scale: u32,
        fixed: Option<usize>,
    },
    /// A UUID in 16 bytes.
    Uuid,
    /// Months, days and milliseconds in 12 bytes.
    Duration,
    /// A value that takes no bytes, as JSON: what a newer schema has for a field that records do not.
    Constant(String),
}

/// What a schema says of a field to those who read records of older ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Names that the field had.
    pub(super) aliases: Vec<String>,
    /// Its value where records have none.
    pub(super) default: Option<Value>,
}

/// A schema of records, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvroSchema {
    pub(super) types: Vec<Type>,
    /// Which of them may have no bytes.
    pub(super) empty: Vec<bool>,
    /// What is said of fields, by the number of their record and their name.
    pub(super) notes: HashMap<(usize, String), Note>,
    /// Its fingerprint (CRC-64-AVRO), by which single objects name it.
    pub(in crate::decode) fingerprint: u64,
}

impl AvroSchema {
    /// Parses a schema of records; says (kind `Config`) what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::config(format!("the avro schema cannot be used: {why}"));
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("it is not JSON: {e}")))?;
        let mut parser =
            Parser { types: Vec::new(), named: HashMap::new(), notes: HashMap::new(), canonical: String::new() };
        let root = parser.read(&value, "").map_err(wrong)?;
        // The first type that is begun is the root.
        if root != 0 || !matches!(parser.types.first(), Some(Type::Record(_))) {
            return Err(wrong("it is not a record, whose fields could be columns".into()));
        }
        let Parser { types, notes, canonical, .. } = parser;
        Ok(Self { empty: empty_types(&types), types, notes, fingerprint: fingerprint(canonical.as_bytes()) })
    }

    pub(super) fn get(&self, at: usize) -> &Type {
        self.types.get(at).unwrap_or(&Type::Null)
    }

    /// Tells whether a value may have no bytes.
    pub(super) fn may_be_empty(&self, at: usize) -> bool {
        self.empty.get(at).copied().unwrap_or_default()
    }

    /// Gives the columns that the records ask for.
    pub fn columns(&self) -> Vec<Field> {
        let Type::Record(fields) = self.get(0) else { return Vec::new() };
        let mut shape = Shape { schema: self, within: vec![0], left: SHAPE_FIELDS_MAX };
        fields.iter().map(|(name, at)| shape.column(name, *at)).collect()
    }
}

/// Finds the types that may have no bytes. Types mostly refer to those behind them, or before them; in a schema that needs
/// more than these passes, one that is not found is taken for one with bytes.
fn empty_types(types: &[Type]) -> Vec<bool> {
    let mut empty = vec![false; types.len()];
    let orders: [Vec<usize>; 2] = [(0..types.len()).rev().collect(), (0..types.len()).collect()];
    for at in orders.iter().cycle().take(4).flatten() {
        let found = match types.get(*at) {
            Some(Type::Null | Type::Fixed(0) | Type::Decimal { fixed: Some(0), .. }) => true,
            Some(Type::Record(fields)) => {
                fields.iter().all(|(_, field)| empty.get(*field).copied().unwrap_or_default())
            }
            _ => false,
        };
        if let Some(place) = empty.get_mut(*at) {
            *place = found;
        }
    }
    empty
}

/// Makes columns of types.
struct Shape<'s> {
    schema: &'s AvroSchema,
    /// The records that the type stands in: one that stands in itself is JSON.
    within: Vec<usize>,
    /// How many fields may still be made, over all levels.
    left: usize,
}

impl Shape<'_> {
    fn column(&mut self, name: &str, at: usize) -> Field {
        self.left = self.left.saturating_sub(1);
        match self.data_type(at) {
            Some(data_type) => Field::new(name, data_type, true),
            None => json_field(name),
        }
    }

    /// Gives the type of a column; nothing if only JSON holds all values.
    fn data_type(&mut self, at: usize) -> Option<DataType> {
        let schema = self.schema;
        Some(match schema.get(at) {
            Type::Null | Type::Text | Type::Symbols(_) | Type::Uuid | Type::Constant(_) => DataType::Utf8View,
            Type::Boolean => DataType::Boolean,
            Type::Integer => DataType::Int64,
            Type::Float => DataType::Float32,
            Type::Double => DataType::Float64,
            Type::Bytes | Type::Fixed(_) => DataType::BinaryView,
            Type::Date => DataType::Date32,
            Type::Time(_) => DataType::Time64(TimeUnit::Microsecond),
            Type::Timestamp { .. } => timestamp_type(),
            Type::Decimal { precision, scale, .. } => match (u8::try_from(*precision), i8::try_from(*scale)) {
                (Ok(precision), Ok(scale)) if u64::from(precision) <= DECIMAL_DIGITS_MAX => {
                    DataType::Decimal128(precision, scale)
                }
                _ => DataType::Utf8View,
            },
            Type::Array(item) => self.nested(at, |shape| DataType::List(Arc::new(shape.column("item", *item))))?,
            Type::Map(value) => self.nested(at, |shape| {
                let key = Field::new("key", DataType::Utf8View, false);
                let entries = Fields::from(vec![key, shape.column("value", *value)]);
                DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
            })?,
            Type::Record(fields) if !fields.is_empty() => self.nested(at, |shape| {
                DataType::Struct(fields.iter().map(|(name, at)| shape.column(name, *at)).collect())
            })?,
            Type::Union(branches) => {
                let mut others = branches.iter().filter(|branch| *schema.get(**branch) != Type::Null);
                let one = others.next()?;
                return if others.next().is_none() { self.data_type(*one) } else { None };
            }
            Type::Record(_) | Type::Duration => return None,
        })
    }

    fn nested(&mut self, at: usize, make: impl FnOnce(&mut Self) -> DataType) -> Option<DataType> {
        if self.left == 0 || self.within.contains(&at) || self.within.len() > COLUMN_DEPTH_MAX {
            return None;
        }
        self.within.push(at);
        let made = make(self);
        self.within.pop();
        Some(made)
    }
}

/// Reads a schema, and writes its canonical form on the way ("Parsing Canonical Form").
struct Parser {
    types: Vec<Type>,
    /// Named types by their full names.
    named: HashMap<String, usize>,
    notes: HashMap<(usize, String), Note>,
    canonical: String,
}

impl Parser {
    fn read(&mut self, value: &Value, namespace: &str) -> Result<usize, String> {
        match value {
            Value::String(name) => self.name(name, namespace),
            Value::Array(branches) => {
                let at = self.begin()?;
                let mut numbers = Vec::with_capacity(branches.len());
                self.canonical.push('[');
                for (index, branch) in branches.iter().enumerate() {
                    self.canonical.push_str(if index > 0 { "," } else { "" });
                    numbers.push(self.read(branch, namespace)?);
                }
                self.canonical.push(']');
                self.end(at, Type::Union(numbers))
            }
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("{other} is no type")),
        }
    }

    /// Makes room for a type whose parts may refer to it.
    fn begin(&mut self) -> Result<usize, String> {
        if self.types.len() >= TYPES_MAX {
            return Err(format!("it has more than {TYPES_MAX} types"));
        }
        self.types.push(Type::Null);
        Ok(self.types.len() - 1)
    }

    fn end(&mut self, at: usize, of: Type) -> Result<usize, String> {
        if let Some(place) = self.types.get_mut(at) {
            *place = of;
        }
        Ok(at)
    }

    fn name(&mut self, name: &str, namespace: &str) -> Result<usize, String> {
        if let Some(primitive) = primitive(name) {
            self.canonical.push_str(&format!("\"{name}\""));
            let at = self.begin()?;
            return self.end(at, primitive);
        }
        let full = full_name(name, namespace);
        let known = self.named.get(&full).or_else(|| self.named.get(name)).copied();
        self.canonical.push_str(&format!("\"{full}\""));
        known.ok_or_else(|| format!("there is no type {name}"))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<usize, String> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(nested) => return self.read(nested, namespace),
            None => return Err("a type does not say its `type`".into()),
        };
        match kind {
            "array" | "map" => {
                let (key, at) = (if kind == "array" { "items" } else { "values" }, self.begin()?);
                let of = object.get(key).ok_or_else(|| format!("a type {kind} has no `{key}`"))?;
                self.canonical.push_str(&format!("{{\"type\":\"{kind}\",\"{key}\":"));
                let of = self.read(of, namespace)?;
                self.canonical.push('}');
                self.end(at, if kind == "array" { Type::Array(of) } else { Type::Map(of) })
            }
            "record" | "error" | "enum" | "fixed" => self.named(kind, object, namespace),
            other => {
                let at = self.name(other, namespace)?;
                let logical = self.types.get(at).and_then(|plain| logical(object, plain));
                match logical {
                    Some(logical) if primitive(other).is_some() => self.end(at, logical),
                    _ => Ok(at),
                }
            }
        }
    }

    fn named(&mut self, kind: &str, object: &Map<String, Value>, namespace: &str) -> Result<usize, String> {
        let name = object.get("name").and_then(Value::as_str).ok_or_else(|| format!("a type {kind} has no `name`"))?;
        let own = object.get("namespace").and_then(Value::as_str);
        let full = full_name(name, own.unwrap_or(namespace));
        let at = self.begin()?;
        if self.named.insert(full.clone(), at).is_some() {
            return Err(format!("type {full} is there twice"));
        }
        self.canonical.push_str(&format!("{{\"name\":\"{full}\",\"type\":\"{kind}\""));
        let read = match kind {
            "enum" => {
                let symbols = object.get("symbols").and_then(Value::as_array);
                let symbols = symbols.ok_or_else(|| format!("enum {full} has no `symbols`"))?;
                let texts: Vec<String> = symbols.iter().map(Value::to_string).collect();
                self.canonical.push_str(&format!(",\"symbols\":[{}]", texts.join(",")));
                Type::Symbols(texts)
            }
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or_else(|| format!("fixed {full} has no `size`"))?;
                self.canonical.push_str(&format!(",\"size\":{size}"));
                let plain = Type::Fixed(size);
                logical(object, &plain).unwrap_or(plain)
            }
            _ => {
                let inner = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
                let fields = object.get("fields").and_then(Value::as_array);
                let fields = fields.ok_or_else(|| format!("record {full} has no `fields`"))?;
                self.canonical.push_str(",\"fields\":[");
                let fields = fields.iter().enumerate().map(|(index, field)| self.field(index, field, &inner));
                let fields = fields.collect::<Result<Vec<_>, _>>()?;
                for (name, _, note) in &fields {
                    self.notes.insert((at, name.clone()), note.clone());
                }
                let fields = fields.into_iter().map(|(name, of, _)| (name, of)).collect();
                self.canonical.push(']');
                Type::Record(fields)
            }
        };
        self.canonical.push('}');
        self.end(at, read)
    }

    fn field(&mut self, index: usize, field: &Value, namespace: &str) -> Result<(String, usize, Note), String> {
        let name = field.get("name").and_then(Value::as_str).ok_or("a field has no `name`")?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!("a field cannot have the name {name:?}"));
        }
        let of = field.get("type").ok_or_else(|| format!("field {name} has no `type`"))?;
        self.canonical.push_str(if index > 0 { "," } else { "" });
        self.canonical.push_str(&format!("{{\"name\":\"{name}\",\"type\":"));
        let at = self.read(of, namespace)?;
        self.canonical.push('}');
        let aliases = field.get("aliases").and_then(Value::as_array).into_iter().flatten();
        let aliases = aliases.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok((name.to_owned(), at, Note { aliases, default: field.get("default").cloned() }))
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" | "long" => Type::Integer,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::Text,
        _ => return None,
    })
}

/// Gives what a logical type makes of a plain one; one that does not fit is passed over, as the specification wants.
fn logical(object: &Map<String, Value>, plain: &Type) -> Option<Type> {
    const MILLIS: u32 = 1_000;
    const MICROS: u32 = 1_000_000;
    const NANOS: u32 = 1_000_000_000;
    let utc = |per_second| Type::Timestamp { per_second, utc: true };
    let local = |per_second| Type::Timestamp { per_second, utc: false };
    let fixed = match plain {
        Type::Fixed(size) => Some(*size),
        _ => None,
    };
    Some(match (object.get("logicalType")?.as_str()?, plain) {
        ("date", Type::Integer) => Type::Date,
        ("time-millis", Type::Integer) => Type::Time(MILLIS),
        ("time-micros", Type::Integer) => Type::Time(MICROS),
        ("timestamp-millis", Type::Integer) => utc(MILLIS),
        ("timestamp-micros", Type::Integer) => utc(MICROS),
        ("timestamp-nanos", Type::Integer) => utc(NANOS),
        ("local-timestamp-millis", Type::Integer) => local(MILLIS),
        ("local-timestamp-micros", Type::Integer) => local(MICROS),
        ("local-timestamp-nanos", Type::Integer) => local(NANOS),
        ("decimal", Type::Bytes | Type::Fixed(_)) => {
            let precision = object.get("precision")?.as_u64()?;
            let scale = object.get("scale").map_or(Some(0), Value::as_u64)?;
            Type::Decimal { precision, scale: u32::try_from(scale).ok().filter(|_| scale <= precision)?, fixed }
        }
        ("uuid", Type::Fixed(16)) => Type::Uuid,
        ("duration", Type::Fixed(12)) => Type::Duration,
        _ => return None,
    })
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// Gives the fingerprint of a canonical form (CRC-64-AVRO, "Schema Fingerprints").
fn fingerprint(canonical: &[u8]) -> u64 {
    const EMPTY: u64 = 0xc15d_213a_a4d7_a795;
    let step = |crc: u64| if crc & 1 == 1 { crc >> 1 ^ EMPTY } else { crc >> 1 };
    canonical.iter().fold(EMPTY, |crc, byte| {
        let entry = (0..8).fold(crc & 0xff ^ u64::from(*byte), |crc, _| step(crc));
        crc >> 8 ^ entry
    })
}
