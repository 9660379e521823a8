//! S3, SQS and Kinesis that fail now and then, each time for a moment: a run bears that without an end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{FILES, Input, assert_same, audit, each_run, epoch_bytes, lake_rows, path, pipeline, restarted, runs};
use crate::servers::faults::{Fault, Faults, Hostility};
use crate::servers::{kinesis, ministack, unique};
use crate::world::{Random, World};

/// Runs of `make test` in each environment.
const RUNS: usize = 2;

/// A world whose services fail.
struct Scene {
    world: World,
    /// Before S3 and SQS.
    aws: Faults,
    /// Before Kinesis, where there is one.
    kinesis: Option<Faults>,
    lake: Lake,
}

enum Lake {
    Folder(PathBuf),
    Bucket(String),
}

impl Scene {
    fn new(hostility: Hostility, with_kinesis: bool, in_bucket: bool) -> Self {
        let mut world = World::new().with_aws();
        let aws = Faults::start(ministack::shared().port, hostility);
        let kinesis = with_kinesis.then(|| Faults::start(kinesis::shared().port, hostility));
        if with_kinesis {
            world = world.with_kinesis();
        }
        let lake = if in_bucket { Lake::Bucket(world.bucket("lake")) } else { Lake::Folder(world.path("lake")) };
        Self { world, aws, kinesis, lake }
    }

    /// Does something in a world whose services are reached through the proxies.
    fn through_faults<T>(&mut self, work: impl FnOnce(&mut World) -> T) -> T {
        let endpoints = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS"];
        let proxies = [Some(&self.aws), self.kinesis.as_ref()];
        let mut direct = Vec::new();
        for (name, proxy) in endpoints.into_iter().zip(proxies) {
            if let Some(proxy) = proxy {
                direct.push((name, self.world.env(name).to_owned()));
                self.world.set(name, &format!("http://127.0.0.1:{}", proxy.port));
            }
        }
        let done = work(&mut self.world);
        for (name, endpoint) in direct {
            self.world.set(name, &endpoint);
        }
        done
    }

    fn lake_url(&self) -> String {
        match &self.lake {
            Lake::Folder(folder) => folder.display().to_string(),
            Lake::Bucket(bucket) => format!("s3://{bucket}/lake"),
        }
    }

    /// Compares what is left with what should be, and has it audited.
    fn check(&self, pipeline: &Path, input: &Input) {
        let lake = match &self.lake {
            Lake::Folder(folder) => folder.clone(),
            Lake::Bucket(bucket) => self.world.download(&[bucket]).join("lake"),
        };
        assert_same(&lake_rows(&lake), &input.undisturbed(), "the tables");
        audit(&self.world, pipeline);
        if let Lake::Bucket(bucket) = &self.lake {
            assert_eq!(self.world.aws(&["parts", bucket]), "0", "uploads were not swept");
        }
    }

    fn injected(&self) -> BTreeMap<Fault, u64> {
        let mut all = self.aws.injected();
        for (fault, times) in self.kinesis.iter().flat_map(Faults::injected) {
            *all.entry(fault).or_default() += times;
        }
        all
    }
}

/// Reads files into a bucket. The first process dies, so that the second has something to restore.
fn into_a_bucket(seed: u64) -> BTreeMap<Fault, u64> {
    let mut random = Random::of(seed);
    let input = Input::random(&mut random, 5);
    let hangs = runs(RUNS) > RUNS;
    let mut scene = Scene::new(Hostility { seed, share: 0.15, hangs }, false, true);
    input.write(&scene.world);
    let url = scene.lake_url();
    let write = |world: &World, random: &mut Random| {
        let commit = format!("1h, bytes: {}B", epoch_bytes(random));
        super::write_pipeline(world, &pipeline(&url, &commit, FILES, false))
    };
    let point =
        random.one_of(&["after_claim", "after_snapshot:2", "after_prepare:6", "after_record:2", "after_commit:5"]);
    scene.through_faults(|world| {
        let file = write(world, &mut random);
        world.set("NEXUS_FAIL_POINT", point);
        let died = world.nexus(&["run", path(&file)]);
        assert_eq!(died.status.code(), None, "it did not die at {point}:\n{}", died.said());
        world.set("NEXUS_FAIL_POINT", "");
        let file = write(world, &mut random);
        let restarts = restarted(|| world.nexus(&["run", path(&file)]));
        assert_eq!(restarts, 0, "faults of a moment have ended the run");
    });
    // What a listing that lags has hidden from a sweep is left for the next, which a run with nothing new does not make.
    scene.world.file("events-none.json", "");
    let file = write(&scene.world, &mut random);
    scene.world.nexus(&["run", path(&file)]).expect_code(0);
    scene.check(&file, &input);
    scene.injected()
}

#[test]
fn a_bucket_that_fails_for_moments_is_written_as_if_it_had_not() {
    let kinds = [
        Fault::ServerError,
        Fault::SlowDown,
        Fault::Reset,
        Fault::ResetInRequest,
        Fault::ResetInAnswer,
        Fault::Slow,
        Fault::LostReply,
        Fault::Conflict,
        Fault::ErrorInAnswer,
        Fault::OldListing,
    ];
    each_run(RUNS, &kinds, into_a_bucket);
}

/// Reads a stream of three shards into a folder.
fn from_a_stream(seed: u64) -> BTreeMap<Fault, u64> {
    let mut random = Random::of(seed);
    let input = Input::random(&mut random, 5);
    let mut scene = Scene::new(Hostility { seed, share: 0.4, hangs: false }, true, false);
    let files = input.write(&scene.world);
    let stream = unique("hostile");
    scene.world.aws(&["stream", &stream, "3"]);
    scene
        .world
        .aws(&[&["put", &stream, "5"], files.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    let source = format!("kinesis: {{ stream: {stream} }}");
    let commit = format!("300ms, bytes: {}B", epoch_bytes(&mut random));
    let file = super::write_pipeline(&scene.world, &pipeline(&scene.lake_url(), &commit, &source, false));
    scene.through_faults(|world| {
        let restarts = restarted(|| world.nexus(&["run", path(&file), "--until-idle", "4s"]));
        assert_eq!(restarts, 0, "faults of a moment have ended the run");
    });
    scene.check(&file, &input);
    scene.injected()
}

#[test]
fn a_stream_that_fails_for_moments_is_read_as_if_it_had_not() {
    let kinds = [
        Fault::Throttled,
        Fault::ExpiredIterator,
        Fault::EmptyBehind,
        Fault::ServerError,
        Fault::LimitExceeded,
        Fault::LostReply,
        Fault::ResetInAnswer,
        Fault::Slow,
    ];
    each_run(RUNS, &kinds, from_a_stream);
}

/// Reads announced objects into a bucket.
fn from_a_queue(seed: u64) -> BTreeMap<Fault, u64> {
    let mut random = Random::of(seed);
    let input = Input::random(&mut random, 5);
    let mut scene = Scene::new(Hostility { seed, share: 0.4, hangs: false }, false, false);
    let files = input.write(&scene.world);
    let (landing, queue) = (scene.world.bucket("landing"), unique("hostile"));
    let url = scene.world.aws(&["announce", &landing, &queue, "5"]);
    let upload: Vec<&str> = ["upload", &landing, "in/"].into_iter().chain(files.iter().map(String::as_str)).collect();
    scene.world.aws(&upload);
    let source = format!("s3: {{ queue: \"{url}\", allow: [\"s3://{landing}/in/\"], in_flight: 2 }}");
    let commit = format!("300ms, bytes: {}B", epoch_bytes(&mut random));
    let file = super::write_pipeline(&scene.world, &pipeline(&scene.lake_url(), &commit, &source, false));
    let direct = scene.world.env("AWS_ENDPOINT_URL").to_owned();
    scene.through_faults(|world| {
        let mut running = world.start(&["run", path(&file)]);
        let through = world.env("AWS_ENDPOINT_URL").to_owned();
        world.set("AWS_ENDPOINT_URL", &direct);
        running.until("the queue is empty", || world.aws(&["depth", &url]) == "0");
        world.set("AWS_ENDPOINT_URL", &through);
        running.signal("TERM");
        running.wait().expect_code(0);
    });
    // Only the end of input closes the windows.
    scene.world.nexus(&["run", path(&file), "--until-idle", "1s"]).expect_code(0);
    assert_eq!(scene.world.aws(&["depth", &url]), "0", "messages came back that were read");
    scene.check(&file, &input);
    scene.injected()
}

#[test]
fn a_queue_that_fails_for_moments_is_read_as_if_it_had_not() {
    let kinds = [
        Fault::Redelivered,
        Fault::Shuffled,
        Fault::InvalidReceipt,
        Fault::PartialBatch,
        Fault::ServerError,
        Fault::LostReply,
        Fault::ResetInAnswer,
    ];
    each_run(RUNS, &kinds, from_a_queue);
}
