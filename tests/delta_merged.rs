//! Small files of Delta tables are merged: readers of the log see each row once in every version, whenever the process
//! dies, and what another writer takes out meanwhile does not come back.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::delta::{ask, audit, query};
use crate::world::{World, files, table_files};

/// Files of input, each an epoch, and rows of each. Behind so many the version that merges has a checkpoint.
const FILES: usize = 9;
const ROWS: usize = 12;

/// The sinks under test, and the folders that the files of each lie in.
const SINKS: [(&str, usize); 2] = [("bronze.events/parquet", 1), ("silver.events/parquet", 3)];

/// The checkpoint of the version that merges.
const CHECKPOINT: &str = "lake/silver/events/_delta_log/00000000000000000010.checkpoint.parquet";

/// Where a process dies: before and behind each step that a plain table does not have, and its neighbours.
const DIES: [&str; 8] = [
    "after_record:1",
    "after_file:2",
    "before_log_entry:1",
    "after_log_entry:1",
    "before_log_entry:2",
    "after_log_entry:2",
    "after_log_checkpoint:1",
    "before_committed_note:2",
];

/// Processes that die at the same time.
const AT_ONCE: usize = 3;

fn write_input(world: &World, numbers: std::ops::Range<usize>) {
    world.input(numbers, ROWS, |n| format!(r#"{{"n":{n},"site":"{}","big":{n}}}"#, ["", "re no", "yuma"][n % 3]));
}

fn pipeline(world: &World, lake: &str) -> String {
    let text = format!(
        "name: delta
lake: {lake}
table_format: delta
commit: {{ every: 1h, bytes: 1B }}
sources:
  events:
    file: {{ path: 'in-*.json' }}
    format: json
    columns: {{ n: int64 not null, site: string, big: uint64 }}
bronze:
  events: {{ sql: \"SELECT n, site, big FROM events\" }}
silver:
  events: {{ sql: \"SELECT n, site, big FROM bronze.events\", partition_by: [site], order_by: [n desc] }}
"
    );
    world.file("delta.yaml", &text).display().to_string()
}

/// Gives a world whose pipeline has run on a disk, and its file.
fn grown() -> (World, String) {
    let world = World::new();
    write_input(&world, 0..FILES);
    let file = pipeline(&world, "./lake");
    world.run(Path::new(&file), &[]);
    (world, file)
}

fn compact(world: &World, file: &str, more: &[&str]) -> String {
    world.nexus(&[&["compact", file], more].concat()).expect_code(0).said()
}

/// Gives the versions of a table below the lake, each with its rows.
fn versions(world: &World, lake: &str, table: &str) -> Vec<Value> {
    ask("versions", &format!("{lake}/{table}"), "n", world)
}

/// Gives the rows of the newest version.
fn newest(world: &World, lake: &str, table: &str) -> Value {
    ask("newest", &format!("{lake}/{table}"), "n", world).pop().expect("there is a version")
}

/// What `nexus query` sees, which must not depend on what is under way.
fn queried(world: &World, file: &str) -> String {
    let sql = "SELECT count(*), count(DISTINCT n), sum(n), sum(big), 's' AS x FROM silver.events
        UNION ALL SELECT count(*), count(DISTINCT n), sum(n), sum(big), 'b' FROM bronze.events ORDER BY x";
    query(world, file, sql)
}

/// Holds an audit against what is expected: whole, and so many files and rows that are there, and rows that were taken out.
fn check_audit(world: &World, file: &str, sink: &str, expected: (usize, usize, usize)) {
    let found = audit(world, file);
    let number = |of: &str| found["sinks"][sink][of].as_u64().unwrap_or(0) as usize;
    assert_eq!(found["whole"], true, "{found:#}");
    assert_eq!((number("files"), number("rows"), number("taken_out")), expected, "{found:#}");
}

fn numbers(numbers: impl IntoIterator<Item = usize>) -> Value {
    let numbers: Vec<usize> = numbers.into_iter().collect();
    json!(numbers)
}

#[test]
fn each_version_stays_what_it_was() {
    let (world, file) = grown();
    let (lake, checkpoint) = (world.path("lake").display().to_string(), world.path(CHECKPOINT));
    let seen = queried(&world, &file);
    assert!(!checkpoint.exists());
    let before = SINKS.map(|(sink, _)| versions(&world, &lake, &table_of(sink)));
    let said = compact(&world, &file, &["--dry-run"]);
    assert!(said.contains("bronze.events") && said.contains("nothing was changed"), "{said}");
    compact(&world, &file, &["--report", "report.json"]);
    let report = std::fs::read_to_string(world.path("report.json")).expect("it was written");
    let report: Value = serde_json::from_str(&report).expect("a report is JSON");
    assert!(checkpoint.exists());
    assert_eq!(queried(&world, &file), seen);
    for ((sink, folders), before) in SINKS.into_iter().zip(before) {
        let (table, merged) = (table_of(sink), &report["tables"][sink.trim_end_matches("/parquet")]);
        let told = ["files_before", "files_after", "rows"].map(|key| merged[key].as_u64().unwrap_or(0) as usize);
        assert_eq!(told, [FILES * folders, folders, FILES * ROWS]);
        let mut expected = before.clone();
        let last = before.last().expect("there are versions");
        expected.push(json!([last[0].as_u64().map(|version| version + 1), merged_in(&world, sink), last[2]]));
        assert_eq!(versions(&world, &lake, &table), expected);
        assert_eq!(table_files(Path::new(&lake), &table), (FILES + 1) * folders, "older versions need their files");
        check_audit(&world, &file, sink, (folders, FILES * ROWS, 0));
    }
    assert!(compact(&world, &file, &[]).contains("no small files"));

    // Another reader, which reads what the log tells of files; the order within them is kept.
    let rows = ask("lake", &lake, "SELECT max(n), count(big) FROM silver.events GROUP BY site ORDER BY ALL", &world);
    assert_eq!(rows, [105, 106, 107].map(|n| json!([n, FILES * ROWS / 3])));
    let unsorted =
        "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY filename ORDER BY file_row_number) AS before
        FROM read_parquet('{}/silver/events/**/delta-2-*.parquet', file_row_number = true, filename = true))
        WHERE n > before";
    assert_eq!(ask("lake", &lake, &unsorted.replace("{}", &lake), &world), [json!([0])]);

    // The pipeline goes on; what comes is merged with what was. Then another writer ends the older versions.
    write_input(&world, FILES..FILES + 4);
    world.run(Path::new(&file), &[]);
    compact(&world, &file, &[]);
    let all = numbers(0..(FILES + 4) * ROWS);
    for (sink, folders) in SINKS {
        let table = table_of(sink);
        assert_eq!(newest(&world, &lake, &table), all);
        check_audit(&world, &file, sink, (folders, (FILES + 4) * ROWS, 0));
        ask("foreign", &format!("{lake}/{table}"), "vacuum", &world);
        assert_eq!(table_files(Path::new(&lake), &table), folders);
        assert_eq!(newest(&world, &lake, &table), all);
        check_audit(&world, &file, sink, (folders, (FILES + 4) * ROWS, 0));
    }
}

#[test]
fn a_version_from_before_can_be_restored() {
    let (world, file) = grown();
    let lake = world.path("lake").display().to_string();
    compact(&world, &file, &[]);
    let (sink, folders) = SINKS[1];
    ask("foreign", &format!("{lake}/silver/events"), "restore", &world);
    assert_eq!(newest(&world, &lake, "silver/events"), numbers(0..FILES * ROWS));
    check_audit(&world, &file, sink, (FILES * folders, FILES * ROWS, FILES * ROWS));
    compact(&world, &file, &[]);
    assert_eq!(newest(&world, &lake, "silver/events"), numbers(0..FILES * ROWS));
    check_audit(&world, &file, sink, (folders, FILES * ROWS, FILES * ROWS));
}

fn table_of(sink: &str) -> String {
    sink.trim_end_matches("/parquet").replace('.', "/")
}

/// Gives the epoch that has merged the files of a sink.
fn merged_in(world: &World, sink: &str) -> Option<u64> {
    let folder = world.path("lake/_nexus/delta/epochs");
    let records = files(&folder).into_keys().map(|path| std::fs::read(folder.join(path)).expect("a record is there"));
    let mut records = records.map(|json| serde_json::from_slice::<Value>(&json).expect("a record is JSON"));
    records.find(|record| record["sinks"][sink]["rewritten"].is_u64())?["epoch"].as_u64()
}

/// Has a compaction die, and looks at what is there then and after it was done again.
fn dies(world: &mut World, (file, lake): (&str, &str), number: usize, point: &str) {
    let seen = queried(world, file);
    world.set("NEXUS_FAIL_POINT", point);
    let died = world.nexus(&["compact", file]);
    assert!(died.status.code().is_none() && died.stderr.contains("fail point reached"), "{point}: {}", died.said());
    world.set("NEXUS_FAIL_POINT", "");
    let all = numbers(0..FILES * ROWS);
    assert_eq!(queried(world, file), seen, "{point}: after the crash");
    assert_eq!(audit(world, file)["whole"], true, "{point}");
    for (sink, _) in SINKS {
        assert_eq!(newest(world, lake, &table_of(sink)), all, "{point}: after the crash");
    }
    // What is recorded is done again by whatever comes next.
    let more = number % 2;
    write_input(world, FILES..FILES + more);
    let verbs: &[&str] = if more == 0 { &["compact"] } else { &["run", "compact"] };
    verbs.iter().for_each(|verb| drop(world.nexus(&[verb, file]).expect_code(0)));
    let rows = (FILES + more) * ROWS;
    for (sink, folders) in SINKS {
        assert_eq!(newest(world, lake, &table_of(sink)), numbers(0..rows), "{point}");
        check_audit(world, file, sink, (folders, rows, 0));
    }
}

#[test]
fn killed_at_every_step_of_the_log_each_row_is_there_once() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, point)) = DIES.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
                    let (mut world, file) = grown();
                    let lake = world.path("lake").display().to_string();
                    dies(&mut world, (&file, &lake), number, point);
                }
            });
        }
    });
}

#[test]
fn killed_on_an_object_store_each_row_is_there_once() {
    let mut world = World::new().with_aws();
    let lake = format!("s3://{}/lake", world.bucket("delta-merged"));
    write_input(&world, 0..FILES);
    let file = pipeline(&world, &lake);
    world.run(Path::new(&file), &[]);
    dies(&mut world, (&file, &lake), 1, "before_log_entry:2");
}

/// Has another writer do something while a compaction of a table stands still behind its record.
fn is_overtaken(point: &str, what: &str, deleted: impl Fn(usize) -> bool, expected: (usize, usize, usize)) {
    let (mut world, file) = grown();
    let lake = world.path("lake").display().to_string();
    let table = format!("{lake}/silver/events");
    world.set("NEXUS_FAIL_POINT", &format!("{point}:1:stop"));
    let mut compaction = world.start(&["compact", &file, "--table", "silver.events"]);
    world.set("NEXUS_FAIL_POINT", "");
    compaction.until_stopped();
    ask("foreign", &table, what, &world);
    compaction.signal("CONT");
    let said = compaction.wait().expect_code(0).said();
    assert!(said.contains("another writer has taken out a file that was merged"), "{said}");
    let rows = numbers((0..FILES * ROWS).filter(|n| !deleted(*n)));
    assert_eq!(newest(&world, &lake, "silver/events"), rows, "{what}");
    let count = rows.as_array().map_or(0, Vec::len);
    assert!(query(&world, &file, "SELECT count(*) FROM silver.events").contains(&format!("| {count} ")), "{what}");
    check_audit(&world, &file, "silver.events/parquet", expected);

    // What is left can be merged, and vacuumed.
    compact(&world, &file, &["--table", "silver.events"]);
    ask("foreign", &table, "vacuum", &world);
    write_input(&world, FILES..FILES + 1);
    world.run(Path::new(&file), &[]);
    let rows = numbers((0..(FILES + 1) * ROWS).filter(|n| *n >= FILES * ROWS || !deleted(*n)));
    assert_eq!(newest(&world, &lake, "silver/events"), rows, "{what}");
    assert_eq!(audit(&world, &file)["whole"], true, "{what}");
}

#[test]
fn rows_that_another_writer_deletes_meanwhile_do_not_come_back() {
    // Of one folder some files are rewritten without these rows; those of the others are merged.
    let deleted = |n: usize| n < 30 && n % 3 == 2;
    let taken_out = ROWS / 3 * 3;
    is_overtaken(
        "after_record",
        "n < 30 AND site = 'yuma'",
        deleted,
        (2 + FILES - 3, FILES * ROWS - taken_out, taken_out),
    );
}

#[test]
fn files_that_another_writer_merges_meanwhile_are_not_doubled() {
    is_overtaken("before_log_entry", "compact", |_| false, (0, 0, FILES * ROWS));
}
