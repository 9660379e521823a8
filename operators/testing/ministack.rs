//! A throw-away server that speaks S3 and SQS, on a free port of this machine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;

use crate::store::{Backend, Store};

/// How long the server may take to answer: much longer than it takes on a machine that is busy compiling.
const START_MAX: Duration = Duration::from_secs(60);

/// A running server. It is stopped when dropped.
pub struct Ministack {
    server: Child,
    port: u16,
}

impl Ministack {
    /// Starts a server from the folder that `NEXUS_TEST_ENV` names.
    ///
    /// # Panics
    ///
    /// If the server is not installed, or does not start.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        drop(listener);
        let mut server = Command::new(program())
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ministack runs");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.try_wait().expect("a child can be looked after");
            assert!(ended.is_none() && started.elapsed() < START_MAX, "ministack did not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { server, port }
    }

    /// Makes a bucket, and opens it.
    ///
    /// # Panics
    ///
    /// If the bucket cannot be made.
    pub fn bucket(&self, name: &str) -> Store {
        self.ask("PUT", &format!("/{name}"), "");
        let s3 = AmazonS3Builder::new()
            .with_bucket_name(name)
            .with_region("us-east-1")
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_allow_http(true)
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .build();
        let s3 = Arc::new(s3.expect("the settings are whole"));
        let backend = Backend::Object { objects: s3.clone(), multipart: s3, prefix: Path::ROOT };
        Store::with_backend(format!("s3://{name}"), backend)
    }

    /// Counts the uploads of a bucket that are neither completed nor aborted.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub fn uploads(&self, bucket: &str) -> usize {
        self.ask("GET", &format!("/{bucket}?uploads"), "").matches("<UploadId>").count()
    }

    /// Gives the configuration of clients that call this server.
    pub fn config(&self) -> SdkConfig {
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://127.0.0.1:{}", self.port))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test")))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build()
    }

    /// Makes a queue, and gives its URL.
    ///
    /// # Panics
    ///
    /// If the queue cannot be made.
    pub async fn queue(&self, name: &str) -> String {
        let made = aws_sdk_sqs::Client::new(&self.config()).create_queue().queue_name(name).send().await;
        made.expect("a queue can be made").queue_url.expect("a queue has a URL")
    }

    /// Has a bucket announce new objects to a queue that [`Ministack::queue`] made.
    ///
    /// # Panics
    ///
    /// If the server does not take the setting.
    pub fn announce(&self, bucket: &str, queue_name: &str) {
        let body = format!(
            "<NotificationConfiguration><QueueConfiguration><Id>test</Id>\
             <Queue>arn:aws:sqs:us-east-1:000000000000:{queue_name}</Queue>\
             <Event>s3:ObjectCreated:*</Event></QueueConfiguration></NotificationConfiguration>"
        );
        self.ask("PUT", &format!("/{bucket}?notification"), &body);
    }

    /// Sends one request, and gives the whole answer.
    fn ask(&self, method: &str, target: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("a request can be sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{method} {target}: {answer}");
        answer
    }
}

impl Drop for Ministack {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program() -> PathBuf {
    let folder = std::env::var_os("NEXUS_TEST_ENV").map(PathBuf::from).unwrap_or_default();
    let found =
        ["venv", "python"].map(|name| folder.join(name).join("bin/ministack")).into_iter().find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "there is no ministack in NEXUS_TEST_ENV ({}): run `make test-env`, and set NEXUS_TEST_ENV to its folder",
            folder.display()
        )
    })
}
