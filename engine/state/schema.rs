//! Versions of a table's columns, as commit records tell them.

use serde::{Deserialize, Serialize};

use crate::spec::model::TableFormat;

/// The columns of a table from one epoch on.
///
/// A file of an older version lacks the columns that came later: its rows have NULL there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Counts the versions, from 1.
    pub version: u32,
    /// The epoch whose record says so first.
    pub since_epoch: u64,
    /// The columns, in order.
    pub columns: Vec<StoredColumn>,
    /// What makes a table of its files.
    #[serde(default, skip_serializing_if = "is_plain")]
    pub table_format: TableFormat,
    /// What makes the folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition_by: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_plain(format: &TableFormat) -> bool {
    *format == TableFormat::Parquet
}

/// A column of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredColumn {
    /// Its name.
    pub name: String,
    /// Its type, as a pipeline file writes it, without `not null`.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether some row of the table may have no value.
    pub nullable: bool,
}

impl TableSchema {
    /// Finds a column by its name.
    pub fn column(&self, name: &str) -> Option<&StoredColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}
