//! Told to stop under load, whatever the rows come from: the run ends in time with all that it has read committed; told
//! twice, it ends at once. The next start goes on behind.

use std::time::Duration;

use super::FILES;
use super::scene::{Kind, Scene, Source};
use crate::world::Random;

/// How long a run may take to end once it is told to: it waits 20 s for what does not answer, and a busy machine is slow.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// The exit code of a run that was told twice to stop.
const ABORTED: i32 = 130;

/// How often a pipeline is stopped before it may end.
const STOPS: usize = 4;

fn stopped_under_load(source: Source) {
    let mut random = Random::seeded();
    let kind = Kind { source, on_s3: source == Source::Kinesis, ..FILES };
    let scene = Scene::new(kind);
    let (mut drained, mut aborted) = (0, 0);
    for stop in 0..STOPS {
        let mut running = scene.start(kind.cuts(&mut random));
        if running.ends_within(Duration::from_secs_f64(random.between(0.5, 2.0))) {
            running.wait().expect_code(0);
            continue;
        }
        running.signal("TERM");
        if stop % 2 == 1 {
            running.signal("INT");
        }
        assert!(running.ends_within(DRAIN_MAX), "the run of {source:?} does not end");
        let finished = running.wait();
        match finished.status.code() {
            Some(0) => drained += 1,
            Some(ABORTED) if stop % 2 == 1 => aborted += 1,
            // A process that has not come to where it listens for signals is ended by the first.
            None if finished.stderr.is_empty() => {}
            other => panic!("stop {stop} of {source:?} ended by {other:?}:\n{}", finished.said()),
        }
    }
    println!("{source:?}: {drained} times drained, {aborted} times aborted");
    scene.ends_whole(kind.cuts(&mut random)).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn files_under_stops_give_the_same_tables() {
    stopped_under_load(Source::Files);
}

#[test]
fn a_stream_under_stops_gives_the_same_tables() {
    stopped_under_load(Source::Kinesis);
}

#[test]
fn announced_objects_under_stops_give_the_same_tables() {
    stopped_under_load(Source::Queue);
}

#[test]
fn generated_rows_under_stops_give_the_same_tables() {
    stopped_under_load(Source::Generated);
}
