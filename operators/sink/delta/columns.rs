//! The columns of a Delta table: which type of Delta each has, and what becomes of them when the table's rows get others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use serde_json::{Map, Value, json};

use super::action::{Metadata, Protocol};
use crate::error::{Error, Result};
use crate::sink::parquet::PartitionBy;

/// Characters that Delta allows in no column's name, since readers use them in their own notation.
const NOT_IN_NAMES: [char; 10] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// The feature that a table with times without a zone needs.
const TIMESTAMP_NTZ: &str = "timestampNtz";

/// What a writer may be asked for, beside what [`TIMESTAMP_NTZ`] is: both concern rows that are changed or computed.
const WRITER_FEATURES: [&str; 3] = ["appendOnly", "invariants", TIMESTAMP_NTZ];

/// The columns of a table, as rows bring them.
pub(super) struct Columns {
    table: String,
    /// The rows as they are stored.
    stored: SchemaRef,
    /// The columns of the Delta table, those that only folders hold among them, in Delta's JSON.
    fields: Vec<Value>,
    partition_columns: Vec<String>,
}

impl Columns {
    /// Finds the type of each column, and refuses those that have none.
    pub(super) fn of(rows: &Schema, partition_by: &[PartitionBy], table: &str) -> Result<Self> {
        let refused = |name: &str, why: String| {
            Error::config(format!("the column `{name}` of the table {table} cannot be stored in a Delta table: {why}"))
        };
        let (mut stored, mut fields, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for field in rows.fields() {
            let (field, described) = described(field).map_err(|why| refused(field.name(), why))?;
            if !names.insert(field.name().to_lowercase()) {
                let why =
                    "another column has the same name but for upper and lower case, which Delta does not tell apart";
                return Err(refused(field.name(), format!("{why}; give it another one with AS")));
            }
            stored.push(field);
            fields.push(described);
        }
        let mut partition_columns = Vec::new();
        for by in partition_by {
            // The folders of dates and hours are columns of their own, which no file holds.
            let (name, made_of) = match by {
                PartitionBy::Column(name) => (name.clone(), None),
                PartitionBy::Date(name) => (format!("{name}_date"), Some("date")),
                PartitionBy::Hour(name) => (format!("{name}_hour"), Some("string")),
            };
            match made_of {
                Some(data_type) => fields.push(field_of(&name, json!(data_type), true)),
                // An empty text is NULL in the name of a folder.
                None => fields.iter_mut().filter(|field| field["name"] == name.as_str()).for_each(make_nullable),
            }
            partition_columns.push(name);
        }
        Ok(Self { table: table.to_owned(), stored: Arc::new(Schema::new(stored)), fields, partition_columns })
    }

    /// Gives the rows' columns as they are stored.
    pub(super) fn stored(&self) -> &SchemaRef {
        &self.stored
    }

    /// Gives what a table of these columns begins with.
    pub(super) fn begin(&self, id: String, created_ms: i64) -> (Protocol, Metadata) {
        let metadata = Metadata {
            id,
            schema_string: schema_string(&self.fields),
            partition_columns: self.partition_columns.clone(),
            created_time: Some(created_ms),
            ..Metadata::default()
        };
        let plain = Protocol { min_reader_version: 1, min_writer_version: 2, ..Protocol::default() };
        (self.upgraded(&plain).unwrap_or(plain), metadata)
    }

    /// Holds the columns against those of the table: gives what the table has to say from now on, if that is more.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the table does not take the rows.
    pub(super) fn fit(&self, protocol: &Protocol, known: &Metadata) -> Result<(Option<Protocol>, Option<Metadata>)> {
        let refused = |differences: Vec<String>| {
            let (table, differences) = (&self.table, differences.join("; "));
            Error::config(format!(
                "the Delta table of {table} does not take its rows: {differences}; bring the two together, or give the \
                 table another name, under which it begins anew"
            ))
        };
        if let Some(feature) = unknown_feature(protocol) {
            return Err(refused(vec![format!("it asks its writers for {feature}, which nexus does not have")]));
        }
        let mut fields = fields_of(known).ok_or_else(|| refused(vec!["its columns cannot be read".to_owned()]))?;
        let mut differences = Vec::new();
        if known.partition_columns != self.partition_columns {
            let list = |names: &[String]| format!("[{}]", names.join(", "));
            let (was, is) = (list(&known.partition_columns), list(&self.partition_columns));
            differences.push(format!("it is partitioned by {was}, and the rows by {is}"));
        }
        for field in &mut fields {
            let name = field["name"].as_str().unwrap_or_default().to_owned();
            if field["metadata"].as_object().is_some_and(|of| of.keys().any(|key| key.starts_with("delta."))) {
                differences.push(format!("`{name}` is computed or checked by its writers"));
            }
            match self.fields.iter().find(|own| own["name"] == name.as_str()) {
                None if field["nullable"] == false => differences.push(format!("`{name}` is missing, and not NULL")),
                None => {}
                Some(own) if own["type"] != field["type"] => {
                    differences.push(format!("`{name}` is {}, and the rows have {}", field["type"], own["type"]));
                }
                Some(own) if own["nullable"] == true => make_nullable(field),
                Some(_) => {}
            }
        }
        if !differences.is_empty() {
            return Err(refused(differences));
        }
        let added: Vec<Value> = self.fields.iter().filter(|own| !has(&fields, own)).cloned().collect();
        fields.extend(added.into_iter().map(|mut field| {
            // Rows that are there have no value for it.
            make_nullable(&mut field);
            field
        }));
        let changed = fields_of(known).as_ref() != Some(&fields);
        let metadata = changed.then(|| Metadata { schema_string: schema_string(&fields), ..known.clone() });
        Ok((self.upgraded(protocol), metadata))
    }

    /// Gives the partition columns with what the folders of a file say of them.
    pub(super) fn partition_values(&self, folders: Vec<(String, Option<String>)>) -> BTreeMap<String, Option<String>> {
        let mut values: BTreeMap<_, _> = self.partition_columns.iter().map(|name| (name.clone(), None)).collect();
        for (name, value) in folders {
            let is_local = self.fields.iter().any(|own| own["name"] == name.as_str() && own["type"] == "timestamp_ntz");
            // Delta writes such a time as SQL does.
            values.insert(name, if is_local { value.map(|text| text.replacen('T', " ", 1)) } else { value });
        }
        values
    }

    /// Gives the protocol that the columns need, if it is not the one that is there.
    fn upgraded(&self, known: &Protocol) -> Option<Protocol> {
        let has_it = |features: &Option<Vec<String>>| features.iter().flatten().any(|name| name == TIMESTAMP_NTZ);
        let needs = self.stored.fields().iter().any(|field| is_local_time(field.data_type()));
        (needs && !has_it(&known.writer_features)).then(|| Protocol {
            min_reader_version: 3,
            min_writer_version: 7,
            reader_features: Some(vec![TIMESTAMP_NTZ.to_owned()]),
            writer_features: Some(WRITER_FEATURES.map(str::to_owned).to_vec()),
        })
    }
}

/// Gives what a table needs that cannot be had here.
fn unknown_feature(protocol: &Protocol) -> Option<String> {
    let unknown = |version: u32, plain: u32, named: u32, features: &Option<Vec<String>>| match features {
        _ if version <= plain => None,
        Some(features) if version == named => {
            features.iter().find(|name| !WRITER_FEATURES.contains(&name.as_str())).map(|name| format!("`{name}`"))
        }
        _ => Some(format!("version {version} of the protocol")),
    };
    unknown(protocol.min_reader_version, 1, 3, &protocol.reader_features)
        .or_else(|| unknown(protocol.min_writer_version, 2, 7, &protocol.writer_features))
}

fn fields_of(metadata: &Metadata) -> Option<Vec<Value>> {
    let mut schema: Value = serde_json::from_str(&metadata.schema_string).ok()?;
    match schema.get_mut("fields").map(Value::take) {
        Some(Value::Array(fields)) => Some(fields),
        _ => None,
    }
}

fn schema_string(fields: &[Value]) -> String {
    json!({ "type": "struct", "fields": fields }).to_string()
}

fn has(fields: &[Value], wanted: &Value) -> bool {
    fields.iter().any(|field| field["name"] == wanted["name"])
}

fn field_of(name: &str, data_type: Value, nullable: bool) -> Value {
    json!({ "name": name, "type": data_type, "nullable": nullable, "metadata": Map::new() })
}

fn make_nullable(field: &mut Value) {
    if let Some(nullable) = field.get_mut("nullable") {
        *nullable = Value::Bool(true);
    }
}

/// Gives a column as it is stored, and as Delta describes it.
fn described(field: &Field) -> Result<(Arc<Field>, Value), String> {
    let name = field.name();
    if let Some(c) = name.chars().find(|c| NOT_IN_NAMES.contains(c)) {
        return Err(format!("its name has a {c:?}, which Delta does not allow; give it another one with AS"));
    }
    let (stored, described) = type_of(field.data_type())?;
    let field = field.clone().with_data_type(stored);
    let described = field_of(name, described, field.is_nullable());
    Ok((Arc::new(field), described))
}

/// Gives the type under which values are stored, and its name in Delta. Delta has no unsigned numbers: they become the
/// next wider ones.
fn type_of(data_type: &DataType) -> Result<(DataType, Value), String> {
    let plain = |stored: DataType, name: &str| Ok((stored, json!(name)));
    match data_type {
        DataType::Boolean => plain(DataType::Boolean, "boolean"),
        DataType::Int8 => plain(DataType::Int8, "byte"),
        DataType::Int16 | DataType::UInt8 => plain(DataType::Int16, "short"),
        DataType::Int32 | DataType::UInt16 => plain(DataType::Int32, "integer"),
        DataType::Int64 | DataType::UInt32 => plain(DataType::Int64, "long"),
        DataType::UInt64 => Ok((DataType::Decimal128(20, 0), json!("decimal(20,0)"))),
        DataType::Float16 | DataType::Float32 => plain(DataType::Float32, "float"),
        DataType::Float64 => plain(DataType::Float64, "double"),
        text if text.is_string() => plain(text.clone(), "string"),
        DataType::FixedSizeBinary(_) => plain(DataType::Binary, "binary"),
        bytes if bytes.is_binary() => plain(bytes.clone(), "binary"),
        DataType::Date32 | DataType::Date64 => plain(DataType::Date32, "date"),
        DataType::Timestamp(_, Some(_)) => {
            plain(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), "timestamp")
        }
        DataType::Timestamp(_, None) => plain(DataType::Timestamp(TimeUnit::Microsecond, None), "timestamp_ntz"),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => match u8::try_from(*scale) {
            Ok(digits) if digits <= *precision && *precision <= 38 => {
                Ok((DataType::Decimal128(*precision, *scale), json!(format!("decimal({precision},{digits})"))))
            }
            _ => Err(format!("{data_type} has no type in Delta, whose decimals have at most 38 digits; CAST it")),
        },
        DataType::Dictionary(_, values) => type_of(values),
        DataType::RunEndEncoded(_, values) => type_of(values.data_type()),
        DataType::List(item)
        | DataType::ListView(item)
        | DataType::LargeList(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => {
            let (stored, described) = type_of(item.data_type())?;
            let stored = DataType::List(Arc::new(item.as_ref().clone().with_data_type(stored)));
            Ok((stored, json!({ "type": "array", "elementType": described, "containsNull": item.is_nullable() })))
        }
        DataType::Struct(fields) if !fields.is_empty() => {
            let (stored, described): (Vec<_>, Vec<_>) =
                fields.iter().map(|field| described(field)).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
            Ok((DataType::Struct(Fields::from(stored)), json!({ "type": "struct", "fields": described })))
        }
        DataType::Map(entries, sorted) => map_type(entries, *sorted),
        DataType::Time32(_) | DataType::Time64(_) => {
            Err("Delta has no times of day; turn it into text with CAST(... AS VARCHAR)".to_owned())
        }
        other => Err(format!("{other} has no type in Delta; turn it into a number or text")),
    }
}

fn map_type(entries: &Field, sorted: bool) -> Result<(DataType, Value), String> {
    let DataType::Struct(fields) = entries.data_type() else { return Err("it is not a map".to_owned()) };
    let [key, value] = fields.as_ref() else { return Err("it is not a map".to_owned()) };
    let (stored_key, key_type) = type_of(key.data_type())?;
    let (stored_value, value_type) = type_of(value.data_type())?;
    let fields: Vec<Field> =
        vec![key.as_ref().clone().with_data_type(stored_key), value.as_ref().clone().with_data_type(stored_value)];
    let entries = entries.clone().with_data_type(DataType::Struct(fields.into()));
    let described = json!({
        "type": "map", "keyType": key_type, "valueType": value_type, "valueContainsNull": value.is_nullable(),
    });
    Ok((DataType::Map(Arc::new(entries), sorted), described))
}

/// Tells whether a type is, or holds, a time without a zone.
fn is_local_time(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::List(item) | DataType::Map(item, _) => is_local_time(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| is_local_time(field.data_type())),
        _ => false,
    }
}
