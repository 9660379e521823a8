//! A database of RDS whose users come by tokens of IAM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{START_MAX, beside, python};

/// A running server, ended when this is dropped.
pub struct Rds {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub port: u16,
}

impl Rds {
    /// Starts one before a PostgreSQL, which lets in who can sign with a secret key. Its certificate and its log are in
    /// a folder.
    pub fn start(folder: &Path, postgres: u16, key: &str, secret: &str) -> Self {
        let own = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let named = [
            "-subj",
            "/CN=rds",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "rds.key",
            "-out",
            "rds.crt",
        ];
        let made = Command::new("openssl").current_dir(folder).arg("req").args(own).args(named).output();
        assert!(made.is_ok_and(|made| made.status.success()), "openssl made no certificate");
        let log = fs::File::create(folder.join("rds.log")).expect("could not make a log");
        let mut command = Command::new(python());
        command.arg(beside("rds.py")).args(["rds.crt", "rds.key", &postgres.to_string(), key, secret]);
        let child = command.current_dir(folder).stdin(Stdio::null()).stdout(log).spawn();
        let mut server = Self { child: child.expect("could not start rds.py"), folder: folder.to_owned(), port: 0 };
        let started = Instant::now();
        while server.port == 0 {
            assert!(started.elapsed() < START_MAX, "rds.py did not start");
            std::thread::sleep(Duration::from_millis(20));
            server.port = server.log().first().and_then(|line| line.parse().ok()).unwrap_or(0);
        }
        server
    }

    /// Gives what it has said: its port, and a line for each connection.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("rds.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Rds {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
