//! What stands beside the SQL of a table: its rules, its key, what becomes of late rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_expr::PhysicalExpr;
use nexus_operators::sink::parquet::PartitionBy;
use nexus_operators::transform::expect::{Otherwise, Rule};
use nexus_operators::transform::newest::{NewestSettings, is_order};
use nexus_operators::transform::window::Extent;
use nexus_operators::{Error, Result};

use super::analyze::{EventTimes, WindowShape, without_window};
use super::refused::{Refused, sql_refused};
use super::wording::Told;
use crate::spec::{Partition, model};

/// Checks that the columns of a query can be those of a table.
pub fn check_columns(schema: &SchemaRef) -> Result<(), Refused> {
    let mut seen = BTreeSet::new();
    for field in schema.fields() {
        if !seen.insert(field.name()) {
            let message = format!("two columns are named `{}`; give one another name with AS", field.name());
            return Err(Refused::sql(message));
        }
        if field.data_type() == &DataType::Null {
            let message = format!("column `{}` is always NULL and has no type; write CAST(NULL AS ...)", field.name());
            return Err(Refused::sql(message));
        }
    }
    Ok(())
}

/// Gives the levels of partition folders of a table.
pub fn partition_by(spec: &model::Table) -> Result<Vec<PartitionBy>> {
    let levels = spec.partition_by.iter().map(|text| {
        let partition = text.parse::<Partition>().map_err(|e| Error::config(format!("`partition_by`: {e}")))?;
        Ok(match partition {
            Partition::Column(column) => PartitionBy::Column(column),
            Partition::Date(column) => PartitionBy::Date(column),
            Partition::Hour(column) => PartitionBy::Hour(column),
        })
    });
    levels.collect()
}

/// Checks that late rows can correct the windows of a table.
pub fn check_corrected(spec: &model::Table, window: Option<&WindowShape>) -> Result<(), Refused> {
    let at_update = || vec!["late".to_owned(), "update".to_owned()];
    let message = match window.map(|window| window.extent) {
        None => "the query has no windows, so no row comes too late for one; remove `late`",
        Some(Extent::Session { .. }) => {
            "a late row may make one session of two that were given out, and one of them would have to be taken back; \
             choose `quarantine` or `drop`, or windows of a fixed width"
        }
        Some(_) if spec.postgres.as_ref().is_none_or(|postgres| postgres.key.is_empty()) => {
            "a corrected row replaces the one before, which needs a sink that can: `postgres: { key: [...] }`"
        }
        Some(_) => return Ok(()),
    };
    Err(Refused::Option(at_update(), Error::config(message)))
}

/// Checks that a table whose rows change has a sink that keeps the newest of each key, and nothing that needs rows to
/// stay.
pub fn check_keyed(spec: &model::Table, schema: &SchemaRef, keys: &[usize], times: &EventTimes) -> Result<(), Refused> {
    let Some(postgres) = spec.postgres.as_ref().filter(|postgres| !postgres.key.is_empty()) else {
        return Err(Refused::Unfit(without_window(times)));
    };
    let names: BTreeSet<&str> = keys.iter().map(|key| schema.field(*key).name().as_str()).collect();
    if postgres.key.iter().map(String::as_str).collect::<BTreeSet<_>>() != names {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!("the query has one row for each ({names}): so must the table; write `key: [{names}]`");
        return Err(Refused::Option(vec!["postgres".into(), "key".into()], Error::config(message)));
    }
    if spec.unique.is_some() {
        let message = "the rows of the table change; make the rows that it reads unique";
        return Err(Refused::Option(vec!["unique".into()], Error::config(message)));
    }
    let leaves_out =
        |rule: &model::Expectation| !matches!(rule.otherwise, model::Otherwise::Keep | model::Otherwise::Fail);
    if let Some((name, _)) = spec.expect.iter().find(|(_, rule)| leaves_out(rule)) {
        let message = "a row of the table replaces an older one, which would stay if it were left out; only `keep` and \
                       `fail` are possible here";
        return Err(Refused::Option(vec!["expect".into(), name.clone(), "else".into()], Error::config(message)));
    }
    Ok(())
}

/// Plans the rules that rows must meet.
pub fn rules(state: &SessionState, schema: &SchemaRef, spec: &model::Table) -> Result<Vec<Rule>, Refused> {
    let columns = DFSchema::try_from(schema.as_ref().clone()).map_err(|e| sql_refused(&e))?;
    let rule = |(name, rule): (&String, &model::Expectation)| {
        let at = vec!["expect".to_owned(), name.clone(), "that".to_owned()];
        let condition = condition(state, &columns, &rule.that, at, "a rule is a condition, such as `x > 0`")?;
        let otherwise = match rule.otherwise {
            model::Otherwise::Keep => Otherwise::Keep,
            model::Otherwise::Drop => Otherwise::Drop,
            model::Otherwise::Quarantine => Otherwise::Quarantine,
            model::Otherwise::Fail => Otherwise::Fail,
        };
        Ok(Rule { name: name.clone(), text: rule.that.clone(), condition, otherwise })
    };
    spec.expect.iter().map(rule).collect()
}

/// Plans which rows delete the row of their key, if the table has a sink that can.
pub fn delete_when(
    state: &SessionState,
    schema: &SchemaRef,
    spec: &model::Table,
) -> Result<Option<Arc<dyn PhysicalExpr>>, Refused> {
    let Some(text) = spec.postgres.as_ref().and_then(|postgres| postgres.delete_when.as_ref()) else { return Ok(None) };
    let columns = DFSchema::try_from(schema.as_ref().clone()).map_err(|e| sql_refused(&e))?;
    let at = vec!["postgres".to_owned(), "delete_when".to_owned()];
    condition(state, &columns, text, at, "`delete_when` is a condition, such as `status = 'gone'`").map(Some)
}

/// Plans a condition over a table's columns.
fn condition(
    state: &SessionState,
    columns: &DFSchema,
    text: &str,
    at: Vec<String>,
    none: &str,
) -> Result<Arc<dyn PhysicalExpr>, Refused> {
    let planned = state.create_logical_expr(text, columns);
    let planned = planned.and_then(|expr| state.create_physical_expr(expr, columns));
    let condition = planned.map_err(|e| Refused::Option(at.clone(), Error::config(Told::of(&e).text())))?;
    if condition.data_type(columns.as_arrow()).ok() != Some(DataType::Boolean) {
        return Err(Refused::Option(at, Error::config(none)));
    }
    Ok(condition)
}

/// Plans that rows with the same key are kept once: gives the columns of the key, that of the event time, and the bound in
/// microseconds.
pub fn unique_plan(
    unique: &model::Unique,
    schema: &SchemaRef,
    event_time: Option<usize>,
) -> Result<(Vec<usize>, usize, i64), Refused> {
    let at = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let column = |(place, name): (usize, &String)| {
        schema.index_of(name).map_err(|_| {
            let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let message = format!("the table has no column `{name}`; it has {}", known.join(", "));
            Refused::Option(at(&["unique", "key", &place.to_string()]), Error::config(message))
        })
    };
    let key = unique.key.iter().enumerate().map(column).collect::<Result<Vec<_>, _>>()?;
    let time = event_time.ok_or_else(|| {
        let message = "the table has no column with the event time, so keys could never be forgotten; select the \
                       event-time column of the source, and give the source an `event_time`";
        Refused::Option(at(&["unique"]), Error::config(message))
    })?;
    Ok((key, time, i64::try_from(unique.within.0.as_micros()).unwrap_or(i64::MAX)))
}

/// Checks and plans that the newest row of each key is kept.
pub fn newest_plan(
    spec: &model::Table,
    unique: &model::Unique,
    schema: &SchemaRef,
    event_time: Option<usize>,
) -> Result<NewestSettings, Refused> {
    let (key, time, within_us) = unique_plan(unique, schema, event_time)?;
    let refused = |at: &str, message: String| {
        Err(Refused::Option(vec!["unique".to_owned(), at.to_owned()], Error::config(message)))
    };
    let names = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let sink = spec.postgres.as_ref().map(|postgres| names(&postgres.key)).unwrap_or_default();
    if sink != names(&unique.key) {
        let key = unique.key.join(", ");
        let message =
            format!("a newer row replaces the one before, which needs a sink that can: `postgres: {{ key: [{key}] }}`");
        return refused("keep", message);
    }
    let Some(order_by) = &unique.order_by else { return Ok(NewestSettings { key, order: time, time, within_us }) };
    let Ok(order) = schema.index_of(order_by) else {
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return refused("order_by", format!("the table has no column `{order_by}`; it has {}", known.join(", ")));
    };
    if !is_order(schema.field(order).data_type()) {
        let message = format!("`{order_by}` is neither a whole number of at most 63 bits nor a date nor a timestamp");
        return refused("order_by", message);
    }
    Ok(NewestSettings { key, order, time, within_us })
}
