//! Finding the rows that the server refuses, and landing all others.
//!
//! Rows are copied as fast as the server takes them, until it refuses one (SQLSTATE classes 22 and 23, and what a
//! trigger raises: the data is at fault). From then on, what can be told of the table's columns and constraints sets
//! aside the rows that it is likely to refuse. The others are copied as before. Those set aside go into a temporary
//! table, from where the server itself tries them in ranges, each in a subtransaction: a range that is refused is halved
//! until it is one row, one that is taken lets the next be twice as large. So the server decides of every row, no row
//! crosses the wire more than twice, and rows that are good cost little more than a plain COPY of them.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{filter, filter_record_batch, not, or};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use deadpool_postgres::Transaction;
use tokio::sync::watch;
use tokio_postgres::types::Type;

use super::alike::Alike;
use super::columns::{Columns, ROW_COLUMN};
use super::copy;
use super::failure::{ROW_CONDITIONS, failed};
use super::table::{PROBED, STAGED, Savepoint, Table, quote, run};
use super::target::{Probe, Target};
use crate::error::{Error, ErrorKind, Result};

/// Rows of the first range that is tried where nothing tells good rows from bad ones, and of the largest one: a bad row
/// costs its range once more, and each range a subtransaction.
const RANGE_ROWS: u64 = 256;

/// A row that the server has refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its number within the epoch.
    pub(super) row: u64,
    /// What the server says.
    pub(super) reason: String,
}

/// Lands the rows of one epoch, and finds those that are refused.
pub(super) struct Judge<'a> {
    transaction: &'a Transaction<'a>,
    table: &'a Arc<Table>,
    target: &'a Target,
    pub(super) refused: Vec<Refusal>,
    /// Rows landed or refused so far.
    pub(super) rows: u64,
    wariness: Wariness,
    /// What reads the next file while this one is landed; nothing as long as files are copied as they are.
    reader: watch::Sender<Option<Reader>>,
}

/// A spooled file.
pub(super) enum File {
    /// As it was stored.
    Packed(Bytes),
    /// Its rows, where they are looked at one by one.
    Read(Read),
}

/// The rows of a spooled file.
pub(super) struct Read {
    batches: Vec<RecordBatch>,
    asked: Option<Asked>,
}

/// What the server is asked about rows.
struct Asked {
    /// The columns that it has conditions on.
    rows: Vec<RecordBatch>,
    alike: Alike,
}

/// Reads files whose rows are looked at.
#[derive(Clone)]
pub(super) struct Reader {
    table: Arc<Table>,
    /// The columns that the server is asked about, if any.
    columns: Option<Vec<usize>>,
}

impl Reader {
    /// Reads a spooled file, beside what else the process does.
    pub(super) async fn read(self, file: Bytes) -> Result<Read> {
        let reading = tokio::task::spawn_blocking(move || {
            let batches = copy::rows(&self.table.columns, &file)?.collect::<Result<Vec<_>>>()?;
            let Some(columns) = self.columns else { return Ok(Read { batches, asked: None }) };
            let rows = batches.iter().map(|rows| rows.project(&columns)).collect::<Result<Vec<_>, _>>()?;
            let alike = Alike::of(&rows)?;
            Ok(Read { batches, asked: Some(Asked { rows, alike }) })
        });
        reading.await.map_err(|e| Error::internal("a decoding task ended early").because(e))?
    }
}

/// What the refusals of this epoch have taught.
enum Wariness {
    /// There were none.
    Trusting,
    /// Rows are looked at before they are copied; by the probe too, if there is one.
    Wary(Option<Probe>),
    /// Looking at them has not told the bad ones: all go through the temporary table.
    Distrusting,
}

impl<'a> Judge<'a> {
    pub(super) fn new(transaction: &'a Transaction<'a>, table: &'a Arc<Table>, target: &'a Target) -> Self {
        Self {
            transaction,
            table,
            target,
            refused: Vec::new(),
            rows: 0,
            wariness: Wariness::Trusting,
            reader: watch::channel(None).0,
        }
    }

    /// Gives what the next file is read by, as soon as rows are looked at.
    pub(super) fn reader(&self) -> watch::Receiver<Option<Reader>> {
        self.reader.subscribe()
    }

    /// Copies a spooled file into the table itself.
    pub(super) async fn land(&mut self, file: File) -> Result<()> {
        let read = match file {
            File::Read(read) => read,
            File::Packed(file) => match self.land_trustingly(file).await? {
                Some(read) => read,
                None => return Ok(()),
            },
        };
        let first = self.rows;
        self.rows += read.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        self.land_warily(first, read).await
    }

    /// Copies a file as it is, if none was refused so far; gives its rows if one of them is.
    async fn land_trustingly(&mut self, file: Bytes) -> Result<Option<Read>> {
        if matches!(self.wariness, Wariness::Trusting) {
            let before = Savepoint::begin(self.transaction, "nexus_file").await?;
            match self.copy_all(file.clone()).await {
                Ok(rows) => {
                    self.rows += rows;
                    return before.release().await.map(|()| None);
                }
                Err(error) if self.may_judge(&error) => before.rollback().await?,
                Err(error) => return Err(error),
            }
            self.prepare().await?;
            run(self.transaction, "make a temporary table", &self.table.stage_sql()).await?;
            let probe = Probe::of(self.transaction, self.table).await?;
            if let Some(probe) = &probe {
                run(self.transaction, "make a temporary table", &self.table.probe_sql(probe)).await?;
            }
            let columns = probe.as_ref().map(|probe| probe.columns.clone());
            self.reader.send_replace(Some(Reader { table: self.table.clone(), columns }));
            self.wariness = Wariness::Wary(probe);
        }
        let reader = self.reader.borrow().clone();
        let reader = reader.ok_or_else(|| Error::internal("a file was refused, and its rows are still trusted"))?;
        reader.read(file).await.map(Some)
    }

    /// Copies a file as it is. The first rows of an epoch go before the others: where some are refused, they are likely to
    /// be among the first too, and the server tells of a refusal only at the end of a COPY.
    async fn copy_all(&self, file: Bytes) -> Result<u64> {
        if self.rows > 0 {
            return copy::part(self.transaction, self.table, file, 0..usize::MAX).await;
        }
        let first = copy::part(self.transaction, self.table, file.clone(), 0..1).await?;
        Ok(first + copy::part(self.transaction, self.table, file, 1..usize::MAX).await?)
    }

    /// Copies a spooled file into the temporary table, which is there.
    pub(super) async fn stage(&mut self, file: Bytes) -> Result<()> {
        self.rows += copy::staged(self.transaction, self.table, file, self.rows).await?;
        Ok(())
    }

    /// Brings all staged rows into the table.
    pub(super) async fn merge(&mut self) -> Result<()> {
        let before = Savepoint::begin(self.transaction, "nexus_merge").await?;
        let sql = self.table.merge_sql(self.target, "");
        match run(self.transaction, "bring the rows into the table", &sql).await {
            Ok(()) => before.release().await,
            Err(error) if self.may_judge(&error) => {
                before.rollback().await?;
                self.prepare().await?;
                self.try_ranges(self.rows, RANGE_ROWS, Ok).await
            }
            Err(error) => Err(error),
        }
    }

    /// Tells whether the data is at fault, and refused rows can be kept.
    fn may_judge(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Data && self.target.keeps_refused
    }

    async fn land_warily(&mut self, first: u64, read: Read) -> Result<()> {
        let Read { batches, asked } = read;
        let suspected = match &self.wariness {
            Wariness::Distrusting => None,
            Wariness::Trusting => Some(self.suspects(None, &batches).await?),
            Wariness::Wary(probe) => Some(self.suspects(probe.as_ref().zip(asked), &batches).await?),
        };
        let Some(suspected) = suspected else {
            return self.try_batches(&part(first, &batches, None)?, RANGE_ROWS).await;
        };
        let good = suspected.iter().map(not).collect::<Result<Vec<_>, _>>()?;
        let before = Savepoint::begin(self.transaction, "nexus_file").await?;
        // The others are left out where rows are encoded, while the server takes those before.
        let rows = batches.clone().into_iter().zip(good.clone());
        let rows = rows.map(|(rows, good)| Ok(filter_record_batch(&rows, &good)?));
        let which = self.table.columns.all();
        let sql = self.table.copy_direct_sql();
        match copy::batches(self.transaction, self.table, &sql, which, false, rows).await {
            Ok(_) => before.release().await?,
            Err(error) if self.may_judge(&error) => {
                before.rollback().await?;
                self.wariness = Wariness::Distrusting;
                self.try_batches(&part(first, &batches, Some(&good))?, RANGE_ROWS).await?;
            }
            Err(error) => return Err(error),
        }
        // Most of them are bad: a range of several would be tried in vain.
        self.try_batches(&part(first, &batches, Some(&suspected))?, 1).await
    }

    /// Tells of each row whether it is likely to be refused.
    async fn suspects(&self, asked: Option<(&Probe, Asked)>, batches: &[RecordBatch]) -> Result<Vec<BooleanArray>> {
        let mut suspected = batches.iter().map(|rows| self.target.suspects(rows)).collect::<Result<Vec<_>>>()?;
        let Some((probe, Asked { rows, alike })) = asked else { return Ok(suspected) };
        let mut first = 0;
        let mut numbered = Vec::with_capacity(rows.len());
        for rows in rows {
            let (count, numbers) = (rows.num_rows(), copy::numbers(first as u64, rows.num_rows())?);
            let rows = Columns::number(&rows, &numbers)?;
            numbered.push(Ok(filter_record_batch(&rows, &alike.stand_for_themselves(first, count))?));
            first += count;
        }
        let before = Savepoint::begin(self.transaction, "nexus_probe").await?;
        let sql = self.table.copy_probe_sql(probe);
        let which = probe.columns.clone();
        match copy::batches(self.transaction, self.table, &sql, which, true, numbered.into_iter()).await {
            Ok(_) => before.release().await?,
            // A condition that fails on a row, such as a division by zero: the row itself will be refused.
            Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::Config) => {
                before.rollback().await?;
                return Ok(suspected);
            }
            Err(error) => return Err(error),
        }
        let doing = |e| failed("could not read what a probe has found", e);
        let sql = format!("SELECT {} FROM {PROBED}", quote(ROW_COLUMN));
        let found = self.transaction.query_typed(&sql, &[]).await.map_err(doing)?;
        run(self.transaction, "empty a temporary table", &format!("TRUNCATE {PROBED}")).await?;
        let found = found.iter().map(|row| row.try_get::<_, i64>(0).map(i64::cast_unsigned));
        let found = found.collect::<Result<HashSet<_>, _>>().map_err(doing)?;
        let mut first = 0;
        for suspected in &mut suspected {
            let probed = alike.found(first, suspected.len(), |row| found.contains(&(row as u64)));
            first += suspected.len();
            *suspected = or(suspected, &probed)?;
        }
        Ok(suspected)
    }

    /// Has the server try rows from the temporary table.
    async fn try_batches(&mut self, parts: &[Part], range_rows: u64) -> Result<()> {
        let mut rows = Vec::with_capacity(parts.len());
        let mut of_epoch = Vec::new();
        for part in parts {
            let ordinals = copy::numbers(of_epoch.len() as u64, part.rows.num_rows())?;
            rows.push(Columns::number(&part.rows, &ordinals));
            of_epoch.extend_from_slice(part.numbers.values());
        }
        if of_epoch.is_empty() {
            return Ok(());
        }
        let which = self.table.columns.all();
        copy::batches(self.transaction, self.table, &self.table.copy_staged_sql(), which, true, rows.into_iter())
            .await?;
        let unknown = || Error::internal("the server has judged a row that it was not given");
        let number = |ordinal: u64| {
            let number = usize::try_from(ordinal).ok().and_then(|at| of_epoch.get(at)).ok_or_else(unknown)?;
            u64::try_from(*number).map_err(|_| unknown())
        };
        self.try_ranges(of_epoch.len() as u64, range_rows, number).await?;
        run(self.transaction, "empty a temporary table", &format!("TRUNCATE {STAGED}")).await
    }

    /// Has the server try the staged rows, which are numbered from 0 on, in ranges.
    async fn try_ranges(&mut self, rows: u64, range_rows: u64, number: impl Fn(u64) -> Result<u64>) -> Result<()> {
        run(self.transaction, "try the rows of an epoch", &self.judge_sql(rows, range_rows)).await?;
        let doing = |e| failed("could not read which rows were refused", e);
        let target = self.table.target();
        for row in self.transaction.query_typed(JUDGED_SQL, &[(&target, Type::TEXT)]).await.map_err(doing)? {
            let ordinal: i64 = row.try_get(0).map_err(doing)?;
            let text = |column: usize| row.try_get::<_, Option<String>>(column).map_err(doing);
            let mut reason = format!("{} (SQLSTATE {})", text(2)?.unwrap_or_default(), text(1)?.unwrap_or_default());
            for (what, at) in [("column", 3), ("constraint", 4), ("detail", 5)] {
                if let Some(value) = text(at)?.filter(|value| !value.is_empty()) {
                    reason.push_str(&format!(", {what} {value}"));
                }
            }
            let ordinal = u64::try_from(ordinal).map_err(|e| Error::internal("a row has no number").because(e))?;
            self.refused.push(Refusal { row: number(ordinal)?, reason });
        }
        run(self.transaction, "empty a temporary table", "TRUNCATE pg_temp.nexus_judged").await
    }

    /// Makes what [`Self::try_ranges`] needs beside the rows.
    async fn prepare(&self) -> Result<()> {
        run(self.transaction, "make a temporary table", JUDGED_TABLE_SQL).await
    }

    /// Gives the SQL that tries the rows in ranges, as PL/pgSQL, and notes those that are refused.
    fn judge_sql(&self, rows: u64, range_rows: u64) -> String {
        let row = quote(ROW_COLUMN);
        let merge = self.table.merge_sql(self.target, &format!("WHERE {row} BETWEEN nexus_from AND nexus_to"));
        let mut declared = String::new();
        let mut columns = String::new();
        for index in self.target.converting() {
            let (Some(column), Some(value)) = (self.table.columns.columns.get(index), self.target.values.get(index))
            else {
                continue;
            };
            let name = quote(&column.name);
            declared.push_str(&format!("nexus_value_{index} {}.{name}%TYPE; ", self.table.target()));
            // The server names no column for a value that does not fit its type: it is the first that fails alone.
            columns.push_str(&format!(
                "IF nexus_column = '' THEN BEGIN \
                 SELECT {value} INTO nexus_value_{index} FROM {STAGED} WHERE {row} = nexus_from; \
                 EXCEPTION WHEN OTHERS THEN nexus_column := {}; END; END IF; ",
                literal(&column.name)
            ));
        }
        let body = format!(
            "DECLARE nexus_from bigint := 0; nexus_to bigint; nexus_size bigint := {range_rows}; \
             nexus_state text; nexus_message text; nexus_detail text; nexus_column text; nexus_constraint text; \
             nexus_type text; {declared} \
             BEGIN WHILE nexus_from < {rows} LOOP \
               nexus_to := least(nexus_from + nexus_size, {rows}) - 1; \
               BEGIN \
                 {merge}; \
                 nexus_from := nexus_to + 1; nexus_size := least(nexus_size * 2, {RANGE_ROWS}); \
               EXCEPTION WHEN {ROW_CONDITIONS} THEN \
                 IF nexus_from < nexus_to THEN nexus_size := (nexus_to - nexus_from + 1) / 2; CONTINUE; END IF; \
                 GET STACKED DIAGNOSTICS nexus_state = RETURNED_SQLSTATE, nexus_message = MESSAGE_TEXT, \
                   nexus_detail = PG_EXCEPTION_DETAIL, nexus_column = COLUMN_NAME, \
                   nexus_constraint = CONSTRAINT_NAME, nexus_type = PG_DATATYPE_NAME; \
                 IF nexus_state LIKE '22%' OR nexus_type <> '' THEN {columns} END IF; \
                 INSERT INTO pg_temp.nexus_judged VALUES (nexus_from, nexus_state, nexus_message, nexus_column, \
                   nexus_constraint, nexus_detail); \
                 nexus_from := nexus_from + 1; \
               END; \
             END LOOP; END"
        );
        let mut tag = "nexus".to_owned();
        while body.contains(&format!("${tag}$")) {
            tag.push('_');
        }
        format!(
            "CREATE INDEX IF NOT EXISTS nexus_rows_row ON {STAGED} ({row}); SET LOCAL enable_seqscan = off; \
             DO ${tag}$ {body} ${tag}$; SET LOCAL enable_seqscan TO DEFAULT"
        )
    }
}

const JUDGED_TABLE_SQL: &str = "CREATE TEMPORARY TABLE nexus_judged (row bigint, state text, message text, \
    at_column text, at_constraint text, detail text) ON COMMIT DROP";

/// What was refused, with the columns of the constraint where the server names no column.
const JUDGED_SQL: &str = "SELECT j.row, j.state, j.message, coalesce(nullif(j.at_column, ''), \
        (SELECT string_agg(DISTINCT a.attname, ', ') FROM pg_catalog.pg_constraint k \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) \
         WHERE k.conrelid = to_regclass($1) AND k.conname = j.at_constraint)), j.at_constraint, j.detail \
    FROM pg_temp.nexus_judged j ORDER BY j.row";

/// Rows of a batch, with their numbers within the epoch.
struct Part {
    rows: RecordBatch,
    numbers: Int64Array,
}

/// Numbers rows from `first` on, and gives those that `wanted` names.
fn part(first: u64, batches: &[RecordBatch], wanted: Option<&[BooleanArray]>) -> Result<Vec<Part>> {
    let mut first = first;
    let mut parts = Vec::with_capacity(batches.len());
    for (index, rows) in batches.iter().enumerate() {
        let numbers = copy::numbers(first, rows.num_rows())?;
        first += rows.num_rows() as u64;
        match wanted.and_then(|wanted| wanted.get(index)) {
            None => parts.push(Part { rows: rows.clone(), numbers }),
            Some(wanted) if wanted.true_count() == 0 => {}
            Some(wanted) => {
                let numbers = filter(&numbers, wanted)?.as_primitive::<Int64Type>().clone();
                parts.push(Part { rows: filter_record_batch(rows, wanted)?, numbers });
            }
        }
    }
    Ok(parts)
}

/// Quotes text.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
