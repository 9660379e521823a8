//! Signals: the first drains, the second aborts.

use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Error, Result, Stopper};

/// The exit code of a process that was told twice to stop.
const ABORTED: i32 = 130;

/// SIGTERM and Ctrl-C, which no longer end the process by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen.
    pub fn listen() -> Result<Self> {
        let failed = |e| Error::internal("could not listen for signals").because(e);
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for the next. Cancel-safe: a signal that is not received now is received by the next call.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Has the next signal drain the job, and the one after it end the process.
    pub fn watch(mut self, stopper: Stopper) {
        tokio::spawn(async move {
            self.next().await;
            tracing::info!("told to stop: committing what has been read");
            stopper.stop();
            self.abort_at_next().await;
        });
    }

    /// Ends the process at the next signal.
    pub async fn abort_at_next(mut self) {
        self.next().await;
        tracing::warn!("told twice to stop: aborting; the next start goes on from the last commit");
        process::exit(ABORTED);
    }
}
