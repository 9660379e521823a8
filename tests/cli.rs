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
fn sql_is_refused_in_words_of_the_file_with_a_mark_under_the_word() {
    let world = World::new();
    for (sql, message, marked, hint) in [
        ("SELECT nme FROM o", "there is no column `nme`", "nme", "did you mean `name`?"),
        ("SELECT name AS n, p.id FROM o", "there is no column `p.id`", "p.id", "did you mean `o.id`?"),
        ("SELECT url FROM o", "there is no column `url`", "url", "did you mean `\"URL\"`?"),
        ("SELECT uper(name) AS n FROM o", "there is no function `uper`", "uper", "did you mean `upper`?"),
        ("SELECT abs(name) AS n FROM o", "`abs` does not take (string)", "abs", "cast its arguments"),
        ("SELECT id FROM o WHER id > 1", "expected end of statement, found `id`", "id > 1", "did you mean `WHERE`?"),
        ("SELEC id FROM o", "expected an SQL statement, found `SELEC`", "SELEC", "did you mean `SELECT`?"),
        ("SELECT id FROM oo", "there is no source or table `oo`", "oo", "available: `silver.t`, `o`"),
        ("SELECT id, count(*) AS n FROM o", "`o.id` is neither in GROUP BY nor in an aggregate", "id", "max(id)"),
        ("SELECT a.id FROM o a JOIN o b ON id = 1", "more than one input has a column `id`", "id = 1", "say whose"),
        ("SELECT id FROM o WHERE name", "a condition is true or false", "name", "`o.name` is of type string"),
        ("SELECT name AS a, id AS a FROM o", "two columns are named `a`", "SELECT", "another name with AS"),
        ("SELECT id FROM o LIMIT 5", "LIMIT over a stream", "LIMIT", "filter with WHERE"),
        ("SELECT id, NULL AS note FROM o", "`note` is always NULL", "note", "CAST(NULL AS"),
    ] {
        let text = format!(
            "name: mistaken\nlake: ./lake\nsources:\n  o: {{ file: {{ path: o.csv }}, format: csv, columns: {{ id: int64, \
             name: string, URL: string }} }}\nsilver:\n  t:\n    sql: |\n\n      {sql}\n"
        );
        let file = world.file("mistaken.yaml", &text);
        let said = world.nexus(&["check", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(2).stderr;
        let shown = said.lines().find(|line| line.contains(" | ")).unwrap_or_default().split("| ").nth(1);
        let shown = shown.unwrap_or_else(|| panic!("{sql}: no line is shown:\n{said}"));
        let mark =
            said.lines().find_map(|line| line.split_once("| ")?.1.contains('^').then_some(line)).unwrap_or_default();
        let lead = mark.split("| ").nth(1).map_or(0, |mark| mark.len() - mark.trim_start().len());
        let is_marked = shown.get(lead..).is_some_and(|rest| rest.starts_with(marked));
        assert!(said.contains(message) && said.contains(hint) && is_marked, "{sql}:\n{said}");
        assert!(!said.contains("DataFusion") && !said.contains("_ingested_at"), "{sql}:\n{said}");
    }
}

#[test]
fn what_is_probably_not_meant_is_said_and_is_no_mistake() {
    let world = World::new();
    world.file("o.csv", "id,shop,wen\n1,a,2026-11-01T00:00:00Z\n");
    let text = "\
name: doubtful
lake: ./lake
sources:
  o:
    file: { path: o.csv }
    format: { csv: { header: true } }
    columns: { id: int64, shop: string, when: timestamp }
    event_time: { column: when, lateness: 1h }
  idle: { file: { path: i.csv }, format: csv, columns: { id: int64 } }
silver:
  o: { sql: 'SELECT id, shop, \"when\", CAST(NULL AS VARCHAR) AS note FROM o' }
  scratch: { sql: SELECT id FROM o, store: false }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', \"when\") AS hour, shop, count(*) AS n FROM silver.o GROUP BY 1, 2
    postgres: { url: pg, table: hours, key: [hour] }
secrets: { pg: { env: DATABASE_URL } }
";
    let file = world.file("doubtful.yaml", text);
    let said = world.nexus(&["check", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(0);
    for (code, what) in [
        ("N0712", "no column `when`: it is never set, so that no window over it closes before the end"),
        ("N0712", "the column `note` of silver.o is never set"),
        ("N0707", "no table reads the source `idle`"),
        ("N0707", "silver.scratch is not stored, and no table reads it"),
        ("N0711", "the key (hour) does not tell the rows of gold.hours apart"),
    ] {
        let found = said.stderr.lines().any(|line| line.contains(&format!("warning[{code}]")) && line.contains(what));
        assert!(found, "{what}:\n{}", said.stderr);
    }
    assert!(
        said.stderr.contains("did you mean `wen`?") && said.stdout.contains("good (2 sources, 3 tables)"),
        "{said:?}"
    );
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
