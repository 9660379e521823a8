//! A pipeline that never ends by itself, and how it is stopped.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::balance::count;
use crate::world::{World, ask, run_args, table_files};

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
