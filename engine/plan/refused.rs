//! Why a table cannot be planned, in words for those who wrote it.

use datafusion::error::DataFusionError;
use nexus_operators::Error;

use super::analyze::Unfit;
use super::wording::Told;

/// Why a table cannot be planned.
#[derive(Debug)]
pub enum Refused {
    /// The SQL is wrong.
    Sql(Told),
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

impl Refused {
    /// Says what is wrong with the SQL.
    pub(crate) fn sql(message: impl Into<String>) -> Self {
        Self::Sql(Told::new(message))
    }
}

/// Gives what DataFusion says of a table's SQL.
pub fn sql_refused(error: &DataFusionError) -> Refused {
    let told = Told::of(error);
    // DataFusion has no error of its own for this; it names the catalog, which users do not know of.
    let input = told.message.strip_prefix("table 'datafusion.").and_then(|rest| rest.strip_suffix("' not found"));
    match input {
        Some(input) => Refused::Unknown { input: input.trim_start_matches("public.").to_owned(), at: told.at },
        None => Refused::Sql(told),
    }
}
