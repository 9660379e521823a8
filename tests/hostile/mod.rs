//! A hostile environment: services and disks that fail as they do in the world, from a seed that replays the failures.
//!
//! Each run has input of its own, and must leave what a run of the same input leaves that nothing disturbs, with
//! `nexus audit` content. `NEXUS_TEST_SEED=<seed> NEXUS_TEST_FAULT_RUNS=1` shows a failure again;
//! `NEXUS_TEST_FAULT_RUNS` is the number of runs in each environment.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::world::{Finished, Random, World, ask};

mod disk;
mod postgres;
mod services;

/// How often a run that its environment ended may be started again.
const RESTARTS_MAX: usize = 8;

/// The number of runs in an environment, where the environment of the tests gives none.
fn runs(usually: usize) -> usize {
    let given = std::env::var("NEXUS_TEST_FAULT_RUNS").ok();
    given.map_or(usually, |text| text.parse().expect("NEXUS_TEST_FAULT_RUNS is a number"))
}

/// Runs that are added where chance has left out a kind of fault.
const MORE_RUNS_MAX: usize = 6;

/// Runs `each` with a seed of its own for each run, and counts what was injected; fails if one of `kinds` never was.
fn each_run<K: Copy + Ord + Debug>(usually: usize, kinds: &[K], each: impl Fn(u64) -> BTreeMap<K, u64>) {
    let seed = Random::seeded().seed();
    let mut injected: BTreeMap<K, u64> = BTreeMap::new();
    let never =
        |injected: &BTreeMap<K, u64>| kinds.iter().copied().filter(|kind| !injected.contains_key(kind)).collect();
    let mut missing: Vec<K> = never(&injected);
    for run in 0..runs(usually) + MORE_RUNS_MAX {
        // One run, as a failure is shown again by, need not have everything.
        if run >= runs(usually) && (missing.is_empty() || runs(usually) < usually) {
            break;
        }
        let seed = seed.wrapping_add(run as u64);
        println!("run {run}: see it again with NEXUS_TEST_SEED={seed} NEXUS_TEST_FAULT_RUNS=1");
        for (kind, times) in each(seed) {
            *injected.entry(kind).or_default() += times;
        }
        missing = never(&injected);
    }
    for (kind, times) in &injected {
        println!("{times:5} times {kind:?}");
    }
    assert!(missing.is_empty() || runs(usually) < usually, "never injected: {missing:?}");
}

/// Input of a run: files of JSON lines, with doubles, and with lines that are none.
#[derive(Debug, Clone)]
struct Input(Vec<String>);

impl Input {
    fn random(random: &mut Random, files: usize) -> Self {
        let files = files + random.below(6);
        let mut n = 0;
        let mut file = |at: usize| {
            let mut lines = String::new();
            for _ in 0..20 + random.below(60) {
                let site = random.below(3);
                let v = random.below(11);
                let (hour, minute) = (n / 60 % 24, n % 60);
                let line = format!(
                    r#"{{"n":{n},"site":"site-{site}","ts":"2026-11-01T{hour:02}:{minute:02}:00Z","v":{v}.5}}"#
                );
                let _ = writeln!(lines, "{line}");
                if random.below(9) == 0 {
                    let _ = writeln!(lines, "{line}");
                }
                n += 1;
            }
            if at.is_multiple_of(3) {
                let _ = writeln!(lines, "{{\"n\":\"of file {at}\"}}");
            }
            lines
        };
        Self((0..files).map(&mut file).collect())
    }

    /// Writes the files; gives their paths.
    fn write(&self, world: &World) -> Vec<String> {
        let files = self.0.iter().enumerate();
        files.map(|(at, lines)| world.file(&format!("events-{at:03}.json"), lines).display().to_string()).collect()
    }

    /// Gives what a run leaves that nothing disturbs: from files, on a local disk, in one epoch.
    fn undisturbed(&self) -> Vec<String> {
        let world = World::new();
        self.write(&world);
        let lake = world.path("lake");
        let text = pipeline(&lake.display().to_string(), "1h, bytes: 1GiB", FILES, false);
        world.nexus(&["run", path(&world.file("calm.yaml", &text))]).expect_code(0);
        let rows = lake_rows(&lake);
        assert!(rows.len() > 100, "too few rows to prove anything: {rows:?}");
        rows
    }
}

const FILES: &str = "file: { path: events-*.json }";

/// Gives the text of the pipeline that all runs have, with a source and an epoch of their own.
fn pipeline(lake: &str, commit: &str, source: &str, postgres: bool) -> String {
    let sink = |table: &str| if postgres { format!("    postgres: {{ url: pg, {table} }}\n") } else { String::new() };
    format!(
        "name: hostile
lake: {lake}
commit: {{ every: {commit} }}
sources:
  events:
    {source}
    format: json
    columns: {{ n: int64 not null, site: string, ts: timestamp, v: float64 }}
    event_time: {{ column: ts, lateness: 400d }}
bronze:
  events:
    from: events
    partition_by: [site]
{}silver:
  events:
    sql: SELECT n, site, ts, v FROM bronze.events
    unique: {{ key: [n], within: 500d }}
    expect: {{ small: {{ that: v < 10, else: quarantine }} }}
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS events, sum(v) AS v FROM silver.events GROUP BY 1, 2
{}{}",
        sink("table: events, append: true"),
        sink("table: hours, key: [hour, site]"),
        if postgres { "secrets:\n  pg: { env: DATABASE_URL }\n" } else { "" },
    )
}

/// Reads all tables of a lake.
fn lake_rows(lake: &Path) -> Vec<String> {
    sorted(ask(
        lake,
        "SELECT 'bronze', n::VARCHAR, site, ts::VARCHAR, v FROM bronze.events
        UNION ALL SELECT 'silver', n::VARCHAR, site, ts::VARCHAR, v FROM silver.events
        UNION ALL SELECT 'gold', hour::VARCHAR, site, events::VARCHAR, v FROM gold.hours
        UNION ALL SELECT 'decode', rule, decode(raw), '', 0 FROM quarantine.events
        UNION ALL SELECT 'rule', rule, decode(raw), '', 0 FROM quarantine.\"silver.events\"",
    ))
}

fn sorted(rows: Vec<Value>) -> Vec<String> {
    let mut texts: Vec<String> = rows.iter().map(Value::to_string).collect();
    texts.sort_unstable();
    texts
}

/// Fails with the first rows that differ.
fn assert_same(found: &[String], expected: &[String], what: &str) {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    found.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    expected.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    let differing: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).take(10).collect();
    assert!(differing.is_empty(), "{what} differ (more or less than undisturbed): {differing:#?}");
}

/// Starts the command again while it ends with an error; gives how often it did.
fn restarted(mut run: impl FnMut() -> Finished) -> usize {
    for restarts in 0..=RESTARTS_MAX {
        let finished = run();
        match finished.status.code() {
            Some(0) => return restarts,
            // Killed at a fail point, or told that the environment is bad; a panic or a bug it must not be.
            None | Some(1) => assert!(
                !["panicked", "is a bug", "is lost", "is damaged"].iter().any(|bad| finished.stderr.contains(bad)),
                "{}",
                finished.said()
            ),
            other => panic!("ended by {other:?}:\n{}", finished.said()),
        }
        println!("ended, and is started again: {}", finished.stderr.lines().last().unwrap_or_default());
    }
    panic!("the run was ended {RESTARTS_MAX} times");
}

/// Fails unless the audit finds everything whole.
fn audit(world: &World, pipeline: &Path) {
    world.nexus(&["audit", path(pipeline)]).expect_code(0);
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

/// Gives a limit of bytes for an epoch: one file, or some.
fn epoch_bytes(random: &mut Random) -> u64 {
    random.one_of(&[1, 3_000, 5_000, 9_000])
}

/// Writes the pipeline file of a run.
fn write_pipeline(world: &World, text: &str) -> PathBuf {
    world.file("hostile.yaml", text)
}
