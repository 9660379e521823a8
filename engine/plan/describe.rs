//! What a pipeline is, for people: its sources, tables and sinks, who reads whom, and the plans.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use nexus_operators::Result;
use nexus_operators::transform::window::{Extent, Width};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Plan;
use super::masks::masks;
use super::source::SourcePlan;
use super::table::TablePlan;
use crate::spec::columns::type_name;
use crate::spec::model::{self, Late};
use crate::spec::units::Span;
use crate::state::record::POSTGRES;

/// A pipeline, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Described {
    /// What the pipeline is for.
    pub description: Option<String>,
    /// The sources that are read.
    pub sources: Vec<DescribedSource>,
    /// Static tables, by name.
    pub references: Vec<String>,
    /// The tables, each behind those that it reads.
    pub tables: Vec<DescribedTable>,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DescribedSource {
    /// Its name.
    pub name: String,
    /// From where it reads: `file`, `kinesis`, `s3`, `generate`, or `embedded` for one that a service brings.
    pub kind: String,
    /// Its columns.
    pub columns: Vec<DescribedColumn>,
    /// The column that carries event time.
    pub event_time: Option<String>,
    /// Where its records are kept as they came, by the hour.
    pub archive: Option<String>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DescribedTable {
    /// `tier.table`.
    pub name: String,
    /// Its tier.
    pub tier: String,
    /// What it holds.
    pub description: Option<String>,
    /// The sources, tables and static tables that it reads.
    pub reads: Vec<String>,
    /// Its columns.
    pub columns: Vec<DescribedColumn>,
    /// The column that carries event time.
    pub event_time: Option<String>,
    /// What of it outlives an epoch.
    pub state: Option<String>,
    /// Where its rows go: `parquet` to the lake, `postgres`.
    pub sinks: Vec<String>,
    /// Its query.
    pub sql: String,
    /// How the query is run.
    pub plan: String,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DescribedColumn {
    /// Its name.
    pub name: String,
    /// Its type, as pipeline files write it.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether its values are not shown.
    pub masked: bool,
}

impl Described {
    /// Describes a pipeline.
    pub async fn of(plan: &Plan) -> Result<Self> {
        let spec = &plan.loaded.spec;
        let opened = plan.opened_sources();
        let opened = opened.iter().filter_map(|name| plan.sources.get(name));
        let sources = opened.map(|source| {
            let spec = spec.sources.get(&source.name);
            let mask = spec.map_or(&[][..], |spec| spec.mask.as_slice());
            DescribedSource {
                name: source.name.clone(),
                kind: kind(source, spec).to_owned(),
                columns: columns(&source.schema, |_, name| mask.iter().any(|masked| masked == name)),
                event_time: time_name(&source.schema, source.event_time),
                archive: plan.loaded.archive_places(&source.name).map(|[records, _]| records),
            }
        });
        let masks = masks(plan);
        let mut tables = Vec::with_capacity(plan.tables.len());
        for table in &plan.tables {
            let name = table.name();
            let masks = masks.get(&name).map_or(&[][..], Vec::as_slice);
            let spec = plan.spec_of(table);
            let sinks = [
                (crate::job::place::PARQUET, spec.is_some_and(|spec| spec.store)),
                (POSTGRES, spec.is_some_and(|spec| spec.postgres.is_some())),
            ];
            tables.push(DescribedTable {
                tier: table.tier.to_string(),
                description: spec.and_then(|spec| spec.description.clone()),
                reads: reads(table),
                columns: columns(&table.schema, |place, _| masks.get(place) != Some(&false)),
                event_time: time_name(&table.schema, table.event_time),
                state: state(table),
                sinks: sinks.into_iter().filter(|(_, is)| *is).map(|(sink, _)| sink.to_owned()).collect(),
                sql: table.sql.clone(),
                plan: physical(table).await?,
                name,
            });
        }
        Ok(Self {
            description: spec.description.clone(),
            sources: sources.collect(),
            references: plan.references.keys().cloned().collect(),
            tables,
        })
    }

    /// Tells whether a source or table has masked columns; true if it is not known.
    pub fn hides(&self, name: &str) -> bool {
        let source = self.sources.iter().find(|source| source.name == name).map(|source| &source.columns);
        let table = self.tables.iter().find(|table| table.name == name).map(|table| &table.columns);
        source.or(table).is_none_or(|columns| columns.iter().any(|column| column.masked))
    }
}

/// Gives what a table reads.
pub fn reads(table: &TablePlan) -> Vec<String> {
    table.inputs.iter().chain(&table.references).cloned().collect()
}

/// Says what of a table outlives an epoch.
pub fn state(table: &TablePlan) -> Option<String> {
    let window = table.window.map(|(_, extent)| window(extent));
    let newest = table.newest.as_ref().map(|newest| format!("keys for {}", span(newest.within_us)));
    let unique = table.unique.as_ref().map(|(_, _, within_us)| format!("keys for {} s", within_us / 1_000_000));
    let rows = table.keys.is_some().then(|| "the newest row of each key".to_owned());
    let corrected = match table.late {
        Late::Update(update) => Some(format!("corrected for {} behind their end", update.within)),
        Late::Quarantine | Late::Drop => None,
    };
    let joined = table.join.as_ref().map(|join| join.describe());
    let parts: Vec<_> =
        window.into_iter().chain(corrected).chain(joined).chain(rows).chain(unique).chain(newest).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Gives a table's plans as text.
pub async fn physical(table: &TablePlan) -> Result<String> {
    let plans = table.physical().await?;
    let shown = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(false).to_string();
    match plans.as_slice() {
        [(_, plan)] => Ok(shown(plan)),
        parts => Ok(parts.iter().map(|(what, plan)| format!("{what}:\n{}", shown(plan))).collect()),
    }
}

fn kind(source: &SourcePlan, spec: Option<&model::Source>) -> &'static str {
    match spec {
        Some(spec) if !source.embedded => {
            let kinds = [("file", spec.file.is_some()), ("kinesis", spec.kinesis.is_some()), ("s3", spec.s3.is_some())];
            kinds.into_iter().find(|(_, is)| *is).map_or("generate", |(kind, _)| kind)
        }
        _ => "embedded",
    }
}

fn columns(schema: &SchemaRef, is_masked: impl Fn(usize, &str) -> bool) -> Vec<DescribedColumn> {
    let column = |(place, field): (usize, &arrow::datatypes::FieldRef)| DescribedColumn {
        name: field.name().clone(),
        data_type: type_name(field),
        masked: is_masked(place, field.name()),
    };
    schema.fields().iter().enumerate().map(column).collect()
}

fn time_name(schema: &SchemaRef, event_time: Option<usize>) -> Option<String> {
    event_time.map(|index| schema.field(index).name().clone())
}

fn window(extent: Extent) -> String {
    match extent {
        Extent::Width(Width::Micros(us)) => format!("windows of {}", span(us)),
        Extent::Width(Width::Months(months)) => format!("windows of {months} months"),
        Extent::Session { gap_us, .. } => format!("sessions with a gap of {}", span(gap_us)),
    }
}

fn span(us: i64) -> Span {
    Span(Duration::from_micros(us.unsigned_abs()))
}
