//! What a table is partitioned by.

use std::str::FromStr;

/// One level of partition folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition {
    /// A folder for each value of the column.
    Column(String),
    /// A folder for each day of the column: `date(column)`.
    Date(String),
    /// A folder for each hour of the column: `hour(column)`.
    Hour(String),
}

impl Partition {
    /// Gives the column that it is made from.
    pub fn column(&self) -> &str {
        match self {
            Partition::Column(column) | Partition::Date(column) | Partition::Hour(column) => column,
        }
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (function, column) = match text.split_once('(') {
            Some((function, rest)) => {
                let column = rest.strip_suffix(')').ok_or_else(|| format!("`)` is missing in `{text}`"))?;
                (function.trim(), column.trim())
            }
            None => ("", text),
        };
        if column.is_empty() || column.contains(['(', ')', ',', '/']) {
            return Err(format!("`{text}` does not name one column"));
        }
        match function {
            "" if column == text => Ok(Partition::Column(column.to_owned())),
            "date" => Ok(Partition::Date(column.to_owned())),
            "hour" => Ok(Partition::Hour(column.to_owned())),
            _ => Err(format!("there is no partition function `{function}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_days_and_hours_are_partitions() {
        assert_eq!("origin".parse(), Ok(Partition::Column("origin".into())));
        assert_eq!(" date( ts ) ".parse(), Ok(Partition::Date("ts".into())));
        assert_eq!("hour(ts)".parse::<Partition>().as_ref().map(Partition::column), Ok("ts"));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "month(ts)", "date(ts", "date()", "(ts)", "a, b", "date(hour(ts))", "a/b"] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
    }
}
