//! Errors whose kind tells the caller what to do.

use std::fmt;

/// The result of an operator's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller of a failed operation should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Stop: the user changes the pipeline file or the environment.
    Config,
    /// Back off and try again: a network, a service or a disk is not there now.
    Unavailable,
    /// Quarantine: the data is bad, the pipeline goes on.
    Data,
    /// Stop: a newer process owns this pipeline.
    Fenced,
    /// Stop: a bug in Nexus or in a user's operator.
    Internal,
}

/// An error for people: what was being done, to what, and what to try.
///
/// The kind is the interface, the text is for reading: lower case, no full
/// stop, values last.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), cause: None }
    }

    /// Makes an error that stops the pipeline until its file or environment changes.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Makes an error after which the same call may succeed later.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Makes an error about data that belongs in the quarantine.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// Makes an error that says that a newer process owns the pipeline.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fenced, message)
    }

    /// Makes an error that says that Nexus itself is at fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds the error that led to this one.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Puts what was being done before the message: `what: message`.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Tells what the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.cause.as_deref().map(|c| c as &dyn std::error::Error);
        let mut said = self.message.clone();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as &(dyn std::error::Error + 'static))
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::internal("could not process an arrow batch").because(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound | Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Config,
            Io::InvalidData | Io::UnexpectedEof => ErrorKind::Data,
            _ => ErrorKind::Unavailable,
        };
        let text = match error.kind() {
            Io::StorageFull | Io::QuotaExceeded => {
                "the disk is full; free space on it and start again, nothing is lost"
            }
            Io::PermissionDenied | Io::ReadOnlyFilesystem => "it is not allowed; let nexus write there, or read it",
            _ => "input or output failed",
        };
        Error::new(kind, text).because(error)
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as Store;
        let kind = match &error {
            Store::NotFound { .. }
            | Store::InvalidPath { .. }
            | Store::NotSupported { .. }
            | Store::PermissionDenied { .. }
            | Store::Unauthenticated { .. }
            | Store::UnknownConfigurationKey { .. } => ErrorKind::Config,
            Store::NotImplemented { .. } => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, "object store").because(error)
    }
}
