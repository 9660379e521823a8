//! The queries of Nexmark as one pipeline, against the answers of a batch. `docs/nexmark.md` says which do not run.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::servers::python;
use crate::world::{World, repository, run_args};

/// Events, unless NEXUS_TEST_NEXMARK says otherwise: five seconds of them.
const EVENTS: u64 = 50_000;

#[test]
fn the_queries_of_nexmark_are_the_batch_answers() {
    let world = World::new().with_postgres();
    let given = std::env::var("NEXUS_TEST_NEXMARK").ok();
    let events = given.map_or(EVENTS, |text| text.parse().expect("NEXUS_TEST_NEXMARK is a number"));
    let (folder, lake) = (world.path("events"), world.path("lake"));
    run_script(&["make", text(&folder), &events.to_string()]);
    let pipeline = repository("tests/nexmark/nexmark.yaml");
    let parameters = [format!("events={}", folder.display()), format!("lake={}", lake.display())];
    let set: Vec<&str> = parameters.iter().flat_map(|parameter| ["--set", parameter]).collect();
    let started = Instant::now();
    let report = world.run_to_report(|world, report| world.nexus(&run_args(&pipeline, report, &set)));
    println!("{events} events through all queries in {:.1} s", started.elapsed().as_secs_f64());
    for (name, table) in report["tables"].as_object().expect("tables are an object") {
        assert_eq!(table["late"], 0, "{name} has late rows");
    }
    let answers = run_script(&["compare", text(&folder), text(&lake)]);
    let mut wrong = Vec::new();
    for line in answers.lines() {
        let answer: Value = serde_json::from_str(line).expect("nexmark.py prints JSON");
        println!("{answer}");
        let (rows, differ) = (answer[1].as_u64().expect("a count"), answer[2].as_u64().expect("a count"));
        if rows == 0 || differ > 0 {
            wrong.push(line.to_owned());
        }
    }
    assert_eq!(answers.lines().count(), 20, "each query has an answer");
    assert!(wrong.is_empty(), "query, rows, rows that are in one answer only:\n{}", wrong.join("\n"));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

fn run_script(args: &[&str]) -> String {
    let output = Command::new(python()).arg(repository("tests/nexmark/nexmark.py")).args(args).output();
    let output = output.expect("Python runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nexmark.py {args:?} failed:\n{errors}");
    String::from_utf8(output.stdout).expect("nexmark.py prints UTF-8")
}
