//! What a decoder is made from.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::avro::AvroSchema;
use super::cloudwatch::cloudwatch_columns;
use super::column::Column;
use super::names::Names;
use super::protobuf::ProtobufMessage;
use crate::batch::{OffsetKind, RAW_COLUMN, RESCUED_COLUMN, provenance_fields};
use crate::error::{Error, Result};
use crate::framing::Framing;

/// Rows of a batch unless the settings say otherwise: DataFusion's own batch size, at which a batch of some
/// tens of columns stays within a core's cache.
pub const BATCH_ROWS_MAX: usize = 8192;

/// Greatest `record_bytes_max`: a batch's strings are addressed by 31 bits, and a batch may hold one record more
/// than fits its byte bound.
pub const RECORD_BYTES_LIMIT: usize = 1 << 30;

/// What a decoder is made from.
#[derive(Debug, Clone)]
pub struct DecoderSettings {
    /// The source's name, as it stands in `_source`.
    pub source: Arc<str>,
    /// How the bytes read.
    pub format: FormatSettings,
    /// The declared columns, in order; none for [`FormatSettings::Raw`].
    pub columns: Vec<Field>,
    /// What becomes of fields that no column declares.
    pub unknown: UnknownColumns,
    /// How the source numbers its records.
    pub offsets: OffsetKind,
    /// Most rows of a decoded batch, usually [`BATCH_ROWS_MAX`].
    pub batch_rows_max: usize,
    /// Longest record; a longer one is a reject. At most [`RECORD_BYTES_LIMIT`].
    pub record_bytes_max: usize,
    /// Whether the records are also given as they came, for an archive. Records of Avro and Parquet never are.
    pub archives: bool,
}

/// How the bytes of a source read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatSettings {
    /// JSON documents, one a line, back to back, or the elements of arrays.
    Json,
    /// Comma-separated values.
    Csv {
        /// Whether the first record names the columns.
        header: bool,
        /// What stands between two fields.
        delimiter: u8,
        /// What stands around a field that holds delimiters or line breaks.
        quote: u8,
        /// Texts that mean NULL, beside the empty field.
        nulls: Vec<String>,
    },
    /// Parquet files, by row groups.
    Parquet,
    /// Avro container files by blocks, or one in each record.
    Avro,
    /// Single records of Avro.
    AvroRecords {
        /// The schema with which the newest are written; it names the columns.
        schema: Arc<AvroSchema>,
        /// Those with which older ones are.
        older: Vec<AvroWriter>,
        /// What stands before each.
        encoding: AvroEncoding,
    },
    /// Messages of Protocol Buffers.
    Protobuf {
        /// Their type.
        message: ProtobufMessage,
        /// Whether each has its length before it; otherwise a record is one.
        delimited: bool,
    },
    /// What CloudWatch Logs sends to a subscription.
    CloudWatchLogs,
    /// No decoding: a line of a file, or a record, is a row of one binary column.
    Raw,
    /// Rows that are typed already, such as generated ones. Every format takes such chunks; this one no others.
    Batch,
}

/// A schema of older records, read as the newest wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvroWriter {
    /// What names it before a record.
    pub id: u128,
    /// The schema, made to be read as the newest.
    pub schema: Arc<AvroSchema>,
}

impl AvroWriter {
    /// Makes an older schema into one that is read as the newest; its fingerprint names it, if nothing else does.
    pub fn new(older: AvroSchema, newest: &AvroSchema, id: Option<u128>) -> Result<Self> {
        let id = id.unwrap_or(older.fingerprint.into());
        Ok(Self { id, schema: Arc::new(older.read_as(newest)?) })
    }
}

/// What stands before a single record of Avro.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvroEncoding {
    /// Nothing.
    Datum,
    /// `c3 01` and the schema's fingerprint (Avro's single-object encoding).
    SingleObject,
    /// `00` and the number of the schema in a registry, in four bytes.
    Confluent {
        /// The number of the newest schema; any, if not given.
        id: Option<u32>,
    },
    /// `03`, `00` or (packed by zlib) `05`, and the version of the schema in the registry of AWS Glue, in 16 bytes.
    Glue {
        /// The version of the newest schema; any, if not given.
        version: Option<u128>,
    },
}

/// What becomes of fields that no column declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownColumns {
    /// They are kept, as a JSON object, in `_rescued`.
    Rescue,
    /// They are left out.
    Ignore,
    /// The record is rejected.
    Reject,
}

impl FormatSettings {
    /// Gives what a source of byte streams must know of the format.
    pub fn framing(&self) -> Framing {
        match self {
            FormatSettings::Json => Framing::Json,
            &FormatSettings::Csv { header, delimiter, quote, .. } => Framing::Csv { header, delimiter, quote },
            FormatSettings::Parquet => Framing::Parquet,
            FormatSettings::Avro => Framing::Avro,
            FormatSettings::CloudWatchLogs => Framing::Json,
            FormatSettings::Protobuf { delimited: true, .. } => Framing::Delimited,
            FormatSettings::Protobuf { delimited: false, .. } => Framing::Whole,
            FormatSettings::AvroRecords { .. } | FormatSettings::Raw | FormatSettings::Batch => Framing::Whole,
        }
    }

    /// Gives the columns that the format itself names; nothing if they depend on the content.
    pub fn own_columns(&self) -> Option<Vec<Field>> {
        match self {
            FormatSettings::AvroRecords { schema, .. } => Some(schema.columns()),
            FormatSettings::Protobuf { message, .. } => Some(message.columns()),
            FormatSettings::CloudWatchLogs => Some(cloudwatch_columns()),
            _ => None,
        }
    }

    fn can_have_unknown_fields(&self) -> bool {
        !matches!(self, FormatSettings::Raw | FormatSettings::Batch)
    }
}

/// Checked settings, and the schema that follows from them.
pub(super) struct Plan {
    pub(super) settings: DecoderSettings,
    /// The declared columns; `_raw` for format raw.
    pub(super) declared: Vec<Field>,
    /// The declared columns' names, to find them by.
    pub(super) names: Names,
    /// Whether `_rescued` stands behind the declared columns.
    pub(super) rescues: bool,
    pub(super) schema: SchemaRef,
}

impl Plan {
    pub(super) fn new(settings: DecoderSettings) -> Result<Self> {
        check(&settings)?;
        let declared = match settings.format {
            FormatSettings::Raw => vec![Field::new(RAW_COLUMN, DataType::BinaryView, false)],
            _ => settings.columns.clone(),
        };
        let rescues = settings.unknown == UnknownColumns::Rescue && settings.format.can_have_unknown_fields();
        let rescued = rescues.then(|| Field::new(RESCUED_COLUMN, DataType::Utf8View, true));
        let fields: Vec<Field> =
            declared.iter().cloned().chain(rescued).chain(provenance_fields(settings.offsets)).collect();
        let mut taken = HashSet::new();
        for field in &fields {
            if !taken.insert(field.name()) {
                return Err(Error::config(format!(
                    "could not decode source \"{}\": column \"{}\" is declared twice, or its name is one that nexus \
                     itself adds",
                    settings.source,
                    field.name()
                )));
            }
        }
        let names = Names::new(declared.iter().map(|field| field.name().as_str()));
        let plan = Self { settings, declared, names, rescues, schema: Arc::new(Schema::new(fields)) };
        // Rows that are typed already may be of any type; nothing of them is decoded.
        if plan.settings.format != FormatSettings::Batch {
            plan.columns()?;
        }
        Ok(plan)
    }

    /// Makes the declared columns, empty.
    pub(super) fn columns(&self) -> Result<Vec<Column>> {
        self.declared.iter().map(|field| Column::new(field, field.name())).collect()
    }
}

fn check(settings: &DecoderSettings) -> Result<()> {
    let source = &settings.source;
    if settings.batch_rows_max == 0 {
        return Err(Error::config(format!("could not decode source \"{source}\": batches of 0 rows were asked for")));
    }
    if settings.record_bytes_max > RECORD_BYTES_LIMIT {
        return Err(Error::config(format!(
            "could not decode source \"{source}\": records may be limited to at most {RECORD_BYTES_LIMIT} bytes, not {}",
            settings.record_bytes_max
        )));
    }
    if settings.format == FormatSettings::Raw && !settings.columns.is_empty() {
        return Err(Error::config(format!(
            "could not decode source \"{source}\": format raw has the one column \"{RAW_COLUMN}\"; remove the columns"
        )));
    }
    if let FormatSettings::Csv { delimiter, quote, .. } = settings.format {
        let breaks = [b'\n', b'\r'];
        if delimiter == quote || breaks.contains(&delimiter) || breaks.contains(&quote) {
            return Err(Error::config(format!(
                "could not decode source \"{source}\": the csv delimiter and quote must differ, and be no line breaks"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decoder;
    use crate::decode::testing::{field, settings};
    use crate::error::ErrorKind;

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let json = || settings(FormatSettings::Json, vec![field("id", DataType::Int64)]);
        let csv = |delimiter, quote| FormatSettings::Csv { header: true, delimiter, quote, nulls: vec![] };
        let cases = [
            (DecoderSettings { batch_rows_max: 0, ..json() }, "batches of 0 rows"),
            (DecoderSettings { record_bytes_max: usize::MAX, ..json() }, "at most 1073741824 bytes"),
            (DecoderSettings { format: FormatSettings::Raw, ..json() }, "remove the columns"),
            (DecoderSettings { format: csv(b'"', b'"'), ..json() }, "must differ"),
            (DecoderSettings { format: csv(b'\n', b'"'), ..json() }, "be no line breaks"),
            (settings(FormatSettings::Json, vec![field("_offset", DataType::Int64)]), "\"_offset\" is declared twice"),
            (
                settings(FormatSettings::Json, vec![field("x", DataType::Float16)]),
                "\"x\": type Float16 is not supported",
            ),
        ];
        for (settings, what) in cases {
            let error = decoder(settings).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn rescued_fields_stand_before_the_provenance() {
        let names = |format, offsets| {
            let settings = DecoderSettings { offsets, ..settings(format, vec![field("id", DataType::Int64)]) };
            let schema = decoder(settings).unwrap().schema();
            schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            names(FormatSettings::Json, OffsetKind::Sequence),
            "id _rescued _source _partition _offset _ingested_at _key"
        );
        assert_eq!(names(FormatSettings::Batch, OffsetKind::Number), "id _source _partition _offset _ingested_at");
    }
}
