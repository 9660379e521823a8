//! Column types as people write them, to Arrow fields as decoders make them.
//!
//! `decimal(10, 2) not null`, `list<struct<a: int32, b: string not null>>`,
//! `map<string, int64>`. Words are taken in any case.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use nexus_operators::batch::timestamp_type;

use super::model::Columns;
use super::suggest;

/// Key of the field metadata that tells what a type is where Arrow has no own one.
pub const TYPE_KEY: &str = "nexus.type";

/// Value of [`TYPE_KEY`] of a `json` column: text that is checked to be JSON.
pub const JSON_TYPE: &str = "json";

/// The deepest nesting of lists, structs and maps. No Parquet reader is asked for more in practice.
const DEPTH_MAX: usize = 16;

/// The most digits of a decimal of 128 bits.
const PRECISION_MAX: u8 = 38;

/// The words that begin a type.
const TYPE_NAMES: &[&str] = &[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
    "decimal",
    "string",
    "binary",
    "date",
    "time",
    "timestamp",
    "list",
    "struct",
    "map",
    "json",
];

/// What other systems call the types.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("boolean", "bool"),
    ("tinyint", "int8"),
    ("smallint", "int16"),
    ("int", "int32"),
    ("integer", "int32"),
    ("bigint", "int64"),
    ("long", "int64"),
    ("float", "float32"),
    ("real", "float32"),
    ("double", "float64"),
    ("numeric", "decimal(p, s)"),
    ("text", "string"),
    ("varchar", "string"),
    ("str", "string"),
    ("utf8", "string"),
    ("bytes", "binary"),
    ("bytea", "binary"),
    ("datetime", "timestamp"),
    ("timestamptz", "timestamp"),
    ("array", "list<T>"),
    ("jsonb", "json"),
    ("object", "struct<...>"),
];

/// What is wrong with a column type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeError {
    /// Where in the text, in bytes.
    pub offset: usize,
    /// How many characters are at fault.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

/// A type with what belongs to a field besides.
struct Typed {
    data_type: DataType,
    nullable: bool,
    json: bool,
}

/// Makes the fields of all columns, in order; an error names the column.
pub fn fields(columns: &Columns) -> Result<Vec<Field>, (String, TypeError)> {
    columns.0.iter().map(|(name, text)| field(name, text).map_err(|e| (name.clone(), e))).collect()
}

/// Makes the field of one column from its type's text.
pub fn field(name: &str, text: &str) -> Result<Field, TypeError> {
    let mut parser = TypeParser { text, at: 0 };
    let typed = parser.column(0)?;
    parser.skip_space();
    if parser.at < text.len() {
        return Err(parser.wrong("the type ends here, and more follows", None));
    }
    Ok(typed.into_field(name))
}

/// Writes the type of a field as a pipeline file would; a type that no file can declare as Arrow writes it.
pub fn type_name(field: &Field) -> String {
    let json = field.metadata().get(TYPE_KEY).is_some_and(|kind| kind == JSON_TYPE);
    let name = if json { JSON_TYPE.to_owned() } else { data_type_name(field.data_type()) };
    if field.is_nullable() { name } else { format!("{name} not null") }
}

/// Writes a type as a pipeline file would, without `not null`.
pub fn data_type_name(data_type: &DataType) -> String {
    use arrow::datatypes::TimeUnit::Microsecond;
    match data_type {
        DataType::Boolean => "bool".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Time64(Microsecond) => "time".to_owned(),
        DataType::Timestamp(Microsecond, Some(_)) => "timestamp".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision}, {scale})"),
        DataType::List(item) => format!("list<{}>", type_name(item)),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| format!("{}: {}", field.name(), type_name(field)));
            format!("struct<{}>", fields.collect::<Vec<_>>().join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            // Keys are never NULL.
            DataType::Struct(pair) if pair.len() == 2 => {
                format!("map<{}, {}>", data_type_name(pair[0].data_type()), type_name(&pair[1]))
            }
            other => other.to_string(),
        },
        number if number.is_numeric() => format!("{number:?}").to_lowercase(),
        other => other.to_string(),
    }
}

impl Typed {
    fn into_field(self, name: &str) -> Field {
        let field = Field::new(name, self.data_type, self.nullable);
        match self.json {
            true => field.with_metadata([(TYPE_KEY.to_owned(), JSON_TYPE.to_owned())].into()),
            false => field,
        }
    }
}

/// Reads a type from left to right.
struct TypeParser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> TypeParser<'a> {
    /// A type, and `not null` if it follows.
    fn column(&mut self, depth: usize) -> Result<Typed, TypeError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong(format!("the type is nested too deeply: at most {DEPTH_MAX} levels"), None));
        }
        let (start, word) = self.word();
        let name = word.to_lowercase();
        let data_type = match simple(&name) {
            Some(simple) => simple,
            None => match name.as_str() {
                "decimal" => self.decimal()?,
                "list" => self.list(depth)?,
                "struct" => self.structure(depth)?,
                "map" => self.map(depth)?,
                _ => return Err(unknown(start, word)),
            },
        };
        Ok(Typed { data_type, nullable: !self.not_null()?, json: name == "json" })
    }

    fn decimal(&mut self) -> Result<DataType, TypeError> {
        let hint = "write `decimal(precision, scale)`, such as `decimal(10, 2)`";
        self.expect('(', hint)?;
        let (start, precision) = self.number(hint)?;
        self.expect(',', hint)?;
        let (scale_start, scale) = self.number(hint)?;
        self.expect(')', hint)?;
        let precision = u8::try_from(precision).ok().filter(|p| (1..=PRECISION_MAX).contains(p));
        let Some(precision) = precision else {
            return Err(at(start, 1, format!("the precision of a decimal is 1 to {PRECISION_MAX}"), None));
        };
        match i8::try_from(scale).ok().filter(|s| u8::try_from(*s).is_ok_and(|s| s <= precision)) {
            Some(scale) => Ok(DataType::Decimal128(precision, scale)),
            None => Err(at(scale_start, 1, "the scale of a decimal is at most its precision".into(), None)),
        }
    }

    fn list(&mut self, depth: usize) -> Result<DataType, TypeError> {
        let hint = "write `list<T>`, such as `list<string>`";
        self.expect('<', hint)?;
        let item = self.column(depth + 1)?;
        self.expect('>', hint)?;
        Ok(DataType::List(Arc::new(item.into_field("item"))))
    }

    fn structure(&mut self, depth: usize) -> Result<DataType, TypeError> {
        let hint = "write `struct<name: T, ...>`, such as `struct<id: int64, tags: list<string>>`";
        self.expect('<', hint)?;
        let mut fields: Vec<Field> = Vec::new();
        loop {
            let (start, name) = self.word();
            if name.is_empty() {
                return Err(self.wrong("a field's name is wanted here", Some(hint)));
            }
            if fields.iter().any(|f| f.name() == name) {
                let message = format!("the struct has the field `{name}` twice");
                return Err(at(start, name.chars().count(), message, None));
            }
            self.expect(':', hint)?;
            fields.push(self.column(depth + 1)?.into_field(name));
            if !self.take(',') {
                break;
            }
        }
        self.expect('>', hint)?;
        Ok(DataType::Struct(Fields::from(fields)))
    }

    fn map(&mut self, depth: usize) -> Result<DataType, TypeError> {
        let hint = "write `map<K, V>`, such as `map<string, int64>`";
        self.expect('<', hint)?;
        self.skip_space();
        let key_start = self.at;
        let mut key = self.column(depth + 1)?;
        if key.data_type.is_nested() {
            let width = self.text[key_start..self.at].trim_end().chars().count();
            return Err(at(key_start, width, "the keys of a map are simple values".into(), Some(hint)));
        }
        self.expect(',', hint)?;
        let value = self.column(depth + 1)?;
        self.expect('>', hint)?;
        key.nullable = false;
        let entries = Fields::from(vec![key.into_field("key"), value.into_field("value")]);
        Ok(DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false))
    }

    /// `not null`, or `null`, which says what holds anyway.
    fn not_null(&mut self) -> Result<bool, TypeError> {
        let before = self.at;
        let (_, word) = self.word();
        match word.to_lowercase().as_str() {
            "" => Ok(false),
            "not" => {
                let (start, null) = self.word();
                match null.eq_ignore_ascii_case("null") {
                    true => Ok(true),
                    false => Err(at(start, null.chars().count().max(1), "`null` is wanted behind `not`".into(), None)),
                }
            }
            _ => {
                self.at = before;
                self.skip_space();
                let message = format!("`{word}` cannot stand behind a type");
                Err(at(self.at, word.chars().count(), message, Some("only `not null` can")))
            }
        }
    }

    fn number(&mut self, hint: &str) -> Result<(usize, u32), TypeError> {
        let (start, word) = self.word();
        let width = word.chars().count().max(1);
        let number = word.parse().map_err(|_| at(start, width, "a number is wanted here".into(), Some(hint)))?;
        Ok((start, number))
    }

    /// Takes letters, digits and `_`; gives where they begin.
    fn word(&mut self) -> (usize, &'a str) {
        self.skip_space();
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let start = self.at;
        self.at += end;
        (start, &rest[..end])
    }

    fn expect(&mut self, sign: char, hint: &str) -> Result<(), TypeError> {
        match self.take(sign) {
            true => Ok(()),
            false => Err(self.wrong(format!("`{sign}` is wanted here"), Some(hint))),
        }
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_space();
        let there = self.text[self.at..].starts_with(sign);
        self.at += if there { sign.len_utf8() } else { 0 };
        there
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn wrong(&self, message: impl Into<String>, hint: Option<&str>) -> TypeError {
        at(self.at, 1, message.into(), hint)
    }
}

/// Gives the types that are one word.
fn simple(name: &str) -> Option<DataType> {
    Some(match name {
        "bool" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float32" => DataType::Float32,
        "float64" => DataType::Float64,
        "string" | "json" => DataType::Utf8View,
        "binary" => DataType::BinaryView,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp" => timestamp_type(),
        _ => return None,
    })
}

fn unknown(start: usize, word: &str) -> TypeError {
    if word.is_empty() {
        return at(start, 1, "a type is wanted here".into(), suggest::available(TYPE_NAMES.iter().copied()).as_deref());
    }
    let other = OTHER_NAMES.iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    let hint = match other {
        Some((_, ours)) => Some(format!("write `{ours}`")),
        None => match suggest::nearest(word, TYPE_NAMES.iter().copied()) {
            Some(name) => Some(format!("did you mean `{name}`?")),
            None => Some(format!("the types are {}", TYPE_NAMES.join(", "))),
        },
    };
    at(start, word.chars().count(), format!("there is no type `{word}`"), hint.as_deref())
}

fn at(offset: usize, width: usize, message: String, hint: Option<&str>) -> TypeError {
    TypeError { offset, width, message, hint: hint.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Field {
        field("c", text).unwrap()
    }

    #[test]
    fn types_are_what_decoders_make() {
        assert_eq!(parsed("string"), Field::new("c", DataType::Utf8View, true));
        assert_eq!(parsed(" Int64  NOT  NULL "), Field::new("c", DataType::Int64, false));
        assert_eq!(parsed("binary").data_type(), &DataType::BinaryView);
        assert_eq!(parsed("timestamp").data_type(), &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        assert_eq!(parsed("time").data_type(), &DataType::Time64(TimeUnit::Microsecond));
        assert_eq!(parsed("date").data_type(), &DataType::Date32);
        assert_eq!(parsed("decimal(10, 2)").data_type(), &DataType::Decimal128(10, 2));
        assert_eq!(parsed("json").metadata().get(TYPE_KEY).map(String::as_str), Some(JSON_TYPE));
    }

    #[test]
    fn types_nest() {
        let inner =
            Fields::from(vec![Field::new("a", DataType::Int32, true), Field::new("b", DataType::Utf8View, false)]);
        let item = Field::new("item", DataType::Struct(inner), true);
        let list = parsed("list<struct<a: int32, b: string not null>> not null");
        assert_eq!(list, Field::new("c", DataType::List(Arc::new(item)), false));
        let entries = Fields::from(vec![
            Field::new("key", DataType::Utf8View, false),
            Field::new("value", DataType::Int64, true),
        ]);
        let entries = Field::new("entries", DataType::Struct(entries), false);
        assert_eq!(parsed("map<string, int64>").data_type(), &DataType::Map(Arc::new(entries), false));
    }

    #[test]
    fn a_json_in_a_list_keeps_its_mark() {
        let DataType::List(item) = parsed("list<json>").data_type().clone() else { panic!("a list") };
        assert!(item.metadata().contains_key(TYPE_KEY));
    }

    #[test]
    fn mistakes_are_found_at_their_place() {
        let wrong = |text: &str| {
            let e = field("c", text).unwrap_err();
            (e.offset, e.width, e.message, e.hint.unwrap_or_default())
        };
        let is = |text, offset, width, message: &str, hint: &str| {
            let (o, w, m, h) = wrong(text);
            assert_eq!((o, w, m.as_str()), (offset, width, message), "{text}");
            assert!(h.contains(hint), "{text}: {h}");
        };
        is("strng", 0, 5, "there is no type `strng`", "did you mean `string`?");
        is("varchar(10)", 0, 7, "there is no type `varchar`", "write `string`");
        is("list<bigint>", 5, 6, "there is no type `bigint`", "write `int64`");
        is("list<string", 11, 1, "`>` is wanted here", "list<string>");
        is("decimal", 7, 1, "`(` is wanted here", "decimal(10, 2)");
        is("decimal(39, 2)", 8, 1, "the precision of a decimal is 1 to 38", "");
        is("decimal(4, 5)", 11, 1, "the scale of a decimal is at most its precision", "");
        is("struct<a: int8, a: int8>", 16, 1, "the struct has the field `a` twice", "");
        is("struct<>", 7, 1, "a field's name is wanted here", "struct<id");
        is("map<list<int8>, int8>", 4, 10, "the keys of a map are simple values", "map<string");
        is("int64 not nul", 10, 3, "`null` is wanted behind `not`", "");
        is("int64 unsigned", 6, 8, "`unsigned` cannot stand behind a type", "not null");
        is("int64, int64", 5, 1, "the type ends here, and more follows", "");
        is("", 0, 1, "a type is wanted here", "available: `bool`");
        is(
            &"list<".repeat(DEPTH_MAX + 1),
            5 * (DEPTH_MAX + 1),
            1,
            "the type is nested too deeply: at most 16 levels",
            "",
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9<>(),: ä]{0,40}") {
            if let Err(e) = field("c", &text) {
                prop_assert!(text.is_char_boundary(e.offset) && e.width >= 1);
            }
        }
    }
}
