//! Small files are merged: each row is seen once at any time, whenever the process dies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::servers::script;
use crate::world::{World, ask, files, is_table_file, table_files};

/// Files of input, each an epoch, and rows of each.
const FILES: usize = 8;
const ROWS: usize = 30;

/// Where a process dies: at each step that is durable, and between the files of one commit.
const DIES: [&str; 18] = [
    "after_claim:1",
    "before_sweep:1",
    "before_rewrite:2",
    "after_rewrite:1",
    "before_prepare:1",
    "after_prepare:1",
    "before_record:1",
    "after_fence_check:1",
    "after_record:1",
    "before_commit:2",
    "before_file:2",
    "after_file:1",
    "after_file:3",
    "before_removal:1",
    "after_removal:1",
    "after_removal:3",
    "after_commit:1",
    "before_committed_note:1",
];

/// The same on an object store, where more steps are between.
const DIES_ON_S3: [&str; 6] = [
    "after_upload_note:2",
    "after_part:1",
    "after_file:2",
    "before_removal:1",
    "after_removal:2",
    "before_note_removal:1",
];

/// Processes that die at the same time.
const AT_ONCE: usize = 4;

fn write_input(world: &World, numbers: std::ops::Range<usize>) {
    world.input(numbers, ROWS, |n| {
        let site = ["", "reno", "yuma"][n % 3];
        let more = format!(r#""list":[{n},null],"pair":{{"a":{n},"b":"x"}},"map":{{"k{n}":{n}}}"#);
        format!(r#"{{"n":{n},"site":"{site}","ts":"2026-11-01T00:00:00.5Z",{more}}}"#)
    });
}

fn pipeline(world: &World, lake: &str) -> PathBuf {
    let text = format!(
        "name: merged
lake: {lake}
commit: {{ every: 1h, bytes: 1B }}
sources:
  rows:
    file: {{ path: \"in-*.json\" }}
    format: json
    columns:
      n: int64 not null
      site: string
      ts: timestamp
      list: list<int64>
      pair: \"struct<a: int64, b: string>\"
      map: \"map<string, int64>\"
bronze:
  rows: {{ sql: \"SELECT n, site, ts, list, pair, map FROM rows\" }}
silver:
  rows: {{ sql: \"SELECT n, site, ts FROM rows\", partition_by: [site], order_by: [n desc], parquet: {{ bloom: [n] }} }}
"
    );
    world.file("merged.yaml", &text)
}

fn nexus(world: &World, verb: &[&str]) -> String {
    let args: Vec<&str> =
        verb.iter().take(1).copied().chain(["merged.yaml"]).chain(verb.iter().skip(1).copied()).collect();
    world.nexus(&args).expect_code(0).said()
}

/// What `nexus query` sees, which must not depend on what is under way.
fn queried(world: &World) -> String {
    let sql = "SELECT count(*) AS rows, count(DISTINCT n) AS n, sum(n) AS s, 'x' AS x FROM silver.rows
        UNION ALL SELECT count(*), count(DISTINCT n), sum(n), 'y' FROM bronze.rows ORDER BY 4";
    nexus(world, &["query", sql])
}

/// All rows, as DuckDB reads them.
fn rows(lake: &Path) -> Vec<Value> {
    let bronze = "SELECT n, site, ts::VARCHAR, list::VARCHAR, pair::VARCHAR, map::VARCHAR FROM bronze.rows";
    let silver = "SELECT n, coalesce(site, ''), ts::VARCHAR, '', '', '' FROM silver.rows";
    ask(lake, &format!("{bronze} UNION ALL {silver} ORDER BY ALL"))
}

fn folders(lake: &Path, table: &str) -> BTreeMap<String, usize> {
    let mut folders = BTreeMap::new();
    for path in files(&lake.join(table)).keys().filter(|path| is_table_file(path)) {
        *folders.entry(path.parent().map_or_else(String::new, |folder| folder.display().to_string())).or_default() += 1;
    }
    folders
}

#[test]
fn small_files_become_one_of_each_folder() {
    let world = World::new();
    write_input(&world, 0..FILES);
    pipeline(&world, "./lake");
    nexus(&world, &["run"]);
    let lake = world.path("lake");
    let (before, seen) = (rows(&lake), queried(&world));
    assert_eq!(before.len(), 2 * FILES * ROWS);
    assert_eq!((table_files(&lake, "bronze/rows"), table_files(&lake, "silver/rows")), (FILES, 3 * FILES));

    let said = nexus(&world, &["compact", "--dry-run"]);
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(table_files(&lake, "bronze/rows"), FILES);
    let said = world.nexus(&["compact", "merged.yaml", "--table", "silver.row"]).expect_code(1).said();
    assert!(said.contains("did you mean `silver.rows`"), "{said}");

    nexus(&world, &["compact", "--report", "report.json"]);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(world.path("report.json")).expect("a report"))
        .expect("it is JSON");
    let told = |table: &str, key: &str| report["tables"][table][key].as_u64();
    assert_eq!((told("silver.rows", "files_before"), told("silver.rows", "files_after")), (Some(24), Some(3)));
    assert_eq!((told("bronze.rows", "files_before"), told("bronze.rows", "rows")), (Some(8), Some(240)));
    assert_eq!((rows(&lake), queried(&world)), (before, seen));
    assert_eq!(folders(&lake, "bronze/rows"), BTreeMap::from([(String::new(), 1)]));
    assert!(folders(&lake, "silver/rows").values().all(|files| *files == 1));
    nexus(&world, &["audit"]);

    // The order and the filters are kept.
    let silver = lake.join("silver/rows");
    let paths: Vec<String> = files(&silver)
        .keys()
        .filter(|path| is_table_file(path))
        .map(|path| silver.join(path).display().to_string())
        .collect();
    let args: Vec<&str> = ["sorting"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    for line in script("ask.py", &args, &[]).lines() {
        assert_eq!(serde_json::from_str::<Value>(line).expect("JSON")[1], json!([["n", true, true]]), "{line}");
    }
    let unsorted =
        "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY filename ORDER BY file_row_number) AS before
        FROM read_parquet('{}/**/*.parquet', file_row_number = true, filename = true)) WHERE n > before";
    assert_eq!(ask(&lake, &unsorted.replace("{}", &silver.display().to_string())), [json!([0])]);

    // Again there is nothing to do; then the pipeline goes on as if nothing had been.
    assert!(nexus(&world, &["compact"]).contains("no small files"));
    write_input(&world, FILES..FILES + 2);
    nexus(&world, &["run"]);
    assert_eq!(rows(&lake).len(), 2 * (FILES + 2) * ROWS);
    nexus(&world, &["audit"]);
}

/// Gives the world of a pipeline that has run, with a lake and a state of its own.
fn grown() -> World {
    static GROWN: OnceLock<World> = OnceLock::new();
    let model = GROWN.get_or_init(|| {
        let world = World::new();
        write_input(&world, 0..FILES);
        pipeline(&world, "./lake");
        nexus(&world, &["run"]);
        world
    });
    let world = World::new();
    let from = model.path("");
    for path in
        files(&from).keys().filter(|path| path.starts_with("lake") || path.extension().is_some_and(|e| e == "json"))
    {
        let to = world.path(&path.display().to_string());
        std::fs::create_dir_all(to.parent().expect("it lies in a folder")).expect("could not make a folder");
        std::fs::copy(from.join(path), to).expect("could not copy a file");
    }
    pipeline(&world, "./lake");
    world
}

/// Has a compaction die, and looks at what is there then and after it was done again.
fn dies(world: &mut World, number: usize, point: &str, lake: impl Fn(&World) -> PathBuf) {
    let (before, seen) = (rows(&lake(world)), queried(world));
    world.set("NEXUS_FAIL_POINT", point);
    let died = world.nexus(&["compact", "merged.yaml"]);
    assert!(died.status.code().is_none() && died.stderr.contains("fail point reached"), "{point}: {}", died.said());
    world.set("NEXUS_FAIL_POINT", "");
    assert_eq!(queried(world), seen, "{point}: after the crash");
    nexus(world, &["audit"]);
    // What is recorded is done again by whatever comes next.
    let more = number % 2;
    write_input(world, FILES..FILES + more);
    let verbs: &[&str] = if more == 0 { &["compact"] } else { &["run", "compact"] };
    verbs.iter().for_each(|verb| drop(nexus(world, &[verb])));
    nexus(world, &["audit"]);
    let lake = lake(world);
    let after: Vec<Value> =
        rows(&lake).into_iter().filter(|row| row[0].as_u64() < Some((FILES * ROWS) as u64)).collect();
    assert_eq!(after, before, "{point}");
    assert_eq!(rows(&lake).len(), before.len() + more * 2 * ROWS, "{point}");
    for table in ["bronze/rows", "silver/rows"] {
        assert!(folders(&lake, table).values().all(|files| *files == 1), "{point}: {:?}", folders(&lake, table));
    }
    let state = files(&lake.join("_nexus/merged"));
    let left: Vec<_> = state.keys().filter(|path| path.starts_with("staging") || path.starts_with("notes")).collect();
    assert!(left.is_empty(), "{point}: {left:?}");
}

#[test]
fn killed_at_every_step_each_row_is_there_once() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, point)) = DIES.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
                    dies(&mut grown(), number, point, |world| world.path("lake"));
                }
            });
        }
    });
}

#[test]
fn killed_on_an_object_store_each_row_is_there_once() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE / 2 {
            scope.spawn(|| {
                while let Some((number, point)) =
                    DIES_ON_S3.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let mut world = World::new().with_aws();
                    let bucket = world.bucket("merged");
                    write_input(&world, 0..FILES);
                    pipeline(&world, &format!("s3://{bucket}/lake"));
                    nexus(&world, &["run"]);
                    dies(&mut world, number, point, |world| world.download(&[&bucket]).join("lake"));
                    assert_eq!(world.aws(&["parts", &bucket]), "0", "{point}: uploads are left");
                }
            });
        }
    });
}

#[test]
fn a_run_that_is_under_way_is_taken_over() {
    let world = World::new();
    write_input(&world, 0..FILES);
    let file = pipeline(&world, "./lake");
    let text = std::fs::read_to_string(&file).expect("it has just been written");
    world.file("merged.yaml", &text.replace("in-*.json\" }", "in-*.json\", follow: true }"));
    let mut older = world.start(&["run", "merged.yaml"]);
    older.until("it has committed", || table_files(&world.path("lake"), "silver/rows") == 3 * FILES);
    nexus(&world, &["compact"]);
    let older = older.wait().expect_code(1).said();
    assert!(older.contains("another process has taken over"), "{older}");
    assert_eq!(table_files(&world.path("lake"), "silver/rows"), 3);
    nexus(&world, &["audit"]);
}
