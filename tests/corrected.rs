//! Windows that late rows correct: killed at any step, after a change of the file, and by rows of the quarantine.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::world::{Random, World, ask};

/// How many files a run reads, one after another, each an epoch.
const FILES: usize = 24;

/// Rows of a file.
const ROWS: usize = 20;

const UPDATE: &str = "late: { update: { within: 30d } }";

fn pipeline(world: &World, late: &str, rule: &str) -> String {
    let text = format!(
        "name: corrected
lake: ./lake
commit: {{ every: 1h, bytes: 1B }}
sources:
  events:
    file: {{ path: \"events-*.json\" }}
    columns: {{ n: int64 not null, ts: timestamp not null, site: string not null }}
    event_time: {{ column: ts }}
silver:
  events: {{ sql: \"SELECT n, ts, site FROM events\", expect: {{ known: {{ that: {rule} }} }} }}
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS c, sum(n) AS n FROM silver.events GROUP BY 1, 2
    {late}
    postgres: {{ url: pg, table: hours, key: [hour, site] }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    );
    world.file("corrected.yaml", &text).display().to_string()
}

fn line(n: usize, minute: usize) -> String {
    let (day, hour) = (1 + minute / 1440, minute / 60 % 24);
    format!("{{\"n\":{n},\"ts\":\"2026-11-{day:02}T{hour:02}:{:02}:00Z\",\"site\":\"s{}\"}}\n", minute % 60, n % 3)
}

/// Writes files whose times go on, with rows of hours long gone among them.
fn write_events(world: &World) {
    let mut random = Random::seeded();
    for file in 0..FILES {
        let mut lines = String::new();
        for row in 0..ROWS {
            let now = 60 * file + 3 * row;
            let _ = write!(lines, "{}", line(file * ROWS + row, random.below(now + 1).max(random.below(now + 1))));
        }
        world.file(&format!("events-{file:03}.json"), &lines);
    }
}

/// What is in Postgres, and what a batch over all rows gives.
fn found_and_expected(world: &World, of: &str) -> (Vec<Value>, Vec<Value>) {
    let events = format!(
        "read_json('{}', columns = {{n: 'BIGINT', ts: 'TIMESTAMP', site: 'VARCHAR'}})",
        world.path("events-*.json").display()
    );
    let batch = format!(
        "SELECT epoch(date_trunc('hour', ts))::BIGINT AS h, site, count(*), sum(n)::BIGINT FROM {events} WHERE {of}
         GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let postgres = "SELECT extract(epoch FROM hour)::bigint, site COLLATE \"C\", c, n::bigint FROM hours ORDER BY 1, 2";
    (world.ask_postgres(postgres), ask(&world.path("lake"), &batch))
}

/// The places at which a process dies, one after another, each in an epoch behind those of the one before.
const DEATHS: [&str; 12] = [
    "before_snapshot:2",
    "after_snapshot:2",
    "before_prepare:5",
    "before_record:2",
    "after_record:2",
    "before_postgres_commit:2",
    "after_postgres_commit:2",
    "before_file:2",
    "after_commit:4",
    "before_committed_note:2",
    "after_committed_note:2",
    "before_acknowledge:2",
];

#[test]
fn killed_on_the_way_the_newest_rows_are_the_batch_answer() {
    let mut world = World::new().with_postgres();
    write_events(&world);
    let file = pipeline(&world, UPDATE, "true");
    for point in DEATHS {
        world.set("NEXUS_FAIL_POINT", point);
        let died = world.nexus(&["run", &file]);
        assert_eq!(died.status.code(), None, "the process did not die at {point}:\n{}", died.said());
    }
    world.set("NEXUS_FAIL_POINT", "");
    let report = world.run(std::path::Path::new(&file), &[]);
    let table = &report["tables"]["gold.hours"];
    assert!(table["correcting"].as_u64() > Some(0) && table["late"] == json!(0), "{table}");
    let (found, expected) = found_and_expected(&world, "true");
    assert_eq!(found, expected);
    let newest = "SELECT count(*)::BIGINT, sum(c)::BIGINT FROM (SELECT *, row_number() OVER (PARTITION BY hour, site
        ORDER BY _sequence DESC) AS place FROM gold.hours) WHERE place = 1";
    assert_eq!(ask(&world.path("lake"), newest), [json!([expected.len(), FILES * ROWS])]);
    let shown = world.nexus(&["query", &file, "SELECT sum(c) AS rows FROM gold.hours"]).expect_code(0).stdout;
    assert!(shown.contains(&format!(" {} ", FILES * ROWS)), "{shown}");
    world.nexus(&["audit", &file]).expect_code(0);
}

#[test]
fn windows_of_which_no_state_was_kept_are_left_as_they_are() {
    let world = World::new().with_postgres();
    let hours = |from: usize, to: usize| (from * 60..to * 60).map(|n| line(n, n)).collect::<String>();
    world.file("events-000.json", &hours(0, 3));
    world.run(std::path::Path::new(&pipeline(&world, "late: quarantine", "true")), &[]);

    // What these rows would make of their hours, whose states are gone, would be wrong.
    world.file("events-001.json", &(line(9000, 5) + &hours(5, 7) + &line(9001, 70)));
    let update = pipeline(&world, UPDATE, "true");
    let report = world.run(std::path::Path::new(&update), &[]);
    assert_eq!(report["tables"]["gold.hours"]["late"], json!(2));
    let (found, expected) = found_and_expected(&world, "n < 9000");
    assert_eq!(found, expected);

    // Those that were given out since are corrected; and later still, when their time is over, they are not.
    world.file("events-002.json", &(line(9002, 310) + &line(9003, 65)));
    world.run(std::path::Path::new(&update), &[]);
    let (found, expected) = found_and_expected(&world, "n < 9000 OR n = 9002");
    assert_eq!(found, expected);
    let brief = pipeline(&world, "late: { update: { within: 1h, else: drop } }", "true");
    world.file("events-003.json", &(hours(20, 21) + &line(9004, 20 * 60 + 5)));
    world.file("events-004.json", &(line(9005, 400) + &line(9006, 20 * 60 + 6)));
    let report = world.run(std::path::Path::new(&brief), &[]);
    assert_eq!(report["tables"]["gold.hours"]["late"], json!(1));
    let (found, expected) = found_and_expected(&world, "n < 9000 OR n IN (9002, 9004, 9006)");
    assert_eq!(found, expected);
    let late = "SELECT count(*) FROM quarantine.\"gold.hours\"";
    assert_eq!(ask(&world.path("lake"), late), [json!([3])]);
    world.nexus(&["audit", &brief]).expect_code(0);
}

#[test]
fn rows_of_the_quarantine_correct_their_windows() {
    let world = World::new().with_postgres();
    write_events(&world);
    world.run(std::path::Path::new(&pipeline(&world, UPDATE, "n % 5 <> 1")), &[]);
    let (found, expected) = found_and_expected(&world, "n % 5 <> 1");
    assert_eq!(found, expected);
    let file = pipeline(&world, UPDATE, "true");
    world.nexus(&["redrive", &file]).expect_code(0);
    let (found, expected) = found_and_expected(&world, "true");
    assert_eq!(found, expected);
    world.nexus(&["audit", &file]).expect_code(0);
}

#[test]
fn what_cannot_be_corrected_is_refused() {
    let world = World::new();
    let sink = "postgres: { url: pg, table: hours, key: [hour, site] }";
    let hour = "date_bin(INTERVAL '1 hour', ts) AS hour";
    let file = pipeline(&world, UPDATE, "true");
    let whole = std::fs::read_to_string(&file).expect("it has just been written");
    for (from, to, reason) in [
        (sink, "postgres: { url: pg, table: hours, append: true }", "a sink that can: `postgres: { key: [...] }`"),
        (sink, "postgres: { url: pg, table: hours, key: [hour] }", "write `key: [hour, site]`"),
        (hour, "session(ts, INTERVAL '1 hour') AS hour", "one session of two"),
        (hour, "date_part('hour', ts) AS hour", "the query has no windows"),
        ("GROUP BY 1, 2", "GROUP BY 1, 2 HAVING count(*) > 1", "HAVING"),
        (", site, count", ", count", "is grouped by and not selected"),
        (UPDATE, &format!("{UPDATE}\n    expect: {{ few: {{ that: c < 9 }} }}"), "only `keep` and `fail`"),
        ("within: 30d", "within: 0s", "no window would be corrected"),
        ("within: 30d", "within: 30d, else: update", "is not a choice of `else`"),
        ("secrets:", "vibranium:\n  all: { from: gold.hours }\nsecrets:", "whose rows change"),
    ] {
        let changed = whole
            .replace(from, to)
            .replace("GROUP BY 1, 2", if to == ", count" { "GROUP BY 1, site" } else { "GROUP BY 1, 2" });
        assert_ne!(changed, whole, "{from}");
        let file = world.file("wrong.yaml", &changed).display().to_string();
        let said = world.nexus(&["check", &file]).expect_code(2).said();
        assert!(said.contains(reason), "{reason}:\n{said}");
    }
}
