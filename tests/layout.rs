//! How the rows of a table lie in its files: sorted, with filters, and those of many epochs in one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::servers::script;
use crate::world::{World, ask, files, is_table_file, table_files};

/// Rows of each file of input.
const ROWS: usize = 50;

/// Writes files of input, each an epoch.
fn write_input(world: &World, numbers: std::ops::Range<usize>) {
    world.input(numbers, ROWS, |n| {
        format!(r#"{{"n":{},"site":"site-{}","id":"device-{n}"}}"#, n * 7919 % 10_007, n % 3)
    });
}

fn pipeline(world: &World, table: &str, follow: bool) -> PathBuf {
    let text = format!(
        "name: layout
lake: ./lake
commit: {{ every: 100ms, bytes: 1B }}
sources:
  rows:
    file: {{ path: \"in-*.json\", follow: {follow} }}
    format: json
    columns: {{ n: int64, site: string, id: string }}
bronze:
  plain: {{ sql: SELECT n FROM rows }}
  rows:
    sql: SELECT n, site, id FROM rows
{table}"
    );
    world.file("layout.yaml", &text)
}

fn paths(table: &Path) -> Vec<String> {
    let found = files(table);
    found.keys().filter(|path| is_table_file(path)).map(|path| table.join(path).display().to_string()).collect()
}

fn counts(lake: &Path) -> Vec<Value> {
    ask(lake, "SELECT count(*), count(DISTINCT id), sum(n) FROM bronze.rows")
}

fn expected(files: usize) -> [Value; 1] {
    let rows = files * ROWS;
    [json!([rows, rows, (0..rows).map(|n| n * 7919 % 10_007).sum::<usize>()])]
}

fn audit(world: &World, file: &Path) -> Value {
    let finished = world.nexus(&["audit", &file.display().to_string(), "--json"]).expect_code(0);
    serde_json::from_str(&finished.stdout).expect("the audit is JSON")
}

#[test]
fn other_readers_see_the_order_the_filters_and_the_statistics() {
    let world = World::new();
    write_input(&world, 0..6);
    let options = "    partition_by: [site]
    order_by: [n desc, id]
    parquet: { bloom: [id], statistics: chunk, dictionary: 0B }
    roll: { size: 1GiB, age: 1h }
";
    world.run(&pipeline(&world, options, false), &[]);
    let lake = world.path("lake");
    assert_eq!(counts(&lake), expected(6));
    let found = paths(&lake.join("bronze/rows"));
    assert_eq!(found.len(), 3, "one file a partition: {found:?}");
    let args: Vec<&str> = ["sorting"].into_iter().chain(found.iter().map(String::as_str)).collect();
    for line in script("ask.py", &args, &[]).lines() {
        let told: Value = serde_json::from_str(line).expect("ask.py prints JSON");
        assert_eq!(told[1], json!([["n", true, true], ["id", false, false]]));
    }
    let all = lake.join("bronze/rows/**/*.parquet").display().to_string();
    for path in &found {
        let unsorted = format!(
            "SELECT count(*) FROM (SELECT n, lag(n) OVER (ORDER BY file_row_number) AS before
             FROM read_parquet('{path}', file_row_number = true)) WHERE n > before"
        );
        assert_eq!(ask(&lake, &unsorted), [json!([0])], "{path}");
    }
    // The filters of two of the three files exclude a value, and none excludes it where it is.
    let probe =
        format!("SELECT count(*) FILTER (bloom_filter_excludes) FROM parquet_bloom_probe('{all}', 'id', 'device-77')");
    assert_eq!(ask(&lake, &probe), [json!([2])]);
    let metadata = format!(
        "SELECT DISTINCT path_in_schema, stats_min_value IS NOT NULL, bloom_filter_length > 0, dictionary_page_offset IS NULL
         FROM parquet_metadata('{all}') ORDER BY 1"
    );
    assert_eq!(ask(&lake, &metadata), [json!(["id", true, true, true]), json!(["n", true, null, true])]);
}

#[test]
fn small_epochs_become_one_file() {
    let world = World::new();
    write_input(&world, 0..40);
    let file = pipeline(&world, "    roll: { size: 1GiB, age: 1h }\n", false);
    let report = world.run(&file, &[]);
    assert!(report["epochs"].as_u64() >= Some(40), "{report}");
    let lake = world.path("lake");
    assert_eq!((table_files(&lake, "bronze/plain"), table_files(&lake, "bronze/rows")), (40, 1));
    assert_eq!(counts(&lake), expected(40));
    assert_eq!(audit(&world, &file)["sinks"]["bronze.rows/parquet"]["rows"], 2000);
    // By their size, several are written while the run goes on.
    let world = World::new();
    write_input(&world, 0..40);
    let file = pipeline(&world, "    roll: { size: 8KiB, age: 1h }\n", false);
    world.run(&file, &[]);
    let lake = world.path("lake");
    let files = table_files(&lake, "bronze/rows");
    assert!((2..20).contains(&files), "{files} files");
    assert_eq!(counts(&lake), expected(40));
    audit(&world, &file);
}

#[test]
fn rows_that_wait_are_seen_when_they_are_old_and_when_the_run_ends() {
    let world = World::new();
    write_input(&world, 0..3);
    let lake = world.path("lake");
    let waiting = || files(&lake.join("_nexus/layout/rolls/bronze.rows")).len();
    let seen = || table_files(&lake, "bronze/rows");
    // Nothing more is read, and yet the oldest row waits for no longer than it may.
    let file = pipeline(&world, "    roll: { age: 3s }\n", true);
    let mut running = world.start(&["run", &file.display().to_string()]);
    running.until("rows wait", || waiting() > 0);
    assert_eq!(seen(), 0, "rows are seen before their time");
    running.until("they are written", || seen() == 1);
    running.signal("TERM");
    running.wait().expect_code(0);
    assert_eq!(counts(&lake), expected(3));

    // A run that is told to stop leaves nothing waiting.
    write_input(&world, 3..5);
    let file = pipeline(&world, "    roll: { age: 1h }\n", true);
    let mut running = world.start(&["run", &file.display().to_string()]);
    running.until("rows wait", || waiting() >= 2);
    running.signal("TERM");
    running.wait().expect_code(0);
    assert_eq!((seen(), waiting()), (2, 0));
    assert_eq!(counts(&lake), expected(5));
    audit(&world, &file);
}

#[test]
fn rows_that_wait_survive_a_crash_and_a_file_that_gathers_no_more() {
    let mut world = World::new();
    write_input(&world, 0..20);
    let file = pipeline(&world, "    order_by: [id]\n    roll: { size: 1GiB }\n", false);
    world.set("NEXUS_FAIL_POINT", "after_committed_note:10");
    assert_eq!(world.nexus(&["run", &file.display().to_string()]).status.code(), None);
    world.set("NEXUS_FAIL_POINT", "");
    let lake = world.path("lake");
    assert_eq!(table_files(&lake, "bronze/rows"), 0);
    assert!(audit(&world, &file)["sinks"]["bronze.rows/parquet"]["waiting"].as_u64() >= Some(400));
    let file = pipeline(&world, "", false);
    world.run(&file, &[]);
    assert_eq!(counts(&lake), expected(20));
    assert!(files(&lake.join("_nexus/layout/rolls")).is_empty(), "something waits for ever");
    audit(&world, &file);
    // Nothing is left to do.
    let said = world.nexus(&["run", &file.display().to_string()]).expect_code(0).said();
    assert!(said.contains("nothing new"), "{said}");
}

#[test]
fn a_table_that_is_gathered_on_s3_has_few_files() {
    let world = World::new().with_aws();
    let bucket = world.bucket("rolled");
    write_input(&world, 0..12);
    let file =
        pipeline(&world, "    partition_by: [site]\n    order_by: [n]\n    roll: { size: 6KiB, age: 1h }\n", false);
    let text = std::fs::read_to_string(&file).expect("it has just been written");
    let file = world.file("layout.yaml", &text.replace("./lake", &format!("s3://{bucket}/lake")));
    world.run(&file, &[]);
    audit(&world, &file);
    let lake = world.download(&[&bucket]).join("lake");
    assert_eq!(counts(&lake), expected(12));
    let found = table_files(&lake, "bronze/rows");
    assert!(found >= 6 && found < table_files(&lake, "bronze/plain") * 2, "{found} files");
}
