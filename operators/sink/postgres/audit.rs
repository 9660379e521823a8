//! What an audit asks of Postgres: which epochs have landed, and which rows wait for it.

use std::collections::BTreeMap;

pub use super::commit::Spooled;
use super::commit::{EPOCHS_REMEMBERED, read};
use super::connect::Database;
use super::failure::failed;
use super::spool;
use crate::error::{Error, Result};
use crate::secret::SecretRef;
use crate::sink::{EpochId, Handle};

/// An epoch that `nexus.commits` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// The process whose epoch it is.
    pub generation: u64,
    /// Its rows.
    pub rows: u64,
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

/// Reads which epochs of a sink have landed, as `nexus.commits` tells.
///
/// # Errors
///
/// [`Unavailable`](crate::ErrorKind::Unavailable) if the database does not answer, and
/// [`Config`](crate::ErrorKind::Config) if it does not let us in.
pub async fn landed(secret: &SecretRef, pipeline: &str, sink: &str, state: &str) -> Result<BTreeMap<u64, Landed>> {
    let doing = |e| failed("could not read nexus.commits", e);
    let client = Database::new(secret.clone()).client().await?;
    let there = client.query_one("SELECT to_regclass('nexus.commits') IS NOT NULL", &[]).await;
    if !there.and_then(|row| row.try_get::<_, bool>(0)).map_err(doing)? {
        return Ok(BTreeMap::new());
    }
    let found = client
        .query(
            "SELECT epoch, generation, rows FROM nexus.commits WHERE pipeline = $1 AND sink = $2 AND state = $3",
            &[&pipeline, &sink, &state],
        )
        .await
        .map_err(doing)?;
    let mut landed = BTreeMap::new();
    for row in found {
        let number = |column: usize| -> Result<u64> {
            let value: i64 = row.try_get(column).map_err(doing)?;
            u64::try_from(value).map_err(|e| Error::data(format!("nexus.commits holds the number {value}")).because(e))
        };
        landed.insert(number(0)?, Landed { generation: number(1)?, rows: number(2)? });
    }
    Ok(landed)
}
