//! A pipeline file, drafted for a sample of its rows.

use std::collections::BTreeSet;

use nexus_operators::decode::FormatSettings;
use serde_json::{Map, Value, json};

use super::Kind;
use super::sample::Sample;

/// Rows of the sample that become a test case.
const ROWS_TESTED: usize = 3;

/// Words that SQL or YAML keep for themselves, as far as columns are called so.
const RESERVED: &str = "all and as asc between by case cast check date default desc distinct else end exists false from full \
    group having in inner interval is join key left like limit n no not null off offset on or order \
    outer primary right select table then time timestamp true union user using values when where with y \
    yes";

/// What a pipeline file is drafted of.
pub struct Draft<'a> {
    /// The pipeline's name, and that of its source.
    pub name: &'a str,
    /// Where rows come from.
    pub kind: Kind,
    /// The files of a file source, as the pipeline file names them.
    pub path: String,
    /// Whether the last table goes to PostgreSQL.
    pub postgres: bool,
    /// The rows.
    pub sample: &'a Sample,
}

impl Draft<'_> {
    /// Writes the pipeline file; its case of good rows only if `with_rows`.
    pub fn text(&self, with_rows: bool) -> String {
        let name = self.name;
        let mut text = format!(
            "# Made by `nexus init`. Change what you like: `nexus check` tells what is wrong, and the schema for editors\n\
             # (`nexus schema`) what there is.\n\
             name: {name}\n\n\
             params:\n  lake: ./lake                       # `nexus run {name}.yaml --set lake=s3://bucket/prefix`\n"
        );
        text += &match self.kind {
            Kind::File => String::new(),
            Kind::Kinesis => format!("  stream: {name}\n"),
            Kind::S3 => format!(
                "  queue: https://sqs.us-east-1.amazonaws.com/123456789012/{name}-uploads\n  \
                 landing: s3://{}-landing/\n",
                name.replace('_', "-")
            ),
        };
        text += &format!("\nlake: ${{lake}}\n\nsources:\n  {name}:\n{}", self.source());
        text += &format!(
            "\nbronze:\n  {name}:\n    description: Every record as it came, with where it came from.\n    from: {name}\n"
        );
        text += &self.silver();
        text += &self.gold();
        text += &self.tests(with_rows);
        text
    }

    fn source(&self) -> String {
        let mut text = match self.kind {
            Kind::File => format!("    file: {{ path: {} }}\n", json!(glob_escaped(&self.path))),
            Kind::Kinesis => "    kinesis: { stream: \"${stream}\", start: earliest }\n".to_owned(),
            Kind::S3 => "    s3: { queue: \"${queue}\", allow: [\"${landing}\"] }\n".to_owned(),
        };
        text += &format!("    format: {}\n    columns:\n", self.sample.format_text());
        for (column, data_type) in &self.sample.columns {
            text += &format!("      {}: {data_type}\n", yaml_key(column));
        }
        text += "    on_unknown_column: rescue          # a field that has no column is kept, in _rescued\n";
        if let Some(time) = &self.sample.time {
            let hours = self.sample.lateness.as_secs().div_ceil(3600).max(1);
            let column = yaml_key(time);
            text += &format!("    event_time: {{ column: {column}, lateness: {hours}h }}   # rows may come so late\n");
        }
        text
    }

    fn silver(&self) -> String {
        let name = self.name;
        let columns: Vec<String> = self.sample.columns.iter().map(|(column, _)| sql_name(column)).collect();
        let mut text = format!(
            "\nsilver:\n  {name}:\n    description: Rows that can be used.\n    sql: |\n{}      FROM bronze.{name}\n",
            wrapped("SELECT ", &columns)
        );
        // A row that cannot be placed in time would be in no window.
        let (rule, column, otherwise) = match (&self.sample.time, self.sample.columns.first()) {
            (Some(time), _) => ("has_time", time, "quarantine"),
            (None, Some((first, _))) => ("is_known", first, "keep"),
            (None, None) => return text,
        };
        text += &format!(
            "    expect:                            # or drop, keep, fail\n      \
             {rule}: {{ that: {}, else: {otherwise} }}\n",
            json!(format!("{} IS NOT NULL", sql_name(column)))
        );
        if self.sample.time.is_some() {
            let key = self.sample.columns.first().map(|(first, _)| yaml_key(first)).unwrap_or_default();
            text += &format!("    # unique: {{ key: [{key}], within: 1d }}   # each once, also if it is sent twice\n");
        }
        text
    }

    /// Tells whether the last table is an aggregate: that takes a time for its windows, or a key in PostgreSQL.
    fn aggregates(&self) -> bool {
        self.sample.time.is_some() || self.postgres
    }

    /// Gives the name of the last table.
    fn last(&self) -> String {
        let what = match (self.aggregates(), &self.sample.time) {
            (false, _) => "ready",
            (true, Some(_)) => "by_day",
            (true, None) => "counted",
        };
        format!("{}_{what}", self.name)
    }

    /// Gives the column that rows are grouped by beside their day.
    fn group(&self) -> Option<&String> {
        let first = self.sample.columns.first().map(|(first, _)| first);
        self.sample.group.as_ref().or(first.filter(|_| self.sample.time.is_none()))
    }

    fn gold(&self) -> String {
        let mut keys = Vec::new();
        let mut columns = Vec::new();
        if let Some(time) = &self.sample.time {
            columns.push(format!("date_bin(INTERVAL '1 day', {}) AS day", sql_name(time)));
            keys.push("day".to_owned());
        }
        if let Some(group) = self.group() {
            columns.push(sql_name(group));
            keys.push(yaml_key(group));
        }
        let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
        columns.push("count(*) AS rows_seen".to_owned());
        if let Some(number) = self.sample.number.as_ref().filter(|number| Some(*number) != self.group()) {
            let number = sql_name(number);
            columns.push(format!("sum({number}) AS total"));
            columns.push(format!("avg({number}) AS mean"));
        }
        let (last, name) = (self.last(), self.name);
        if !self.aggregates() {
            let columns: Vec<String> = self.sample.columns.iter().map(|(column, _)| sql_name(column)).collect();
            let select = wrapped("SELECT ", &columns);
            return format!(
                "\ngold:\n  {last}:\n    # An aggregate needs a time for its windows, or a key in PostgreSQL.\n    \
                 description: Rows for others to read.\n    sql: |\n{select}      FROM silver.{name}\n"
            );
        }
        let description = match self.sample.time {
            Some(_) => "Each day once, when it is over.",
            None => "One row for each value, kept up to date.",
        };
        let mut text = format!(
            "\ngold:\n  {last}:\n    description: {description}\n    sql: |\n{}      FROM silver.{name}\n      GROUP BY \
             {}\n",
            wrapped("SELECT ", &columns),
            places.join(", ")
        );
        if self.postgres {
            text += &format!(
                "    postgres: {{ url: pg, table: {last}, key: [{}] }}\n\nsecrets:\n  pg: {{ env: DATABASE_URL }}            \
                 # postgres://user:password@host/database\n",
                keys.join(", ")
            );
        }
        text
    }

    fn tests(&self, with_rows: bool) -> String {
        let name = self.name;
        let mut text = String::from("\ntests:\n");
        let is_usable = |row: &&Map<String, Value>| match &self.sample.time {
            Some(time) => row.get(time).is_some_and(|time| !time.is_null()),
            None => true,
        };
        let rows: Vec<_> = self.sample.rows.iter().filter(is_usable).take(ROWS_TESTED).collect();
        if with_rows && !rows.is_empty() {
            text += &format!("  - name: good rows reach every table\n    given:\n      {name}:\n");
            for row in &rows {
                let given: Map<String, Value> =
                    row.iter().filter(|(_, value)| !value.is_null()).map(|(n, v)| (n.clone(), v.clone())).collect();
                text += &format!("        - {}\n", Value::Object(given));
            }
            let all = rows.len();
            let groups = if self.aggregates() { self.groups(&rows) } else { all };
            text += &format!(
                "    expect:\n      bronze.{name}: {{ rows: {all} }}\n      silver.{name}: {{ rows: {all} }}\n      \
                 gold.{}: {{ rows: {groups} }}\n\n",
                self.last()
            );
        }
        if matches!(self.sample.format, FormatSettings::Raw) {
            return text;
        }
        text += &format!(
            "  - name: a record that does not decode is set aside\n    given: {{ {name}: [\"no record\"] }}\n    \
             expect:\n      bronze.{name}: []\n      quarantine.{name}:\n        - {{ rule: decode, raw: no record }}\n"
        );
        text
    }

    /// Counts the rows that the last table gets of some.
    fn groups(&self, rows: &[&Map<String, Value>]) -> usize {
        let day = |row: &Map<String, Value>| {
            let time = self.sample.time.as_ref().and_then(|time| row.get(time)?.as_str());
            time.map(|time| time.chars().take("2026-11-01".len()).collect::<String>())
        };
        let of =
            |row: &&Map<String, Value>| (day(row), self.group().and_then(|group| row.get(group)).map(Value::to_string));
        rows.iter().map(of).collect::<BTreeSet<_>>().len()
    }
}

/// Lays out a list behind `head`, in lines of a width that is read well.
fn wrapped(head: &str, items: &[String]) -> String {
    const WIDTH: usize = 100;
    const INDENT: &str = "      ";
    let mut text = format!("{INDENT}{head}");
    let mut width = text.len();
    for (place, item) in items.iter().enumerate() {
        let end = if place + 1 < items.len() { ", " } else { "" };
        if width + item.len() > WIDTH && place > 0 {
            text.truncate(text.trim_end().len());
            let indent = INDENT.len() + head.len();
            text += &format!("\n{}", " ".repeat(indent));
            width = indent;
        }
        text += &format!("{item}{end}");
        width += item.len() + end.len();
    }
    text.push('\n');
    text
}

fn is_plain(name: &str, also: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || also.contains(c);
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(fits)
        && RESERVED.split(' ').all(|word| word != name)
}

/// Writes a column's name as SQL takes it.
fn sql_name(name: &str) -> String {
    if is_plain(name, "") { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Writes a column's name as YAML takes it.
fn yaml_key(name: &str) -> String {
    if is_plain(name, "-") { name.to_owned() } else { json!(name).to_string() }
}

/// Takes the effect out of the signs of globs, where a path has some.
fn glob_escaped(path: &str) -> String {
    glob::Pattern::escape(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert_eq!((sql_name("amount").as_str(), yaml_key("amount").as_str()), ("amount", "amount"));
        assert_eq!((sql_name("Order Id"), yaml_key("Order Id")), ("\"Order Id\"".into(), "\"Order Id\"".into()));
        assert_eq!((sql_name("order"), yaml_key("no")), ("\"order\"".into(), "\"no\"".into()));
    }

    #[test]
    fn long_lists_are_broken() {
        let items: Vec<String> = (0..30).map(|n| format!("column_{n}")).collect();
        let text = wrapped("SELECT ", &items);
        assert!(text.lines().all(|line| line.len() <= 102 && line.trim_end() == line), "{text}");
        assert_eq!(text.split_whitespace().count(), 31);
    }
}
