//! Brings events to a file or to an HTTP address.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nexus_operators::{Error, Result};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::job::progress::Progress;
use crate::spec::Loaded;

/// How long one event may take: whoever is slower is as good as dead, and the next event tells the same and more.
const DELIVERY_MAX: Duration = Duration::from_secs(5);

/// Where events go.
pub enum Target {
    /// To the end of a file, a line each.
    File(PathBuf),
    /// To an address.
    #[cfg(feature = "s3")]
    Http {
        /// Sends the requests.
        client: reqwest::Client,
        /// The address.
        url: String,
    },
}

/// Delivers events, one after the other.
pub struct Delivery {
    /// Where they go.
    pub target: Target,
    /// The run's events. When their sender is gone, the delivery ends.
    pub from: mpsc::Receiver<String>,
    /// Where they are counted.
    pub progress: Arc<Progress>,
}

impl Target {
    /// Finds out where the events of a pipeline go.
    pub fn of(loaded: &Loaded) -> Result<Self> {
        if let Some(file) = loaded.lineage_file() {
            return Ok(Self::File(file));
        }
        let url = loaded.spec.lineage.as_ref().and_then(|lineage| lineage.url.clone());
        Self::http(url.ok_or_else(|| Error::internal("the events have no target"))?)
    }

    #[cfg(feature = "s3")]
    fn http(url: String) -> Result<Self> {
        let agent = concat!("nexus/", env!("CARGO_PKG_VERSION"));
        let client = reqwest::Client::builder().user_agent(agent).timeout(DELIVERY_MAX).build();
        let client = client.map_err(|e| Error::internal("could not make an HTTP client").because(e))?;
        Ok(Self::Http { client, url })
    }

    #[cfg(not(feature = "s3"))]
    fn http(_: String) -> Result<Self> {
        Err(Error::config(
            "`lineage.url` needs an HTTP client, which this build leaves out; build it with feature `s3`",
        ))
    }

    async fn take(&self, event: &str) -> Result<()> {
        match self {
            Self::File(path) => append(path, event)
                .await
                .map_err(|e| Error::unavailable(format!("could not append an event to {}", path.display())).because(e)),
            #[cfg(feature = "s3")]
            Self::Http { client, url } => {
                let request = client.post(url).header("content-type", "application/json").body(event.to_owned());
                let failed = |e: reqwest::Error| Error::unavailable("could not post an event").because(e.without_url());
                let answer = request.send().await.map_err(failed)?;
                answer.error_for_status().map(drop).map_err(failed)
            }
        }
    }
}

impl Delivery {
    /// Runs until there are no more events.
    pub async fn run(mut self) {
        let mut failing = false;
        while let Some(event) = self.from.recv().await {
            let taken = tokio::time::timeout(DELIVERY_MAX, self.target.take(&event)).await;
            let taken = taken.unwrap_or_else(|_| Err(Error::unavailable("an event was not taken in time")));
            let counts = &self.progress.lineage;
            match &taken {
                Ok(()) => counts.sent.fetch_add(1, Ordering::Relaxed),
                Err(_) => counts.dropped.fetch_add(1, Ordering::Relaxed),
            };
            // Once for each trouble.
            if let (Err(error), false) = (&taken, failing) {
                tracing::warn!(%error, "events about the run are dropped until they are taken again");
            }
            failing = taken.is_err();
        }
    }
}

async fn append(path: &PathBuf, event: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
    // In one piece: other pipelines may append to the same file.
    file.write_all(format!("{event}\n").as_bytes()).await?;
    file.flush().await
}
