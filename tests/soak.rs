//! Two pipelines under a steady load and random faults, for as long as `NEXUS_TEST_SOAK_MINUTES` says: memory stays
//! flat, and every row is in the lake and in Postgres once. `make soak-hour` runs it for an hour.
//!
//! Processes are killed, told to stop and started again in parts of the time only: a restart hides a leak. Between them
//! lie long stretches in which a process lives on, while Postgres crashes, connections are cut and servers are away.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::servers::{ministack, postgres, postgres::Postgres, proxy::Proxy};
use crate::world::{Random, Running, World, ask, files};

/// How long the soak of `make test` takes.
const MINUTES: f64 = 1.0;

/// The parts of the time in which no process is ended.
const STRETCHES: [Range<f64>; 2] = [0.2..0.5, 0.65..1.0];

/// What a pipeline may use.
const MEMORY_BYTES: u64 = 256 << 20;

/// The part of the time in which a new process warms up: keys of five minutes come together, and the allocator keeps
/// for each thread what that thread once needed.
const WARM_UP_PART: u32 = 20;

/// From this length on a stretch tells whether memory is flat.
const STRETCH_MIN: Duration = Duration::from_secs(300);

/// How much higher the floor of memory may be in the second half of a stretch than in the first. The floor is what
/// three of four samples are above: what a fault piles up comes and goes, and what leaks never goes.
const GROWTH_MAX: f64 = 1.15;

/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// Time for a server to recover before the next fault.
const FAULTS_APART_MIN: Duration = Duration::from_secs(4);

/// How long a run may take to end once it is told to: it waits 20 s for sinks that do not answer.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// Files of a state store beside records, checkpoints and claims: snapshots of the time that windows and keys span,
/// and what waits for Postgres while it is away.
const STATE_FILES_MAX: usize = 400;

/// A pipeline under load, and what stands between it and its servers.
struct Lane<'a> {
    name: &'static str,
    world: World,
    pipeline: PathBuf,
    /// The bucket of the lake; on the local disk if there is none.
    bucket: Option<String>,
    postgres: Proxy,
    s3: Option<Proxy>,
    /// The database's URL past the proxy.
    direct: String,
    server: &'a Postgres,
    running: Option<Running>,
    /// When the network is to be whole again.
    heals_at: Option<Instant>,
    next_fault: Instant,
    next_end: Instant,
    samples: Vec<Sample>,
    told: BTreeMap<&'static str, u64>,
    /// What processes said that ended without being told to.
    unasked: Vec<String>,
}

/// What a look at a lane showed.
struct Sample {
    at: Duration,
    memory_bytes: u64,
    /// How many processes came before.
    life: u64,
    /// Files of the state store, if it is on the local disk: records and claims, and all others.
    state_files: (usize, usize),
}

#[test]
fn an_hour_under_faults_keeps_memory_flat_and_every_row_once() {
    let minutes = std::env::var("NEXUS_TEST_SOAK_MINUTES").ok();
    let minutes = minutes.map_or(MINUTES, |text| text.parse().expect("NEXUS_TEST_SOAK_MINUTES is a number"));
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let mut random = Random::seeded();
    let server = Postgres::start();
    let mut lanes = [Lane::new("disk", 4000, false, &server), Lane::new("s3", 1500, true, &server)];

    let started = Instant::now();
    let mut shown = 0;
    while started.elapsed() < whole {
        std::thread::sleep(SAMPLE_EVERY);
        let at = started.elapsed();
        let part = at.as_secs_f64() / whole.as_secs_f64();
        let lives_on = STRETCHES.iter().any(|stretch| stretch.contains(&part));
        for lane in &mut lanes {
            lane.keep_alive();
            lane.sample(at);
            lane.disturb(&mut random, whole);
            if !lives_on {
                lane.end(&mut random, whole);
            }
        }
        if at.as_secs() / 60 > shown {
            shown = at.as_secs() / 60;
            show(&lanes, Duration::from_secs(60 * (shown - 1))..Duration::from_secs(60 * shown));
        }
    }
    println!("after {:.1} minutes:", started.elapsed().as_secs_f64() / 60.0);
    for lane in &mut lanes {
        lane.drain();
        println!("{}: {:?}", lane.name, lane.told);
    }
    for lane in &lanes {
        lane.check_rows();
    }
    for lane in &lanes {
        lane.check_memory(whole);
        lane.check_state();
        assert!(lane.unasked.is_empty(), "{} ended without being told to:\n{}", lane.name, lane.unasked.join("\n"));
    }
}

impl<'a> Lane<'a> {
    fn new(name: &'static str, rate: u64, on_s3: bool, server: &'a Postgres) -> Self {
        let mut world = World::new();
        let mut bucket = None;
        let mut s3 = None;
        let mut lake = world.path("lake").display().to_string();
        if on_s3 {
            world = world.with_aws();
            let name = world.bucket("soak");
            lake = format!("s3://{name}/lake");
            bucket = Some(name);
            let proxy = Proxy::start(ministack::shared().port, u64::MAX);
            world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", proxy.port));
            s3 = Some(proxy);
        }
        let database = server.database();
        let proxy = Proxy::start(server.port, u64::MAX);
        world.set("DATABASE_URL", &postgres::url(proxy.port, &database));
        let pipeline = world.file("soak.yaml", &pipeline(&lake, rate));
        let now = Instant::now();
        Self {
            name,
            world,
            pipeline,
            bucket,
            postgres: proxy,
            s3,
            direct: postgres::url(server.port, &database),
            server,
            running: None,
            heals_at: None,
            next_fault: now,
            next_end: now,
            samples: Vec::new(),
            told: BTreeMap::new(),
            unasked: Vec::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.told.entry(what).or_default() += 1;
    }

    fn args(&self, verb: &'static str) -> [&str; 2] {
        [verb, self.pipeline.to_str().expect("the tests' paths are UTF-8")]
    }

    /// Starts a process if there is none.
    fn keep_alive(&mut self) {
        if let Some(running) = &mut self.running
            && running.ends_within(Duration::from_millis(5))
        {
            let finished = self.running.take().expect("it has just ended").wait();
            self.unasked.push(format!("{:?} {}", finished.status, finished.said()));
        }
        if self.running.is_none() {
            self.running = Some(self.world.start(&self.args("run")));
            self.count("start");
        }
    }

    fn sample(&mut self, at: Duration) {
        let memory = self.running.as_ref().and_then(Running::memory_bytes);
        let lake = self.world.path("lake/_nexus");
        let all = files(&lake);
        let bookkeeping = all.keys().filter(|path| {
            let text = path.to_string_lossy();
            ["generations/", "epochs/", "checkpoints/", "committed/"].iter().any(|folder| text.contains(folder))
        });
        let records = bookkeeping.count();
        if let Some(memory_bytes) = memory {
            let life = self.told.get("start").copied().unwrap_or(0);
            self.samples.push(Sample { at, memory_bytes, life, state_files: (records, all.len() - records) });
        }
    }

    /// Has a server or the network fail now and then, and heals what was due.
    fn disturb(&mut self, random: &mut Random, whole: Duration) {
        let now = Instant::now();
        if self.heals_at.is_some_and(|at| at <= now) {
            self.heal();
        }
        if self.next_fault > now || self.heals_at.is_some() {
            return;
        }
        self.next_fault = now + whole.mul_f64(random.between(0.004, 0.03)).max(FAULTS_APART_MIN);
        let lasts = Duration::from_secs_f64(random.between(1.0, 20.0)).min(whole / 20);
        let faults = ["crash of postgres", "cut of postgres", "postgres away", "postgres slow", "cut of s3", "s3 away"];
        let fault = random.one_of(&faults[..if self.s3.is_some() { 6 } else { 4 }]);
        match (fault, &self.s3) {
            ("crash of postgres", _) => self.server.crash(),
            ("cut of postgres", _) => self.postgres.cut(),
            ("postgres away", _) => self.postgres.close(),
            ("postgres slow", _) => self.postgres.set_rate(2_000),
            ("cut of s3", Some(s3)) => s3.cut(),
            (_, Some(s3)) => s3.close(),
            (_, None) => {}
        }
        if fault.ends_with("away") || fault.ends_with("slow") {
            self.heals_at = Some(now + lasts);
        }
        self.count(fault);
    }

    fn heal(&mut self) {
        self.postgres.open();
        self.postgres.set_rate(u64::MAX);
        if let Some(s3) = &self.s3 {
            s3.open();
        }
        self.heals_at = None;
    }

    /// Kills the process now and then, or tells it to stop.
    fn end(&mut self, random: &mut Random, whole: Duration) {
        if self.next_end > Instant::now() {
            return;
        }
        self.next_end = Instant::now() + whole.mul_f64(random.between(0.005, 0.03));
        // The first look only sets the time of the first end.
        if self.samples.len() < 2 {
            return;
        }
        let Some(running) = self.running.take() else { return };
        if random.below(3) == 0 {
            self.running = Some(running);
            self.stop();
        } else {
            running.signal("KILL");
            running.wait();
            self.count("kill");
        }
    }

    /// Tells the process to stop, and gives whether all its sinks had committed.
    fn stop(&mut self) -> bool {
        let Some(mut running) = self.running.take() else { return true };
        running.signal("TERM");
        let ended = running.ends_within(DRAIN_MAX);
        assert!(ended, "{} did not drain within {DRAIN_MAX:?}", self.name);
        let finished = running.wait();
        match finished.status.code() {
            // The first thing that a process does is to listen for signals; one that came before has ended it.
            None => {
                self.count("stop in mid-start");
                false
            }
            Some(0) if finished.stderr.contains("before the sources were open") => {
                self.count("stop in mid-start");
                false
            }
            Some(0) => {
                self.count("stop");
                true
            }
            _ if finished.stderr.contains("the next start goes on") => {
                self.count("stop behind a sink");
                false
            }
            _ => {
                self.unasked.push(format!("on SIGTERM: {:?} {}", finished.status, finished.said()));
                false
            }
        }
    }

    /// Heals everything, and has the pipeline commit all that it has read.
    fn drain(&mut self) {
        self.heal();
        for _ in 0..5 {
            self.keep_alive();
            // It has to come to where it listens for signals.
            std::thread::sleep(Duration::from_secs(5));
            if self.stop() {
                return;
            }
        }
        panic!("{} does not come to where all is committed: {}", self.name, self.unasked.join("\n"));
    }

    /// Fails unless each row is where it should be, once.
    fn check_rows(&self) {
        let audit = self.world.nexus(&self.args("audit"));
        println!("{}: nexus audit: {}", self.name, audit.stdout.trim().lines().last().unwrap_or_default());
        audit.expect_code(0);
        let lake = match &self.bucket {
            Some(bucket) => self.world.download(&[bucket]).join("lake"),
            None => self.world.path("lake"),
        };
        let rows = ask(&lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM bronze.ticks");
        let all = rows[0][0].as_u64().expect("a count is a number");
        println!("{}: {all} rows", self.name);
        assert_eq!(rows, [json!([all, all, 0, all])], "count, distinct, first and behind the last in bronze");
        let rows = "SELECT count(*), count(DISTINCT n), min(n), max(n) + 1 FROM ticks";
        assert_eq!(postgres::ask(&self.direct, rows), [json!([all, all, 0, all])], "the same in Postgres");

        let pairs = all.div_ceil(2);
        let rows = ask(&lake, "SELECT count(*), count(DISTINCT pair), min(pair), max(pair) + 1 FROM silver.pairs");
        assert_eq!(rows, [json!([pairs, pairs, 0, pairs])], "the same of the pairs in silver");

        let same = "SELECT count(*) > 0, count(*) - count(*) FILTER (w.pairs = s.pairs AND w.first = s.first
                AND w.last = s.last), (SELECT max(start) FROM gold.windows) > max(s.start) - INTERVAL '40 seconds'
            FROM gold.windows w FULL JOIN (
                SELECT time_bucket(INTERVAL '10 seconds', ts) AS start, site, count(*) AS pairs, min(pair) AS first,
                    max(pair) AS last
                FROM silver.pairs GROUP BY 1, 2) s ON w.start = s.start AND w.site = s.site
            WHERE s.start IS NULL OR s.start <= (SELECT max(start) FROM gold.windows)";
        assert_eq!(ask(&lake, same), [json!([true, 0, true])], "some windows, how many differ, and none is missing");
        let windows = "SELECT count(*), CAST(sum(pairs) AS BIGINT), min(first), max(last) FROM";
        let in_lake = ask(&lake, &format!("{windows} gold.windows"));
        assert_eq!(postgres::ask(&self.direct, &format!("{windows} windows")), in_lake, "windows in Postgres");
    }

    /// Fails unless memory stayed below its limit, and flat while a process lived on.
    fn check_memory(&self, whole: Duration) {
        let peak = peak(self.samples.iter());
        println!("{}: peak of memory {} MiB of {} MiB", self.name, peak >> 20, MEMORY_BYTES >> 20);
        assert!(peak < MEMORY_BYTES, "{} took {peak} bytes of memory", self.name);
        for stretch in STRETCHES {
            let (from, to) = (whole.mul_f64(stretch.start), whole.mul_f64(stretch.end));
            let inside: Vec<_> = self.samples.iter().filter(|sample| from <= sample.at && sample.at < to).collect();
            let longest = inside.iter().map(|sample| sample.life).max();
            let alive: Vec<_> = inside.into_iter().filter(|sample| Some(sample.life) == longest).collect();
            let since = alive.first().map_or(from, |sample| sample.at) + whole / WARM_UP_PART;
            let alive: Vec<_> = alive.into_iter().filter(|sample| sample.at >= since).collect();
            let (first, second) = alive.split_at(alive.len() / 2);
            println!("{}: peaks of {} then {} MiB", self.name, peak_of(first) >> 20, peak_of(second) >> 20);
            let (first, second) = (floor_of(first), floor_of(second));
            println!(
                "{}: {} to {} s: {} then {} MiB",
                self.name,
                from.as_secs(),
                to.as_secs(),
                first >> 20,
                second >> 20
            );
            #[allow(clippy::cast_precision_loss, reason = "compared roughly")]
            let flat = second as f64 <= first as f64 * GROWTH_MAX;
            assert!(flat || to - from < STRETCH_MIN, "{} grows from {first} to {second} bytes", self.name);
        }
    }

    /// Fails if the state store holds more than it should.
    fn check_state(&self) {
        let most = self.samples.iter().map(|sample| sample.state_files.1).max().unwrap_or_default();
        println!("{}: at most {most} files of snapshots, spools and notes", self.name);
        assert!(most <= STATE_FILES_MAX, "{most} files");
        let left = files(&self.world.path("lake/_nexus"));
        let left: Vec<_> = left.keys().filter(|path| path.to_string_lossy().contains("/spool/")).collect();
        assert!(left.is_empty(), "all is committed, and yet the spool holds {left:?}");
    }
}

fn peak<'s>(samples: impl Iterator<Item = &'s Sample>) -> u64 {
    samples.map(|sample| sample.memory_bytes).max().unwrap_or_default()
}

fn floor_of(samples: &[&Sample]) -> u64 {
    let mut bytes: Vec<u64> = samples.iter().map(|sample| sample.memory_bytes).collect();
    bytes.sort_unstable();
    bytes.get(bytes.len() / 4).copied().unwrap_or_default()
}

fn peak_of(samples: &[&Sample]) -> u64 {
    peak(samples.iter().copied())
}

/// Prints what the lanes were like in a span of time: the peak of memory in MiB, the number of processes so far, and
/// the files of a local state store.
fn show(lanes: &[Lane<'_>], span: Range<Duration>) {
    let columns = lanes.iter().map(|lane| {
        let within: Vec<_> = lane.samples.iter().filter(|sample| span.contains(&sample.at)).collect();
        let last = within.last().map(|sample| (sample.life, sample.state_files)).unwrap_or_default();
        let memory = peak_of(&within) >> 20;
        format!("{}: {memory:3} MiB, process {:2}, {:4} + {:3} state files", lane.name, last.0, last.1.0, last.1.1)
    });
    println!("minute {:3}  {}", span.end.as_secs() / 60, columns.collect::<Vec<_>>().join("   "));
}

/// Numbered rows, of which every other is a duplicate of the one before in silver; their windows; and both in Postgres.
fn pipeline(lake: &str, rate: u64) -> String {
    format!(
        "name: soak
lake: {lake}
commit: {{ every: 2s }}
limits: {{ memory: {MEMORY_BYTES}B }}
sources:
  ticks:
    generate:
      rate: {rate}
      columns:
        n: {{ sequence: {{}} }}
        ts: {{ time: {{ start: \"2026-11-01T00:00:00Z\", step: 1ms }} }}
        site: {{ choice: [reno, yuma, bend] }}
        v: {{ number: {{ min: 0, max: 100 }} }}
    event_time: {{ column: ts, lateness: 2s }}
bronze:
  ticks:
    sql: SELECT n, ts, site, v FROM ticks
    postgres: {{ url: pg, table: ticks, append: true }}
silver:
  pairs:
    sql: SELECT n / 2 AS pair, ts, site, v FROM bronze.ticks
    unique: {{ key: [pair], within: 5m }}
gold:
  windows:
    sql: SELECT date_bin(INTERVAL '10 seconds', ts) AS start, site, count(*) AS pairs, min(pair) AS first, max(pair) AS last FROM silver.pairs GROUP BY 1, 2
    postgres: {{ url: pg, table: windows, key: [start, site] }}
secrets:
  pg: {{ env: DATABASE_URL }}
"
    )
}
