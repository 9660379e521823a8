//! A throw-away PostgreSQL server on a free port of this machine.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::secret::SecretRef;

/// Where Debian and its relatives keep the servers, one folder a version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// How often a start is tried: another program may take the free port first.
const STARTS_MAX: usize = 3;

/// A running server with one database, `postgres`. It is stopped and removed when dropped.
pub struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    /// Starts a server that trusts its user `postgres`.
    ///
    /// # Panics
    ///
    /// If PostgreSQL is not installed, or does not start.
    pub fn start() -> Self {
        let programs = programs();
        let folder = tempfile::tempdir().expect("a folder can be made");
        if is_root() {
            // A server refuses to run as root.
            let path = folder.path().to_string_lossy();
            succeed(Command::new("chown").args(["postgres:postgres", &path]).output().expect("chown runs"));
        }
        let mut server = Self { programs, folder, port: 0 };
        let data = server.data();
        succeed(
            server.run(
                "initdb",
                &["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
            ),
        );
        for _ in 1..STARTS_MAX {
            if server.up().status.success() {
                return server;
            }
        }
        succeed(server.up());
        server
    }

    /// Gives the URL of the database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Writes a URL of this server to a file, as a secret. `{port}` stands for the port.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn secret(&self, name: &str, url: &str) -> SecretRef {
        let path = self.folder.path().join(name);
        let url = url.replace("{port}", &self.port.to_string());
        // Renamed into place: others may read the old one now.
        let written = tempfile::NamedTempFile::new_in(self.folder.path()).expect("a file can be made");
        std::fs::write(written.path(), url).expect("a secret can be written");
        written.persist(&path).expect("a secret can be put in place");
        SecretRef::File(path)
    }

    /// Gives the folder of the server's data and settings.
    pub fn data(&self) -> String {
        self.folder.path().join("data").to_string_lossy().into_owned()
    }

    /// Stops the server at once, as a crash does.
    pub fn stop(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "-w", "stop"]);
    }

    /// Starts a stopped server again, on the same port.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn restart(&self) {
        succeed(self.run("pg_ctl", &["-D", &self.data(), "-w", "-l", &self.log(), "start"]));
    }

    /// Adds settings, each as `name=value`, and reads them and `pg_hba.conf` again.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn configure(&self, settings: &[&str]) {
        let file = std::fs::OpenOptions::new().append(true).open(self.settings_file());
        let lines: String = settings.iter().map(|setting| format!("{setting}\n")).collect();
        file.and_then(|mut file| file.write_all(lines.as_bytes())).expect("settings can be written");
        succeed(self.run("pg_ctl", &["-D", &self.data(), "-w", "reload"]));
    }

    fn up(&mut self) -> Output {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        self.port = free.local_addr().expect("a listener has an address").port();
        drop(free);
        let lines = format!(
            "port={}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\nfsync=off\n",
            self.port,
            self.folder.path().display()
        );
        std::fs::write(self.settings_file(), lines).expect("settings can be written");
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-l", &self.log(), "start"])
    }

    fn settings_file(&self) -> String {
        format!("{}/postgresql.auto.conf", self.data())
    }

    fn log(&self) -> String {
        self.folder.path().join("log").to_string_lossy().into_owned()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        // Else the server inherits the pipes of the output, and nobody sees their end.
        let out = self.folder.path().join("out");
        let file = std::fs::File::create(&out).expect("a file can be made");
        command.stdout(file.try_clone().expect("a file has a handle")).stderr(file);
        let status = command.args(arguments).status().expect("a program of PostgreSQL runs");
        Output { status, stdout: std::fs::read(&out).unwrap_or_default(), stderr: Vec::new() }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir(VERSIONS).map(|found| found.flatten().map(|entry| entry.path().join("bin")));
    let newest = versions.ok().and_then(|bins| bins.filter(|bin| bin.join("initdb").exists()).max());
    newest.unwrap_or_else(|| {
        panic!("there is no PostgreSQL under {VERSIONS}: install it, on Debian with `apt install postgresql`")
    })
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

fn succeed(output: Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
