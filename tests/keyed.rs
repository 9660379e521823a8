//! Aggregates without a window: one row for each key, which changes as long as rows come.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::world::{Random, World};

/// How many files a run reads, one after another.
const FILES: usize = 12;

/// What the pipeline of these tests reads and keeps.
fn pipeline(lake: &str, bytes: usize) -> String {
    format!(
        "name: keyed
lake: {lake}
commit: {{ every: 1h, bytes: {bytes}B }}
sources:
  events:
    file: {{ path: 'events-*.json' }}
    format: json
    columns: {{ site: string not null, kind: string, n: int64 }}
gold:
  totals:
    sql: SELECT count(*) AS events, site, sum(n) AS n, count(DISTINCT kind) AS kinds FROM events GROUP BY site
    postgres: {{ url: pg, table: totals, key: [site] }}
  kinds:
    sql: SELECT DISTINCT kind AS \"kind of\", site FROM events
    postgres: {{ url: pg, table: kinds, key: [site, \"kind of\"] }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    )
}

fn rows(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_key(ToString::to_string);
    rows
}

#[test]
fn the_newest_row_of_each_key_is_the_batch_answer_and_the_lake_has_all_changes() {
    let world = World::new().with_postgres();
    let mut random = Random::seeded();
    let lake = world.path("lake").display().to_string();
    // Sites come again long after, and one of them has no name.
    let mut write = |from: usize| {
        for file in from..from + FILES {
            let mut lines = String::new();
            for _ in 0..random.below(40) {
                let site = random.below(6 + file);
                let site = if site == 0 { Value::Null } else { json!(format!("site-{site}")) };
                let event = json!({ "site": site, "kind": (["a", "b", "c"])[random.below(3)], "n": random.below(100) });
                let _ = writeln!(lines, "{event}");
            }
            world.file(&format!("events-{file:03}.json"), &lines);
        }
    };
    // A second run goes on from the state of the first.
    for (from, bytes) in [(0, 300), (FILES, 2_000)] {
        write(from);
        let file = world.file("keyed.yaml", &pipeline(&lake, bytes));
        let report = world.run(&file, &[]);
        assert!(report["epochs"].as_u64() > Some(2), "one epoch shows nothing: {report}");
    }
    let events = format!(
        "read_json('{}', columns = {{site: 'VARCHAR', kind: 'VARCHAR', n: 'BIGINT'}})",
        world.path("events-*.json").display()
    );
    let expected = |sql: &str| rows(crate::world::ask(world.path("lake").as_path(), &sql.replace("EVENTS", &events)));
    let totals = expected(
        "SELECT count(*), site, sum(n)::BIGINT, count(DISTINCT kind) FROM EVENTS WHERE site IS NOT NULL GROUP BY site",
    );
    assert_eq!(rows(world.ask_postgres("SELECT events, site, n, kinds FROM totals")), totals);
    let kinds = expected("SELECT DISTINCT kind, site FROM EVENTS WHERE site IS NOT NULL");
    assert_eq!(rows(world.ask_postgres("SELECT \"kind of\", site FROM kinds")), kinds);

    let newest = "SELECT events, site, n, kinds FROM (SELECT *, row_number() OVER (PARTITION BY site ORDER BY _sequence DESC) AS place FROM gold.totals) WHERE place = 1";
    assert_eq!(expected(newest), totals, "as another reader finds it in the lake");

    let file = world.path("keyed.yaml");
    let query = |sql: &str| {
        world.nexus(&["query", file.to_str().expect("the tests' paths are UTF-8"), sql]).expect_code(0).stdout
    };
    let shown = query("SELECT count(*) AS rows, sum(events) AS events FROM gold.totals");
    let all: u64 = totals.iter().map(|row| row[0].as_u64().expect("a count")).sum();
    assert!(shown.contains(&format!(" {} ", totals.len())) && shown.contains(&format!(" {all} ")), "{shown}");
    let shown = query(
        "SELECT max(changes) > 2 AS several FROM (SELECT site, count(*) AS changes FROM gold.totals_changes GROUP BY site)",
    );
    assert!(shown.contains("true"), "{shown}");
    world.nexus(&["audit", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(0);
}

#[test]
fn what_would_have_to_be_taken_back_is_refused() {
    let world = World::new();
    let whole = pipeline("./lake", 1);
    let select =
        "SELECT count(*) AS events, site, sum(n) AS n, count(DISTINCT kind) AS kinds FROM events GROUP BY site";
    for (from, to, reason) in [
        ("key: [site] }", "key: [site, n] }", "write `key: [site]`"),
        ("key: [site] }", "append: true }", "an aggregate without a window"),
        (select, "SELECT count(*) AS events FROM events", "an aggregate without a window"),
        (select, "SELECT count(*) AS events FROM events GROUP BY site", "`events.site` is grouped by and not selected"),
        (select, "SELECT site, count(*) AS c FROM events GROUP BY site HAVING count(*) > 3", "HAVING"),
        (
            "  kinds:\n    sql: SELECT DISTINCT kind AS \"kind of\", site FROM events",
            "  kinds:\n    sql: SELECT site, \"kind of\" FROM (SELECT site, 'a' AS \"kind of\" FROM gold.totals)",
            "whose rows change",
        ),
        ("  kinds:", "    unique: { key: [site], within: 1d }\n  kinds:", "make the rows that it reads unique"),
        ("  kinds:", "    expect: { many: { that: events > 3, else: drop } }\n  kinds:", "only `keep` and `fail`"),
    ] {
        let changed = whole.replace(from, to);
        assert_ne!(changed, whole, "{from}");
        let file = world.file("keyed.yaml", &changed);
        let said = world.nexus(&["check", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(2).said();
        assert!(said.contains(reason), "{reason}:\n{said}");
    }
}
