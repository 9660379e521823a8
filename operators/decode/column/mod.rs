//! Columns under construction, which can be rolled back to a row.
//!
//! A decoder appends a record's values as it reads them. If a later value does
//! not fit, every column is cut back to the rows before: no record is decoded
//! twice, and a bad one leaves no trace.

mod nested;
mod scalar;
mod texts;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray};
use arrow::datatypes::{DataType, Field, TimeUnit};

pub(super) use nested::{ListColumn, MapColumn, StructColumn};
use scalar::Scalar;
pub(super) use texts::Texts;

use crate::error::{Error, Result};

/// Longest part of a value that a reason quotes: enough to recognise it in the raw record.
const QUOTED_BYTES_MAX: usize = 100;

/// Metadata key and value that make a `Utf8View` field a `json` column.
pub(super) const TYPE_KEY: &str = "nexus.type";
pub(super) const TYPE_JSON: &str = "json";

/// Why a text is not a value of a column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It is no such value at all.
    NotA,
    /// It is one, but the type does not reach so far.
    OutOfRange,
    /// It has more digits behind the point than the type.
    TooPrecise,
    /// It is a number where a time is declared.
    NumberForTime,
    /// The column's bytes would pass what one batch can hold.
    TooLarge,
}

/// What a text was in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON string.
    Text,
    /// A CSV field.
    Field,
    /// A JSON number.
    Number,
    /// `true` or `false` in JSON.
    Truth,
}

/// One column under construction.
pub(super) struct Column {
    /// The name for reasons: with its parents', as `parent.child` and `list[]`.
    pub(super) path: Arc<str>,
    pub(super) values: Values,
    nullable: bool,
    data_type: DataType,
}

/// The values of a column, by how they are read.
pub(super) enum Values {
    Text(Texts),
    Json(Texts),
    Scalar(Box<dyn Scalar>),
    List(Box<ListColumn>),
    Struct(Box<StructColumn>),
    Map(Box<MapColumn>),
}

impl Column {
    /// Makes an empty column; `path` names it in reasons.
    pub(super) fn new(field: &Field, path: &str) -> Result<Self> {
        let data_type = field.data_type().clone();
        let values = match &data_type {
            DataType::Utf8View if is_json(field) => Values::Json(Texts::new()),
            DataType::Utf8View => Values::Text(Texts::new()),
            DataType::List(item) => Values::List(Box::new(ListColumn::new(item, path)?)),
            DataType::Struct(fields) => Values::Struct(Box::new(StructColumn::new(fields, path)?)),
            DataType::Map(entries, _) => Values::Map(Box::new(MapColumn::new(entries, path)?)),
            other => Values::Scalar(scalar::scalar(other).ok_or_else(|| {
                Error::config(format!("could not decode column \"{path}\": type {other} is not supported"))
            })?),
        };
        Ok(Self { path: path.into(), values, nullable: field.is_nullable(), data_type })
    }

    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Text(texts) | Values::Json(texts) => texts.len(),
            Values::Scalar(scalar) => scalar.len(),
            Values::List(list) => list.len(),
            Values::Struct(fields) => fields.len(),
            Values::Map(map) => map.len(),
        }
    }

    /// Cuts the column back to `len` values, and removes what an unfinished value has left behind.
    pub(super) fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Text(texts) | Values::Json(texts) => texts.truncate(len),
            Values::Scalar(scalar) => scalar.truncate(len),
            Values::List(list) => list.truncate(len),
            Values::Struct(fields) => fields.truncate(len),
            Values::Map(map) => map.truncate(len),
        }
    }

    /// Appends a NULL that the record holds, or gives the reason why there must be none.
    #[inline]
    pub(super) fn push_null(&mut self) -> Result<(), String> {
        if !self.nullable {
            return Err(format!("column \"{}\": is null, but declared not null", self.path));
        }
        self.push_filler();
        Ok(())
    }

    /// Appends a NULL for a column that the record lacks, or gives the reason why it must not.
    pub(super) fn push_missing(&mut self) -> Result<(), String> {
        if !self.nullable {
            return Err(format!("column \"{}\": is missing, but declared not null", self.path));
        }
        self.push_filler();
        Ok(())
    }

    /// Appends a NULL also to a column that has none, below a parent that is NULL.
    fn push_filler(&mut self) {
        match &mut self.values {
            Values::Text(texts) | Values::Json(texts) => texts.push_null(),
            Values::Scalar(scalar) => scalar.push_null(),
            Values::List(list) => list.push_null(),
            Values::Struct(fields) => fields.push_null(),
            Values::Map(map) => map.push_null(),
        }
    }

    /// Appends the value of a text in UTF-8, or gives the reason why it is none.
    ///
    /// A nested or `json` column takes no text here: its decoder parses it first.
    #[inline]
    pub(super) fn push(&mut self, text: &[u8], form: Form) -> Result<(), String> {
        let pushed = match &mut self.values {
            Values::Text(texts) => texts.push(text),
            Values::Scalar(scalar) => scalar.push(text, form),
            _ => Err(Misfit::NotA),
        };
        pushed.map_err(|misfit| self.reason(misfit, text, form))
    }

    /// Gives the reason for people why `text` does not fit.
    #[cold]
    pub(super) fn reason(&self, misfit: Misfit, text: &[u8], form: Form) -> String {
        let (value, kind) = (quoted(text, form), type_name(&self.data_type, self.is_json()));
        let path = &self.path;
        match misfit {
            Misfit::NotA => format!("column \"{path}\": {value} is not {} {kind}", article(&kind)),
            Misfit::OutOfRange => format!("column \"{path}\": {value} is out of range for {kind}"),
            Misfit::TooPrecise => format!("column \"{path}\": {value} has more digits behind the point than {kind}"),
            Misfit::NumberForTime => format!(
                "column \"{path}\": {value} is a number, not {} {kind}; declare int64 and convert it in SQL",
                article(&kind)
            ),
            Misfit::TooLarge => format!("column \"{path}\": {value} makes the batch too large"),
        }
    }

    /// Takes the values out as an array; the column is empty then.
    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        match &mut self.values {
            Values::Text(texts) | Values::Json(texts) => Ok(Arc::new(texts.finish()?)),
            Values::Scalar(scalar) => scalar.finish(),
            Values::List(list) => list.finish(),
            Values::Struct(fields) => fields.finish(),
            Values::Map(map) => map.finish(),
        }
    }

    fn is_json(&self) -> bool {
        matches!(self.values, Values::Json(_))
    }
}

/// Tells whether a field holds JSON as checked text.
pub(super) fn is_json(field: &Field) -> bool {
    field.metadata().get(TYPE_KEY).is_some_and(|kind| kind == TYPE_JSON)
}

/// Makes a field that holds JSON as checked text.
pub(super) fn json_field(name: &str) -> Field {
    let kept = HashMap::from([(TYPE_KEY.to_owned(), TYPE_JSON.to_owned())]);
    Field::new(name, DataType::Utf8View, true).with_metadata(kept)
}

/// Names a type as the pipeline file does.
pub(super) fn type_name(data_type: &DataType, json: bool) -> String {
    let field_name = |field: &Field| type_name(field.data_type(), is_json(field));
    match data_type {
        _ if json => "json".into(),
        DataType::Boolean => "bool".into(),
        DataType::Utf8View => "string".into(),
        DataType::BinaryView => "binary".into(),
        DataType::Date32 => "date".into(),
        DataType::Time64(TimeUnit::Microsecond) => "time".into(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => "timestamp".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision}, {scale})"),
        DataType::List(item) => format!("list<{}>", field_name(item)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|f| format!("{}: {}", f.name(), field_name(f))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                format!("map<{}>", fields.iter().map(|f| field_name(f)).collect::<Vec<_>>().join(", "))
            }
            other => format!("map<{other}>"),
        },
        other => other.to_string().to_lowercase(),
    }
}

/// Quotes a value for a reason, cut to its first hundred bytes.
pub(super) fn quoted(text: &[u8], form: Form) -> String {
    let cut = text.get(..QUOTED_BYTES_MAX).unwrap_or(text);
    let mut value = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < text.len() {
        // The cut may go through a character.
        value.truncate(value.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
        value.push('…');
    }
    if matches!(form, Form::Text | Form::Field) { format!("\"{value}\"") } else { value }
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" }
}

/// Makes an array of one text, repeated.
pub(super) fn repeated(text: &str, rows: usize) -> Result<ArrayRef> {
    let once = StringViewArray::from_iter_values([text]);
    let zeros = arrow::array::UInt32Array::from_value(0, rows);
    Ok(arrow::compute::take(&once, &zeros, None)?)
}
