//! A stream that is split and merged under load, while the process that reads it is killed again and again.

use std::path::Path;
use std::process::Child;

use serde_json::{Value, json};

use crate::servers::unique;
use crate::world::{World, ask};

/// Records that are put before, during and after each reshard.
const RECORDS: usize = 60;

/// How often the stream is split, and how often merged: as the environment says.
fn rounds() -> usize {
    std::env::var("NEXUS_TEST_RESHARDS").map_or(1, |text| text.parse().expect("NEXUS_TEST_RESHARDS is a number"))
}

/// Puts numbered records into the stream, beside what the test does.
fn put(world: &World, stream: &str, from: usize) -> Child {
    let lines: String = (from..from + RECORDS).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let file = world.file(&format!("{from}.json"), &lines).display().to_string();
    world.script("aws.py", &["put", stream, "1", &file]).spawn().expect("could not put records")
}

/// Fails unless no row of a shard was taken in before all rows of its parents.
fn check_order(world: &World, stream: &str, lake: &Path) {
    let times =
        "SELECT _partition, min(_ingested_at)::VARCHAR, max(_ingested_at)::VARCHAR FROM bronze.events GROUP BY 1";
    let times = ask(lake, times);
    let of = |shard: &Value, column: usize| {
        let row = times.iter().find(|row| row[0] == *shard)?;
        Some(row[column].as_str().expect("a time is a text here").to_owned())
    };
    let (mut children, mut compared) = (0, 0);
    for line in world.aws(&["shards", stream]).lines() {
        let shard: Value = serde_json::from_str(line).expect("aws.py prints JSON");
        for parent in shard["parents"].as_array().expect("parents are a list") {
            children += 1;
            if let (Some(first), Some(last)) = (of(&shard["id"], 1), of(parent, 2)) {
                compared += 1;
                assert!(first >= last, "{} was read from {first} on, and its parent until {last}", shard["id"]);
            }
        }
    }
    assert_eq!(children, rounds() * 4, "a split makes two children of one, a merge one of two");
    assert!(compared > 0, "no shard with records has a parent with records: {times:?}");
}

#[test]
fn a_stream_that_is_split_and_merged_under_load_gives_every_record_once() {
    let world = World::new().with_aws().with_kinesis();
    let stream = unique("resharded");
    world.aws(&["stream", &stream, "2"]);
    let file = world.file(
        "resharded.yaml",
        &format!(
            "name: resharded\nlake: ./lake\ncommit: {{ every: 200ms }}\nsources:\n  events:\n    \
             kinesis: {{ stream: {stream} }}\n    columns: {{ n: int64 }}\nbronze:\n  events: {{ from: events }}\n"
        ),
    );
    let file = file.display().to_string();
    let committed = || {
        let found = world.nexus(&["query", &file, "SELECT count(*) AS rows FROM bronze.events"]);
        found.stdout.split_whitespace().filter_map(|word| word.parse::<usize>().ok()).next_back().unwrap_or(0)
    };
    let mut total = 0;
    for round in 0..rounds() {
        for verb in ["split", "merge"] {
            let mut running = world.start(&["run", &file]);
            for part in 0..3 {
                let mut putting = put(&world, &stream, total);
                if part == 1 {
                    // While records are put and read.
                    world.aws(&[verb, &stream]);
                }
                assert!(putting.wait().expect("could not wait for aws.py").success());
                total += RECORDS;
            }
            running.until("it has committed some of the records", || committed() > total - 3 * RECORDS);
            // In the middle of the reshard, or behind it: both happen over the rounds.
            if round % 2 == 0 {
                running.until("it has committed more", || committed() > total - 2 * RECORDS);
            }
            running.signal("KILL");
            assert!(!running.wait().status.success());
        }
    }
    // It ends by itself only once every shard has been read to its end or up to its newest record.
    world.run(Path::new(&file), &["--until-idle", "3s"]);
    let lake = world.path("lake");
    let counts = ask(&lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM bronze.events");
    assert_eq!(counts, [json!([total, total, 0, total - 1])]);
    check_order(&world, &stream, &lake);
    world.nexus(&["audit", &file]).expect_code(0);
}
