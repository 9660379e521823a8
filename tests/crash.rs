//! Killed at any moment and started again: the same tables, no row lost or
//! doubled. And of two processes, only the newer commits.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cloud::{cloud, kinesis_pipeline, uploads_pipeline};
use crate::endless::{counted, endless_pipeline};
use crate::flights::{check_bronze, check_same_gold, check_tables, files_pipeline};
use crate::world::{Random, World, ask, table_files};

/// How often a run is killed before it may end.
const KILLS: u32 = 4;

/// How long an idle process may take to find out that it is not the newest: it looks every 5 s.
const FENCED_MAX: Duration = Duration::from_secs(20);

/// Starts a pipeline `KILLS` times and kills it at moments within `whole`, the time that a run takes without a kill.
fn kill_on_the_way(world: &World, pipeline: &Path, more: &[&str], whole: Duration) {
    let mut random = Random::seeded();
    let args = [&["run", pipeline.to_str().expect("the tests' paths are UTF-8")], more].concat();
    let mut kills = 0;
    for round in 0..KILLS {
        // The first kill surely hits, also where the machine was three times as busy when `whole` was measured; what is
        // left for the later ones depends on what was committed before.
        let after = whole.mul_f64(random.between(0.02, 0.3));
        let mut running = world.start(&args);
        if running.ends_within(after) {
            running.wait().expect_code(0);
            break;
        }
        println!("killing round {round} after {after:?}");
        running.signal("KILL");
        let ended = running.wait();
        if ended.status.success() {
            // It was done just before the signal came.
            break;
        }
        assert_eq!(ended.status.code(), None, "a killed process has no exit code");
        kills += 1;
    }
    assert!(kills > 0, "no kill hit: the run ended before {whole:?}");
}

/// Measures how long an uninterrupted run takes.
fn timed(run: impl FnOnce()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}

#[test]
fn files_read_under_kills_give_the_same_tables() {
    let undisturbed = World::new().with_postgres();
    let pipeline = files_pipeline(&undisturbed, &undisturbed.path("lake"), "1MiB");
    let whole = timed(|| {
        undisturbed.run(&pipeline, &[]);
    });

    let world = World::new().with_postgres();
    let lake = world.path("lake");
    let pipeline = files_pipeline(&world, &lake, "1MiB");
    kill_on_the_way(&world, &pipeline, &[], whole);
    world.run(&pipeline, &[]);

    check_bronze(&lake);
    check_tables(&lake);
    check_same_gold(&world, &lake);
}

#[test]
fn a_stream_read_under_kills_gives_the_same_tables() {
    let world = cloud();
    let bucket = world.bucket("lake");
    let pipeline = kinesis_pipeline(&world, &bucket, "2MiB");

    // No run ends before its five idle seconds, and reading comes before them.
    kill_on_the_way(&world, &pipeline, &["--until-idle", "5s"], Duration::from_secs(20));
    world.run(&pipeline, &["--until-idle", "5s"]);

    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    assert_eq!(world.aws(&["parts", &bucket]), "0", "multipart uploads of killed processes were not swept");
}

#[test]
fn announced_objects_read_under_kills_give_the_same_tables() {
    let world = cloud();
    let bucket = world.bucket("lake");
    let (pipeline, queue) = uploads_pipeline(&world, &bucket, "2MiB");

    kill_on_the_way(&world, &pipeline, &[], Duration::from_secs(30));
    // What a killed process held comes back when its visibility ends; only then is the source idle.
    let mut rest = world.start(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")]);
    rest.until("the queue is empty", || world.aws(&["depth", &queue]) == "0");
    rest.signal("TERM");
    rest.wait().expect_code(0);
    world.run(&pipeline, &["--until-idle", "2s"]);

    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    assert_eq!(world.aws(&["parts", &bucket]), "0", "multipart uploads of killed processes were not swept");
}

#[test]
fn a_second_process_fences_the_first() {
    let world = World::new().with_postgres();
    let lake = world.path("lake");
    let pipeline = endless_pipeline(&world, &lake);
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];

    let mut older = world.start(&args);
    older.until("it has committed twice", || table_files(&lake, "bronze/ticks") >= 2);
    let mut newer = world.start(&args);
    let stopped = older.wait().expect_code(1);
    let before = table_files(&lake, "bronze/ticks");
    let said = stopped.said();
    assert!(said.contains("generation") || said.contains("fence"), "the older does not say why it stopped:\n{said}");

    newer.until("it has committed", || table_files(&lake, "bronze/ticks") >= before + 2);
    newer.signal("TERM");
    newer.wait().expect_code(0);
    let rows = counted(&lake);
    let postgres = "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM ticks";
    assert_eq!(world.ask_postgres(postgres), [json!([rows, rows, 0, rows])], "rows in Postgres");
}

#[test]
fn a_second_process_fences_one_that_has_nothing_to_do() {
    let world = World::new();
    let lake = world.path("lake");
    world.file("first.json", "{\"n\":1}\n");
    let pipeline = world.file(
        "watch.yaml",
        &format!(
            "name: watch\nlake: {}\ncommit: {{ every: 100ms }}\nsources:\n  events:\n    \
             file: {{ path: \"*.json\", follow: true }}\n    format: json\n    columns: {{ n: int64 }}\n\
             bronze:\n  events: {{ from: events }}\n",
            lake.display()
        ),
    );
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];

    let mut older = world.start(&args);
    older.until("it has committed", || table_files(&lake, "bronze/events") == 1);
    let newer = world.start(&args);
    assert!(older.ends_within(FENCED_MAX), "the older process was not fenced");
    let said = older.wait().expect_code(1).said();
    assert!(said.contains("another process has taken over"), "the older does not say why it stopped:\n{said}");

    world.file("second.json", "{\"n\":2}\n");
    let mut newer = newer;
    newer.until("it has committed", || table_files(&lake, "bronze/events") == 2);
    newer.signal("TERM");
    newer.wait().expect_code(0);
    assert_eq!(ask(&lake, "SELECT n FROM bronze.events ORDER BY n"), [json!([1]), json!([2])]);
}

/// The places of the commit protocol at which a process may die, and after how many passings: each of the four sinks
/// is once the one whose commit was just about to begin (its record exists, Postgres knows nothing of it), and once the
/// one whose commit was just over (Postgres has the rows, the epoch is not marked done).
const DEATHS: [&str; 19] = [
    "before_barrier:2",
    "before_snapshot:3",
    "after_snapshot:3",
    "before_prepare:9",
    "after_prepare:9",
    "before_record:2",
    "after_record:2",
    "before_commit:1",
    "before_commit:2",
    "before_commit:3",
    "before_commit:4",
    "after_commit:1",
    "after_commit:2",
    "after_commit:3",
    "after_commit:4",
    "before_committed_note:2",
    "after_committed_note:2",
    "before_acknowledge:2",
    "after_acknowledge:2",
];

#[test]
fn a_death_at_each_place_of_the_commit_protocol_loses_and_doubles_nothing() {
    let mut world = World::new().with_postgres();
    let lake = world.path("lake");
    let pipeline = numbers_pipeline(&world, &lake);
    let args = ["run", pipeline.to_str().expect("the tests' paths are UTF-8")];

    // Each process dies where the one before it had come to in the rows: every place is passed with state to restore.
    for place in DEATHS {
        world.set("NEXUS_FAIL_POINT", place);
        let died = world.nexus(&args);
        assert_eq!(died.status.code(), None, "the process did not die at {place}:\n{}", died.said());
    }
    world.set("NEXUS_FAIL_POINT", "");
    world.nexus(&args).expect_code(0);

    let all = json!([NUMBERS, NUMBERS, 0, NUMBERS - 1]);
    let rows = "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM";
    assert_eq!(ask(&lake, &format!("{rows} bronze.numbers")), std::slice::from_ref(&all));
    assert_eq!(world.ask_postgres(&format!("{rows} numbers")), [all]);
    let tens = json!([NUMBERS / 10, NUMBERS / 10, true]);
    let windows = "SELECT count(*), count(DISTINCT second), bool_and(numbers = 10) FROM";
    assert_eq!(ask(&lake, &format!("{windows} gold.seconds")), std::slice::from_ref(&tens));
    assert_eq!(world.ask_postgres(&format!("{windows} seconds")), [tens]);
}

/// Rows of each of two streams that are joined: some 5 seconds of them.
const ORDERS: u64 = 100_000;

#[test]
fn joins_of_streams_under_kills_lose_and_double_nothing() {
    let world = World::new();
    let lake = world.path("lake");
    let stream = |name: &str, time: &str| {
        format!(
            "  {name}:
    generate:
      rows: {ORDERS}
      rate: 20000
      columns:
        n: {{ sequence: {{}} }}
        {time}: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 10ms }} }}
    event_time: {{ column: {time}, lateness: 1s }}
"
        )
    };
    let third = "p.n = o.n AND p.n % 3 = 0 AND p.at BETWEEN o.ts AND o.ts + INTERVAL '1 second'";
    let pipeline = world.file(
        "orders.yaml",
        &format!(
            "name: orders
lake: {}
commit: {{ every: 100ms }}
sources:
{}{}gold:
  paid:
    sql: SELECT o.n, o.ts, p.n AS payment FROM orders o LEFT JOIN payments p ON {third}
  unpaid:
    sql: SELECT o.n FROM orders o WHERE NOT EXISTS (SELECT 1 FROM payments p WHERE {third})
  newest:
    sql: >
      SELECT o.n, p.n AS payment FROM orders o
      ASOF JOIN (SELECT * FROM payments WHERE n % 10 = 0) p MATCH_CONDITION (o.ts >= p.at)
vibranium:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(payment) AS paid FROM gold.paid GROUP BY 1
",
            lake.display(),
            stream("orders", "ts"),
            stream("payments", "at"),
        ),
    );
    kill_on_the_way(&world, &pipeline, &[], Duration::from_secs(8));
    world.run(&pipeline, &[]);

    let paid = ORDERS.div_ceil(3);
    let rows =
        "SELECT count(*), count(DISTINCT n), count(payment), bool_and(payment IS NULL OR payment = n) FROM gold.paid";
    assert_eq!(ask(&lake, rows), [json!([ORDERS, ORDERS, paid, true])]);
    let rows = "SELECT count(*), count(DISTINCT n), count(*) FILTER (WHERE n % 3 = 0) FROM gold.unpaid";
    assert_eq!(ask(&lake, rows), [json!([ORDERS - paid, ORDERS - paid, 0])]);
    let rows = "SELECT count(*), count(DISTINCT n), bool_and(payment = n - n % 10) FROM gold.newest";
    assert_eq!(ask(&lake, rows), [json!([ORDERS, ORDERS, true])]);
    let rows = "SELECT count(*), count(DISTINCT second), sum(paid)::BIGINT FROM vibranium.seconds";
    assert_eq!(ask(&lake, rows), [json!([ORDERS / 100, ORDERS / 100, paid])]);
    world.nexus(&["audit", pipeline.to_str().expect("the tests' paths are UTF-8")]).expect_code(0);
}

/// Rows of the pipeline of numbers: some 15 seconds of them.
const NUMBERS: u64 = 300_000;

/// Writes a pipeline over numbers, ten a second of event time, with rows and seconds in the lake and in Postgres.
fn numbers_pipeline(world: &World, lake: &Path) -> PathBuf {
    world.file(
        "numbers.yaml",
        &format!(
            "name: numbers
lake: {}
commit: {{ every: 100ms }}
sources:
  numbers:
    generate:
      rows: {NUMBERS}
      rate: 20000
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 100ms }} }}
    event_time: {{ column: ts, lateness: 1s }}
bronze:
  numbers:
    from: numbers
    postgres: {{ url: pg, table: numbers, append: true }}
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS numbers FROM numbers GROUP BY 1
    postgres: {{ url: pg, table: seconds, key: [second] }}
secrets:
  pg: {{ env: DATABASE_URL }}
",
            lake.display()
        ),
    )
}
