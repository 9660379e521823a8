//! Killed at every step of the commit protocol, and started again with other cuts: the tables are those of a run that
//! nothing disturbed, and `nexus audit` finds them whole.
//!
//! What is picked depends on a seed alone, which a failure prints: `NEXUS_TEST_SEED=<seed> NEXUS_TEST_CRASHES=1` shows
//! it again. `NEXUS_TEST_CRASHES` is the number of runs; `make soak` has 500.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use nexus_operators::fail::{MUTATIONS, POINTS};
use serde_json::Value;

use crate::world::{Finished, Random, World, ask};

/// Runs of `make test`: each fail point twice, and once more for some.
const RUNS: usize = 60;

/// Runs at once: a run waits for its disk as long as it computes.
const AT_ONCE: usize = 3;

/// What a pipeline reads and where it lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Files, into a lake on the local disk.
    Lake,
    /// Files, into a lake and into Postgres: rows appended, and rows by key.
    Postgres,
    /// Files, into a lake on S3.
    Bucket,
    /// Generated rows, at a rate, into a lake and Postgres.
    Generated,
    /// So many small files that a checkpoint is written.
    Checkpoint,
}

/// Everything that a run leaves: rows as text, by table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tables {
    lake: Vec<String>,
    postgres: Vec<String>,
}

/// A world with a pipeline of a kind.
struct Scene {
    kind: Kind,
    world: World,
    /// The bucket that the lake is in.
    bucket: Option<String>,
}

impl Kind {
    /// Gives the kinds whose runs pass a fail point.
    fn passing(point: &str) -> &'static [Kind] {
        match point {
            "before_checkpoint" | "after_checkpoint" | "before_history" | "after_history" => &[Kind::Checkpoint],
            "before_postgres_commit" | "after_postgres_commit" => &[Kind::Postgres, Kind::Generated],
            "before_snapshot" | "after_snapshot" => &[Kind::Lake, Kind::Postgres, Kind::Bucket],
            _ => &[Kind::Lake, Kind::Postgres, Kind::Bucket, Kind::Generated],
        }
    }

    /// Gives how often a run passes a fail point at most, as far as it is worth to let it die there.
    fn passings(self, point: &str) -> usize {
        match point {
            "before_claim" | "before_start_record" | "after_claim" => 1,
            "before_checkpoint" | "after_checkpoint" | "before_history" | "after_history" => 1,
            "before_sweep" | "after_sweep" => 3,
            "after_write" | "after_file" => 12,
            _ => 5,
        }
    }

    fn files(self) -> (usize, usize) {
        if self == Kind::Checkpoint { (70, 2) } else { (12, 40) }
    }

    /// Gives a limit of bytes for an epoch: one file, or some.
    fn bytes(self, random: &mut Random) -> u64 {
        if self == Kind::Checkpoint { 1 } else { random.one_of(&[1, 3_000, 5_000, 9_000, 20_000]) }
    }
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let (mut world, mut bucket) = (World::new(), None);
        match kind {
            Kind::Lake | Kind::Checkpoint => {}
            Kind::Postgres | Kind::Generated => world = world.with_postgres(),
            Kind::Bucket => {
                world = world.with_aws();
                bucket = Some(world.bucket("lake"));
            }
        }
        if kind != Kind::Generated {
            write_events(&world, kind);
        }
        Self { kind, world, bucket }
    }

    /// Writes the pipeline file: the same pipeline, with another limit for its epochs.
    fn pipeline(&self, bytes: u64) -> PathBuf {
        let lake = self
            .bucket
            .as_ref()
            .map_or_else(|| self.world.path("lake").display().to_string(), |bucket| format!("s3://{bucket}/lake"));
        let head = format!("name: crash\nlake: {lake}\n");
        let text = match self.kind {
            Kind::Generated => head + &format!("commit: {{ every: {}ms }}\n", 20 + bytes % 100) + GENERATED,
            kind => {
                let tables = if kind == Kind::Postgres { FILES.to_owned() } else { without_postgres(FILES) };
                head + &format!("commit: {{ every: 1h, bytes: {bytes}B }}\n") + &tables
            }
        };
        self.world.file("crash.yaml", &text)
    }

    /// Runs the pipeline until its input ends.
    fn run(&self, bytes: u64) -> Finished {
        let pipeline = self.pipeline(bytes);
        self.world.nexus(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")])
    }

    /// Runs the command so that it dies at the n-th passing of a fail point; tells whether it did.
    fn dies(&mut self, point: &str, passing: usize, bytes: u64) -> Result<bool, String> {
        self.world.set("NEXUS_FAIL_POINT", &format!("{point}:{passing}"));
        let finished = self.run(bytes);
        self.world.set("NEXUS_FAIL_POINT", "");
        match finished.status.code() {
            None if finished.stderr.contains("fail point reached") => Ok(true),
            Some(0) => Ok(false),
            other => Err(format!("ended by {other:?} on the way to {point}:{passing}:\n{}", finished.said())),
        }
    }

    /// Runs the command to its end, and compares what it has left with what it should.
    fn ends_whole(&self, bytes: u64) -> Result<(), String> {
        let finished = self.run(bytes);
        if finished.status.code() != Some(0) {
            return Err(format!("the last run failed:\n{}", finished.said()));
        }
        self.is_whole()
    }

    fn is_whole(&self) -> Result<(), String> {
        let pipeline = self.pipeline(1);
        let audit = self.world.nexus(&["audit", pipeline.to_str().expect("the tests' paths are UTF-8")]);
        if audit.status.code() != Some(0) {
            return Err(format!("the audit is not whole:\n{}", audit.said()));
        }
        let (found, expected) = (self.tables(), undisturbed(self.kind));
        for (what, found, expected) in
            [("lake", &found.lake, &expected.lake), ("Postgres", &found.postgres, &expected.postgres)]
        {
            if found != expected {
                return Err(format!("the {what} differs:\n{}", differences(found, expected)));
            }
        }
        Ok(())
    }

    /// Reads what is in the lake and in Postgres, but for what is different in each run.
    fn tables(&self) -> Tables {
        let lake = match &self.bucket {
            Some(bucket) => self.world.download(&[bucket]).join("lake"),
            None => self.world.path("lake"),
        };
        let (sql, postgres) = match self.kind {
            Kind::Generated => (GENERATED_LAKE_SQL, Some(GENERATED_POSTGRES_SQL)),
            Kind::Postgres => (FILES_LAKE_SQL, Some(FILES_POSTGRES_SQL)),
            _ => (FILES_LAKE_SQL, None),
        };
        let texts = |rows: Vec<Value>| {
            let mut texts: Vec<String> = rows.iter().map(Value::to_string).collect();
            texts.sort_unstable();
            texts
        };
        let postgres = postgres.map(|sql| self.world.ask_postgres(sql)).unwrap_or_default();
        Tables { lake: texts(ask(&lake, sql)), postgres: texts(postgres) }
    }
}

/// Writes files with rows, doubles of some, and lines that are none, in the order of time.
fn write_events(world: &World, kind: Kind) {
    let (files, rows) = kind.files();
    for file in 0..files {
        let mut lines = String::new();
        for row in 0..rows {
            let n = file * rows + row;
            let line = format!(
                r#"{{"n":{n},"site":"site-{}","ts":"2026-11-01T{:02}:{:02}:00Z","v":{}.5}}"#,
                n % 3,
                n / 60,
                n % 60,
                n % 11
            );
            let _ = writeln!(lines, "{line}");
            if n % 9 == 0 {
                let _ = writeln!(lines, "{line}");
            }
        }
        if file % 3 == 0 {
            let _ = writeln!(lines, "{{\"n\":\"of file {file}\"}}");
        }
        world.file(&format!("events-{file:03}.json"), &lines);
    }
}

const FILES: &str = "sources:
  events:
    file: { path: events-*.json }
    format: json
    columns: { n: int64 not null, site: string, ts: timestamp, v: float64 }
    event_time: { column: ts, lateness: 10m }
bronze:
  events:
    from: events
    partition_by: [site]
    postgres: { url: pg, table: events, append: true }
silver:
  events:
    sql: SELECT n, site, ts, v FROM bronze.events
    unique: { key: [n], within: 1d }
    expect: { small: { that: v < 10, else: quarantine } }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS events, sum(v) AS v FROM silver.events GROUP BY 1, 2
    postgres: { url: pg, table: hours, key: [hour, site] }
secrets:
  pg: { env: DATABASE_URL }
";

const FILES_LAKE_SQL: &str = "
    SELECT 'bronze', n::VARCHAR, site, ts::VARCHAR, v, parse_filename(_partition), _offset::VARCHAR FROM bronze.events
    UNION ALL SELECT 'silver', n::VARCHAR, site, ts::VARCHAR, v, '', '' FROM silver.events
    UNION ALL SELECT 'gold', hour::VARCHAR, site, events::VARCHAR, v, '', '' FROM gold.hours
    UNION ALL SELECT 'decode', rule, decode(raw), '', 0, parse_filename(_partition), _offset FROM quarantine.events
    UNION ALL SELECT 'rule', rule, decode(raw), '', 0, '', '' FROM quarantine.\"silver.events\"";

const FILES_POSTGRES_SQL: &str = "
    SELECT 'events', n::text, site, ts::text, v, _offset::text FROM events
    UNION ALL SELECT 'hours', hour::text, site, events::text, v, '' FROM hours";

const GENERATED: &str = "sources:
  ticks:
    generate:
      rows: 600
      rate: 1500
      columns:
        n: { sequence: {} }
        ts: { time: { start: \"2026-11-01T00:00:00Z\", step: 100ms } }
        site: { choice: [reno, yuma, bend] }
    event_time: { column: ts, lateness: 1s }
bronze:
  ticks:
    from: ticks
    postgres: { url: pg, table: ticks, append: true }
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS ticks, min(n) AS first FROM ticks GROUP BY 1
    postgres: { url: pg, table: seconds, key: [second] }
secrets:
  pg: { env: DATABASE_URL }
";

const GENERATED_LAKE_SQL: &str = "
    SELECT 'bronze', n, ts::VARCHAR, site FROM bronze.ticks
    UNION ALL SELECT 'gold', first, second::VARCHAR, ticks::VARCHAR FROM gold.seconds";

const GENERATED_POSTGRES_SQL: &str = "
    SELECT 'ticks', n, ts::text, site FROM ticks
    UNION ALL SELECT 'seconds', first, second::text, ticks::text FROM seconds";

fn without_postgres(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.contains("postgres:") && !line.contains("pg:") && *line != "secrets:");
    kept.map(|line| format!("{line}\n")).collect()
}

/// Gives what a run leaves that nothing disturbs, in one epoch.
fn undisturbed(kind: Kind) -> &'static Tables {
    static KNOWN: Mutex<BTreeMap<Kind, &'static OnceLock<Tables>>> = Mutex::new(BTreeMap::new());
    let of_kind = *KNOWN.lock().expect("no test panics here").entry(kind).or_insert_with(|| Box::leak(Box::default()));
    of_kind.get_or_init(|| {
        let scene = Scene::new(kind);
        scene.run(1 << 20).expect_code(0);
        let tables = scene.tables();
        assert!(tables.lake.len() > 100, "too few rows to prove anything: {tables:?}");
        tables
    })
}

fn differences(found: &[String], expected: &[String]) -> String {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for row in found {
        *counts.entry(row).or_default() += 1;
    }
    for row in expected {
        *counts.entry(row).or_default() -= 1;
    }
    let differing = counts.into_iter().filter(|(_, count)| *count != 0);
    let lines =
        differing.map(|(row, count)| format!("{} x {count:+} {row}\n", if count > 0 { "extra" } else { "missing" }));
    lines.take(10).collect()
}

/// Picks a pipeline, fail points and cuts by a seed, and gives which points were reached.
fn crash(seed: u64) -> Result<Vec<&'static str>, String> {
    let mut random = Random::of(seed);
    let points = POINTS.len() as u64;
    let first = POINTS[usize::try_from(seed % points).expect("there are few points")];
    let kind = random.one_of(Kind::passing(first));
    // Every other round of seeds has the first passing, which every run has.
    let passing = if (seed / points).is_multiple_of(2) { 1 } else { 1 + random.below(kind.passings(first)) };
    let mut scene = Scene::new(kind);
    let mut reached = Vec::new();
    let mut attempts = vec![(first, passing)];
    for _ in 0..random.below(3) {
        let point = random.one_of(POINTS);
        attempts.push((point, 1 + random.below(kind.passings(point))));
    }
    let told = format!("{kind:?} with {attempts:?}");
    for (point, passing) in attempts {
        let bytes = kind.bytes(&mut random);
        if scene.dies(point, passing, bytes).map_err(|why| format!("{told}: {why}"))? {
            reached.push(point);
        }
    }
    scene.ends_whole(kind.bytes(&mut random)).map_err(|why| format!("{told}: {why}"))?;
    Ok(reached)
}

#[test]
fn killed_at_every_step() {
    let seed = Random::seeded().seed();
    let runs = std::env::var("NEXUS_TEST_CRASHES").ok();
    let runs = runs.map_or(RUNS, |text| text.parse().expect("NEXUS_TEST_CRASHES is a number"));
    let (next, reached) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let failed: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= runs || !failed.lock().expect("a run has panicked").is_empty() {
                        return;
                    }
                    let seed = seed.wrapping_add(run as u64);
                    match crash(seed) {
                        Ok(points) => reached.lock().expect("a run has panicked").extend(points),
                        Err(why) => failed.lock().expect("a run has panicked").push(format!(
                            "run {run}; see it again with NEXUS_TEST_SEED={seed} NEXUS_TEST_CRASHES=1\n{why}"
                        )),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("a run has panicked");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    let reached = reached.into_inner().expect("a run has panicked");
    for point in POINTS {
        let times = reached.iter().filter(|other| *other == point).count();
        println!("{times:4} times killed at {point}");
        assert!(times > 0 || runs < RUNS, "no run has reached {point}");
    }
    println!("{:4} kills in {runs} runs", reached.len());
}

/// Kills a pipeline with Postgres at a fail point, in its second epoch, and has it end with other cuts.
fn killed_at(point: &str) {
    let mut scene = Scene::new(Kind::Postgres);
    // Each epoch with rows passes for two tables.
    for (passing, bytes) in [(3, 3_000), (2, 9_000)] {
        assert_eq!(scene.dies(point, passing, bytes), Ok(true), "{point} was not reached");
    }
    scene.ends_whole(5_000).unwrap_or_else(|why| panic!("{why}"));
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
fn a_step_that_is_left_out_is_noticed() {
    // For each mutation, where a process has to die so that it matters.
    let at = |mutation: &str| match mutation {
        "commit_before_record" => ("before_record", 3),
        "done_before_commit" | "no_redo" => ("after_record", 3),
        "no_sweep" => ("after_prepare", 6),
        "no_note_in_postgres" => ("after_postgres_commit", 2),
        "no_positions" | "no_state" => ("after_committed_note", 3),
        other => panic!("nobody knows where {other} matters"),
    };
    for mutation in MUTATIONS {
        let (point, passing) = at(mutation);
        let mut scene = Scene::new(Kind::Postgres);
        scene.world.set("NEXUS_MUTATION", mutation);
        assert_eq!(scene.dies(point, passing, 3_000), Ok(true), "{point} was not reached with {mutation}");
        let whole = scene.ends_whole(9_000);
        let why = whole.err().unwrap_or_else(|| panic!("nobody notices {mutation}"));
        println!("{mutation}: {}", why.lines().take(4).collect::<Vec<_>>().join(" "));

        // The same without it is whole: it is the mutation that is noticed.
        let mut scene = Scene::new(Kind::Postgres);
        assert_eq!(scene.dies(point, passing, 3_000), Ok(true), "{point} was not reached without {mutation}");
        scene.ends_whole(9_000).unwrap_or_else(|why| panic!("without {mutation}: {why}"));
    }
}
