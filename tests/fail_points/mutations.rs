//! Every step of the commit protocol, left out or swapped: the tests notice.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use nexus_operators::fail::MUTATIONS;

use super::scene::{Cuts, Ended, Kind, Scene, Source};
use super::{FILES, side_by_side};

/// How long an idle process may take to find out that it is not the newest: it looks every 5 s.
const FENCED_MAX: Duration = Duration::from_secs(20);

/// What a queue's messages are cut into is left to chance: a mutation has to be noticed in one of so many tries.
const TRIES: usize = 3;

/// What is done to a pipeline so that a mutation matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trial {
    /// It is killed at the n-th passing of a fail point, and then runs to its end.
    Killed(&'static str, usize),
    /// The same, with a lake on S3.
    KilledOnS3(&'static str, usize),
    /// The same, with objects that a queue announces.
    KilledOverQueue(&'static str, usize),
    /// It stands still at the n-th passing, and goes on when another process has run to the end.
    Overtaken(&'static str, usize),
    /// It waits for files when another process starts.
    Idle,
    /// It runs twice, the second time over the same files.
    Again,
}

impl Trial {
    /// Gives where a step matters.
    fn of(mutation: &str) -> Self {
        match mutation {
            "acknowledge_before_record" => Trial::KilledOverQueue("before_record", 1),
            "commit_before_record" => Trial::Killed("before_record", 3),
            "done_before_commit" | "no_redo" => Trial::Killed("after_record", 3),
            "no_removal_of_claims" | "no_fence" => Trial::Idle,
            "no_committed_note" => Trial::Again,
            "no_keys" | "no_windows" | "no_positions" => Trial::Killed("before_record", 4),
            "no_note_in_postgres" => Trial::Killed("after_postgres_commit", 2),
            "no_spool" | "spool_removed_early" => Trial::Killed("before_postgres_commit", 2),
            "no_sweep" => Trial::Killed("after_prepare", 6),
            "no_upload_note" => Trial::KilledOnS3("after_part", 2),
            "overwritten_record" => Trial::Overtaken("after_fence_check", 2),
            "snapshots_removed_early" => Trial::Killed("before_record", 5),
            other => panic!("nobody knows where {other} matters"),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Trial::KilledOnS3(..) => Kind { on_s3: true, ..FILES },
            Trial::KilledOverQueue(..) => Kind { source: Source::Queue, ..FILES },
            _ => FILES,
        }
    }

    /// Does it, and tells what is wrong afterwards.
    fn run(self, mutation: &str) -> Result<(), String> {
        let mut scene = Scene::new(self.kind());
        scene.world.set("NEXUS_MUTATION", mutation);
        match self {
            Trial::Killed(point, passing)
            | Trial::KilledOnS3(point, passing)
            | Trial::KilledOverQueue(point, passing) => {
                // An object is lost only if its end was read in the same epoch as its rows.
                let bytes = if self.kind().source == Source::Queue { 1 << 20 } else { 3_000 };
                let ended = scene.dies(point, passing, false, Cuts::of_bytes(bytes))?;
                if ended == Ended::Well {
                    return Err(format!("{point} was not reached"));
                }
                scene.ends_whole(Cuts::of_bytes(9_000))
            }
            Trial::Overtaken(point, passing) => scene.is_overtaken(point, passing, Cuts::of_bytes(3_000)),
            Trial::Idle => scene.is_fenced_when_idle(FENCED_MAX),
            Trial::Again => {
                scene.ends_whole(Cuts::of_bytes(9_000))?;
                let said = scene.run(Cuts::of_bytes(9_000)).said();
                if said.contains("nothing new") {
                    Ok(())
                } else {
                    Err(format!("there is nothing new, and yet:\n{said}"))
                }
            }
        }
    }
}

#[test]
fn a_step_that_is_left_out_is_noticed() {
    let passed: Mutex<BTreeSet<Trial>> = Mutex::default();
    let noticed = side_by_side(MUTATIONS.len(), |number| {
        let mutation = MUTATIONS[number];
        let trial = Trial::of(mutation);
        let why = (0..TRIES).find_map(|_| trial.run(mutation).err());
        let Some(why) = why else { return Err(format!("nobody notices {mutation}")) };
        // The same without it is whole: it is the mutation that is noticed.
        if passed.lock().expect("a trial has panicked").insert(trial) {
            trial.run("").map_err(|why| format!("without {mutation}: {why}"))?;
        }
        Ok(format!("{mutation}: {}", why.lines().take(4).collect::<Vec<_>>().join(" ")))
    });
    println!("{}", noticed.join("\n"));
}
