//! Objects on Amazon S3 that an SQS queue announces.
//!
//! A message is held, and kept invisible to others, until all rows of all its
//! objects are committed, and only then deleted. An object is known by bucket,
//! key and version (or entity tag), and remembered for 14 days when it is done,
//! so a message that comes twice is read once. A message whose visibility could
//! not be kept comes back, and is recognised. Objects whose message was lost are
//! found by listing, where that is asked for.
//!
//! What cannot be read goes to the quarantine with the message that named it,
//! unless the [`PoisonPolicy`] has it otherwise; what is missing or denied is
//! tried a few times first, each time the queue sends it again. No object holds
//! up another.

pub(crate) mod envelope;
mod keys;
pub(crate) mod ledger;
mod object;
mod poison;
mod probe;
mod queue;
mod reconcile;
mod requests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::ObjectStore;
use tokio::time::Instant;

use self::envelope::Announced;
use self::ledger::Ledger;
use self::object::{Object, Read};
use self::poison::{Decision, Poison, Rejected};
pub use self::poison::{OnPoison, PoisonPolicy};
pub use self::probe::{probe_prefix, probe_queue};
use self::queue::{Outcome, Queue, Received};
use self::reconcile::{Answer, Found, Reconcile};
use super::framed::{FramedSettings, Step};
use super::{Source, SourceEvent};
use crate::aws::AwsSettings;
use crate::batch::{Chunk, Payload};
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::fail;
use crate::framing::Framing;
use crate::position::{Cut, Position};
use crate::store::patient::Patient;

/// How long `next` waits before it says that there is nothing, over all calls that were dropped meanwhile.
const WAIT: Duration = Duration::from_millis(900);

/// Messages held at once: far from the 120 000 that a queue allows in flight, and extended by 1000 calls.
const HELD_MAX: usize = 10_000;

/// Which objects an [`S3Source`] reads, and how.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The source's name.
    pub name: String,
    /// The queue's URL.
    pub queue: String,
    /// The prefixes that may be read, as `s3://bucket/prefix`.
    pub allow: Vec<String>,
    /// The account that must own the bucket.
    pub bucket_owner: Option<String>,
    /// Objects read at once.
    pub in_flight: usize,
    /// How records stand one behind the other.
    pub framing: Framing,
    /// The largest record.
    pub record_bytes_max: usize,
    /// The largest object, as it is stored; any if not given.
    pub object_bytes_max: Option<u64>,
    /// What becomes of what cannot be read.
    pub on_poison: PoisonPolicy,
    /// How long a message stays invisible without being extended.
    pub visibility: Duration,
    /// How often the prefixes are listed to find objects whose message was lost; never if not given.
    pub reconcile: Option<Duration>,
    /// How SQS and S3 are reached.
    pub aws: AwsSettings,
}

/// Reads the objects that a queue announces.
pub struct S3Source {
    settings: S3Settings,
    clock: SharedClock,
    config: Option<SdkConfig>,
    queue: Option<Queue>,
    buckets: HashMap<String, Arc<dyn ObjectStore>>,
    ledger: Ledger,
    reconcile: Option<Reconcile>,
    /// The call that waits for messages. It is polled by `next` and by `maintain`, never dropped half way.
    receiving: Option<BoxFuture<'static, Result<Vec<Received>>>>,
    /// Objects that are not begun.
    waiting: Vec<Object>,
    /// Objects that are being read. They go on only while `next` is polled; each holds one piece at most.
    running: FuturesUnordered<BoxFuture<'static, (Object, Read)>>,
    reading: Vec<Arc<str>>,
    rejects: VecDeque<Rejected>,
    /// Receipts of messages that are to come again, and how often they have come.
    released: Vec<(String, u32)>,
    moved: Cut,
    /// When to say that nothing has come. It is kept here, since `next` may be dropped more often than it may wait.
    silent_at: Option<Instant>,
}

impl S3Source {
    /// Makes a source of a queue. `config` stands in for what the settings say of AWS.
    pub fn new(settings: S3Settings, clock: SharedClock, config: Option<SdkConfig>) -> Result<Self> {
        if let Some(wrong) = settings.allow.iter().find(|prefix| !prefix.starts_with("s3://")) {
            let name = &settings.name;
            return Err(Error::config(format!("source {name}: `{wrong}` is no prefix; write s3://bucket/prefix")));
        }
        if settings.allow.is_empty() {
            let name = &settings.name;
            return Err(Error::config(format!(
                "source {name} may read nothing; give `allow` a prefix, s3://bucket/prefix"
            )));
        }
        let reconcile = settings.reconcile.map(|every| Reconcile::new(every, &settings.allow));
        Ok(Self {
            settings,
            reconcile,
            clock,
            config,
            queue: None,
            buckets: HashMap::new(),
            ledger: Ledger::default(),
            receiving: None,
            waiting: Vec::new(),
            running: FuturesUnordered::new(),
            reading: Vec::new(),
            rejects: VecDeque::new(),
            released: Vec::new(),
            moved: Cut::default(),
            silent_at: None,
        })
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_us().div_euclid(1000)
    }

    fn queue(&self) -> Result<&Queue> {
        self.queue.as_ref().ok_or_else(|| Error::internal("an S3 source was used before it was opened"))
    }

    /// Asks for messages, unless there is enough to do.
    fn receive_more(&mut self) -> Result<()> {
        let enough = self.waiting.len() >= self.settings.in_flight || self.ledger.held() >= HELD_MAX;
        if self.receiving.is_none() && !enough {
            self.receiving = Some(self.queue()?.clone().receive(true).boxed());
        }
        Ok(())
    }

    /// Takes a message in: its objects wait, and what is wrong with it is rejected.
    fn take(&mut self, message: &Received) {
        let notice = envelope::parse(&String::from_utf8_lossy(&message.body));
        let mut objects: HashMap<Arc<str>, Announced> = HashMap::new();
        let mut reasons: HashMap<Arc<str>, String> = HashMap::new();
        for (at, reason) in notice.faults.into_iter().enumerate() {
            reasons.insert(format!("sqs:{}#{at}", message.id).into(), reason);
        }
        for announced in notice.objects {
            let name: Arc<str> = announced.partition().into();
            if !self.allows(&announced) {
                let reason = format!("{name} is outside of the prefixes that `allow` names");
                reasons.insert(Arc::clone(&name), reason);
            }
            objects.insert(name, announced);
        }
        let names: Vec<_> =
            objects.keys().chain(reasons.keys().filter(|n| !objects.contains_key(*n))).cloned().collect();
        for name in self.ledger.hold(&message.id, &message.receipt, &names, self.clock.now_us()) {
            let (raw, receives) = (message.body.clone(), message.receives);
            if let Some(reason) = reasons.remove(&name) {
                let poison = Poison::Message;
                self.rejects.push_back(Rejected { partition: name, offset: 0, raw, reason, poison, receives });
            } else if let Some(announced) = objects.remove(&name) {
                let offset = self.ledger.begun_at(&name);
                self.waiting.push(Object { name, announced, body: raw, receives, offset, reader: None });
            }
        }
    }

    /// Looks for objects whose message was lost, unless there is enough to do.
    fn reconcile(&mut self) -> Result<()> {
        let Some(bucket) = self.reconcile.as_mut().filter(|_| self.waiting.is_empty()).and_then(Reconcile::due) else {
            return Ok(());
        };
        let (store, now_ms) = (self.bucket(&bucket)?, self.now_ms());
        let oldest_ms = self.ledger.remembers_since(now_ms);
        if let Some(reconcile) = &mut self.reconcile {
            reconcile.list(store, oldest_ms, now_ms);
        }
        Ok(())
    }

    /// Takes in what a pass has found and no message has announced.
    fn reconciled(&mut self, answer: Result<Answer>) -> Result<()> {
        match self.reconcile.as_mut().and_then(|reconcile| reconcile.took(answer)) {
            Some(Found::Listed(mut objects)) => {
                objects.retain(|object| !self.ledger.knows(&object.partition()));
                let Some(bucket) = objects.first().map(|object| object.bucket.clone()) else { return Ok(()) };
                let store = self.bucket(&bucket)?;
                if let Some(reconcile) = &mut self.reconcile {
                    reconcile.check(store, objects);
                }
            }
            Some(Found::Checked(objects)) => {
                for announced in objects {
                    let name: Arc<str> = announced.partition().into();
                    if !self.ledger.start(&name) {
                        continue;
                    }
                    tracing::info!(
                        source = self.settings.name,
                        object = &*name,
                        "found an object that no message names"
                    );
                    let (body, offset) = (Bytes::copy_from_slice(name.as_bytes()), self.ledger.begun_at(&name));
                    self.waiting.push(Object { name, announced, body, receives: 1, offset, reader: None });
                }
            }
            None => {}
        }
        Ok(())
    }

    fn allows(&self, object: &Announced) -> bool {
        self.settings.allow.iter().filter_map(|prefix| prefix.strip_prefix("s3://")).any(|prefix| {
            let (bucket, key) = prefix.split_once('/').unwrap_or((prefix, ""));
            object.bucket == bucket && object.key.starts_with(key)
        })
    }

    /// Begins with as many waiting objects as may be read at once.
    fn start(&mut self) -> Result<()> {
        while self.running.len() < self.settings.in_flight.max(1) && !self.waiting.is_empty() {
            let object = self.waiting.swap_remove(object::first_of(&self.waiting));
            self.reading.push(Arc::clone(&object.name));
            self.read_on(object)?;
        }
        Ok(())
    }

    fn read_on(&mut self, object: Object) -> Result<()> {
        let store = self.bucket(&object.announced.bucket)?;
        let S3Settings { framing, record_bytes_max, object_bytes_max, .. } = self.settings;
        let settings = FramedSettings { framing, record_bytes_max, waits: false };
        self.running.push(object.read(store, settings, object_bytes_max).boxed());
        Ok(())
    }

    fn bucket(&mut self, name: &str) -> Result<Arc<dyn ObjectStore>> {
        if let Some(store) = self.buckets.get(name) {
            return Ok(Arc::clone(store));
        }
        let config =
            self.config.as_ref().ok_or_else(|| Error::internal("an S3 source was used before it was opened"))?;
        let builder = requests::bucket(config, name, self.settings.bucket_owner.as_deref())?;
        let built =
            builder.build().map_err(|e| Error::config(format!("could not open the bucket {name}")).because(e))?;
        let store: Arc<dyn ObjectStore> = Arc::new(Patient::new(built));
        self.buckets.insert(name.to_owned(), Arc::clone(&store));
        Ok(store)
    }

    /// Turns what was read into an event; nothing if the object gave none.
    fn took(&mut self, object: Object, read: Read) -> Result<Option<SourceEvent>> {
        match read {
            Read::Step(Step::Piece { payload, next }) => {
                let partition = Arc::clone(&object.name);
                let position = Position::Offset { offset: next, identity: None };
                self.moved.advanced.insert(partition.to_string(), position);
                self.read_on(object)?;
                let read_at_us = self.clock.now_us();
                Ok(Some(SourceEvent::Chunk(Chunk { partition, payload, read_at_us, lag_ms: None })))
            }
            Read::Step(Step::End | Step::Incomplete) => {
                let offset = object.reader.as_ref().map_or(object.offset, |reader| reader.offset());
                self.done(&object.name, offset);
                Ok(None)
            }
            Read::Poison(poison, reason) => {
                let receives = object.receives;
                let unread = (object.offset, Bytes::new());
                let (offset, rest) = object.reader.as_ref().map_or(unread, |r| (r.offset(), r.rest()));
                let raw = if rest.is_empty() { object.body } else { rest };
                self.reject(Rejected { partition: object.name, offset, raw, reason, poison, receives })
            }
            Read::Failed(error) => {
                self.read_on(object)?;
                Err(error)
            }
        }
    }

    /// Answers when nothing came in time: `Idle`, or no records of an object that is still being read.
    fn nothing_read(&self) -> SourceEvent {
        let listing = self.reconcile.as_ref().filter(|reconcile| reconcile.is_under_way());
        let listing = listing.map(|_| Arc::from(self.settings.name.as_str()));
        let Some(partition) = self.reading.first().cloned().or(listing) else { return SourceEvent::Idle };
        let read_at_us = self.clock.now_us();
        SourceEvent::Chunk(Chunk { partition, payload: Payload::Records(Vec::new()), read_at_us, lag_ms: None })
    }

    /// Deals with what cannot be read; gives an event if it goes to the quarantine.
    fn reject(&mut self, rejected: Rejected) -> Result<Option<SourceEvent>> {
        let Rejected { partition, offset, raw, reason, poison, receives } = rejected;
        match self.settings.on_poison.decide(poison, receives, &reason)? {
            Decision::Quarantine => {
                self.done(&partition, offset);
                Ok(Some(SourceEvent::Reject { partition, offset: offset.to_string(), raw, reason }))
            }
            Decision::Leave => {
                let source = &self.settings.name;
                tracing::warn!(source, reason, "what cannot be read is left until its message comes again");
                self.reading.retain(|name| *name != partition);
                let released = self.ledger.release(&partition, offset, self.now_ms());
                self.released.extend(released.into_iter().map(|receipt| (receipt, receives)));
                Ok(None)
            }
        }
    }

    fn done(&mut self, name: &Arc<str>, offset: u64) {
        let ms = self.now_ms();
        self.reading.retain(|reading| reading != name);
        self.ledger.done(name, ms);
        self.moved.advanced.insert(name.to_string(), Position::Done { offset, identity: None, ms });
    }

    /// Deletes the messages of which everything is committed.
    async fn delete_finished(&mut self) -> Result<()> {
        let finished = self.ledger.finished();
        if finished.is_empty() {
            return Ok(());
        }
        let receipts: Vec<&str> = finished.iter().map(|(_, receipt)| receipt.as_str()).collect();
        fail::point("before_message_removal")?;
        let Outcome { done, refused, failure } = self.queue()?.delete(&receipts).await;
        fail::point("after_message_removal")?;
        // A refused receipt is too old: the message comes back, is recognised, and deleted by its new one.
        for (id, receipt) in done.iter().chain(&refused).filter_map(|at| finished.get(*at)) {
            self.ledger.deleted(id, receipt);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Has messages that are left for now come again the later, the more often they have come.
    async fn postpone_released(&mut self) -> Result<()> {
        for (receipt, receives) in std::mem::take(&mut self.released) {
            // One that cannot be postponed comes again when its visibility ends.
            if let Some(error) = self.queue()?.postpone(&[&receipt], receives).await.failure {
                tracing::warn!(source = self.settings.name, %error, "could not postpone a message");
            }
        }
        Ok(())
    }

    /// Keeps the messages that are held from being sent again.
    async fn extend_due(&mut self) -> Result<()> {
        let now_us = self.clock.now_us();
        let half_us = i64::try_from(self.settings.visibility.as_micros() / 2).unwrap_or(i64::MAX);
        let due = self.ledger.visible_before(now_us.saturating_sub(half_us));
        if due.is_empty() {
            return Ok(());
        }
        let receipts: Vec<&str> = due.iter().map(|(_, receipt)| receipt.as_str()).collect();
        let Outcome { done, refused, failure } = self.queue()?.extend(&receipts).await;
        // What is refused (12 hours have passed) is not asked again before it is due again: the message comes
        // back meanwhile, and its new receipt takes the place of this one.
        for (id, _) in done.iter().chain(&refused).filter_map(|at| due.get(*at)) {
            self.ledger.extended(id, now_us);
        }
        failure.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Source for S3Source {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        if self.config.is_none() {
            self.config = Some(crate::aws::config(&self.settings.aws).await);
        }
        let queue = self.config.as_ref().map(|c| Queue::new(c, &self.settings.queue, self.settings.visibility));
        self.queue = queue;
        self.ledger = Ledger::open(committed, self.now_ms());
        let first = self.queue()?.clone().receive(false).await?;
        for message in &first {
            self.take(message);
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        let now = Instant::now();
        // After a pause nothing is known before it has been asked again.
        self.silent_at.take_if(|at| now.duration_since(*at) > WAIT);
        let deadline = *self.silent_at.get_or_insert(now + WAIT);
        loop {
            while let Some(rejected) = self.rejects.pop_front() {
                if let Some(event) = self.reject(rejected)? {
                    self.silent_at = None;
                    return Ok(event);
                }
            }
            self.start()?;
            self.receive_more()?;
            self.reconcile()?;
            // Each branch is cancel-safe: the futures stay in `self`.
            tokio::select! {
                Some((object, read)) = self.running.next(), if !self.running.is_empty() => {
                    if let Some(event) = self.took(object, read)? {
                        self.silent_at = None;
                        return Ok(event);
                    }
                }
                answer = poll_kept(&mut self.receiving) => {
                    for message in &answer? {
                        self.take(message);
                    }
                }
                answer = poll_listing(&mut self.reconcile) => self.reconciled(answer)?,
                () = tokio::time::sleep_until(deadline) => {
                    self.silent_at = None;
                    return Ok(self.nothing_read());
                }
            }
        }
    }

    fn cut(&mut self) -> Cut {
        let mut cut = std::mem::take(&mut self.moved);
        cut.forgotten = self.ledger.forget(self.now_ms());
        cut
    }

    fn reading(&self) -> Vec<Arc<str>> {
        self.reading.clone()
    }

    async fn committed(&mut self, cut: &Cut) -> Result<()> {
        self.ledger.committed(cut);
        self.delete_finished().await
    }

    async fn maintain(&mut self) -> Result<()> {
        if let Some(answer) = poll_kept(&mut self.receiving).now_or_never() {
            for message in &answer? {
                self.take(message);
            }
        }
        self.postpone_released().await?;
        self.extend_due().await?;
        self.delete_finished().await
    }

    fn bounded(&self) -> bool {
        false
    }
}

/// Waits for a call that is kept between two polls, and takes it away when it has answered.
async fn poll_kept<T>(kept: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(call) = kept else { return std::future::pending().await };
    let answer = call.await;
    *kept = None;
    answer
}

/// Waits for the call of a pass.
async fn poll_listing(reconcile: &mut Option<Reconcile>) -> Result<Answer> {
    match reconcile {
        Some(reconcile) => poll_kept(&mut reconcile.calling).await,
        None => std::future::pending().await,
    }
}
