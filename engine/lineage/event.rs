//! What an event says.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::datasets::Dataset;
use crate::job::place::{PARQUET, POSTGRES};
use crate::job::progress::Report;
use crate::plan::Plan;
use crate::plan::lineage::{ColumnLineage, How, lineage};
use crate::plan::table::TablePlan;
use crate::spec::columns::type_name;
use crate::spec::model;

/// What makes the events.
const PRODUCER: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/tree/v", env!("CARGO_PKG_VERSION"));

/// The schema of events.
const EVENT_SCHEMA: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";

/// A change of a run's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It has begun.
    Start,
    /// It goes on.
    Running,
    /// It has ended well.
    Complete,
    /// It has failed.
    Fail,
    /// It was ended from outside.
    Abort,
}

/// What stands in every event of a run.
pub struct Description {
    /// The run's id.
    pub run: Uuid,
    job: Value,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

/// A dataset that is read.
struct Input {
    /// The source or reference table.
    source: String,
    dataset: Dataset,
    facets: Value,
}

/// A dataset that is written.
struct Output {
    table: String,
    /// The kind of sink.
    kind: &'static str,
    dataset: Dataset,
    facets: Value,
}

impl Description {
    /// Describes the runs of a plan.
    pub async fn of(plan: &Plan, run: Uuid) -> Self {
        let spec = &plan.loaded.spec;
        let namespace = spec.lineage.as_ref().map_or("nexus", |lineage| lineage.namespace.as_str());
        let (inputs, read) = inputs(plan, namespace);
        let lineage = lineage(plan);
        let mut outputs = Vec::new();
        for table in &plan.tables {
            let Some(spec) = plan.spec_of(table) else { continue };
            let columns = lineage.get(&table.name()).map_or(&[][..], Vec::as_slice);
            if spec.store {
                let root = plan.loaded.lake_root(table.tier);
                let place = format!("{}/{}/{}", root.trim_end_matches('/'), table.tier, table.table);
                let facets = output_facets(&table.schema, columns, &read);
                outputs.push(Output { table: table.name(), kind: PARQUET, dataset: Dataset::at(&place), facets });
            }
            if let Some(postgres) = &spec.postgres
                && let Some(dataset) = postgres_dataset(plan, table, postgres).await
            {
                let facets = output_facets(&table.keyed_schema(), columns, &read);
                outputs.push(Output { table: table.name(), kind: POSTGRES, dataset, facets });
            }
        }
        let job = json!({
            "namespace": namespace,
            "name": spec.name,
            "facets": { "jobType": facet("2-0-4/JobTypeJobFacet", json!({
                "processingType": if is_batch(plan) { "BATCH" } else { "STREAMING" },
                "integration": "NEXUS",
                "jobType": "PIPELINE",
            })) },
        });
        Self { run, job, inputs, outputs }
    }

    /// Makes an event, with what the run has committed so far.
    pub fn event(&self, kind: Kind, time_us: i64, report: &Report, error: Option<&str>) -> String {
        let mut run_facets = Map::new();
        if let Some(message) = error {
            let facet =
                facet("1-0-1/ErrorMessageRunFacet", json!({ "message": message, "programmingLanguage": "RUST" }));
            run_facets.insert("errorMessage".to_owned(), facet);
        }
        let inputs = self.inputs.iter().map(|input| {
            let counts = report.sources.get(&input.source);
            let statistics = counts.map(|counts| json!({ "rowCount": counts.records, "size": counts.bytes }));
            let facets = statistics.map(|counts| {
                json!({ "inputStatistics": facet("1-0-0/InputStatisticsInputDatasetFacet", counts) })
            });
            let Input { dataset: Dataset { namespace, name }, facets: described, .. } = input;
            json!({ "namespace": namespace, "name": name, "facets": described, "inputFacets": facets.unwrap_or(json!({})) })
        });
        let outputs = self.outputs.iter().map(|output| {
            let counts = report.sinks.get(&output.table).and_then(|kinds| kinds.get(output.kind));
            let counts = counts.copied().unwrap_or_default();
            let mut statistics = json!({ "rowCount": counts.rows, "size": counts.bytes });
            if output.kind == PARQUET {
                statistics["fileCount"] = counts.files.into();
            }
            let statistics = facet("1-0-2/OutputStatisticsOutputDatasetFacet", statistics);
            let Output { dataset: Dataset { namespace, name }, facets, .. } = output;
            json!({
                "namespace": namespace, "name": name, "facets": facets, "outputFacets": { "outputStatistics": statistics },
            })
        });
        let time = DateTime::from_timestamp_micros(time_us).unwrap_or_default();
        let event = json!({
            "eventType": kind.name(),
            "eventTime": time.to_rfc3339_opts(SecondsFormat::Micros, true),
            "producer": PRODUCER,
            "schemaURL": EVENT_SCHEMA,
            "run": { "runId": self.run.to_string(), "facets": run_facets },
            "job": self.job,
            "inputs": inputs.collect::<Vec<_>>(),
            "outputs": outputs.collect::<Vec<_>>(),
        });
        event.to_string()
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Start => "START",
            Kind::Running => "RUNNING",
            Kind::Complete => "COMPLETE",
            Kind::Fail => "FAIL",
            Kind::Abort => "ABORT",
        }
    }
}

/// Gives the datasets that are read, and those of each source or reference table by its name.
fn inputs(plan: &Plan, namespace: &str) -> (Vec<Input>, BTreeMap<String, Vec<Dataset>>) {
    let mut read = BTreeMap::new();
    let mut inputs = Vec::new();
    let mut add = |source: &str, datasets: Vec<Dataset>, schema: &SchemaRef| {
        for dataset in &datasets {
            let facets = json!({ "schema": schema_facet(schema) });
            inputs.push(Input { source: source.to_owned(), dataset: dataset.clone(), facets });
        }
        read.insert(source.to_owned(), datasets);
    };
    for name in plan.opened_sources() {
        if let Some(source) = plan.sources.get(&name) {
            add(&name, Dataset::of_source(plan, &name, namespace), &source.schema);
        }
    }
    for (name, reference) in &plan.references {
        let is_read = plan.tables.iter().any(|table| table.references.contains(name));
        if let Some(place) = plan.loaded.reference_path(name).filter(|_| is_read) {
            add(name, vec![Dataset::at(&place)], reference.schema());
        }
    }
    (inputs, read)
}

/// Tells whether every source of a plan ends by itself.
fn is_batch(plan: &Plan) -> bool {
    plan.opened_sources().iter().all(|name| {
        plan.loaded.spec.sources.get(name).is_some_and(|source| {
            source.file.as_ref().is_some_and(|file| !file.follow)
                || source.generate.as_ref().is_some_and(|generate| generate.rows.is_some())
        })
    })
}

#[cfg(feature = "postgres")]
async fn postgres_dataset(plan: &Plan, table: &TablePlan, spec: &model::PostgresSink) -> Option<Dataset> {
    use nexus_operators::sink::postgres::address;
    let secret = plan.loaded.database(spec)?;
    match tokio::time::timeout(SECRET_MAX, address(&secret)).await {
        Ok(Ok(address)) => Some(Dataset::of_postgres(&address, &spec.schema, &spec.table)),
        _ => {
            tracing::warn!(
                table = table.name(),
                "events about the run leave out a Postgres table: its secret is not known"
            );
            None
        }
    }
}

#[cfg(not(feature = "postgres"))]
#[allow(clippy::unused_async, reason = "the same call awaits where Postgres is built in")]
async fn postgres_dataset(_: &Plan, _: &TablePlan, _: &model::PostgresSink) -> Option<Dataset> {
    None
}

/// How long a secret may take, which only tells where a database is.
#[cfg(feature = "postgres")]
const SECRET_MAX: std::time::Duration = std::time::Duration::from_secs(2);

fn output_facets(schema: &SchemaRef, columns: &[ColumnLineage], read: &BTreeMap<String, Vec<Dataset>>) -> Value {
    let fields = schema.fields().iter().zip(columns).map(|(field, lineage)| {
        let origins = lineage.sources.iter().flat_map(|((source, column), how)| {
            let datasets = read.get(source).map_or(&[][..], Vec::as_slice);
            datasets.iter().map(|dataset| input_field(dataset, column, *how)).collect::<Vec<_>>()
        });
        (field.name().clone(), json!({ "inputFields": origins.collect::<Vec<_>>() }))
    });
    let fields: Map<String, Value> = fields.collect();
    json!({
        "schema": schema_facet(schema),
        "columnLineage": facet("1-2-0/ColumnLineageDatasetFacet", json!({ "fields": fields })),
    })
}

fn input_field(dataset: &Dataset, column: &str, how: How) -> Value {
    let subtype = match how {
        How::Copy => "IDENTITY",
        How::Transformation => "TRANSFORMATION",
        How::Aggregation => "AGGREGATION",
    };
    json!({
        "namespace": dataset.namespace,
        "name": dataset.name,
        "field": column,
        "transformations": [{ "type": "DIRECT", "subtype": subtype, "description": "", "masking": false }],
    })
}

fn schema_facet(schema: &SchemaRef) -> Value {
    let field = |(place, field): (usize, &std::sync::Arc<arrow::datatypes::Field>)| json!({ "name": field.name(), "type": type_name(field), "ordinal_position": place + 1 });
    let fields: Vec<_> = schema.fields().iter().enumerate().map(field).collect();
    facet("1-2-0/SchemaDatasetFacet", json!({ "fields": fields }))
}

/// Says who made a facet and where it is described: `version/Name`.
fn facet(name: &str, mut content: Value) -> Value {
    let title = name.rsplit('/').next().unwrap_or(name);
    content["_producer"] = PRODUCER.into();
    content["_schemaURL"] = format!("https://openlineage.io/spec/facets/{name}.json#/$defs/{title}").into();
    content
}
