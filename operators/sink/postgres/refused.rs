//! Rows that the server has refused, kept by it until the quarantine has them.
//!
//! They come into the table `nexus.refused` in the transaction that lands the other rows of their epoch, and leave it
//! when a commit record exists whose files of the quarantine have them.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::Transaction;
use tokio_postgres::types::{ToSql, Type};

use super::columns::{Columns, documents};
use super::commit::{PostgresCommitter, Spooled, number};
use super::copy;
use super::failure::failed;
use super::judge::Refusal;
use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::error::{Error, Result};
use crate::quarantine::{self, Quarantined, REFUSED_RULE};
use crate::sink::spool;
use crate::sink::{EpochId, RefusedRows, RefusedUpto};

/// Rows that are read at once.
const PAGE_ROWS: i64 = 1000;

/// Bytes of rows that are read at once, but for the last row.
const PAGE_BYTES: i64 = 4 << 20;

const KEEP_SQL: &str = "INSERT INTO nexus.refused \
    (pipeline, sink, state, epoch, number, reason, raw, source, partition, place, redrivable, attempts) \
    SELECT $1, $2, $3, $4, $5 + r.ordinality - 1, r.reason, r.raw, r.source, r.partition, r.place, r.redrivable, r.attempts \
    FROM unnest($6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY \
    AS r (reason, raw, source, partition, place, redrivable, attempts, ordinality)";

const NEXT_SQL: &str = "SELECT epoch, reason, raw, source, partition, place, redrivable, attempts FROM ( \
    SELECT page.*, sum(octet_length(raw)) OVER (ORDER BY epoch, number) - octet_length(raw) AS bytes_before FROM ( \
    SELECT * FROM nexus.refused WHERE pipeline = $1 AND sink = $2 AND state = $3 AND (epoch, number) >= ($4, $5) \
    ORDER BY epoch, number LIMIT $6) AS page) AS paged WHERE bytes_before < $7 ORDER BY epoch, number";

const FORGET_SQL: &str = "DELETE FROM nexus.refused \
    WHERE pipeline = $1 AND sink = $2 AND state = $3 AND (epoch, number) < ($4, $5)";

/// Makes entries of rows that have the columns of their table, of which `redrivable` tells whether `documents` say all.
fn entries(
    rows: &RecordBatch,
    documents: Vec<Bytes>,
    redrivable: &[bool],
    attempts: u32,
    reason: impl Fn(usize) -> String,
) -> Result<Vec<Quarantined>> {
    let texts = |name: &str| -> Result<Option<ArrayRef>> {
        rows.column_by_name(name).map(|column| Ok(cast(column, &DataType::Utf8)?)).transpose()
    };
    let (sources, partitions, offsets) = (texts(SOURCE_COLUMN)?, texts(PARTITION_COLUMN)?, texts(OFFSET_COLUMN)?);
    let at = |texts: &Option<ArrayRef>, row: usize| {
        let texts = texts.as_ref()?.as_string_opt::<i32>()?;
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    let entry = |(row, raw): (usize, Bytes)| Quarantined {
        source: at(&sources, row),
        partition: at(&partitions, row),
        offset: at(&offsets, row),
        reason: reason(row),
        rule: REFUSED_RULE.to_owned(),
        raw,
        key: None,
        header: None,
        redrivable: redrivable.get(row).copied().unwrap_or(false),
        attempts,
    };
    Ok(documents.into_iter().enumerate().map(entry).collect())
}

/// Makes entries of rows that have no wire form: nothing that is sent again would have one.
pub(super) fn unfit(rows: &RecordBatch, reason: &str) -> Result<Vec<Quarantined>> {
    entries(rows, documents(rows)?, &[], quarantine::attempts_of(&rows.schema()), |_| reason.to_owned())
}

/// Makes entries of the rows of a spooled file that the server has refused, the first of which has the number `first`.
fn of_file(
    columns: &Columns,
    batches: &[RecordBatch],
    attempts: u32,
    first: u64,
    refused: &[Refusal],
) -> Result<Vec<Quarantined>> {
    let mut left = refused;
    let mut before = first;
    let mut found = Vec::with_capacity(refused.len());
    for rows in batches {
        let behind = before + rows.num_rows() as u64;
        let (here, later) = left.split_at(left.partition_point(|refusal| refusal.row < behind));
        if !here.is_empty() {
            let indices = UInt64Array::from_iter_values(here.iter().map(|refusal| refusal.row - before));
            let taken = take_record_batch(rows, &indices)?;
            let documents = columns.documents(&taken)?;
            let redrivable = columns.say_all(&documents, &taken);
            let reason = |row: usize| here.get(row).map(|refusal| refusal.reason.clone()).unwrap_or_default();
            found.extend(entries(&taken, documents, &redrivable, attempts, reason)?);
        }
        (left, before) = (later, behind);
    }
    Ok(found)
}

impl PostgresCommitter {
    /// Keeps the rows of an epoch that have no wire form and those that the server has refused, in the transaction that
    /// lands the others; gives how many they are.
    pub(super) async fn keep_refused(
        &self,
        transaction: &Transaction<'_>,
        id: EpochId,
        spooled: &Spooled,
        mut refused: Vec<Refusal>,
    ) -> Result<u64> {
        let mut kept = 0;
        for name in &spooled.refused {
            for batch in spool::read(&self.spooled(name).await?)? {
                self.keep(transaction, id, &mut kept, quarantine::read::rows(&batch?)?).await?;
            }
        }
        refused.sort_unstable_by_key(|refusal| refusal.row);
        let mut left = refused.as_slice();
        let mut before = 0;
        for name in spooled.files.iter().filter(|_| !refused.is_empty()) {
            let file = self.spooled(name).await?;
            let batches: Vec<_> = copy::rows(&self.table.columns, &file)?.collect::<Result<_>>()?;
            let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            let (here, later) = left.split_at(left.partition_point(|refusal| refusal.row < before + rows));
            if !here.is_empty() {
                let entries = of_file(&self.table.columns, &batches, spool::attempts(&file)?, before, here)?;
                self.keep(transaction, id, &mut kept, entries).await?;
            }
            (left, before) = (later, before + rows);
        }
        if kept > 0 {
            let count = number(kept)?;
            let epoch = number(id.epoch)?;
            let mut named = self.named();
            named.extend([(&epoch as &(dyn ToSql + Sync), Type::INT8), (&count, Type::INT8)]);
            let sql = "UPDATE nexus.commits SET refused = $5 \
                       WHERE pipeline = $1 AND sink = $2 AND state = $3 AND epoch = $4";
            let noted = transaction.execute_typed(sql, &named).await;
            noted.map_err(|e| failed("could not note how many rows were refused", e))?;
        }
        Ok(kept)
    }

    async fn keep(
        &self,
        transaction: &Transaction<'_>,
        id: EpochId,
        kept: &mut u64,
        entries: Vec<Quarantined>,
    ) -> Result<()> {
        let page = usize::try_from(PAGE_ROWS).unwrap_or(usize::MAX);
        for entries in entries.chunks(page) {
            let (epoch, first) = (number(id.epoch)?, number(*kept)?);
            let reasons: Vec<_> = entries.iter().map(|entry| entry.reason.as_str()).collect();
            let raws: Vec<_> = entries.iter().map(|entry| entry.raw.as_ref()).collect();
            let sources: Vec<_> = entries.iter().map(|entry| entry.source.as_deref()).collect();
            let partitions: Vec<_> = entries.iter().map(|entry| entry.partition.as_deref()).collect();
            let places: Vec<_> = entries.iter().map(|entry| entry.offset.as_deref()).collect();
            let redrivable: Vec<_> = entries.iter().map(|entry| entry.redrivable).collect();
            let attempts: Vec<_> =
                entries.iter().map(|entry| i32::try_from(entry.attempts).unwrap_or(i32::MAX)).collect();
            let mut values = self.named();
            values.extend([
                (&epoch as &(dyn ToSql + Sync), Type::INT8),
                (&first, Type::INT8),
                (&reasons, Type::TEXT_ARRAY),
                (&raws, Type::BYTEA_ARRAY),
                (&sources, Type::TEXT_ARRAY),
                (&partitions, Type::TEXT_ARRAY),
                (&places, Type::TEXT_ARRAY),
                (&redrivable, Type::BOOL_ARRAY),
                (&attempts, Type::INT4_ARRAY),
            ]);
            let done = transaction.execute_typed(KEEP_SQL, &values).await;
            done.map_err(|e| failed("could not keep the refused rows in nexus.refused", e))?;
            *kept += entries.len() as u64;
        }
        Ok(())
    }
}

#[async_trait]
impl RefusedRows for PostgresCommitter {
    async fn next(&self, behind: RefusedUpto) -> Result<Option<(u64, Vec<Quarantined>)>> {
        if !self.way().await?.keeps_refused {
            return Ok(None);
        }
        let doing = |e| failed("could not read the refused rows in nexus.refused", e);
        let (epoch, rows) = (number(behind.epoch)?, number(behind.rows)?);
        let mut values = self.named();
        values.extend([
            (&epoch as &(dyn ToSql + Sync), Type::INT8),
            (&rows, Type::INT8),
            (&PAGE_ROWS, Type::INT8),
            (&PAGE_BYTES, Type::INT8),
        ]);
        let client = self.database.client().await?;
        let found = client.query_typed(NEXT_SQL, &values).await.map_err(doing)?;
        let epoch_of = |row: &tokio_postgres::Row| row.try_get::<_, i64>(0);
        let Some(epoch) = found.first().map(epoch_of).transpose().map_err(doing)? else { return Ok(None) };
        let entry = |row: &tokio_postgres::Row| {
            Ok(Quarantined {
                reason: row.try_get(1)?,
                raw: Bytes::from(row.try_get::<_, Vec<u8>>(2)?),
                source: row.try_get(3)?,
                partition: row.try_get(4)?,
                offset: row.try_get(5)?,
                redrivable: row.try_get(6)?,
                rule: REFUSED_RULE.to_owned(),
                key: None,
                header: None,
                attempts: u32::try_from(row.try_get::<_, i32>(7)?).unwrap_or(0),
            })
        };
        let of_epoch = found.iter().take_while(|row| epoch_of(row).is_ok_and(|other| other == epoch));
        let entries = of_epoch.map(entry).collect::<Result<Vec<_>, _>>().map_err(doing)?;
        let epoch = u64::try_from(epoch).map_err(|e| Error::internal("nexus.refused is damaged").because(e))?;
        Ok(Some((epoch, entries)))
    }

    async fn forget(&self, upto: RefusedUpto) -> Result<()> {
        if !self.way().await?.keeps_refused {
            return Ok(());
        }
        let (epoch, rows) = (number(upto.epoch)?, number(upto.rows)?);
        let mut values = self.named();
        values.extend([(&epoch as &(dyn ToSql + Sync), Type::INT8), (&rows, Type::INT8)]);
        let client = self.database.client().await?;
        let gone = client.execute_typed(FORGET_SQL, &values).await;
        gone.map(|_| ()).map_err(|e| failed("could not remove rows from nexus.refused that the quarantine has", e))
    }
}
