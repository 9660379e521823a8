//! Kinesis.

use std::process::Command;
use std::sync::OnceLock;

use super::{Server, Start, beside, folder, free_port, listens, test_env};

/// A running kinesis-local.
pub struct Kinesis {
    _server: Server,
    /// Where it listens, without TLS.
    pub port: u16,
}

/// Gives the tests' kinesis-local; starts it if it does not run yet.
pub fn shared() -> &'static Kinesis {
    static SHARED: OnceLock<Kinesis> = OnceLock::new();
    SHARED.get_or_init(start)
}

fn start() -> Kinesis {
    let (port, tls_port, folder) = (free_port(), free_port(), folder("kinesis"));
    let program = test_env().join("node/node_modules/kinesis-local");
    let mut command = Command::new("node");
    command
        .arg("-r")
        .arg(beside("loopback.js"))
        .arg(program.join("main.js"))
        .env("KINESIS_MOCK_PLAIN_PORT", port.to_string())
        .env("KINESIS_MOCK_TLS_PORT", tls_port.to_string())
        .env("KINESIS_MOCK_CERT_PATH", program.join("server.json"))
        .env("SHARD_LIMIT", "1000")
        .env("LOG_LEVEL", "WARN");
    let mut server = Server::start(Start { command, signal: "TERM", user: None }, &folder);
    server.wait_until(|| listens(port));
    Kinesis { _server: server, port }
}
