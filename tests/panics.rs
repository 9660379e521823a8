//! A panic in any stage stops the run with words that say where, and loses nothing.

use std::fmt::Write as _;

use serde_json::json;

use crate::world::{World, ask};

/// Files, and lines of each.
const FILES: usize = 6;
const LINES: usize = 50;

#[test]
fn a_panic_in_any_stage_stops_the_run_and_the_next_goes_on() {
    for (stage, polls) in [
        ("the start", &[1][..]),
        ("source events", &[1, 9]),
        ("decode events", &[7]),
        ("table bronze.events", &[6]),
        ("table gold.sites", &[3]),
        ("sink bronze.events/parquet", &[5]),
        ("sink events/quarantine", &[2]),
        ("commit bronze.events/parquet", &[2]),
        ("the coordinator", &[5]),
    ] {
        panics(stage, polls);
    }
}

/// Has a stage panic at each of these polls, one run after the other, and then lets the pipeline end.
fn panics(stage: &str, polls: &[u64]) {
    let mut world = World::new();
    for file in 0..FILES {
        let mut lines = String::new();
        for line in 0..LINES {
            let n = file * LINES + line;
            let _ = writeln!(lines, r#"{{"n":{n},"site":"site-{}","ts":"2026-11-01T00:{file:02}:{line:02}Z"}}"#, n % 3);
        }
        lines.push_str("this is no row\n");
        world.file(&format!("events-{file}.json"), &lines);
    }
    let lake = world.path("lake");
    let pipeline = world.file(
        "panics.yaml",
        &format!(
            "name: panics\nlake: {}\ncommit: {{ every: 1h, bytes: 1B }}\nsources:\n  events:\n    \
             file: {{ path: events-*.json }}\n    format: json\n    \
             columns: {{ n: int64 not null, site: string, ts: timestamp }}\n    \
             event_time: {{ column: ts, lateness: 1s }}\nbronze:\n  events: {{ from: events }}\ngold:\n  sites:\n    \
             sql: SELECT date_bin(INTERVAL '1 minute', ts) AS minute, site, count(*) AS events FROM bronze.events \
             GROUP BY 1, 2\n",
            lake.display()
        ),
    );
    let run = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];
    for poll in polls {
        world.set("NEXUS_PANIC", &format!("{stage}:{poll}"));
        let said = world.nexus(&run).expect_code(1).said();
        let error = format!("error: {stage} panicked");
        assert!(said.contains(&error), "{stage} at poll {poll}: {said}");
        assert!(said.contains(&format!("a test has {stage} panic")), "{stage} at poll {poll}: {said}");
    }
    world.set("NEXUS_PANIC", "");
    world.run(&pipeline, &[]);
    world.nexus(&["audit", run[1]]).expect_code(0);

    let rows = FILES * LINES;
    let found = ask(
        &lake,
        "SELECT count(*), count(DISTINCT n), (SELECT sum(events) FROM gold.sites), \
         (SELECT count(*) FROM quarantine.events) FROM bronze.events",
    );
    assert_eq!(found, [json!([rows, rows, rows, FILES])], "{stage}");
}
