//! Credentials that are asked for once, and again before they expire.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};

use super::config::now;

/// How long before they expire credentials are asked for anew: longer than any call and its retries take.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// Keeps the credentials of a provider that would ask its service (STS, the container, the machine) for each request.
///
/// The clients of the SDK keep them too, each for itself; those of S3 do not.
#[derive(Debug)]
pub(super) struct Kept {
    provider: SharedCredentialsProvider,
    /// Held to look and to put only, never while credentials are asked for. Requests are futures that their owner may leave
    /// alone for a while; an async lock would be handed to one of these, and all others would wait for it.
    kept: Mutex<Option<Credentials>>,
}

impl Kept {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, kept: Mutex::new(None) }
    }

    /// Gives the credentials. Requests that find them expired at the same time each ask for new ones.
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        let known = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = now();
        let is_good = |known: &Credentials, for_another| known.expiry().is_none_or(|end| end > now + for_another);
        if let Some(known) = known.as_ref().filter(|known| is_good(known, RENEW_BEFORE)) {
            return Ok(known.clone());
        }
        match (self.provider.provide_credentials().await, known) {
            (Ok(fresh), _) => {
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
                Ok(fresh)
            }
            (Err(error), Some(known)) if is_good(&known, Duration::ZERO) => {
                tracing::warn!(%error, "could not renew the AWS credentials; those that are there still hold");
                Ok(known)
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl ProvideCredentials for Kept {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives credentials that hold for so long, and counts how often it is asked; fails from the third time on.
    #[derive(Debug)]
    struct Counting(Arc<AtomicUsize>, Duration);

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let asked = self.0.fetch_add(1, Ordering::Relaxed);
            let found = Credentials::new(asked.to_string(), "secret", None, Some(now() + self.1), "test");
            let error = CredentialsError::not_loaded("away");
            future::ProvideCredentials::ready(if asked < 2 { Ok(found) } else { Err(error) })
        }
    }

    async fn keys(holds: Duration, times: usize) -> (Vec<String>, usize) {
        let count = Arc::new(AtomicUsize::new(0));
        let kept = Kept::new(SharedCredentialsProvider::new(Counting(count.clone(), holds)));
        let mut keys = Vec::new();
        for _ in 0..times {
            keys.extend(kept.provide_credentials().await.map(|found| found.access_key_id().to_owned()));
        }
        (keys, count.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn credentials_are_asked_for_once_while_they_hold() {
        assert_eq!(keys(Duration::from_secs(3600), 4).await, (vec!["0".to_owned(); 4], 1));
    }

    #[tokio::test]
    async fn credentials_that_soon_expire_are_renewed_or_used_to_their_end() {
        let (keys, asked) = keys(RENEW_BEFORE / 2, 4).await;
        assert_eq!((keys.join(" ").as_str(), asked), ("0 1 1 1", 4));
    }

    #[tokio::test]
    async fn credentials_that_have_expired_are_not_used() {
        assert_eq!(keys(Duration::ZERO, 3).await.0, ["0", "1"]);
    }

    /// Answers all but the first who asks.
    #[derive(Debug, Default)]
    struct Slow(AtomicUsize);

    impl ProvideCredentials for Slow {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => future::ProvideCredentials::new(std::future::pending()),
                _ => future::ProvideCredentials::ready(Ok(Credentials::new("key", "secret", None, None, "test"))),
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_nobody_polls_holds_up_no_other() {
        let kept = Kept::new(SharedCredentialsProvider::new(Slow::default()));
        let mut left_alone = Box::pin(kept.provide_credentials());
        assert!(futures::poll!(&mut left_alone).is_pending());
        let other = tokio::time::timeout(Duration::from_secs(5), kept.provide_credentials()).await;
        other.expect("it is answered").expect("there are credentials");
    }
}
