//! The newest version of each key, as from a database's log of changes: killed at any step, and what is refused.

use std::fmt::Write as _;

use serde_json::json;

use crate::world::{Random, World, ask};

/// How many files a run reads, one after another, each an epoch.
const FILES: usize = 24;

/// Changes in a file.
const CHANGES: usize = 30;

fn pipeline(world: &World, rule: &str) -> String {
    let text = format!(
        "name: newest
lake: ./lake
commit: {{ every: 1h, bytes: 1B }}
sources:
  changes:
    file: {{ path: \"changes-*.json\" }}
    columns: {{ id: int64 not null, version: int64, at: timestamp not null, name: string }}
    event_time: {{ column: at, lateness: 1h }}
silver:
  customers:
    sql: SELECT id, version, at, name FROM changes
    unique: {{ key: [id], within: 30d, keep: newest, order_by: version }}
    expect: {{ named: {{ that: {rule} }} }}
    postgres: {{ url: pg, table: customers, key: [id] }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    );
    world.file("newest.yaml", &text).display().to_string()
}

/// Writes versions of some customers, out of order, and some of them twice.
fn write_changes(world: &World) {
    let mut random = Random::seeded();
    let mut version = 0;
    for file in 0..FILES {
        let mut lines = Vec::new();
        for _ in 0..CHANGES {
            version += 1;
            let (id, minute) = (random.below(10 + 5 * file), version / 10);
            let at = format!("2026-11-01T{:02}:{:02}:00Z", minute / 60, minute % 60);
            let name = if version % 9 == 0 { "null".to_owned() } else { format!("\"name {version}\"") };
            let line = format!("{{\"id\":{id},\"version\":{version},\"at\":\"{at}\",\"name\":{name}}}");
            let place = random.below(lines.len() + 1);
            lines.insert(place, line.clone());
            if version % 7 == 0 {
                lines.push(line);
            }
        }
        let text = lines.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        world.file(&format!("changes-{file:03}.json"), &text);
    }
}

fn check(world: &World, of: &str) {
    let changes = format!(
        "read_json('{}', columns = {{id: 'BIGINT', version: 'BIGINT', name: 'VARCHAR'}})",
        world.path("changes-*.json").display()
    );
    let batch = format!(
        "SELECT id, max(version), arg_max(coalesce(name, '-'), version) FROM {changes} WHERE {of} GROUP BY id ORDER BY id"
    );
    let expected = ask(&world.path("lake"), &batch);
    assert_eq!(world.ask_postgres("SELECT id, version, coalesce(name, '-') FROM customers ORDER BY id"), expected);
    let lake = "SELECT id, max(version), arg_max(coalesce(name, '-'), _sequence) FROM silver.customers GROUP BY id ORDER BY id";
    assert_eq!(ask(&world.path("lake"), lake), expected, "as another reader finds it in the lake");
}

/// The places at which a process dies, one after another, each in an epoch behind those of the one before.
const DEATHS: [&str; 9] = [
    "before_snapshot:2",
    "after_snapshot:2",
    "before_record:2",
    "after_record:2",
    "before_postgres_commit:2",
    "after_postgres_commit:2",
    "after_commit:4",
    "before_committed_note:2",
    "before_acknowledge:2",
];

#[test]
fn killed_on_the_way_each_customer_is_what_the_newest_change_says() {
    let mut world = World::new().with_postgres();
    write_changes(&world);
    let file = pipeline(&world, "name IS NOT NULL");
    for point in DEATHS {
        world.set("NEXUS_FAIL_POINT", point);
        let died = world.nexus(&["run", &file]);
        assert_eq!(died.status.code(), None, "the process did not die at {point}:\n{}", died.said());
    }
    world.set("NEXUS_FAIL_POINT", "");
    let report = world.run(std::path::Path::new(&file), &[]);
    assert!(report["tables"]["silver.customers"]["duplicates"].as_u64() > Some(0), "{report}");
    check(&world, "name IS NOT NULL");
    let shown = world.nexus(&["query", &file, "SELECT count(*) - count(DISTINCT id) AS twice FROM silver.customers"]);
    assert!(shown.expect_code(0).stdout.contains("| 0 "), "a customer is there twice");

    // Older versions that are sent again replace no newer ones.
    let lenient = pipeline(&world, "id >= 0");
    world.nexus(&["redrive", &lenient]).expect_code(0);
    check(&world, "true");
    world.nexus(&["audit", &lenient]).expect_code(0);
}

#[test]
fn a_change_whose_key_may_have_been_forgotten_goes_to_the_quarantine() {
    let world = World::new().with_postgres();
    let line = |id: usize, version: usize, day: usize| {
        format!("{{\"id\":{id},\"version\":{version},\"at\":\"2026-11-{day:02}T00:00:00Z\",\"name\":\"{version}\"}}\n")
    };
    let file = pipeline(&world, "true");
    let text = std::fs::read_to_string(&file).expect("it has just been written").replace("within: 30d", "within: 2d");
    let file = world.file("newest.yaml", &text).display().to_string();
    for (number, lines) in
        [line(1, 5, 1) + &line(2, 6, 10), line(1, 4, 2) + &line(2, 3, 1) + &line(3, 1, 9)].iter().enumerate()
    {
        world.file(&format!("changes-{number:03}.json"), lines);
    }
    world.run(std::path::Path::new(&file), &[]);
    let held = "SELECT raw->>'id', rule, redrivable FROM (SELECT decode(raw)::JSON AS raw, rule, redrivable FROM quarantine.\"silver.customers\")";
    assert_eq!(ask(&world.path("lake"), held), [json!(["1", "late", false])]);
    let customers = "SELECT id, version FROM customers ORDER BY id";
    assert_eq!(world.ask_postgres(customers), [json!([1, 5]), json!([2, 6]), json!([3, 1])]);
    world.nexus(&["audit", &file]).expect_code(0);
}

#[test]
fn what_has_no_newest_row_is_refused() {
    let world = World::new();
    let whole = std::fs::read_to_string(pipeline(&world, "true")).expect("it has just been written");
    let sink = "postgres: { url: pg, table: customers, key: [id] }";
    for (from, to, reason) in [
        (sink, "postgres: { url: pg, table: customers, append: true }", "a sink that can: `postgres: { key: [id] }`"),
        (sink, "postgres: { url: pg, table: customers, key: [id, name] }", "a sink that can"),
        ("order_by: version", "order_by: versoin", "the table has no column `versoin`"),
        ("order_by: version", "order_by: name", "neither a whole number"),
        ("keep: newest, ", "", "of the rows that came first, none is newer"),
        ("keep: newest", "keep: latest", "is not a choice of `keep`"),
        ("version, at, name FROM", "version, name FROM", "no column with the event time"),
        (
            "SELECT id, version, at, name FROM changes",
            "SELECT id, date_trunc('hour', at) AS at, max(version) AS version, min(name) AS name FROM changes GROUP BY 1, 2",
            "one row for each key already",
        ),
        ("secrets:", "gold:\n  all: { from: silver.customers }\nsecrets:", "whose rows change"),
    ] {
        let changed = whole.replace(from, to);
        assert_ne!(changed, whole, "{from}");
        let file = world.file("wrong.yaml", &changed).display().to_string();
        let said = world.nexus(&["check", &file]).expect_code(2).said();
        assert!(said.contains(reason), "{reason}:\n{said}");
    }
}
