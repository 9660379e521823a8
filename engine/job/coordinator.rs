//! The commit coordinator: one process, one coordinator.
//!
//! It asks for barriers, gathers what the stages report of an epoch, writes the
//! commit record, has the sinks commit, and only then tells the sources.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::Field;
use nexus_operators::clock::SharedClock;
use nexus_operators::position::Cut;
use nexus_operators::sink::parquet::is_over;
use nexus_operators::sink::{EpochId, Prepared, RefusedUpto};
use nexus_operators::{Error, Result, fail};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::channel::{Barrier, Item, Sender, closed};
use super::errors::{Budgets, Reasons};
use super::idleness::Idleness;
use super::ledger::{Ledger, OpenEpoch};
use super::progress::Progress;
use super::sink::Order;
use super::source::{Closing, Command, EpochLoad};
use super::steps::{EpochClock, Step};
use crate::plan::reference::ReferenceTable;
use crate::state::record::{CommitRecord, SourceCounts, TableRecord};
use crate::state::schema::TableSchema;
use crate::state::{State, StateStore};

/// How often the coordinator looks whether an epoch is due.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a process that has nothing to commit asks whether it is still the newest.
const FENCE_EVERY: Duration = Duration::from_secs(5);

/// How long a run that ends waits for its sinks to commit. The rows are durable; the next start goes on.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(15 * 60);

/// How long a run that was told to stop takes to commit what it has read: those who stop it (Kubernetes, ECS, systemd)
/// kill it after 30 seconds or more.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// How long a run that is to be planned anew waits for its sinks in its last epoch: as long as they usually take.
const EVOLVE_MAX: Duration = Duration::from_secs(20);

/// How long no further epoch is closed once columns were found, so that all sinks have committed and the run can be
/// planned anew. A sink that takes longer must not hold up the others.
const EVOLVE_HOLD: Duration = Duration::from_secs(2);

/// What stages tell the coordinator.
#[derive(Debug)]
pub enum Report {
    /// A source has cut at a barrier.
    Cut {
        /// The source.
        source: String,
        /// The epoch.
        epoch: u64,
        /// What has moved.
        cut: Cut,
    },
    /// A decoder has passed the barrier.
    Decoded {
        /// The source.
        source: String,
        /// The epoch.
        epoch: u64,
        /// What was counted.
        counts: SourceCounts,
        /// The source's watermark.
        watermark_us: Option<i64>,
        /// Why records were quarantined, as far as an error budget counts them.
        reasons: Reasons,
        /// Columns that were found among the fields that no column declares.
        found: Vec<Field>,
    },
    /// A table has passed the barrier.
    Table {
        /// The table.
        table: String,
        /// The epoch.
        epoch: u64,
        /// Its part of the record.
        record: Box<TableRecord>,
    },
    /// A sink has prepared.
    Prepared {
        /// The sink.
        sink: String,
        /// The epoch.
        epoch: u64,
        /// What it has prepared.
        prepared: Prepared,
        /// Of these rows, those that the services of other sinks have refused, by sink and epoch.
        refused: BTreeMap<String, BTreeMap<u64, u64>>,
    },
    /// A sink has committed.
    Committed {
        /// The sink.
        sink: String,
        /// The epoch.
        epoch: u64,
        /// Up to where the rows that its service has refused have been sent to the quarantine.
        refused: RefusedUpto,
    },
    /// A source has acknowledged a cut.
    Acknowledged {
        /// The source.
        source: String,
    },
    /// A source has ended.
    Ended {
        /// The source.
        source: String,
    },
}

/// When epochs are closed, and when the run ends.
#[derive(Debug, Clone)]
pub struct Timing {
    /// At least this often while there is something to commit.
    pub every: Duration,
    /// When this many rows have been read.
    pub rows_max: Option<u64>,
    /// Bytes that may be prepared and not committed.
    pub spool_bytes_max: u64,
    /// End the run once all sources have been idle for so long.
    pub until_idle: Option<Duration>,
    /// A silent source lets the others' watermark pass after this time.
    pub idle_after: Duration,
}

/// How a sink's commit stage is reached.
pub type CommitQueue = mpsc::UnboundedSender<Order>;

/// Runs the commit protocol.
pub struct Coordinator {
    /// Where records are written.
    pub store: StateStore,
    /// The fold of all records so far.
    pub state: State,
    /// This process's number.
    pub generation: u64,
    /// The sources' stages.
    pub sources: BTreeMap<String, mpsc::UnboundedSender<Command>>,
    /// The names of the tables.
    pub tables: Vec<String>,
    /// The columns of the tables that go to sinks; the first record has those that are others than before.
    pub schemas: BTreeMap<String, TableSchema>,
    /// The reference tables that are read.
    pub references: Vec<Arc<ReferenceTable>>,
    /// How long rows may wait for a larger file, by sink.
    pub rolls: BTreeMap<String, Duration>,
    /// The sinks' commit stages.
    pub sinks: BTreeMap<String, CommitQueue>,
    /// The channels of the sinks to the quarantine that take what services of other sinks refuse, also behind the last
    /// barrier.
    pub takers_of_refused: BTreeMap<String, Sender<Item>>,
    /// What the stages tell.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// How much has been read in the open epoch.
    pub load: Arc<EpochLoad>,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// When epochs are closed.
    pub timing: Timing,
    /// Turns true when the run shall drain.
    pub stop: watch::Receiver<bool>,
    /// What has been recorded and is not yet committed everywhere.
    pub ledger: Ledger,
    /// How many rows may be bad.
    pub budgets: Budgets,
    /// The time.
    pub clock: SharedClock,
    /// Whether the run may end so that it is planned anew with columns that sources have got.
    pub may_evolve: bool,
    /// When a record of this run had such columns.
    pub evolved_since: Option<Instant>,
    /// How long the epochs take that are not committed by all sinks.
    pub epochs: EpochClock,
    /// When the epoch was closed that is not recorded yet.
    pub closing_since: Option<Instant>,
    /// When an epoch was last committed by all sinks, in microseconds since the Unix epoch.
    pub committed_at_us: Option<i64>,
}

/// Why an epoch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Due,
    Drain,
    EndOfInput,
    Evolved,
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its input has ended, or it was told to stop.
    Whole,
    /// Sources have got columns, with which it is to be planned anew.
    Evolved,
}

impl Coordinator {
    /// Runs until the input ends or the run is stopped, and all sinks have committed. A run that was told to stop ends in
    /// time even if a service does not answer: what it leaves behind is what a crash would.
    pub async fn run(mut self) -> Result<Ended> {
        let mut stop = self.stop.clone();
        let overdue = async move {
            // An error says that nobody holds the job any more, which is as good as a stop.
            drop(stop.wait_for(|told| *told).await);
            tokio::time::sleep(DRAIN_MAX).await;
        };
        // Cancel-safe: whichever ends first, the other is not asked again.
        let done = tokio::select! {
            done = self.coordinate() => Some(done),
            () = overdue => None,
        };
        done.unwrap_or_else(|| Err(self.ledger.unfinished(self.sinks.keys(), self.state.epoch)))
    }

    async fn coordinate(&mut self) -> Result<Ended> {
        let mut closed_at = Instant::now();
        let mut idle_barrier_owed = false;
        self.tell_standing();
        self.progress.set_positions(&self.state);
        loop {
            let reason = self.wait(closed_at, &mut idle_barrier_owed).await?;
            let last = reason != Reason::Due;
            let closing = Closing { epoch: self.state.epoch + 1, last, end_of_input: reason == Reason::EndOfInput };
            closed_at = Instant::now();
            self.close(closing).await?;
            if reason == Reason::Evolved {
                // A sink that is slow goes on behind the new start, as behind any other.
                let finished = tokio::time::timeout(EVOLVE_MAX, self.finish()).await;
                return finished.unwrap_or(Ok(())).map(|()| Ended::Evolved);
            }
            if last {
                return self.finish().await.map(|()| Ended::Whole);
            }
        }
    }

    /// Waits until an epoch is to be closed.
    async fn wait(&mut self, closed_at: Instant, idle_barrier_owed: &mut bool) -> Result<Reason> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fence_at = Instant::now() + FENCE_EVERY;
        let mut idle = Idleness::default();
        let rows_before = self.rows_read();
        loop {
            if *self.stop.borrow() {
                return Ok(Reason::Drain);
            }
            if self.ledger.ended.len() == self.sources.len() {
                return Ok(Reason::EndOfInput);
            }
            if self.timing.until_idle.is_some_and(|wanted| idle.lasts(&self.progress, &self.ledger.ended) >= wanted) {
                return Ok(Reason::EndOfInput);
            }
            if self.evolved_since.is_some() && self.ledger.open.is_empty() {
                return Ok(Reason::Evolved);
            }
            let held = self.evolved_since.is_some_and(|since| since.elapsed() < EVOLVE_HOLD);
            let read = self.load.bytes.load(Ordering::Acquire);
            let full = read >= self.load.bytes_max
                || self.timing.rows_max.is_some_and(|max| self.rows_read() - rows_before >= max);
            let due = (read > 0 || self.ledger.holds_refused() || self.is_roll_due())
                && closed_at.elapsed() >= self.timing.every;
            let owed = *idle_barrier_owed && !self.progress.is_paused();
            let silent = owed && closed_at.elapsed() > self.timing.idle_after;
            if !held && (full || due || silent) && self.ledger.spooled_bytes() <= self.timing.spool_bytes_max {
                *idle_barrier_owed = read > 0;
                return Ok(Reason::Due);
            }
            if fence_at <= Instant::now() {
                self.store.check_fence(self.generation).await?;
                fence_at = Instant::now() + FENCE_EVERY;
            }
            // Cancel-safe: each of these is, and what they tell is looked at above.
            tokio::select! {
                report = self.reports.recv() => self.hear(report.ok_or_else(closed)?).await?,
                _ = self.load.wake.notified() => {}
                told = self.stop.changed() => if told.is_err() {
                    // Nobody holds the job any more: what was read is committed, and no more is read.
                    return Ok(Reason::Drain);
                },
                _ = look.tick() => {}
            }
        }
    }

    /// Tells whether rows have waited for a larger file for as long as they may: an epoch without rows has it written.
    fn is_roll_due(&self) -> bool {
        let now_us = self.clock.now_us();
        self.rolls.iter().any(|(sink, age)| {
            let oldest = self.state.waiting.get(sink).and_then(|waiting| waiting.first());
            oldest.is_some_and(|oldest| is_over(oldest.since_us, *age, now_us))
        })
    }

    /// Closes an epoch: barrier, cut, prepare, record, and the order to commit.
    async fn close(&mut self, closing: Closing) -> Result<()> {
        fail::point("before_barrier")?;
        let closed_at = Instant::now();
        self.closing_since = Some(closed_at);
        self.epochs.start(self.generation, closing.epoch, self.clock.now_us());
        self.tell_standing();
        self.load.bytes.store(0, Ordering::Release);
        // Before the barrier: whoever has passed it asks for the next epoch's versions.
        self.references.iter().for_each(|table| table.pin(closing.epoch + 1));
        for source in self.sources.values() {
            source.send(Command::Barrier(closing)).map_err(|_| closed())?;
        }
        let mut record = self.gather(closing.epoch).await?;
        let counted = self.budgets.count(&mut record, self.clock.now_us());
        self.progress.set_errors(self.budgets.standing());
        counted?;
        if fail::mutated("commit_before_record") {
            self.order_commits(&record)?;
            while !self.ledger.landed_by_all(self.sinks.keys(), record.epoch) {
                let report = self.reports.recv().await.ok_or_else(closed)?;
                self.hear(report).await?;
            }
        }
        if fail::mutated("acknowledge_before_record") {
            let cuts = record.sources.iter().map(|(name, source)| (name.clone(), source.cut.clone()));
            self.acknowledge(cuts.collect())?;
            while self.ledger.owed > 0 {
                let report = self.reports.recv().await.ok_or_else(closed)?;
                self.hear(report).await?;
            }
        }
        self.record(record, closed_at).await
    }

    /// Writes the record of an epoch, and orders the commits.
    async fn record(&mut self, record: CommitRecord, closed_at: Instant) -> Result<()> {
        fail::point("before_record")?;
        self.store.commit(&mut self.state, &record).await?;
        self.ledger.release(&self.state.refused);
        if fail::mutated("done_before_commit") {
            let all = self.sinks.keys().map(|name| (name.clone(), record.epoch)).collect();
            self.store.note_committed(self.generation, &all).await?;
        }
        fail::point("after_record")?;
        self.progress.add(&record);
        self.progress.set_positions(&self.state);
        self.epochs.recorded(&record);
        // An epoch of refused rows alone has no sources, and is not swapped.
        if !fail::mutated("commit_before_record") || record.sources.is_empty() {
            self.order_commits(&record)?;
        }
        self.ledger.open.push_back(OpenEpoch {
            epoch: record.epoch,
            closed_at,
            cuts: record.sources.into_iter().map(|(name, source)| (name, source.cut)).collect(),
            bytes: record.sinks.into_iter().map(|(name, prepared)| (name, prepared.bytes)).collect(),
        });
        self.closing_since = None;
        self.settle().await
    }

    /// Has the sinks commit what they have prepared.
    fn order_commits(&self, record: &CommitRecord) -> Result<()> {
        let id = EpochId { generation: record.generation, epoch: record.epoch };
        for (name, prepared) in &record.sinks {
            let queue = self.sinks.get(name).ok_or_else(|| Error::internal(format!("sink {name} is not known")))?;
            let recorded = self.state.refused.get(name).copied().unwrap_or_default();
            queue.send(Order { id, handle: prepared.handle.clone(), recorded }).map_err(|_| closed())?;
        }
        Ok(())
    }

    /// Gathers what the stages report of an epoch.
    async fn gather(&mut self, epoch: u64) -> Result<CommitRecord> {
        let mut record = self.store.record(self.generation, epoch);
        for table in &self.references {
            let used = table.version_of(epoch);
            let known = self.state.references.get(table.name());
            if known.is_none_or(|known| known.version != used.told.version) {
                record.reference_versions.insert(table.name().to_owned(), used.told.clone());
            }
            record.references.insert(table.name().to_owned(), used.told.version);
        }
        let (mut cuts, mut decoded) = (0, 0);
        while cuts < self.sources.len()
            || decoded < self.sources.len()
            || record.tables.len() < self.tables.len()
            || record.sinks.len() < self.sinks.len()
        {
            let report = self.reports.recv().await.ok_or_else(closed)?;
            match report {
                Report::Cut { source, epoch: of, cut } if of == epoch => {
                    self.epochs.mark(epoch, Step::Cut, &source);
                    record.sources.entry(source).or_default().cut = cut;
                    cuts += 1;
                }
                Report::Decoded { source, epoch: of, counts, watermark_us, reasons, found } if of == epoch => {
                    self.epochs.mark(epoch, Step::Decode, &source);
                    self.budgets.hear(&source, reasons);
                    let evolved = self.evolved(&source, epoch, &found);
                    let source = record.sources.entry(source).or_default();
                    source.counts = counts;
                    source.watermark_us = watermark_us;
                    source.evolved = evolved;
                    decoded += 1;
                }
                Report::Table { table, epoch: of, record: mut part } if of == epoch => {
                    self.epochs.mark(epoch, Step::Transform, &table);
                    let schema = self.schemas.get(&table).filter(|now| self.state.schema_of(&table) != Some(now));
                    part.schema = schema.cloned();
                    record.tables.insert(table, *part);
                }
                Report::Prepared { sink, epoch: of, prepared, refused } if of == epoch => {
                    self.epochs.mark(epoch, Step::Prepare, &sink);
                    record.sinks.insert(sink, prepared);
                    record.refused.extend(refused);
                }
                other => self.hear(other).await?,
            }
        }
        Ok(record)
    }

    /// Closes an epoch behind the last one, which brings nothing but refused rows to the quarantine.
    async fn close_refused(&mut self) -> Result<()> {
        let closed_at = Instant::now();
        let mut record = self.store.record(self.generation, self.state.epoch + 1);
        self.epochs.start(self.generation, record.epoch, self.clock.now_us());
        for taker in self.takers_of_refused.values() {
            let barrier = Barrier { epoch: record.epoch, watermark_us: None, last: true };
            taker.send(Item::Barrier(barrier)).await?;
        }
        while record.sinks.len() < self.takers_of_refused.len() {
            match self.reports.recv().await.ok_or_else(closed)? {
                Report::Prepared { sink, epoch, prepared, refused } if epoch == record.epoch => {
                    self.epochs.mark(epoch, Step::Prepare, &sink);
                    record.sinks.insert(sink, prepared);
                    record.refused.extend(refused);
                }
                other => self.hear(other).await?,
            }
        }
        for name in self.sinks.keys() {
            record.sinks.entry(name.clone()).or_default();
        }
        self.record(record, closed_at).await
    }

    /// Waits until everything that was recorded is committed and acknowledged.
    async fn finish(&mut self) -> Result<()> {
        let until = Instant::now() + LAST_COMMIT_MAX;
        while !self.ledger.open.is_empty() || self.ledger.owed > 0 {
            if self.ledger.holds_refused() && self.ledger.landed_by_all(self.sinks.keys(), self.state.epoch) {
                self.close_refused().await?;
            }
            match tokio::time::timeout_at(until, self.reports.recv()).await {
                Ok(report) => self.hear(report.ok_or_else(closed)?).await?,
                Err(_) => return Err(self.ledger.unfinished(self.sinks.keys(), self.state.epoch)),
            }
        }
        Ok(())
    }

    fn rows_read(&self) -> u64 {
        self.progress.sources.values().map(|source| source.rows.load(Ordering::Relaxed)).sum()
    }
}
