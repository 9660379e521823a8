//! Killed at any moment and started again: the same tables, no row lost or
//! doubled. And of two processes, only the newer commits.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cloud::{cloud, kinesis_pipeline, uploads_pipeline};
use crate::endless::{counted, endless_pipeline};
use crate::flights::{check_bronze, check_same_gold, check_tables, files_pipeline};
use crate::world::{Random, World, table_files};

/// How often a run is killed before it may end.
const KILLS: u32 = 4;

/// Starts a pipeline `KILLS` times and kills it at moments within `whole`, the time that a run takes without a kill.
fn kill_on_the_way(world: &World, pipeline: &Path, more: &[&str], whole: Duration) {
    let mut random = Random::seeded();
    let args = [&["run", pipeline.to_str().expect("the tests' paths are UTF-8")], more].concat();
    let mut kills = 0;
    for round in 0..KILLS {
        // The first kill surely hits; what is left for the later ones depends on what was committed before.
        let high = if round == 0 { 0.7 } else { 0.5 };
        let after = whole.mul_f64(random.between(0.02, high));
        let mut running = world.start(&args);
        if running.ends_within(after) {
            running.wait().expect_code(0);
            break;
        }
        println!("killing round {round} after {after:?}");
        running.signal("KILL");
        assert_eq!(running.wait().status.code(), None, "a killed process has no exit code");
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
    let pipeline = files_pipeline(&undisturbed, &undisturbed.path("lake"), 20_000);
    let whole = timed(|| {
        undisturbed.run(&pipeline, &[]);
    });

    let world = World::new().with_postgres();
    let lake = world.path("lake");
    let pipeline = files_pipeline(&world, &lake, 20_000);
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
    let pipeline = kinesis_pipeline(&world, &bucket, 20_000);

    // No run ends before its five idle seconds, and reading comes before them.
    kill_on_the_way(&world, &pipeline, &["--until-idle", "5s"], Duration::from_secs(9));
    world.run(&pipeline, &["--until-idle", "5s"]);

    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    assert_eq!(world.aws(&["uploads", &bucket]), "0", "multipart uploads of killed processes were not swept");
}

#[test]
fn announced_objects_read_under_kills_give_the_same_tables() {
    let world = cloud();
    let bucket = world.bucket("lake");
    let (pipeline, queue) = uploads_pipeline(&world, &bucket, 20_000);

    kill_on_the_way(&world, &pipeline, &[], Duration::from_secs(12));
    // What a killed process held comes back when its visibility ends; only then is the source idle.
    let mut rest = world.start(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")]);
    rest.until("the queue is empty", || world.aws(&["depth", &queue]) == "0");
    rest.signal("TERM");
    rest.wait().expect_code(0);
    world.run(&pipeline, &["--until-idle", "2s"]);

    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    assert_eq!(world.aws(&["uploads", &bucket]), "0", "multipart uploads of killed processes were not swept");
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
