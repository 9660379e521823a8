//! Killed with a long history and much state behind it, and started again: how long until it commits anew, and that
//! nothing is lost or doubled by it.
//!
//! `make restart` has the 10 000 commit records and the gibibyte of state that the promise is about; `make test` has
//! few.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{World, ask, files};

/// How long a restart may take until its first new commit, with all that `make restart` puts behind it.
const RESTART_MAX: Duration = Duration::from_secs(2);

/// How often a pipeline is killed and started again.
const RESTARTS: usize = 3;

/// What lies behind a pipeline when it is killed.
struct Load {
    records: u64,
    state_bytes: u64,
    /// A restart may take no longer.
    restart_max: Duration,
}

impl Load {
    fn wanted() -> Self {
        match std::env::var("NEXUS_TEST_RESTART").as_deref() {
            Ok("full") => Self { records: 10_000, state_bytes: 1 << 30, restart_max: RESTART_MAX },
            // A debug build on a busy machine.
            _ => Self { records: 100, state_bytes: 8 << 20, restart_max: Duration::from_secs(60) },
        }
    }
}

/// Writes a pipeline over numbers, each of which is remembered for a day. An epoch is as short as it can be.
fn pipeline(world: &World) -> PathBuf {
    world.file(
        "restart.yaml",
        "name: restart
lake: ./lake
commit: { every: 1h, bytes: 1B }
limits: { memory: 2GiB }
sources:
  numbers:
    generate:
      columns:
        n: { sequence: {} }
        ts: { time: { start: \"2026-11-01T00:00:00Z\", step: 1ms } }
    event_time: { column: ts, lateness: 1s }
bronze:
  numbers: { from: numbers, store: false }
silver:
  numbers:
    sql: SELECT n, ts FROM bronze.numbers
    unique: { key: [n], within: 1d }
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS numbers FROM silver.numbers GROUP BY 1
",
    )
}

/// Gives the newest epoch that has a record of its own.
fn newest(state: &Path) -> u64 {
    let names = fs::read_dir(state.join("epochs")).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
    names.filter_map(number).max().unwrap_or(0)
}

fn bytes(folder: &Path) -> u64 {
    files(folder).values().map(|(_, size)| size).sum()
}

#[test]
fn a_killed_pipeline_soon_commits_again() {
    let load = Load::wanted();
    let world = World::new();
    let pipeline = pipeline(&world);
    let pipeline = pipeline.to_str().expect("the tests' paths are UTF-8");
    let (lake, state) = (world.path("lake"), world.path("lake/_nexus/restart"));
    let keys = state.join("snapshots/silver.numbers/keys");

    let mut running = world.start(&["run", pipeline]);
    let started = Instant::now();
    while newest(&state) < load.records || bytes(&keys) < load.state_bytes {
        assert!(!running.ends_within(Duration::from_millis(100)), "the pipeline has ended");
    }
    println!("{} records after {:.1?}", newest(&state), started.elapsed());
    for _ in 0..RESTARTS {
        running.signal("KILL");
        running.wait();
        let before = newest(&state);
        // The next record is that of the start; the one behind it holds rows.
        let first_commit = state.join(format!("epochs/{:020}.json", before + 2));
        let started = Instant::now();
        running = world.start(&["run", pipeline]);
        while !first_commit.exists() {
            assert!(!running.ends_within(Duration::from_millis(1)), "the restarted pipeline has ended");
            assert!(started.elapsed() < load.restart_max, "no commit within {:?}", load.restart_max);
        }
        println!(
            "{:.0?} from the start to the first commit, with {before} records and {} MiB of state behind it",
            started.elapsed(),
            bytes(&state.join("snapshots")) >> 20
        );
    }
    running.until("it goes on", || newest(&state) > load.records + 80);
    running.signal("TERM");
    running.wait().expect_code(0);

    let rows = ask(&lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM silver.numbers");
    let all = rows[0][0].clone();
    assert_eq!(rows, [json!([all, all, 0, all])], "count, distinct, first, behind the last");
    let alone = fs::read_dir(state.join("epochs")).expect("there are records").count();
    assert!(alone <= 2 * 64, "{alone} records lie alone");
    let audit = world.nexus(&["audit", pipeline, "--json"]).expect_code(0).stdout;
    let audit: Value = serde_json::from_str(&audit).expect("the audit as JSON is JSON");
    assert_eq!((&audit["first_epoch"], &audit["sources"]["numbers"]["rows"]), (&json!(1), &all));
}
