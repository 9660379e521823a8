//! Trials: a pipeline run in process on the rows of a test case, without any
//! server, and what differs from what the case expects.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;
use nexus_operators::clock::{SharedClock, SystemClock};
use nexus_operators::decode::{FormatSettings, UnknownColumns};
use nexus_operators::sink::memory::{Landed, MemorySink};
use nexus_operators::source::Source;
use nexus_operators::source::memory::MemorySource;
use nexus_operators::transform::keyed::SEQUENCE_COLUMN;
use nexus_operators::transform::rows::as_json;
use nexus_operators::{Error, Result};
use serde_json::{Map, Value};

use crate::pipeline::{BuildError, Pipeline};
use crate::plan::source::SourcePlan;
use crate::spec::model::{Expected, Given, Lake, TestCase};
use crate::spec::{Loaded, Tier};

/// How far two numbers may lie apart and still be the same, as a part of the larger: sums of floating-point numbers
/// depend on their order.
const NUMBERS_DIFFER_MAX: f64 = 1e-9;

/// The name under which a trial listens to a table.
const LISTENER: &str = "trial";

/// What a table should have held, and did not, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The table, `tier.table`.
    pub table: String,
    /// What is different, for people.
    pub lines: Vec<String>,
}

/// Runs a test case of a pipeline file; gives what differs, nothing if all is as expected.
pub async fn run(loaded: &Loaded, number: usize, case: &TestCase) -> Result<Vec<Difference>, BuildError> {
    let folder = std::env::temp_dir().join(format!("nexus-trial-{}", uuid::Uuid::new_v4().simple()));
    let landed = run_in(loaded, number, case, &folder.to_string_lossy()).await;
    // What cannot be removed lies where the machine removes it.
    drop(tokio::fs::remove_dir_all(&folder).await);
    let mut differences = Vec::new();
    for (table, landed) in landed? {
        let Some(expected) = case.expect.get(&table) else { continue };
        let lines = compare(expected, &landed.batches(), &keys_of(loaded, &table)).map_err(BuildError::Operator)?;
        if !lines.is_empty() {
            differences.push(Difference { table, lines });
        }
    }
    Ok(differences)
}

async fn run_in(
    loaded: &Loaded,
    number: usize,
    case: &TestCase,
    folder: &str,
) -> Result<BTreeMap<String, Landed>, BuildError> {
    let clock: SharedClock = Arc::new(SystemClock);
    let mut pipeline = Pipeline::new(in_folder(loaded, folder)).without_stores();
    for (name, spec) in &loaded.spec.sources {
        let plan = SourcePlan::new(loaded, name, spec).map_err(BuildError::Operator)?;
        let (plan, source) = given(loaded, number, case, plan, &clock).map_err(BuildError::Operator)?;
        pipeline = pipeline.with_planned(plan, source);
    }
    let mut heard = BTreeMap::new();
    for table in case.expect.keys() {
        let sink = MemorySink::new();
        heard.insert(table.clone(), sink.landed());
        pipeline = pipeline.with_sink(table, LISTENER, Box::new(sink));
    }
    let mut job = pipeline.start().await?;
    job.wait().await.map_err(BuildError::Operator)?;
    Ok(heard)
}

/// Gives the pipeline with its state in a folder of its own, and without budgets for bad rows.
fn in_folder(loaded: &Loaded, folder: &str) -> Loaded {
    let mut trial = loaded.clone();
    trial.spec.lake = Lake::Root(folder.to_owned());
    trial.spec.state = None;
    // A case shows what becomes of rows, bad ones too.
    trial.spec.sources.values_mut().for_each(|source| source.errors = None);
    for tier in Tier::ALL {
        for table in trial.spec.tables_mut(tier).values_mut() {
            table.errors = None;
        }
    }
    trial
}

/// Makes the source that reads what the case gives; a source that is given nothing is empty.
fn given(
    loaded: &Loaded,
    number: usize,
    case: &TestCase,
    plan: SourcePlan,
    clock: &SharedClock,
) -> Result<(SourcePlan, Box<dyn Source>)> {
    let (partition, content, plan) = match case.given.get(&plan.name) {
        None => return Ok((plan, Box::new(MemorySource::batches(Vec::new(), clock.clone())))),
        Some(Given::File(_)) => {
            if matches!(
                plan.decoder.format,
                FormatSettings::AvroRecords { .. } | FormatSettings::Protobuf { delimited: false, .. }
            ) {
                let text = format!("single records do not stand in a file; give source {} rows in place", plan.name);
                return Err(Error::config(text));
            }
            let path = loaded.given_path(number, &plan.name).unwrap_or_default();
            let content = std::fs::read(&path)
                .map_err(|e| Error::config(format!("could not read {}", path.display())).because(e))?;
            (path.display().to_string(), Bytes::from(content), plan)
        }
        Some(Given::Rows(rows)) => {
            let lines = rows.iter().map(serde_json::to_string).collect::<std::result::Result<Vec<_>, _>>();
            let lines = lines.map_err(|e| Error::internal("could not write a row as json").because(e))?;
            (case.name.clone(), Bytes::from(lines.join("\n")), as_rows(plan)?)
        }
    };
    let framing = plan.decoder.format.framing();
    let source =
        MemorySource::records(vec![(partition, content)], framing, plan.decoder.record_bytes_max, clock.clone());
    Ok((plan, Box::new(source)))
}

/// Rows in place are JSON, whatever the source's format is.
fn as_rows(plan: SourcePlan) -> Result<SourcePlan> {
    let mut decoder = plan.decoder.clone();
    match decoder.format {
        FormatSettings::Raw => {
            let text = format!("rows in place cannot be raw bytes; give source {} a file", plan.name);
            return Err(Error::config(text));
        }
        FormatSettings::Batch => decoder.unknown = UnknownColumns::Reject,
        _ => {}
    }
    decoder.format = FormatSettings::Json;
    let time = plan.event_time.map(|index| plan.schema.field(index).name().clone());
    let typed = SourcePlan::of_decoder(&plan.name, decoder, time.as_deref())?;
    Ok(SourcePlan { lateness: plan.lateness, idle: plan.idle, ..typed })
}

/// Gives the columns by which a later row of a table replaces an earlier one, if its rows change.
fn keys_of(loaded: &Loaded, table: &str) -> Vec<String> {
    let spec = loaded.spec.all_tables().find(|(tier, name, _)| format!("{tier}.{name}") == table);
    spec.and_then(|(_, _, spec)| spec.postgres.as_ref()).map(|postgres| postgres.key.clone()).unwrap_or_default()
}

/// Leaves out the rows that later ones have replaced, where rows have a sequence.
fn newest(found: Vec<Map<String, Value>>, keys: &[String]) -> Vec<Map<String, Value>> {
    let sequence = |row: &Map<String, Value>| row.get(SEQUENCE_COLUMN).and_then(Value::as_i64);
    let mut newest: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut kept = Vec::new();
    for row in found {
        if sequence(&row).is_none() {
            kept.push(row);
            continue;
        }
        let key = text(keys.iter().filter_map(|name| row.get_key_value(name)));
        match newest.get(&key) {
            Some(known) if sequence(known) > sequence(&row) => {}
            _ => drop(newest.insert(key, row)),
        }
    }
    kept.extend(newest.into_values());
    kept
}

/// Compares what a table should hold with what it holds.
fn compare(expected: &Expected, batches: &[RecordBatch], keys: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for batch in batches {
        for row in as_json(batch)? {
            let row: Map<String, Value> =
                serde_json::from_slice(&row).map_err(|e| Error::internal("a row did not become json").because(e))?;
            found.push(row);
        }
    }
    let mut found = newest(found, keys);
    let wanted = match expected {
        Expected::Count(count) if count.rows == found.len() as u64 => return Ok(Vec::new()),
        Expected::Count(count) => return Ok(vec![format!("{} rows expected, {} found", count.rows, found.len())]),
        Expected::Rows(wanted) => wanted,
    };
    let mut lines = Vec::new();
    for row in wanted {
        match found.iter().position(|found| row.iter().all(|(name, value)| same(value, found.get(name)))) {
            Some(place) => drop(found.remove(place)),
            None => lines.push(format!("- {}", text(row.iter()))),
        }
    }
    // Of a row that nobody expected, the columns that the others are known by say most.
    let named = |name: &String| wanted.is_empty() || wanted.iter().any(|row| row.contains_key(name));
    lines.extend(found.iter().map(|row| format!("+ {}", text(row.iter().filter(|(name, _)| named(name))))));
    Ok(lines)
}

fn text<'a>(row: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let fields = row.map(|(name, value)| format!("{name}: {value}"));
    format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
}

fn same(wanted: &Value, found: Option<&Value>) -> bool {
    let found = found.unwrap_or(&Value::Null);
    match (wanted, found) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * NUMBERS_DIFFER_MAX,
            _ => a == b,
        },
        (Value::String(a), Value::String(b)) => {
            let time = |text: &str| DateTime::parse_from_rfc3339(text).ok();
            a == b || time(a).is_some_and(|a| Some(a) == time(b))
        }
        (wanted, found) => wanted == found,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_rows_that_change_the_newest_counts() {
        let row = |site: &str, n: i64, sequence: i64| json!({ "site": site, "n": n, "_sequence": sequence });
        let found = [row("a", 1, 1), row("b", 5, 1), row("a", 3, 2)].map(|row| row.as_object().cloned().unwrap());
        let kept = newest(found.to_vec(), &["site".to_owned()]);
        assert_eq!(kept.iter().map(|row| row["n"].as_i64().unwrap()).collect::<Vec<_>>(), [3, 5]);
    }

    #[test]
    fn numbers_and_times_are_compared_by_what_they_mean() {
        assert!(same(&json!(0.3), Some(&json!(0.1 + 0.2))));
        assert!(same(&json!(1), Some(&json!(1.0))));
        assert!(!same(&json!(1), Some(&json!(1.001))));
        assert!(same(&json!("2026-11-01T00:00:00Z"), Some(&json!("2026-11-01T01:00:00+01:00"))));
        assert!(same(&Value::Null, None));
        assert!(!same(&json!("a"), Some(&json!("b"))));
    }
}
