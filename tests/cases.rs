//! `nexus test`: steps, crashes, bad records and late rows in cases, and what is said of a case that fails.

use std::fs;

use crate::world::{World, repository};

/// A pipeline of a source, of a table that keeps each order once, and of hours that are told to be late.
const PIPELINE: &str = r#"name: orders
lake: ./lake
lineage: { file: runs.jsonl }
sources:
  orders:
    file: { path: "*.jsonl" }
    columns: { id: int64 not null, at: timestamp not null, site: string, amount: float64 }
    event_time: { column: at, lateness: 0s }
bronze:
  orders: { from: orders }
silver:
  orders:
    sql: SELECT id, at, site, amount, now() AS seen FROM bronze.orders
    unique: { key: [id], within: 1d }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', at) AS hour, site, sum(amount) AS amount FROM silver.orders GROUP BY 1, 2
tests:
"#;

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

#[test]
fn the_cases_of_the_repository_pass_and_are_written_as_junit_does() {
    let world = World::new();
    let files = ["flights", "generated", "telemetry"].map(|name| repository(&format!("pipelines/{name}.yaml")));
    let junit = world.path("junit.xml");
    let mut args = vec!["test", "--junit", text(&junit)];
    args.extend(files.iter().map(|file| text(file)));
    let said = world.nexus(&args).expect_code(0).said();
    assert!(said.contains("11 passed, 0 failed"), "{said}");
    let xml = fs::read_to_string(&junit).expect("it is written");
    assert!(xml.contains("<testsuites tests=\"11\" failures=\"0\""), "{xml}");
    assert_eq!(xml.matches("<testcase ").count(), 11, "{xml}");
    // What it takes is said, not held: the machine may be busy. A release build takes some 20 ms for each.
    println!("{said}");
}

#[test]
fn a_case_has_a_clock_steps_and_crashes() {
    let world = World::new();
    let cases = r#"
  - name: steps
    clock: "2026-11-01T12:00:00Z"
    given:
      orders:
        - { id: 1, at: "2026-11-01T08:10:00Z", site: reno, amount: 1.0 }
        - { id: 2, at: "2026-11-01T09:10:00Z", site: reno, amount: 2.0 }
    then:
      - wait: 2h
        given: { orders: [{ id: 3, at: "2026-11-01T08:20:00Z", site: reno, amount: 4.0 }, "oops"] }
        crash: prepare
      - { again: [orders], crash: commit }
      - { wait: 30m, given: { orders: [{ id: 4, at: "2026-11-01T09:30:00Z", amount: 8.0 }] }, crash: acknowledge }
    expect:
      bronze.orders: { rows: 7 }
      silver.orders:
        - { id: 1, seen: "2026-11-01T12:00:00" }
        - { id: 2, seen: "2026-11-01T12:00:00" }
        - { id: 3, seen: "2026-11-01T14:00:00" }
        - { id: 4, site: null, seen: "2026-11-01T14:30:00" }
      gold.hours:
        - { hour: "2026-11-01T08:00:00Z", site: reno, amount: 1.0 }
        - { hour: "2026-11-01T09:00:00Z", site: reno, amount: 2.0 }
        - { hour: "2026-11-01T09:00:00Z", site: null, amount: 8.0 }
      quarantine.orders:
        - { rule: decode, raw: oops }
        - { rule: decode, raw: oops }
      quarantine.gold.hours:
        - { rule: late }
"#;
    let file = world.file("orders.yaml", &format!("{PIPELINE}{cases}"));
    world.nexus(&["test", text(&file)]).expect_code(0);
    assert!(!world.path("lake").exists() && !world.path("runs.jsonl").exists(), "a case left something behind");
}

#[test]
fn a_case_that_fails_shows_both_tables() {
    let world = World::new();
    let cases = r#"
  - name: wrong
    given:
      orders:
        - { id: 1, at: "2026-11-01T08:10:00Z", site: reno, amount: 1.5 }
        - { id: 2, at: "2026-11-01T08:20:00Z", site: elko, amount: 2.0 }
    expect:
      bronze.orders: { rows: 3 }
      gold.hours:
        - { hour: "2026-11-01T08:00:00Z", site: reno, amount: 15.0 }
        - { hour: "2026-11-01T08:00:00Z", site: elko, amount: 2.0 }
  - name: never dies
    given: {}
    then: [{ crash: commit }]
    expect: {}
  - name: good
    given: {}
    expect: { gold.hours: [] }
"#;
    let file = world.file("orders.yaml", &format!("{PIPELINE}{cases}"));
    let junit = world.path("junit.xml");
    let said = world.nexus(&["test", text(&file), "--junit", text(&junit)]).expect_code(1).stdout;
    let expected = "    bronze.orders: 3 rows expected, 2 found
    gold.hours: rows missing: 1, not expected: 1 (- expected, + found)
          hour                  site  amount
        - 2026-11-01T08:00:00Z  reno  15.0
        + 2026-11-01T08:00:00Z  reno  1.5
                                      ^^^
";
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("step 1 was to die where it commits, and never came there"), "{said}");
    assert!(said.contains("1 passed, 2 failed"), "{said}");
    let xml = fs::read_to_string(&junit).expect("it is written");
    assert!(xml.contains("failures=\"2\"") && xml.contains("<failure message=\"bronze.orders: 3 rows"), "{xml}");
    let only = world.nexus(&["test", text(&file), "--only", "goo"]).expect_code(0).stdout;
    assert!(only.contains("1 passed, 0 failed"), "{only}");
}

#[test]
fn steps_name_what_is_there() {
    let world = World::new();
    let cases = "
  - name: wrong
    clock: noon
    given: { orders: [{ id: 1 }] }
    then:
      - { given: { order: [] }, again: [orderz], crash: comit }
    expect: { quarantine.order: [] }
";
    let file = world.file("orders.yaml", &format!("{PIPELINE}{cases}"));
    let said = world.nexus(&["check", text(&file)]).expect_code(2).stderr;
    for part in [
        "`noon` is not a time",
        "gives rows to `order`, which is no source",
        "has `orderz` give records again, which is no source",
        "`comit` is not a choice of `crash`",
        "did you mean `quarantine.orders`?",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
