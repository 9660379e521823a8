//! Pages over HTTP about a run: is it alive, is it ready, metrics, an API in JSON, and a console for people.
//!
//! | page | answer |
//! |---|---|
//! | `/health` | 200 as long as the process answers |
//! | `/ready` | 200, or 503 with the reason: the sources are not open yet, or what was read has waited too long for its commit |
//! | `/metrics` | what the run has counted, in the text format of Prometheus: see `docs/metrics.md` |
//! | `/api/v1/...` | the run as JSON, and the orders to pause, to resume and to drain: see `/api/v1/openapi.json` |
//! | `/` | a console that shows all this in a browser |
//!
//! Who may see what:
//!
//! - On a loopback address without a token: everyone on this machine, everything. Requests that name another host than
//!   this machine are refused, and so are orders that come from the page of another site: a browser on this machine may
//!   be made to send either.
//! - On another address without a token: `/health`, and `/ready` without the reason. All else is refused, with words.
//! - With a [`Token`], on any address: these two for everyone; the console's page, which holds nothing of the run and asks
//!   for the token; all else for who sends `Authorization: Bearer <token>`.
//!
//! Values of masked columns (`mask` in the pipeline file) are on no page.
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
//! pages.control(job.stopper());
//! println!("see http://{}/", pages.address());
//! job.wait().await?;
//! # Ok(()) }
//! ```

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nexus_operators::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub mod api;
mod console;
mod families;
mod gate;
mod metrics;
mod openapi;
mod rates;

use crate::Stopper;
use crate::job::progress::Progress;
pub use families::{FAMILIES, Family};
pub use gate::Token;
use gate::{Authorised, Gate};
use rates::Rates;

/// How many connections are answered at once. Scrapers, probes and browsers need a handful; a flood must not take the
/// memory or the file descriptors that the run needs.
const CONNECTIONS_MAX: usize = 32;

/// How long one request may take to arrive, and a connection may be silent: a probe gives up sooner.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// How long a connection is kept for further requests: so long can one who is slow on purpose keep another out.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// The most that a request's head may take: browsers with all their cookies stay below it.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// A pause after a connection could not be accepted, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how many intervals of `commit.every` without a commit a run is not ready, unless told otherwise: with the
/// default of 10 s it is a good minute and a half, which is longer than a failover of Postgres.
pub const READY_WITHIN: u32 = 10;

/// How pages are served.
#[derive(Debug, Clone)]
pub struct PagesSettings {
    /// A run is not ready after so many intervals of `commit.every` without a commit.
    pub ready_within: u32,
    /// What has to be shown to see more than whether the process is alive and ready.
    pub token: Option<Token>,
}

/// Pages about a run, served until this is dropped.
pub struct Pages {
    shown: Arc<Shown>,
    address: SocketAddr,
    serving: [JoinHandle<()>; 2],
}

/// What the pages are about.
struct Shown {
    /// Set once the sources are open.
    progress: OnceLock<Arc<Progress>>,
    /// Set if the pages may pause and stop the run.
    stopper: OnceLock<Stopper>,
    rates: Rates,
    ready_within: u32,
    gate: Gate,
}

impl Default for PagesSettings {
    fn default() -> Self {
        Self { ready_within: READY_WITHIN, token: None }
    }
}

impl Pages {
    /// Listens on an address, such as `127.0.0.1:9464`, and serves the pages.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the address is none, or is taken.
    pub async fn listen(address: &str) -> Result<Self> {
        Self::listen_with(address, PagesSettings::default()).await
    }

    /// The same, as told.
    pub async fn listen_with(address: &str, settings: PagesSettings) -> Result<Self> {
        let failed =
            |e| Error::config(format!("could not listen on {address}; give a free address and port")).because(e);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shown = Arc::new(Shown {
            progress: OnceLock::new(),
            stopper: OnceLock::new(),
            rates: Rates::default(),
            ready_within: settings.ready_within,
            gate: Gate::new(address, settings.token),
        });
        let serving =
            [tokio::spawn(serve(listener, router(shown.clone()))), tokio::spawn(rates::follow(shown.clone()))];
        Ok(Self { shown, address, serving })
    }

    /// Shows a job, from when its sources are open. The first that is given counts.
    pub fn show(&self, progress: &Arc<Progress>) {
        progress.watch();
        self.shown.progress.get_or_init(|| progress.clone());
    }

    /// Lets those who may see all pages pause, resume and drain the job. The first that is given counts.
    pub fn control(&self, stopper: Stopper) {
        self.shown.stopper.get_or_init(|| stopper);
    }

    /// Gives the address that the pages are served on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whether more than `/health` and `/ready` is open to some: not on an address that others reach, without a token.
    pub fn has_console(&self) -> bool {
        !self.shown.gate.is_shut()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

impl Shown {
    /// Says why the run is not ready; nothing if it is.
    fn not_ready(&self) -> Option<String> {
        match self.progress.get() {
            None => Some("the sources are not open yet".to_owned()),
            Some(progress) => progress.overdue(self.ready_within),
        }
    }
}

fn router(shown: Arc<Shown>) -> Router {
    let guarded = middleware::from_fn_with_state(shown.clone(), gate::guard);
    Router::new()
        .route("/health", get(|| async { "alive\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(numbers))
        .merge(console::router())
        .nest("/api/v1", api::router())
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "there are /, /health, /ready, /metrics and /api/v1/openapi.json\n")
        })
        .layer(guarded)
        .with_state(shown)
}

async fn ready(State(shown): State<Arc<Shown>>, Extension(authorised): Extension<Authorised>) -> Response {
    match shown.not_ready() {
        None => "ready\n".into_response(),
        Some(_) if !authorised.0 => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready; with the token this page tells why\n").into_response()
        }
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn numbers(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics::of(shown.progress.get().map(AsRef::as_ref)))
}

/// Answers connections until it is aborted; then those under way end too.
async fn serve(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut answering = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while answering.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((connection, _)) => {
                let router = router.clone();
                answering.spawn(async move {
                    answer(connection, router).await;
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

async fn answer(connection: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router)));
    // Who is too slow, or went away, gets no answer.
    if tokio::time::timeout(CONNECTION_MAX, serving.as_mut()).await.is_err() {
        serving.as_mut().graceful_shutdown();
        drop(tokio::time::timeout(REQUEST_MAX, serving).await);
    }
}
