//! Whether rows can be put into a table.

use tokio_postgres::types::Type;

use super::PostgresSink;
use super::failure::{failed, lacking};
use super::table::{Table, run};
use crate::error::Result;
use crate::probe::{Lacking, Probed};

/// What bounds a probe: it must not hold up others, nor wait for them.
const SETTINGS_SQL: &str = "SET LOCAL statement_timeout = '8s'; SET LOCAL lock_timeout = '2s'";

/// What a commit does to the table and to `nexus.commits`.
const RIGHTS_SQL: &str = "SELECT current_setting('server_version'), \
    has_table_privilege($1, 'INSERT'), has_table_privilege($1, 'SELECT'), has_table_privilege($1, 'UPDATE'), \
    has_table_privilege($1, 'DELETE'), has_table_privilege('nexus.commits', 'INSERT') \
    AND has_table_privilege('nexus.commits', 'SELECT') AND has_table_privilege('nexus.commits', 'DELETE')";

impl PostgresSink {
    /// Connects and does what the first commit would do, but for the rows, in a transaction that is rolled back.
    pub async fn probe(&self) -> Probed {
        self.committer.database.probe_secret().await?;
        let mut client = self.committer.database.client().await.map_err(lacking)?;
        let begun = client.transaction().await.map_err(|e| failed("could not begin a transaction", e));
        let transaction = begun.map_err(lacking)?;
        run(&transaction, "set the limits of a probe", SETTINGS_SQL).await.map_err(lacking)?;
        self.table.check(&transaction).await.map_err(lacking)?;
        let (version, missing) = rights(&self.table, &transaction).await.map_err(lacking)?;
        transaction.rollback().await.map_err(|e| lacking(failed("could not roll back", e)))?;
        if !missing.is_empty() {
            let text = format!("the user may not {} on {}", missing.join(", "), self.table.target());
            return Err(Lacking::permission(text));
        }
        Ok(format!("PostgreSQL {version} takes the rows"))
    }
}

/// Gives the server's version, and the rights that are missing.
async fn rights(
    table: &Table,
    transaction: &deadpool_postgres::Transaction<'_>,
) -> Result<(String, Vec<&'static str>)> {
    let doing = |e| failed("could not read the user's rights", e);
    let rows = transaction.query_typed(RIGHTS_SQL, &[(&table.target(), Type::TEXT)]).await.map_err(doing)?;
    let (mut version, mut missing) = (String::new(), Vec::new());
    for row in rows {
        version = row.try_get(0).map_err(doing)?;
        let replaces = !table.key.is_empty();
        let needed = [
            (1, "INSERT", true),
            (2, "SELECT", replaces),
            (3, "UPDATE", replaces),
            (4, "DELETE", table.columns.deletes()),
            (5, "INSERT, SELECT and DELETE in nexus.commits", true),
        ];
        for (column, right, is_needed) in needed {
            let has: bool = row.try_get(column).map_err(doing)?;
            missing.extend((is_needed && !has).then_some(right));
        }
    }
    Ok((version, missing))
}
