//! The stages of a sink: one takes rows and prepares, the other commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nexus_operators::clock::SharedClock;
use nexus_operators::sink::{Committer, EpochId, Handle, RefusedRows, RefusedUpto, Sink};
use nexus_operators::{Error, ErrorKind, Result, fail, quarantine};
use tokio::sync::mpsc;

use super::channel::{Item, Receiver, Refused, Sender, closed};
use super::coordinator::Report;
use super::progress::Progress;

/// The first pause after a commit that failed; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two tries to commit.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Takes rows and prepares them.
pub struct SinkStage {
    /// The sink's name, `<table>/<kind>`.
    pub name: String,
    /// The writing half.
    pub sink: Box<dyn Sink>,
    /// The table's channel.
    pub from: Receiver<Item>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
    /// The epoch that is open.
    pub open: EpochId,
    /// Whether rows may come behind the last barrier of the table: what another sink's service has refused.
    pub stays: bool,
    /// What the sink holds in memory, for who looks.
    pub held_bytes: Arc<AtomicUsize>,
}

impl SinkStage {
    /// Runs until the last barrier, or until nobody sends any more.
    pub async fn run(mut self) -> Result<()> {
        let mut refused = BTreeMap::<String, BTreeMap<u64, u64>>::new();
        while let Some(item) = self.from.recv().await {
            match item {
                Item::Batch(batch) => {
                    self.sink.write(self.open, &batch).await.map_err(|e| named(&self.name, e))?;
                    fail::point("after_write")?;
                }
                Item::Refused(Refused { sink, epoch, rows }) => {
                    self.sink.write(self.open, &rows).await.map_err(|e| named(&self.name, e))?;
                    let epochs = refused.entry(sink.to_string()).or_default();
                    *epochs.entry(epoch).or_default() += rows.num_rows() as u64;
                }
                Item::Barrier(barrier) => {
                    fail::point("before_prepare")?;
                    if barrier.last {
                        self.sink.end();
                    }
                    let prepared = self.sink.prepare(self.open).await.map_err(|e| named(&self.name, e))?;
                    fail::point("after_prepare")?;
                    let (sink, refused) = (self.name.clone(), std::mem::take(&mut refused));
                    let told = Report::Prepared { sink, epoch: barrier.epoch, prepared, refused };
                    self.reports.send(told).map_err(|_| closed())?;
                    self.open.epoch = barrier.epoch + 1;
                    if barrier.last && !self.stays {
                        self.held_bytes.store(0, Ordering::Relaxed);
                        return Ok(());
                    }
                }
            }
            self.held_bytes.store(self.sink.held_bytes(), Ordering::Relaxed);
        }
        if self.stays { Ok(()) } else { Err(closed()) }
    }
}

/// The order to commit an epoch whose record exists.
#[derive(Debug, Clone)]
pub struct Order {
    /// The epoch.
    pub id: EpochId,
    /// What the sink has prepared.
    pub handle: Option<Handle>,
    /// Up to where records have the rows that the sink's service has refused.
    pub recorded: RefusedUpto,
}

/// Commits what one sink has prepared, epoch by epoch.
pub struct CommitStage {
    /// The sink's name, `<table>/<kind>`.
    pub name: String,
    /// The publishing half.
    pub committer: Arc<dyn Committer>,
    /// What becomes of rows that the sink's service refuses; nothing if it refuses none.
    pub takeover: Option<Takeover>,
    /// Epochs whose record exists. When the coordinator is gone, the stage ends.
    pub from: mpsc::UnboundedReceiver<Order>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
}

impl CommitStage {
    /// Runs until the coordinator is gone. A sink that is away is tried again, however long it takes.
    pub async fn run(mut self) -> Result<()> {
        while let Some(Order { id, handle, recorded }) = self.from.recv().await {
            if let Some(handle) = &handle {
                fail::point("before_commit")?;
                let mut patience = Patience::default();
                while let Err(error) = self.committer.commit(id, handle).await {
                    patience.bear(&self.name, id, error).await?;
                }
                fail::point("after_commit")?;
            }
            let mut refused = RefusedUpto::default();
            if let Some(takeover) = &mut self.takeover {
                takeover.forget(id, recorded).await?;
                if handle.is_some() {
                    takeover.send_on(id).await?;
                }
                refused = takeover.sent;
            }
            let told = Report::Committed { sink: self.name.clone(), epoch: id.epoch, refused };
            self.reports.send(told).map_err(|_| closed())?;
        }
        Ok(())
    }
}

/// How long is waited after a failure, and another, for a service that is away.
struct Patience {
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: PAUSE_MIN }
    }
}

impl Patience {
    /// Waits, if the call may succeed later.
    async fn bear(&mut self, sink: &str, id: EpochId, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Unavailable {
            return Err(named(sink, error));
        }
        tracing::warn!(sink, epoch = id.epoch, %error, "could not commit; trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// The way of rows that a sink's service has refused, to the quarantine of their table.
pub struct Takeover {
    /// The sink.
    pub sink: Arc<str>,
    /// The table.
    pub table: String,
    /// The rows.
    pub rows: Arc<dyn RefusedRows>,
    /// The channel of the quarantine, whose stage outlives those of the tables.
    pub quarantine: Sender<Item>,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// The time at which they are quarantined.
    pub clock: SharedClock,
    /// Up to where they have been sent to the quarantine. What no record has of it comes again after a crash.
    pub sent: RefusedUpto,
    /// Up to where the service has been told to forget them.
    pub forgotten: RefusedUpto,
}

impl Takeover {
    /// Has the service forget the rows that records have.
    async fn forget(&mut self, id: EpochId, recorded: RefusedUpto) -> Result<()> {
        if recorded <= self.forgotten {
            return Ok(());
        }
        fail::point("before_forget")?;
        let mut patience = Patience::default();
        while let Err(error) = self.rows.forget(recorded).await {
            patience.bear(&self.sink, id, error).await?;
        }
        fail::point("after_forget")?;
        self.forgotten = recorded;
        Ok(())
    }

    /// Sends the rows on that a commit has met.
    async fn send_on(&mut self, id: EpochId) -> Result<()> {
        let mut patience = Patience::default();
        loop {
            let (epoch, rows) = match self.rows.next(self.sent).await {
                Ok(Some(refused)) => refused,
                Ok(None) => return Ok(()),
                Err(error) => {
                    patience.bear(&self.sink, id, error).await?;
                    continue;
                }
            };
            fail::point("before_takeover")?;
            self.progress.note_quarantined(&self.table, &rows, &self.clock);
            let batch = quarantine::batch(&self.table, &rows, self.clock.now_us())?;
            let refused = Refused { sink: self.sink.clone(), epoch, rows: batch };
            self.quarantine.send(Item::Refused(refused)).await?;
            fail::point("after_takeover")?;
            self.sent.pass(epoch, rows.len() as u64);
        }
    }
}

fn named(name: &str, error: Error) -> Error {
    error.while_doing(format!("sink {name}"))
}

#[cfg(test)]
#[cfg(feature = "s3")]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};
    use nexus_operators::sink::parquet::{ParquetCompression, ParquetLayout, ParquetSettings, ParquetSink};
    use nexus_operators::store::Store;
    use nexus_operators::testing::outage::store_away_for;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::super::channel::{Barrier, Sender, channel};
    use super::*;

    const NAME: &str = "bronze.numbers/parquet";
    const ID: EpochId = EpochId { generation: 1, epoch: 1 };
    const MIB: usize = 1 << 20;
    const BATCHES: usize = 400;
    const BATCH_ROWS: usize = 8192;

    /// Rows of 64 KiB that no encoding makes smaller.
    fn batch(number: usize) -> RecordBatch {
        let start = (number * BATCH_ROWS) as i64;
        let rows = (start..start + BATCH_ROWS as i64).map(|n| n.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(29));
        RecordBatch::try_from_iter([("n", Arc::new(rows.collect::<Int64Array>()) as _)]).unwrap()
    }

    /// A table's sink on a store, and the way to it.
    struct Scene {
        to: Sender<Item>,
        heard: mpsc::UnboundedReceiver<Report>,
        epochs: mpsc::UnboundedSender<Order>,
        stage: JoinHandle<Result<()>>,
    }

    fn start(store: &Store) -> Scene {
        let settings = ParquetSettings {
            pipeline: "test".into(),
            tier: "bronze".into(),
            table: "numbers".into(),
            schema: batch(0).schema(),
            partition_by: Vec::new(),
            compression: ParquetCompression::Uncompressed,
            layout: ParquetLayout::default(),
            open_partitions_max: 4,
            buffer_bytes: MIB,
        };
        let [table, staging, notes] = ["bronze/numbers", "staging", "notes"].map(|name| store.below(name));
        let sink = ParquetSink::new(settings, table, staging, notes).unwrap();
        let committer = sink.committer();
        let (to, from) = channel(MIB);
        let (reports, heard) = mpsc::unbounded_channel();
        let stage = SinkStage {
            name: NAME.into(),
            sink: Box::new(sink),
            from,
            reports: reports.clone(),
            open: ID,
            stays: false,
            held_bytes: Arc::default(),
        };
        let (epochs, from) = mpsc::unbounded_channel();
        tokio::spawn(CommitStage { name: NAME.into(), committer, takeover: None, from, reports }.run());
        Scene { to, heard, epochs, stage: tokio::spawn(stage.run()) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_for_ten_minutes_is_waited_for_in_bounded_memory() {
        let begun = Instant::now();
        let away = Duration::from_secs(600);
        let store = store_away_for(away);
        let Scene { to, mut heard, epochs, .. } = start(&store);
        let sent = Arc::new(AtomicUsize::new(0));
        let sending = sent.clone();
        tokio::spawn(async move {
            for number in 0..BATCHES {
                to.send(Item::Batch(batch(number))).await.unwrap();
                sending.fetch_add(1, Ordering::Relaxed);
            }
            to.send(Item::Barrier(Barrier { epoch: 1, watermark_us: None, last: true })).await.unwrap();
        });
        tokio::time::sleep(away - Duration::from_secs(10)).await;
        let held = sent.load(Ordering::Relaxed) * BATCH_ROWS * size_of::<i64>();
        // The channel, the sink's buffer, and what is on its way between them.
        assert!(held > MIB && held < 4 * MIB, "{held} bytes were taken from the source");

        let Some(Report::Prepared { prepared, .. }) = heard.recv().await else { panic!("nothing was prepared") };
        assert_eq!(prepared.rows, (BATCHES * BATCH_ROWS) as u64);
        epochs.send(Order { id: ID, handle: prepared.handle, recorded: RefusedUpto::default() }).unwrap();
        let Some(Report::Committed { epoch: 1, .. }) = heard.recv().await else { panic!("nothing was committed") };
        assert!(begun.elapsed() >= away && begun.elapsed() < away + Duration::from_secs(60), "{:?}", begun.elapsed());
        let stored: u64 = store.list("bronze/numbers").await.unwrap().iter().map(|file| file.size).sum();
        assert_eq!(stored, prepared.bytes);
        assert!(store.list("notes").await.unwrap().is_empty(), "notes of uploads were left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_stays_away_ends_the_run_with_an_error_that_names_it() {
        let begun = Instant::now();
        let store = store_away_for(Duration::from_secs(3600));
        let Scene { to, stage, .. } = start(&store);
        to.send(Item::Batch(batch(0))).await.unwrap();
        to.send(Item::Barrier(Barrier { epoch: 1, watermark_us: None, last: true })).await.unwrap();
        let error = stage.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        let what = "sink bronze.numbers/parquet: could not start the upload of bronze/numbers/test-1-1-0.parquet";
        assert!(text.starts_with(what) && text.contains("connection refused"), "{text}");
        let waited = begun.elapsed();
        assert!(waited > Duration::from_secs(15 * 60) && waited < Duration::from_secs(16 * 60), "{waited:?}");
    }
}
