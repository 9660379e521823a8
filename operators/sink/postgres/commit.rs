//! Lands prepared epochs, each in one transaction.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::{Client, Transaction};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio_postgres::types::{ToSql, Type};

use super::connect::Database;
use super::failure::failed;
use super::holder::Holder;
use super::judge::{File, Judge, Reader};
use super::table::{REFUSED_SQL, Table, run};
use super::target::{Target, Way};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::sink::{Committer, EpochId, Handle, spool};
use crate::store::Store;

/// How many epochs `nexus.commits` remembers of each sink. It must hold more
/// than can be prepared and not yet done; a day of minutes is far more.
pub(super) const EPOCHS_REMEMBERED: i64 = 10_000;

/// What bounds each transaction. A commit that takes longer than ten minutes
/// is stuck, and one that waits half a minute for a lock had better make way.
/// Constraints are checked by each statement, so that a refused row is known
/// while it can still be left out. Compiling a statement (`jit`) takes a second, where it is run once over little.
const SETTINGS_SQL: &str = "SET LOCAL statement_timeout = '10min'; SET LOCAL lock_timeout = '30s'; \
    SET LOCAL idle_in_transaction_session_timeout = '5min'; SET LOCAL TimeZone = 'UTC'; SET LOCAL jit = off; \
    SET CONSTRAINTS ALL IMMEDIATE";

/// The spooled rows of an epoch, as they stand in the commit record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spooled {
    /// Their files in the spool.
    pub files: Vec<String>,
    /// How many they are, with those that Postgres cannot hold.
    pub rows: u64,
    /// Files of rows that Postgres cannot hold, as the quarantine will have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// How many those are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused_rows: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Spooled {
    /// Gives the names of all its files in the spool.
    pub fn all_files(&self) -> impl Iterator<Item = &String> {
        self.files.iter().chain(&self.refused)
    }
}

/// Publishes the epochs of a [`PostgresSink`](super::PostgresSink).
pub(super) struct PostgresCommitter {
    pub(super) pipeline: String,
    pub(super) sink: String,
    /// Which state store the epochs are counted by.
    pub(super) state: String,
    pub(super) database: Database,
    pub(super) table: std::sync::Arc<Table>,
    pub(super) spool: Store,
    /// Known once the table has been found to fit.
    pub(super) target: OnceCell<Target>,
    /// Marks the transactions of this process.
    pub(super) holder: Holder,
}

/// What `nexus.commits` says about an epoch.
enum Noted {
    Now,
    Before,
}

#[async_trait]
impl Committer for PostgresCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        let spooled = read(handle)?;
        self.land(id, &spooled).await.map_err(|e| {
            e.while_doing(format!("could not commit epoch {} to the Postgres table {}", id.epoch, self.table.target()))
        })?;
        // Only now: what is gone from the spool has landed.
        for file in spooled.all_files() {
            fail::point("before_spool_removal")?;
            self.spool.delete(file).await?;
            fail::point("after_spool_removal")?;
        }
        Ok(())
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let mut kept = HashSet::new();
        for handle in keep {
            kept.extend(read(handle)?.all_files().cloned());
        }
        let mut swept = 0;
        for entry in self.spool.list("").await? {
            if spool::epoch_of(&entry.name).is_some_and(|of| of.generation < generation) && !kept.contains(&entry.name)
            {
                self.spool.delete(&entry.name).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

impl PostgresCommitter {
    /// Finds, once, how rows get into the table; makes it if it may.
    pub(super) async fn way(&self) -> Result<&Target> {
        let find = || async {
            let mut client = self.database.client().await?;
            let found = self.find_way(&mut client).await;
            if found.is_err() {
                drop(Client::take(client));
            }
            found
        };
        self.target.get_or_try_init(find).await
    }

    async fn find_way(&self, client: &mut Client) -> Result<Target> {
        let transaction = self.begin(client).await?;
        let target = self.table.check(&transaction).await?;
        fail::point("before_table")?;
        transaction.commit().await.map_err(|e| failed("could not commit the new tables", e))?;
        fail::point("after_table")?;
        Ok(target)
    }

    async fn land(&self, id: EpochId, spooled: &Spooled) -> Result<()> {
        let target = self.way().await?;
        let mut client = self.database.client().await?;
        let landed = self.land_by(&mut client, target, id, spooled).await;
        if landed.is_err() {
            // The next try takes a new connection: this one may lead to a server that has become a standby.
            drop(Client::take(client));
        }
        landed
    }

    async fn land_by(&self, client: &mut Client, target: &Target, id: EpochId, spooled: &Spooled) -> Result<()> {
        let transaction = self.begin(client).await?;
        match self.note(&transaction, id, spooled.rows).await? {
            Noted::Before => return transaction.rollback().await.map_err(|e| failed("could not end a transaction", e)),
            Noted::Now => {}
        }
        let mut judge = Judge::new(&transaction, &self.table, target);
        if target.way == Way::Staged {
            run(&transaction, "make a temporary table", &self.table.stage_sql()).await?;
        }
        let mut names = spooled.files.iter();
        let mut fetched = self.fetch(names.next()).await?.map(File::Packed);
        while let Some(file) = fetched {
            let (landed, ended) = oneshot::channel();
            let next = self.fetch_ahead(names.next(), judge.reader(), ended);
            let landing = async {
                match (target.way, file) {
                    (Way::Direct, file) => judge.land(file).await.map_err(|e| advised(e, target))?,
                    (Way::Staged, File::Packed(file)) => judge.stage(file).await?,
                    (Way::Staged, File::Read(_)) => {
                        return Err(Error::internal("a file was read that is to be staged"));
                    }
                }
                drop(landed);
                Ok(())
            };
            ((), fetched) = tokio::try_join!(landing, next)?;
        }
        if judge.rows + spooled.refused_rows != spooled.rows {
            return Err(Error::internal(format!(
                "the spool has {} rows, but {} were prepared",
                judge.rows + spooled.refused_rows,
                spooled.rows
            )));
        }
        if target.way == Way::Staged {
            judge.merge().await.map_err(|e| advised(e, target))?;
        }
        let refused = std::mem::take(&mut judge.refused);
        if spooled.refused_rows > 0 && !target.keeps_refused {
            let text = format!("{} rows have values that Postgres cannot hold", spooled.refused_rows);
            return Err(advised(Error::data(text), target));
        }
        let kept = self.keep_refused(&transaction, id, spooled, refused).await?;
        if kept > 0 {
            tracing::warn!(sink = self.sink, epoch = id.epoch, rows = kept, "Postgres has refused rows");
        }
        // If the answer is lost the outcome is open: the next call reads it from nexus.commits.
        if fail::mutated("spool_removed_early") {
            for file in spooled.all_files() {
                self.spool.delete(file).await?;
            }
        }
        fail::point("before_postgres_commit")?;
        transaction.commit().await.map_err(|e| failed("could not end the transaction", e))?;
        fail::point("after_postgres_commit")?;
        Ok(())
    }

    /// Fetches a file of the spool, if there is one more, while another is landed. Reads its rows as soon as there is what
    /// reads them, unless the other has landed by then.
    async fn fetch_ahead(
        &self,
        name: Option<&String>,
        mut reader: watch::Receiver<Option<Reader>>,
        ended: oneshot::Receiver<()>,
    ) -> Result<Option<File>> {
        let Some(file) = self.fetch(name).await? else { return Ok(None) };
        let found = tokio::select! {
            biased;
            found = reader.wait_for(Option::is_some) => found.ok().and_then(|reader| reader.clone()),
            _ = ended => None,
        };
        Ok(Some(match found {
            Some(reader) => File::Read(reader.read(file).await?),
            None => File::Packed(file),
        }))
    }

    /// Fetches a file of the spool, if there is one more.
    async fn fetch(&self, name: Option<&String>) -> Result<Option<Bytes>> {
        match name {
            Some(name) => self.spooled(name).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads a file of the spool.
    pub(super) async fn spooled(&self, name: &str) -> Result<Bytes> {
        self.spool.get(name).await?.ok_or_else(|| {
            Error::internal(format!(
                "the spooled rows {}/{name} are lost, and nexus.commits does not know their epoch",
                self.spool.url()
            ))
        })
    }

    /// Gives the values that tell the rows of this sink from those of others in the tables of schema `nexus`.
    pub(super) fn named(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        vec![(&self.pipeline, Type::TEXT), (&self.sink, Type::TEXT), (&self.state, Type::TEXT)]
    }

    /// Begins a transaction, in which no older process is in the way.
    async fn begin<'a>(&self, client: &'a mut Client) -> Result<Transaction<'a>> {
        self.holder.end_older(client).await;
        let transaction = client.transaction().await.map_err(|e| failed("could not begin a transaction", e))?;
        let settings = format!("{SETTINGS_SQL}; {}", self.holder.hold_sql());
        run(&transaction, "set the limits of a transaction", &settings).await?;
        Ok(transaction)
    }

    /// Notes the epoch as committed, in the transaction that lands its rows.
    async fn note(&self, transaction: &Transaction<'_>, id: EpochId, rows: u64) -> Result<Noted> {
        let (generation, epoch, rows) = (number(id.generation)?, number(id.epoch)?, number(rows)?);
        let doing = |e| failed("could not note the epoch in nexus.commits", e);
        // Another process that commits the same epoch now holds the row: this waits for its end.
        let mut values = self.named();
        values.extend([(&generation as &(dyn ToSql + Sync), Type::INT8), (&epoch, Type::INT8), (&rows, Type::INT8)]);
        let sql = "INSERT INTO nexus.commits (pipeline, sink, state, generation, epoch, rows) \
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
        let noted = transaction.execute_typed(sql, &values).await.map_err(doing)?;
        if noted == 0 && !fail::mutated("no_note_in_postgres") {
            return Ok(Noted::Before);
        }
        let mut values = self.named();
        values.push((&epoch, Type::INT8));
        let sql = "SELECT generation, epoch FROM nexus.commits \
                   WHERE pipeline = $1 AND sink = $2 AND state = $3 AND epoch > $4 ORDER BY epoch DESC LIMIT 1";
        let later = transaction.query_typed(sql, &values).await.map_err(doing)?;
        if let Some(row) = later.first() {
            return Err(later_epoch(row.try_get(0).map_err(doing)?, row.try_get(1).map_err(doing)?, generation));
        }
        let forgotten = epoch.saturating_sub(EPOCHS_REMEMBERED);
        let mut values = self.named();
        values.push((&forgotten, Type::INT8));
        let sql = "DELETE FROM nexus.commits WHERE pipeline = $1 AND sink = $2 AND state = $3 AND epoch < $4";
        transaction.execute_typed(sql, &values).await.map_err(doing)?;
        Ok(Noted::Now)
    }
}

/// Says how refused rows could go to the quarantine, if they cannot.
fn advised(error: Error, target: &Target) -> Error {
    if error.kind() != ErrorKind::Data || target.keeps_refused {
        return error;
    }
    Error::data(format!("{error}; such rows go to the quarantine once there is a place for them: {REFUSED_SQL}"))
}

fn later_epoch(generation: i64, epoch: i64, ours: i64) -> Error {
    if generation > ours {
        return Error::fenced(format!(
            "generation {generation} has committed epoch {epoch} already, and this process is generation {ours}; \
             let only one run"
        ));
    }
    Error::internal(format!("epoch {epoch} has been committed already; epochs must be committed in their order"))
}

pub(super) fn number(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|e| Error::internal(format!("{value} is more than Postgres can count")).because(e))
}

pub(super) fn read(handle: &Handle) -> Result<Spooled> {
    Spooled::deserialize(handle).map_err(|e| Error::internal("could not read the handle of a Postgres sink").because(e))
}
