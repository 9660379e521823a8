//! Real servers for the tests: S3, SQS and Secrets Manager by ministack,
//! another S3 by SeaweedFS, Kinesis by kinesis-local, and PostgreSQL.
//!
//! Each is started once for the whole test binary, on a free port of loopback,
//! the first time that a test asks for it. Tests share servers and keep apart
//! by [`unique`] names. However the tests end, the servers end with them (see
//! `keep.py`).

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod faults;
pub mod identity;
pub mod kinesis;
pub mod ministack;
pub mod postgres;
pub mod proxy;
pub mod rds;
pub mod seaweed;
pub mod wire;

/// How long a server may take to answer: much longer than it takes on a machine that is busy compiling.
const START_MAX: Duration = Duration::from_secs(60);

/// The region that the tests' clients use.
pub const REGION: &str = "us-west-2";

/// A running server.
pub struct Server {
    /// Ends the server when its standard input is closed: that is, when this is dropped or the process ends.
    keeper: Child,
    /// Where the server's output goes.
    log: PathBuf,
}

/// How to start a server.
pub struct Start<'a> {
    /// The server's command, without what keeps it.
    pub command: Command,
    /// The signal that ends it.
    pub signal: &'a str,
    /// The user it runs as, if not that of the tests.
    pub user: Option<&'a str>,
}

impl Server {
    /// Starts a server in `folder`, which is removed when the server ends.
    pub fn start(start: Start<'_>, folder: &Path) -> Self {
        let log = folder.join("server.log");
        let output = File::create(&log).expect("could not make a server's log");
        let mut keeper = Command::new(python());
        keeper.arg(beside("keep.py")).arg("--folder").arg(folder);
        if let Some(user) = start.user {
            keeper.args(["--user", user]);
        }
        keeper.arg(start.signal).arg(start.command.get_program()).args(start.command.get_args());
        for (name, value) in start.command.get_envs() {
            match value {
                Some(value) => keeper.env(name, value),
                None => keeper.env_remove(name),
            };
        }
        keeper.current_dir(folder).stdin(Stdio::piped());
        keeper.stdout(output.try_clone().expect("could not share a log")).stderr(output);
        Self { keeper: keeper.spawn().expect("could not start a server's keeper"), log }
    }

    /// Waits until `ready`, and fails with the server's log if it ends or takes too long.
    pub fn wait_until(&mut self, ready: impl Fn() -> bool) {
        let started = Instant::now();
        while !ready() {
            let ended = self.keeper.try_wait().expect("could not look after a server");
            if ended.is_some() || started.elapsed() > START_MAX {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                panic!("a server did not start (ended: {ended:?}); its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Makes a name that no other test, and no other run of the tests, uses: fit for buckets, streams and databases.
pub fn unique(name: &str) -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    format!("nexus-test-{name}-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed))
}

/// Makes an empty folder for a server, and gives its path.
pub fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(unique(name));
    fs::create_dir_all(&folder).expect("could not make a server's folder");
    folder
}

/// Finds a port of loopback on which nothing listens.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Gives a port that no connection is given by chance, as a port of the system's own range may be before it is listened
/// on: for servers that need many.
pub fn reserved_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + number % 20_000).expect("it is small");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Tells whether something listens on a port of loopback.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Gives the path of a file that stands beside this one.
pub fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name)
}

/// Gives the folder that `make test-env` fills.
pub fn test_env() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let given = std::env::var_os("NEXUS_TEST_ENV").map(PathBuf::from);
        let folder = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".test-env"));
        assert!(
            folder.join("installed").is_file(),
            "the servers that this test needs are not in {}: run `make test-env`, and set NEXUS_TEST_ENV if they are to \
             lie elsewhere",
            folder.display()
        );
        folder
    })
}

/// Gives the Python that has the emulator and the clients.
pub fn python() -> PathBuf {
    test_env().join("python/bin/python")
}

/// Gives the command that runs a script that stands beside this file.
pub fn script_command(name: &str, args: &[&str], env: &[(String, String)]) -> Command {
    let mut command = Command::new(python());
    command.arg(beside(name)).args(args).envs(env.iter().map(|(k, v)| (k, v)));
    command
}

/// Runs a script that stands beside this file, and gives what it prints.
pub fn script(name: &str, args: &[&str], env: &[(String, String)]) -> String {
    let output = script_command(name, args, env).output().expect("could not run a script");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?} failed:\n{errors}");
    String::from_utf8(output.stdout).expect("a script prints UTF-8")
}

#[test]
fn the_servers_answer() {
    use crate::world::World;

    let world = World::new().with_aws().with_kinesis().with_postgres();
    let (bucket, queue, stream) = (world.bucket("answer"), unique("answer"), unique("answer"));
    let url = world.aws(&["announce", &bucket, &queue, "30"]);
    let file = world.file("a b.json", "{\"n\":1}\n{\"n\":2}\n").display().to_string();
    world.aws(&["upload", &bucket, "in/", &file]);
    // The upload's message, and the test event of the rule.
    assert_ne!(world.aws(&["depth", &url]), "0");
    assert!(world.download(&[&bucket]).join("in/a b.json").is_file());
    world.aws(&["stream", &stream, "3"]);
    world.aws(&["put", &stream, "1", &file]);
    assert_eq!(world.ask_postgres("SELECT 1, 'x'"), [serde_json::json!([1, "x"])]);
}
