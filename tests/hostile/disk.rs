//! A local disk that is full, or cannot be written: the run ends with an error that says what failed and what to do,
//! nothing is lost, and a new run comes to the whole result once there is room.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{FILES, Input, assert_same, audit, each_run, epoch_bytes, lake_rows, path, pipeline, write_pipeline};
use crate::world::{Finished, Random, World};

/// Size of the small disk: more than the first epochs of a run need, and less than a run with an epoch for each file.
const DISK_KIB: usize = 64;

/// A file system of its own in memory, in a mount namespace of its own. It goes when this is dropped.
struct SmallDisk {
    holder: Child,
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it on a folder, and gives a way to it that everyone has.
    fn mount(on: &Path, kib: usize) -> Self {
        let script =
            format!("mount -t tmpfs -o size={kib}k,mode=777 tmpfs {on} && echo mounted && exec cat", on = on.display());
        let mut holder = Command::new("unshare")
            .args(["-Urm", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("could not run unshare");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut said).expect("its output can be read");
        assert_eq!(said, "mounted\n", "this test needs user namespaces (unshare -Urm), and they are not allowed here");
        // The way through the holder's root sees what is mounted there.
        let folder = PathBuf::from(format!("/proc/{}/root{}", holder.id(), on.display()));
        Self { holder, folder }
    }

    /// Gives it another size.
    fn resize(&self, kib: usize) {
        self.remount(&format!("size={kib}k"));
    }

    /// Mounts it again with other options.
    fn remount(&self, options: &str) {
        let inside = self.folder.display().to_string();
        let inside = inside.split_once("/root").expect("the way leads through a root").1.to_owned();
        let done = Command::new("nsenter")
            .args(["-t", &self.holder.id().to_string(), "-U", "-m", "--preserve-credentials"])
            .args(["mount", "-o", &format!("remount,{options}"), &inside])
            .status();
        assert!(done.is_ok_and(|status| status.success()), "could not mount the small disk again with {options}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What lies on the disk that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The lake, with the state in it.
    Lake,
    /// The state store.
    State,
    /// The rows on their way to Postgres, which is away.
    Spool,
}

/// How the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    /// There is no room.
    Full(Part),
    /// It is mounted again without the right to write, as after an error of the device.
    ReadOnly(Part),
}

const FAILURES: [Failure; 5] = [
    Failure::Full(Part::Lake),
    Failure::Full(Part::State),
    Failure::Full(Part::Spool),
    Failure::ReadOnly(Part::Lake),
    Failure::ReadOnly(Part::State),
];

/// Fails unless the run has ended with an error that names the file and says what to do.
fn ended_well(finished: &Finished, failure: Failure) {
    assert_eq!(finished.status.code(), Some(1), "{failure:?}: {}", finished.said());
    let error = finished.stderr.split_once("error: ").map_or("", |(_, error)| error);
    let (what, advice) = match failure {
        Failure::Full(_) => ("No space left on device", "free space"),
        Failure::ReadOnly(_) => ("Read-only file system", "let nexus write there"),
    };
    for part in ["could not", "/proc/", what, advice] {
        assert!(error.contains(part), "{failure:?}: the error does not say `{part}`: {error}");
    }
    assert!(!error.contains("bug"), "{failure:?}: {error}");
}

fn on_a_failing_disk(seed: u64, failure: Failure) {
    let (Failure::Full(part) | Failure::ReadOnly(part)) = failure;
    let mut random = Random::of(seed);
    let input = Input::random(&mut random, 14);
    let mut world = World::new();
    let mounted = world.path("disk");
    fs::create_dir(&mounted).expect("could not make a folder");
    let disk = SmallDisk::mount(&mounted, if matches!(failure, Failure::Full(_)) { DISK_KIB } else { 64 * 1024 });
    let with_postgres = part == Part::Spool;
    if with_postgres {
        world = world.with_postgres();
    }
    let (lake, state) = match part {
        Part::Lake => (disk.folder.join("lake"), None),
        Part::State | Part::Spool => (world.path("lake"), Some(disk.folder.join("state"))),
    };
    let write = |world: &World, bytes: u64| {
        let mut text = pipeline(&lake.display().to_string(), &format!("1h, bytes: {bytes}B"), FILES, with_postgres);
        if let Some(state) = &state {
            text = format!("state: {}\n{text}", state.display());
        }
        write_pipeline(world, &text)
    };
    let there = world.has("DATABASE_URL").then(|| world.env("DATABASE_URL").to_owned());
    if with_postgres {
        // Nothing listens on this port: all rows stay in the spool.
        world.set("DATABASE_URL", "postgres://postgres@127.0.0.1:1/away?sslmode=disable");
    }
    input.write(&world);

    if matches!(failure, Failure::ReadOnly(_)) {
        // One epoch is committed; then the disk fails.
        world.set("NEXUS_FAIL_POINT", "after_record:2");
        assert_eq!(world.nexus(&["run", path(&write(&world, 1))]).status.code(), None, "it did not die");
        world.set("NEXUS_FAIL_POINT", "");
        disk.remount("ro");
    }
    let bytes = if matches!(failure, Failure::Full(_)) { 1 } else { epoch_bytes(&mut random) };
    let file = write(&world, bytes);
    ended_well(&world.nexus(&["run", path(&file)]), failure);
    // It is no better a second time.
    ended_well(&world.nexus(&["run", path(&file)]), failure);

    match failure {
        Failure::Full(_) => disk.resize(64 * 1024),
        Failure::ReadOnly(_) => disk.remount("rw"),
    }
    if let Some(url) = there {
        world.set("DATABASE_URL", &url);
    }
    world.nexus(&["run", path(&write(&world, epoch_bytes(&mut random)))]).expect_code(0);
    assert_same(&lake_rows(&lake), &input.undisturbed(), "the tables");
    audit(&world, &file);
}

#[test]
fn a_disk_that_is_full_or_fails_ends_the_run_and_loses_nothing() {
    each_run(1, &FAILURES, |seed| {
        FAILURES.iter().for_each(|failure| on_a_failing_disk(seed, *failure));
        FAILURES.map(|failure| (failure, 1)).into()
    });
}
