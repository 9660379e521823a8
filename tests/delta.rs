//! Delta tables, as deltalake for Python reads them: each version holds whole epochs, on a disk and on S3, beside other
//! writers, with columns that come later.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::servers::script;
use crate::world::{Finished, World, files};

/// Files of the first run, each an epoch: enough for a checkpoint.
const FILES: usize = 12;

/// Rows of a file.
const ROWS: usize = 5;

/// The query of the table under test.
const QUERY: &str = "SELECT n, site, ts FROM events";

fn write_files(world: &World, from: usize, to: usize) {
    for file in from..to {
        let mut lines = String::new();
        for n in file * ROWS..(file + 1) * ROWS {
            let _ = writeln!(lines, r#"{{"n":{n},"site":"a/b c-{}","ts":"2026-11-01T00:00:{:02}Z"}}"#, n % 3, n % 60);
        }
        world.file(&format!("events-{file:03}.json"), &lines);
    }
}

fn pipeline(world: &World, lake: &str, query: &str, table_format: &str) -> String {
    let text = format!(
        "name: delta
lake: {lake}
table_format: {table_format}
commit: {{ every: 1h, bytes: 1B }}
sources:
  events:
    file: {{ path: 'events-*.json' }}
    format: json
    columns: {{ n: int64 not null, site: string, ts: timestamp }}
    event_time: {{ column: ts, lateness: 1s }}
silver:
  events:
    sql: {query}
    partition_by: [site, hour(ts)]
gold:
  sites:
    sql: SELECT site, count(*) AS events, CAST(max(n) AS INT UNSIGNED) AS last FROM silver.events GROUP BY site
    postgres: {{ url: pg, table: sites, key: [site] }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    );
    world.file("delta.yaml", &text).display().to_string()
}

/// Asks a Delta table by deltalake for Python.
pub fn ask(verb: &str, folder: &str, what: &str, world: &World) -> Vec<Value> {
    let names = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];
    let known = names.iter().filter(|name| world.has(name));
    let env: Vec<_> = known.map(|name| ((*name).to_owned(), world.env(name).to_owned())).collect();
    let rows = script("ask.py", &[verb, folder, what], &env);
    rows.lines().map(|row| serde_json::from_str(row).expect("ask.py prints JSON")).collect()
}

/// Gives the rows that a query finds, as texts.
pub fn query(world: &World, file: &str, sql: &str) -> String {
    world.nexus(&["query", file, sql]).expect_code(0).stdout
}

pub fn audit(world: &World, file: &str) -> Value {
    let found: Finished = world.nexus(&["audit", file, "--json"]).expect_code(0);
    serde_json::from_str(&found.stdout).expect("an audit is JSON")
}

/// Gives how many rows of a sink each recorded epoch has.
fn rows_by_epoch(lake: &Path, sink: &str) -> BTreeMap<u64, u64> {
    let records = lake.join("_nexus/delta/epochs");
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(records.join(path)).expect("a record is there")).expect("it is JSON")
    };
    let records: Vec<Value> = files(&records).keys().map(|path| read(path)).collect();
    let rows = records.iter().filter_map(|record| {
        let rows = record["sinks"][sink]["rows"].as_u64()?;
        Some((record["epoch"].as_u64()?, rows))
    });
    rows.filter(|(_, rows)| *rows > 0).collect()
}

/// Holds each version of the table against the commit records: version by version one more epoch, as a whole.
fn check_versions(versions: &[Value], rows: &BTreeMap<u64, u64>) {
    assert_eq!(versions[0], json!([0, null, []]), "a table begins without rows");
    let mut expected = 0;
    for (at, (epoch, rows)) in rows.iter().enumerate() {
        expected += rows;
        let whole: Vec<u64> = (0..expected).collect();
        assert_eq!(versions[at + 1], json!([at + 1, epoch, whole]));
    }
    assert_eq!(versions.len(), rows.len() + 1);
    assert!(rows.len() >= FILES, "too few epochs to prove anything: {rows:?}");
}

/// Runs a pipeline whose epochs are files; `local` gives a folder with the lake.
fn each_version_holds_whole_epochs(world: &World, lake: &str, local: impl Fn() -> std::path::PathBuf) {
    write_files(world, 0, FILES);
    let file = pipeline(world, lake, QUERY, "delta");
    let query_empty = query(world, &file, "SELECT count(*) FROM silver.events");
    assert!(query_empty.contains("| 0 "), "a table that was never written has no rows:\n{query_empty}");
    world.run(Path::new(&file), &[]);
    let table = format!("{lake}/silver/events");
    check_versions(&ask("versions", &table, "n", world), &rows_by_epoch(&local(), "silver.events/parquet"));
    let log: Vec<_> = files(&local().join("silver/events/_delta_log")).into_keys().collect();
    let checkpoint = |name: &str| log.iter().any(|path| path.ends_with(name));
    assert!(checkpoint("00000000000000000010.checkpoint.parquet") && checkpoint("_last_checkpoint"), "{log:?}");
    assert_eq!(audit(world, &file)["whole"], true);

    // What an aggregate without a window has changed is there epoch by epoch, the newest row last.
    let sites = ask("versions", &format!("{lake}/gold/sites"), "last", world);
    assert_eq!(sites.last().and_then(|newest| newest[2].as_array()?.last().cloned()), Some(json!(FILES * ROWS - 1)));
    let newest = query(world, &file, "SELECT sum(events), max(last) FROM gold.sites");
    assert!(newest.contains(&format!("| {} ", FILES * ROWS)) && newest.contains("| 59 "), "{newest}");

    // Another column comes with the first version that has it; those before stay as they are.
    write_files(world, FILES, FILES + 1);
    let file = pipeline(world, lake, "SELECT n, site, ts, n * 2 AS twice FROM events", "delta");
    world.run(Path::new(&file), &[]);
    let twice = ask("versions", &table, "n", world);
    assert_eq!(twice.len(), FILES + 2);
    let sum = query(world, &file, "SELECT count(*), count(twice), sum(twice) FROM silver.events");
    let expected: usize = (FILES * ROWS..(FILES + 1) * ROWS).map(|n| 2 * n).sum();
    assert!(sum.contains(&format!("| {expected} ")) && sum.contains("| 65 "), "{sum}");
    assert_eq!(audit(world, &file)["whole"], true);
}

#[test]
fn each_version_holds_whole_epochs_on_a_disk() {
    let world = World::new().with_postgres();
    let lake = world.path("lake");
    each_version_holds_whole_epochs(&world, &lake.display().to_string(), || lake.clone());
}

#[test]
fn each_version_holds_whole_epochs_on_s3() {
    let world = World::new().with_aws().with_postgres();
    let bucket = world.bucket("delta");
    each_version_holds_whole_epochs(&world, &format!("s3://{bucket}/a/lake"), || {
        world.download(&[&bucket]).join("a/lake")
    });
}

#[test]
fn epochs_that_are_gathered_come_as_one_version() {
    let world = World::new().with_postgres();
    let lake = world.path("lake");
    write_files(&world, 0, FILES);
    let file = pipeline(&world, &lake.display().to_string(), QUERY, "delta");
    let text = std::fs::read_to_string(&file).expect("it has just been written");
    let rolling = "    roll: { size: 64MiB, age: 1h }\n    partition_by";
    let file = world.file("delta.yaml", &text.replacen("    partition_by", rolling, 1));
    world.run(&file, &[]);
    let versions = ask("versions", &lake.join("silver/events").display().to_string(), "n", &world);
    let all: Vec<usize> = (0..FILES * ROWS).collect();
    assert_eq!((versions.len(), &versions[1][2]), (2, &json!(all)));
    assert_eq!(audit(&world, &file.display().to_string())["whole"], true);
}

#[test]
fn other_writers_append_merge_and_add_columns() {
    let world = World::new().with_postgres();
    let lake = world.path("lake").display().to_string();
    write_files(&world, 0, 4);
    let file = pipeline(&world, &lake, QUERY, "delta");
    world.run(Path::new(&file), &[]);
    let table = format!("{lake}/silver/events");
    for what in ["append", "compact", "column"] {
        ask("foreign", &table, what, &world);
    }
    write_files(&world, 4, FILES);
    world.run(Path::new(&file), &[]);
    let newest = ask("versions", &table, "n", &world).pop().expect("there are versions");
    let mut expected: Vec<usize> = (0..FILES * ROWS).chain(0..4 * ROWS).collect();
    expected.sort_unstable();
    assert_eq!(newest[2], json!(expected));
    let found = query(&world, &file, "SELECT count(*) FROM silver.events");
    assert!(found.contains("| 80 "), "the log tells what is in the table, and not the folder:\n{found}");
    let audit = audit(&world, &file);
    let sink = &audit["sinks"]["silver.events/parquet"];
    assert_eq!((&audit["whole"], &sink["taken_out"]), (&json!(true), &json!(20)), "{audit:#}");
}

#[test]
fn a_table_stays_what_it_is() {
    let world = World::new().with_postgres();
    let lake = world.path("lake").display().to_string();
    write_files(&world, 0, 1);
    world.run(Path::new(&pipeline(&world, &lake, QUERY, "parquet")), &[]);
    let file = pipeline(&world, &lake, QUERY, "delta");
    let said = world.nexus(&["check", &file]).expect_code(2).said();
    assert!(said.contains("N0801") && said.contains("table_format: was parquet, is now delta"), "{said}");
    world.nexus(&["run", &file]).expect_code(1);

    // Without the state, the files themselves tell.
    std::fs::remove_dir_all(world.path("lake/_nexus")).expect("the state is there");
    let said = world.nexus(&["run", &file]).expect_code(1).said();
    assert!(said.contains("and no Delta log: they would not be in the table"), "{said}");
}
