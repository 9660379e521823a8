//! Formats: from what the file says to the settings of a decoder, with the schemas that lie in files of their own.

use std::path::Path;

use nexus_operators::decode::{AvroEncoding, AvroSchema, AvroWriter, FormatSettings, ProtobufMessage};

use super::loaded::Loaded;
use super::model::{self, AvroFormat, Format, ProtobufFormat, ProtobufFraming, SchemaId};
use super::source::{read_bytes, read_text};

/// The largest file of a schema or of descriptors in bytes: those of a company's whole interface have some MiB.
const SCHEMA_BYTES_MAX: usize = 64 << 20;

/// What is wrong with a format.
#[derive(Debug)]
pub struct WrongFormat {
    /// The keys below the format.
    pub keys: Vec<&'static str>,
    /// Why, for people.
    pub why: String,
}

impl WrongFormat {
    fn at(keys: &[&'static str], why: impl ToString) -> Self {
        Self { keys: keys.to_vec(), why: why.to_string() }
    }
}

impl Loaded {
    /// Gives how the bytes of a source or reference table read, such as `["sources", "orders"]`; JSON if no format is
    /// given.
    pub fn format_settings(&self, place: [&str; 2], format: Option<&Format>) -> Result<FormatSettings, WrongFormat> {
        Ok(match format {
            None | Some(Format::Json) => FormatSettings::Json,
            Some(Format::Parquet) => FormatSettings::Parquet,
            Some(Format::CloudwatchLogs) => FormatSettings::CloudWatchLogs,
            Some(Format::Raw) => FormatSettings::Raw,
            Some(Format::Csv(csv)) => FormatSettings::Csv {
                header: csv.header,
                delimiter: u8::try_from(csv.delimiter).unwrap_or(b','),
                quote: u8::try_from(csv.quote).unwrap_or(b'"'),
                nulls: csv.nulls.clone(),
            },
            Some(Format::Avro(avro)) => self.avro(place, avro)?,
            Some(Format::Protobuf(protobuf)) => self.protobuf(place, protobuf)?,
        })
    }

    fn avro(&self, place: [&str; 2], avro: &AvroFormat) -> Result<FormatSettings, WrongFormat> {
        let at = |key| WrongFormat::at(&["avro", key], "single records need a `schema` or a `schema_file`");
        let newest = self.avro_schema(place, &["avro"], (&avro.schema, &avro.schema_file))?;
        let Some(newest) = newest else {
            let keys = [("older", !avro.older.is_empty()), ("schema_id", avro.schema_id.is_some())];
            let given = keys.into_iter().find_map(|(key, is_given)| is_given.then_some(key));
            return match (given, avro.encoding) {
                (None, model::AvroEncoding::Datum) => Ok(FormatSettings::Avro),
                (given, _) => Err(at(given.unwrap_or("encoding"))),
            };
        };
        let id = |key, id: Option<&SchemaId>| {
            numbered(avro.encoding, id).map_err(|why| WrongFormat::at(&["avro", key], why))
        };
        let newest_id = id("schema_id", avro.schema_id.as_ref())?;
        let mut older = Vec::with_capacity(avro.older.len());
        for given in &avro.older {
            let wrong = |why: &str| WrongFormat::at(&["avro", "older"], why);
            let schema = self.avro_schema(place, &["avro", "older"], (&given.schema, &given.schema_file))?;
            let schema = schema.ok_or_else(|| wrong("an older schema needs a `schema` or a `schema_file`"))?;
            let id = id("older", given.schema_id.as_ref())?;
            match avro.encoding {
                model::AvroEncoding::Datum => {
                    return Err(wrong("records tell their schema only with another `encoding`"));
                }
                model::AvroEncoding::SingleObject => {}
                _ if newest_id.is_none() || id.is_none() => {
                    return Err(wrong("with schemas of older records, each needs its `schema_id`, the newest too"));
                }
                _ => {}
            }
            let writer = AvroWriter::new(schema, &newest, id).map_err(|error| wrong(&error.to_string()))?;
            older.push(writer);
        }
        let encoding = match avro.encoding {
            model::AvroEncoding::Datum => AvroEncoding::Datum,
            model::AvroEncoding::SingleObject => AvroEncoding::SingleObject,
            model::AvroEncoding::Confluent => {
                AvroEncoding::Confluent { id: newest_id.and_then(|id| u32::try_from(id).ok()) }
            }
            model::AvroEncoding::Glue => AvroEncoding::Glue { version: newest_id },
        };
        Ok(FormatSettings::AvroRecords { schema: newest.into(), older, encoding })
    }

    /// Reads a schema that stands in place or in a file; gives nothing if neither is named.
    fn avro_schema(
        &self,
        place: [&str; 2],
        keys: &[&'static str],
        (schema, file): (&Option<String>, &Option<String>),
    ) -> Result<Option<AvroSchema>, WrongFormat> {
        let at = |key, why: String| {
            // Of a list, the whole is named.
            let keys = if keys.len() == 1 { [keys, &[key]].concat() } else { keys.to_vec() };
            WrongFormat { keys, why }
        };
        let (key, text) = match (schema, file) {
            (Some(_), Some(_)) => {
                return Err(at("schema_file", "either `schema` or `schema_file`, not both".to_owned()));
            }
            (Some(text), None) => ("schema", text.clone()),
            (None, Some(file)) => {
                let path = self.format_path(place, &["avro", "schema_file"], file);
                let text = read_text(Path::new(&path), SCHEMA_BYTES_MAX);
                let unreadable = |why| at("schema_file", format!("could not read the schema {path}: {why}"));
                ("schema_file", text.map_err(unreadable)?)
            }
            (None, None) => return Ok(None),
        };
        AvroSchema::parse(&text).map(Some).map_err(|error| at(key, error.to_string()))
    }

    fn protobuf(&self, place: [&str; 2], protobuf: &ProtobufFormat) -> Result<FormatSettings, WrongFormat> {
        let path = self.format_path(place, &["protobuf", "descriptor"], &protobuf.descriptor);
        let bytes = read_bytes(Path::new(&path), SCHEMA_BYTES_MAX).map_err(|why| {
            WrongFormat::at(&["protobuf", "descriptor"], format!("could not read the descriptors {path}: {why}"))
        })?;
        let message = ProtobufMessage::find(&bytes, &protobuf.message);
        let message = message.map_err(|error| WrongFormat::at(&["protobuf", "message"], error))?;
        Ok(FormatSettings::Protobuf { message, delimited: protobuf.framing == ProtobufFraming::Delimited })
    }

    fn format_path(&self, place: [&str; 2], keys: &[&str], text: &str) -> String {
        self.resolve(&[&place[..], &["format"], keys].concat(), text)
    }
}

/// Gives the id of a schema as an encoding has it before a record.
fn numbered(encoding: model::AvroEncoding, id: Option<&SchemaId>) -> Result<Option<u128>, &'static str> {
    let Some(id) = id else { return Ok(None) };
    match (encoding, id) {
        (model::AvroEncoding::Confluent, SchemaId::Number(number)) => Ok(Some((*number).into())),
        (model::AvroEncoding::Confluent, SchemaId::Version(_)) => Err("with `encoding: confluent` it is a number"),
        (model::AvroEncoding::Glue, SchemaId::Version(version)) => {
            let digits = version.replace('-', "");
            let id = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
            id.map(Some).ok_or("it is no UUID")
        }
        (model::AvroEncoding::Glue, SchemaId::Number(_)) => Err("with `encoding: glue` it is the UUID of a version"),
        _ => Err("records have the number of their schema only with `encoding: confluent` or `glue`"),
    }
}
