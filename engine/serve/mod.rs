//! Pages over HTTP that tell how a run is doing: `/health`, `/ready` and `/metrics`.
//!
//! | page | answer |
//! |---|---|
//! | `/health` | 200 as long as the process answers |
//! | `/ready` | 200, or 503 with the reason: the sources are not open yet, or what was read has waited too long for its commit |
//! | `/metrics` | what the run has counted, in the text format of Prometheus |
//!
//! The pages only read. Nobody has to log in, so they say nothing that is secret: names, counts and times.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let lake = tempfile::tempdir()?;
//! # let file = format!("
//! # name: hello
//! # lake: {}
//! # sources:
//! #   numbers: {{ generate: {{ rows: 10, columns: {{ n: {{ sequence: {{}} }} }} }} }}
//! # silver:
//! #   even: {{ sql: SELECT n FROM numbers WHERE n % 2 = 0 }}
//! # ", lake.path().display());
//! let pages = nexus::serve::Pages::listen("127.0.0.1:0").await?;
//! let mut job = nexus::Pipeline::parse(&file)?.start().await?;
//! pages.show(job.progress());
//! println!("see http://{}/metrics", pages.address());
//! job.wait().await?;
//! # Ok(()) }
//! ```

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nexus_operators::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

mod http;
mod metrics;

use crate::job::progress::Progress;
use http::Answer;

/// How many connections are answered at once. Scrapers and probes need a handful; a flood must not take the memory or
/// the file descriptors that the run needs.
const CONNECTIONS_MAX: usize = 32;

/// How long one request may take, from its first byte to the last of its answer: a probe gives up sooner.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// A pause after a connection could not be accepted, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how many intervals of `commit.every` without a commit a run is not ready, unless told otherwise: with the
/// default of 10 s it is a good minute and a half, which is longer than a failover of Postgres.
pub const READY_WITHIN: u32 = 10;

/// Pages about a run, served until this is dropped.
pub struct Pages {
    shown: Arc<Shown>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// What the pages are about.
struct Shown {
    /// Set once the sources are open.
    progress: OnceLock<Arc<Progress>>,
    ready_within: u32,
}

impl Pages {
    /// Listens on an address, such as `127.0.0.1:9464`, and serves the pages.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the address is none, or is taken.
    pub async fn listen(address: &str) -> Result<Self> {
        Self::listen_with(address, READY_WITHIN).await
    }

    /// The same; a run is not ready after `ready_within` intervals of `commit.every` without a commit.
    pub async fn listen_with(address: &str, ready_within: u32) -> Result<Self> {
        let failed =
            |e| Error::config(format!("could not listen on {address}; give a free address and port")).because(e);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shown = Arc::new(Shown { progress: OnceLock::new(), ready_within });
        let serving = tokio::spawn(serve(listener, shown.clone()));
        Ok(Self { shown, address, serving })
    }

    /// Shows a job, from when its sources are open. The first that is given counts.
    pub fn show(&self, progress: &Arc<Progress>) {
        self.shown.progress.get_or_init(|| progress.clone());
    }

    /// Gives the address that the pages are served on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shown {
    fn answer(&self, path: &str) -> Answer {
        let progress = self.progress.get();
        match path {
            "/health" => Answer::text(200, "alive\n"),
            "/ready" => match progress {
                None => Answer::text(503, "not ready: the sources are not open yet\n"),
                Some(progress) => match progress.overdue(self.ready_within) {
                    None => Answer::text(200, "ready\n"),
                    Some(why) => Answer::text(503, format!("not ready: {why}\n")),
                },
            },
            "/metrics" => Answer::metrics(metrics::of(progress.map(AsRef::as_ref))),
            _ => Answer::text(404, "there are /health, /ready and /metrics\n"),
        }
    }
}

/// Answers connections until it is aborted; then those under way end too.
async fn serve(listener: TcpListener, shown: Arc<Shown>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut answering = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while answering.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((connection, _)) => {
                let shown = shown.clone();
                answering.spawn(async move {
                    // Who is too slow, or went away, gets no answer.
                    drop(tokio::time::timeout(REQUEST_MAX, answer(connection, &shown)).await);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut connection: TcpStream, shown: &Shown) -> std::io::Result<()> {
    let answer = match http::read(&mut connection).await? {
        Ok(request) => shown.answer(&request.path).to(&request),
        Err(refused) => refused,
    };
    answer.write(&mut connection).await
}
