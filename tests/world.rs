//! A test's world: a folder of its own, the servers it asks for, and the
//! command under test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use crate::servers::{REGION, kinesis, ministack, postgres, script, script_command, unique};

/// How long one run of the command may take; a debug build on a busy machine is slow.
const RUN_MAX: Duration = Duration::from_secs(600);

/// What one test works in.
pub struct World {
    folder: TempDir,
    env: Vec<(String, String)>,
}

/// The command `nexus`, running. It is killed when this is dropped.
pub struct Running {
    child: Child,
    output: PathBuf,
    args: Vec<String>,
}

/// What a run of the command left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl World {
    /// Makes a world with a folder and no server.
    pub fn new() -> Self {
        Self { folder: TempDir::with_prefix("nexus-test-").expect("could not make a folder"), env: Vec::new() }
    }

    /// Adds S3 and SQS.
    pub fn with_aws(mut self) -> Self {
        self.env.push(("AWS_ENDPOINT_URL".into(), format!("http://127.0.0.1:{}", ministack::shared().port)));
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ] {
            self.env.push((name.into(), value.into()));
        }
        self
    }

    /// Adds Kinesis.
    pub fn with_kinesis(mut self) -> Self {
        let endpoint = format!("http://127.0.0.1:{}", kinesis::shared().port);
        self.env.push(("AWS_ENDPOINT_URL_KINESIS".into(), endpoint));
        self
    }

    /// Adds an empty database, whose URL stands in DATABASE_URL.
    pub fn with_postgres(mut self) -> Self {
        let server = postgres::shared();
        let url = postgres::url(server.port, &server.database());
        self.env.push(("DATABASE_URL".into(), url));
        self
    }

    /// Sets a variable of the command's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.into(), value.into()));
    }

    /// Takes a variable out of the command's environment.
    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// Gives a variable of the command's environment.
    pub fn env(&self, name: &str) -> &str {
        self.env.iter().find(|(known, _)| known == name).map_or_else(|| panic!("{name} is not set"), |(_, value)| value)
    }

    /// Tells whether a variable of the command's environment is set here.
    pub fn has(&self, name: &str) -> bool {
        self.env.iter().any(|(known, _)| known == name)
    }

    /// Gives the path of a file or folder of this world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and gives its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("could not write a file");
        path
    }

    /// Writes files `in-000.json` and so on, of so many rows each. Each comes as a whole, since a run may look at any time.
    pub fn input(&self, numbers: Range<usize>, rows: usize, line: impl Fn(usize) -> String) {
        for file in numbers {
            let lines: String = (file * rows..(file + 1) * rows).map(|n| line(n) + "\n").collect();
            let half = self.file(&format!("half-{file}"), &lines);
            fs::rename(half, self.path(&format!("in-{file:03}.json"))).expect("it is in the same folder");
        }
    }

    /// Starts the command.
    pub fn start<A: AsRef<str>>(&self, args: &[A]) -> Running {
        let args: Vec<String> = args.iter().map(|a| a.as_ref().to_owned()).collect();
        let output = self.path(&unique("run"));
        let log = |suffix| File::create(output.with_extension(suffix)).expect("could not make a log");
        let mut command = Command::new(command_path());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("AWS_") || name == "DATABASE_URL" {
                command.env_remove(name);
            }
        }
        command.args(&args).envs(self.env.iter().map(|(k, v)| (k, v))).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(log("out")).stderr(log("err"));
        Running { child: command.spawn().expect("could not start nexus"), output, args }
    }

    /// Runs the command to its end.
    pub fn nexus<A: AsRef<str>>(&self, args: &[A]) -> Finished {
        self.start(args).wait()
    }

    /// Runs a pipeline to its end, which must be a good one, and gives the report, which must balance.
    pub fn run(&self, pipeline: &Path, more: &[&str]) -> Value {
        self.run_to_report(|world, report| world.nexus(&run_args(pipeline, report, more)))
    }

    /// Runs the command by `run`, which is given where the report is to be written; checks its end and the report.
    pub fn run_to_report(&self, run: impl FnOnce(&Self, &str) -> Finished) -> Value {
        let path = self.path(&unique("report"));
        run(self, &path.display().to_string()).expect_code(0);
        let text = fs::read_to_string(path).expect("the run wrote no report");
        let report: Value = serde_json::from_str(&text).expect("the report is not JSON");
        crate::balance::check(&report);
        report
    }

    /// Does something on the AWS side, by `servers/aws.py`.
    pub fn aws(&self, args: &[&str]) -> String {
        script("aws.py", args, &self.env).trim().to_owned()
    }

    /// Gives the command that runs a script of `servers/` on this world's servers, beside the test.
    pub fn script(&self, name: &str, args: &[&str]) -> Command {
        script_command(name, args, &self.env)
    }

    /// Makes a bucket, and gives its name.
    pub fn bucket(&self, name: &str) -> String {
        let name = unique(name);
        self.aws(&["bucket", &name]);
        name
    }

    /// Copies buckets into one folder of this world, where [`ask`] finds the tables.
    pub fn download(&self, buckets: &[&str]) -> PathBuf {
        let folder = self.path(&unique("copy"));
        for bucket in buckets {
            self.aws(&["download", bucket, "", &folder.display().to_string()]);
        }
        folder
    }

    /// Asks the database in DATABASE_URL.
    pub fn ask_postgres(&self, sql: &str) -> Vec<Value> {
        postgres::ask(self.env("DATABASE_URL"), sql)
    }

    /// Runs SQL in the database of [`with_postgres`](Self::with_postgres).
    pub fn change_postgres(&self, sql: &str) {
        let url = self.env("DATABASE_URL");
        let name = url.rsplit('/').next().and_then(|name| name.split('?').next());
        postgres::shared().sql(name.expect("the URL names a database"), sql);
    }
}

impl Running {
    /// Sends a signal by name (`TERM`, `KILL`).
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().is_ok_and(|s| s.success()), "could not send {name}");
    }

    /// Waits for a good while, and fails if the command does not end.
    pub fn wait(mut self) -> Finished {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("could not wait for nexus") {
                let (stdout, stderr) = (self.read("out"), self.read("err"));
                return Finished { status, stdout, stderr };
            }
            assert!(
                started.elapsed() < RUN_MAX,
                "nexus {:?} does not end; it says:\n{}\n{}",
                self.args,
                self.read("out"),
                self.read("err")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for at most `limit`, and tells whether the command has ended.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.child.try_wait().expect("could not wait for nexus").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Waits until `what` holds, and fails if the command ends before or it takes too long.
    pub fn until(&mut self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            let ended = self.child.try_wait().expect("could not wait for nexus");
            assert!(
                ended.is_none() && started.elapsed() < RUN_MAX,
                "nexus {:?} ({ended:?}) did not come to where {what}; it says:\n{}\n{}",
                self.args,
                self.read("out"),
                self.read("err")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the command stands still, by SIGSTOP.
    pub fn until_stopped(&mut self) {
        let status = format!("/proc/{}/status", self.child.id());
        let stopped = || fs::read_to_string(&status).is_ok_and(|status| status.contains("State:\tT"));
        self.until("it stands still", stopped);
    }

    /// Gives the most memory that the command has held so far, in bytes; nothing once it has ended.
    ///
    /// Pages of the program's own file do not count: they are 100 MiB in a debug build, and the system takes them back.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        Some(self.status_bytes("VmHWM:")?.saturating_sub(self.status_bytes("RssFile:")?))
    }

    /// Gives the memory that the command holds now, in bytes, without the program's own file; nothing once it has ended.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.status_bytes("RssAnon:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number of kB") * 1024)
    }

    fn read(&self, suffix: &str) -> String {
        let bytes = fs::read(self.output.with_extension(suffix)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Fails, with what the command said, unless it ended with `code`.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Gives all that the command said.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Gives the command under test: that of this build, or another that NEXUS_TEST_COMMAND names, from the repository's
/// folder.
pub fn command_path() -> PathBuf {
    match std::env::var_os("NEXUS_TEST_COMMAND") {
        Some(path) => repository("").join(path),
        None => env!("CARGO_BIN_EXE_nexus").into(),
    }
}

/// Gives the arguments that run a pipeline and have its report written.
pub fn run_args<'a>(pipeline: &'a Path, report: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let pipeline = pipeline.to_str().expect("the tests' paths are UTF-8");
    [&["run", pipeline, "--report", report], more].concat()
}

/// Asks the tables of a lake by DuckDB; gives the rows, each a JSON array. See `servers/ask.py` for the tables' names.
pub fn ask(lake: &Path, sql: &str) -> Vec<Value> {
    let rows = script("ask.py", &["lake", &lake.display().to_string(), sql], &[]);
    rows.lines().map(|row| serde_json::from_str(row).expect("ask.py prints JSON")).collect()
}

/// Gives the path of a file of the repository.
pub fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Gives the 12 files of departures, in order.
pub fn departures() -> Vec<String> {
    let files = (1..=12).map(|month| repository(&format!("pipelines/data/flights-2013-{month:02}.csv.gz")));
    files.map(|file| file.display().to_string()).collect()
}

/// Lists all files below a folder, with the time of change and the size of each.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(open) = folders.pop() {
        for item in fs::read_dir(&open).into_iter().flatten().flatten() {
            let path = item.path();
            // A file may go between being listed and being looked at.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else {
                let changed = meta.modified().expect("this file system keeps times of change");
                let name = path.strip_prefix(folder).expect("it lies below").to_owned();
                found.insert(name, (changed, meta.len()));
            }
        }
    }
    found
}

/// Tells whether a file of a lake is committed data: no part of its path begins with `_` or a dot.
pub fn is_table_file(path: &Path) -> bool {
    path.iter().all(|part| !part.to_string_lossy().starts_with(['_', '.']))
        && path.extension().is_some_and(|e| e == "parquet")
}

/// Counts the committed files of a table.
pub fn table_files(lake: &Path, table: &str) -> usize {
    files(&lake.join(table)).keys().filter(|path| is_table_file(path)).count()
}

/// Random numbers whose seed is printed, and can be given as NEXUS_TEST_SEED to see the same again.
pub struct Random(u64);

impl Random {
    /// Takes the seed from the environment, or one that no run had before.
    pub fn seeded() -> Self {
        use std::hash::BuildHasher;
        let given = std::env::var("NEXUS_TEST_SEED").ok();
        let seed = given.map_or_else(
            || std::collections::hash_map::RandomState::new().hash_one(0),
            |text| text.parse().expect("NEXUS_TEST_SEED is a number"),
        );
        println!("NEXUS_TEST_SEED={seed}");
        Self(seed)
    }

    /// Takes a seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Gives the seed, if no number was taken yet.
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// Gives one of the numbers below `end`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
    pub fn below(&mut self, end: usize) -> usize {
        (self.between(0.0, end as f64) as usize).min(end - 1)
    }

    /// Gives one of these.
    pub fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())]
    }

    /// Gives a number from `low` up to `high` (SplitMix64, Steele and others 2014).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        low + (high - low) * (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}
