//! Lands prepared epochs, each in one transaction.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use deadpool_postgres::{Client, Transaction};
use futures::SinkExt;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::connect::Database;
use super::failure::failed;
use super::spool;
use super::table::{Table, Way, run};
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::{Committer, EpochId, Handle};
use crate::store::Store;

/// Bytes of a message of the COPY: large enough that its header does not count,
/// small enough that the connection is not held up.
const COPY_MESSAGE_BYTES: usize = 256 << 10;

/// How many epochs `nexus.commits` remembers of each sink. It must hold more
/// than can be prepared and not yet done; a day of minutes is far more.
pub(super) const EPOCHS_REMEMBERED: i64 = 10_000;

/// What bounds each transaction. A commit that takes longer than ten minutes
/// is stuck, and one that waits half a minute for a lock had better make way.
const SETTINGS_SQL: &str = "SET LOCAL statement_timeout = '10min'; SET LOCAL lock_timeout = '30s'; \
    SET LOCAL idle_in_transaction_session_timeout = '5min'; SET LOCAL TimeZone = 'UTC'";

/// The spooled rows of an epoch, as they stand in the commit record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spooled {
    /// Their files in the spool.
    pub files: Vec<String>,
    /// How many they are.
    pub rows: u64,
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
    pub(super) way: OnceCell<Way>,
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
        for file in &spooled.files {
            fail::point("before_spool_removal")?;
            self.spool.delete(file).await?;
            fail::point("after_spool_removal")?;
        }
        Ok(())
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        let mut kept = HashSet::new();
        for handle in keep {
            kept.extend(read(handle)?.files);
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
    pub(super) async fn way(&self) -> Result<Way> {
        let find = || async {
            let mut client = self.database.client().await?;
            let found = self.find_way(&mut client).await;
            if found.is_err() {
                drop(Client::take(client));
            }
            found
        };
        self.way.get_or_try_init(find).await.copied()
    }

    async fn find_way(&self, client: &mut Client) -> Result<Way> {
        let transaction = client.transaction().await.map_err(|e| failed("could not begin a transaction", e))?;
        run(&transaction, "set the limits of a transaction", SETTINGS_SQL).await?;
        let way = self.table.check(&transaction).await?;
        fail::point("before_table")?;
        transaction.commit().await.map_err(|e| failed("could not commit the new tables", e))?;
        fail::point("after_table")?;
        Ok(way)
    }

    async fn land(&self, id: EpochId, spooled: &Spooled) -> Result<()> {
        let way = self.way().await?;
        let mut client = self.database.client().await?;
        let landed = self.land_by(&mut client, way, id, spooled).await;
        if landed.is_err() {
            // The next try takes a new connection: this one may lead to a server that has become a standby.
            drop(Client::take(client));
        }
        landed
    }

    async fn land_by(&self, client: &mut Client, way: Way, id: EpochId, spooled: &Spooled) -> Result<()> {
        let transaction = client.transaction().await.map_err(|e| failed("could not begin a transaction", e))?;
        run(&transaction, "set the limits of a transaction", SETTINGS_SQL).await?;
        match self.note(&transaction, id, spooled.rows).await? {
            Noted::Before => return transaction.rollback().await.map_err(|e| failed("could not end a transaction", e)),
            Noted::Now => {}
        }
        if way == Way::Staged {
            run(&transaction, "make a temporary table", &self.table.stage_sql()).await?;
        }
        let rows = self.copy(&transaction, way, spooled).await?;
        if rows != spooled.rows {
            return Err(Error::internal(format!("the spool has {rows} rows, but {} were prepared", spooled.rows)));
        }
        if way == Way::Staged {
            run(&transaction, "bring the rows into the table", &self.table.merge_sql()).await?;
        }
        // If the answer is lost the outcome is open: the next call reads it from nexus.commits.
        if fail::mutated("spool_removed_early") {
            for file in &spooled.files {
                self.spool.delete(file).await?;
            }
        }
        fail::point("before_postgres_commit")?;
        transaction.commit().await.map_err(|e| failed("could not end the transaction", e))?;
        fail::point("after_postgres_commit")?;
        Ok(())
    }

    /// Notes the epoch as committed, in the transaction that lands its rows.
    async fn note(&self, transaction: &Transaction<'_>, id: EpochId, rows: u64) -> Result<Noted> {
        let (generation, epoch, rows) = (number(id.generation)?, number(id.epoch)?, number(rows)?);
        let doing = |e| failed("could not note the epoch in nexus.commits", e);
        let whose: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&self.pipeline, &self.sink, &self.state];
        let [pipeline, sink, state] = whose;
        // Another process that commits the same epoch now holds the row: this waits for its end.
        let noted = transaction
            .execute(
                "INSERT INTO nexus.commits (pipeline, sink, state, generation, epoch, rows) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                &[pipeline, sink, state, &generation, &epoch, &rows],
            )
            .await
            .map_err(doing)?;
        if noted == 0 && !fail::mutated("no_note_in_postgres") {
            return Ok(Noted::Before);
        }
        let later = transaction
            .query_opt(
                "SELECT generation, epoch FROM nexus.commits \
                 WHERE pipeline = $1 AND sink = $2 AND state = $3 AND epoch > $4 ORDER BY epoch DESC LIMIT 1",
                &[pipeline, sink, state, &epoch],
            )
            .await
            .map_err(doing)?;
        if let Some(row) = later {
            return Err(later_epoch(row.try_get(0).map_err(doing)?, row.try_get(1).map_err(doing)?, generation));
        }
        transaction
            .execute(
                "DELETE FROM nexus.commits WHERE pipeline = $1 AND sink = $2 AND state = $3 AND epoch < $4",
                &[pipeline, sink, state, &epoch.saturating_sub(EPOCHS_REMEMBERED)],
            )
            .await
            .map_err(doing)?;
        Ok(Noted::Now)
    }

    /// Copies the spooled rows; gives their number.
    async fn copy(&self, transaction: &Transaction<'_>, way: Way, spooled: &Spooled) -> Result<u64> {
        let doing = |e| failed("could not copy the rows", e);
        let copy = transaction.copy_in(&self.table.copy_sql(way)).await.map_err(doing)?;
        let mut copy = std::pin::pin!(copy);
        let mut rows = 0;
        for (number, name) in spooled.files.iter().enumerate() {
            let file = self.spool.get(name).await?.ok_or_else(|| {
                Error::internal(format!(
                    "the spooled rows {}/{name} are lost, and nexus.commits does not know their epoch",
                    self.spool.url()
                ))
            })?;
            let table = self.table.clone();
            let numbered = way == Way::Staged && table.numbers_rows();
            let encode = move || encode(&table, &file, rows, numbered, number == 0);
            let encoded = tokio::task::spawn_blocking(encode).await;
            let encoded = encoded.map_err(|e| Error::internal("an encoding task ended early").because(e))??;
            rows += encoded.rows;
            for message in encoded.messages {
                copy.send(message).await.map_err(doing)?;
            }
        }
        // The end of the format: a row with -1 columns.
        copy.send(Bytes::from_static(&[0xff, 0xff])).await.map_err(doing)?;
        copy.finish().await.map_err(doing)?;
        Ok(rows)
    }
}

/// Rows in the binary format of COPY.
struct Encoded {
    messages: Vec<Bytes>,
    rows: u64,
}

/// Turns a file of the spool into COPY's format. `rows_before` are numbered already.
fn encode(table: &Table, file: &[u8], rows_before: u64, numbered: bool, first: bool) -> Result<Encoded> {
    let failed = |e| Error::internal("could not encode rows for Postgres").because(e);
    let mut encoder = table.columns.encoder(numbered)?;
    let mut buffer = BytesMut::new();
    encoder.write_header(&mut buffer).map_err(failed)?;
    if !first {
        // The header stands once before all files.
        buffer.clear();
    }
    let mut encoded = Encoded { messages: Vec::new(), rows: 0 };
    for batch in spool::read(file)? {
        let mut batch = table.columns.widen(batch?)?;
        let rows = batch.num_rows() as u64;
        if numbered {
            batch = table.columns.number(&batch, rows_before + encoded.rows)?;
        }
        encoder.write_batch(&batch, &mut buffer).map_err(failed)?;
        encoded.rows += rows;
        while buffer.len() > COPY_MESSAGE_BYTES {
            encoded.messages.push(buffer.split_to(COPY_MESSAGE_BYTES).freeze());
        }
    }
    if !buffer.is_empty() {
        encoded.messages.push(buffer.freeze());
    }
    Ok(encoded)
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

fn number(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|e| Error::internal(format!("{value} is more than Postgres can count")).because(e))
}

pub(super) fn read(handle: &Handle) -> Result<Spooled> {
    Spooled::deserialize(handle).map_err(|e| Error::internal("could not read the handle of a Postgres sink").because(e))
}
