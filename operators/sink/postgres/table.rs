//! The table that rows land in: its SQL, and whether it fits the rows.

use std::collections::HashMap;

use arrow::array::{Array, RecordBatch};
use deadpool_postgres::Transaction;

use super::columns::{Column, Columns, ROW_COLUMN};
use super::failure::failed;
use crate::error::{Error, Result};

/// The temporary table that an epoch's rows are copied into.
const STAGED: &str = "pg_temp.nexus_rows";

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

/// How rows can get into the table that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Copied into the table itself: no key, and the same types.
    Direct,
    /// Copied into a temporary table, and inserted from there.
    Staged,
}

impl Table {
    /// Gives the table's name as SQL.
    pub(super) fn target(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Makes what is missing if it may, compares the columns, and tries the SQL of a commit.
    pub(super) async fn check(&self, transaction: &Transaction<'_>) -> Result<Way> {
        self.make_commits(transaction).await?;
        let mut there = self.existing(transaction).await?;
        if there.is_empty() {
            self.make(transaction).await?;
            there = self.existing(transaction).await?;
        }
        if self.add_missing(transaction, &there).await? {
            there = self.existing(transaction).await?;
        }
        self.compare(&there)?;
        let same_types = self.columns.columns.iter().all(|c| there.get(&c.name).is_some_and(|t| c.is_sent_as(&t.name)));
        if self.key.is_empty() && same_types {
            return Ok(Way::Direct);
        }
        run(transaction, "make a temporary table", &self.stage_sql()).await?;
        let plan = format!("EXPLAIN {}", self.merge_sql());
        run(transaction, &format!("check how rows get into {}", self.target()), &plan).await?;
        run(transaction, "drop a temporary table", &format!("DROP TABLE {STAGED}")).await?;
        Ok(Way::Staged)
    }

    /// Gives the SQL that makes the temporary table.
    pub(super) fn stage_sql(&self) -> String {
        let columns = self.columns.columns.iter().map(|c| format!("{} {}", quote(&c.name), c.wire_type));
        let columns: Vec<_> = columns.chain(self.row_column().map(|row| format!("{row} bigint"))).collect();
        let name = STAGED.trim_start_matches("pg_temp.");
        format!("CREATE TEMPORARY TABLE {name} ({}) ON COMMIT DROP", columns.join(", "))
    }

    /// Gives the SQL that takes the rows.
    pub(super) fn copy_sql(&self, way: Way) -> String {
        let target = if way == Way::Direct { self.target() } else { STAGED.into() };
        let row = self.row_column().filter(|_| way == Way::Staged);
        let columns: Vec<_> = self.columns.columns.iter().map(|c| quote(&c.name)).chain(row).collect();
        format!("COPY {target} ({}) FROM STDIN (FORMAT binary)", columns.join(", "))
    }

    /// Tells whether copied rows carry their number.
    pub(super) fn numbers_rows(&self) -> bool {
        !self.key.is_empty()
    }

    /// Gives the SQL that brings the rows from the temporary table into the table.
    pub(super) fn merge_sql(&self) -> String {
        let columns = &self.columns.columns;
        let names: Vec<_> = columns.iter().map(|c| quote(&c.name)).collect();
        let values: Vec<_> = columns.iter().map(|c| format!("{}::{}", quote(&c.name), c.sql_type)).collect();
        let into = format!("INSERT INTO {} ({})", self.target(), names.join(", "));
        if self.key.is_empty() {
            return format!("{into} SELECT {} FROM {STAGED}", values.join(", "));
        }
        let key = self.key_columns();
        let key_names: Vec<_> = key.iter().map(|c| quote(&c.name)).collect();
        let key_values: Vec<_> = key.iter().map(|c| format!("{}::{}", quote(&c.name), c.sql_type)).collect();
        let updates: Vec<_> = columns
            .iter()
            .filter(|c| !self.key.contains(&c.name))
            .map(|c| format!("{0} = EXCLUDED.{0}", quote(&c.name)))
            .collect();
        let conflict = if updates.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", updates.join(", ")) };
        let (names, keys) = (key_names.join(", "), key_values.join(", "));
        format!(
            "{into} SELECT DISTINCT ON ({keys}) {} FROM {STAGED} ORDER BY {keys}, {} DESC ON CONFLICT ({names}) DO {conflict}",
            values.join(", "),
            quote(ROW_COLUMN)
        )
    }

    /// Finds a row without a key: no such row can be in the table.
    pub(super) fn check_keys(&self, rows: &RecordBatch) -> Result<()> {
        for name in &self.key {
            let column = rows.column_by_name(name);
            if let Some(row) = column.and_then(|c| c.nulls()?.iter().position(|valid| !valid)) {
                return Err(Error::data(format!("the column `{name}` of the key is NULL in row {row}")));
            }
        }
        Ok(())
    }

    fn row_column(&self) -> Option<String> {
        self.numbers_rows().then(|| quote(ROW_COLUMN))
    }

    fn key_columns(&self) -> Vec<&Column> {
        self.key.iter().filter_map(|name| self.columns.columns.iter().find(|c| c.name == *name)).collect()
    }

    /// Makes the table of commits, unless it is there.
    async fn make_commits(&self, transaction: &Transaction<'_>) -> Result<()> {
        let doing = "look for the table nexus.commits";
        let found = transaction.query_one("SELECT to_regclass('nexus.commits') IS NOT NULL", &[]).await;
        let found: bool = found.and_then(|row| row.try_get(0)).map_err(|e| failed(format!("could not {doing}"), e))?;
        if found {
            return Ok(());
        }
        if !self.create {
            return Err(Error::config(format!(
                "the table nexus.commits is missing, in which Nexus notes what it has committed, and `create` is false; \
                 make it with: {COMMITS_SQL}"
            )));
        }
        lock(transaction).await?;
        make_schema(transaction, "nexus").await?;
        run(transaction, "make the table nexus.commits", COMMITS_SQL).await
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

    /// Reads the columns that the table has; none if there is no table.
    async fn existing(&self, transaction: &Transaction<'_>) -> Result<HashMap<String, ColumnThere>> {
        let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), \
                   a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' \
                   FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
        let doing = || format!("could not read the columns of {}", self.target());
        let rows = transaction.query(sql, &[&self.schema, &self.name]).await.map_err(|e| failed(doing(), e))?;
        let column = |row: &tokio_postgres::Row| {
            Ok((row.try_get(0)?, ColumnThere { name: row.try_get(1)?, demanded: row.try_get(2)? }))
        };
        rows.iter().map(column).collect::<Result<_, _>>().map_err(|e| failed(doing(), e))
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

/// A column that the table has.
struct ColumnThere {
    /// The type, as `format_type` writes it.
    name: String,
    /// Whether a row cannot do without it.
    demanded: bool,
}

const COMMITS_SQL: &str = "CREATE TABLE IF NOT EXISTS nexus.commits (\
    pipeline text NOT NULL, sink text NOT NULL, state text NOT NULL, generation bigint NOT NULL, epoch bigint NOT NULL, \
    rows bigint NOT NULL, committed_at timestamptz NOT NULL DEFAULT now(), \
    PRIMARY KEY (pipeline, sink, state, epoch))";

async fn lock(transaction: &Transaction<'_>) -> Result<()> {
    run(transaction, "wait for others who make tables", &format!("SELECT pg_advisory_xact_lock({CREATE_LOCK})")).await
}

/// Makes a schema, unless it is there: even to ask for one that is there takes rights that few have.
async fn make_schema(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    let found = transaction.query_opt("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[&schema]).await;
    if found.map_err(|e| failed(format!("could not look for the schema {schema}"), e))?.is_some() {
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
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
