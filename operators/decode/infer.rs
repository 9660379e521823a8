//! Proposes columns for content that declares none.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field};

use super::column::json_field;
use super::csv::Splitter;
use super::json::{Cursor, next_document};
use super::settings::FormatSettings;
use super::{avro, number, parquet, time};
use crate::batch::timestamp_type;
use crate::error::{Error, Result};

/// Proposes the columns of a source from the first bytes of its content (for Parquet: from a whole file, or its
/// end with the footer).
///
/// All columns may be NULL, and come in the order in which they first appear. A text is a timestamp or a date if all
/// of the column are; nested values are `json`; a column with values of several kinds, or with none, is `string`. A
/// last record that is cut off is not looked at.
pub fn infer(format: &FormatSettings, sample: &[u8]) -> Result<Vec<Field>> {
    let fields = match format {
        FormatSettings::Json => infer_json(sample),
        FormatSettings::Csv { header, delimiter, quote, nulls } => {
            infer_csv(sample, *header, Splitter::new(sample, *delimiter, *quote), nulls)
        }
        FormatSettings::Parquet => parquet::infer(sample)?,
        FormatSettings::Avro => avro::infer(sample)?,
        own => return Ok(own.own_columns().unwrap_or_default()),
    };
    if fields.is_empty() {
        return Err(Error::config("could not infer columns: the content holds no record; declare the columns"));
    }
    Ok(fields)
}

/// What the values of a column have been so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Int,
    Float,
    Date,
    Timestamp,
    Text,
    Nested,
}

impl Kind {
    /// Gives the kind that holds values of both.
    fn join(self, other: Kind) -> Kind {
        match (self, other) {
            (same, other) if same == other => same,
            (Kind::Null, kind) | (kind, Kind::Null) => kind,
            (Kind::Nested, _) | (_, Kind::Nested) => Kind::Nested,
            (Kind::Int, Kind::Float) | (Kind::Float, Kind::Int) => Kind::Float,
            (Kind::Date, Kind::Timestamp) | (Kind::Timestamp, Kind::Date) => Kind::Timestamp,
            _ => Kind::Text,
        }
    }

    fn of_number(text: &[u8]) -> Kind {
        let is_whole = text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-');
        match () {
            // Whole numbers beyond 64 bits keep all their digits as text only.
            () if is_whole => number::integer::<i64>(text).map_or(Kind::Text, |_| Kind::Int),
            () => Kind::Float,
        }
    }

    fn of_time(text: &[u8]) -> Option<Kind> {
        if time::date(text).is_some() {
            return Some(Kind::Date);
        }
        time::timestamp_us(text).map(|_| Kind::Timestamp)
    }

    /// Gives the kind of a text in JSON.
    pub(super) fn of_text(text: &[u8]) -> Kind {
        Kind::of_time(text).unwrap_or(Kind::Text)
    }

    pub(super) fn of_csv(text: &[u8]) -> Kind {
        let text = text.trim_ascii();
        let digits = text.strip_prefix(b"-").unwrap_or(text);
        match digits {
            _ if text.eq_ignore_ascii_case(b"true") || text.eq_ignore_ascii_case(b"false") => Kind::Bool,
            // Postcodes and the like: as numbers they would lose their zeros.
            [b'0', b'0'..=b'9', ..] => Kind::of_time(text).unwrap_or(Kind::Text),
            [b'0'..=b'9', ..] if number::float64(text).is_ok() => Kind::of_number(text),
            [b'.', b'0'..=b'9', ..] if number::float64(text).is_ok() => Kind::Float,
            _ => Kind::of_time(text).unwrap_or(Kind::Text),
        }
    }

    fn field(self, name: &str) -> Field {
        let data_type = match self {
            Kind::Bool => DataType::Boolean,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Date => DataType::Date32,
            Kind::Timestamp => timestamp_type(),
            Kind::Null | Kind::Text | Kind::Nested => DataType::Utf8View,
        };
        match self {
            Kind::Nested => json_field(name),
            _ => Field::new(name, data_type, true),
        }
    }
}

/// Columns in the order of their first appearance.
#[derive(Debug, Default)]
pub(super) struct Columns {
    kinds: Vec<(String, Kind)>,
    by_name: HashMap<String, usize>,
}

impl Columns {
    fn add(&mut self, name: &str, kind: Kind) {
        match self.by_name.get(name).and_then(|&at| self.kinds.get_mut(at)) {
            Some((_, known)) => *known = known.join(kind),
            None => {
                self.by_name.insert(name.to_string(), self.kinds.len());
                self.kinds.push((name.to_string(), kind));
            }
        }
    }

    fn fields(&self) -> Vec<Field> {
        self.kinds.iter().map(|(name, kind)| kind.field(name)).collect()
    }

    /// Gives the columns that have had a value other than NULL.
    pub(super) fn fields_with_values(&self) -> Vec<Field> {
        let kinds = self.kinds.iter().filter(|(_, kind)| *kind != Kind::Null);
        kinds.map(|(name, kind)| kind.field(name)).collect()
    }
}

fn infer_json(sample: &[u8]) -> Vec<Field> {
    let mut columns = Columns::default();
    let mut cursor = Cursor::new(sample);
    if sample.starts_with(super::json::BOM) {
        cursor.move_to(super::json::BOM.len());
    }
    while let Some(start) = next_document(&mut cursor) {
        if cursor.peek() == Some(b'{')
            && infer_document(sample, start, usize::MAX, &Kind::of_text, &mut columns).is_some()
        {
            cursor.skip_value(0).ok();
            continue;
        }
        // A document that is cut off, or none: the next line may begin another.
        let rest = sample.get(start..).unwrap_or_default();
        cursor.move_to(memchr::memchr(b'\n', rest).map_or(sample.len(), |at| start + at));
    }
    columns.fields()
}

/// Looks at the fields of the document at `start`, for up to so many columns; `of_text` gives the kind of a text. Gives
/// nothing if it is no document.
pub(super) fn infer_document(
    sample: &[u8],
    start: usize,
    columns_max: usize,
    of_text: &dyn Fn(&[u8]) -> Kind,
    columns: &mut Columns,
) -> Option<()> {
    let mut whole = Cursor::new(sample);
    whole.move_to(start);
    let document = whole.skip_value(0).ok()?;
    let mut cursor = Cursor::new(document);
    cursor.open(0).ok()?;
    let mut more = !cursor.closes(b'}');
    let mut text = Vec::new();
    while more {
        text.clear();
        cursor.key().ok()?.unescape(&mut text).ok()?;
        let name = String::from_utf8_lossy(&text).into_owned();
        let value = cursor.skip_value(1).ok()?;
        let kind = match value {
            b"null" => Kind::Null,
            b"true" | b"false" => Kind::Bool,
            [b'{' | b'[', ..] => Kind::Nested,
            [b'"', inside @ .., b'"'] => of_text(inside),
            number => Kind::of_number(number),
        };
        if columns.kinds.len() < columns_max || columns.by_name.contains_key(&name) {
            columns.add(&name, kind);
        }
        more = cursor.goes_on(b'}').ok()?;
    }
    Some(())
}

fn infer_csv(sample: &[u8], header: bool, mut splitter: Splitter<'_>, nulls: &[String]) -> Vec<Field> {
    let (mut fields, mut text) = (Vec::new(), Vec::new());
    let mut names: Vec<String> = Vec::new();
    if header && splitter.next_line(&mut fields).is_some() {
        let name = |field| String::from_utf8_lossy(splitter.text(field, &mut text)).into_owned();
        names = fields.iter().map(name).collect();
    }
    let mut columns = Columns::default();
    for name in &names {
        columns.add(name, Kind::Null);
    }
    let mut lines = 0;
    while let Some(line) = splitter.next_line(&mut fields) {
        // The sample's last line may be cut off; it counts if there is no other.
        if !line.closed || line.end == sample.len() && lines > 0 {
            continue;
        }
        if !header && names.is_empty() {
            names = (1..=fields.len()).map(|number| format!("column_{number}")).collect();
        }
        if fields.len() != names.len() {
            continue;
        }
        lines += 1;
        for (field, name) in fields.iter().zip(&names) {
            let value = splitter.text(field, &mut text);
            let is_null = value.is_empty() || nulls.iter().any(|null| null.as_bytes() == value);
            columns.add(name, if is_null { Kind::Null } else { Kind::of_csv(value) });
        }
    }
    columns.fields()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::column::{is_json, type_name};

    fn inferred(format: &FormatSettings, sample: &str) -> Vec<String> {
        let fields = infer(format, sample.as_bytes()).unwrap();
        assert!(fields.iter().all(Field::is_nullable));
        fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type(), is_json(f)))).collect()
    }

    #[test]
    fn json_columns_are_inferred() {
        let sample = r#"{"i":1,"f":1,"t":"2013-01-01","d":"2013-01-01","n":null,"big":1}
            {"f":1.5,"t":"2013-01-01 05:00:00","b":true,"s":"x","j":{"a":1},"m":1,"big":18446744073709551616}
            {"m":"x","j":"text","\u00e9":[]} {"i":"cut o"#;
        assert_eq!(
            inferred(&FormatSettings::Json, sample),
            [
                "i: int64",
                "f: float64",
                "t: timestamp",
                "d: date",
                "n: string",
                "big: string",
                "b: bool",
                "s: string",
                "j: json",
                "m: string",
                "é: json"
            ]
        );
        assert!(infer(&FormatSettings::Json, b"garbage").is_err());
    }

    #[test]
    fn csv_columns_are_inferred() {
        let csv = |header| FormatSettings::Csv { header, delimiter: b',', quote: b'"', nulls: vec!["NA".into()] };
        let sample = "id,delay,zip,at,day,ok,none,name\n1,NA,01234,2013-01-01T05:00:00Z,2013-01-01,true,,\"a,b\"\n\
                      -2,1.5,99999,2013-01-02 05:00:00,2013-01-02,FALSE,,x\n3,1,cut o";
        assert_eq!(
            inferred(&csv(true), sample),
            [
                "id: int64",
                "delay: float64",
                "zip: string",
                "at: timestamp",
                "day: date",
                "ok: bool",
                "none: string",
                "name: string"
            ]
        );
        assert_eq!(inferred(&csv(false), "1,x"), ["column_1: int64", "column_2: string"]);
        assert!(infer(&csv(true), b"").is_err());
    }
}
