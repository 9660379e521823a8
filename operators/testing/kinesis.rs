//! A Kinesis service on this machine: kinesis-local, started for one test and stopped with it.
//!
//! The environment variable `NEXUS_TEST_ENV` names the folder that `make
//! test-env` fills.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_kinesis::Client;

use crate::error::{Error, Result};

/// Names the folder with the servers' programs.
pub const TEST_ENV: &str = "NEXUS_TEST_ENV";

/// How long the server may take to answer; on a busy machine it needs some seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the server, after making all of it listen on the loopback address, which it cannot be told.
const PROGRAM: &str = "
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (first, ...rest) {
  if (first && typeof first === 'object') return listen.call(this, { ...first, host: '127.0.0.1' }, ...rest);
  return listen.call(this, { port: Number(first), host: '127.0.0.1' }, ...rest.filter(a => typeof a === 'function'));
};
require(process.env.NEXUS_KINESIS_MAIN);
";

/// A running server; it is killed when this is dropped.
#[derive(Debug)]
pub struct KinesisServer {
    child: Child,
    config: SdkConfig,
}

impl KinesisServer {
    /// Starts a server and waits until it answers.
    pub async fn start() -> Result<Self> {
        let folder = folder()?;
        let (plain, tls) = (free_port()?, free_port()?);
        let child = Command::new("node")
            .args(["-e", PROGRAM])
            .env("NEXUS_KINESIS_MAIN", folder.join("main.js"))
            .env("KINESIS_MOCK_CERT_PATH", folder.join("server.json"))
            .env("KINESIS_MOCK_PLAIN_PORT", plain.to_string())
            .env("KINESIS_MOCK_TLS_PORT", tls.to_string())
            .env("LOG_LEVEL", "ERROR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Error::config("could not start node, which runs kinesis-local").because(e))?;
        let config = config_of(&format!("http://127.0.0.1:{plain}")).await;
        let server = Self { child, config };
        let client = server.client();
        let answers = async {
            while client.list_streams().send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let started = tokio::time::timeout(START_TIMEOUT, answers).await;
        started.map_err(|_| Error::unavailable("kinesis-local did not answer in time"))?;
        Ok(server)
    }

    /// Gives the configuration with which the server is reached.
    pub fn config(&self) -> SdkConfig {
        self.config.clone()
    }

    /// Gives a client of the server.
    pub fn client(&self) -> Client {
        Client::new(&self.config)
    }
}

impl Drop for KinesisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> Result<PathBuf> {
    let missing = || Error::config(format!("kinesis-local is not there: run `make test-env` and set {TEST_ENV}"));
    let env = PathBuf::from(std::env::var_os(TEST_ENV).ok_or_else(missing)?);
    let places = ["node/node_modules", "node_modules"].map(|modules| env.join(modules).join("kinesis-local"));
    places.into_iter().find(|folder| folder.join("main.js").is_file()).ok_or_else(missing)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Gives the configuration with which a service at this address is reached.
pub async fn config_of(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .load()
        .await
}
