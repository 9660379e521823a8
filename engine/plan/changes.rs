//! What a pipeline file has changed since its state was written, and whether the rows and the state that are there
//! survive it.
//!
//! Files of a table are read as one table by the names of their columns, so a table may get columns, and columns may
//! get wider. What readers do with files of both kinds was tried with DuckDB 2.0 (`union_by_name`) and pyarrow 26 (with
//! the newest columns): they read wider integers and decimals of more digits, and fail where they are told nothing. A
//! `float32` or a `date` that became wider is read by both without an error as infinite or cut, when they take the
//! columns of the first file: so that is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use nexus_operators::sink::parquet::stored_columns;

use super::Plan;
use super::table::TablePlan;
use crate::spec::model::TableFormat;
use crate::spec::{Diagnostic, codes, columns};
use crate::state::State;
use crate::state::schema::{StoredColumn, TableSchema};

/// A change that stored rows, or kept state, do not survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The table, `tier.table`.
    pub table: String,
    /// The kind of mistake.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What has changed, a line each.
    pub differences: Vec<String>,
    /// What to do.
    pub hint: String,
}

/// Holds a plan against a state: gives the columns of each table that goes to a sink, from now on.
///
/// # Errors
///
/// All changes that must not be.
pub async fn compare(plan: &Plan, state: &State) -> Result<BTreeMap<String, TableSchema>, Vec<Refusal>> {
    let mut refusals = Vec::new();
    for (name, known) in &state.tables {
        if known.is_empty() {
            continue;
        }
        let now = plan.table(name).filter(|table| table.is_stateful());
        let goes_on = match now {
            Some(table) => table.goes_on_from(known).await,
            None => false,
        };
        if !goes_on {
            refusals.push(other_query(name, &known.query, now.map(TablePlan::fingerprint)));
        }
    }
    let mut schemas = BTreeMap::new();
    for table in &plan.tables {
        let Some(now) = schema_of(plan, table) else { continue };
        let name = table.name();
        match state.schema_of(&name).map_or_else(|| Ok(now.clone()), |known| next(known, &now)) {
            Ok(mut schema) => {
                if state.schema_of(&name) != Some(&schema) {
                    schema.version = state.schema_of(&name).map_or(1, |known| known.version + 1);
                    schema.since_epoch = state.epoch + 1;
                }
                schemas.insert(name, schema);
            }
            Err(differences) => refusals.push(destructive(&name, differences)),
        }
    }
    if refusals.is_empty() { Ok(schemas) } else { Err(refusals) }
}

/// Gives the columns under which rows are stored: NULL may be in all that some older row lacks.
pub fn stored_schema(rows: &SchemaRef, recorded: Option<&TableSchema>) -> SchemaRef {
    let Some(recorded) = recorded else { return rows.clone() };
    let fields = rows.fields().iter().map(|field| {
        let nullable = recorded.column(field.name()).is_none_or(|known| known.nullable);
        if nullable { Arc::new(field.as_ref().clone().with_nullable(true)) } else { field.clone() }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Refusal {
    /// Gives the change as a mistake of the pipeline file.
    pub fn diagnostic(&self, plan: &Plan) -> Diagnostic {
        let (tier, table) = self.table.split_once('.').unwrap_or((&self.table, ""));
        let has_query =
            plan.table(&self.table).is_some_and(|table| plan.spec_of(table).is_some_and(|t| t.sql.is_some()));
        let path = [tier, table, if has_query { "sql" } else { "from" }];
        let hint = self.differences.iter().chain([&self.hint]).cloned().collect::<Vec<_>>().join("\n");
        plan.loaded.diagnostic_at(&path, self.code, self.message.clone(), Some(hint))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.message)?;
        self.differences.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        write!(f, "\n{}", self.hint)
    }
}

/// Gives the columns of a table by its plan; nothing if its rows go nowhere.
fn schema_of(plan: &Plan, table: &TablePlan) -> Option<TableSchema> {
    let spec = plan.spec_of(table).filter(|spec| spec.store || spec.postgres.is_some())?;
    // Postgres takes some types that files do not; those stand as they are.
    let stored = stored_columns(&table.schema, &table.name()).unwrap_or_else(|_| table.schema.clone());
    let column = |field: &Arc<Field>| StoredColumn {
        name: field.name().clone(),
        data_type: columns::data_type_name(field.data_type()),
        nullable: field.is_nullable(),
    };
    let partition_by = if spec.store { spec.partition_by.clone() } else { Vec::new() };
    let columns = stored.fields().iter().map(column).collect();
    let table_format = if spec.store { plan.loaded.spec.table_format(spec) } else { TableFormat::Parquet };
    Some(TableSchema { version: 1, since_epoch: 0, columns, table_format, partition_by })
}

/// Gives the columns that hold the rows of before and those of now; `known` itself if nothing has changed.
fn next(known: &TableSchema, now: &TableSchema) -> Result<TableSchema, Vec<String>> {
    let mut merged = TableSchema { columns: Vec::new(), partition_by: now.partition_by.clone(), ..known.clone() };
    let (mut lost, mut added) = (Vec::new(), Vec::new());
    for was in known.columns.iter().filter(|was| now.column(&was.name).is_none()) {
        lost.push(format!("- {} {}: is gone", was.name, was.data_type));
    }
    for is in &now.columns {
        let Some(was) = known.column(&is.name) else {
            added.push(format!("+ {} {}: is new", is.name, is.data_type));
            // Rows that are there have no value for it.
            merged.columns.push(StoredColumn { nullable: true, ..is.clone() });
            continue;
        };
        // The columns of a Delta table have one type for all files.
        let may_widen = now.table_format == TableFormat::Parquet;
        if was.data_type != is.data_type && !(may_widen && widens(&was.data_type, &is.data_type)) {
            lost.push(format!("~ {}: was {}, is now {}", is.name, was.data_type, is.data_type));
        }
        merged.columns.push(StoredColumn { nullable: was.nullable || is.nullable, ..is.clone() });
    }
    if known.partition_by != now.partition_by {
        let list = |partitions: &[String]| format!("[{}]", partitions.join(", "));
        lost.push(format!("~ partition_by: was {}, is now {}", list(&known.partition_by), list(&now.partition_by)));
    }
    if known.table_format != now.table_format {
        let name = |format| if format == TableFormat::Delta { "delta" } else { "parquet" };
        lost.push(format!("~ table_format: was {}, is now {}", name(known.table_format), name(now.table_format)));
    }
    if !lost.is_empty() {
        lost.append(&mut added);
        return Err(lost);
    }
    let same = merged.columns.len() == known.columns.len()
        && merged.columns.iter().all(|column| known.column(&column.name) == Some(column));
    Ok(if same { known.clone() } else { merged })
}

/// Tells whether every reader that takes files by the names of columns reads values of both types as the second.
fn widens(was: &str, is: &str) -> bool {
    let data_type = |text: &str| columns::field("", text).map(|field| field.data_type().clone()).ok();
    let (Some(was), Some(is)) = (data_type(was), data_type(is)) else { return false };
    if let (DataType::Decimal128(precision, scale), DataType::Decimal128(wider, longer)) = (&was, &is) {
        let whole = |precision: u8, scale: i8| i16::from(precision) - i16::from(scale);
        return longer >= scale && whole(*wider, *longer) >= whole(*precision, *scale);
    }
    let bits = |data_type: &DataType| data_type.primitive_width().unwrap_or(0);
    let wider = bits(&is) > bits(&was);
    (was.is_signed_integer() && is.is_signed_integer() || was.is_unsigned_integer() && is.is_integer()) && wider
}

fn destructive(table: &str, differences: Vec<String>) -> Refusal {
    let kinds: BTreeSet<char> = differences.iter().filter_map(|line| line.chars().next()).collect();
    let mut hints = Vec::new();
    if kinds.contains(&'-') {
        hints.push("keep a column under its name (a renamed one with `AS`; one without values as a typed NULL)");
    }
    let of_table = |line: &String| ["~ partition_by:", "~ table_format:"].iter().any(|of| line.starts_with(of));
    if differences.iter().any(|line| line.starts_with("~ ") && !of_table(line)) {
        hints.push("keep a column's type with CAST, and give what is of another type another name");
    }
    hints.push("give the table another name, under which it begins anew");
    Refusal {
        table: table.to_owned(),
        code: codes::DESTRUCTIVE_CHANGE,
        message: format!("the rows of {table} that are stored cannot be read together with those that would come"),
        differences,
        hint: hints.join(", or "),
    }
}

fn other_query(table: &str, was: &str, is: Option<String>) -> Refusal {
    let is = is.unwrap_or_else(|| "no table with state".to_owned());
    Refusal {
        table: table.to_owned(),
        code: codes::OTHER_STATE,
        message: format!(
            "table {table} has state (open windows, rows of a join or remembered keys) of another query, which cannot be used"
        ),
        differences: vec![format!("the state is of: {was}"), format!("the file says: {is}")],
        hint: "run the old file once with `--until-idle` to close its windows, give the table another name, or begin \
               anew with another `state` and lake"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, &str, bool)], partition_by: &[&str]) -> TableSchema {
        let column = |(name, data_type, nullable): &(&str, &str, bool)| StoredColumn {
            name: (*name).to_owned(),
            data_type: (*data_type).to_owned(),
            nullable: *nullable,
        };
        TableSchema {
            version: 1,
            since_epoch: 1,
            columns: columns.iter().map(column).collect(),
            partition_by: partition_by.iter().map(|text| (*text).to_owned()).collect(),
            ..TableSchema::default()
        }
    }

    #[test]
    fn a_delta_table_keeps_its_types_and_stays_one() {
        let was = TableSchema { table_format: TableFormat::Delta, ..schema(&[("a", "int32", true)], &[]) };
        let wider = TableSchema { table_format: TableFormat::Delta, ..schema(&[("a", "int64", true)], &[]) };
        assert_eq!(next(&was, &wider).unwrap_err(), ["~ a: was int32, is now int64"]);
        let plain = schema(&[("a", "int32", true)], &[]);
        assert_eq!(next(&was, &plain).unwrap_err(), ["~ table_format: was delta, is now parquet"]);
        assert_eq!(next(&plain, &was).unwrap_err(), ["~ table_format: was parquet, is now delta"]);
    }

    #[test]
    fn what_is_added_may_be_null_and_what_was_null_stays_so() {
        let was = schema(&[("a", "int32", true), ("b", "string", false)], &[]);
        let is = schema(&[("b", "string", true), ("c", "int64", false), ("a", "int64", false)], &[]);
        let merged = next(&was, &is).unwrap();
        assert_eq!(
            merged.columns,
            schema(&[("b", "string", true), ("c", "int64", true), ("a", "int64", true)], &[]).columns
        );
        assert_eq!(next(&merged, &is).unwrap(), merged, "the same file changes nothing");
        let other_order = schema(&[("a", "int64", true), ("c", "int64", false), ("b", "string", false)], &[]);
        assert_eq!(next(&merged, &other_order).unwrap(), merged, "neither does another order");
    }

    #[test]
    fn what_would_be_lost_is_told() {
        let was = schema(&[("a", "int64", true), ("b", "string", true)], &["b"]);
        let is = schema(&[("a", "int32", true), ("c", "string", true)], &[]);
        assert_eq!(
            next(&was, &is).unwrap_err(),
            [
                "- b string: is gone",
                "~ a: was int64, is now int32",
                "~ partition_by: was [b], is now []",
                "+ c string: is new"
            ]
        );
    }

    #[test]
    fn only_what_all_readers_read_is_wider() {
        for (was, is, wanted) in [
            ("int8", "int16", true),
            ("int32", "int64", true),
            ("uint32", "int64", true),
            ("uint32", "uint64", true),
            ("uint32", "int32", false),
            ("int32", "uint64", false),
            ("int64", "int32", false),
            ("float32", "float64", false),
            ("int32", "float64", false),
            ("date", "timestamp", false),
            ("decimal(10, 2)", "decimal(20, 2)", true),
            ("decimal(10, 2)", "decimal(12, 4)", true),
            ("decimal(10, 2)", "decimal(11, 4)", false),
            ("decimal(10, 2)", "decimal(20, 1)", false),
            ("int64", "string", false),
            ("list<int32>", "list<int64>", false),
            ("Interval(MonthDayNano)", "string", false),
        ] {
            assert_eq!(widens(was, is), wanted, "{was} to {is}");
        }
    }
}
