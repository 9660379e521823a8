//! Memory stays under its limit, whatever the input's size and the sinks' speed.

use std::time::Duration;

use serde_json::json;

use crate::balance::count;
use crate::servers::{postgres, proxy::Proxy};
use crate::world::{World, ask, run_args};

/// What the pipelines of these tests may use.
const MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// How many rows the slow run is given: far more, in bytes, than what the spool takes.
const ROWS: u64 = 3_000_000;

#[test]
fn a_sink_slowed_to_a_crawl_holds_the_source_back() {
    let mut world = World::new().with_postgres();
    let lake = world.path("lake");
    // A few rows a second reach Postgres until the test lets them through.
    let proxy = Proxy::start(postgres::shared().port, 2_000);
    let direct = world.env("DATABASE_URL").to_owned();
    let slow = direct.replace(&format!(":{}/", postgres::shared().port), &format!(":{}/", proxy.port));
    world.set("DATABASE_URL", &slow);
    let pipeline = world.file(
        "slow.yaml",
        &format!(
            "name: slow
lake: {}
commit: {{ every: 500ms, bytes: 4MiB }}
limits: {{ memory: 256MiB, spool: 8MiB }}
sources:
  events:
    generate:
      rows: {ROWS}
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 10ms }} }}
        site: {{ choice: [reno, yuma, bend] }}
        value: {{ number: {{ min: 0, max: 100 }} }}
    event_time: {{ column: ts, lateness: 1s }}
bronze:
  events:
    sql: SELECT n, ts, site, value FROM events
    postgres: {{ url: pg, table: events, append: true }}
secrets:
  pg: {{ env: DATABASE_URL }}
",
            lake.display()
        ),
    );

    let report = world.run_to_report(|world, report| {
        let mut running = world.start(&run_args(&pipeline, report, &[]));
        let in_lake = || table_rows(&lake);
        running.until("it has committed to the lake", || in_lake() > 0);
        // Wait until the lake has stopped growing: the source is held back. The bound on the spool is far below the rows.
        let mut last = 0;
        let mut still = 0;
        while still < 5 {
            assert!(!running.ends_within(Duration::from_secs(1)), "the run ended though its sink is slow");
            let now = in_lake();
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        assert!(last < ROWS / 2, "the source was not held back: {last} of {ROWS} rows are in the lake");
        let peak = running.peak_memory_bytes().expect("it runs");
        assert!(peak < MEMORY_BYTES, "{peak} bytes of memory");
        proxy.set_rate(u64::MAX);
        while !running.ends_within(Duration::from_millis(200)) {
            // The process may end between the two looks; then there is no more to look at.
            let Some(peak) = running.peak_memory_bytes() else { break };
            assert!(peak < MEMORY_BYTES, "{peak} bytes of memory");
        }
        running.wait()
    });

    assert_eq!(count(&report["tables"]["bronze.events"], "rows_out"), ROWS);
    assert_eq!(count(&report["sinks"]["bronze.events"]["postgres"], "rows"), ROWS);
    let all = [json!([ROWS, ROWS, 0, ROWS - 1])];
    assert_eq!(ask(&lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM bronze.events"), all);
    assert_eq!(postgres::ask(&direct, "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM events"), all);
}

/// Counts the rows that the lake's table holds by now.
fn table_rows(lake: &std::path::Path) -> u64 {
    if crate::world::table_files(lake, "bronze/events") == 0 {
        return 0;
    }
    ask(lake, "SELECT count(*) FROM bronze.events")[0][0].as_u64().expect("a count is a number")
}

#[test]
fn generated_rows_go_through_all_tiers_within_the_limit() {
    let world = World::new();
    let lake = world.path("lake");
    let rows = 1_000_000;
    let pipeline = world.file(
        "generated.yaml",
        &format!(
            "name: generated
lake: {}
limits: {{ memory: 256MiB }}
sources:
  events:
    generate:
      rows: {rows}
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 1ms }} }}
        site: {{ choice: [reno, yuma, bend] }}
        value: {{ integer: {{ min: 0, max: 100 }} }}
    event_time: {{ column: ts, lateness: 1s }}
bronze:
  events: {{ from: events }}
silver:
  events:
    sql: SELECT n, ts, site, value FROM bronze.events WHERE value < 50
    partition_by: [site]
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, site, count(*) AS events, sum(value) AS total FROM silver.events GROUP BY 1, 2
vibranium:
  busy:
    sql: SELECT second, site, events FROM gold.seconds WHERE events > 180
",
            lake.display()
        ),
    );

    let report = world.run_to_report(|world, report| {
        let mut running = world.start(&run_args(&pipeline, report, &[]));
        let mut peak = 0;
        while !running.ends_within(Duration::from_millis(50)) {
            peak = running.peak_memory_bytes().unwrap_or(peak);
        }
        assert!(0 < peak && peak < MEMORY_BYTES, "{peak} bytes of memory");
        running.wait()
    });

    assert_eq!(count(&report["tables"]["bronze.events"], "rows_out"), rows);
    assert_eq!(ask(&lake, "SELECT count(*) FROM bronze.events"), [json!([rows])]);
    for (found, expected) in [
        ("SELECT count(*), sum(n) FROM silver.events", "SELECT count(*), sum(n) FROM bronze.events WHERE value < 50"),
        ("SELECT sum(events), sum(total) FROM gold.seconds", "SELECT count(*), sum(value) FROM silver.events"),
        (
            "SELECT count(*) FROM gold.seconds",
            "SELECT count(DISTINCT (date_trunc('second', ts), site)) FROM silver.events",
        ),
        ("SELECT count(*) FROM vibranium.busy", "SELECT count(*) FROM gold.seconds WHERE events > 180"),
    ] {
        assert_eq!(ask(&lake, found), ask(&lake, expected), "{found}");
    }
}
