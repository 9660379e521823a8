//! What is logged, and how.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::terminal;
use crate::Error;

/// What is logged unless `RUST_LOG` says otherwise. Calls to S3 that are tried again show why nothing seems to happen.
const LOGGED: &str = "warn,nexus=info,nexus_operators=info,object_store::client::retry=info";

/// What the verbs that only look at things log: calls that are made again, so that it is seen what they wait for.
const LOGGED_LOOKING: &str = "error,nexus_operators::store=info,object_store::client::retry=info";

/// How logs are written, as it is told.
#[derive(Debug, clap::Args)]
pub struct Log {
    /// How logs are written; `text` unless NEXUS_LOG_FORMAT says otherwise.
    #[arg(long, value_enum, alias = "log")]
    log_format: Option<LogFormat>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

impl Log {
    /// Starts them: they go to standard error, and `RUST_LOG` chooses what is logged.
    pub fn start(&self) -> Result<(), Error> {
        let format = match (self.log_format, std::env::var("NEXUS_LOG_FORMAT")) {
            (Some(format), _) => format,
            (None, Ok(name)) if !name.is_empty() => LogFormat::from_str(&name, true)
                .map_err(|_| Error::config(format!("NEXUS_LOG_FORMAT is `{name}`; it may be text or json")))?,
            (None, _) => LogFormat::Text,
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = match format {
            LogFormat::Text => logs.with_ansi(terminal::errors_have_colour()).try_init(),
            LogFormat::Json => logs.json().flatten_event(true).with_span_list(false).try_init(),
        };
        // A service that embeds the command may have its own logs already.
        drop(started);
        Ok(())
    }
}

/// Has a verb that only looks at things tell what it waits for, on standard error.
pub fn tell_of_waiting() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED_LOOKING));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Other logs may have been started already.
    drop(logs.with_ansi(terminal::errors_have_colour()).try_init());
}
