//! Which stream is read, and how.

use crate::aws::AwsSettings;

/// Which stream to read, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KinesisSettings {
    /// The source's name, for messages.
    pub name: String,
    /// The stream's name or ARN.
    pub stream: String,
    /// Where the first start begins.
    pub start: Start,
    /// How records come.
    pub mode: Mode,
    /// Whether records are looked at for aggregates of the Kinesis Producer Library.
    pub aggregated: Aggregated,
    /// What to do when records were trimmed before they were read.
    pub on_data_loss: OnDataLoss,
    /// How Kinesis is reached.
    pub aws: AwsSettings,
}

/// How records come. Positions are the same either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Shards are asked, within the throughput that all their readers share.
    Poll,
    /// The service pushes them to a registered consumer, which has a throughput of its own.
    FanOut {
        /// The consumer's name or ARN. One that is given by name is registered if it is not there.
        consumer: String,
    },
}

/// Where the first start of a pipeline begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record that the stream has.
    Earliest,
    /// At the time of the first start.
    Latest,
    /// At the first record put at or after this time, in milliseconds since the Unix epoch.
    At(i64),
}

/// Whether aggregates of the Kinesis Producer Library are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    /// A record that is an aggregate gives its user records; others are passed on as they are.
    Auto,
    /// Every record is passed on as it is.
    Never,
}

/// What to do when records were trimmed before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDataLoss {
    /// Stop with an error.
    Fail,
    /// Warn, and go on at the oldest record that is there.
    Continue,
}
