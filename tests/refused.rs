//! Rows that Postgres refuses: they are in the quarantine once, all others land, and a redrive brings them to Postgres alone.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{World, ask, table_files};

/// Rows of each file.
const ROWS: usize = 50;

/// Files.
const FILES: usize = 4;

fn write_events(world: &World, files: std::ops::Range<usize>) {
    for file in files {
        let mut lines = String::new();
        for n in file * ROWS..(file + 1) * ROWS {
            let name = if n % 25 == 7 { "null" } else { "\"some\"" };
            let _ = writeln!(lines, "{{\"n\":{n},\"name\":{name},\"v\":{}}}", n % 10);
        }
        world.file(&format!("events-{file}.json"), &lines);
    }
}

fn pipeline(world: &World, input: &str, commit: &str) -> PathBuf {
    let text = format!(
        "name: refused
lake: ./lake
commit: {{ {commit} }}
sources:
  events:
    file: {{ {input} }}
    columns: {{ n: int64 not null, name: string, v: int64 }}
bronze:
  events:
    from: events
    postgres: {{ url: pg, table: events, append: true }}
silver:
  values:
    sql: SELECT v, n, name FROM bronze.events
    postgres: {{ url: pg, table: newest, key: [v], delete_when: name IS NULL OR n >= 195 }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    );
    world.file("refused.yaml", &text)
}

const TABLES: &str = "CREATE TABLE events (n bigint, name text NOT NULL, v smallint CONSTRAINT low CHECK (v < 9),
        _source text, _partition text, _offset bigint, _ingested_at timestamptz);
    CREATE TABLE newest (v bigint PRIMARY KEY, n bigint, name text)";

/// What is refused of rows: no name, or a nine.
fn refused(rows: usize) -> (u64, u64) {
    let no_name = (0..rows).filter(|n| n % 25 == 7).count();
    (no_name as u64, (0..rows).filter(|n| n % 10 == 9).count() as u64)
}

fn count(world: &World, sql: &str) -> u64 {
    world.ask_postgres(sql)[0][0].as_u64().expect("a count")
}

const QUARANTINED: &str = "SELECT count(*), count(DISTINCT json_extract(decode(raw), '$.n')),
    count(*) FILTER (contains(reason, 'SQLSTATE 23502') AND contains(reason, 'column name')),
    count(*) FILTER (contains(reason, 'SQLSTATE 23514') AND contains(reason, 'constraint low')
        AND contains(reason, 'column v')),
    max(attempts), count(*) FILTER (rule = 'refused by postgres' AND redrivable AND _source = 'events'
        AND parse_filename(_partition) LIKE 'events-%' AND _offset IS NOT NULL)
    FROM quarantine.\"bronze.events\"";

#[test]
fn refused_rows_are_in_the_quarantine_and_a_redrive_brings_them_to_postgres_alone() {
    let world = World::new().with_postgres();
    world.change_postgres(TABLES);
    let lake = world.path("lake");
    write_events(&world, 0..FILES);
    let file = pipeline(&world, "path: events-*.json", "every: 1h, bytes: 2000B");
    let report = world.run(&file, &[]);
    let rows = (FILES * ROWS) as u64;
    let (no_name, nines) = refused(FILES * ROWS);
    let bad = no_name + nines;
    let sink = &report["sinks"]["bronze.events"];
    assert_eq!((sink["postgres"]["rows"].as_u64(), sink["postgres"]["refused"].as_u64()), (Some(rows), Some(bad)));
    assert_eq!(sink["quarantine"]["rows"].as_u64(), Some(bad), "{report}");
    assert_eq!(count(&world, "SELECT count(*) FROM events"), rows - bad);
    assert_eq!(ask(&lake, QUARANTINED), [json!([bad, bad, no_name, nines, 0, bad])]);
    let audit = world.nexus(&["audit", &file.display().to_string(), "--json"]);
    assert_eq!(audit.status.code(), Some(0), "{}", audit.said());
    let audit: Value = serde_json::from_str(&audit.stdout).expect("the audit is JSON");
    assert_eq!(audit["sinks"]["bronze.events/postgres"]["refused"].as_u64(), Some(bad), "{audit}");
    assert_eq!(audit["sinks"]["bronze.events/postgres"]["rows"].as_u64(), Some(rows - bad), "{audit}");

    // The newest row of each value, but of those whose newest deletes.
    let newest = "SELECT v, n FROM newest ORDER BY v";
    let expected = (0..10_u64).filter_map(|v| {
        let n = (0..rows).filter(|n| n % 10 == v).max()?;
        (n < 195).then(|| json!([v, n]))
    });
    assert_eq!(world.ask_postgres(newest), expected.collect::<Vec<_>>());

    // Half of what was wrong is corrected, and then the rest.
    let stored = table_files(&lake, "bronze/events");
    world.change_postgres("ALTER TABLE events DROP CONSTRAINT low");
    for left in [no_name, 0] {
        let redriven = world.nexus(&["redrive", &file.display().to_string()]);
        redriven.expect_code(0);
        assert_eq!(count(&world, "SELECT count(*) FROM events"), rows - left);
        assert_eq!(count(&world, "SELECT count(DISTINCT n) FROM events"), rows - left);
        assert_eq!(ask(&lake, "SELECT count(*) FROM bronze.events"), [json!([rows])]);
        if left > 0 {
            assert_eq!(ask(&lake, QUARANTINED), [json!([left, left, left, 0, 1, left])]);
        }
        world.nexus(&["audit", &file.display().to_string()]).expect_code(0);
        world.change_postgres("ALTER TABLE events ALTER name DROP NOT NULL");
    }
    assert_eq!(table_files(&lake, "bronze/events"), stored);
    assert_eq!(table_files(&lake, "_quarantine/bronze.events"), 0);
}

#[test]
fn refused_rows_come_to_the_quarantine_while_nothing_else_comes() {
    let world = World::new().with_postgres();
    world.change_postgres(TABLES);
    write_events(&world, 0..1);
    let file = pipeline(&world, "path: events-*.json, follow: true", "every: 200ms");
    let lake = world.path("lake");
    let mut running = world.start(&["run", &file.display().to_string()]);
    let (no_name, nines) = refused(ROWS);
    running.until("the refused rows are in the quarantine", || {
        table_files(&lake, "_quarantine/bronze.events") > 0
            && ask(&lake, QUARANTINED)
                == [json!([no_name + nines, no_name + nines, no_name, nines, 0, no_name + nines])]
    });
    let left = "SELECT count(*) FROM nexus.refused";
    running.until("Postgres has forgotten them", || count(&world, left) == 0);
    running.signal("TERM");
    assert!(running.ends_within(Duration::from_secs(30)));
    running.wait().expect_code(0);
    world.nexus(&["audit", &file.display().to_string()]).expect_code(0);
}
