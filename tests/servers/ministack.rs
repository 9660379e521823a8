//! S3, SQS and Secrets Manager.

use std::process::Command;
use std::sync::OnceLock;

use super::{Server, Start, folder, free_port, listens, test_env};

/// A running ministack.
pub struct Ministack {
    _server: Server,
    /// Where it listens.
    pub port: u16,
}

/// Gives the tests' ministack; starts it if it does not run yet.
pub fn shared() -> &'static Ministack {
    static SHARED: OnceLock<Ministack> = OnceLock::new();
    SHARED.get_or_init(start)
}

fn start() -> Ministack {
    let (port, folder) = (free_port(), folder("ministack"));
    let mut command = Command::new(test_env().join("python/bin/ministack"));
    command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string());
    let mut server = Server::start(Start { command, signal: "TERM", user: None }, &folder);
    server.wait_until(|| listens(port));
    Ministack { _server: server, port }
}
