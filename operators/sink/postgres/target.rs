//! What is known of the table that is there: its columns, and how rows get into it.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{is_null, or};
use arrow::datatypes::DataType;
use deadpool_postgres::Transaction;
use tokio_postgres::types::Type;

use super::columns::Column;
use super::failure::failed;
use super::table::{Table, quote};
use crate::error::Result;

/// How rows can get into the table that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Copied into the table itself: no key, and types that the COPY can send.
    Direct,
    /// Copied into a temporary table, and inserted from there.
    Staged,
}

/// The table that is there, as it was found to fit.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) way: Way,
    /// Whether rows that the server refuses can be kept for the quarantine.
    pub(super) keeps_refused: bool,
    /// For each column of the rows, the SQL of its value for the table from the one that was copied.
    pub(super) values: Vec<String>,
    /// For each column of the rows, what it demands of values.
    demands: Vec<Demands>,
}

/// What a column of the table demands of its values, as far as it can be told without the server.
#[derive(Debug, Clone, Copy, Default)]
struct Demands {
    not_null: bool,
    chars_max: Option<usize>,
    /// Whether a value may fail to become one of the column's type.
    converts: bool,
}

/// A column that the table has.
pub(super) struct ColumnThere {
    /// The type, as `format_type` writes it.
    pub(super) name: String,
    /// The type below all domains, without its modifier.
    base: String,
    /// Whether it is an enum below all domains.
    is_enum: bool,
    /// Whether text becomes one of its values if it is said to: of types that the rows have no values of.
    is_written: bool,
    chars_max: Option<usize>,
    not_null: bool,
    /// Whether a row cannot do without it.
    pub(super) demanded: bool,
}

/// The columns of a table, with their types below all domains.
const COLUMNS_SQL: &str = "WITH RECURSIVE own AS (\
        SELECT a.* FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped), \
    base AS (SELECT attnum, atttypid AS typid, atttypmod AS typmod, attnotnull AS demands FROM own \
        UNION ALL SELECT b.attnum, t.typbasetype, t.typtypmod, b.demands OR t.typnotnull \
        FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid WHERE t.typtype = 'd') \
    SELECT own.attname::text, format_type(own.atttypid, own.atttypmod), \
        own.attnotnull AND NOT own.atthasdef AND own.attidentity = '', \
        base.demands, format_type(base.typid, -1), t.typtype = 'e', t.typcategory NOT IN ('S', 'N', 'B', 'D'), \
        CASE WHEN base.typid IN ('varchar'::regtype, 'bpchar'::regtype) AND base.typmod > 4 THEN base.typmod - 4 END \
    FROM own JOIN base USING (attnum) JOIN pg_catalog.pg_type t ON t.oid = base.typid AND t.typtype <> 'd'";

/// The constraints of a table that look at a row alone and are checked at once: their SQL, and the columns they name.
const CHECKS_SQL: &str = "SELECT pg_get_expr(k.conbin, k.conrelid), \
        (SELECT array_agg(a.attname::text) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)) \
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1 AND c.relname = $2 AND k.contype = 'c' AND k.conkey IS NOT NULL";

/// Reads the columns that the table has; none if there is no table.
pub(super) async fn existing(transaction: &Transaction<'_>, table: &Table) -> Result<HashMap<String, ColumnThere>> {
    let doing = || format!("could not read the columns of {}", table.target());
    let named: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&table.schema, Type::TEXT), (&table.name, Type::TEXT)];
    let rows = transaction.query_typed(COLUMNS_SQL, &named).await.map_err(|e| failed(doing(), e))?;
    let column = |row: &tokio_postgres::Row| {
        let chars_max: Option<i32> = row.try_get(7)?;
        let there = ColumnThere {
            name: row.try_get(1)?,
            demanded: row.try_get(2)?,
            not_null: row.try_get(3)?,
            base: row.try_get(4)?,
            is_enum: row.try_get(5)?,
            is_written: row.try_get(6)?,
            chars_max: chars_max.and_then(|chars| usize::try_from(chars).ok()),
        };
        Ok((row.try_get(0)?, there))
    };
    rows.iter().map(column).collect::<Result<_, _>>().map_err(|e| failed(doing(), e))
}

impl ColumnThere {
    /// Tells whether the COPY can send values of a column as they are: the server brings numbers and text into the
    /// precision and length of its column by itself, and keeps an enum as its label.
    fn takes(&self, column: &Column) -> bool {
        let text = ["text", "character varying", "bpchar", "json"].contains(&self.base.as_str()) || self.is_enum;
        self.base == column.wire_type || (column.wire_type == "text" && column.sql_type == "text" && text)
    }

    /// Gives the SQL of a value for this column.
    fn value(&self, column: &Column) -> String {
        let value = format!("{}::{}", quote(&column.name), column.sql_type);
        // Text becomes what its column says, but for numbers and times, which rows have types for: a column of quite
        // another type is told before any row comes. No cast names a length, which it would cut text to.
        let is_text = matches!(column.sql_type.as_str(), "text" | "text[]");
        if is_text && self.is_written { format!("{value}::{}", self.base) } else { value }
    }
}

impl Target {
    /// Tells how rows get into a table that has their columns.
    pub(super) fn of(table: &Table, there: &HashMap<String, ColumnThere>, keeps_refused: bool) -> Self {
        let columns = &table.columns.columns;
        let pairs = || columns.iter().filter_map(|column| Some((column, there.get(&column.name)?)));
        let direct = table.key.is_empty() && pairs().all(|(column, there)| there.takes(column));
        let demands = |(column, there): (&Column, &ColumnThere)| Demands {
            not_null: there.not_null,
            chars_max: there.chars_max,
            converts: there.name != column.wire_type,
        };
        Self {
            way: if direct { Way::Direct } else { Way::Staged },
            keeps_refused,
            values: pairs().map(|(column, there)| there.value(column)).collect(),
            demands: pairs().map(demands).collect(),
        }
    }

    /// Gives the columns whose values may fail to become ones of the table.
    pub(super) fn converting(&self) -> impl Iterator<Item = usize> {
        self.demands.iter().enumerate().filter(|(_, demands)| demands.converts).map(|(index, _)| index)
    }

    /// Tells which rows in wire form the table is likely to refuse. It may be wrong on both sides: the server decides.
    pub(super) fn suspects(&self, wired: &RecordBatch) -> Result<BooleanArray> {
        let mut found = BooleanArray::from(vec![false; wired.num_rows()]);
        for (demands, values) in self.demands.iter().zip(wired.columns()) {
            if demands.not_null && values.null_count() > 0 {
                found = or(&found, &is_null(values)?)?;
            }
            if let Some(max) = demands.chars_max {
                found = or(&found, &longer(values, max))?;
            }
        }
        Ok(found)
    }
}

/// Tells which texts have more characters.
fn longer(values: &ArrayRef, chars_max: usize) -> BooleanArray {
    match values.data_type() {
        DataType::Utf8 => {
            let texts = values.as_string::<i32>();
            // A character has at least one byte: most texts need not be looked at.
            let longer = |text: &str| text.len() > chars_max && text.chars().count() > chars_max;
            texts.iter().map(|text| Some(text.is_some_and(longer))).collect()
        }
        _ => BooleanArray::from(vec![false; values.len()]),
    }
}

/// A condition that the server can try on some columns of rows, to find those that it would refuse.
#[derive(Debug)]
pub(super) struct Probe {
    /// The columns, by their number.
    pub(super) columns: Vec<usize>,
    /// What holds for rows that it would refuse.
    pub(super) condition: String,
}

impl Probe {
    /// Reads the constraints of a table; nothing if it has none on columns of the rows.
    pub(super) async fn of(transaction: &Transaction<'_>, table: &Table) -> Result<Option<Self>> {
        let doing = |e| failed(format!("could not read the constraints of {}", table.target()), e);
        let named: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&table.schema, Type::TEXT), (&table.name, Type::TEXT)];
        let mut probe = Self { columns: Vec::new(), condition: String::new() };
        for row in transaction.query_typed(CHECKS_SQL, &named).await.map_err(doing)? {
            let (check, names): (String, Option<Vec<String>>) =
                (row.try_get(0).map_err(doing)?, row.try_get(1).map_err(doing)?);
            let names = names.unwrap_or_default();
            let at = |name: &String| table.columns.columns.iter().position(|column| column.name == *name);
            let Some(columns) = names.iter().map(at).collect::<Option<Vec<_>>>() else { continue };
            probe.columns.extend(columns);
            let or = if probe.condition.is_empty() { "" } else { " OR " };
            probe.condition.push_str(&format!("{or}({check}) IS FALSE"));
        }
        probe.columns.sort_unstable();
        probe.columns.dedup();
        Ok((!probe.columns.is_empty()).then_some(probe))
    }
}
