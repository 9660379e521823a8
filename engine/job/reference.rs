//! The reference tables that one stage reads.

use std::sync::Arc;

use crate::plan::reference::ReferenceTable;

/// The reference tables of a stage, and which version of them its plan holds.
#[derive(Debug, Default)]
pub struct References {
    tables: Vec<Arc<ReferenceTable>>,
    seen: u64,
}

impl References {
    /// Watches the tables that a stage's plan was made with.
    pub fn new(tables: Vec<Arc<ReferenceTable>>) -> Self {
        let seen = tables.iter().map(|table| table.version_number()).sum();
        Self { tables, seen }
    }

    /// Reads again what has grown old. Tells whether the stage's plan holds rows of before.
    pub async fn refresh(&mut self) -> bool {
        for table in &self.tables {
            table.refresh_if_due().await;
        }
        let now: u64 = self.tables.iter().map(|table| table.version_number()).sum();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}
