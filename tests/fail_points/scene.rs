//! Pipelines to be killed: where their rows come from, where they land, and what an undisturbed run leaves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::pipelines::{
    EVENTS, EVENTS_LAKE_SQL, EVENTS_POSTGRES_SQL, GENERATED, GENERATED_LAKE_SQL, GENERATED_POSTGRES_SQL,
    REFUSED_LAKE_SQL, REFUSING_SQL, SITES, without_postgres,
};
use crate::archive::archived;
use crate::servers::unique;
use crate::world::{Finished, Random, Running, World, ask, files, table_files};

/// How long a run over a queue may take.
const QUEUE_MAX: Duration = Duration::from_secs(300);

/// How many inputs of a kind there are.
const INPUTS: usize = 3;

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Files of JSON.
    Files,
    /// So many small files that a checkpoint is written.
    ManyFiles,
    /// A stream of three shards.
    Kinesis,
    /// Objects that a queue announces.
    Queue,
    /// Rows made at a rate.
    Generated,
}

/// Where rows come from, and where they land.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub source: Source,
    /// Which of its inputs.
    pub input: usize,
    /// Whether the lake is on S3, and not on the local disk.
    pub on_s3: bool,
    /// Whether rows land in Postgres too.
    pub postgres: bool,
}

/// How an epoch is cut, and what the run may use.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// Bytes of an epoch.
    pub bytes: u64,
    /// Rows of an epoch.
    pub rows: Option<u64>,
    /// Memory, which sizes channels, batches of the sinks and what an epoch may add to the state.
    pub memory_mib: u64,
}

/// How a run that was to die ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It died, or failed, at the fail point.
    Reached,
    /// It ended well, without passing the fail point as often as it should have.
    Well,
}

/// Everything that a run leaves: rows as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    lake: Vec<String>,
    postgres: Vec<String>,
    /// What Postgres has refused, as the quarantine has it.
    refused: Vec<String>,
    /// The records as they came, and what is told of those that do not decode.
    archive: Vec<String>,
}

/// A world with a pipeline of a kind.
pub struct Scene {
    pub kind: Kind,
    pub world: World,
    /// The bucket that the lake is in.
    bucket: Option<String>,
    /// What the source is, in the pipeline file.
    source: String,
    /// The queue's URL.
    queue: Option<String>,
}

impl Kind {
    /// Gives a kind whose runs pass a fail point.
    pub fn passing(point: &str, random: &mut Random) -> Self {
        let any = [Source::Files, Source::Kinesis, Source::Queue, Source::Generated];
        let source = match point {
            "before_checkpoint" | "after_checkpoint" | "before_history" | "after_history" => Source::ManyFiles,
            "before_message_removal" | "after_message_removal" => Source::Queue,
            _ => random.one_of(&any),
        };
        let mut kind = Self {
            source,
            input: random.below(INPUTS),
            on_s3: random.below(2) == 0 && source != Source::ManyFiles,
            postgres: random.below(2) == 0 && source != Source::ManyFiles,
        };
        if is_of_refused(point) && kind.source == Source::Generated {
            kind.source = Source::Files;
        }
        kind.on_s3 |= is_of_uploads(point);
        kind.postgres |= is_of_postgres(point);
        kind
    }

    /// Tells whether runs of this kind pass a fail point.
    pub fn passes(self, point: &str) -> bool {
        match point {
            "before_checkpoint" | "after_checkpoint" | "before_history" | "after_history" => {
                self.source == Source::ManyFiles
            }
            "before_message_removal" | "after_message_removal" => self.source == Source::Queue,
            _ => {
                (self.on_s3 || !is_of_uploads(point))
                    && (self.postgres || !is_of_postgres(point))
                    && (self.source != Source::Generated || !is_of_refused(point))
            }
        }
    }

    fn files(self) -> (usize, usize) {
        match (self.source, self.input) {
            (Source::ManyFiles, _) => (70, 2),
            (_, 0) => (12, 40),
            (_, 1) => (7, 75),
            _ => (18, 28),
        }
    }

    /// Picks the size of epochs: one file, or some.
    pub fn cuts(self, random: &mut Random) -> Cuts {
        let bytes = match self.source {
            Source::ManyFiles => 1,
            _ => random.one_of(&[1, 3_000, 5_000, 9_000, 20_000]),
        };
        let rows = random.one_of(&[None, None, Some(25), Some(70), Some(200)]);
        let rows = rows.filter(|_| self.source != Source::ManyFiles);
        Cuts { bytes, rows, memory_mib: random.one_of(&[64, 128, 512]) }
    }

    /// The kind that lands in all places, whose rows those of the others are compared with.
    fn everywhere(self) -> Self {
        Self { on_s3: false, postgres: true, ..self }
    }
}

fn is_of_uploads(point: &str) -> bool {
    point.ends_with("_upload_note") || point.ends_with("_part") || point.ends_with("_note_removal")
}

fn is_of_postgres(point: &str) -> bool {
    point.ends_with("_postgres_commit")
        || point.ends_with("_spool")
        || point.ends_with("_spool_removal")
        || point.ends_with("_table")
        || is_of_refused(point)
}

/// Tells whether only rows that Postgres refuses lead to a fail point.
fn is_of_refused(point: &str) -> bool {
    point.ends_with("_takeover") || point.ends_with("_forget")
}

impl Cuts {
    /// Epochs of so many bytes.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, rows: None, memory_mib: 512 }
    }
}

impl Scene {
    pub fn new(kind: Kind) -> Self {
        let (mut world, mut bucket, mut queue) = (World::new(), None, None);
        if kind.on_s3 || matches!(kind.source, Source::Queue | Source::Kinesis) {
            world = world.with_aws();
        }
        if kind.postgres {
            world = world.with_postgres();
            if kind.source != Source::Generated {
                let offset = if kind.source == Source::Kinesis { "text" } else { "bigint" };
                world.change_postgres(&REFUSING_SQL.replace("{offset}", offset));
            }
        }
        if kind.on_s3 {
            bucket = Some(world.bucket("lake"));
        }
        let source = match kind.source {
            Source::Files | Source::ManyFiles => {
                write_events(&world, kind);
                "file: { path: events-*.json }".to_owned()
            }
            Source::Kinesis => {
                world = world.with_kinesis();
                format!("kinesis: {{ stream: {} }}", stream(&world, kind))
            }
            Source::Queue => {
                let landing = world.bucket("landing");
                let url = world.aws(&["announce", &landing, &unique("uploads"), "2"]);
                let paths = write_events(&world, kind);
                let upload: Vec<&str> =
                    ["upload", &landing, "in/"].into_iter().chain(paths.iter().map(String::as_str)).collect();
                world.aws(&upload);
                let source = format!(
                    "s3: {{ queue: \"{url}\", allow: [\"s3://{landing}/in/\"], in_flight: 3, visibility: 5s }}"
                );
                queue = Some(url);
                source
            }
            Source::Generated => String::new(),
        };
        Self { kind, world, bucket, source, queue }
    }

    /// Writes the pipeline file: the same pipeline, with other cuts.
    fn pipeline(&self, cuts: Cuts) -> PathBuf {
        let lake = self
            .bucket
            .as_ref()
            .map_or_else(|| self.world.path("lake").display().to_string(), |bucket| format!("s3://{bucket}/lake"));
        let Cuts { bytes, rows, memory_mib } = cuts;
        let rows = rows.map(|rows| format!(", rows: {rows}")).unwrap_or_default();
        let every = match self.kind.source {
            Source::Generated => format!("{}ms", 20 + bytes % 100),
            // The end of an object moves no bytes, and is committed by the time.
            Source::Queue => "1s".to_owned(),
            _ => "1h".to_owned(),
        };
        let commit = format!("commit: {{ every: {every}, bytes: {bytes}B{rows} }}");
        let head =
            format!("name: crash\nlake: {lake}\n{commit}\nlimits: {{ memory: {memory_mib}MiB, record: 1MiB }}\n");
        let kept = format!("{lake}/kept");
        let tables = match self.kind.source {
            Source::Generated => GENERATED.to_owned(),
            _ => EVENTS.replace("{source}", &self.source).replace("{lateness}", self.kind.source.lateness()),
        };
        let tables = match self.kind {
            Kind { postgres: false, .. } => without_postgres(&tables),
            Kind { source: Source::Generated, .. } => tables,
            _ => tables.replace("secrets:", &format!("{SITES}secrets:")),
        };
        let tables = tables.replace("{kept}", &kept);
        self.world.file("crash.yaml", &(head + &tables))
    }

    fn args(&self, verb: &'static str, cuts: Cuts) -> Vec<String> {
        let mut args = vec![verb.to_owned(), self.pipeline(cuts).display().to_string()];
        if verb == "run" && self.kind.source == Source::Kinesis {
            args.extend(["--until-idle".to_owned(), "1s".to_owned()]);
        }
        args
    }

    /// Starts the pipeline.
    pub fn start(&self, cuts: Cuts) -> Running {
        self.world.start(&self.args("run", cuts))
    }

    /// Runs the pipeline until its input ends. A queue ends when it is empty; then the process is told to stop.
    pub fn run(&self, cuts: Cuts) -> Finished {
        let mut running = self.start(cuts);
        if let Some(url) = &self.queue {
            let mut drained = Drained::wait(&self.world, url);
            let started = Instant::now();
            while !running.ends_within(Duration::from_millis(50)) {
                if drained.is_over() {
                    running.signal("TERM");
                    break;
                }
                if started.elapsed() > QUEUE_MAX {
                    running.signal("KILL");
                    println!("the queue is not emptied");
                }
            }
        }
        running.wait()
    }

    /// Runs the command so that it dies at the n-th passing of a fail point, or so that the step fails there.
    pub fn dies(&mut self, point: &str, passing: usize, fails: bool, cuts: Cuts) -> Result<Ended, String> {
        let how = if fails { ":error" } else { "" };
        self.world.set("NEXUS_FAIL_POINT", &format!("{point}:{passing}{how}"));
        let finished = self.run(cuts);
        self.world.set("NEXUS_FAIL_POINT", "");
        let reached = finished.stderr.contains("fail point reached");
        match finished.status.code() {
            None if reached && !fails => Ok(Ended::Reached),
            // What fails may be tried again.
            Some(0 | 1) if reached && fails => Ok(Ended::Reached),
            Some(0) if !reached => Ok(Ended::Well),
            other => Err(format!("ended by {other:?} on the way to {point}:{passing}{how}:\n{}", finished.said())),
        }
    }

    /// Runs the command to its end, and compares what it has left with what it should.
    pub fn ends_whole(&self, cuts: Cuts) -> Result<(), String> {
        let finished = self.finish(cuts);
        if finished.status.code() != Some(0) {
            return Err(format!("the last run failed:\n{}", finished.said()));
        }
        self.is_whole()
    }

    /// Runs to the end of input.
    fn finish(&self, cuts: Cuts) -> Finished {
        let finished = self.run(cuts);
        if self.queue.is_none() || finished.status.code() != Some(0) {
            return finished;
        }
        // That the queue is empty is no end of input: windows are still open.
        let mut args = self.args("run", cuts);
        args.extend(["--until-idle".to_owned(), "500ms".to_owned()]);
        self.world.nexus(&args)
    }

    /// Has a process stand still at a fail point while another one runs to the end, and then go on: it must find out
    /// that it is not the newest, and leave everything as it is.
    pub fn is_overtaken(&mut self, point: &str, passing: usize, cuts: Cuts) -> Result<(), String> {
        self.world.set("NEXUS_FAIL_POINT", &format!("{point}:{passing}:stop"));
        let mut older = self.start(cuts);
        self.world.set("NEXUS_FAIL_POINT", "");
        older.until_stopped();
        let newer = self.finish(Cuts::of_bytes(9_000));
        if newer.status.code() != Some(0) {
            return Err(format!("the newer process failed:\n{}", newer.said()));
        }
        older.signal("CONT");
        let older = older.wait();
        // With all rows in one epoch, which the newer has committed for it, the older has nothing more to write.
        let is_done = cuts.bytes >= 1 << 20 && older.status.code() == Some(0);
        let is_told = older.status.code() == Some(1) && older.said().contains("another process has taken over");
        if !is_done && !is_told {
            return Err(format!("the older process does not say that it is not the newest:\n{}", older.said()));
        }
        // What it had staged after the newer one swept is left to the next start.
        self.agrees().map(drop)
    }

    /// Has a second process start while the first has nothing to do: the first must find out and end.
    pub fn is_fenced_when_idle(&self, limit: Duration) -> Result<(), String> {
        let pipeline = self.pipeline(Cuts::of_bytes(1 << 20));
        let text = std::fs::read_to_string(&pipeline).expect("it has just been written");
        let text =
            text.replace("path: events-*.json", "path: events-*.json, follow: true").replace("1h, bytes", "1s, bytes");
        let pipeline = self.world.file("follow.yaml", &text).display().to_string();
        let committed = || table_files(&self.world.path("lake"), "bronze/events");

        let mut older = self.world.start(&["run", &pipeline]);
        // What Postgres has refused takes one epoch more.
        let waiting = || self.world.ask_postgres("SELECT 1 FROM nexus.refused").len();
        older.until("it has committed", || {
            committed() > 0 && table_files(&self.world.path("lake"), "_quarantine/bronze.events") > 0 && waiting() == 0
        });
        let newer = self.world.start(&["run", &pipeline]);
        let ended = older.ends_within(limit);
        newer.signal("KILL");
        newer.wait();
        if !ended {
            return Err("the older process goes on".to_owned());
        }
        let said = older.wait().said();
        if said.contains("another process has taken over") { Ok(()) } else { Err(said) }
    }

    /// Compares what is there with what an undisturbed run leaves.
    pub fn is_whole(&self) -> Result<(), String> {
        let lake = self.agrees()?;
        self.nothing_is_left(&lake)
    }

    /// Tells whether the audit finds all rows, and they are those of an undisturbed run; gives the lake.
    fn agrees(&self) -> Result<PathBuf, String> {
        let audit = self.world.nexus(&self.args("audit", Cuts::of_bytes(1)));
        if audit.status.code() != Some(0) {
            return Err(format!("the audit is not whole:\n{}", audit.said()));
        }
        let lake = self.lake();
        let tables: &[&str] = match self.kind.source {
            Source::Generated => &["bronze/ticks", "gold/seconds"],
            _ => &[
                "bronze/events",
                "silver/events",
                "gold/hours",
                "gold/followed",
                "gold/preceded",
                "_quarantine/events",
            ],
        };
        let empty = tables.iter().find(|table| table_files(&lake, table) == 0);
        if let Some(table) = empty {
            return Err(format!("{table} is empty"));
        }
        let (found, expected) = (self.tables(&lake), undisturbed(self.kind));
        if found.lake != expected.lake {
            return Err(format!("the lake differs:\n{}", differences(&found.lake, &expected.lake)));
        }
        if self.kind.postgres && found.postgres != expected.postgres {
            return Err(format!("Postgres differs:\n{}", differences(&found.postgres, &expected.postgres)));
        }
        if self.kind.postgres && found.refused != expected.refused {
            return Err(format!("the refused rows differ:\n{}", differences(&found.refused, &expected.refused)));
        }
        if found.archive != expected.archive {
            return Err(format!("the archive differs:\n{}", differences(&found.archive, &expected.archive)));
        }
        Ok(lake)
    }

    /// Looks for what no record names any more: spooled rows, staged files, parts of uploads.
    fn nothing_is_left(&self, lake: &Path) -> Result<(), String> {
        let state = files(&lake.join("_nexus/crash"));
        let passing =
            |path: &&PathBuf| ["rolls", "spool", "staging", "notes"].iter().any(|folder| path.starts_with(folder));
        let staged = files(&lake.join("kept/_nexus"));
        let left: Vec<_> = state.keys().filter(passing).chain(staged.keys()).collect();
        if !left.is_empty() {
            return Err(format!("files are left: {left:?}"));
        }
        let parts = self.bucket.as_ref().map_or_else(|| "0".to_owned(), |bucket| self.world.aws(&["parts", bucket]));
        if parts == "0" { Ok(()) } else { Err(format!("{parts} uploads with parts are left")) }
    }

    /// Reads what is in the lake and in Postgres, but for what is different in each run.
    fn tables(&self, lake: &Path) -> Tables {
        let (sql, postgres) = match self.kind.source {
            Source::Generated => (GENERATED_LAKE_SQL, GENERATED_POSTGRES_SQL),
            _ => (EVENTS_LAKE_SQL, EVENTS_POSTGRES_SQL),
        };
        let texts = |rows: Vec<Value>| {
            let mut texts: Vec<String> = rows.iter().map(Value::to_string).collect();
            texts.sort_unstable();
            texts
        };
        let postgres = if self.kind.postgres { self.world.ask_postgres(postgres) } else { Vec::new() };
        let refuses = self.kind.postgres && self.kind.source != Source::Generated;
        let refused = if refuses { ask(lake, REFUSED_LAKE_SQL) } else { Vec::new() };
        let archive = archived(&lake.join("kept"));
        Tables { lake: texts(ask(lake, sql)), postgres: texts(postgres), refused: texts(refused), archive }
    }

    /// Gives a folder with the lake.
    fn lake(&self) -> PathBuf {
        match &self.bucket {
            Some(bucket) => self.world.download(&[bucket]).join("lake"),
            None => self.world.path("lake"),
        }
    }
}

impl Source {
    /// A queue gives its messages in no order: a row may come as late as the events are long.
    fn lateness(self) -> &'static str {
        if self == Source::Queue { "2d" } else { "10m" }
    }
}

/// Waits for a queue to be empty, beside the test.
struct Drained(Child);

impl Drained {
    fn wait(world: &World, url: &str) -> Self {
        let mut command = world.script("aws.py", &["drained", url]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("could not run a script"))
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().expect("could not wait for a script").is_some_and(|status| status.success())
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives a stream that holds the events of a kind. Reading takes nothing away, so the runs share it.
fn stream(world: &World, kind: Kind) -> &'static str {
    static STREAMS: [OnceLock<String>; INPUTS] = [const { OnceLock::new() }; INPUTS];
    STREAMS[kind.input].get_or_init(|| {
        let stream = unique("events");
        world.aws(&["stream", &stream, "3"]);
        let paths = write_events(world, kind);
        let pack = ["1", "4", "9"][kind.input];
        let put: Vec<&str> = ["put", &stream, pack].into_iter().chain(paths.iter().map(String::as_str)).collect();
        world.aws(&put);
        stream
    })
}

/// Writes files with rows, doubles of some, and lines that are none, in the order of time; gives their paths.
fn write_events(world: &World, kind: Kind) -> Vec<String> {
    let (files, rows) = kind.files();
    let line = |n: usize| {
        format!(
            r#"{{"n":{n},"site":"site-{}","ts":"2026-11-01T{:02}:{:02}:00Z","v":{}.5}}"#,
            n % (3 + kind.input),
            n / 60,
            n % 60,
            n % 11
        )
    };
    let write = |file| {
        let mut lines = String::new();
        for row in 0..rows {
            let n = file * rows + row;
            // A double of a row of the file before: another epoch, or another process, has seen it first.
            if n % 13 == 0 && file > 0 {
                let _ = writeln!(lines, "{}", line(n - rows));
            }
            let line = line(n);
            let _ = writeln!(lines, "{line}");
            if n % (9 - kind.input) == 0 {
                let _ = writeln!(lines, "{line}");
            }
        }
        if file % 3 == 0 {
            let _ = writeln!(lines, "{{\"n\":\"of file {file}\"}}");
        }
        world.file(&format!("events-{file:03}.json"), &lines).display().to_string()
    };
    (0..files).map(write).collect()
}

/// Gives what a run over the same input leaves that nothing disturbs, in one epoch.
fn undisturbed(kind: Kind) -> &'static Tables {
    type Known = BTreeMap<(Source, usize), &'static OnceLock<Tables>>;
    static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let of_kind: &OnceLock<Tables> =
        known.entry((kind.source, kind.input)).or_insert_with(|| Box::leak(Box::default()));
    drop(known);
    of_kind.get_or_init(|| {
        let scene = Scene::new(kind.everywhere());
        scene.finish(Cuts::of_bytes(1 << 20)).expect_code(0);
        let tables = scene.tables(&scene.lake());
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
