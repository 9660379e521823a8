//! Amazon Kinesis data streams, read shard by shard: by asking, or by enhanced fan-out.
//!
//! The guarantee: every record of every shard is handed on once and in its
//! shard's order, over restarts and reshards, and a child shard is read only
//! when its parents have been read to their end and that is committed. Lost
//! records (a position older than the retention) are an error unless
//! [`OnDataLoss::Continue`] is set.
//!
//! The source spawns nothing: requests in flight are futures that it owns, and
//! they make progress while [`next`](Source::next) is awaited.
//!
//! ```no_run
//! # async fn example() -> nexus_operators::Result<()> {
//! use std::sync::Arc;
//! use nexus_operators::clock::SystemClock;
//! use nexus_operators::position::Cut;
//! use nexus_operators::source::Source;
//! use nexus_operators::source::kinesis::{Aggregated, KinesisSettings, KinesisSource, Mode, OnDataLoss, Start};
//!
//! let settings = KinesisSettings {
//!     name: "intake".into(),
//!     stream: "nexus-dev-intake".into(),
//!     start: Start::Earliest,
//!     mode: Mode::Poll,
//!     aggregated: Aggregated::Auto,
//!     on_data_loss: OnDataLoss::Fail,
//!     aws: Default::default(),
//! };
//! let mut source = KinesisSource::new(settings, Arc::new(SystemClock), None);
//! source.open(&Cut::default()).await?;
//! let event = source.next().await?;
//! # Ok(())
//! # }
//! ```

mod backoff;
mod consumer;
mod discovery;
mod fan_out;
pub(crate) mod kpl;
mod probe;
mod reader;
mod service;
mod settings;
mod shards;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use self::consumer::Consumer;
use self::discovery::{Discovery, first_shards};
use self::fan_out::FanOut;
pub use self::probe::probe;
use self::reader::{End, Moved, Reader, Reading, Step, data_loss, horizon_ms};
use self::service::{Fault, Filter, Kinesis, Service, ShardFacts, list_all};
pub use self::settings::{Aggregated, KinesisSettings, Mode, OnDataLoss, Start};
use self::shards::Shards;
use crate::batch::{Chunk, Payload, Record};
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::position::{Cut, Position};
use crate::source::{Source, SourceEvent};

/// Requests to shards at once. An answer may hold 10 MB, so this bounds the
/// source's memory to about 80 MB; it suffices for a hundred shards and more,
/// since a call takes some tens of milliseconds and a shard has one a second.
const REQUESTS_IN_FLIGHT_MAX: usize = 8;

/// Subscriptions that are waited for at once. An event holds a megabyte or two, and one that is waited for is not there
/// yet, so that this bounds the source's memory at about the same; with more shards, they take turns.
const EVENTS_AWAITED_MAX: usize = 64;

/// How long [`Source::next`] waits for records, over all calls that were dropped meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long [`Source::maintain`] takes at most: some megabytes of answers come in that time.
const MAINTAIN_MAX: Duration = Duration::from_millis(20);

/// Reads an Amazon Kinesis data stream.
///
/// `Idle` means that every shard's newest answer was empty and not behind, and
/// that no child shard waits for the commit of its parent: a run that ends
/// when idle has read all. While the source waits without being caught up
/// (throttled, far behind in a gap, or with a child that needs a commit),
/// `next` answers about once a second with a [`Chunk`] of no records, which
/// carries the shard's lag.
pub struct KinesisSource {
    settings: KinesisSettings,
    clock: SharedClock,
    config: Option<SdkConfig>,
    /// Nothing before `open`, unless a test brings its own.
    service: Option<Arc<dyn Service>>,
    reading: Arc<Reading>,
    shards: Shards,
    /// The committed positions that this process began with.
    resumed: BTreeMap<String, Position>,
    readers: BTreeMap<Arc<str>, Reader>,
    /// The shards whose last chunk told that they are behind.
    told_behind: BTreeSet<Arc<str>>,
    /// Whether shards may have become readable that have no reader yet.
    readers_due: bool,
    /// Requests of readers and listings. Owned here, so that dropping `next` loses no answer.
    in_flight: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// Replies that came while `next` was not called, the oldest first.
    replies: VecDeque<Reply>,
    /// How many requests of readers are in flight or replied and not taken in.
    requests: usize,
    discovery: Discovery,
    /// When to say that nothing has come. It is kept here, since `next` may be dropped more often than it may wait.
    silent_at: Option<Instant>,
}

/// What a request came back with.
enum Reply {
    Shard(Arc<str>, reader::Reply),
    Listing(Result<Vec<ShardFacts>, Fault>),
}

impl KinesisSource {
    /// Makes a source; `config` stands in for what the settings say of AWS.
    pub fn new(settings: KinesisSettings, clock: SharedClock, config: Option<SdkConfig>) -> Self {
        let reading = Reading {
            stream: settings.stream.clone(),
            aggregated: settings.aggregated,
            on_data_loss: settings.on_data_loss,
            retention: Duration::ZERO,
            paced: settings.mode == Mode::Poll,
        };
        Self {
            settings,
            clock,
            config,
            service: None,
            reading: Arc::new(reading),
            shards: Shards::default(),
            resumed: BTreeMap::new(),
            readers: BTreeMap::new(),
            told_behind: BTreeSet::new(),
            readers_due: false,
            in_flight: FuturesUnordered::new(),
            replies: VecDeque::new(),
            requests: 0,
            discovery: Discovery::new(Instant::now()),
            silent_at: None,
        }
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_us() / 1000
    }

    fn requests_max(&self) -> usize {
        match self.settings.mode {
            Mode::Poll => REQUESTS_IN_FLIGHT_MAX,
            Mode::FanOut { .. } => EVENTS_AWAITED_MAX,
        }
    }

    /// Looks for start times of an earlier process that are older than the retention.
    fn check_times(&mut self, now_ms: i64) -> Result<()> {
        let horizon_ms = horizon_ms(now_ms, self.reading.retention);
        let is_trimmed = |position: &Position| matches!(position, Position::Time { ms } if *ms < horizon_ms);
        let trimmed: Vec<_> =
            self.shards.open().filter(|(_, position)| is_trimmed(position)).map(|(id, _)| id.clone()).collect();
        for id in trimmed {
            self.tolerate_loss(&format!("nothing was read of shard {id} within the retention"))?;
            self.shards.advance(&id, Position::Start);
        }
        Ok(())
    }

    /// Takes a listing in: new shards, forgotten ones, lost ones.
    fn take_listing(&mut self, listing: Vec<ShardFacts>) -> Result<()> {
        let lost = self.shards.listed(listing);
        if !lost.is_empty() {
            self.tolerate_loss(&format!("the shards {lost:?} vanished before they were read to their end"))?;
            self.shards.give_up(&lost, self.now_ms());
            self.readers.retain(|id, _| !lost.contains(id));
        }
        let now = Instant::now();
        let mut ended = Vec::new();
        for (id, reader) in self.readers.iter_mut().filter(|(_, reader)| reader.is_closing()) {
            if reader.has_ended() && self.shards.is_closed(id) {
                ended.push(id.clone());
            } else {
                reader.reopen(now);
            }
        }
        for id in ended {
            self.end(&id, Vec::new());
        }
        self.readers_due = true;
        Ok(())
    }

    fn tolerate_loss(&self, what: &str) -> Result<()> {
        if self.settings.on_data_loss == OnDataLoss::Fail {
            return Err(data_loss(&self.reading, what));
        }
        tracing::warn!(source = %self.settings.name, "{what}, going on with the oldest records that are there");
        Ok(())
    }

    /// Begins to read the shards that may be read.
    fn open_readers(&mut self) -> Result<()> {
        let now = Instant::now();
        for (id, position) in self.shards.open() {
            if self.readers.contains_key(id) || !self.shards.may_be_read(id) {
                continue;
            }
            let hash_range = self.shards.facts(id).and_then(|facts| facts.hash_range.clone());
            let resumed = self.resumed.get(id.as_ref()) == Some(position);
            let reader = Reader::new(id, position, hash_range, resumed, self.reading.clone(), now)?;
            self.readers.insert(id.clone(), reader);
        }
        self.readers_due = false;
        Ok(())
    }

    fn end(&mut self, id: &Arc<str>, children: Vec<ShardFacts>) {
        self.readers.remove(id);
        self.told_behind.remove(id);
        self.shards.end(id, children, self.now_ms());
        self.readers_due = true;
        self.discovery.want();
    }

    /// Sends the requests that are due, the longest due first.
    fn start_requests(&mut self, service: &Arc<dyn Service>) {
        let now = Instant::now();
        if self.discovery.next_due().is_some_and(|due| due <= now) {
            self.discovery.started();
            let service = service.clone();
            self.in_flight.push(Box::pin(async move { Reply::Listing(list_all(service.as_ref(), Filter::All).await) }));
        }
        while self.requests < self.requests_max() {
            let due = self.readers.iter_mut().filter_map(|(id, reader)| Some((reader.due()?, id, reader)));
            let Some((_, id, reader)) = due.filter(|(due, ..)| *due <= now).min_by_key(|(due, ..)| *due) else {
                return;
            };
            let (id, request) = (id.clone(), reader.request(service.clone(), now));
            self.in_flight.push(Box::pin(async move { Reply::Shard(id, request.await) }));
            self.requests += 1;
        }
    }

    /// Tells when a request will be due that is not yet sent, and may be.
    fn next_due(&self) -> Option<Instant> {
        let can_ask = self.requests < self.requests_max();
        let readers = self.readers.values().filter(|_| can_ask).filter_map(Reader::due).min();
        readers.into_iter().chain(self.discovery.next_due()).min()
    }

    /// Takes a reply in; gives the records to hand on.
    fn take_reply(&mut self, reply: Reply) -> Result<Option<Chunk>> {
        let (id, reply) = match reply {
            Reply::Shard(id, reply) => (id, reply),
            Reply::Listing(listing) => {
                self.listing_replied(listing)?;
                return Ok(None);
            }
        };
        self.requests -= 1;
        let (now, now_ms) = (Instant::now(), self.now_ms());
        let Some(reader) = self.readers.get_mut(&id) else { return Ok(None) };
        match reader.replied(reply, now, now_ms) {
            Step::Nothing => Ok(None),
            Step::Moved(moved) => Ok(self.moved(&id, moved)),
            Step::Missing => {
                self.shards.doubt(&id);
                self.discovery.want();
                Ok(None)
            }
            Step::Failed(error) => Err(error),
        }
    }

    fn moved(&mut self, id: &Arc<str>, moved: Moved) -> Option<Chunk> {
        let lag_ms = self.readers.get(id).and_then(Reader::lag_ms);
        if let Some(position) = moved.position {
            self.shards.advance(id, position);
        }
        match moved.end {
            End::Open => {}
            End::Closed(children) => self.end(id, children),
            End::Unsure => self.discovery.want(),
        }
        // That a shard has caught up is told too, once, by a chunk of no records.
        let has_caught_up = self.told_behind.contains(id) && lag_ms == Some(0);
        if moved.records.is_empty() && !has_caught_up {
            return None;
        }
        let is_behind = lag_ms.is_some_and(|lag_ms| lag_ms > 0);
        if is_behind {
            self.told_behind.insert(id.clone())
        } else {
            self.told_behind.remove(id)
        };
        Some(self.chunk(id, moved.records, lag_ms))
    }

    fn listing_replied(&mut self, listing: Result<Vec<ShardFacts>, Fault>) -> Result<()> {
        let now = Instant::now();
        match listing {
            Ok(listing) => {
                self.discovery.succeeded(now);
                self.take_listing(listing)
            }
            Err(fault) => self.discovery.failed(now, fault),
        }
    }

    fn chunk(&self, id: &Arc<str>, records: Vec<Record>, lag_ms: Option<u64>) -> Chunk {
        let payload = Payload::Records(records);
        Chunk { partition: id.clone(), payload, read_at_us: self.clock.now_us(), lag_ms }
    }

    /// Answers when no records came in time: `Idle`, or no records of a shard that has not caught up.
    fn nothing_read(&self) -> SourceEvent {
        let unread = self.shards.open().map(|(id, _)| (id, self.readers.get(id)));
        let mut behind = unread.filter(|(_, reader)| !reader.is_some_and(Reader::is_at_tip));
        match behind.next() {
            Some((id, reader)) => SourceEvent::Chunk(self.chunk(id, Vec::new(), reader.and_then(Reader::lag_ms))),
            None => SourceEvent::Idle,
        }
    }
}

#[async_trait]
impl Source for KinesisSource {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        let doing = format!("could not open the source {}", self.settings.name);
        let failed = |fault: Fault| fault.into_error().while_doing(&doing);
        let service = match &self.service {
            Some(service) => service.clone(),
            None => connect(&self.settings, self.config.clone()).await.map_err(failed)?,
        };
        let retention = service.retention().await.map_err(failed)?;
        self.reading = Arc::new(Reading { retention, ..self.reading.as_ref().clone() });
        self.shards = if committed.advanced.is_empty() {
            first_shards(service.as_ref(), &self.settings, retention, &self.clock).await.map_err(failed)?
        } else {
            Shards::resume(committed)
        };
        let listing = list_all(service.as_ref(), Filter::All).await.map_err(failed)?;
        self.resumed = committed.advanced.clone();
        self.readers.clear();
        self.check_times(self.now_ms())?;
        self.take_listing(listing)?;
        self.open_readers()?;
        self.discovery = Discovery::new(Instant::now());
        self.service = Some(service);
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        let Some(service) = self.service.clone() else {
            return Err(Error::internal("a kinesis source was read before it was opened"));
        };
        let now = Instant::now();
        // After a pause nothing is known before it has been asked again.
        self.silent_at.take_if(|at| now.duration_since(*at) > WAIT_MAX);
        let deadline = *self.silent_at.get_or_insert(now + WAIT_MAX);
        loop {
            while let Some(reply) = self.replies.pop_front() {
                if let Some(chunk) = self.take_reply(reply)? {
                    self.silent_at = None;
                    return Ok(SourceEvent::Chunk(chunk));
                }
            }
            if self.readers_due {
                self.open_readers()?;
            }
            self.start_requests(&service);
            let wake = self.next_due().map_or(deadline, |due| due.min(deadline));
            // Both are cancel-safe: a reply is in `in_flight` or in `replies`.
            tokio::select! {
                biased;
                Some(reply) = self.in_flight.next() => self.replies.push_back(reply),
                () = tokio::time::sleep_until(wake) => {}
            }
            if self.replies.is_empty() && Instant::now() >= deadline {
                self.silent_at = None;
                return Ok(self.nothing_read());
            }
        }
    }

    fn cut(&mut self) -> Cut {
        self.shards.cut()
    }

    /// Names all shards that are not read to their end, also children that wait for a commit:
    /// their records are still to come.
    fn reading(&self) -> Vec<Arc<str>> {
        self.shards.open().map(|(id, _)| id.clone()).collect()
    }

    async fn committed(&mut self, cut: &Cut) -> Result<()> {
        self.shards.committed(cut);
        self.readers_due = true;
        Ok(())
    }

    /// Takes answers off the network while backpressure keeps `next` from being called, so that they do not time
    /// out half read. Nothing else has a time limit: an iterator that grew too old is made anew by its reader.
    async fn maintain(&mut self) -> Result<()> {
        let until = Instant::now() + MAINTAIN_MAX;
        while let Ok(Some(reply)) = tokio::time::timeout_at(until, self.in_flight.next()).await {
            self.replies.push_back(reply);
        }
        Ok(())
    }

    fn bounded(&self) -> bool {
        false
    }
}

/// Connects to the stream that the settings name.
async fn connect(settings: &KinesisSettings, config: Option<SdkConfig>) -> Result<Arc<dyn Service>, Fault> {
    let config = match config {
        Some(config) => config,
        None => crate::aws::config(&settings.aws).await,
    };
    let stream = Arc::new(Kinesis::new(&config, &settings.stream));
    Ok(match &settings.mode {
        Mode::Poll => stream,
        Mode::FanOut { consumer } => {
            let consumer = Consumer::open(&config, &settings.stream, consumer).await?;
            Arc::new(FanOut::new(stream, Arc::new(consumer)))
        }
    })
}

impl fmt::Debug for KinesisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KinesisSource").field("settings", &self.settings).field("shards", &self.shards).finish()
    }
}
