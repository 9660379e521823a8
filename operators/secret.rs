//! Secrets: typed references, resolved at run time, never shown.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::aws::AwsSettings;
use crate::error::{Error, Result};
use crate::probe::{Lacking, Probed};

/// How old a secret may become: a value that was replaced and still holds, as while two are valid in turn, is not used for
/// much longer than it takes to rotate it.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// How old a token for RDS may become, which lets in for 15 minutes.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// In an environment variable.
    Env(String),
    /// In a file; white space around the content is cut.
    File(PathBuf),
    /// In AWS Secrets Manager.
    AwsSecretsManager {
        /// The secret's name or ARN.
        id: String,
        /// The key to take, if the secret is a JSON object.
        key: Option<String>,
        /// How it is reached.
        aws: AwsSettings,
    },
    /// A connection URL of a database of Amazon RDS, which is kept elsewhere and has no password: a token of IAM stands
    /// in for it.
    RdsToken {
        /// Where the URL is kept.
        url: Box<SecretRef>,
        /// As whom the token is signed.
        aws: AwsSettings,
    },
}

/// A resolved secret. It does not appear in any log or error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value that must not be shown.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Gives the value, to be handed to whoever needs it and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl SecretRef {
    /// Gives how long a value may be used before it is fetched again, also if nothing refuses it.
    pub fn age_max(&self) -> Duration {
        match self {
            SecretRef::RdsToken { .. } => TOKEN_AGE_MAX,
            _ => AGE_MAX,
        }
    }

    /// Looks whether the secret can be fetched; its value is let go.
    pub async fn probe(&self) -> Probed {
        let found = "it can be read".to_owned();
        match self {
            #[cfg(feature = "aws")]
            SecretRef::AwsSecretsManager { id, key, aws } => {
                crate::aws::probe_secret(id, key.as_deref(), aws).await.map(|_| found)
            }
            SecretRef::File(path) => match tokio::fs::File::open(path).await {
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    Err(Lacking::permission(format!("may not read {}", path.display())))
                }
                _ => self.resolve().await.map(|_| found).map_err(Lacking::from),
            },
            SecretRef::RdsToken { url, .. } => {
                Box::pin(url.probe()).await?;
                self.resolve().await.map(|_| found).map_err(Lacking::from)
            }
            _ => self.resolve().await.map(|_| found).map_err(Lacking::from),
        }
    }

    /// Fetches the secret's present value.
    pub async fn resolve(&self) -> Result<Secret> {
        match self {
            #[cfg(feature = "aws")]
            SecretRef::RdsToken { url, aws } => {
                let url = Box::pin(url.resolve()).await?;
                crate::aws::with_token(&url, aws).await
            }
            #[cfg(not(feature = "aws"))]
            SecretRef::RdsToken { .. } => Err(Error::config(
                "a token for RDS needs AWS, which this build leaves out; build it with feature `kinesis` or `s3`",
            )),
            SecretRef::Env(name) => std::env::var(name).map(Secret::new).map_err(|_| {
                Error::config(format!("could not read a secret: the environment variable `{name}` is not set"))
            }),
            SecretRef::File(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|e| {
                    Error::config(format!("could not read a secret from {}", path.display())).because(e)
                })?;
                Ok(Secret::new(text.trim()))
            }
            #[cfg(feature = "aws")]
            SecretRef::AwsSecretsManager { id, key, aws } => crate::aws::read_secret(id, key.as_deref(), aws).await,
            #[cfg(not(feature = "aws"))]
            SecretRef::AwsSecretsManager { id, .. } => Err(Error::config(format!(
                "could not read the secret {id}: this build has no AWS support; build it with feature `kinesis` or `s3`"
            ))),
        }
    }
}
