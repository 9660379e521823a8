//! The stages of a sink: one takes rows and prepares, the other commits.

use std::sync::Arc;
use std::time::Duration;

use nexus_operators::sink::{Committer, EpochId, Handle, Sink};
use nexus_operators::{Error, ErrorKind, Result, fail};
use tokio::sync::mpsc;

use super::channel::{Item, Receiver, closed};
use super::coordinator::Report;

/// The first pause after a commit that failed; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two tries to commit.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Takes rows and prepares them.
pub struct SinkStage {
    /// The sink's name, `<table>/<kind>`.
    pub name: String,
    /// The writing half.
    pub sink: Box<dyn Sink>,
    /// The table's channel.
    pub from: Receiver<Item>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
    /// The epoch that is open.
    pub open: EpochId,
}

impl SinkStage {
    /// Runs until the last barrier.
    pub async fn run(mut self) -> Result<()> {
        while let Some(item) = self.from.recv().await {
            match item {
                Item::Batch(batch) => {
                    self.sink.write(self.open, &batch).await.map_err(|e| named(&self.name, e))?;
                    fail::point("after_write")?;
                }
                Item::Barrier(barrier) => {
                    fail::point("before_prepare")?;
                    let prepared = self.sink.prepare(self.open).await.map_err(|e| named(&self.name, e))?;
                    fail::point("after_prepare")?;
                    let told = Report::Prepared { sink: self.name.clone(), epoch: barrier.epoch, prepared };
                    self.reports.send(told).map_err(|_| closed())?;
                    self.open.epoch = barrier.epoch + 1;
                    if barrier.last {
                        return Ok(());
                    }
                }
            }
        }
        Err(closed())
    }
}

/// Commits what one sink has prepared, epoch by epoch.
pub struct CommitStage {
    /// The sink's name, `<table>/<kind>`.
    pub name: String,
    /// The publishing half.
    pub committer: Arc<dyn Committer>,
    /// Epochs whose record exists. When the coordinator is gone, the stage ends.
    pub from: mpsc::UnboundedReceiver<(EpochId, Option<Handle>)>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
}

impl CommitStage {
    /// Runs until the coordinator is gone. A sink that is away is tried again, however long it takes.
    pub async fn run(mut self) -> Result<()> {
        while let Some((id, handle)) = self.from.recv().await {
            if let Some(handle) = handle {
                fail::point("before_commit")?;
                self.commit(id, &handle).await?;
                fail::point("after_commit")?;
            }
            let told = Report::Committed { sink: self.name.clone(), epoch: id.epoch };
            self.reports.send(told).map_err(|_| closed())?;
        }
        Ok(())
    }

    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.committer.commit(id, handle).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(sink = self.name, epoch = id.epoch, %error, "could not commit; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => return Err(named(&self.name, error)),
            }
        }
    }
}

fn named(name: &str, error: Error) -> Error {
    error.while_doing(format!("sink {name}"))
}
