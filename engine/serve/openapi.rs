//! The OpenAPI document of the API (<https://spec.openapis.org/oas/v3.1.0>), made from the types of its answers.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::api::Refused;
use super::api::told::{
    Channels, Control, Epochs, Memory, Pipeline, PositionsTold, Quarantine, Sample, Sources, Tables,
};
use crate::plan::describe::Described;

/// A path of the API: its method, itself, the name of its operation, what it is for, and the schema of its answer.
type Operation = (&'static str, &'static str, &'static str, &'static str, fn(&mut SchemaGenerator) -> Schema);

/// All of them.
const OPERATIONS: [Operation; 13] = [
    ("get", "/api/v1/pipeline", "getPipeline", "The pipeline, its graph, and how its run is doing", schema::<Pipeline>),
    ("get", "/api/v1/plan", "getPlan", "The queries, their columns and their plans", schema::<Described>),
    ("get", "/api/v1/sources", "getSources", "Sources: rates, lag, watermarks", schema::<Sources>),
    ("get", "/api/v1/tables", "getTables", "Tables: rates, rows by what became of them, watermarks", schema::<Tables>),
    ("get", "/api/v1/tables/{table}/sample", "getSample", "The last rows of a table", schema::<Sample>),
    ("get", "/api/v1/epochs", "getEpochs", "The last epochs, and how long their steps took", schema::<Epochs>),
    ("get", "/api/v1/positions", "getPositions", "How far the sources are read", schema::<PositionsTold>),
    ("get", "/api/v1/channels", "getChannels", "What waits between stages, and who holds up whom", schema::<Channels>),
    ("get", "/api/v1/memory", "getMemory", "Where memory goes", schema::<Memory>),
    (
        "get",
        "/api/v1/quarantine",
        "getQuarantine",
        "What could not be used, by rule, with the last reasons",
        schema::<Quarantine>,
    ),
    ("post", "/api/v1/pause", "pause", "Read no more until told to resume", schema::<Control>),
    ("post", "/api/v1/resume", "resume", "Read again", schema::<Control>),
    ("post", "/api/v1/drain", "drain", "Commit what has been read, and end the run", schema::<Control>),
];

/// Makes the document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let refused = generator.subschema_for::<Refused>();
    let refusal = |why: &str| json!({ "description": why, "content": content(&refused) });
    let mut paths = Map::new();
    for (method, path, id, summary, schema) in OPERATIONS {
        let mut responses = json!({
            "200": { "description": summary, "content": content(&schema(&mut generator)) },
            "401": refusal("The token is missing or wrong"),
            "403": refusal("Without a token nobody may, or the page of another site has asked"),
            "421": refusal("The request names another host than this machine"),
            "503": refusal("The sources are not open yet"),
        });
        let mut operation = json!({ "operationId": id, "summary": summary });
        if path.contains("{table}") {
            responses["404"] = refusal("There is no such table");
            operation["parameters"] = json!([{
                "name": "table",
                "in": "path",
                "required": true,
                "description": "`tier.table`",
                "schema": { "type": "string" },
            }]);
        }
        if method == "post" {
            responses["409"] = refusal("The process takes no orders for the run");
        }
        operation["responses"] = responses;
        paths.insert(path.to_owned(), json!({ method: operation }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nexus",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A running pipeline. Fields may be added within v1.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        // The token is not needed on a loopback address where none was given.
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": generator.take_definitions(true),
        },
    })
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn content(schema: &Schema) -> Value {
    json!({ "application/json": { "schema": schema } })
}
