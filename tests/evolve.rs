//! `on_unknown_column: evolve`: fields that no column declares become columns while the pipeline runs, and no value is
//! lost on the way, whenever the process dies.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::{Finished, World, ask};

const PIPELINE: &str = "name: evolve
lake: ./lake
commit: { every: 200ms, bytes: 1B }
sources:
  rows:
    file: { path: 'in-*.json' }
    format: json
    columns: { id: int64 not null, ts: timestamp }
    on_unknown_column: evolve
    event_time: { column: ts, lateness: 1h }
bronze:
  rows: { from: rows }
silver:
  rows:
    sql: SELECT * FROM bronze.rows
    unique: { key: [id], within: 30d }
  ids: { sql: SELECT id FROM bronze.rows }
gold:
  days: { sql: \"SELECT date_bin(INTERVAL '1 day', ts) AS day, count(*) AS n FROM silver.rows GROUP BY 1\" }
";

/// Rows of a file, some of which came in the file before.
const ROWS: usize = 8;

/// The fields that are not declared: the first from the second file on, the second from the third.
const FIELDS: [&str; 2] = ["size", "note"];

fn write_input(world: &World, number: usize) {
    let line = |id: usize| {
        let mut row = json!({ "id": id, "ts": format!("2026-11-{:02}T00:00:00Z", 1 + id / 10) });
        for (place, field) in FIELDS.iter().enumerate().take(number) {
            row[*field] = if place == 0 { json!(id) } else { json!(format!("n{id}")) };
        }
        row.to_string() + "\n"
    };
    let ids = (number * ROWS).saturating_sub(2)..(number + 1) * ROWS;
    world.file(&format!("in-{number}.json"), &ids.map(line).collect::<String>());
}

fn run(world: &World, pipeline: &Path) -> Finished {
    world.nexus(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")])
}

/// Checks that each row is there once, and each value either in its column or in `_rescued`.
fn check(world: &World, files: usize) {
    let lake = world.path("lake");
    // A column may have been found when there was nothing left to read: no file has it then.
    let column = |field: &str| format!("json_extract_string(to_json(r), '$.{field}')");
    let rescued = |field: &str| format!("json_extract_string(_rescued, '$.{field}')");
    let value = |field: &str| format!("coalesce({}, {})", column(field), rescued(field));
    let (size, note, both) = (value("size"), value("note"), [column("size"), rescued("size")].join(" || "));
    let sql = format!("SELECT id, {size}, {note}, {both} IS NOT NULL FROM silver.rows r ORDER BY id");
    // What was in two files is kept as the first had it.
    let expected = |id: usize| {
        let file = id / ROWS;
        let size = (file >= 1).then(|| id.to_string());
        json!([id, size, (file >= 2).then(|| format!("n{id}")), false])
    };
    assert_eq!(ask(&lake, &sql), (0..files * ROWS).map(expected).collect::<Vec<_>>());
    let all = ask(
        &lake,
        "SELECT (SELECT count(*) FROM bronze.rows), (SELECT count(*) FROM silver.ids), (SELECT sum(n)::BIGINT FROM gold.days)",
    );
    let rows = files * ROWS + (files - 1) * 2;
    assert_eq!(all, [json!([rows, rows, files * ROWS])]);
    let audit = ["audit", "evolve.yaml"];
    world.nexus(&audit).expect_code(0);
}

/// Gives the columns that the source has got.
fn evolved(world: &World) -> Vec<String> {
    let state = world.nexus(&["state", "evolve.yaml", "--json"]).expect_code(0).stdout;
    let state: Value = serde_json::from_str(&state).expect("the state is JSON");
    let columns = state["state"]["evolved"]["rows"].as_array().cloned().unwrap_or_default();
    columns.iter().map(|column| format!("{} {}", column["name"], column["type"]).replace('"', "")).collect()
}

#[test]
fn fields_become_columns_while_the_pipeline_runs() {
    let world = World::new();
    let text = PIPELINE.replace("path: 'in-*.json'", "path: 'in-*.json', follow: true");
    let pipeline = world.file("evolve.yaml", &text);
    let lake = world.path("lake");
    let mut running = world.start(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")]);
    for number in 0..4 {
        write_input(&world, number);
        running.until("the file is read and its fields are columns", || {
            let columns = "SELECT (SELECT count(*) FROM silver.ids) FROM bronze.rows LIMIT 1";
            let rows = (number + 1) * ROWS + number * 2;
            // There is no table yet, or it is about to be.
            crate::world::table_files(&lake, "silver/ids") > number && ask(&lake, columns) == [json!([rows])]
        });
        running.until("the run was planned anew", || {
            let starts = crate::world::files(&lake.join("_nexus/evolve/generations"));
            let name = format!("{:020}.json", 1 + number.min(2));
            starts.keys().any(|file| file.ends_with(&name))
        });
    }
    // A value that does not fit goes the way of all that do not.
    world.file("in-4.json", "{\"id\":900,\"ts\":\"2026-11-09T00:00:00Z\",\"size\":\"large\"}\n");
    running.until("the misfit is in the quarantine", || {
        crate::world::files(&lake.join("_quarantine/rows")).keys().any(|file| crate::world::is_table_file(file))
    });
    running.signal("TERM");
    running.wait().expect_code(0);
    let found = ask(&lake, "SELECT reason FROM quarantine.rows");
    assert!(found.len() == 1 && found[0][0].as_str().is_some_and(|why| why.contains("size")), "{found:?}");
    assert_eq!(evolved(&world), ["size int64", "note string"]);
    // The last two files were read with the columns.
    let sql = "SELECT count(*) FILTER (WHERE size = id AND note = 'n' || id AND _rescued IS NULL) FROM bronze.rows";
    assert_eq!(ask(&lake, sql), [json!([ROWS + 2])]);
    let said = world.nexus(&["query", "evolve.yaml", "SELECT sum(size) AS s, count(note) AS n FROM silver.rows"]);
    let sum: usize = (2 * ROWS..4 * ROWS).sum();
    assert!(said.expect_code(0).stdout.contains(&format!("| {sum} | {} ", ROWS)), "the columns are not to be queried");
    // At the end of input, all is as it should be.
    world.file("evolve.yaml", PIPELINE);
    std::fs::remove_file(world.path("in-4.json")).expect("could not remove a file");
    write_input(&world, 4);
    run(&world, &pipeline).expect_code(0);
    check(&world, 5);
}

#[test]
fn no_value_is_lost_when_the_process_dies_while_columns_come() {
    for (point, passings) in [
        ("before_record", 2..4),
        ("after_record", 2..5),
        ("before_claim", 2..3),
        ("before_start_record", 2..3),
        ("after_claim", 2..3),
        ("before_prepare", 6..7),
        ("after_commit", 5..7),
        ("before_committed_note", 2..4),
    ] {
        for passing in passings {
            let mut world = World::new();
            let pipeline = world.file("evolve.yaml", PIPELINE);
            (0..4).for_each(|number| write_input(&world, number));
            world.set("NEXUS_FAIL_POINT", &format!("{point}:{passing}"));
            let died = run(&world, &pipeline);
            assert!(died.said().contains("fail point reached"), "{point}:{passing} was not reached:\n{}", died.said());
            world.set("NEXUS_FAIL_POINT", "");
            run(&world, &pipeline).expect_code(0);
            check(&world, 4);
            assert_eq!(evolved(&world), ["size int64", "note string"], "{point}:{passing}");
        }
    }
}

#[test]
fn a_column_that_a_query_has_already_stays_rescued() {
    let world = World::new();
    let text = PIPELINE.replace("SELECT * FROM bronze.rows", "SELECT *, 1 AS size FROM bronze.rows");
    let pipeline = world.file("evolve.yaml", &text);
    (0..4).for_each(|number| write_input(&world, number));
    let said = run(&world, &pipeline).expect_code(0).said();
    assert!(said.contains("cannot become a column"), "{said}");
    let sql = "SELECT count(*) FROM bronze.rows WHERE json_exists(_rescued, '$.size')";
    assert_eq!(ask(&world.path("lake"), sql), [json!([3 * (ROWS + 2)])]);
    // Another that stands in nobody's way becomes one.
    let sql = "SELECT count(*) FROM bronze.rows WHERE note = 'n' || id";
    assert_eq!(ask(&world.path("lake"), sql), [json!([ROWS + 2])]);
    world.nexus(&["audit", "evolve.yaml"]).expect_code(0);
}

#[test]
fn a_postgres_table_gets_the_columns_if_it_may_be_altered() {
    for create in [true, false] {
        let world = World::new().with_postgres();
        let text = PIPELINE.replace(
            "    unique:",
            &format!("    postgres: {{ url: pg, table: rows, key: [id], create: {create} }}\n    unique:"),
        ) + "secrets: { pg: { env: DATABASE_URL } }\n";
        // The first run makes the table.
        let pipeline = world.file("evolve.yaml", &text.replace("create: false", "create: true"));
        write_input(&world, 0);
        run(&world, &pipeline).expect_code(0);
        world.file("evolve.yaml", &text);
        (1..4).for_each(|number| write_input(&world, number));
        let said = run(&world, &pipeline).expect_code(0).said();
        assert_eq!(said.contains("cannot become a column"), !create, "{said}");
        let sql = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'rows' AND column_name = 'size'";
        assert_eq!(world.ask_postgres(sql), [json!([u8::from(create)])]);
        let rescued = "(_rescued::json->>'size')::int";
        let size = if create { format!("coalesce(size, {rescued})") } else { rescued.to_owned() };
        let sql = format!("SELECT count(*), sum({size})::int FROM rows");
        let sum: usize = (ROWS..4 * ROWS).sum();
        assert_eq!(world.ask_postgres(&sql), [json!([4 * ROWS, sum])]);
        world.nexus(&["audit", "evolve.yaml"]).expect_code(0);
    }
}
