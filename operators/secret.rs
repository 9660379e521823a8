//! Secrets: typed references, resolved at run time, never shown.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

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
    /// Fetches the secret's present value.
    pub async fn resolve(&self) -> Result<Secret> {
        match self {
            SecretRef::Env(name) => std::env::var(name).map(Secret::new).map_err(|_| {
                Error::config(format!("could not read a secret: the environment variable `{name}` is not set"))
            }),
            SecretRef::File(path) => {
                let text = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|e| Error::config(format!("could not read a secret from {}", path.display())).because(e))?;
                Ok(Secret::new(text.trim()))
            }
            #[cfg(feature = "aws")]
            SecretRef::AwsSecretsManager { id, key } => crate::aws::read_secret(id, key.as_deref()).await,
            #[cfg(not(feature = "aws"))]
            SecretRef::AwsSecretsManager { id, .. } => Err(Error::config(format!(
                "could not read the secret {id}: this build has no AWS support; build it with feature `kinesis` or `s3`"
            ))),
        }
    }
}
