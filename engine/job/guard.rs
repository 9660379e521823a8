//! A panic in a stage is that stage's error: it stops the job as any other error does, and names where it came from.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;

use futures::FutureExt;
use nexus_operators::{Error, Result, fail};

/// Runs a stage. It must not be run again after a panic, which may have left half done what it owns.
pub async fn guard<T>(stage: &str, running: impl Future<Output = Result<T>>) -> Result<T> {
    let mut running = pin!(running);
    let mut polls = 0;
    let polled = poll_fn(|context| {
        fail::poll(stage, &mut polls);
        running.as_mut().poll(context)
    });
    let ended = AssertUnwindSafe(polled).catch_unwind().await;
    ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::internal(format!(
            "{stage} panicked, which is a bug in nexus or in an operator of the service; nothing of the open epoch was \
             committed, and the next start goes on from the last commit: {}",
            text.unwrap_or("no message")
        )))
    })
}

#[cfg(test)]
mod tests {
    use nexus_operators::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_that_names_its_stage() {
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a row has gone")
        };
        let error = guard::<()>("table silver.events", panics).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().starts_with("table silver.events panicked"), "{error}");
        assert!(error.to_string().ends_with("a row has gone"), "{error}");
        assert_eq!(guard("sink", async { Ok(7) }).await.unwrap(), 7);
    }
}
