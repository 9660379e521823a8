//! Formats: from what the file says to the settings of a decoder, with the schemas that lie in files of their own.

use std::path::Path;

use nexus_operators::decode::{AvroEncoding, AvroSchema, FormatSettings, ProtobufMessage};

use super::loaded::Loaded;
use super::model::{self, AvroFormat, Format, ProtobufFormat, ProtobufFraming};
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
        let (key, text) = match (&avro.schema, &avro.schema_file) {
            (Some(_), Some(_)) => {
                return Err(WrongFormat::at(&["avro", "schema_file"], "either `schema` or `schema_file`, not both"));
            }
            (Some(text), None) => ("schema", text.clone()),
            (None, Some(file)) => {
                let path = self.format_path(place, &["avro", "schema_file"], file);
                let text = read_text(Path::new(&path), SCHEMA_BYTES_MAX);
                let unreadable =
                    |why| WrongFormat::at(&["avro", "schema_file"], format!("could not read the schema {path}: {why}"));
                ("schema_file", text.map_err(unreadable)?)
            }
            (None, None) => {
                let key = if avro.schema_id.is_some() { "schema_id" } else { "encoding" };
                return match (avro.encoding, avro.schema_id) {
                    (model::AvroEncoding::Datum, None) => Ok(FormatSettings::Avro),
                    _ => Err(WrongFormat::at(&["avro", key], "single records need a `schema` or a `schema_file`")),
                };
            }
        };
        let schema = AvroSchema::parse(&text).map_err(|error| WrongFormat::at(&["avro", key], error))?;
        let encoding = match (avro.encoding, avro.schema_id) {
            (model::AvroEncoding::Confluent, id) => AvroEncoding::Confluent { id },
            (_, Some(_)) => {
                let why = "records have the number of their schema only with `encoding: confluent`";
                return Err(WrongFormat::at(&["avro", "schema_id"], why));
            }
            (model::AvroEncoding::Datum, None) => AvroEncoding::Datum,
            (model::AvroEncoding::SingleObject, None) => AvroEncoding::SingleObject,
        };
        Ok(FormatSettings::AvroRecords { schema: schema.into(), encoding })
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
