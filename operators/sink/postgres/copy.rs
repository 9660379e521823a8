//! Copying rows: from the spool, through the binary format of COPY, to the server.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use bytes::{Bytes, BytesMut};
use deadpool_postgres::Transaction;
use futures::SinkExt;
use tokio::sync::mpsc;

use super::columns::Columns;
use super::failure::failed;
use super::table::Table;
use crate::error::{Error, Result};
use crate::fail;
use crate::sink::spool;

/// Bytes of a message of the COPY: large enough that its header does not count,
/// small enough that the connection is not held up.
const MESSAGE_BYTES: usize = 256 << 10;

/// Messages that wait for the server while the next are encoded.
const MESSAGES_MAX: usize = 8;

/// Reads the rows of a spooled file, in wire form with the columns of now.
pub(super) fn rows<'a>(columns: &'a Columns, file: &'a [u8]) -> Result<impl Iterator<Item = Result<RecordBatch>> + 'a> {
    Ok(spool::read(file)?.map(|batch| columns.widen(batch?)))
}

/// Copies some batches of a spooled file into the table itself; gives how many rows they have.
pub(super) async fn part(
    transaction: &Transaction<'_>,
    table: &Arc<Table>,
    file: Bytes,
    batches: Range<usize>,
) -> Result<u64> {
    let sql = table.copy_direct_sql();
    let table = table.clone();
    send(transaction, &sql, move |to| {
        let which = table.columns.all();
        let rows = rows(&table.columns, &file)?.skip(batches.start).take(batches.len());
        encode(&table.columns, &which, false, rows, to)
    })
    .await
}

/// Copies a spooled file, numbered from `first` on, into the temporary table; gives how many rows it has.
pub(super) async fn staged(transaction: &Transaction<'_>, table: &Arc<Table>, file: Bytes, first: u64) -> Result<u64> {
    let sql = table.copy_staged_sql();
    let table = table.clone();
    send(transaction, &sql, move |to| {
        let which = table.columns.all();
        let mut next = first;
        let numbered = rows(&table.columns, &file)?.map(|batch| {
            let batch = batch?;
            let numbers = numbers(next, batch.num_rows())?;
            next += batch.num_rows() as u64;
            Columns::number(&batch, &numbers)
        });
        encode(&table.columns, &which, true, numbered, to)
    })
    .await
}

/// Copies some columns of batches, with their numbers if the COPY names them.
pub(super) async fn batches(
    transaction: &Transaction<'_>,
    table: &Arc<Table>,
    sql: &str,
    which: Vec<usize>,
    numbered: bool,
    batches: impl Iterator<Item = Result<RecordBatch>> + Send + 'static,
) -> Result<u64> {
    let table = table.clone();
    send(transaction, sql, move |to| encode(&table.columns, &which, numbered, batches, to)).await
}

/// Gives numbers that follow one another.
pub(super) fn numbers(first: u64, count: usize) -> Result<Int64Array> {
    let first = i64::try_from(first).map_err(|e| Error::internal("an epoch has too many rows").because(e))?;
    Ok(Int64Array::from_iter_values((first..).take(count)))
}

/// Sends rows while the next ones are encoded; gives how many the encoder has counted.
async fn send<E>(transaction: &Transaction<'_>, sql: &str, encode: E) -> Result<u64>
where
    E: FnOnce(&mpsc::Sender<Bytes>) -> Result<u64> + Send + 'static,
{
    let doing = |e| failed("could not copy the rows", e);
    let copy = transaction.copy_in(sql).await.map_err(doing)?;
    let mut copy = std::pin::pin!(copy);
    let (to, mut messages) = mpsc::channel(MESSAGES_MAX);
    // It ends when it has encoded all, or when nobody takes its messages any more.
    let encoding = tokio::task::spawn_blocking(move || encode(&to));
    while let Some(message) = messages.recv().await {
        copy.send(message).await.map_err(doing)?;
        fail::point("after_copied")?;
    }
    let rows = encoding.await.map_err(|e| Error::internal("an encoding task ended early").because(e))??;
    copy.finish().await.map_err(doing)?;
    Ok(rows)
}

fn encode(
    columns: &Columns,
    which: &[usize],
    numbered: bool,
    batches: impl Iterator<Item = Result<RecordBatch>>,
    to: &mpsc::Sender<Bytes>,
) -> Result<u64> {
    let wrong = |e| Error::internal("could not encode rows for Postgres").because(e);
    let given_up = |e| Error::internal("the copy of rows was given up").because(e);
    let mut encoder = columns.encoder(which, numbered)?;
    let mut buffer = BytesMut::new();
    encoder.write_header(&mut buffer).map_err(wrong)?;
    let mut rows = 0;
    for batch in batches {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        encoder.write_batch(&batch, &mut buffer).map_err(wrong)?;
        while buffer.len() > MESSAGE_BYTES {
            to.blocking_send(buffer.split_to(MESSAGE_BYTES).freeze()).map_err(given_up)?;
        }
    }
    encoder.write_footer(&mut buffer).map_err(wrong)?;
    to.blocking_send(buffer.freeze()).map_err(given_up)?;
    Ok(rows)
}
