//! What a step of a trial runs on: a clock that stands, sources that tell when all is read, and sinks at whose commit a
//! process dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use nexus_operators::clock::Clock;
use nexus_operators::position::Cut;
use nexus_operators::sink::memory::MemorySink;
use nexus_operators::sink::{Committer, EpochId, Handle, Prepared, Sink};
use nexus_operators::source::memory::MemorySource;
use nexus_operators::source::{Source, SourceEvent};
use nexus_operators::{Error, Result};
use tokio::sync::{Notify, watch};

use crate::spec::model::{CrashAt, GivenRecord};

/// How long a source that has given everything waits before it says again that there is nothing.
const IDLE_WAIT: Duration = Duration::from_millis(500);

/// Gives the line that a record in place is read from.
pub fn line(record: &GivenRecord) -> Result<String> {
    match record {
        GivenRecord::Raw(text) => Ok(text.clone()),
        GivenRecord::Row(row) => {
            serde_json::to_string(row).map_err(|e| Error::internal("could not write a row as json").because(e))
        }
    }
}

/// Stands still until a step moves it.
#[derive(Debug)]
pub struct StandingClock(AtomicI64);

impl StandingClock {
    pub fn at(now_us: i64) -> Self {
        Self(AtomicI64::new(now_us))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

impl Clock for StandingClock {
    fn now_us(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the sources and sinks of a run tell the trial.
#[derive(Debug, Default)]
pub struct Feeds {
    /// Sources that are open and have more to give.
    reading: watch::Sender<usize>,
    /// Told when the process is to die.
    pub died: Notify,
}

impl Feeds {
    /// Waits until all sources have given everything.
    pub async fn all_read(&self) {
        // The sender is held here, so that the wait can only end well.
        drop(self.reading.subscribe().wait_for(|reading| *reading == 0).await);
    }

    /// Dies: tells the trial, which drops the job, and does nothing more.
    async fn die(&self) -> ! {
        self.died.notify_one();
        std::future::pending::<()>().await;
        unreachable!("what is pending never ends")
    }
}

/// Gives the records of one step.
pub struct Feed {
    source: MemorySource,
    /// Whether the input ends behind this step.
    is_last: bool,
    crash: Option<CrashAt>,
    feeds: Arc<Feeds>,
    is_read: bool,
}

impl Feed {
    pub fn new(source: MemorySource, is_last: bool, crash: Option<CrashAt>, feeds: Arc<Feeds>) -> Self {
        Self { source, is_last, crash, feeds, is_read: false }
    }
}

#[async_trait]
impl Source for Feed {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        self.feeds.reading.send_modify(|reading| *reading += 1);
        self.source.open(committed).await
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if self.is_read {
            tokio::time::sleep(IDLE_WAIT).await;
            return Ok(SourceEvent::Idle);
        }
        let event = self.source.next().await?;
        if matches!(event, SourceEvent::End) && !self.is_last {
            self.is_read = true;
            self.feeds.reading.send_modify(|reading| *reading -= 1);
            return Ok(SourceEvent::Idle);
        }
        Ok(event)
    }

    fn cut(&mut self) -> Cut {
        self.source.cut()
    }

    fn reading(&self) -> Vec<Arc<str>> {
        self.source.reading()
    }

    async fn committed(&mut self, cut: &Cut) -> Result<()> {
        if self.crash == Some(CrashAt::Acknowledge) {
            self.feeds.die().await;
        }
        self.source.committed(cut).await
    }

    async fn maintain(&mut self) -> Result<()> {
        self.source.maintain().await
    }

    fn bounded(&self) -> bool {
        self.is_last
    }
}

/// A sink at whose prepare or commit the process may die.
pub struct Dying {
    sink: MemorySink,
    crash: Option<CrashAt>,
    feeds: Arc<Feeds>,
}

impl Dying {
    pub fn new(sink: MemorySink, crash: Option<CrashAt>, feeds: Arc<Feeds>) -> Self {
        Self { sink, crash, feeds }
    }
}

#[async_trait]
impl Sink for Dying {
    async fn write(&mut self, id: EpochId, rows: &RecordBatch) -> Result<()> {
        self.sink.write(id, rows).await
    }

    async fn prepare(&mut self, id: EpochId) -> Result<Prepared> {
        let prepared = self.sink.prepare(id).await?;
        if self.crash == Some(CrashAt::Prepare) && prepared.handle.is_some() {
            self.feeds.die().await;
        }
        Ok(prepared)
    }

    fn end(&mut self) {
        self.sink.end();
    }

    fn held_bytes(&self) -> usize {
        self.sink.held_bytes()
    }

    fn committer(&self) -> Arc<dyn Committer> {
        let (committer, feeds) = (self.sink.committer(), self.feeds.clone());
        Arc::new(DyingCommitter { committer, dies: self.crash == Some(CrashAt::Commit), feeds })
    }
}

struct DyingCommitter {
    committer: Arc<dyn Committer>,
    dies: bool,
    feeds: Arc<Feeds>,
}

#[async_trait]
impl Committer for DyingCommitter {
    async fn commit(&self, id: EpochId, handle: &Handle) -> Result<()> {
        if self.dies {
            self.feeds.die().await;
        }
        self.committer.commit(id, handle).await
    }

    async fn sweep(&self, generation: u64, keep: &[Handle]) -> Result<u64> {
        self.committer.sweep(generation, keep).await
    }
}
