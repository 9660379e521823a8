//! What an audit asks of Postgres: which epochs have landed, which rows were refused, and which rows wait for it.

use std::collections::BTreeMap;

use tokio_postgres::types::{ToSql, Type};

pub use super::commit::Spooled;
use super::commit::{EPOCHS_REMEMBERED, number, read};
use super::connect::Database;
use super::failure::failed;
use crate::error::{Error, Result};
use crate::secret::SecretRef;
use crate::sink::{EpochId, Handle, RefusedUpto, spool};

/// An epoch that `nexus.commits` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// The process whose epoch it is.
    pub generation: u64,
    /// Its rows, with those that were refused.
    pub rows: u64,
    /// Of these, rows that were refused.
    pub refused: u64,
    /// Of the refused rows, those that lie in `nexus.refused` and that the quarantine does not have.
    pub waiting: u64,
}

/// Gives what a handle of a [`PostgresSink`](super::PostgresSink) names.
///
/// # Errors
///
/// [`Internal`](crate::ErrorKind::Internal) if it is not such a handle.
pub fn spooled(handle: &Handle) -> Result<Spooled> {
    read(handle)
}

/// Tells which epoch has spooled the file of this name; nothing if no epoch has.
pub fn spooled_by(name: &str) -> Option<EpochId> {
    spool::epoch_of(name)
}

/// Gives the oldest epoch that `nexus.commits` must still remember if `newest` is the newest there.
pub fn oldest_remembered(newest: u64) -> u64 {
    newest.saturating_sub(EPOCHS_REMEMBERED.unsigned_abs())
}

/// Reads which epochs of a sink have landed, as `nexus.commits` tells, and what waits in `nexus.refused` behind a place
/// up to which the quarantine has it.
///
/// # Errors
///
/// [`Unavailable`](crate::ErrorKind::Unavailable) if the database does not answer, and
/// [`Config`](crate::ErrorKind::Config) if it does not let us in.
pub async fn landed(
    secret: &SecretRef,
    pipeline: &str,
    sink: &str,
    state: &str,
    behind: RefusedUpto,
) -> Result<BTreeMap<u64, Landed>> {
    let doing = |e| failed("could not read nexus.commits", e);
    let client = Database::new(secret.clone()).client().await?;
    let there = "SELECT to_regclass('nexus.commits') IS NOT NULL, to_regclass('nexus.refused') IS NOT NULL";
    let there = client.query_typed(there, &[]).await.map_err(doing)?;
    let there = |column: usize| there.first().map_or(Ok(false), |row| row.try_get::<_, bool>(column)).map_err(doing);
    let (keeps_commits, keeps_refused) = (there(0)?, there(1)?);
    if !keeps_commits {
        return Ok(BTreeMap::new());
    }
    let (epoch, rows) = (number(behind.epoch)?, number(behind.rows)?);
    let mut values: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&pipeline, Type::TEXT), (&sink, Type::TEXT), (&state, Type::TEXT)];
    // A database of before refused rows were kept has neither the column nor the table.
    let refused = if keeps_refused {
        values.extend([(&epoch as &(dyn ToSql + Sync), Type::INT8), (&rows, Type::INT8)]);
        "refused, (SELECT count(*) FROM nexus.refused r WHERE r.pipeline = $1 AND r.sink = $2 AND r.state = $3 \
         AND r.epoch = c.epoch AND (r.epoch, r.number) >= ($4, $5))"
    } else {
        "0::bigint, 0::bigint"
    };
    let sql = format!(
        "SELECT epoch, generation, rows, {refused} FROM nexus.commits c \
         WHERE pipeline = $1 AND sink = $2 AND state = $3"
    );
    let mut landed = BTreeMap::new();
    for row in client.query_typed(&sql, &values).await.map_err(doing)? {
        let number = |column: usize| -> Result<u64> {
            let value: i64 = row.try_get(column).map_err(doing)?;
            u64::try_from(value).map_err(|e| Error::data(format!("nexus.commits holds the number {value}")).because(e))
        };
        let found = Landed { generation: number(1)?, rows: number(2)?, refused: number(3)?, waiting: number(4)? };
        landed.insert(number(0)?, found);
    }
    Ok(landed)
}
