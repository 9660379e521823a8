//! Error budgets: a run stops when too many rows are bad, loses nothing, and does not creep past them by restarts.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use nexus::operators::source::memory::{MemoryHandle, MemorySource};
use nexus::operators::testing::clock::ManualClock;
use nexus::{Job, Pipeline};
use serde_json::json;

use crate::world::{World, ask};

/// Lines of each file.
const LINES: usize = 50;

/// Files without a bad line, which come first.
const GOOD_FILES: usize = 6;

/// Files with three bad lines each, which follow.
const BAD_FILES: usize = 4;

fn pipeline(world: &World, n: &str, silver: &str) -> PathBuf {
    world.file(
        "budget.yaml",
        &format!(
            "name: budget\nlake: {}\ncommit: {{ every: 1h, bytes: 1B }}\nsources:\n  events:\n    \
             file: {{ path: \"in-*.json\" }}\n    columns: {{ id: int64 not null, n: {n} }}\n    \
             errors: {{ at_most: 1%, in: 1h }}\nbronze:\n  events: {{ sql: \"SELECT id FROM events WHERE n IS NOT NULL\" }}\n{silver}",
            world.path("lake").display()
        ),
    )
}

fn write_files(world: &World) -> usize {
    let mut id = 0;
    for file in 0..GOOD_FILES + BAD_FILES {
        let mut lines = String::new();
        for line in 0..LINES {
            let bad = file >= GOOD_FILES && line % 20 == 7;
            let _ = writeln!(lines, "{{\"id\":{id},\"n\":{}}}", if bad { "\"many\"" } else { "7" });
            id += 1;
        }
        world.file(&format!("in-{file:02}.json"), &lines);
    }
    id
}

#[test]
fn too_many_bad_records_stop_the_run_again_and_again_until_the_file_is_corrected() {
    let world = World::new();
    let rows = write_files(&world);
    let lake = world.path("lake");
    let count = "SELECT count(*), count(DISTINCT id) FROM bronze.events";

    let strict = pipeline(&world, "int64", "");
    let mut standing = None;
    for _ in 0..3 {
        let said = world.nexus(&["run", strict.to_str().expect("the tests' paths are UTF-8")]).expect_code(1).said();
        for part in
            ["source events", "of 400 records", "in 1h, more than 1%", "not an int64", "in-0", "nothing is lost"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        // One file with three bad lines of 350 is within the budget, two are not; no restart gets past the second.
        let committed = ask(&lake, count);
        assert_eq!(committed, [json!([347, 347])]);
        assert_eq!(*standing.get_or_insert_with(|| committed.clone()), committed);
    }

    let lenient = pipeline(&world, "string", "");
    let report = world.run(&lenient, &[]);
    assert_eq!(report["errors"]["events"], json!({ "rows": rows, "bad": 3, "allowed": 5 }));
    assert_eq!(ask(&lake, count), [json!([rows - 3, rows - 3])]);
    world.nexus(&["audit", lenient.to_str().expect("the tests' paths are UTF-8")]).expect_code(0);
}

#[test]
fn a_table_has_a_budget_for_its_rules() {
    let world = World::new();
    write_files(&world);
    let silver = "silver:\n  events:\n    from: bronze.events\n    expect: { low: { that: id < 420 } }\n    \
                  errors: { at_most: 5% }\n";
    let pipeline = pipeline(&world, "string", silver);
    let said = world.nexus(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")]).expect_code(1).said();
    for part in ["30 of 450 rows of silver.events broke a rule", "in 5m, more than 5%", "`low` (id < 420)"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A job over rows with a number each, of which those from 10 on are bad.
async fn fed(folder: &std::path::Path, clock: &Arc<ManualClock>) -> (Job, MemoryHandle) {
    let file = format!(
        "name: fed\nlake: {}\ncommit: {{ every: 10ms }}\nsources:\n  \
         events: {{ generate: {{ rows: 1, columns: {{ n: {{ sequence: {{}} }} }} }} }}\nsilver:\n  events:\n    \
         sql: SELECT n FROM events\n    expect: {{ low: {{ that: n < 10 }} }}\n    \
         errors: {{ at_most: 10%, in: 5m, of_at_least: 10 }}\n",
        folder.display()
    );
    let (mut handle, source) = MemorySource::fed(4, clock.clone());
    let columns = vec![Field::new("n", DataType::Int64, false)];
    let pipeline = Pipeline::parse(&file).unwrap_or_else(|e| panic!("{e}")).with_clock(clock.clone());
    let pipeline = pipeline.with_rows("events", columns, None, Box::new(source)).expect("the source fits");
    let job = pipeline.start().await.unwrap_or_else(|e| panic!("{e}"));
    handle.resume_at().await.expect("the pipeline is open");
    (job, handle)
}

async fn send(handle: &MemoryHandle, numbers: &[i64]) {
    let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(numbers.to_vec())) as _)]);
    handle.send(rows.expect("one column")).await.expect("the pipeline takes rows");
}

async fn committed(handle: &MemoryHandle, rows: u64) {
    while handle.committed_rows() < rows {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_forgotten_when_their_time_is_over() {
    let folder = tempfile::tempdir().expect("could not make a folder");
    let clock = ManualClock::at(1_000_000_000_000);
    let (job, handle) = fed(folder.path(), &clock).await;
    for round in 1..=3 {
        send(&handle, &[1, 2, 30]).await;
        committed(&handle, round * 3).await;
        clock.advance(Duration::from_secs(301));
    }
    send(&handle, &[1, 20]).await;
    committed(&handle, 11).await;
    drop(job);

    // A restart forgives nothing.
    clock.advance(Duration::from_secs(200));
    let (mut job, handle) = fed(folder.path(), &clock).await;
    send(&handle, &[1, 20]).await;
    let error = job.wait().await.expect_err("the second bad row is too many").to_string();
    assert!(error.contains("2 of 4 rows of silver.events broke a rule in 5m, more than 10%"), "{error}");
}
