//! Memory stays under its limit, whatever the input's size and the sinks' speed.

use std::time::Duration;

use serde_json::json;

use crate::balance::count;
use crate::servers::{postgres, proxy::Proxy};
use crate::world::{World, ask, repository, run_args};

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
limits: {{ memory: 256MiB, record: 1MiB, spool: 8MiB }}
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

/// How many rows `pipelines/generated.yaml` makes in this test, unless NEXUS_TEST_ROWS says otherwise: enough for
/// several epochs in a debug build.
const GENERATED_ROWS: u64 = 1_000_000;

#[test]
fn generated_rows_go_through_all_tiers_within_the_limit() {
    let world = World::new();
    let lake = world.path("lake");
    let given = std::env::var("NEXUS_TEST_ROWS").ok();
    let rows = given.map_or(GENERATED_ROWS, |text| text.parse().expect("NEXUS_TEST_ROWS is a number"));
    let sets = [format!("rows={rows}"), format!("lake={}", lake.display())];

    let report = world.run_to_report(|world, report| {
        let more = ["--set", &sets[0], "--set", &sets[1]];
        let mut running = world.start(&run_args(&repository("pipelines/generated.yaml"), report, &more));
        let mut peak = 0;
        while !running.ends_within(Duration::from_millis(50)) {
            peak = running.peak_memory_bytes().unwrap_or(peak);
        }
        println!("peak memory: {} MiB", peak >> 20);
        assert!(0 < peak && peak < 512 << 20, "{peak} bytes of memory");
        running.wait()
    });

    assert_eq!(count(&report["tables"]["bronze.readings"], "rows_out"), rows);
    assert_eq!(count(&report["tables"]["silver.readings"], "duplicates"), 0);
    let all = ask(&lake, "SELECT count(*), count(DISTINCT seq), min(seq), max(seq) FROM bronze.readings");
    assert_eq!(all, [json!([rows, rows, 0, rows - 1])]);
    let minute = "date_trunc('minute', ts) AS minute, site";
    for (found, expected) in [
        (
            "SELECT count(*), sum(seq) FROM silver.readings",
            "SELECT count(*), sum(seq) FROM bronze.readings WHERE status <> 'error'",
        ),
        (
            "SELECT sum(readings), max(max_temp_c) FROM gold.site_minutes",
            "SELECT count(*), max(temp_c) FROM silver.readings",
        ),
        (
            "SELECT count(*), sum(devices) FROM gold.site_minutes",
            &format!(
                "SELECT count(*), sum(d) FROM (SELECT {minute}, count(DISTINCT device) AS d FROM silver.readings GROUP BY 1, 2)"
            ),
        ),
        ("SELECT count(*) FROM vibranium.busy_minutes", "SELECT count(*) FROM gold.site_minutes WHERE readings > 5400"),
    ] {
        assert_eq!(ask(&lake, found), ask(&lake, expected), "{found}");
    }
}

/// Rows whose keys are remembered in the test below, unless NEXUS_TEST_KEYS says otherwise: their keys take more than
/// the 16 MiB that state has there, if they are all held in a map.
const KEYS: u64 = 600_000;

/// Windows that are open at once in the test below, unless NEXUS_TEST_WINDOWS says otherwise: their states take more than
/// the 16 MiB that state has there.
const WINDOWS: u64 = 250_000;

/// Rows of each side of the joins in the test below, unless NEXUS_TEST_JOINED says otherwise: what waits of them takes
/// more than the memory that state has there.
const JOINED: u64 = 600_000;

/// How far apart partners are in their streams: rows of many epochs are kept before the first of theirs comes.
const APART: u64 = 200_000;

#[test]
fn remembered_keys_outgrow_the_memory_for_state() {
    let world = World::new();
    let rows = number("NEXUS_TEST_KEYS", KEYS);
    let keys = 3 * rows;
    let table = "silver:
  events:
    sql: SELECT k, ts FROM bronze.events
    unique: { key: [k], within: 1d }
";
    let report = run_within(&world, rows, Some(keys), 64 + rows / 20_000, table);
    let lake = world.path("lake");
    let distinct = ask(&lake, "SELECT count(DISTINCT k), sum(DISTINCT k) FROM bronze.events");
    assert_eq!(ask(&lake, "SELECT count(*), sum(k) FROM silver.events"), distinct);
    let kept = distinct[0][0].as_u64().expect("a count is a number");
    assert_eq!(count(&report["tables"]["silver.events"], "duplicates"), rows - kept);
    assert!(rows - kept > rows / 10, "too few duplicates to prove anything");
}

#[test]
fn open_windows_outgrow_the_memory_for_state() {
    let world = World::new();
    let windows = number("NEXUS_TEST_WINDOWS", WINDOWS);
    let table = "gold:
  days:
    sql: |
      SELECT date_bin(INTERVAL '1 day', ts) AS day, k, count(*) AS events, min(ts) AS first, max(ts) AS last,
        avg(CAST(k AS DOUBLE)) AS mean
      FROM bronze.events GROUP BY 1, 2
";
    run_within(&world, 4 * windows, Some(windows), 64 + windows / 20_000, table);
    let states = "SELECT time_bucket(INTERVAL '1 day', ts) AS day, k, count(*) AS events, min(ts) AS first,
        max(ts) AS last, avg(CAST(k AS DOUBLE)) AS mean FROM bronze.events GROUP BY 1, 2";
    let given = "SELECT day, k, events, first, last, mean FROM gold.days";
    same_rows(&world.path("lake"), states, given, windows * 9 / 10);
}

#[test]
fn rows_of_keys_without_a_window_outgrow_the_memory_for_state() {
    let world = World::new().with_postgres();
    let keys = number("NEXUS_TEST_WINDOWS", WINDOWS);
    let table = "gold:
  totals:
    sql: |
      SELECT k, count(*) AS events, min(ts) AS first, max(ts) AS last, avg(CAST(k AS DOUBLE)) AS mean
      FROM bronze.events GROUP BY k
    postgres: { url: pg, table: totals, key: [k], create: true }
secrets: { pg: { env: DATABASE_URL } }
";
    run_within(&world, 4 * keys, Some(keys), 64 + keys / 20_000, table);
    let all = "SELECT k, count(*) AS events, min(ts) AS first, max(ts) AS last, avg(CAST(k AS DOUBLE)) AS mean
        FROM bronze.events GROUP BY 1";
    let newest = "SELECT * EXCLUDE (_sequence) FROM gold.totals
        QUALIFY row_number() OVER (PARTITION BY k ORDER BY _sequence DESC) = 1";
    same_rows(&world.path("lake"), all, newest, keys * 9 / 10);
}

#[test]
fn newest_rows_outgrow_the_memory_for_state() {
    let world = World::new().with_postgres();
    let keys = number("NEXUS_TEST_WINDOWS", WINDOWS);
    let table = "silver:
  events:
    sql: SELECT k, ts FROM bronze.events
    unique: { key: [k], within: 1d, keep: newest, order_by: ts }
    postgres: { url: pg, table: events, key: [k], create: true }
secrets: { pg: { env: DATABASE_URL } }
";
    let report = run_within(&world, 3 * keys, Some(keys), 64 + keys / 20_000, table);
    let lake = world.path("lake");
    let all = "SELECT k, max(ts) AS ts FROM bronze.events GROUP BY 1";
    let newest = "SELECT k, ts FROM silver.events
        QUALIFY row_number() OVER (PARTITION BY k ORDER BY _sequence DESC) = 1";
    same_rows(&lake, all, newest, keys * 9 / 10);
    let table = &report["tables"]["silver.events"];
    assert_eq!(count(table, "rows_out") + count(table, "duplicates"), 3 * keys);
}

/// Fails unless two queries give the same rows, and at least so many.
fn same_rows(lake: &std::path::Path, one: &str, other: &str, least: u64) {
    let union = format!("SELECT count(*) FROM (SELECT * FROM ({one}) UNION SELECT * FROM ({other}))");
    let all = format!("SELECT count(*), (SELECT count(*) FROM ({other})), ({union}) FROM ({one})");
    let answer = ask(lake, &all);
    let rows = answer[0][0].as_u64().expect("a count is a number");
    assert_eq!(answer, [json!([rows, rows, rows])], "rows of the one, of the other, and of both together");
    assert!(rows >= least, "only {rows} rows");
}

#[test]
fn rows_of_joins_outgrow_the_memory_for_state() {
    let world = World::new();
    let rows = number("NEXUS_TEST_JOINED", JOINED);
    // Each row of the right comes long after its partner; all of them may have others until the end.
    let left = "SELECT k, ts FROM bronze.events";
    let right = format!("SELECT k - {APART} AS k, k % 3 AS third, ts FROM bronze.events WHERE k % 2 = 0");
    let within = "ON l.k = r.k AND r.ts BETWEEN l.ts AND l.ts + INTERVAL '1 day'";
    let table = format!(
        "silver:
  left: {{ sql: '{left}', store: false }}
  right: {{ sql: '{right}', store: false }}
gold:
  met:
    sql: SELECT l.k, l.ts, r.third, r.ts AS later FROM silver.left l LEFT JOIN silver.right r {within}
  followed:
    sql: SELECT l.k, l.ts FROM silver.left l LEFT SEMI JOIN silver.right r {within}
  newest:
    sql: |
      SELECT l.k, l.ts, r.k AS other, r.ts AS before
      FROM silver.left l ASOF JOIN silver.right r MATCH_CONDITION (l.ts >= r.ts) ON l.k - {APART} - {APART} = r.k
"
    );
    run_within(&world, rows, None, 64 + rows / 20_000, &table);
    let lake = world.path("lake");
    let sides = format!("WITH l AS ({left}), r AS ({right})");
    for (batch, given, least) in [
        (
            format!("{sides} SELECT l.k, l.ts, r.third, r.ts AS later FROM l LEFT JOIN r {within}"),
            "SELECT k, ts, third, later FROM gold.met",
            rows,
        ),
        (format!("{sides} SELECT l.k, l.ts FROM l SEMI JOIN r {within}"), "SELECT k, ts FROM gold.followed", rows / 4),
        (
            format!(
                "{sides} SELECT l.k, l.ts, r.k AS other, r.ts AS before
                FROM l ASOF LEFT JOIN r ON l.k - {APART} - {APART} = r.k AND l.ts >= r.ts"
            ),
            "SELECT k, ts, other, before FROM gold.newest",
            rows,
        ),
    ] {
        same_rows(&lake, &batch, given, least);
    }
}

/// Sessions of the test below, unless NEXUS_TEST_WINDOWS says otherwise: the states of those that are open at once take
/// half as much again as the 22 MiB that state has there.
const SESSIONS: u64 = 150_000;

#[test]
fn open_sessions_outgrow_the_memory_for_state() {
    let world = World::new();
    let sessions = number("NEXUS_TEST_WINDOWS", SESSIONS);
    // Half of all rows come within the gap: of most keys there is one that keeps a session open, and some end.
    let gap = format!("INTERVAL '{} milliseconds'", 2 * sessions);
    let name = "lpad(CAST(k AS VARCHAR), 40, '-')";
    let table = format!(
        "gold:
  visits:
    sql: |
      SELECT session(ts, {gap}) AS first, window_end(session(ts, {gap})) AS over, k, count(*) AS events,
        max({name}) AS name, avg(CAST(k AS DOUBLE)) AS mean
      FROM bronze.events GROUP BY session(ts, {gap}), k
"
    );
    run_within(&world, 4 * sessions, Some(sessions), 64 + sessions / 6_000, &table);
    let states = format!(
        "WITH marked AS (SELECT ts, k, CASE WHEN lag(ts) OVER of_k + {gap} > ts THEN 0 ELSE 1 END AS fresh
            FROM bronze.events WINDOW of_k AS (PARTITION BY k ORDER BY ts)),
        numbered AS (SELECT ts, k, sum(fresh) OVER (PARTITION BY k ORDER BY ts) AS number FROM marked)
        SELECT min(ts) AS first, max(ts) + {gap} AS over, k, count(*) AS events, max({name}) AS name,
        avg(CAST(k AS DOUBLE)) AS mean FROM numbered GROUP BY k, number"
    );
    let given = "SELECT first, over, k, events, name, mean FROM gold.visits";
    same_rows(&world.path("lake"), &states, given, sessions);
}

/// Gives a number of the environment, or what it is without one.
fn number(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Generates rows with keys from 1 to `keys`, or in a sequence from 0, for a table, and gives the report.
fn run_within(world: &World, rows: u64, keys: Option<u64>, memory_mib: u64, table: &str) -> serde_json::Value {
    let keys = keys.map_or("sequence: {}".to_owned(), |keys| format!("integer: {{ min: 1, max: {keys} }}"));
    let pipeline = world.file(
        "state.yaml",
        &format!(
            "name: state
lake: ./lake
commit: {{ every: 1h, bytes: 2MiB }}
limits: {{ memory: {memory_mib}MiB }}
sources:
  events:
    generate:
      rows: {rows}
      seed: 5
      columns:
        k: {{ {keys} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 1ms }} }}
    event_time: {{ column: ts, lateness: 1s }}
bronze:
  events: {{ from: events }}
{table}"
        ),
    );
    world.run_to_report(|world, report| {
        let started = std::time::Instant::now();
        let mut running = world.start(&run_args(&pipeline, report, &[]));
        let mut peak = 0;
        while !running.ends_within(Duration::from_millis(50)) {
            peak = running.peak_memory_bytes().unwrap_or(peak);
        }
        let (peak, elapsed) = (peak >> 20, started.elapsed().as_secs_f64());
        println!("{rows} rows in {elapsed:.1} s, peak of memory {peak} MiB under a limit of {memory_mib} MiB");
        running.wait()
    })
}
