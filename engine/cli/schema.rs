//! `nexus schema`: the JSON Schema of pipeline files.

use super::{Failure, terminal};
use crate::Error;

/// Prints the schema.
pub fn execute() -> Result<(), Failure> {
    let schema = serde_json::to_string_pretty(&crate::spec::json_schema());
    terminal::say(&schema.map_err(|e| Error::internal("could not write the schema").because(e))?);
    Ok(())
}
