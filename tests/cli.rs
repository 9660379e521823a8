//! The verbs of the command: what they print, and how they exit.

use serde_json::Value;

use crate::world::{World, repository};

#[test]
fn five_mistakes_give_five_errors_in_one_go() {
    let world = World::new();
    let text = "\
name: mistaken
lake: ./lake
commit: { every: 10 parsecs }
sources:
  departures:
    file: { path: '*.csv' }
    format: { csv: {} }
    columns:
      origin: string
      delay: flaot64
bronze:
  departures: { from: departurs }
silver:
  late:
    sql: SELECT origin, delay FROM bronze.departures
    expct: {}
gold:
  worst:
    sql: SELECT max(delay) AS delay FROM bronze.departures
    postgres: { url: pgg, table: worst, append: true }
secrets:
  pg: { env: DATABASE_URL }
";
    let file = world.file("mistaken.yaml", text);
    let file = file.to_str().expect("the tests' paths are UTF-8");

    for verb in ["check", "run"] {
        let said = world.nexus(&[verb, file]).expect_code(2).said();
        // What is wrong, the line on which it stands, and the line itself.
        for (wrong, line) in [("10 parsecs", 3), ("flaot64", 10), ("departurs", 12), ("expct", 16), ("pgg", 20)] {
            let place = format!("mistaken.yaml:{line}:");
            let column = said.split(&place).nth(1).map(|behind| behind.starts_with(|c: char| c.is_ascii_digit()));
            assert_eq!(column, Some(true), "`{wrong}` is not shown with line {line} and a column by {verb}:\n{said}");
            let source_line = text.lines().nth(line - 1).expect("the file has that line").trim();
            assert!(said.contains(source_line), "line {line} itself is not shown by {verb}:\n{said}");
        }
        assert!(said.contains("did you mean") && said.contains("float64"), "no suggestion by {verb}:\n{said}");
    }
    assert!(!world.path("lake").exists(), "a file with mistakes left something behind");
}

#[test]
fn mistakes_in_sql_are_shown_where_they_stand() {
    let world = World::new();
    let text = "\
name: mistaken
lake: ./lake
sources:
  departures:
    file: { path: '*.csv' }
    format: { csv: {} }
    columns: { origin: string, delay: float64 }
bronze:
  departures: { from: departures }
silver:
  late:
    sql: |
      SELECT origin, dellay
      FROM bronze.departures
  early:
    sql: SELECT origin FROM bronze.departurs
  typed:
    sql: SELECT origin FRM bronze.departures
";
    let file = world.file("mistaken.yaml", text);
    let said = world.nexus(&["check", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(2).said();
    for (wrong, line) in [("dellay", 13), ("departurs", 16), ("FRM", 18)] {
        assert!(
            said.contains(&format!("mistaken.yaml:{line}:")) && said.contains(wrong),
            "`{wrong}`, line {line}:\n{said}"
        );
    }
}

#[test]
fn the_pipelines_of_the_repository_are_good() {
    let world = World::new();
    let files = ["flights", "generated", "telemetry"].map(|name| format!("pipelines/{name}.yaml"));
    let files = files.map(|file| repository(&file).display().to_string());
    world.nexus(&["check", &files[0], &files[1], &files[2]]).expect_code(0);
}

#[test]
fn a_file_that_is_not_there_is_a_bad_file() {
    let world = World::new();
    for verb in ["check", "run", "plan", "state"] {
        let said = world.nexus(&[verb, "missing.yaml"]).expect_code(2).said();
        assert!(said.contains("missing.yaml"), "{verb}:\n{said}");
    }
}

#[test]
fn an_unknown_parameter_is_refused() {
    let world = World::new();
    let flights = repository("pipelines/flights.yaml").display().to_string();
    let said = world.nexus(&["run", &flights, "--set", "lak=elsewhere"]).expect_code(2).said();
    assert!(said.contains("lak") && said.contains("lake"), "{said}");
}

#[test]
fn the_plan_of_a_pipeline_in_three_formats() {
    let world = World::new();
    let flights = repository("pipelines/flights.yaml").display().to_string();
    let plan = |format: &str| world.nexus(&["plan", &flights, "--format", format]).expect_code(0).stdout;
    let tables = ["bronze.departures", "silver.departures", "gold.hourly_delays", "vibranium.delay_alerts"];

    let text = plan("text");
    assert!(tables.iter().all(|table| text.contains(table)), "{text}");
    assert!(text.contains("avg_delay"), "the schema of gold is not shown:\n{text}");
    let mermaid = plan("mermaid");
    assert!(["flowchart", "graph"].iter().any(|head| mermaid.trim_start().starts_with(head)), "{mermaid}");
    let json: Value = serde_json::from_str(&plan("json")).expect("the plan as JSON is JSON");
    let json = json.to_string();
    assert!(tables.iter().all(|table| json.contains(table)), "{json}");
}

#[test]
fn the_schema_for_editors_names_the_keys_of_the_file() {
    let world = World::new();
    let schema = world.nexus(&["schema"]).expect_code(0).stdout;
    let schema: Value = serde_json::from_str(&schema).expect("a JSON Schema is JSON");
    for key in ["name", "lake", "sources", "bronze", "silver", "gold", "vibranium", "secrets"] {
        assert!(schema["properties"][key].is_object(), "the schema does not know `{key}`");
    }
}
