//! `nexus plan`: the graph of tables, their schemas, what is stateful, and the plans.

use arrow::datatypes::SchemaRef;
use serde_json::json;

use super::{Failure, File, terminal};
use crate::plan::Plan;
use crate::plan::describe::{physical, reads, state};
use crate::plan::lineage::{Origins, lineage};
use crate::spec::columns::type_name;

/// Show the graph of tables, their schemas, what is stateful, and the plans.
#[derive(Debug, clap::Args)]
pub struct Graph {
    #[command(flatten)]
    file: File,
    /// How the graph is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How the graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// A Mermaid flowchart.
    Mermaid,
    /// For programs.
    Json,
}

impl Graph {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        match self.format {
            Format::Text => text(&plan).await?,
            Format::Mermaid => mermaid(&plan),
            Format::Json => as_json(&plan).await?,
        }
        Ok(())
    }
}

async fn text(plan: &Plan) -> Result<(), crate::Error> {
    for source in plan.sources.values() {
        let archive = plan.loaded.archive_places(&source.name).map(|[records, _]| format!("  -> archive {records}"));
        terminal::say(&format!("source {}{}", source.name, archive.unwrap_or_default()));
        let time = source.event_time.map(|index| source.schema.field(index).name());
        columns(&source.schema, time.map(String::as_str));
    }
    for table in &plan.tables {
        let state = state(table).map(|state| format!("  [{state}]")).unwrap_or_default();
        terminal::say(&format!("\n{} <- {}{state}", table.name(), reads(table).join(", ")));
        let time = table.event_time.map(|index| table.schema.field(index).name());
        columns(&table.schema, time.map(String::as_str));
        for line in physical(table).await?.lines() {
            terminal::say(&format!("    | {line}"));
        }
    }
    Ok(())
}

fn columns(schema: &SchemaRef, event_time: Option<&str>) {
    for field in schema.fields() {
        let mark = if event_time == Some(field.name()) { "  (event time)" } else { "" };
        terminal::say(&format!("    {}: {}{mark}", field.name(), type_name(field)));
    }
}

fn mermaid(plan: &Plan) {
    terminal::say("flowchart LR");
    for name in plan.sources.keys() {
        terminal::say(&format!("    {}[/\"{name}\"/]", id(name)));
        if let Some([archive, _]) = plan.loaded.archive_places(name) {
            terminal::say(&format!("    {0} --> archive_{0}[(\"{archive}\")]", id(name)));
        }
    }
    for name in plan.references.keys() {
        terminal::say(&format!("    {}[(\"{name}\")]", id(name)));
    }
    for table in &plan.tables {
        let name = table.name();
        terminal::say(&format!("    {}[\"{name}\"]", id(&name)));
        for read in reads(table) {
            terminal::say(&format!("    {} --> {}", id(&read), id(&name)));
        }
        if let Some(postgres) = plan.spec_of(table).and_then(|spec| spec.postgres.as_ref()) {
            let target = format!("{}.{}", postgres.schema, postgres.table);
            terminal::say(&format!("    {} --> pg_{}[(\"Postgres {target}\")]", id(&name), id(&target)));
        }
    }
}

fn origins(origins: &Origins) -> Vec<serde_json::Value> {
    let origin =
        |((table, column), how): (&(String, String), _)| json!({ "table": table, "column": column, "how": how });
    origins.iter().map(origin).collect()
}

fn id(name: &str) -> String {
    name.replace('.', "_")
}

async fn as_json(plan: &Plan) -> Result<(), crate::Error> {
    let fields = |schema: &SchemaRef| -> serde_json::Value {
        schema.fields().iter().map(|field| json!({ "name": field.name(), "type": type_name(field) })).collect()
    };
    let sources = plan.sources.values().map(|source| {
        let mut described =
            json!({ "name": source.name, "columns": fields(&source.schema), "inferred": source.inferred });
        if let (Some([records, errors]), Some(fields)) =
            (plan.loaded.archive_places(&source.name), described.as_object_mut())
        {
            fields.insert("archive".to_owned(), json!({ "records": records, "errors": errors }));
        }
        described
    });
    let sources: Vec<_> = sources.collect();
    let lineage = lineage(plan);
    let mut tables = Vec::new();
    for table in &plan.tables {
        let lineage = lineage.get(&table.name()).map_or(&[][..], Vec::as_slice);
        let columns = table.schema.fields().iter().zip(lineage).map(|(field, lineage)| {
            json!({
                "name": field.name(),
                "type": type_name(field),
                "from": origins(&lineage.inputs),
                "sources": origins(&lineage.sources),
            })
        });
        tables.push(json!({
            "name": table.name(),
            "reads": reads(table),
            "columns": columns.collect::<Vec<_>>(),
            "event_time": table.event_time.map(|index| table.schema.field(index).name()),
            "state": state(table),
            "sql": table.sql,
            "plan": physical(table).await?,
        }));
    }
    let graph = json!({ "pipeline": plan.loaded.spec.name, "sources": sources, "tables": tables });
    let text = serde_json::to_string_pretty(&graph);
    terminal::say(&text.map_err(|e| crate::Error::internal("could not write the graph").because(e))?);
    Ok(())
}
