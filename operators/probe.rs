//! Whether what a pipeline names is there, can be reached, and may be used.
//!
//! Each operator's probe makes a few calls that change nothing, or take back what they change.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// What was found of a thing: some words about it, or what is missing.
pub type Probed = Result<String, Lacking>;

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The right to use the thing.
    Permission,
    /// A way to it, or its service.
    Network,
    /// The thing itself, or it is not as it must be.
    Thing,
}

/// What is missing, and how that was told.
#[derive(Debug)]
pub struct Lacking {
    /// What is missing.
    pub lack: Lack,
    /// How that was told.
    pub error: Error,
}

impl Lacking {
    /// Says that a right is missing.
    pub fn permission(text: impl Into<String>) -> Self {
        Self { lack: Lack::Permission, error: Error::config(text) }
    }

    /// Says that a thing is missing.
    pub fn thing(text: impl Into<String>) -> Self {
        Self { lack: Lack::Thing, error: Error::config(text) }
    }
}

impl From<Error> for Lacking {
    /// Takes an error that tells no more than its kind.
    fn from(error: Error) -> Self {
        let lack = if error.kind() == ErrorKind::Unavailable { Lack::Network } else { Lack::Thing };
        Self { lack, error }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Permission => "permission",
            Lack::Network => "network",
            Lack::Thing => "thing",
        })
    }
}
