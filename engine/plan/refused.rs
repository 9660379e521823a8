//! Why a table cannot be planned, in words for those who wrote it.

use datafusion::error::DataFusionError;
use nexus_operators::Error;

use super::analyze::Unfit;

/// Why a table cannot be planned.
#[derive(Debug)]
pub enum Refused {
    /// The SQL is wrong, perhaps at a line and column of it.
    Sql {
        /// What is wrong.
        message: String,
        /// Line and column, from 1.
        at: Option<(usize, usize)>,
    },
    /// The SQL reads what is not there.
    Unknown {
        /// The name in the SQL.
        input: String,
        /// Line and column, from 1.
        at: Option<(usize, usize)>,
    },
    /// The SQL does not work on a stream.
    Unfit(Unfit),
    /// Something beside the SQL is wrong: the key under the table, and what.
    Option(Vec<String>, Error),
}

/// Gives what DataFusion says of a table's SQL.
pub fn sql_refused(error: &DataFusionError) -> Refused {
    let (message, at) = (sql_text(error), place(error));
    // DataFusion has no error of its own for this; it names the catalog, which users do not know of.
    let input = message.strip_prefix("table 'datafusion.").and_then(|rest| rest.strip_suffix("' not found"));
    match input {
        Some(input) => Refused::Unknown { input: input.trim_start_matches("public.").to_owned(), at },
        None => Refused::Sql { message, at },
    }
}

/// Gives what DataFusion says without the layers that mean nothing to the user.
pub fn sql_text(error: &DataFusionError) -> String {
    let text = match error.find_root() {
        DataFusionError::SQL(parser, _) => parser.to_string(),
        DataFusionError::Collection(all) => {
            return all.first().map_or_else(|| error.to_string(), sql_text);
        }
        root => root.strip_backtrace(),
    };
    let prefixes =
        ["SQL error: ", "sql parser error: ", "Error during planning: ", "Schema error: ", "Invalid function "];
    let mut text = text.as_str();
    while let Some(rest) = prefixes.iter().take(4).find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    let end = text.find(" at Line: ").unwrap_or(text.len());
    text[..end].trim_end_matches(['.', '\n']).to_owned()
}

/// Finds the line and column that an error names.
fn place(error: &DataFusionError) -> Option<(usize, usize)> {
    if let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span) {
        let at = |number: u64| usize::try_from(number).ok();
        return Some((at(span.start.line)?, at(span.start.column)?));
    }
    let text = error.to_string();
    let (_, rest) = text.split_once(" at Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let column: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((line.parse().ok()?, column.parse().ok()?))
}
