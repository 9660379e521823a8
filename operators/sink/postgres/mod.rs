//! Rows of a table in PostgreSQL, each epoch exactly once.
//!
//! A prepared epoch is a few files in the state store (the *spool*), so a
//! database that is slow or away does not stop the lake. A commit is one
//! transaction: the rows come by binary COPY, and a row in `nexus.commits` says
//! that the epoch is there. With a key, a row replaces the one of the same key
//! (the last one of an epoch wins); without, every row is added.
//!
//! | Arrow | Postgres |
//! |---|---|
//! | `bool`; `int8`, `uint8`, `int16`; `uint16`, `int32`; `uint32`, `int64` | `boolean`; `smallint`; `integer`; `bigint` |
//! | `uint64`; decimals | `numeric`; `numeric(p, s)` |
//! | `float32`, `float64` | `real`, `double precision` |
//! | text; binary | `text`; `bytea` |
//! | dates, times | `date`, `time` |
//! | timestamps with and without a zone | `timestamptz`, `timestamp` |
//! | text whose field says `nexus.type=json`, structs, maps, lists of these or of lists | `jsonb` |
//! | other lists | arrays |
//!
//! No session state is used, which is what RDS Proxy and pgbouncer in transaction
//! mode ask for.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use arrow::datatypes::{DataType, Field, Schema};
//! # use nexus_operators::{secret::SecretRef, sink::postgres::{PostgresSettings, PostgresSink}, store::Store};
//! # async fn example() -> nexus_operators::Result<()> {
//! let settings = PostgresSettings {
//!     pipeline: "flights".into(),
//!     sink_name: "gold.hourly_delays".into(),
//!     state_id: "5b1f6a0e".into(),
//!     generation: 1,
//!     schema: "public".into(),
//!     table: "hourly_delays".into(),
//!     key: vec!["origin".into()],
//!     append: false,
//!     create: true,
//!     rows: Arc::new(Schema::new(vec![Field::new("origin", DataType::Utf8View, false)])),
//! };
//! let spool = Store::open("/var/lib/nexus/spool", &Default::default()).await?;
//! let sink = PostgresSink::new(settings, None, SecretRef::Env("DATABASE_URL".into()), spool)?;
//! sink.check().await
//! # }
//! ```

mod alike;
pub mod audit;
mod columns;
mod commit;
mod connect;
mod copy;
mod failure;
mod holder;
mod judge;
mod probe;
mod refused;
#[cfg(test)]
#[cfg(feature = "testing")]
mod refused_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod server_tests;
mod table;
mod target;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::sync::OnceCell;

use self::columns::Columns;
use self::commit::{PostgresCommitter, Spooled};
use self::connect::Database;
use self::holder::Holder;
use self::table::Table;
use super::spool::{self, Spool};
use super::{Committer, EpochId, Prepared, RefusedRows, Sink, SpooledFile};
use crate::error::{Error, ErrorKind, Result};
use crate::quarantine::{self, Quarantined};
use crate::secret::SecretRef;
use crate::store::Store;

/// What a [`PostgresSink`] is told. Either `key` or `append` is given.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// The pipeline's name.
    pub pipeline: String,
    /// The sink's name within the pipeline, such as `gold.hourly_delays`.
    pub sink_name: String,
    /// The random id of the pipeline's state store, so that epochs counted from
    /// the start by a new one are not taken for those of an old one.
    pub state_id: String,
    /// The process's number: it ends sessions of older ones that are in its way.
    pub generation: u64,
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The columns that tell rows apart.
    pub key: Vec<String>,
    /// Every row is added.
    pub append: bool,
    /// Make the schema, the table, columns that are new to the rows, and `nexus.commits` if they are not there.
    pub create: bool,
    /// The columns of the rows that will come.
    pub rows: SchemaRef,
}

/// Where a database is, without how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The first server's name, or the folder of its socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database.
    pub database: String,
}

/// Tells where the database of a connection URL is.
pub async fn address(secret: &SecretRef) -> Result<Address> {
    connect::address(secret.resolve().await?.expose())
}

/// Tells which rows of a table delete the row of their key, in place of being put there.
pub trait DeleteWhen: Send + Sync {
    /// Tells of each row whether it deletes.
    fn deletes(&self, rows: &RecordBatch) -> Result<BooleanArray>;
}

/// Writes a table's rows to PostgreSQL.
///
/// Rows that Postgres cannot hold, or refuses at the commit, are kept for the
/// quarantine: [`refused`](Self::refused) gives them. An
/// [`Unavailable`](crate::ErrorKind::Unavailable) error of `write` comes before
/// any row of the call was taken: the call may be made again.
pub struct PostgresSink {
    table: Arc<Table>,
    delete_when: Option<Box<dyn DeleteWhen>>,
    spool: Spool,
    /// Rows that Postgres cannot hold, as the quarantine will have them.
    unfit: Spool,
    committer: Arc<PostgresCommitter>,
    /// Rows of the open epoch.
    rows: u64,
    /// Of these, rows that Postgres cannot hold.
    unfit_rows: u64,
}

impl PostgresSink {
    /// Makes a sink; it connects when [`check`](Self::check) is called or an epoch is committed.
    ///
    /// `spool` is a folder of the state store, for this sink alone.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a column that Postgres has no
    /// type for, and for a key that is missing, unknown or not wanted.
    pub fn new(
        settings: PostgresSettings,
        delete_when: Option<Box<dyn DeleteWhen>>,
        secret: SecretRef,
        spool: Store,
    ) -> Result<Self> {
        check_key(&settings)?;
        if delete_when.is_some() && settings.append {
            return Err(Error::config(format!(
                "the Postgres table {}.{} has no key by which rows could be deleted",
                settings.schema, settings.table
            )));
        }
        let columns = Columns::of(&settings.rows, &settings.table, delete_when.is_some())?;
        let rows = Spool::new(spool.clone(), columns.wire_schema().clone(), spool::ROWS);
        let unfit = Spool::new(spool.clone(), quarantine::schema(), spool::REFUSED);
        let table = Arc::new(Table {
            schema: settings.schema,
            name: settings.table,
            key: settings.key,
            create: settings.create,
            columns,
        });
        let names = [settings.pipeline.as_str(), &settings.sink_name, &settings.state_id];
        let holder = Holder::new(names, settings.generation);
        let committer = Arc::new(PostgresCommitter {
            pipeline: settings.pipeline,
            sink: settings.sink_name,
            state: settings.state_id,
            database: Database::new(secret),
            table: table.clone(),
            spool,
            target: OnceCell::new(),
            holder,
        });
        Ok(Self { table, delete_when, spool: rows, unfit, committer, rows: 0, unfit_rows: 0 })
    }

    /// Gives the rows that Postgres has refused.
    pub fn refused(&self) -> Arc<dyn RefusedRows> {
        self.committer.clone()
    }

    /// Connects, makes the table if it is missing and may be made, and compares its columns.
    ///
    /// The first commit does the same, if this was not called or did not succeed.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the table does not fit, and
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the database does not answer.
    pub async fn check(&self) -> Result<()> {
        let checked = self.committer.way().await;
        checked
            .map(|_| ())
            .map_err(|e| e.while_doing(format!("could not use the Postgres table {}", self.table.target())))
    }
}

impl PostgresSink {
    fn wire(&self, rows: &RecordBatch, deletes: Option<&BooleanArray>) -> Result<RecordBatch> {
        let wired = self.table.columns.wire(rows, deletes)?;
        self.table.check_keys(&wired)?;
        Ok(wired)
    }

    /// Brings rows into wire form, and finds those that have none: in halves, since they are few.
    fn part(
        &self,
        rows: &RecordBatch,
        deletes: Option<&BooleanArray>,
        wired: &mut Vec<RecordBatch>,
        unfit: &mut Vec<Quarantined>,
    ) -> Result<()> {
        match self.wire(rows, deletes) {
            Ok(rows) => wired.push(rows),
            Err(error) if error.kind() != ErrorKind::Data => return Err(error),
            Err(error) if rows.num_rows() == 1 => unfit.extend(refused::unfit(rows, &error.to_string())?),
            Err(_) => {
                let half = rows.num_rows() / 2;
                for (from, count) in [(0, half), (half, rows.num_rows() - half)] {
                    let deletes = deletes.map(|deletes| deletes.slice(from, count));
                    self.part(&rows.slice(from, count), deletes.as_ref(), wired, unfit)?;
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        self.spool.make_room().await?;
        self.unfit.make_room().await?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let deletes = self.delete_when.as_ref().map(|when| when.deletes(rows)).transpose()?;
        let (mut wired, mut unfit) = (Vec::new(), Vec::new());
        self.part(rows, deletes.as_ref(), &mut wired, &mut unfit)?;
        if !wired.is_empty() {
            let wired = concat_batches(self.table.columns.wire_schema(), &wired)?;
            self.spool.write(id, &quarantine::with_attempts(&wired, quarantine::attempts_of(&rows.schema()))?)?;
        }
        if !unfit.is_empty() {
            self.unfit.write(id, &quarantine::batch(&self.committer.sink, &unfit, 0)?)?;
            self.unfit_rows += unfit.len() as u64;
        }
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        let (files, refused) = (self.spool.finish(id).await?, self.unfit.finish(id).await?);
        let bytes = files.iter().chain(&refused).map(|file| file.bytes).sum();
        let count = (files.len() + refused.len()) as u64;
        if count == 0 {
            return Ok(Prepared::default());
        }
        let (rows, refused_rows) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.unfit_rows));
        let names = |files: Vec<SpooledFile>| files.into_iter().map(|file| file.name).collect();
        let handle = serde_json::to_value(Spooled { files: names(files), rows, refused: names(refused), refused_rows })
            .map_err(|e| Error::internal("could not write a handle").because(e))?;
        Ok(Prepared { handle: Some(handle), rows, bytes, files: count, ..Prepared::default() })
    }

    fn end(&mut self) {}

    fn held_bytes(&self) -> usize {
        self.spool.held_bytes() + self.unfit.held_bytes()
    }

    fn committer(&self) -> Arc<dyn Committer> {
        self.committer.clone()
    }
}

fn check_key(settings: &PostgresSettings) -> Result<()> {
    let table = format!("{}.{}", settings.schema, settings.table);
    if settings.key.is_empty() != settings.append {
        return Err(Error::config(format!("the Postgres table {table} needs either `key` or `append: true`")));
    }
    for column in &settings.key {
        if settings.rows.column_with_name(column).is_none() {
            let names: Vec<_> = settings.rows.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::config(format!(
                "`{column}` in the key of the Postgres table {table} is not one of the columns: {}",
                names.join(", ")
            )));
        }
    }
    Ok(())
}
