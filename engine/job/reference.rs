//! The stage of a reference table: it reads the table again when it is old, while epochs go on with the rows they use.

use std::sync::Arc;
use std::time::Duration;

use nexus_operators::Result;

use crate::plan::reference::ReferenceTable;

/// Looks after one reference table.
pub struct ReferenceStage {
    /// The table.
    pub table: Arc<ReferenceTable>,
    /// How old its rows may get.
    pub every: Duration,
}

impl ReferenceStage {
    /// Runs as long as the job does.
    pub async fn run(self) -> Result<()> {
        loop {
            tokio::time::sleep(self.every).await;
            self.table.refresh().await;
        }
    }
}
