//! A table's columns change between two runs: what is added is NULL in older rows for every reader, state goes on where
//! it stays valid, also behind a crash, and what older rows would not survive is refused before anything is touched.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::servers::script;
use crate::world::{World, ask, files};

const PIPELINE: &str = "name: schema
lake: ./lake
commit: { every: 1h, bytes: 1B }
sources:
  rows:
    file: { path: in-*.json }
    format: json
    columns: { id: int64 not null, site: string, ts: timestamp, v: int32, w: float32, d: 'decimal(6, 2)' }
    event_time: { column: ts, lateness: 3h }
bronze:
  rows: { from: rows }
silver:
  rows:
    sql: SELECT id, site, ts, v, w, d FROM bronze.rows WHERE v IS NOT NULL
    unique: { key: [id], within: 1d }
    partition_by: [site]
    postgres: { url: pg, table: rows, append: true }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS n, sum(id) AS v FROM silver.rows GROUP BY 1, 2
secrets:
  pg: { env: DATABASE_URL }
";

/// What the second version of the file has that the first has not.
const ADDED: [(&str, &str); 3] = [
    (
        "v: int32, w: float32, d: 'decimal(6, 2)' }",
        "v: int64, w: float32, d: 'decimal(12, 3)', extra: string not null }",
    ),
    ("ts, v, w, d FROM", "extra, ts, v, w, d, length(extra) AS long, 1 AS one FROM"),
    ("sum(id) AS v FROM", "sum(id) AS v, upper(site) AS big FROM"),
];

/// Gives the pipeline with some of its text replaced.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(PIPELINE.to_owned(), |text, (was, is)| {
        assert!(text.contains(was), "the pipeline does not hold {was}");
        text.replace(was, is)
    })
}

/// Writes one file of five rows, each of which comes again in the next file.
fn write_input(world: &World, number: usize, extra: bool) {
    let line = |id: usize| {
        let mut row = json!({
            "id": id, "site": format!("s{}", id % 2), "ts": format!("2026-11-01T{:02}:10:00Z", id / 4), "v": id,
            "w": 0.5, "d": "1.25",
        });
        if extra {
            row["extra"] = json!("x".repeat(id % 3));
        }
        row.to_string() + "\n"
    };
    let ids = (number * 5).saturating_sub(5)..number * 5 + 5;
    world.file(&format!("in-{number}.json"), &ids.map(line).collect::<String>());
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

/// Runs the first version until its third epoch with rows is recorded, and not committed.
fn killed_with_the_old_columns(world: &mut World) -> PathBuf {
    let pipeline = world.file("schema.yaml", PIPELINE);
    for number in 0..3 {
        write_input(world, number, false);
    }
    world.set("NEXUS_FAIL_POINT", "after_record:3");
    assert_eq!(world.nexus(&["run", text(&pipeline)]).status.code(), None, "the process did not die");
    world.set("NEXUS_FAIL_POINT", "");
    pipeline
}

/// The rows of silver: what the query gives over all input, each row once, with NULL where the first version wrote it.
fn silver(rows: usize, old: usize) -> Vec<Value> {
    let row = |id: usize| {
        let (extra, long, one) = match id < old {
            true => (Value::Null, Value::Null, Value::Null),
            false => (json!("x".repeat(id % 3)), json!(id % 3), json!(1)),
        };
        json!([id, format!("s{}", id % 2), id, extra, long, one])
    };
    (0..rows).map(row).collect()
}

fn check_windows(lake: &Path) {
    let wrong = "WITH expected AS (SELECT date_trunc('hour', ts) AS hour, site, count(*) AS n, sum(id)::BIGINT AS v
                 FROM silver.rows GROUP BY 1, 2)
                 SELECT * FROM expected FULL JOIN gold.hours USING (hour, site)
                 WHERE expected.n IS DISTINCT FROM hours.n OR expected.v IS DISTINCT FROM hours.v";
    assert_eq!(ask(lake, wrong), Vec::<Value>::new());
    assert_eq!(ask(lake, "SELECT DISTINCT big IS NULL OR big = upper(site) FROM gold.hours"), [json!([true])]);
}

#[test]
fn columns_are_added_beside_state_that_goes_on() {
    let mut world = World::new().with_postgres();
    let pipeline = killed_with_the_old_columns(&mut world);
    let lake = world.path("lake");
    for number in 3..6 {
        write_input(&world, number, true);
    }
    world.file("schema.yaml", &changed(&ADDED));
    world.nexus(&["check", text(&pipeline)]).expect_code(0);
    // Killed once more: the record with the new columns is written, and nothing of it committed.
    world.set("NEXUS_FAIL_POINT", "after_record:1");
    assert_eq!(world.nexus(&["run", text(&pipeline)]).status.code(), None, "the process did not die");
    world.set("NEXUS_FAIL_POINT", "");
    world.run(&pipeline, &[]);
    world.nexus(&["audit", text(&pipeline)]).expect_code(0);

    let expected = silver(30, 15);
    let columns = "id, site, v, extra, long, one";
    assert_eq!(ask(&lake, &format!("SELECT {columns} FROM silver.rows ORDER BY id")), expected);
    assert_eq!(world.ask_postgres(&format!("SELECT {columns} FROM rows ORDER BY id")), expected);
    let folder = lake.join("silver/rows");
    for reader in ["duckdb", "union"] {
        let args: Vec<&str> = ["read", reader, text(&folder)].into_iter().chain(columns.split(", ")).collect();
        let read = script("ask.py", &args, &[]);
        let read: Vec<Value> = read.lines().map(|row| serde_json::from_str(row).expect("ask.py prints JSON")).collect();
        assert_eq!(read, expected, "{reader}");
    }
    check_windows(&lake);
    let sql = "SELECT count(*) AS rows, count(extra) AS extra, sum(v) AS v, sum(d) AS d FROM silver.rows WHERE extra IS NULL \
               OR length(extra) = long";
    let said = world.nexus(&["query", text(&pipeline), sql]).expect_code(0).stdout;
    assert!(said.contains("| 30   | 15    | 435 | 37.500 |"), "{said}");

    let state = world.nexus(&["state", text(&pipeline)]).expect_code(0).stdout;
    for words in ["table silver.rows", "+ extra string", "~ v int64", "~ d decimal(12, 3)", "+ one int64"] {
        assert!(state.contains(words), "`nexus state` does not show {words}:\n{state}");
    }
    // The same file again is no other version.
    write_input(&world, 6, true);
    world.run(&pipeline, &[]);
    let state: Value = serde_json::from_str(&world.nexus(&["state", text(&pipeline), "--json"]).expect_code(0).stdout)
        .expect("the state is JSON");
    let versions = |table: &str| state["state"]["schemas"][table].as_array().map_or(0, Vec::len);
    assert_eq!(["bronze.rows", "silver.rows", "gold.hours"].map(versions), [2, 2, 2]);
}

#[test]
fn what_older_rows_do_not_survive_is_refused_and_nothing_is_touched() {
    let mut world = World::new().with_postgres();
    let pipeline = killed_with_the_old_columns(&mut world);
    let before = files(&world.path("lake"));
    for (was, is, code, words) in [
        ("ts, v, w, d FROM", "ts, v, d FROM", "N0801", vec!["silver.rows", "- w float32: is gone", "another name"]),
        (
            "ts, v, w, d FROM",
            "ts, v, w AS x, d FROM",
            "N0801",
            vec!["- w float32: is gone", "+ x float32: is new", "`AS`"],
        ),
        ("ts, v, w, d FROM", "ts, v::text AS v, w, d FROM", "N0801", vec!["~ v: was int32, is now string", "CAST"]),
        ("w: float32", "w: float64", "N0801", vec!["bronze.rows", "~ w: was float32, is now float64"]),
        ("[site]", "[]", "N0801", vec!["~ partition_by: was [site], is now []"]),
        ("WHERE v IS NOT NULL", "WHERE v > 3", "N0802", vec!["silver.rows", "another query", "--until-idle"]),
        ("count(*) AS n", "count(DISTINCT id) AS n", "N0802", vec!["gold.hours", "another query"]),
        ("key: [id]", "key: [id, site]", "N0802", vec!["silver.rows", "has state"]),
        ("SELECT id, site", "SELECT id + 1 AS id, site", "N0802", vec!["silver.rows", "has state"]),
    ] {
        world.file("schema.yaml", &changed(&[(was, is)]));
        let checked = world.nexus(&["check", text(&pipeline)]).expect_code(2).said();
        let run = world.nexus(&["run", text(&pipeline)]).expect_code(1).said();
        assert!(checked.contains(code), "{was} to {is}:\n{checked}");
        for words in words {
            assert!(checked.contains(words), "`check` of {was} to {is} does not say {words}:\n{checked}");
            assert!(run.contains(words), "`run` of {was} to {is} does not say {words}:\n{run}");
        }
    }
    assert_eq!(files(&world.path("lake")), before, "what was refused was changed");
    // Another name begins anew.
    let renamed = changed(&[("silver:\n  rows:", "silver:\n  lines:"), ("silver.rows GROUP", "silver.lines GROUP")]);
    let said = world.nexus(&["check", text(&world.file("schema.yaml", &renamed))]).expect_code(2).said();
    assert!(said.contains("silver.rows") && said.contains("N0802"), "its state would be lost unseen:\n{said}");
}
