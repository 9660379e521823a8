//! Channels between stages, bounded in bytes as well as in items.
//!
//! A full channel stops the stage before it, and so on back to the source,
//! which stops polling: that is all there is to backpressure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use nexus_operators::{Error, Result};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

/// Items that a channel holds whatever their size: enough to keep both sides busy.
const ITEMS_MAX: usize = 64;

/// Bytes that one permit of the channel's semaphore stands for.
const PERMIT_BYTES: usize = 1024;

/// What has a size that backpressure counts.
pub trait Weigh {
    /// Gives the size in bytes.
    fn weight_bytes(&self) -> usize;
}

/// What a stage sends to the next.
#[derive(Debug, Clone)]
pub enum Item {
    /// Rows of the open epoch.
    Batch(RecordBatch),
    /// The end of the epoch.
    Barrier(Barrier),
    /// Rows on their way to the quarantine that a sink's service has refused.
    Refused(Refused),
}

/// Rows that a sink's service has refused in the commit of an earlier epoch.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The sink.
    pub sink: Arc<str>,
    /// That epoch.
    pub epoch: u64,
    /// The rows, with the columns of the quarantine.
    pub rows: RecordBatch,
}

/// Closes an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barrier {
    /// The epoch that ends here.
    pub epoch: u64,
    /// The event time up to which rows have come; nothing if the stream is idle and holds nobody back.
    pub watermark_us: Option<i64>,
    /// Whether no epoch follows in this run.
    pub last: bool,
}

impl Weigh for Item {
    fn weight_bytes(&self) -> usize {
        match self {
            Item::Batch(batch) | Item::Refused(Refused { rows: batch, .. }) => batch.get_array_memory_size(),
            Item::Barrier(_) => 0,
        }
    }
}

/// The sending half. When all are dropped, the receiver gets what is left, and then nothing.
#[derive(Debug)]
pub struct Sender<T> {
    items: mpsc::Sender<(T, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    permits_max: usize,
    waits: Waits,
}

/// The receiving half. When it is dropped, sending fails.
#[derive(Debug)]
pub struct Receiver<T> {
    items: mpsc::Receiver<(T, OwnedSemaphorePermit)>,
}

/// Tells how full a channel is.
#[derive(Debug, Clone)]
pub struct Gauge {
    room: Arc<Semaphore>,
    permits_max: usize,
    waits: Waits,
}

/// How full a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Bytes that wait.
    pub bytes: usize,
    /// Bytes that it may hold.
    pub bytes_max: usize,
    /// For how long senders have waited for room, up to now.
    pub blocked: Duration,
    /// Whether one waits now.
    pub is_blocked: bool,
}

/// For how long the senders of a channel have waited; shared by them and by who looks. The lock is held to add a number,
/// and only by those who wait, so it need not be async.
#[derive(Debug, Clone, Default)]
struct Waits(Arc<Mutex<Waited>>);

#[derive(Debug, Default)]
struct Waited {
    /// Senders that wait now.
    waiting: usize,
    /// Since when at least one does.
    since: Option<Instant>,
    /// How long at least one did, before.
    total: Duration,
}

/// A sender that waits, until this is dropped.
struct Wait<'a>(&'a Waits);

impl Waits {
    fn begin(&self) -> Wait<'_> {
        let mut waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waited.waiting += 1;
        waited.since.get_or_insert_with(Instant::now);
        Wait(self)
    }

    fn so_far(&self) -> (Duration, bool) {
        let waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (waited.total + waited.since.map(|since| since.elapsed()).unwrap_or_default(), waited.since.is_some())
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waited = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        waited.waiting = waited.waiting.saturating_sub(1);
        if waited.waiting == 0 {
            let since = waited.since.take();
            waited.total += since.map(|since| since.elapsed()).unwrap_or_default();
        }
    }
}

/// Makes a channel that holds at most `bytes_max` bytes, or one item if that is larger.
pub fn channel<T: Weigh>(bytes_max: usize) -> (Sender<T>, Receiver<T>) {
    let permits_max = (bytes_max / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let (sender, receiver) = mpsc::channel(ITEMS_MAX);
    let room = Arc::new(Semaphore::new(permits_max));
    (Sender { items: sender, room, permits_max, waits: Waits::default() }, Receiver { items: receiver })
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        let Self { items, room, permits_max, waits } = self;
        Self { items: items.clone(), room: room.clone(), permits_max: *permits_max, waits: waits.clone() }
    }
}

impl<T> Sender<T> {
    /// Gives what tells how full the channel is.
    pub fn gauge(&self) -> Gauge {
        Gauge { room: self.room.clone(), permits_max: self.permits_max, waits: self.waits.clone() }
    }
}

impl Gauge {
    /// Tells how full the channel is now.
    pub fn fill(&self) -> Fill {
        let taken = self.permits_max.saturating_sub(self.room.available_permits());
        let (blocked, is_blocked) = self.waits.so_far();
        Fill { bytes: taken * PERMIT_BYTES, bytes_max: self.permits_max * PERMIT_BYTES, blocked, is_blocked }
    }
}

impl<T: Weigh> Sender<T> {
    /// Sends an item; waits for room. It is cancel-safe in that an item that was not sent is dropped whole.
    pub async fn send(&self, item: T) -> Result<()> {
        let bytes = item.weight_bytes();
        let permits = bytes.div_ceil(PERMIT_BYTES).min(self.permits_max);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let permit = match self.room.clone().try_acquire_many_owned(permits) {
            Ok(permit) => permit,
            Err(_) => {
                let _wait = self.waits.begin();
                self.room.clone().acquire_many_owned(permits).await.map_err(|_| closed())?
            }
        };
        match self.items.try_send((item, permit)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(closed()),
            Err(TrySendError::Full(item)) => {
                let _wait = self.waits.begin();
                self.items.send(item).await.map_err(|_| closed())
            }
        }
    }
}

impl<T> Receiver<T> {
    /// Receives the next item; nothing when all senders are gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        let (item, permit) = self.items.recv().await?;
        drop(permit);
        Some(item)
    }
}

/// Sends an item to all of several channels.
pub async fn fan_out(to: &[Sender<Item>], item: &Item) -> Result<()> {
    for sender in to {
        sender.send(item.clone()).await?;
    }
    Ok(())
}

/// The error of a stage whose neighbour has ended; the neighbour's own error is the one that people see.
pub fn closed() -> Error {
    Error::unavailable("a neighbouring stage has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Load(usize);

    impl Weigh for Load {
        fn weight_bytes(&self) -> usize {
            self.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_channel_stops_its_sender_until_there_is_room() {
        let (sender, mut receiver) = channel::<Load>(10 * PERMIT_BYTES);
        sender.send(Load(6 * PERMIT_BYTES)).await.unwrap();
        let (blocked, is_blocked) = (Duration::ZERO, false);
        let filled = Fill { bytes: 6 * PERMIT_BYTES, bytes_max: 10 * PERMIT_BYTES, blocked, is_blocked };
        assert_eq!(sender.gauge().fill(), filled);
        let blocked = tokio::time::timeout(Duration::from_secs(1), sender.send(Load(6 * PERMIT_BYTES))).await;
        assert!(blocked.is_err());
        let waited = sender.gauge().fill();
        assert_eq!((waited.blocked.as_secs(), waited.is_blocked), (1, false), "the sender has given up");
        receiver.recv().await.unwrap();
        sender.send(Load(6 * PERMIT_BYTES)).await.unwrap();
        assert_eq!(sender.gauge().fill().blocked.as_secs(), 1, "there was room at once");
    }

    #[tokio::test]
    async fn an_item_larger_than_the_channel_passes_alone() {
        let (sender, mut receiver) = channel::<Load>(PERMIT_BYTES);
        sender.send(Load(100 * PERMIT_BYTES)).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().0, 100 * PERMIT_BYTES);
    }
}
