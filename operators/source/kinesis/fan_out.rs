//! Enhanced fan-out: the service pushes the records of a shard to a consumer, which has 2 MB/s of its own.
//!
//! To a reader a subscription is an iterator: what the service has pushed next is what reading from it gives. A
//! subscription ends every five minutes, and is taken out again behind the number up to which it came; so is one that
//! falls silent, for events come also where there are no records. Positions are those of polling, so that a pipeline can
//! change its mode. What nobody waits for is not taken off the connection, which holds the service back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::service::{Answer, Fault, IteratorFrom, ListPage, Service, ShardPage};
use crate::error::Error;

/// How long a subscription may be silent: the service sends an event every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What takes out subscriptions, or a stand-in for it.
#[async_trait]
pub(super) trait Subscriber: Send + Sync {
    /// Subscribes to a shard.
    async fn subscribe(&self, shard: &str, from: &IteratorFrom) -> Result<Box<dyn Events>, Fault>;
}

/// What comes of a subscription.
#[async_trait]
pub(super) trait Events: Send {
    /// Waits for the next event; gives nothing when the subscription has ended.
    async fn next(&mut self) -> Result<Option<Event>, Fault>;
}

/// What the service has pushed.
pub(super) struct Event {
    /// Records, lag and, at the end of the shard, children.
    pub answer: Answer,
    /// Behind which number to subscribe next, also where there were no records.
    pub continuation: Option<String>,
}

/// A stream whose shards are subscribed to.
pub(super) struct FanOut {
    stream: Arc<dyn Service>,
    subscriber: Arc<dyn Subscriber>,
    /// By shard, without those that are waited for. Held for moments.
    subscriptions: Mutex<HashMap<String, Subscription>>,
}

/// A subscription to a shard.
struct Subscription {
    /// Where the next one begins.
    from: IteratorFrom,
    /// Nothing if it has ended.
    events: Option<Box<dyn Events>>,
}

impl FanOut {
    pub fn new(stream: Arc<dyn Service>, subscriber: Arc<dyn Subscriber>) -> Self {
        Self { stream, subscriber, subscriptions: Mutex::default() }
    }

    fn keep(&self, shard: &str, subscription: Subscription) {
        let mut all = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(shard.to_owned(), subscription);
    }

    /// Waits for the next event, over the end of a subscription.
    async fn event(&self, shard: &str, subscription: &mut Subscription) -> Result<Answer, Fault> {
        let quiet = |why: &str| Fault::Busy(Error::unavailable(format!("a subscription to shard {shard} {why}")));
        let mut is_new = false;
        loop {
            let mut events = match subscription.events.take() {
                Some(events) => events,
                None if is_new => return Err(quiet("ended before any event")),
                None => {
                    is_new = true;
                    self.subscriber.subscribe(shard, &subscription.from).await?
                }
            };
            let next = tokio::time::timeout(SILENCE_MAX, events.next()).await;
            let Some(event) = next.map_err(|_| quiet("fell silent"))?? else { continue };
            if let Some(continuation) = event.continuation {
                subscription.from = IteratorFrom::After(continuation);
            }
            subscription.events = Some(events);
            let next = event.answer.children.is_empty().then(|| shard.to_owned());
            return Ok(Answer { next, ..event.answer });
        }
    }
}

#[async_trait]
impl Service for FanOut {
    async fn retention(&self) -> Result<Duration, Fault> {
        self.stream.retention().await
    }

    async fn list_shards(&self, page: ListPage<'_>) -> Result<ShardPage, Fault> {
        self.stream.list_shards(page).await
    }

    async fn iterator(&self, shard: &str, from: &IteratorFrom) -> Result<String, Fault> {
        let events = Some(self.subscriber.subscribe(shard, from).await?);
        self.keep(shard, Subscription { from: from.clone(), events });
        Ok(shard.to_owned())
    }

    async fn records(&self, shard: &str, _: u32) -> Result<Answer, Fault> {
        let kept = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).remove(shard);
        let missing = || Fault::Expired(Error::unavailable(format!("there is no subscription to shard {shard}")));
        let mut subscription = kept.ok_or_else(missing)?;
        let answer = self.event(shard, &mut subscription).await;
        self.keep(shard, subscription);
        answer
    }
}
