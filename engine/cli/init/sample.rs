//! The rows that a pipeline is drafted for: their columns, and what is in them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use arrow::datatypes::{DataType, Field};
use chrono::{DateTime, Utc};
use nexus_operators::batch::timestamp_type;
use nexus_operators::decode::{FormatSettings, infer};
use nexus_operators::source::sample::sample;
use nexus_operators::transform::rows::as_json;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::cli::Failure;
use crate::plan::format_of;
use crate::preview::{PreviewSettings, preview};
use crate::spec::model::Format;
use crate::spec::{columns, is_own_column, parse};
use crate::trial::TrialFolder;
use crate::{Error, Result};

/// How much of a file is looked at, in bytes: thousands of rows, read in a blink.
const SAMPLE_BYTES: usize = 4 << 20;

/// Signs that divide the fields of CSV files.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Texts that mean NULL in CSV files.
const NULLS: [&str; 9] = ["NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "NaN", "\\N"];

/// Last words of the names of numbers that count nothing: their sums mean nothing.
const NOT_SUMMED: [&str; 7] = ["id", "key", "no", "nr", "number", "code", "year"];

/// The sample data: a dozen orders.
pub const ORDERS_CSV: &str = "\
id,ordered_at,customer,site,amount
1,2026-11-01T08:05:00Z,anna,reno,12.50
2,2026-11-01T08:17:00Z,ben,reno,8.00
3,2026-11-01T09:41:00Z,carla,elko,31.25
4,2026-11-01T13:02:00Z,anna,reno,4.75
5,2026-11-01T17:30:00Z,dora,ely,19.90
6,2026-11-02T07:55:00Z,ben,elko,7.10
7,2026-11-02T08:20:00Z,emil,reno,66.00
8,2026-11-02T11:45:00Z,carla,elko,15.40
9,2026-11-02T18:12:00Z,dora,ely,22.00
10,2026-11-03T08:01:00Z,anna,reno,9.99
11,2026-11-03T10:26:00Z,emil,reno,41.30
12,2026-11-03T16:48:00Z,ben,ely,5.55
";

/// Rows, and what is known of them.
pub struct Sample {
    /// How the file is read.
    pub format: FormatSettings,
    /// The columns, by name and type.
    pub columns: Vec<(String, String)>,
    /// The column that tells when a row happened.
    pub time: Option<String>,
    /// How far a row lies behind those before it, at most.
    pub lateness: Duration,
    /// The column with the fewest values, to group by.
    pub group: Option<String>,
    /// A column of numbers.
    pub number: Option<String>,
    /// The rows.
    pub rows: Vec<Map<String, Value>>,
}

impl Sample {
    /// Looks at a file.
    pub async fn of_file(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let mut format = match format_of(&name) {
            Some(Format::Csv(_)) => {
                FormatSettings::Csv { header: true, delimiter: b',', quote: b'"', nulls: Vec::new() }
            }
            Some(Format::Json) => FormatSettings::Json,
            Some(Format::Parquet) => FormatSettings::Parquet,
            _ => {
                let text = format!("`{name}` is none of .csv, .json, .jsonl, .ndjson and .parquet (also .gz, .zst)");
                return Err(Error::config(text).into());
            }
        };
        let path = std::path::absolute(path).map_err(Error::from)?;
        let pattern = glob::Pattern::escape(&path.display().to_string());
        let bytes = sample(&pattern, format.framing(), SAMPLE_BYTES)?;
        if let FormatSettings::Csv { delimiter, nulls, .. } = &mut format {
            *delimiter = delimiter_of(&bytes);
            *nulls = nulls_in(&bytes, *delimiter);
        }
        let mut fields = infer(&format, &bytes)?;
        let mut names = BTreeSet::new();
        fields.retain(|field| !field.name().trim().is_empty() && !is_own_column(field.name()));
        fields.retain(|field| names.insert(field.name().clone()));
        let time = time_of(&mut fields);
        let columns = fields.iter().map(|field| (field.name().clone(), columns::type_name(field))).collect();
        let mut known =
            Self { format, columns, time, lateness: Duration::ZERO, group: None, number: None, rows: Vec::new() };
        known.rows = known.decoded(&pattern).await?;
        known.look(&fields);
        Ok(known)
    }

    /// Looks at the sample orders, in the format that is usual for the kind of source.
    pub async fn of_orders(kind: Kind) -> Result<Self, Failure> {
        let folder = TrialFolder::new();
        let path = Path::new(&folder.path()).join("orders.csv");
        std::fs::create_dir_all(folder.path()).and_then(|()| std::fs::write(&path, ORDERS_CSV)).map_err(Error::from)?;
        let mut orders = Self::of_file(&path).await?;
        if kind != Kind::File {
            orders.format = FormatSettings::Json;
        }
        Ok(orders)
    }

    /// Writes the format as a pipeline file does.
    pub fn format_text(&self) -> String {
        match &self.format {
            FormatSettings::Csv { delimiter, nulls, .. } => {
                let mut csv = vec!["header: true".to_owned()];
                if *delimiter != b',' {
                    csv.push(format!("delimiter: {}", json!(char::from(*delimiter).to_string())));
                }
                if !nulls.is_empty() {
                    csv.push(format!("\"null\": {}", json!(nulls)));
                }
                format!("{{ csv: {{ {} }} }}", csv.join(", "))
            }
            FormatSettings::Parquet => "parquet".to_owned(),
            _ => "json".to_owned(),
        }
    }

    /// Decodes the rows as the pipeline will.
    async fn decoded(&self, path: &str) -> Result<Vec<Map<String, Value>>, Failure> {
        let columns: Map<String, Value> = self.columns.iter().map(|(n, t)| (n.clone(), json!(t))).collect();
        let file = json!({
            "name": "sample",
            "lake": "./lake",
            "sources": { "sample": { "file": { "path": path }, "columns": columns, "on_unknown_column": "ignore" } },
            "bronze": { "sample": { "from": "sample" } },
        });
        // The format stands behind: it is YAML already.
        let text = file.to_string().replacen("\"file\":", &format!("\"format\": {}, \"file\":", self.format_text()), 1);
        let loaded = parse(&text, "sample", Path::new("."), &[])?;
        let settings = PreviewSettings { bytes_max: SAMPLE_BYTES as u64, wait: Duration::from_secs(10) };
        let shown = preview(&loaded, "bronze.sample", settings).await?;
        let mut rows = Vec::new();
        for batch in &shown.rows {
            for row in as_json(batch)? {
                let row: Map<String, Value> = serde_json::from_slice(&row)
                    .map_err(|e| Error::internal("a row did not become json").because(e))?;
                rows.push(row.into_iter().filter(|(name, _)| columns.contains_key(name)).collect());
            }
        }
        if rows.is_empty() {
            let text =
                format!("no record of {path} fits the columns that its beginning has; write the columns by hand");
            return Err(Error::config(text).into());
        }
        Ok(rows)
    }

    /// Finds out what is in the columns.
    fn look(&mut self, fields: &[Field]) {
        let distinct = |field: &&Field| {
            let values = self.rows.iter().filter_map(|row| row.get(field.name())?.as_str());
            values.collect::<BTreeSet<_>>().len()
        };
        let texts =
            fields.iter().filter(|field| field.data_type() == &DataType::Utf8View && field.metadata().is_empty());
        let texts = texts.map(|field| (distinct(&field), field.name())).filter(|(values, _)| *values > 1);
        let group = texts.min_by_key(|(values, _)| *values).filter(|(values, _)| *values * 2 <= self.rows.len().max(4));
        let of_type = |wanted: DataType| {
            let mut fitting =
                fields.iter().filter(move |field| *field.data_type() == wanted && is_summed(field.name()));
            fitting.next().map(|field| field.name().clone())
        };
        self.number = of_type(DataType::Float64).or_else(|| of_type(DataType::Int64));
        self.group = group.map(|(_, name)| name.clone());
        let Some(time) = &self.time else { return };
        let times = self.rows.iter().filter_map(|row| parse_time(row.get(time)?.as_str()?));
        let (mut newest, mut behind) = (None, Duration::ZERO);
        for time in times {
            let latest = *newest.insert(newest.map_or(time, |known: DateTime<Utc>| known.max(time)));
            behind = behind.max((latest - time).to_std().unwrap_or_default());
        }
        self.lateness = behind;
    }
}

/// Tells whether a number of this name may be one that is added up.
fn is_summed(name: &str) -> bool {
    let last = name.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or(name);
    !NOT_SUMMED.iter().any(|word| last.eq_ignore_ascii_case(word)) && !last.ends_with("Id") && !last.ends_with("ID")
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
}

/// Finds the column that tells when a row happened: a timestamp, or a date, which then is read as one.
fn time_of(fields: &mut [Field]) -> Option<String> {
    let is_time = |field: &Field| matches!(field.data_type(), DataType::Timestamp(..));
    let place = fields.iter().position(is_time);
    let place = place.or_else(|| fields.iter().position(|field| field.data_type() == &DataType::Date32))?;
    let field = fields.get_mut(place)?;
    *field = field.clone().with_data_type(timestamp_type());
    Some(field.name().clone())
}

/// Finds the sign that divides the fields: the one that the first line has most of.
fn delimiter_of(sample: &[u8]) -> u8 {
    let line = sample.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |sign: u8| line.iter().filter(|byte| **byte == sign).count();
    // Of signs that come as often, the first is meant.
    DELIMITERS.into_iter().rev().max_by_key(|sign| count(*sign)).unwrap_or(b',')
}

/// Finds the texts for NULL that stand as whole fields.
fn nulls_in(sample: &[u8], delimiter: u8) -> Vec<String> {
    let fields = || sample.split(|byte| *byte == delimiter || matches!(byte, b'\n' | b'\r'));
    let used = NULLS.into_iter().filter(|null| fields().any(|field| field == null.as_bytes()));
    used.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_name_things_are_not_summed() {
        for name in ["id", "Order ID", "order_id", "orderId", "zip-code", "Year"] {
            assert!(!is_summed(name), "{name}");
        }
        for name in ["qty", "Price EUR", "paid", "grid"] {
            assert!(is_summed(name), "{name}");
        }
    }

    #[test]
    fn delimiters_and_nulls_are_found() {
        assert_eq!(delimiter_of(b"a;b,c;d\n1;2;3"), b';');
        assert_eq!(delimiter_of(b"a\tb\n"), b'\t');
        assert_eq!(delimiter_of(b"alone\n"), b',');
        assert_eq!(nulls_in(b"a,b\nNA,1\nNAN,null\n", b','), ["NA", "null"]);
    }
}
