//! Hive partition folders: which folder each row belongs to.
//!
//! A folder is `column=value`, escaped as Hive does (`FileUtils.escapePathName`
//! of Apache Hive), so that no value can leave the table's folder. The column is
//! not in the files: its value stands in the folder's name alone.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// The folder of rows whose value is NULL or empty, as Hive names it.
const NULL_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// Longest name of a folder in bytes: what local file systems allow.
const FOLDER_NAME_BYTES_MAX: usize = 255;

/// Most folders of one epoch. Each costs at least a file, and ten thousand
/// files an epoch are more than any reader of the table would thank for.
const FOLDERS_MAX: usize = 10_000;

/// Microseconds of a day and of an hour.
const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;

/// What names a level of partition folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionBy {
    /// The column's value: `origin=JFK`. The column is left out of the files.
    Column(String),
    /// The date of a timestamp in UTC, or of a date: `ts_date=2013-01-31`.
    Date(String),
    /// The hour of a timestamp in UTC: `ts_hour=2013-01-31-05`.
    Hour(String),
}

/// Tells rows' folders apart.
pub(super) struct Router {
    levels: Vec<Level>,
    /// The columns that no folder's name holds, by their index in the stored schema.
    kept: Vec<usize>,
    file_schema: SchemaRef,
    /// The others with their types, as JSON; nothing if there are none.
    partition_columns: Option<String>,
    converter: Option<RowConverter>,
    /// Folders seen in this epoch, by the encoded values that name them.
    known: HashMap<Box<[u8]>, usize>,
    folders: Vec<Arc<str>>,
    /// Most folders of one epoch.
    folders_max: usize,
}

struct Level {
    /// Index of the column in the stored schema.
    column: usize,
    /// The escaped name before the `=`.
    name: String,
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Value,
    Date,
    Hour,
    /// The hour in folders within one another, without the name of a column.
    HourPath,
    /// No folder: other values stand in other files of the same one.
    Apart,
}

/// Rows of one folder.
pub(super) struct Group {
    /// The folder's number in this epoch.
    pub(super) folder: usize,
    /// Only the columns that stand in the file.
    pub(super) rows: RecordBatch,
}

impl Router {
    /// Checks the columns that name folders against the stored schema.
    pub(super) fn new(partition_by: &[PartitionBy], schema: &SchemaRef, table: &str) -> Result<Self> {
        let levels = partition_by.iter().map(|by| Level::new(by, schema, table)).collect::<Result<_>>()?;
        Self::of_levels(levels, schema, table)
    }

    /// Tells records of an archive apart: by the hour in which they arrived, and by the header that they share. There may be
    /// any number of headers: they are input.
    pub(super) fn of_records(schema: &SchemaRef, archive: &str) -> Result<Self> {
        let level = |column, unit| Level { column, name: String::new(), unit };
        let router = Self::of_levels(vec![level(0, Unit::HourPath), level(1, Unit::Apart)], schema, archive)?;
        Ok(Self { folders_max: usize::MAX, ..router })
    }

    fn of_levels(levels: Vec<Level>, schema: &SchemaRef, table: &str) -> Result<Self> {
        let fields = levels
            .iter()
            .map(|level| match level.unit {
                Unit::Value | Unit::Apart => SortField::new(schema.field(level.column).data_type().clone()),
                Unit::Date | Unit::Hour | Unit::HourPath => SortField::new(DataType::Int64),
            })
            .collect::<Vec<_>>();
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        let in_folders: Vec<usize> =
            levels.iter().filter(|level| level.unit == Unit::Value).map(|level| level.column).collect();
        let kept: Vec<usize> = (0..schema.fields().len()).filter(|column| !in_folders.contains(column)).collect();
        if kept.is_empty() {
            return Err(Error::config(format!(
                "the table {table} is partitioned by all of its columns, so that its files would hold none; \
                 partition it by fewer"
            )));
        }
        Ok(Self {
            file_schema: if in_folders.is_empty() { schema.clone() } else { Arc::new(schema.project(&kept)?) },
            partition_columns: describe(schema, &in_folders),
            kept,
            levels,
            converter,
            known: HashMap::new(),
            folders: Vec::new(),
            folders_max: FOLDERS_MAX,
        })
    }

    /// Gives the schema of the files.
    pub(super) fn file_schema(&self) -> &SchemaRef {
        &self.file_schema
    }

    /// Gives the columns that the files lack, with their types, as JSON.
    pub(super) fn partition_columns(&self) -> Option<&str> {
        self.partition_columns.as_deref()
    }

    /// Takes any number of folders: of rows of several epochs, each of which was held to the limit.
    pub(super) fn lift_limit(&mut self) {
        self.folders_max = usize::MAX;
    }

    /// Forgets the folders of the epoch before.
    pub(super) fn reset(&mut self) {
        self.known.clear();
        self.folders.clear();
    }

    /// Gives the path of a folder relative to the table; empty if there are no partitions.
    pub(super) fn folder(&self, number: usize) -> Arc<str> {
        self.folders.get(number).cloned().unwrap_or_default()
    }

    /// Gives a folder that is there already a number in this epoch.
    pub(super) fn name(&mut self, folder: &str) -> usize {
        self.folders.push(folder.into());
        self.folders.len() - 1
    }

    /// Divides rows by their folders, in the order in which these first occur.
    pub(super) fn route(&mut self, rows: RecordBatch) -> Result<Vec<Group>> {
        let Some(converter) = &self.converter else {
            return Ok(vec![Group { folder: 0, rows }]);
        };
        let keys: Vec<ArrayRef> =
            self.levels.iter().map(|level| level.key(rows.column(level.column))).collect::<Result<_>>()?;
        let encoded = converter_rows(converter, &keys)?;

        let mut groups: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut group_of = HashMap::new();
        let mut previous = None;
        let mut current = 0;
        for (number, key) in (0_u32..).zip(encoded.iter()) {
            // Most inputs are ordered by time or by source, so the folder is often that of the row before.
            if previous != Some(key) {
                let folder = match self.known.get(key.as_ref()) {
                    Some(folder) => *folder,
                    None => self.learn(key.as_ref(), &keys, number as usize)?,
                };
                current = *group_of.entry(folder).or_insert_with(|| {
                    groups.push((folder, Vec::new()));
                    groups.len() - 1
                });
                previous = Some(key);
            }
            if let Some((_, indices)) = groups.get_mut(current) {
                indices.push(number);
            }
        }
        let kept = rows.project(&self.kept)?;
        groups.into_iter().map(|(folder, indices)| Ok(Group { folder, rows: pick(&kept, indices)? })).collect()
    }

    /// Remembers a folder that has not been seen in this epoch.
    fn learn(&mut self, key: &[u8], keys: &[ArrayRef], row: usize) -> Result<usize> {
        if self.folders.len() >= self.folders_max {
            return Err(Error::config(format!(
                "one epoch has rows for more than {FOLDERS_MAX} partition folders; partition by columns with fewer values"
            )));
        }
        let mut path = String::new();
        for (level, values) in self.levels.iter().zip(keys) {
            if level.unit == Unit::Apart {
                continue;
            }
            let start = if path.is_empty() { 0 } else { path.len() + 1 };
            if start > 0 {
                path.push('/');
            }
            if level.unit == Unit::HourPath {
                path.push_str(&level.text(values, row)?.unwrap_or_default());
                continue;
            }
            path.push_str(&level.name);
            path.push('=');
            match level.text(values, row)? {
                None => path.push_str(NULL_VALUE),
                // This text is not NULL. Our own reader sees by the escape that it is not.
                Some(text) if text == NULL_VALUE => escape_all(&text, &mut path),
                Some(text) => escape(&text, &mut path),
            }
            if path.len() - start > FOLDER_NAME_BYTES_MAX {
                return Err(Error::data(format!(
                    "a value of the partition column in `{}=` is too long for the name of a folder \
                     (more than {FOLDER_NAME_BYTES_MAX} bytes with its escapes)",
                    level.name
                )));
            }
        }
        self.folders.push(path.into());
        let number = self.folders.len() - 1;
        self.known.insert(key.into(), number);
        Ok(number)
    }
}

impl Level {
    fn new(by: &PartitionBy, schema: &Schema, table: &str) -> Result<Self> {
        let (column, unit, ending) = match by {
            PartitionBy::Column(column) => (column, Unit::Value, ""),
            PartitionBy::Date(column) => (column, Unit::Date, "_date"),
            PartitionBy::Hour(column) => (column, Unit::Hour, "_hour"),
        };
        let Some((index, field)) = schema.column_with_name(column) else {
            let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::config(format!(
                "the table {table} is partitioned by `{column}`, which is not one of its columns: {}",
                names.join(", ")
            )));
        };
        let data_type = field.data_type();
        let fits = match unit {
            Unit::Value | Unit::Apart => is_plain(data_type),
            Unit::Date => matches!(data_type, DataType::Timestamp(..) | DataType::Date32),
            Unit::Hour | Unit::HourPath => matches!(data_type, DataType::Timestamp(..)),
        };
        if !fits {
            let wanted = match unit {
                Unit::Value | Unit::Apart => "a boolean, a whole number, a decimal, text, a date or a timestamp",
                Unit::Date => "a timestamp or a date",
                Unit::Hour | Unit::HourPath => "a timestamp",
            };
            return Err(Error::config(format!(
                "the table {table} cannot be partitioned by `{column}`: it is {data_type}, and must be {wanted}"
            )));
        }
        let mut name = String::new();
        escape(&format!("{column}{ending}"), &mut name);
        if unit != Unit::Value && schema.column_with_name(&name).is_some() {
            return Err(Error::config(format!(
                "the table {table} has a column `{name}`, which is also the folder that partitioning by `{column}` makes; \
                 rename the column"
            )));
        }
        Ok(Self { column: index, name, unit })
    }

    /// Gives the values that tell folders of this level apart.
    fn key(&self, column: &ArrayRef) -> Result<ArrayRef> {
        let length = match self.unit {
            Unit::Value | Unit::Apart => return Ok(column.clone()),
            Unit::Date if *column.data_type() == DataType::Date32 => return Ok(cast(column, &DataType::Int64)?),
            Unit::Date => DAY_US,
            Unit::Hour | Unit::HourPath => HOUR_US,
        };
        // The stored schema has microseconds everywhere.
        let micros = cast(column, &DataType::Int64)?;
        let counts: Int64Array = micros.as_primitive::<Int64Type>().unary(|us| us.div_euclid(length));
        Ok(Arc::new(counts))
    }

    /// Gives the text behind the `=`, not yet escaped; nothing for NULL and for an empty text.
    fn text(&self, values: &ArrayRef, row: usize) -> Result<Option<String>> {
        if values.is_null(row) {
            return Ok(None);
        }
        let (length, pattern) = match self.unit {
            Unit::Value | Unit::Apart => {
                let text = ArrayFormatter::try_new(values, &FormatOptions::default())?.value(row).try_to_string()?;
                return Ok(Some(text).filter(|text| !text.is_empty()));
            }
            Unit::Date => (DAY_US, "%Y-%m-%d"),
            Unit::Hour => (HOUR_US, "%Y-%m-%d-%H"),
            Unit::HourPath => (HOUR_US, "%Y/%m/%d/%H"),
        };
        let count = values.as_primitive::<Int64Type>().value(row);
        let time = count.checked_mul(length).and_then(chrono::DateTime::from_timestamp_micros);
        let time = time.ok_or_else(|| Error::data(format!("a time of the partition `{}` has no date", self.name)))?;
        Ok(Some(time.format(pattern).to_string()))
    }
}

/// Gives what the folders of a file say: the name and the value of each, without
/// escapes, the outermost first. A value of nothing is NULL or an empty text.
///
/// `path` is relative to the table's folder. The columns of `date(ts)` and
/// `hour(ts)` are among them.
///
/// ```
/// use nexus_operators::sink::parquet::folder_values;
///
/// let path = "origin=a%2Fb/gate=__HIVE_DEFAULT_PARTITION__/flights-1-1-0.parquet";
/// assert_eq!(folder_values(path), [("origin".into(), Some("a/b".into())), ("gate".into(), None)]);
/// ```
pub fn folder_values(path: &str) -> Vec<(String, Option<String>)> {
    let (folders, _file) = path.rsplit_once('/').unwrap_or_default();
    let pairs = folders.split('/').filter_map(|folder| folder.split_once('='));
    pairs.map(|(name, value)| (unescape(name), (value != NULL_VALUE).then(|| unescape(value)))).collect()
}

fn unescape(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Names columns and their types as JSON.
fn describe(schema: &Schema, columns: &[usize]) -> Option<String> {
    let describe = |&column: &usize| {
        let field = schema.field(column);
        serde_json::json!({ "name": field.name(), "type": type_name(field.data_type()) })
    };
    let described: Vec<_> = columns.iter().map(describe).collect();
    (!described.is_empty()).then(|| serde_json::Value::from(described).to_string())
}

/// Names the type of a partition column as a pipeline file does; a stored schema has few types.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".into(),
        DataType::Date32 => "date".into(),
        DataType::Timestamp(_, Some(_)) => "timestamp".into(),
        DataType::Timestamp(_, None) => "timestamp_ntz".into(),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => format!("decimal({precision}, {scale})"),
        text if text.is_string() => "string".into(),
        number => number.to_string().to_lowercase(),
    }
}

fn converter_rows(converter: &RowConverter, keys: &[ArrayRef]) -> Result<arrow::row::Rows> {
    Ok(converter.convert_columns(keys)?)
}

/// Takes rows by ascending numbers, without a copy where they lie together.
fn pick(rows: &RecordBatch, indices: Vec<u32>) -> Result<RecordBatch> {
    if indices.len() == rows.num_rows() {
        return Ok(rows.clone());
    }
    match (indices.first(), indices.last()) {
        (Some(&first), Some(&last)) if (last - first) as usize + 1 == indices.len() => {
            Ok(rows.slice(first as usize, indices.len()))
        }
        _ => Ok(take_record_batch(rows, &UInt32Array::from(indices))?),
    }
}

/// Tells whether values of a type can name folders. Floats cannot: what looks equal may differ.
fn is_plain(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_decimal()
        || data_type.is_string()
        || matches!(data_type, DataType::Boolean | DataType::Date32 | DataType::Timestamp(..))
}

/// Appends `text` with the characters escaped that Hive escapes in the names of folders.
fn escape(text: &str, path: &mut String) {
    for c in text.chars() {
        let special = c.is_ascii_control()
            || matches!(c, '"' | '#' | '%' | '\'' | '*' | '/' | ':' | '=' | '?' | '\\' | '{' | '[' | ']' | '^');
        if special {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{:02X}", u32::from(c));
        } else {
            path.push(c);
        }
    }
}

/// Appends `text` with each of its bytes escaped.
fn escape_all(text: &str, path: &mut String) {
    for byte in text.bytes() {
        // As above.
        let _ = write!(path, "%{byte:02X}");
    }
}
