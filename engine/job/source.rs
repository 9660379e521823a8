//! The stage that drives a source: it polls, sends on, and cuts at barriers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nexus_operators::batch::Chunk;
use nexus_operators::decode::Reject;
use nexus_operators::position::Cut;
use nexus_operators::source::{Source, SourceEvent};
use nexus_operators::{ErrorKind, Result};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::channel::{Sender, Weigh, closed};
use super::coordinator::Report;
use super::progress::Progress;

/// How often a source keeps alive what has a time limit.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);

/// The first pause after a source could not be read; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two tries to read a source.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long a source may fail without a break before the run stops: longer than a failover of a service.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(15 * 60);

/// Pause of a source that answers at once that it is idle, so that it does not spin.
const IDLE_PAUSE: Duration = Duration::from_millis(20);

/// What the coordinator asks of a source's stage.
#[derive(Debug)]
pub enum Command {
    /// Close the epoch.
    Barrier(Closing),
    /// Every sink has committed up to this cut.
    Committed(Cut),
}

/// How an epoch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// The epoch.
    pub epoch: u64,
    /// Whether no epoch follows in this run.
    pub last: bool,
    /// Whether there will never be more input, so that open windows close.
    pub end_of_input: bool,
}

/// What a source's stage sends to its decoder.
#[derive(Debug)]
pub enum Read {
    /// Records.
    Chunk(Chunk),
    /// A record that the source itself could not read.
    Reject {
        /// The partition it came from.
        partition: Arc<str>,
        /// The reject.
        reject: Reject,
    },
    /// The end of the epoch.
    Barrier {
        /// How it is closed.
        closing: Closing,
        /// The partitions that hold the watermark back.
        reading: Vec<Arc<str>>,
        /// Whether the source has ended.
        ended: bool,
        /// Whether the source has been idle for so long that it holds nobody back.
        idle: bool,
    },
    /// The source is not read for now, or it is again: nobody's silence means anything meanwhile.
    Paused(bool),
}

impl Weigh for Read {
    fn weight_bytes(&self) -> usize {
        match self {
            Read::Chunk(chunk) => chunk.size_bytes(),
            Read::Reject { reject, .. } => reject.raw.len() + reject.reason.len(),
            Read::Barrier { .. } | Read::Paused(_) => 0,
        }
    }
}

/// How much all sources together have read in the open epoch.
#[derive(Debug)]
pub struct EpochLoad {
    /// Bytes read since the last barrier.
    pub bytes: AtomicU64,
    /// At this many bytes the epoch is full: sources stop until the next barrier.
    pub bytes_max: u64,
    /// Tells the coordinator that the epoch is full, or that there is something to commit.
    pub wake: Notify,
}

impl EpochLoad {
    /// Has the epoch closed as if it were full: a stage holds what only a barrier can free.
    pub fn fill(&self) {
        self.bytes.fetch_max(self.bytes_max, Ordering::AcqRel);
        self.wake.notify_one();
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= self.bytes_max
    }
}

/// Drives one source.
pub struct SourceStage {
    /// The source's name.
    pub name: String,
    /// The source, opened.
    pub source: Box<dyn Source>,
    /// The decoder's channel.
    pub to: Sender<Read>,
    /// The coordinator's orders. When the coordinator is gone, the stage ends.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
    /// What all sources share.
    pub load: Arc<EpochLoad>,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// How long without records until the source holds no watermark back.
    pub idle_after: Duration,
}

/// What changes while a source's stage runs.
struct Standing {
    ended: bool,
    stopped: bool,
    paused: bool,
    last_rows: Instant,
    /// What has moved since the last barrier, as far as it has been asked for.
    moved: Cut,
    failing_since: Option<Instant>,
    pause: Duration,
    retry_at: Instant,
}

impl SourceStage {
    /// Runs until the last barrier has been sent and acknowledged, or the coordinator is gone.
    pub async fn run(mut self) -> Result<()> {
        let now = Instant::now();
        let mut standing = Standing {
            ended: false,
            stopped: false,
            paused: false,
            last_rows: now,
            moved: Cut::default(),
            failing_since: None,
            pause: PAUSE_MIN,
            retry_at: now,
        };
        let mut maintain = interval(MAINTAIN_EVERY);
        maintain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pausing = self.progress.pausing();
        if *pausing.borrow() {
            pausing.mark_changed();
        }
        loop {
            let may_read = !standing.ended && !standing.stopped && !standing.paused && !self.load.is_full();
            // Cancel-safe: `recv`, `changed`, `tick` and `sleep_until` are, and `Source::next` is by its contract.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command, &mut standing, &mut maintain).await?,
                    None => return Ok(()),
                },
                Ok(()) = pausing.changed(), if !standing.stopped => {
                    standing.paused = *pausing.borrow_and_update();
                    standing.last_rows = Instant::now();
                    self.deliver(Read::Paused(standing.paused), &mut maintain).await?;
                }
                _ = maintain.tick() => tolerate(&self.name, "keep alive", self.source.maintain().await)?,
                event = next(&mut self.source, standing.retry_at), if may_read => {
                    self.take(event, &mut standing, &mut maintain).await?;
                }
            }
        }
    }

    async fn obey(
        &mut self,
        command: Command,
        standing: &mut Standing,
        maintain: &mut tokio::time::Interval,
    ) -> Result<()> {
        match command {
            Command::Committed(cut) => {
                tolerate(&self.name, "acknowledge", self.source.committed(&cut).await)?;
                let told = Report::Acknowledged { source: self.name.clone() };
                self.reports.send(told).map_err(|_| closed())?;
            }
            Command::Barrier(closing) => {
                let mut cut = std::mem::take(&mut standing.moved);
                cut.join(self.source.cut());
                let idle = !standing.paused && standing.last_rows.elapsed() >= self.idle_after;
                let told = Report::Cut { source: self.name.clone(), epoch: closing.epoch, cut };
                self.reports.send(told).map_err(|_| closed())?;
                let reading = self.source.reading();
                if let Some(progress) = self.progress.sources.get(&self.name) {
                    progress.keep_lags_of(&reading);
                }
                let barrier = Read::Barrier { closing, reading, ended: standing.ended, idle };
                self.deliver(barrier, maintain).await?;
                standing.stopped |= closing.last;
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        event: Result<SourceEvent>,
        standing: &mut Standing,
        maintain: &mut tokio::time::Interval,
    ) -> Result<()> {
        let progress = self.progress.sources.get(&self.name);
        let caught_up = !matches!(event, Ok(SourceEvent::Chunk(_) | SourceEvent::Reject { .. }) | Err(_));
        if let Some(progress) = progress {
            progress.caught_up.store(caught_up, Ordering::Release);
        }
        match event {
            Err(error) => return wait_or_fail(&self.name, error, standing),
            Ok(SourceEvent::Chunk(chunk)) => {
                if let (Some(progress), Some(lag_ms)) = (progress, chunk.lag_ms) {
                    progress.set_lag_ms(&chunk.partition, lag_ms);
                }
                standing.last_rows = Instant::now();
                self.send(Read::Chunk(chunk), maintain).await?;
            }
            Ok(SourceEvent::Reject { partition, offset, raw, reason }) => {
                let reject = Reject::in_part(offset, raw, reason);
                standing.last_rows = Instant::now();
                self.send(Read::Reject { partition, reject }, maintain).await?;
            }
            Ok(SourceEvent::Idle) => {
                if let Some(progress) = progress {
                    progress.set_no_lag();
                }
                standing.retry_at = Instant::now() + IDLE_PAUSE;
                standing.moved.join(self.source.cut());
                if !standing.moved.is_empty() {
                    self.count(0);
                }
            }
            Ok(SourceEvent::End) => {
                standing.ended = true;
                self.reports.send(Report::Ended { source: self.name.clone() }).map_err(|_| closed())?;
            }
        }
        standing.failing_since = None;
        standing.pause = PAUSE_MIN;
        Ok(())
    }

    /// Counts what is to be committed. A position that moved without records is worth a commit too: without one, the
    /// messages of an object whose end was all that was left to read would never be deleted.
    fn count(&self, bytes: u64) {
        let before = self.load.bytes.fetch_add(bytes.max(1), Ordering::AcqRel);
        if before == 0 || before + bytes >= self.load.bytes_max {
            self.load.wake.notify_one();
        }
    }

    async fn send(&mut self, read: Read, maintain: &mut tokio::time::Interval) -> Result<()> {
        let bytes = read.weight_bytes() as u64;
        if let Some(progress) = self.progress.sources.get(&self.name) {
            progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.count(bytes);
        self.deliver(read, maintain).await
    }

    /// Sends on, and keeps the source alive while backpressure lasts.
    async fn deliver(&mut self, read: Read, maintain: &mut tokio::time::Interval) -> Result<()> {
        let mut sending = std::pin::pin!(self.to.send(read));
        loop {
            // Cancel-safe: `sending` is polled by reference and finished before the loop ends.
            tokio::select! {
                sent = &mut sending => return sent,
                _ = maintain.tick() => tolerate(&self.name, "keep alive", self.source.maintain().await)?,
            }
        }
    }
}

async fn next(source: &mut Box<dyn Source>, not_before: Instant) -> Result<SourceEvent> {
    if not_before > Instant::now() {
        tokio::time::sleep_until(not_before).await;
    }
    source.next().await
}

/// A service that is away for a moment is no reason to stop; what was not done is done later.
fn tolerate(name: &str, what: &str, done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            tracing::warn!(source = name, %error, "could not {what}; trying again");
            Ok(())
        }
        done => done,
    }
}

fn wait_or_fail(name: &str, error: nexus_operators::Error, standing: &mut Standing) -> Result<()> {
    let since = *standing.failing_since.get_or_insert_with(Instant::now);
    if error.kind() != ErrorKind::Unavailable || since.elapsed() > UNAVAILABLE_MAX {
        return Err(error.while_doing(format!("source {name}")));
    }
    tracing::warn!(source = name, %error, "could not read; trying again");
    standing.retry_at = Instant::now() + standing.pause;
    standing.pause = (standing.pause * 2).min(PAUSE_MAX);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use nexus_operators::position::Position;

    use super::*;
    use crate::job::channel::channel;

    /// A source that has read an object to its end, and found no record there.
    struct AtEnd(Cut);

    #[async_trait]
    impl Source for AtEnd {
        async fn open(&mut self, _: &Cut) -> Result<()> {
            Ok(())
        }

        async fn next(&mut self) -> Result<SourceEvent> {
            Ok(SourceEvent::Idle)
        }

        fn cut(&mut self) -> Cut {
            std::mem::take(&mut self.0)
        }

        fn reading(&self) -> Vec<Arc<str>> {
            Vec::new()
        }

        async fn committed(&mut self, _: &Cut) -> Result<()> {
            Ok(())
        }

        async fn maintain(&mut self) -> Result<()> {
            Ok(())
        }

        fn bounded(&self) -> bool {
            false
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_that_moves_without_records_is_worth_a_commit() {
        let moved = BTreeMap::from([("object".to_owned(), Position::Start)]);
        let load = Arc::new(EpochLoad { bytes: AtomicU64::new(0), bytes_max: 1000, wake: Notify::new() });
        let (to, _decoder) = channel(1000);
        let (order, commands) = mpsc::unbounded_channel();
        let (reports, mut heard) = mpsc::unbounded_channel();
        let stage = SourceStage {
            name: "uploads".into(),
            source: Box::new(AtEnd(Cut { advanced: moved.clone(), forgotten: vec!["older".into()] })),
            to,
            commands,
            reports,
            load: load.clone(),
            progress: Arc::new(Progress::new("test", ["uploads"].into_iter(), [].into_iter())),
            idle_after: Duration::from_secs(1),
        };
        let running = tokio::spawn(stage.run());
        load.wake.notified().await;
        assert!(load.bytes.load(Ordering::Acquire) > 0, "the coordinator closes no epoch without a load");
        order.send(Command::Barrier(Closing { epoch: 1, last: true, end_of_input: false })).unwrap();
        let Some(Report::Cut { cut, .. }) = heard.recv().await else { panic!("the stage reports no cut") };
        assert_eq!((cut.advanced, cut.forgotten), (moved, vec!["older".to_owned()]));
        drop(order);
        running.await.unwrap().unwrap();
    }
}
