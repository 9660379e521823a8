//! PostgreSQL: the one that is installed, with data of its own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{Server, Start, folder, free_port, script, unique};

/// A running PostgreSQL.
pub struct Postgres {
    _server: Server,
    /// Where it listens.
    pub port: u16,
}

/// Gives the tests' PostgreSQL; starts it if it does not run yet.
pub fn shared() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(Postgres::start)
}

impl Postgres {
    /// Starts one of one's own.
    pub fn start() -> Self {
        let (port, folder) = (free_port(), folder("postgres"));
        let data = folder.join("data");
        // PostgreSQL refuses to run as root; its package brings a user.
        let user = is_root().then_some("postgres");
        if user.is_some() {
            run(Command::new("chown").args(["postgres:postgres"]).arg(&folder));
        }
        let mut init = Command::new(programs().join("initdb"));
        init.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]);
        run(&mut as_user(user, &init));

        let mut command = Command::new(programs().join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", folder.display()));
        // The tests kill Nexus, not PostgreSQL: nothing here depends on its disk.
        command.args(["-c", "fsync=off", "-c", "max_connections=200"]);
        let mut server = Server::start(Start { command, signal: "QUIT", user }, &folder);
        let ready = || {
            let mut ask = Command::new(programs().join("pg_isready"));
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status().is_ok_and(|s| s.success())
        };
        server.wait_until(ready);
        Self { _server: server, port }
    }

    /// Kills a process of the server, unless it is still recovering from the last time. The server ends all others, and
    /// recovers: connections fail for about a second.
    pub fn crash(&self) {
        let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let mut ask = Command::new(programs().join("psql"));
        ask.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-Atqc", checkpointer]);
        let found = ask.output().expect("could not run psql");
        let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        if !pid.is_empty() {
            run(Command::new("kill").args(["-s", "KILL", &pid]));
        }
    }

    /// Runs SQL in a database as the superuser, each statement in a transaction of its own.
    pub fn sql(&self, database: &str, sql: &str) {
        self.psql(database, sql);
    }

    /// Asks a database as the superuser; gives the rows, their columns parted by `|`.
    pub fn ask(&self, database: &str, query: &str) -> Vec<String> {
        self.psql(database, query).lines().map(str::to_owned).collect()
    }

    /// Kills the server processes that a query names, as if each had crashed: the server ends all others too, and
    /// recovers.
    pub fn kill_backend(&self, database: &str, query: &str) {
        for pid in self.ask(database, query) {
            run(Command::new("sh").args(["-c", &format!("kill -s KILL {pid}")]));
        }
    }

    fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(programs().join("psql"));
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-d", database, "-qAtX"]);
        let mut psql = psql
            .args(["-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("could not run psql");
        let mut stdin = psql.stdin.take().expect("it is piped");
        stdin.write_all(sql.as_bytes()).expect("psql reads its input");
        drop(stdin);
        let output = psql.wait_with_output().expect("could not wait for psql");
        assert!(output.status.success(), "{sql} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("psql prints UTF-8")
    }

    /// Makes an empty database, and gives its port-independent name.
    pub fn database(&self) -> String {
        let name = unique("db").replace('-', "_");
        // A CREATE DATABASE inside a transaction block is refused; the first command of `psql -c` is none.
        let made = Command::new(programs().join("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-qc"])
            .arg(format!("CREATE DATABASE {name}"))
            .status()
            .expect("could not run psql");
        assert!(made.success(), "could not make the database {name}");
        name
    }
}

/// Gives the URL of a database on a port of loopback.
pub fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}?sslmode=disable")
}

/// Finds the folder with PostgreSQL's programs: the newest that Debian's packages put there, or that of the PATH.
fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<_> =
            versions.map(|v| v.path().join("bin")).filter(|b| b.join("initdb").is_file()).collect();
        folders.sort();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = || std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file());
        folders.pop().or_else(on_path).expect("PostgreSQL is not installed: run `make test-env`")
    })
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("could not run id");
    id.stdout.trim_ascii() == b"0"
}

/// Gives the command to run as `user`.
fn as_user(user: Option<&str>, command: &Command) -> Command {
    let Some(user) = user else {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    };
    let mut other = Command::new("runuser");
    other.args(["-u", user, "--"]).arg(command.get_program()).args(command.get_args());
    other
}

fn run(command: &mut Command) {
    let output = command.current_dir("/").output().expect("could not run a command");
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Asks a database, and gives the rows, each a JSON array.
pub fn ask(url: &str, sql: &str) -> Vec<serde_json::Value> {
    let rows = script("ask.py", &["postgres", url, sql], &[]);
    rows.lines().map(|row| serde_json::from_str(row).expect("ask.py prints JSON")).collect()
}
