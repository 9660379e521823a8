//! Memory under its limit, whatever the input does to drive it up: large records, many partitions, bombs, row groups,
//! state.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use nexus_operators::testing::bomb;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::balance::count;
use crate::world::{Finished, World, ask, run_args, table_files};

const MIB: usize = 1 << 20;

/// Unpacked MiB of the bombs, unless NEXUS_TEST_BOMB_MIB says otherwise; `make bombs` has 10 GiB.
const BOMB_MIB: u64 = 32;

/// Runs a pipeline to its end; gives how it ended, its peak memory, and the report if there is one.
fn run(world: &World, pipeline: &Path) -> (Finished, u64, Option<Value>) {
    let report = world.path("report.json");
    let mut running = world.start(&run_args(pipeline, report.to_str().expect("the tests' paths are UTF-8"), &[]));
    let mut peak = 0;
    while !running.ends_within(Duration::from_millis(30)) {
        peak = running.peak_memory_bytes().unwrap_or(peak);
    }
    let finished = running.wait();
    println!("peak memory: {} MiB", peak >> 20);
    let report = fs::read_to_string(report).ok().map(|text| serde_json::from_str(&text).expect("the report is JSON"));
    (finished, peak, report)
}

/// Runs a pipeline to its good end under `limit_mib`, and gives the report.
fn run_within(world: &World, pipeline: &Path, limit_mib: u64) -> Value {
    let (finished, peak, report) = run(world, pipeline);
    finished.expect_code(0);
    assert!(0 < peak && peak < limit_mib << 20, "{} MiB of memory", peak >> 20);
    let report = report.expect("the run wrote no report");
    crate::balance::check(&report);
    report
}

/// Writes a pipeline that copies `events` to bronze.
fn pipeline(world: &World, limits: &str, source: &str, table: &str) -> PathBuf {
    let lake = world.path("lake");
    let text = format!(
        "name: memory\nlake: {}\nlimits: {{ {limits} }}\nsources:\n  events:\n{source}bronze:\n  events:\n{table}",
        lake.display()
    );
    world.file("memory.yaml", &text)
}

#[test]
fn records_of_ten_mib_in_a_row() {
    const RECORDS: usize = 30;
    let world = World::new();
    let mut lines = String::new();
    for n in 0..RECORDS {
        let letter = char::from(b'a' + u8::try_from(n % 26).expect("it is a letter"));
        let _ = writeln!(lines, r#"{{"n":{n},"text":"{}"}}"#, letter.to_string().repeat(10 * MIB));
        if n % 10 == 5 {
            let _ = writeln!(lines, r#"{{"n":-1,"text":"{}"}}"#, letter.to_string().repeat(20 * MIB));
        }
    }
    fs::write(world.path("events.json"), &lines).expect("could not write a file");
    let source = "    file: { path: events.json }\n    format: json\n    columns: { n: int64, text: string }\n";
    // A record is held by each stage that it passes, as bytes, as a row and as a page: a limit for few of them at once.
    let pipeline = pipeline(&world, "memory: 384MiB, record: 16MiB", source, "    from: events\n");
    run_within(&world, &pipeline, 384);
    let lake = world.path("lake");
    let found =
        ask(&lake, "SELECT count(*), count(DISTINCT text), min(length(text)), max(length(text)) FROM bronze.events");
    assert_eq!(found, [json!([RECORDS, 26, 10 * MIB, 10 * MIB])]);
    let limit = "SELECT count(*), bool_and(reason LIKE '%more than the limit of 16777216 (limits.record)') \
                 FROM quarantine.events";
    assert_eq!(ask(&lake, limit), [json!([3, true])]);
}

#[test]
fn ten_thousand_partitions() {
    const ROWS: usize = 60_000;
    let world = World::new();
    let source = format!(
        "    generate:\n      rows: {ROWS}\n      columns: {{ n: {{ sequence: {{}} }}, site: {{ sequence: {{}} }} }}\n"
    );
    let table = "    sql: SELECT n, site % 10000 AS site FROM events\n    partition_by: [site]\n";
    let pipeline = pipeline(&world, "memory: 256MiB, open_partitions: 10000", &source, table);
    run_within(&world, &pipeline, 256);
    let lake = world.path("lake");
    let files = table_files(&lake, "bronze/events");
    assert!((10_000..=12_000).contains(&files), "{files} files");
    let found = ask(
        &lake,
        "SELECT count(*), count(DISTINCT n), count(DISTINCT site), sum(n % 10000 - site) FROM bronze.events",
    );
    assert_eq!(found, [json!([ROWS, ROWS, 10_000, 0])]);
}

#[test]
fn an_endless_line_in_a_bomb() {
    let given = std::env::var("NEXUS_TEST_BOMB_MIB").ok();
    let mib = given.map_or(BOMB_MIB, |text| text.parse().expect("NEXUS_TEST_BOMB_MIB is a number"));
    let world = World::new();
    fs::create_dir(world.path("in")).expect("could not make a folder");
    for (name, packed) in [
        ("zeros.gz", bomb::gzip(&[0], mib << 20)),
        ("zeros.zst", bomb::zstd(&[0], mib << 20)),
        ("text.gz", bomb::gzip(b"{\"n\":1,\"text\":\"x", mib << 20)),
        ("blank.zst", bomb::zstd(b"\n", mib << 20)),
    ] {
        fs::write(world.path("in").join(name), packed.expect("it can be packed")).expect("could not write a file");
    }
    let source = "    file: { path: 'in/*' }\n    format: json\n    columns: { n: int64, text: string }\n";
    let pipeline = pipeline(&world, "memory: 128MiB", source, "    from: events\n");
    let report = run_within(&world, &pipeline, 128);
    let source = &report["sources"]["events"];
    assert_eq!(["rows", "quarantined"].map(|name| count(source, name)), [0, 3], "{source}");
    let found = ask(
        &world.path("lake"),
        "SELECT count(*), bool_and(reason LIKE '%(limits.record)'), max(octet_length(raw)) <= 65536 FROM quarantine.events",
    );
    assert_eq!(found, [json!([3, true, true])]);
}

#[test]
fn a_bomb_of_many_small_records() {
    let world = World::new();
    // Each unpacked MiB is half a million rejects, or a third of a million rows of forty columns.
    fs::create_dir(world.path("in")).expect("could not make a folder");
    for (name, packed) in [("rejects.gz", bomb::gzip(b"0\n", 2 << 20)), ("rows.zst", bomb::zstd(b"{}\n", 2 << 20))] {
        fs::write(world.path("in").join(name), packed.expect("it can be packed")).expect("could not write a file");
    }
    let columns: String = (0..40).map(|n| format!("      c{n}: string\n")).collect();
    let source = format!("    file: {{ path: 'in/*' }}\n    format: json\n    columns:\n{columns}");
    let pipeline = pipeline(&world, "memory: 128MiB", &source, "    from: events\n");
    let report = run_within(&world, &pipeline, 128);
    let source = &report["sources"]["events"];
    // Members hold whole patterns: of three bytes, it takes three members to pass two MiB.
    let expected = [3 * (MIB as u64 / 3), MIB as u64];
    assert_eq!(["rows", "quarantined"].map(|name| count(source, name)), expected, "{source}");
}

#[test]
fn a_row_group_that_is_far_larger_in_memory() {
    const ROWS: usize = 300_000;
    let world = World::new();
    let texts: Vec<String> = ["a", "b", "c"].iter().map(|letter| letter.repeat(2_000)).collect();
    let columns: [(&str, ArrayRef); 2] = [
        ("n", Arc::new(Int64Array::from_iter_values((0..ROWS).map(|n| i64::try_from(n).expect("it is small"))))),
        ("text", Arc::new(StringArray::from_iter_values((0..ROWS).map(|n| &texts[n % 3])))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("the columns are of one length");
    let file = fs::File::create(world.path("events.parquet")).expect("could not make a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("the schema can be written");
    writer.write(&batch).expect("could not write rows");
    writer.close().expect("could not end the file");
    drop(batch);
    let source = "    file: { path: events.parquet }\n    format: parquet\n    columns: { n: int64, text: string }\n";
    let pipeline =
        pipeline(&world, "memory: 128MiB", source, "    sql: SELECT n, length(text) AS length FROM events\n");
    run_within(&world, &pipeline, 128);
    let found =
        ask(&world.path("lake"), "SELECT count(*), count(DISTINCT n), min(length), max(length) FROM bronze.events");
    assert_eq!(found, [json!([ROWS, ROWS, 2_000, 2_000])]);
}

#[test]
fn state_above_its_share_is_named() {
    const ROWS: usize = 1_200_000;
    let source = format!(
        "    generate:\n      rows: {ROWS}\n      columns:\n        n: {{ sequence: {{}} }}\n        \
         ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 1ms }} }}\n    \
         event_time: {{ column: ts, lateness: 1s }}\n"
    );
    let table = "    from: events\ngold:\n  sites:\n    sql: SELECT date_bin(INTERVAL '1 day', ts) AS day, n % 1000000 AS k, \
                 count(*) AS events, array_agg(n) AS all FROM events GROUP BY 1, 2\n";
    let world = World::new();
    let pipeline = pipeline(&world, "memory: 128MiB", &source, table);
    let (finished, peak, _) = run(&world, &pipeline);
    // Accumulators take more than they say, and the process itself some 30 MiB; the states of all windows would take more.
    assert!(peak < 160 << 20, "{} MiB of memory", peak >> 20);
    if finished.status.success() {
        // What does not fit in memory may have found its place on the disk; then nothing is missing.
        let found = ask(&world.path("lake"), "SELECT count(*), sum(events) FROM gold.sites");
        assert_eq!(found, [json!([1_000_000, ROWS])]);
    } else {
        let said = finished.expect_code(1).said();
        assert!(said.contains("error: table gold.sites: the state of all tables takes"), "{said}");
        assert!(said.contains("limits.memory") && said.contains("make windows, lateness"), "{said}");
    }
}
