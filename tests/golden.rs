//! State that earlier versions have left is read, and gone on from: `tests/golden/v<format version>/` holds a pipeline
//! with its input and its lake as they were left, killed between a commit record and its commit.
//!
//! `make golden` makes the files of this version's format anew. Those of formats that are out stay as they are.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::world::{World, ask, files, repository};

/// The newest format, which `make golden` writes.
const NEWEST: &str = "v1";

/// Files of input that the golden state has read: enough for a checkpoint and a file of history.
const FILES: usize = 70;

/// Files that are read by the version under test.
const MORE_FILES: usize = 10;

const PIPELINE: &str = "name: golden
lake: ./lake
commit: { every: 1h, bytes: 1B }
sources:
  events:
    file: { path: input/*.json, follow: true }
    format: json
    columns: { n: int64 not null, site: string, ts: timestamp, v: float64 }
    event_time: { column: ts, lateness: 10m }
bronze:
  events: { from: events }
silver:
  events:
    store: false
    sql: SELECT n, site, ts, v FROM bronze.events
    unique: { key: [n], within: 1d }
    expect: { small: { that: v < 10, else: quarantine } }
gold:
  hours:
    sql: |
      SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS events, count(DISTINCT n) AS distinct_events,
             sum(v) AS v
      FROM silver.events GROUP BY 1, 2
";

const TABLES: &str = "
    SELECT 'bronze', n, site, ts::VARCHAR, v::VARCHAR, _partition, _offset::VARCHAR FROM bronze.events
    UNION ALL SELECT 'gold', events, site, hour::VARCHAR, v::VARCHAR, '', distinct_events::VARCHAR FROM gold.hours
    UNION ALL SELECT 'decode', 0, rule, decode(raw), '', _partition, _offset FROM quarantine.events
    UNION ALL SELECT 'rule', 0, rule, decode(raw), '', '', '' FROM quarantine.\"silver.events\"";

/// Writes input: an event each ten minutes, some of them twice, the second of which comes files later.
fn write_input(world: &World, numbers: std::ops::Range<usize>) {
    fs::create_dir_all(world.path("input")).expect("could not make a folder");
    for n in numbers {
        let mut lines = String::new();
        for n in [Some(n), n.checked_sub(12).filter(|n| n % 5 == 0)].into_iter().flatten() {
            let (day, hour, minute) = (1 + n / 144, n / 6 % 24, n % 6 * 10);
            let ts = format!("2026-11-{day:02}T{hour:02}:{minute:02}:00Z");
            let _ = writeln!(lines, r#"{{"n":{n},"site":"site-{}","ts":"{ts}","v":{}.5}}"#, n % 3, n % 11);
        }
        if n % 9 == 0 {
            lines.push_str("{\"n\":\"none\"}\n");
        }
        world.file(&format!("input/{n:03}.json"), &lines);
    }
}

/// Makes a world of golden files.
fn world_of(version: &str) -> (World, PathBuf) {
    let world = World::new();
    let golden = repository("tests/golden").join(version);
    for part in ["golden.yaml", "input", "lake"] {
        copy(&golden.join(part), &world.path(part));
    }
    let pipeline = world.path("golden.yaml");
    (world, pipeline)
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "could not copy {} to {}", from.display(), to.display());
}

fn versions() -> Vec<String> {
    let found = fs::read_dir(repository("tests/golden")).expect("there are golden files").flatten();
    found.map(|entry| entry.file_name().into_string().expect("versions are UTF-8")).collect()
}

fn tables(lake: &Path) -> Vec<String> {
    let mut rows: Vec<String> = ask(lake, TABLES).iter().map(Value::to_string).collect();
    rows.sort_unstable();
    rows
}

fn run(world: &World, pipeline: &Path) {
    world.run(pipeline, &["--until-idle", "1s"]);
}

/// Makes the golden files of this version.
fn make() {
    let mut world = World::new();
    let pipeline = world.file("golden.yaml", PIPELINE);
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];
    let state = world.path("lake/_nexus/golden");
    write_input(&world, 0..FILES - 1);
    let mut running = world.start(&args);
    running.until("old records are folded", || !files(&state.join("history")).is_empty());
    running.until("all files are read", || {
        let rows = ask(&world.path("lake"), "SELECT count(DISTINCT _partition) FROM bronze.events");
        rows[0][0] == FILES - 1
    });
    running.signal("TERM");
    running.wait().expect_code(0);
    // An epoch that is recorded and not committed.
    write_input(&world, FILES - 1..FILES);
    world.set("NEXUS_FAIL_POINT", "after_record");
    assert_eq!(world.nexus(&args).status.code(), None, "the process did not die");

    let golden = repository("tests/golden").join(NEWEST);
    let _ = fs::remove_dir_all(&golden);
    fs::create_dir_all(&golden).expect("could not make a folder");
    for part in ["golden.yaml", "input", "lake"] {
        copy(&world.path(part), &golden.join(part));
    }
}

#[test]
fn state_of_every_format_is_read_and_gone_on_from() {
    if std::env::var("NEXUS_TEST_GOLDEN").is_ok_and(|wanted| wanted == "make") {
        make();
    }
    let fresh = World::new();
    let pipeline = fresh.file("golden.yaml", PIPELINE);
    write_input(&fresh, 0..FILES + MORE_FILES);
    run(&fresh, &pipeline);
    let expected = tables(&fresh.path("lake"));

    for version in versions() {
        let (world, pipeline) = world_of(&version);
        let lake = world.path("lake");
        for part in ["epochs", "history", "checkpoints", "snapshots/gold.hours/windows", "snapshots/silver.events/keys"]
        {
            assert!(!files(&lake.join("_nexus/golden").join(part)).is_empty(), "{version} has no {part}");
        }
        let pipeline_text = pipeline.to_str().expect("the tests' paths are UTF-8");
        let audit = world.nexus(&["audit", pipeline_text]).expect_code(0).said();
        assert!(audit.contains("1 epochs to commit"), "{version} has nothing to redo:\n{audit}");
        world.nexus(&["state", pipeline_text]).expect_code(0);

        write_input(&world, FILES..FILES + MORE_FILES);
        run(&world, &pipeline);
        assert_eq!(tables(&lake), expected, "{version} goes on to other tables than a run from nothing has");
        world.nexus(&["audit", pipeline_text]).expect_code(0);
    }
}

#[test]
fn state_of_a_later_format_is_refused() {
    for part in ["epochs", "checkpoints"] {
        let (world, pipeline) = world_of(NEWEST);
        let folder = world.path("lake/_nexus/golden").join(part);
        for name in files(&folder).into_keys() {
            let text = fs::read_to_string(folder.join(&name)).expect("could not read a file");
            let later = text.replacen("\"version\": 1", "\"version\": 2", 1);
            assert_ne!(later, text, "{} tells no version", name.display());
            fs::write(folder.join(&name), later).expect("could not write a file");
        }
        let before = files(&world.path("lake"));
        let pipeline = pipeline.to_str().expect("the tests' paths are UTF-8");
        for verb in ["run", "state"] {
            let said = world.nexus(&[verb, pipeline]).expect_code(1).said();
            for words in ["format version 2", "reads version 1", "run the version of nexus that wrote it"] {
                assert!(said.contains(words), "`{verb}` does not say `{words}`:\n{said}");
            }
        }
        assert_eq!(files(&world.path("lake")), before, "what was refused was changed");
    }
}

#[test]
fn state_of_another_query_is_refused() {
    for (table, was, is) in [
        ("gold.hours", "sum(v) AS v", "max(v) AS v"),
        ("gold.hours", "INTERVAL '1 hour'", "INTERVAL '2 hours'"),
        ("silver.events", "key: [n]", "key: [n, site]"),
    ] {
        let (world, pipeline) = world_of(NEWEST);
        let changed = PIPELINE.replace(was, is);
        assert_ne!(changed, PIPELINE);
        let changed = world.file("golden.yaml", &changed);
        assert_eq!(changed, pipeline);
        let before = files(&world.path("lake"));
        let said = world.nexus(&["run", &pipeline.display().to_string()]).expect_code(1).said();
        for words in [table, "has state", "another query", "--until-idle"] {
            assert!(said.contains(words), "the change of `{was}` is refused without `{words}`:\n{said}");
        }
        assert_eq!(files(&world.path("lake")), before, "what was refused was changed");
    }
    // What has no state may be another.
    let (world, _) = world_of(NEWEST);
    let pipeline = world.file("golden.yaml", &PIPELINE.replace("v < 10", "v < 9"));
    run(&world, &pipeline);
}
