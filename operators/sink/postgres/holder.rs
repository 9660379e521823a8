//! Who holds the place in `nexus.commits` at which a sink commits.
//!
//! A process that stands still in the middle of a commit, frozen or cut off, holds its transaction until the server ends
//! it, and with it all commits of a process that has taken over. So each transaction holds an advisory lock that says
//! whose it is, and a newer process ends the sessions of older ones.

use deadpool_postgres::Client;

use super::failure::failed;

/// Marks the transactions of a sink of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder {
    /// Tells the sink from others.
    sink: u32,
    generation: u32,
}

impl Holder {
    /// Makes the mark of a sink, which `names` tell from all others in the database.
    pub(super) fn new(names: [&str; 3], generation: u64) -> Self {
        let name = names.join("\0");
        // FNV-1a: it must be the same in all versions of Nexus. Postgres gives locks signed numbers, and shows them
        // unsigned.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let generation = u32::try_from(generation).unwrap_or(u32::MAX) & 0x7fff_ffff;
        Self { sink: hash & 0x7fff_ffff, generation }
    }

    /// Gives the SQL that marks the open transaction. It never waits.
    pub(super) fn hold_sql(self) -> String {
        format!("SELECT pg_advisory_xact_lock_shared({}, {})", self.sink, self.generation)
    }

    /// Ends the sessions of older processes, as far as the rights of the user reach. What they have not committed is
    /// undone, and they may commit nothing any more.
    pub(super) async fn end_older(self, client: &Client) {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 \
             AND granted AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
             AND classid = {} AND objid < {}",
            self.sink, self.generation
        );
        match client.query_typed(&sql, &[]).await {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                tracing::warn!(
                    sessions = ended.len(),
                    "ended the sessions of an older process that was about to commit"
                );
            }
            // They end by themselves when the server finds them idle for too long; until then the commit waits.
            Err(error) => {
                let error = failed("could not end the session of an older process", error);
                tracing::warn!(%error, "an older process holds up the commit");
            }
        }
    }
}
