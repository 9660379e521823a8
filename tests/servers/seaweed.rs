//! Another S3: SeaweedFS. It checks signatures, and has no keys to encrypt with.

use std::process::Command;

use super::{Server, Start, folder, listens, reserved_port, test_env};

/// The access key that is let in, and its secret.
pub const KEY: [&str; 2] = ["NEXUS", "a secret of the tests"];

/// A running SeaweedFS.
pub struct Seaweed {
    _server: Server,
    /// Where its S3 listens.
    pub port: u16,
}

impl Seaweed {
    /// Starts one.
    pub fn start() -> Self {
        let folder = folder("seaweed");
        let [key, secret] = KEY;
        let identities = format!(
            r#"{{"identities":[{{"name":"tests","credentials":[{{"accessKey":"{key}","secretKey":"{secret}"}}],"actions":["Admin"]}}]}}"#
        );
        std::fs::write(folder.join("s3.json"), identities).expect("could not write a file");
        let mut command = Command::new(test_env().join("python/bin/weed"));
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=.", "-s3", "-s3.config=s3.json"]);
        // Small volumes, which any disk has room for.
        command.args(["-master.volumeSizeLimitMB=64", "-volume.max=50"]);
        let mut ports = Vec::new();
        for service in ["master", "volume", "filer", "s3"] {
            let port = reserved_port();
            ports.push(port);
            command.arg(format!("-{service}.port={port}")).arg(format!("-{service}.port.grpc={}", reserved_port()));
        }
        let mut server = Server::start(Start { command, signal: "TERM", user: None }, &folder);
        server.wait_until(|| ports.iter().all(|port| listens(*port)));
        Self { _server: server, port: ports.pop().expect("there are four") }
    }
}
