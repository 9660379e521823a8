//! What a table holds beside what it should hold: the rows that differ, laid out as a table.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use arrow::array::RecordBatch;
use chrono::DateTime;
use nexus_operators::quarantine::read::{Batches, rows};
use nexus_operators::store::{Access, Store};
use nexus_operators::transform::keyed::SEQUENCE_COLUMN;
use nexus_operators::transform::rows::as_json;
use nexus_operators::{Error, Result};
use serde_json::{Map, Value, json};

use crate::spec::model::Expected;

/// How far two numbers may lie apart and still be the same, as a part of the larger: sums of floating-point numbers
/// depend on their order.
const NUMBERS_DIFFER_MAX: f64 = 1e-9;

/// Rows of a difference that are shown: more say nothing more.
const ROWS_SHOWN_MAX: usize = 30;

/// Characters of a value that are shown; a reason or a record may be long.
const CELL_CHARS_MAX: usize = 60;

type Row = Map<String, Value>;

/// What a table should have held, and did not, or the other way round.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The table, `tier.table`, or the quarantine.
    pub table: String,
    /// What is different, in a few words.
    pub summary: String,
    /// The columns that are compared.
    columns: Vec<String>,
    /// The rows that differ, each expected one followed by the found one that is nearest to it.
    rows: Vec<Differing>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq)]
struct Differing {
    is_expected: bool,
    cells: Vec<String>,
    /// Of a pair, the columns that differ.
    marked: Vec<usize>,
}

impl Difference {
    /// Lays the rows out as a table, in colour if `colour`; nothing where only rows were counted.
    pub fn render(&self, colour: bool) -> String {
        let shown = &self.rows[..self.rows.len().min(ROWS_SHOWN_MAX)];
        if shown.is_empty() {
            return String::new();
        }
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(at, name)| width(at, name, shown)).collect();
        let line = |sign: &str, cells: &[String], style: &dyn Fn(usize) -> &'static str| {
            let padded = cells.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
                let padded = format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count())));
                if colour && !style(at).is_empty() { format!("\x1b[{}m{padded}\x1b[0m", style(at)) } else { padded }
            });
            format!("{sign} {}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
        };
        let mut lines = vec![line(" ", &self.columns, &|_| "1")];
        for (at, row) in shown.iter().enumerate() {
            let (sign, plain, bold) = if row.is_expected { ("-", "31", "1;31") } else { ("+", "32", "1;32") };
            let marked = &row.marked;
            lines.push(line(sign, &row.cells, &|column| if marked.contains(&column) { bold } else { plain }));
            let ends_pair = !row.is_expected && at > 0 && !marked.is_empty();
            if ends_pair && !colour {
                let carets = |(column, cell): (usize, &String)| match marked.contains(&column) {
                    true => "^".repeat(cell.chars().count().max(1)),
                    false => String::new(),
                };
                lines.push(line(" ", &row.cells.iter().enumerate().map(carets).collect::<Vec<_>>(), &|_| ""));
            }
        }
        let left = self.rows.len() - shown.len();
        if left > 0 {
            lines.push(format!("  and {left} more"));
        }
        lines.join("\n")
    }
}

fn width(column: usize, name: &str, rows: &[Differing]) -> usize {
    let cells = rows.iter().filter_map(|row| row.cells.get(column)).map(|cell| cell.chars().count());
    cells.chain([name.chars().count()]).max().unwrap_or(0)
}

/// What a table holds.
pub struct Table {
    /// Its rows, the newest of each key where rows change.
    pub rows: Vec<Row>,
}

impl Table {
    /// Reads the rows of batches; a later row replaces the one before with the same `keys` where rows have a sequence.
    pub fn of(batches: &[RecordBatch], keys: &[String]) -> Result<Self> {
        let mut found = Vec::new();
        for batch in batches {
            for row in as_json(batch)? {
                let row: Row = serde_json::from_slice(&row)
                    .map_err(|e| Error::internal("a row did not become json").because(e))?;
                found.push(row);
            }
        }
        Ok(Self { rows: newest(found, keys) })
    }

    /// Compares with what the table should hold.
    pub fn compare(mut self, name: &str, expected: &Expected) -> Option<Difference> {
        let wanted = match expected {
            Expected::Count(count) if count.rows == self.rows.len() as u64 => return None,
            Expected::Count(count) => {
                let summary = format!("{} rows expected, {} found", count.rows, self.rows.len());
                return Some(Difference { table: name.to_owned(), summary, columns: Vec::new(), rows: Vec::new() });
            }
            Expected::Rows(wanted) => wanted,
        };
        let columns = self.columns(wanted);
        let mut missing = Vec::new();
        for row in wanted {
            match self.rows.iter().position(|found| row.iter().all(|(name, value)| same(value, found.get(name)))) {
                Some(place) => drop(self.rows.swap_remove(place)),
                None => missing.push(row),
            }
        }
        let (missing_rows, unexpected_rows) = (missing.len(), self.rows.len());
        if missing_rows + unexpected_rows == 0 {
            return None;
        }
        let mut rows = Vec::new();
        for wanted in missing {
            let found = self.nearest(wanted).map(|place| self.rows.swap_remove(place));
            let differs = |name: &String, found: &Row| wanted.get(name).is_some_and(|v| !same(v, found.get(name)));
            let marked: Vec<usize> = match &found {
                Some(found) => (0..columns.len()).filter(|at| differs(&columns[*at], found)).collect(),
                None => Vec::new(),
            };
            let cells = columns.iter().map(|name| wanted.get(name).map_or(String::new(), cell)).collect();
            rows.push(Differing { is_expected: true, cells, marked: marked.clone() });
            rows.extend(found.map(|found| Differing { is_expected: false, cells: cells_of(&found, &columns), marked }));
        }
        let unexpected = self.rows.iter();
        rows.extend(unexpected.map(|row| Differing {
            is_expected: false,
            cells: cells_of(row, &columns),
            marked: Vec::new(),
        }));
        let summary = format!("rows missing: {missing_rows}, not expected: {unexpected_rows}");
        Some(Difference { table: name.to_owned(), summary, columns, rows })
    }

    /// Gives the columns that expected rows name, in the order of the table; all if none is expected.
    fn columns(&self, wanted: &[BTreeMap<String, Value>]) -> Vec<String> {
        let named = |name: &String| wanted.is_empty() || wanted.iter().any(|row| row.contains_key(name));
        let mut columns: Vec<String> =
            self.rows.iter().take(1).flat_map(|row| row.keys()).filter(|name| named(name)).cloned().collect();
        for name in wanted.iter().flat_map(BTreeMap::keys) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        columns
    }

    /// Finds the row that has the most values of an expected one, if it has any.
    fn nearest(&self, wanted: &BTreeMap<String, Value>) -> Option<usize> {
        let alike = |row: &Row| wanted.iter().filter(|(name, value)| same(value, row.get(*name))).count();
        let alike = self.rows.iter().map(alike).enumerate().filter(|(_, alike)| *alike > 0);
        alike.max_by_key(|(place, alike)| (*alike, usize::MAX - place)).map(|(place, _)| place)
    }
}

/// Reads the quarantine of a source or table below a lake's root.
pub async fn quarantined(root: &str, of: &str) -> Result<Vec<Row>> {
    let folder = Store::open(root, &Access::default()).await?.below(&format!("_quarantine/{of}"));
    let mut found = Vec::new();
    for file in folder.list("").await?.iter().filter(|file| file.name.ends_with(".parquet")) {
        let path = Path::new(folder.url()).join(&file.name);
        let file = File::open(&path);
        let file = file.map_err(|e| Error::internal(format!("could not read {}", path.display())).because(e))?;
        for batch in Batches::of(file)? {
            for row in rows(&batch?)? {
                let value = json!({
                    "rule": row.rule,
                    "reason": row.reason,
                    "raw": String::from_utf8_lossy(&row.raw),
                    "_source": row.source,
                    "_partition": row.partition,
                    "_offset": row.offset,
                    "redrivable": row.redrivable,
                });
                found.extend(value.as_object().cloned());
            }
        }
    }
    Ok(found)
}

/// Leaves out the rows that later ones have replaced, where rows have a sequence.
fn newest(found: Vec<Row>, keys: &[String]) -> Vec<Row> {
    let sequence = |row: &Row| row.get(SEQUENCE_COLUMN).and_then(Value::as_i64);
    let mut newest: BTreeMap<String, Row> = BTreeMap::new();
    let mut kept = Vec::new();
    for row in found {
        if sequence(&row).is_none() {
            kept.push(row);
            continue;
        }
        let key: Vec<&Value> = keys.iter().filter_map(|name| row.get(name)).collect();
        let key = json!(key).to_string();
        match newest.get(&key) {
            Some(known) if sequence(known) > sequence(&row) => {}
            _ => drop(newest.insert(key, row)),
        }
    }
    kept.extend(newest.into_values());
    kept
}

fn cells_of(row: &Row, columns: &[String]) -> Vec<String> {
    columns.iter().map(|name| row.get(name).map_or_else(|| "NULL".to_owned(), cell)).collect()
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => text.replace('\n', " "),
        value => value.to_string(),
    };
    match text.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn same(wanted: &Value, found: Option<&Value>) -> bool {
    let found = found.unwrap_or(&Value::Null);
    match (wanted, found) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * NUMBERS_DIFFER_MAX,
            _ => a == b,
        },
        (Value::String(a), Value::String(b)) => {
            let time = |text: &str| DateTime::parse_from_rfc3339(text).ok();
            a == b || time(a).is_some_and(|a| Some(a) == time(b))
        }
        (wanted, found) => wanted == found,
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::model::ExpectedCount;

    use super::*;

    fn table(rows: &[Value]) -> Table {
        Table { rows: rows.iter().map(|row| row.as_object().cloned().unwrap()).collect() }
    }

    fn wanted(rows: &[Value]) -> Expected {
        Expected::Rows(rows.iter().map(|row| serde_json::from_value(row.clone()).unwrap()).collect())
    }

    #[test]
    fn of_rows_that_change_the_newest_counts() {
        let row = |site: &str, n: i64, sequence: i64| json!({ "site": site, "n": n, "_sequence": sequence });
        let found = [row("a", 1, 1), row("b", 5, 1), row("a", 3, 2)].map(|row| row.as_object().cloned().unwrap());
        let kept = newest(found.to_vec(), &["site".to_owned()]);
        assert_eq!(kept.iter().map(|row| row["n"].as_i64().unwrap()).collect::<Vec<_>>(), [3, 5]);
    }

    #[test]
    fn numbers_and_times_are_compared_by_what_they_mean() {
        assert!(same(&json!(0.3), Some(&json!(0.1 + 0.2))));
        assert!(same(&json!(1), Some(&json!(1.0))));
        assert!(!same(&json!(1), Some(&json!(1.001))));
        assert!(same(&json!("2026-11-01T00:00:00Z"), Some(&json!("2026-11-01T01:00:00+01:00"))));
        assert!(same(&Value::Null, None));
        assert!(!same(&json!("a"), Some(&json!("b"))));
    }

    #[test]
    fn rows_that_differ_stand_one_below_the_other() {
        let found = [
            json!({ "site": "reno", "n": 2, "note": "x" }),
            json!({ "site": "elko", "n": 12, "note": null }),
            json!({ "site": "ely", "n": 1, "note": null }),
        ];
        let expected = [json!({ "n": 10, "site": "elko" }), json!({ "n": 2, "site": "reno" })];
        let difference = table(&found).compare("gold.sites", &wanted(&expected)).unwrap();
        assert_eq!(difference.summary, "rows missing: 1, not expected: 2");
        let plain = "  site  n\n- elko  10\n+ elko  12\n        ^^\n+ ely   1";
        assert_eq!(difference.render(false), plain);
        assert!(difference.render(true).contains("\x1b[1;31m10\x1b[0m"), "{}", difference.render(true));
        assert_eq!(table(&found[..1]).compare("t", &wanted(&expected[1..])), None);
    }

    #[test]
    fn rows_can_be_counted() {
        let two = Expected::Count(ExpectedCount { rows: 2 });
        assert_eq!(table(&[json!({}), json!({})]).compare("t", &two), None);
        let difference = table(&[json!({})]).compare("t", &two).unwrap();
        assert_eq!((difference.summary.as_str(), difference.render(false).as_str()), ("2 rows expected, 1 found", ""));
    }
}
