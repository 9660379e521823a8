//! What the rows of a file are sorted by.

use std::str::FromStr;

/// A column that rows are sorted by: `site`, `ts desc`, `ts desc nulls last`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The column.
    pub column: String,
    /// The greatest value first.
    pub descending: bool,
    /// NULLs before all values; as in SQL they count as greater than these unless it is said otherwise.
    pub nulls_first: bool,
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` does not say what rows are sorted by");
        let mut words = text.split_whitespace();
        let column = words.next().ok_or_else(wrong)?.to_owned();
        let words: Vec<String> = words.map(str::to_lowercase).collect();
        let mut words = words.iter().map(String::as_str).peekable();
        let descending = match words.peek() {
            Some(&"asc" | &"desc") => words.next() == Some("desc"),
            _ => false,
        };
        let nulls_first = match (words.next(), words.next()) {
            (None, None) => descending,
            (Some("nulls"), Some("first")) => true,
            (Some("nulls"), Some("last")) => false,
            _ => return Err(wrong()),
        };
        if words.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { column, descending, nulls_first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_sorted_as_in_sql() {
        let order = |text: &str| text.parse::<Order>().map(|o| (o.column, o.descending, o.nulls_first));
        assert_eq!(order("site"), Ok(("site".into(), false, false)));
        assert_eq!(order(" ts  DESC "), Ok(("ts".into(), true, true)));
        assert_eq!(order("ts desc nulls last"), Ok(("ts".into(), true, false)));
        assert_eq!(order("ts NULLS FIRST"), Ok(("ts".into(), false, true)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "ts down", "ts desc asc", "ts nulls", "ts nulls first last", "ts, site"] {
            assert!(text.parse::<Order>().is_err(), "{text}");
        }
    }
}
