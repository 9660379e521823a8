//! A pipeline that never ends by itself, and how it is stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::balance::count;
use crate::servers::{postgres, proxy::Proxy};
use crate::world::{World, ask, run_args, table_files};

/// How long a run may take to end once it is told to: it waits 20 s for sinks that do not answer.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Writes a pipeline over numbered rows, some thousand a second, with the rows also in Postgres.
pub fn endless_pipeline(world: &World, lake: &Path) -> PathBuf {
    world.file(
        "endless.yaml",
        &format!(
            "name: endless
lake: {}
commit: {{ every: 200ms }}
sources:
  ticks:
    generate:
      rate: 5000
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 10ms }} }}
        site: {{ choice: [reno, yuma, bend] }}
    event_time: {{ column: ts, lateness: 1s }}
bronze:
  ticks:
    from: ticks
    postgres: {{ url: pg, table: ticks, append: true }}
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS ticks, min(n) AS first FROM ticks GROUP BY 1
secrets:
  pg: {{ env: DATABASE_URL }}
",
            lake.display()
        ),
    )
}

/// Fails unless the lake holds each row from the first to some last once; gives how many.
pub fn counted(lake: &Path) -> Value {
    let rows = ask(lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM bronze.ticks");
    let all = rows[0][0].clone();
    assert_eq!(rows, [json!([all, all, 0, all])], "count, distinct, first, behind the last");
    all
}

#[test]
fn sigterm_drains_and_the_next_start_goes_on_behind() {
    let world = World::new().with_postgres();
    let lake = world.path("lake");
    let pipeline = endless_pipeline(&world, &lake);

    let mut rows = 0;
    for _ in 0..2 {
        let files = table_files(&lake, "bronze/ticks");
        let report = world.run_to_report(|world, report| {
            let mut running = world.start(&run_args(&pipeline, report, &[]));
            running.until("it has committed twice", || table_files(&lake, "bronze/ticks") >= files + 2);
            running.signal("TERM");
            assert!(running.ends_within(DRAIN_MAX), "the run did not drain");
            running.wait()
        });
        rows += count(&report["tables"]["bronze.ticks"], "rows_out");
        assert_eq!(counted(&lake), json!(rows), "what the runs report is what the lake holds");
    }

    let postgres = "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM ticks";
    assert_eq!(world.ask_postgres(postgres), [json!([rows, rows, 0, rows])]);
    // A stop is not the end of input: a second that was cut in two by it is given once, whole.
    let seconds = "SELECT count(*) = count(DISTINCT second), bool_and(ticks = 100), min(first) FROM gold.seconds";
    assert_eq!(ask(&lake, seconds), [json!([true, true, 0])]);
}

#[test]
fn a_stop_while_postgres_hangs_ends_in_time_and_the_next_start_lands_the_rows() {
    let mut world = World::new().with_postgres();
    let lake = world.path("lake");
    let proxy = Proxy::start(postgres::shared().port, u64::MAX);
    let direct = world.env("DATABASE_URL").to_owned();
    let port = |port: u16| format!(":{port}/");
    world.set("DATABASE_URL", &direct.replace(&port(postgres::shared().port), &port(proxy.port)));
    let pipeline = endless_pipeline(&world, &lake);
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];
    let committed = |files: usize| table_files(&lake, "bronze/ticks") >= files;

    let mut running = world.start(&args);
    running.until("it has committed twice", || committed(2));
    proxy.set_rate(20);
    let before = table_files(&lake, "bronze/ticks");
    running.until("the lake goes on", || committed(before + 4));
    running.signal("TERM");
    assert!(running.ends_within(DRAIN_MAX), "the run did not end though its rows are durable");
    let said = running.wait().expect_code(1).said();
    assert!(said.contains("bronze.ticks/postgres") && said.contains("the next start goes on"), "{said}");
    let rows = counted(&lake);
    let landed = &postgres::ask(&direct, "SELECT count(*) FROM ticks")[0][0];
    assert!(landed.as_u64() < rows.as_u64(), "Postgres was not behind: {landed} of {rows}");

    proxy.set_rate(u64::MAX);
    let before = table_files(&lake, "bronze/ticks");
    let mut running = world.start(&args);
    running.until("it has committed again", || committed(before + 2));
    running.signal("TERM");
    running.wait().expect_code(0);
    let rows = counted(&lake);
    let all = [json!([rows, rows, 0, rows])];
    assert_eq!(postgres::ask(&direct, "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM ticks"), all);
}
