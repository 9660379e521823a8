//! Signals: the first drains, the second aborts.

use std::process;

use tokio::signal::unix::{SignalKind, signal};

use crate::{Error, Result, Stopper};

/// The exit code of a process that was told twice to stop.
const ABORTED: i32 = 130;

/// Has the first SIGTERM or Ctrl-C drain the job, and the second end the process.
pub fn watch(stopper: Stopper) -> Result<()> {
    let failed = |e| Error::internal("could not listen for signals").because(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        let mut told = false;
        loop {
            // Cancel-safe: a signal that is not received now is received by the next call.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if told {
                tracing::warn!("told twice to stop: aborting; the next start goes on from the last commit");
                process::exit(ABORTED);
            }
            told = true;
            tracing::info!("told to stop: committing what has been read");
            stopper.stop();
        }
    });
    Ok(())
}
