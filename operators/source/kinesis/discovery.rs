//! When the shards are listed, and which ones a pipeline begins with.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::reader::horizon_ms;
use super::service::{Fault, Filter, Service, list_all};
use super::shards::Shards;
use super::{KinesisSettings, Start};
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::position::Position;

/// How often the shards are listed when nothing asks for it: only to forget
/// shards and to notice lost ones, so a minute is soon enough.
const LIST_EVERY: Duration = Duration::from_secs(60);

/// How long no listing is sent after an error was reported.
const GIVE_WAY: Duration = Duration::from_secs(1);

/// When the shards are listed.
pub(super) struct Discovery {
    due: Instant,
    /// After a failure: no listing before this, whoever asks.
    not_before: Instant,
    in_flight: bool,
    /// Whether another listing was asked for while one is in flight.
    again: bool,
    backoff: Backoff,
}

impl Discovery {
    /// Begins after a first listing.
    pub fn new(now: Instant) -> Self {
        let due = now + LIST_EVERY;
        Self { due, not_before: now, in_flight: false, again: false, backoff: Backoff::default() }
    }

    /// Asks for a listing that begins from now on.
    pub fn want(&mut self) {
        self.again |= self.in_flight;
        self.due = self.due.min(self.not_before.max(Instant::now()));
    }

    /// Tells when the next listing is due; nothing while one is in flight.
    pub fn next_due(&self) -> Option<Instant> {
        (!self.in_flight).then_some(self.due)
    }

    /// Notes that a listing was sent.
    pub fn started(&mut self) {
        self.in_flight = true;
        self.again = false;
    }

    /// Notes that a listing came.
    pub fn succeeded(&mut self, now: Instant) {
        self.in_flight = false;
        self.backoff.succeeded();
        self.due = if self.again { now } else { now + LIST_EVERY };
    }

    /// Notes a failed listing; gives the error that is to be reported, if one is.
    pub fn failed(&mut self, now: Instant, fault: Fault) -> Result<()> {
        self.in_flight = false;
        let wait = self.backoff.failed(now, now);
        self.not_before = now + wait.unwrap_or(GIVE_WAY);
        self.due = self.not_before;
        match (fault, wait) {
            (Fault::Busy(error) | Fault::Expired(error), Some(wait)) => {
                tracing::debug!(%error, ?wait, "a listing of kinesis shards failed, backing off");
                Ok(())
            }
            (Fault::Busy(error) | Fault::Expired(error), None) => {
                Err(error.while_doing("no listing of shards has succeeded for too long"))
            }
            (Fault::Refused(error) | Fault::Missing(error) | Fault::Invalid(error), _) => Err(error),
        }
    }
}

/// Finds the shards to begin with, at the first start of a pipeline.
pub(super) async fn first_shards(
    service: &dyn Service,
    settings: &KinesisSettings,
    retention: Duration,
    clock: &SharedClock,
) -> Result<Shards, Fault> {
    let now_ms = clock.now_us() / 1000;
    let (shards, position) = match settings.start {
        Start::At(ms) if ms > now_ms => {
            let text = format!("the start time of the source {} lies in the future: {ms} ms", settings.name);
            return Err(Fault::Refused(Error::config(text)));
        }
        Start::At(ms) if ms > horizon_ms(now_ms, retention) => {
            (list_all(service, Filter::AtTime(ms)).await?, Position::Time { ms })
        }
        Start::Earliest | Start::At(_) => (list_all(service, Filter::AtTrimHorizon).await?, Position::Start),
        Start::Latest => {
            // The time is taken behind the listing: should a shard split in
            // between, its end is read and its children from their start.
            let shards = list_all(service, Filter::AtLatest).await?;
            (shards, Position::Time { ms: clock.now_us() / 1000 })
        }
    };
    if shards.is_empty() {
        let text = format!("the kinesis stream {} has no shards yet", settings.stream);
        return Err(Fault::Busy(Error::unavailable(text)));
    }
    Ok(Shards::start(shards, &position))
}
