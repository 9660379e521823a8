//! The table that rows land in: its SQL, and whether it fits the rows.

use std::collections::HashMap;

use arrow::array::{Array, RecordBatch};
use deadpool_postgres::Transaction;
use tokio_postgres::types::Type;

use super::columns::{Column, Columns, DELETE_COLUMN, ROW_COLUMN};
use super::failure::failed;
use super::target::{ColumnThere, Probe, Target, Way, existing};
use crate::error::{Error, ErrorKind, Result};

/// The temporary table that an epoch's rows are copied into.
pub(super) const STAGED: &str = "pg_temp.nexus_rows";

/// The temporary table of rows that a probe has found.
pub(super) const PROBED: &str = "pg_temp.nexus_probed";

/// Key of the advisory lock under which tables are made: `CREATE .. IF NOT
/// EXISTS` fails where two do it at once. (It reads "nexus" in ASCII.)
const CREATE_LOCK: i64 = 0x6e_65_78_75_73;

/// A table, and how rows get into it.
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) key: Vec<String>,
    pub(super) create: bool,
    pub(super) columns: Columns,
}

impl Table {
    /// Gives the table's name as SQL.
    pub(super) fn target(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Makes what is missing if it may, compares the columns, and tries the SQL of a commit.
    pub(super) async fn check(&self, transaction: &Transaction<'_>) -> Result<Target> {
        let keeps_refused = self.make_own(transaction).await?;
        let mut there = existing(transaction, self).await?;
        if there.is_empty() {
            self.make(transaction).await?;
            there = existing(transaction, self).await?;
        }
        if self.add_missing(transaction, &there).await? {
            there = existing(transaction, self).await?;
        }
        self.compare(&there)?;
        let target = Target::of(self, &there, keeps_refused);
        if target.way == Way::Direct {
            return Ok(target);
        }
        run(transaction, "make a temporary table", &self.stage_sql()).await?;
        let plan = format!("EXPLAIN {}", self.merge_sql(&target, ""));
        run(transaction, &format!("check how rows get into {}", self.target()), &plan).await?;
        run(transaction, "drop a temporary table", &format!("DROP TABLE {STAGED}")).await?;
        Ok(target)
    }

    /// Gives the SQL that makes the temporary table.
    pub(super) fn stage_sql(&self) -> String {
        let columns = self.columns.columns.iter().map(|c| format!("{} {}", quote(&c.name), c.wire_type));
        let deletes = self.columns.deletes().then(|| format!("{} boolean", quote(DELETE_COLUMN)));
        let columns = columns.chain(deletes).chain([format!("{} bigint", quote(ROW_COLUMN))]);
        temporary(STAGED, &columns.collect::<Vec<_>>())
    }

    /// Gives the SQL that makes the temporary table of what is probed.
    pub(super) fn probe_sql(&self, probe: &Probe) -> String {
        let columns = probe.columns.iter().filter_map(|index| self.columns.columns.get(*index));
        let columns = columns.map(|c| format!("{} {}", quote(&c.name), c.wire_type));
        temporary(PROBED, &columns.chain([format!("{} bigint", quote(ROW_COLUMN))]).collect::<Vec<_>>())
    }

    /// Gives the SQL that takes rows into the table itself.
    pub(super) fn copy_direct_sql(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.target(), self.names().join(", "))
    }

    /// Gives the SQL that takes numbered rows into the temporary table.
    pub(super) fn copy_staged_sql(&self) -> String {
        let deletes = self.columns.deletes().then(|| quote(DELETE_COLUMN));
        let columns: Vec<_> = self.names().into_iter().chain(deletes).chain([quote(ROW_COLUMN)]).collect();
        format!("COPY {STAGED} ({}) FROM STDIN (FORMAT binary)", columns.join(", "))
    }

    /// Gives the SQL that takes, of numbered rows, those that meet the condition of a probe.
    pub(super) fn copy_probe_sql(&self, probe: &Probe) -> String {
        let columns = probe.columns.iter().filter_map(|index| self.columns.columns.get(*index));
        let columns: Vec<_> = columns.map(|c| quote(&c.name)).chain([quote(ROW_COLUMN)]).collect();
        format!("COPY {PROBED} ({}) FROM STDIN (FORMAT binary) WHERE {}", columns.join(", "), probe.condition)
    }

    /// Gives the SQL that brings rows from the temporary table into the table: those that `which` leaves over, such as
    /// `WHERE .. BETWEEN .. AND ..`.
    pub(super) fn merge_sql(&self, target: &Target, which: &str) -> String {
        let columns = &self.columns.columns;
        let into = format!("INSERT INTO {} ({})", self.target(), self.names().join(", "));
        let rows = format!("FROM {STAGED} {which}");
        if self.key.is_empty() {
            return format!("{into} SELECT {} {rows}", target.values.join(", "));
        }
        let (key, key_values) = (self.key_names().join(", "), self.key_values(target).join(", "));
        let newest =
            format!("SELECT DISTINCT ON ({key_values}) * {rows} ORDER BY {key_values}, {} DESC", quote(ROW_COLUMN));
        let updates: Vec<_> = columns
            .iter()
            .filter(|c| !self.key.contains(&c.name))
            .map(|c| format!("{0} = EXCLUDED.{0}", quote(&c.name)))
            .collect();
        let conflict = if updates.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", updates.join(", ")) };
        let conflict = format!("ON CONFLICT ({key}) DO {conflict}");
        if !self.columns.deletes() {
            return format!("{into} SELECT {} FROM ({newest}) AS newest {conflict}", target.values.join(", "));
        }
        // Two CTEs that change the same row would be an error; a key is either deleted or put here.
        let delete = quote(DELETE_COLUMN);
        let pairs = self.key_names().into_iter().zip(self.key_values(target));
        let same: Vec<_> = pairs.map(|(name, value)| format!("gone.{name} = (newest.{value})")).collect();
        format!(
            "WITH newest AS MATERIALIZED ({newest}), deleted AS (DELETE FROM {} AS gone USING newest \
             WHERE newest.{delete} AND {}) \
             {into} SELECT {} FROM newest WHERE newest.{delete} IS NOT TRUE {conflict}",
            self.target(),
            same.join(" AND "),
            target.values.join(", ")
        )
    }

    /// Finds a row without a key: no such row can be in the table.
    pub(super) fn check_keys(&self, rows: &RecordBatch) -> Result<()> {
        for name in &self.key {
            if rows.column_by_name(name).is_some_and(|column| column.null_count() > 0) {
                return Err(Error::data(format!("the column `{name}` of the key is NULL")));
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.columns.columns.iter().map(|c| quote(&c.name)).collect()
    }

    fn key_names(&self) -> Vec<String> {
        self.key.iter().map(|name| quote(name)).collect()
    }

    /// Gives the SQL of the key's values from the temporary table.
    fn key_values(&self, target: &Target) -> Vec<String> {
        let at = |name: &String| self.columns.columns.iter().position(|c| c.name == *name);
        self.key.iter().filter_map(|name| target.values.get(at(name)?).cloned()).collect()
    }

    /// Makes the tables in which Nexus keeps its own, unless they are there. Tells whether refused rows can be kept.
    async fn make_own(&self, transaction: &Transaction<'_>) -> Result<bool> {
        let doing = |e| failed("could not look for the tables of the schema nexus", e);
        let found = transaction.query_typed(OWN_SQL, &[]).await.map_err(doing)?;
        let (mut commits, mut refused) = (false, false);
        for row in found {
            (commits, refused) = (row.try_get(0).map_err(doing)?, row.try_get(1).map_err(doing)?);
        }
        if commits && (refused || !self.create) {
            return Ok(refused);
        }
        if !self.create {
            return Err(Error::config(format!(
                "the table nexus.commits is missing, in which Nexus notes what it has committed, and `create` is false; \
                 make it with: {COMMITS_SQL}; {REFUSED_SQL}"
            )));
        }
        lock(transaction).await?;
        make_schema(transaction, "nexus").await?;
        run(transaction, "make the table nexus.commits", COMMITS_SQL).await?;
        // A database of an earlier version may let us write into its tables, and make none.
        let made = Savepoint::begin(transaction, "nexus_own").await?;
        match run(transaction, "make the table nexus.refused", REFUSED_SQL).await {
            Ok(()) => made.release().await.map(|()| true),
            Err(error) if commits && error.kind() == ErrorKind::Config => made.rollback().await.map(|()| false),
            Err(error) => Err(error),
        }
    }

    /// Makes the table, unless someone else has.
    async fn make(&self, transaction: &Transaction<'_>) -> Result<()> {
        if !self.create {
            return Err(Error::config(format!(
                "there is no table {} and `create` is false; make it with: {}",
                self.target(),
                self.create_sql()
            )));
        }
        lock(transaction).await?;
        make_schema(transaction, &self.schema).await?;
        run(transaction, &format!("make the table {}", self.target()), &self.create_sql()).await
    }

    fn create_sql(&self) -> String {
        let column = |c: &Column| {
            let needed = !c.nullable || self.key.contains(&c.name);
            format!("{} {}{}", quote(&c.name), c.sql_type, if needed { " NOT NULL" } else { "" })
        };
        let mut parts: Vec<_> = self.columns.columns.iter().map(column).collect();
        if !self.key.is_empty() {
            let key: Vec<_> = self.key.iter().map(|name| quote(name)).collect();
            parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
        }
        format!("CREATE TABLE IF NOT EXISTS {} ({})", self.target(), parts.join(", "))
    }

    /// Adds the columns that are new to the rows, if it may and nothing else is wrong; tells whether it has added any.
    async fn add_missing(&self, transaction: &Transaction<'_>, there: &HashMap<String, ColumnThere>) -> Result<bool> {
        let missing: Vec<_> = self.missing(there).collect();
        // A key that is not there, or a column that the rows cannot fill, tells that the table is another one.
        let fits = missing.iter().all(|column| !self.key.contains(&column.name)) && self.demanded(there).is_empty();
        if !self.create || missing.is_empty() || !fits {
            return Ok(false);
        }
        // Rows that are there have no value for it, so it may be NULL; `IF NOT EXISTS` is for others who do the same.
        let adding = missing.iter().map(|c| format!("ADD COLUMN IF NOT EXISTS {} {}", quote(&c.name), c.sql_type));
        let sql = format!("ALTER TABLE {} {}", self.target(), adding.collect::<Vec<_>>().join(", "));
        run(transaction, &format!("add the columns that are new to {}", self.target()), &sql).await?;
        Ok(true)
    }

    fn missing<'a>(&'a self, there: &'a HashMap<String, ColumnThere>) -> impl Iterator<Item = &'a Column> {
        self.columns.columns.iter().filter(|column| !there.contains_key(&column.name))
    }

    /// Gives the columns that a row cannot do without, and that rows do not have.
    fn demanded<'a>(&self, there: &'a HashMap<String, ColumnThere>) -> Vec<(&'a String, &'a ColumnThere)> {
        let mut demanded: Vec<_> = there
            .iter()
            .filter(|(name, column)| column.demanded && !self.columns.columns.iter().any(|c| c.name == **name))
            .collect();
        demanded.sort_by_key(|(name, _)| *name);
        demanded
    }

    fn compare(&self, there: &HashMap<String, ColumnThere>) -> Result<()> {
        let mut differences = Vec::new();
        for column in self.missing(there) {
            differences.push(format!("- {} {} is missing in the table", column.name, column.sql_type));
        }
        for (name, column) in self.demanded(there) {
            differences.push(format!(
                "+ {name} {} is NOT NULL in the table, has no default, and is not in the rows",
                column.name
            ));
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::config(format!(
            "the Postgres table {} does not fit the rows; alter it, or change the query:\n{}",
            self.target(),
            differences.join("\n")
        )))
    }
}

const COMMITS_SQL: &str = "CREATE TABLE IF NOT EXISTS nexus.commits (\
    pipeline text NOT NULL, sink text NOT NULL, state text NOT NULL, generation bigint NOT NULL, epoch bigint NOT NULL, \
    rows bigint NOT NULL, committed_at timestamptz NOT NULL DEFAULT now(), \
    PRIMARY KEY (pipeline, sink, state, epoch))";

/// What it takes to keep rows that the server refuses: the rows, and of each epoch how many they are.
pub(super) const REFUSED_SQL: &str = "ALTER TABLE nexus.commits ADD COLUMN IF NOT EXISTS refused bigint NOT NULL DEFAULT 0; \
    CREATE TABLE IF NOT EXISTS nexus.refused (\
    pipeline text NOT NULL, sink text NOT NULL, state text NOT NULL, epoch bigint NOT NULL, number bigint NOT NULL, \
    reason text NOT NULL, raw bytea NOT NULL, source text, partition text, place text, redrivable boolean NOT NULL, \
    refused_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, sink, state, epoch, number)); \
    ALTER TABLE nexus.refused ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0";

const OWN_SQL: &str = "SELECT to_regclass('nexus.commits') IS NOT NULL, \
    2 = (SELECT count(*) FROM pg_catalog.pg_attribute WHERE NOT attisdropped \
    AND (attrelid, attname) IN ((to_regclass('nexus.commits'), 'refused'), (to_regclass('nexus.refused'), 'attempts')))";

/// A point of a transaction to go back to.
pub(super) struct Savepoint<'a> {
    transaction: &'a Transaction<'a>,
    name: &'static str,
}

impl<'a> Savepoint<'a> {
    pub(super) async fn begin(transaction: &'a Transaction<'a>, name: &'static str) -> Result<Self> {
        run(transaction, "set a savepoint", &format!("SAVEPOINT {name}")).await?;
        Ok(Self { transaction, name })
    }

    /// Keeps what was done since.
    pub(super) async fn release(self) -> Result<()> {
        run(self.transaction, "release a savepoint", &format!("RELEASE {}", self.name)).await
    }

    /// Goes back.
    pub(super) async fn rollback(self) -> Result<()> {
        let sql = format!("ROLLBACK TO {0}; RELEASE {0}", self.name);
        run(self.transaction, "go back to a savepoint", &sql).await
    }
}

/// Gives the SQL that makes a temporary table.
fn temporary(name: &str, columns: &[String]) -> String {
    let name = name.trim_start_matches("pg_temp.");
    format!("CREATE TEMPORARY TABLE {name} ({}) ON COMMIT DROP", columns.join(", "))
}

async fn lock(transaction: &Transaction<'_>) -> Result<()> {
    run(transaction, "wait for others who make tables", &format!("SELECT pg_advisory_xact_lock({CREATE_LOCK})")).await
}

/// Makes a schema, unless it is there: even to ask for one that is there takes rights that few have.
async fn make_schema(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    let sql = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
    let found = transaction.query_typed(sql, &[(&schema, Type::TEXT)]).await;
    if !found.map_err(|e| failed(format!("could not look for the schema {schema}"), e))?.is_empty() {
        return Ok(());
    }
    run(transaction, &format!("make the schema {schema}"), &format!("CREATE SCHEMA IF NOT EXISTS {}", quote(schema)))
        .await
}

/// Runs SQL that needs no answer; it is not prepared, and leaves nothing on the connection.
pub(super) async fn run(transaction: &Transaction<'_>, doing: &str, sql: &str) -> Result<()> {
    transaction.batch_execute(sql).await.map_err(|e| failed(format!("could not {doing}"), e))
}

/// Quotes an identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
