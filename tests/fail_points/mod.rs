//! Killed at every step of the commit protocol, and started again with other cuts: the tables are those of a run that
//! nothing disturbed, and `nexus audit` finds them whole.
//!
//! What is picked depends on a seed alone, which a failure prints: `NEXUS_TEST_SEED=<seed> NEXUS_TEST_CRASHES=1` shows
//! it again. `NEXUS_TEST_CRASHES` is the number of runs; `make soak` has 500.

mod mutations;
mod pipelines;
mod scene;
mod shutdown;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nexus_operators::fail::POINTS;

use crate::world::Random;
use scene::{Cuts, Ended, Kind, Scene, Source};

/// Runs of `make test`: each fail point once, and once more for some.
const RUNS: usize = 60;

/// How often a fail point is tried once more that no run has reached.
const MORE_TRIES: usize = 8;

/// Runs from which on each fail point has to be reached [`REACHED_MIN`] times.
const SOAK_RUNS: usize = 500;

/// How often each fail point is reached at least in a soak.
const REACHED_MIN: usize = 10;

/// Runs at once, unless `NEXUS_TEST_AT_ONCE` says otherwise: a run waits for its disk and its servers as long as it
/// computes.
const AT_ONCE: usize = 4;

/// Where a process is to die, or a step to fail.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    point: &'static str,
    passing: usize,
    fails: bool,
}

/// Gives how often a run passes a fail point at most, as far as it is worth to let it die there.
fn passings(point: &str) -> usize {
    match point {
        "before_claim"
        | "before_start_record"
        | "after_claim"
        | "before_state_sweep"
        | "after_state_sweep"
        | "before_table"
        | "after_table"
        | "before_checkpoint"
        | "after_checkpoint"
        | "before_history"
        | "after_history" => 1,
        "before_log_begin" | "after_log_begin" => 2,
        "before_sweep" | "after_sweep" | "before_message_removal" | "after_message_removal" => 3,
        "after_write"
        | "before_file"
        | "after_file"
        | "before_part"
        | "after_part"
        | "before_upload_note"
        | "after_upload_note"
        | "before_note_removal"
        | "after_note_removal" => 12,
        _ => 5,
    }
}

/// Gives the point that a seed tries first: seeds that follow on each other try one after the other.
fn first_point(seed: u64) -> &'static str {
    POINTS[usize::try_from(seed % POINTS.len() as u64).expect("there are few points")]
}

/// Gives the number of the round through all points that a seed is in.
fn round(seed: u64) -> u64 {
    seed / POINTS.len() as u64
}

/// Tells whether a seed tries its first point at the first passing, which every run has; two of three rounds do.
fn at_first_passing(seed: u64) -> bool {
    round(seed) % 3 != 2
}

/// Picks a pipeline, fail points and cuts by a seed, and gives which points were reached, and whether by dying.
fn crash(seed: u64) -> Result<Vec<(&'static str, bool)>, String> {
    let mut random = Random::of(seed);
    let first = first_point(seed);
    let kind = Kind::passing(first, &mut random);
    let passing = if at_first_passing(seed) { 1 } else { 1 + random.below(passings(first)) };
    let mut attempts = vec![Attempt { point: first, passing, fails: round(seed) % 4 == 3 }];
    let others: Vec<&'static str> = POINTS.iter().copied().filter(|point| kind.passes(point)).collect();
    for _ in 0..random.below(3) {
        let point = random.one_of(&others);
        let passing = 1 + random.below(passings(point));
        attempts.push(Attempt { point, passing, fails: random.below(4) == 0 });
    }
    let told = format!("{kind:?} with {attempts:?}");
    let mut scene = Scene::new(kind);
    let mut reached = Vec::new();
    for Attempt { point, passing, fails } in attempts {
        let cuts = kind.cuts(&mut random);
        let ended = scene.dies(point, passing, fails, cuts).map_err(|why| format!("{told}, {cuts:?}: {why}"))?;
        if ended == Ended::Reached {
            reached.push((point, !fails));
        }
    }
    scene.ends_whole(kind.cuts(&mut random)).map_err(|why| format!("{told}: {why}"))?;
    Ok(reached)
}

/// Does runs side by side until all are done or one fails; gives what they give.
fn side_by_side<T: Send>(runs: usize, run: impl Fn(usize) -> Result<T, String> + Sync) -> Vec<T> {
    let (next, done, failed) = (AtomicUsize::new(0), Mutex::<Vec<T>>::default(), Mutex::<Vec<String>>::default());
    let at_once = std::env::var("NEXUS_TEST_AT_ONCE").ok();
    let at_once = at_once.map_or(AT_ONCE, |text| text.parse().expect("NEXUS_TEST_AT_ONCE is a number"));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= runs || !failed.lock().expect("a run has panicked").is_empty() {
                        return;
                    }
                    match run(number) {
                        Ok(one) => done.lock().expect("a run has panicked").push(one),
                        Err(why) => failed.lock().expect("a run has panicked").push(why),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("a run has panicked");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    done.into_inner().expect("a run has panicked")
}

#[test]
fn killed_at_every_step() {
    let seed = Random::seeded().seed();
    let runs = std::env::var("NEXUS_TEST_CRASHES").ok();
    let runs = runs.map_or(RUNS, |text| text.parse().expect("NEXUS_TEST_CRASHES is a number"));
    let reached = side_by_side(runs, |run| {
        let seed = seed.wrapping_add(run as u64);
        let reached = crash(seed)
            .map_err(|why| format!("run {run}; see it again with NEXUS_TEST_SEED={seed} NEXUS_TEST_CRASHES=1\n{why}"));
        if run % 25 == 24 {
            println!("run {run}, seed {seed}");
        }
        reached
    });
    let mut times: BTreeMap<&str, (usize, usize)> = POINTS.iter().map(|point| (*point, (0, 0))).collect();
    let mut count = |point, died| {
        let (killed, failed) = times.entry(point).or_default();
        *if died { killed } else { failed } += 1;
    };
    reached.iter().flatten().for_each(|(point, died)| count(point, *died));
    // Where a point was asked for at a passing that its run did not have, or time decides whether it is passed, other
    // runs try it at the first passing.
    if runs >= RUNS {
        let is_reached = |point: &str| reached.iter().flatten().any(|(of, _)| *of == point);
        for point in POINTS.iter().filter(|point| !is_reached(point)) {
            let mut more = seed.wrapping_add(runs as u64);
            for _ in 0..MORE_TRIES {
                while first_point(more) != *point || !at_first_passing(more) {
                    more = more.wrapping_add(1);
                }
                let why = |why| panic!("see it again with NEXUS_TEST_SEED={more} NEXUS_TEST_CRASHES=1\n{why}");
                let found = crash(more).unwrap_or_else(why);
                println!("{point} was not reached, and is tried with seed {more}: {found:?}");
                found.iter().for_each(|(point, died)| count(point, *died));
                if found.iter().any(|(of, _)| of == point) {
                    break;
                }
                more = more.wrapping_add(1);
            }
        }
    }
    println!("fail point               killed  failed");
    for point in POINTS {
        let (killed, failed) = times[point];
        println!("{point:24} {killed:6} {failed:7}");
    }
    let (killed, failed) = times.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    println!("{killed} kills and {failed} failures in {runs} runs, from seed {seed} on");
    let wanted = if runs >= SOAK_RUNS { REACHED_MIN } else { usize::from(runs >= RUNS) };
    let missed: Vec<_> = times.iter().filter(|(_, (killed, failed))| killed + failed < wanted).collect();
    assert!(missed.is_empty(), "reached less than {wanted} times: {missed:?}");
}

/// Rows from files, in the lake on the disk and in Postgres.
const FILES: Kind = Kind { source: Source::Files, input: 0, on_s3: false, postgres: true };

/// Kills a pipeline with Postgres at a fail point, in its second epoch, and has it end with other cuts.
fn killed_at(point: &str) {
    let mut scene = Scene::new(FILES);
    // Each epoch with rows passes for two tables.
    for (passing, bytes) in [(3, 3_000), (2, 9_000)] {
        let ended = scene.dies(point, passing, false, Cuts::of_bytes(bytes));
        assert_eq!(ended, Ok(Ended::Reached), "{point} was not reached");
    }
    scene.ends_whole(Cuts::of_bytes(5_000)).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn killed_after_the_postgres_commit_and_before_the_epoch_is_marked_done() {
    killed_at("after_postgres_commit");
}

#[test]
fn killed_after_the_record_and_before_the_postgres_commit() {
    killed_at("before_postgres_commit");
}

#[test]
fn a_process_that_stands_still_in_mid_copy_is_overtaken() {
    // In one epoch: what an older process goes on to stage when it wakes is another matter.
    let whole = Scene::new(FILES).is_overtaken("after_copied", 1, Cuts::of_bytes(1 << 20));
    whole.unwrap_or_else(|why| panic!("{why}"));
}
