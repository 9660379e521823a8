//! The stage that decodes a source's records and keeps its watermark.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::RecordBatch;
use nexus_operators::batch::Chunk;
use nexus_operators::clock::SharedClock;
use nexus_operators::decode::{Decoded, Decoder, Discovery, Reject};
use nexus_operators::quarantine::{self, Quarantined};
use nexus_operators::transform::window::{WATERMARK_END, WATERMARK_START, micros};
use nexus_operators::{ErrorKind, Result};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::archive::Archive;
use super::channel::{Barrier, Item, Receiver, Sender, closed, fan_out};
use super::coordinator::Report;
use super::errors::Reasons;
use super::progress::Progress;
use super::source::{Closing, Read};
use crate::state::record::SourceCounts;

/// Decodes one source.
pub struct DecodeStage {
    /// The source's name.
    pub name: String,
    /// The decoder.
    pub decoder: Arc<dyn Decoder>,
    /// The source's channel.
    pub from: Receiver<Read>,
    /// The channels of the tables that read the source.
    pub to: Vec<Sender<Item>>,
    /// The channel of the source's quarantine.
    pub quarantine: Sender<Item>,
    /// Where the records go as they came, if they are archived.
    pub archive: Option<Archive>,
    /// Looks for columns among the fields that no column declares, if these may become columns.
    pub discovery: Option<Discovery>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
    /// How event time passes.
    pub watermark: Watermark,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// The time of quarantined records.
    pub clock: SharedClock,
    /// Why records of the open epoch were quarantined; nothing if no error budget counts them.
    pub reasons: Option<Reasons>,
}

impl DecodeStage {
    /// Runs until the last barrier.
    pub async fn run(mut self) -> Result<()> {
        let mut counts = SourceCounts::default();
        while let Some(read) = self.from.recv().await {
            match read {
                Read::Chunk(chunk) => {
                    counts.bytes += chunk.size_bytes() as u64;
                    self.decode(&chunk, &mut counts).await?;
                }
                Read::Reject { partition, reject } => {
                    counts.bytes += reject.raw.len() as u64;
                    let arrived_us = self.clock.now_us();
                    self.reject(&partition, arrived_us, vec![reject], &mut counts).await?;
                }
                Read::Paused(paused) => self.watermark.pause(paused),
                Read::Barrier { closing, reading, ended, idle } => {
                    self.barrier(closing, &reading, ended, idle, std::mem::take(&mut counts)).await?;
                    if closing.last {
                        return Ok(());
                    }
                }
            }
        }
        Err(closed())
    }

    /// Decodes a chunk and passes on what it becomes, step by step; what cannot be decoded at all is one reject.
    async fn decode(&mut self, chunk: &Chunk, counts: &mut SourceCounts) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let decoder = Arc::clone(&self.decoder);
        let mut records = 0;
        for step in decoder.decode(chunk) {
            let decoded = match step {
                Err(error) if error.kind() == ErrorKind::Data => {
                    let (offset, raw) = (chunk.offset_behind(records), chunk.raw());
                    let rejects = vec![Reject::in_part(offset, raw, error.to_string())];
                    Decoded { rejects, ..Decoded::default() }
                }
                decoded => decoded
                    .map_err(|error| error.while_doing(format!("could not decode records of source {}", self.name)))?,
            };
            records += decoded.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            records += decoded.rejects.len() as u64;
            counts.skipped += decoded.skipped;
            if let Some(archive) = &self.archive {
                for records in decoded.archived {
                    counts.archived += records.num_rows() as u64;
                    archive.take(records).await?;
                }
            }
            for batch in decoded.batches {
                self.pass(&chunk.partition, batch, counts).await?;
            }
            self.reject(&chunk.partition, chunk.read_at_us, decoded.rejects, counts).await?;
        }
        Ok(())
    }

    async fn pass(&mut self, partition: &Arc<str>, batch: RecordBatch, counts: &mut SourceCounts) -> Result<()> {
        let rows = batch.num_rows() as u64;
        counts.records += rows;
        counts.rows += rows;
        if let Some(progress) = self.progress.sources.get(&self.name) {
            progress.rows.fetch_add(rows, Ordering::Relaxed);
        }
        self.watermark.observe(partition, &batch)?;
        if let Some(discovery) = &mut self.discovery {
            discovery.observe(&batch);
        }
        fan_out(&self.to, &Item::Batch(batch)).await
    }

    async fn reject(
        &mut self,
        partition: &Arc<str>,
        arrived_us: i64,
        rejects: Vec<Reject>,
        counts: &mut SourceCounts,
    ) -> Result<()> {
        if rejects.is_empty() {
            return Ok(());
        }
        counts.records += rejects.len() as u64;
        counts.quarantined += rejects.len() as u64;
        if let Some(reasons) = &mut self.reasons {
            for reject in &rejects {
                reasons.note(&reject.reason, || format!("{partition}, {}", reject.offset));
            }
        }
        let rows: Vec<_> = rejects.into_iter().map(|reject| quarantined(&self.name, partition, reject, 0)).collect();
        self.progress.note_quarantined(&self.name, &rows, &self.clock);
        let now_us = self.clock.now_us();
        if let Some(archive) = &self.archive {
            archive.refuse(&rows, arrived_us, now_us).await?;
        }
        let batch = quarantine::batch(&self.name, &rows, now_us)?;
        self.quarantine.send(Item::Batch(batch)).await
    }

    async fn barrier(
        &mut self,
        closing: Closing,
        reading: &[Arc<str>],
        ended: bool,
        idle: bool,
        counts: SourceCounts,
    ) -> Result<()> {
        let passed_us = self.watermark.pass(reading);
        if let Some(progress) = self.progress.sources.get(&self.name) {
            progress.watermark.set(passed_us);
        }
        let told = Report::Decoded {
            source: self.name.clone(),
            epoch: closing.epoch,
            counts,
            watermark_us: (passed_us > WATERMARK_START).then_some(passed_us),
            reasons: self.reasons.as_mut().map(std::mem::take).unwrap_or_default(),
            found: self.discovery.as_mut().map(Discovery::take).unwrap_or_default(),
        };
        self.reports.send(told).map_err(|_| closed())?;
        let watermark_us =
            if ended || closing.end_of_input { Some(WATERMARK_END) } else { (!idle).then_some(passed_us) };
        let barrier = Barrier { epoch: closing.epoch, watermark_us, last: closing.last };
        if let Some(archive) = &self.archive {
            archive.close(barrier).await?;
        }
        let barrier = Item::Barrier(barrier);
        self.quarantine.send(barrier.clone()).await?;
        fan_out(&self.to, &barrier).await
    }
}

/// Makes a quarantine entry of a record that does not decode, and has been sent again so often.
pub fn quarantined(source: &str, partition: &str, reject: Reject, attempts: u32) -> Quarantined {
    Quarantined {
        source: Some(source.to_owned()),
        partition: Some(partition.to_owned()),
        offset: Some(reject.offset),
        reason: reject.reason,
        rule: "decode".to_owned(),
        raw: reject.raw,
        key: reject.key,
        header: reject.header,
        redrivable: reject.redrivable,
        attempts,
    }
}

/// How far event time has passed in a source: the least of its partitions, less the lateness.
///
/// Partitions that are being read hold it back, also before their first row has come, unless they have been idle.
/// When none does, the newest time of all counts. It never moves back.
#[derive(Debug)]
pub struct Watermark {
    column: Option<usize>,
    lateness_us: i64,
    idle_after: Duration,
    /// Whether the source is not read for now: no partition is idle then.
    paused: bool,
    partitions: BTreeMap<Arc<str>, Newest>,
    newest_us: i64,
    passed_us: i64,
}

/// The newest event time of a partition, and when a row of it last came.
#[derive(Debug)]
struct Newest {
    time_us: Option<i64>,
    seen: Instant,
}

impl Watermark {
    /// Watches the event-time column of batches; goes on from the watermark of the last commit.
    pub fn new(column: Option<usize>, lateness: Duration, idle_after: Duration, passed_us: Option<i64>) -> Self {
        Self {
            column,
            lateness_us: i64::try_from(lateness.as_micros()).unwrap_or(i64::MAX),
            idle_after,
            paused: false,
            partitions: BTreeMap::new(),
            newest_us: WATERMARK_START,
            passed_us: passed_us.unwrap_or(WATERMARK_START),
        }
    }

    fn observe(&mut self, partition: &Arc<str>, batch: &RecordBatch) -> Result<()> {
        let Some(column) = self.column else { return Ok(()) };
        let Some(time_us) = arrow::compute::max(&micros(batch.column(column))?) else { return Ok(()) };
        let seen = Instant::now();
        let newest = self.partitions.entry(partition.clone()).or_insert(Newest { time_us: None, seen });
        newest.time_us = newest.time_us.max(Some(time_us));
        newest.seen = seen;
        self.newest_us = self.newest_us.max(time_us);
        Ok(())
    }

    /// Notes that the source is not read for now, or that it is again: each partition has its whole time then.
    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        let now = Instant::now();
        self.partitions.values_mut().for_each(|newest| newest.seen = now);
    }

    fn pass(&mut self, reading: &[Arc<str>]) -> i64 {
        let now = Instant::now();
        for partition in reading {
            self.partitions.entry(partition.clone()).or_insert(Newest { time_us: None, seen: now });
        }
        self.partitions.retain(|partition, _| reading.contains(partition));
        let is_active = |newest: &&Newest| self.paused || now.duration_since(newest.seen) < self.idle_after;
        let active = self.partitions.values().filter(is_active);
        let least = active.map(|newest| newest.time_us).min();
        let newest_us = (self.newest_us > WATERMARK_START).then_some(self.newest_us);
        // `None` within: a partition of which nothing is known yet. `None` as a whole: nothing holds time back.
        if let Some(time_us) = least.unwrap_or(newest_us) {
            self.passed_us = self.passed_us.max(time_us.saturating_sub(self.lateness_us));
        }
        self.passed_us
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampMicrosecondArray;
    use arrow::datatypes::{Field, Schema, SchemaRef};
    use bytes::Bytes;
    use nexus_operators::Error;
    use nexus_operators::batch::{Payload, RowGroup, timestamp_type};
    use nexus_operators::clock::SystemClock;
    use nexus_operators::decode::Steps;

    use super::*;
    use crate::job::channel::channel;

    fn at(times_us: &[i64]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("at", timestamp_type(), true)]));
        let times = TimestampMicrosecondArray::from(times_us.to_vec()).with_timezone("UTC");
        RecordBatch::try_new(schema, vec![Arc::new(times)]).unwrap()
    }

    fn watermark() -> Watermark {
        Watermark::new(Some(0), Duration::from_micros(10), Duration::from_secs(30), None)
    }

    /// A decoder of a file whose types cannot be the declared ones.
    struct Misfit;

    impl Decoder for Misfit {
        fn schema(&self) -> SchemaRef {
            Arc::new(Schema::empty())
        }

        fn decode<'a>(&'a self, _: &'a Chunk) -> Steps<'a> {
            Box::new(std::iter::once(Err(Error::data("column \"n\" is binary in the file"))))
        }
    }

    #[tokio::test]
    async fn a_chunk_that_cannot_be_decoded_is_one_reject() {
        let (read, from) = channel(1000);
        let (quarantine, mut quarantined) = channel(1000);
        let (reports, mut heard) = mpsc::unbounded_channel();
        let stage = DecodeStage {
            name: "files".into(),
            decoder: Arc::new(Misfit),
            from,
            to: Vec::new(),
            quarantine,
            archive: None,
            discovery: None,
            reports,
            watermark: watermark(),
            progress: Arc::new(Progress::new("test", ["files"].into_iter(), [].into_iter())),
            clock: Arc::new(SystemClock),
            reasons: None,
        };
        let group = RowGroup { file_len: 9, pieces: vec![(4, Bytes::from_static(b"PAR1"))], index: 3, first_row: 70 };
        let chunk =
            Chunk { partition: "a.parquet".into(), payload: Payload::RowGroup(group), read_at_us: 0, lag_ms: None };
        read.send(Read::Chunk(chunk)).await.unwrap();
        let closing = Closing { epoch: 1, last: true, end_of_input: true };
        read.send(Read::Barrier { closing, reading: Vec::new(), ended: true, idle: false }).await.unwrap();
        stage.run().await.unwrap();

        let Some(Report::Decoded { counts, .. }) = heard.recv().await else { panic!("nothing was reported") };
        assert_eq!((counts.records, counts.rows, counts.quarantined), (1, 0, 1));
        let Some(Item::Batch(rows)) = quarantined.recv().await else { panic!("nothing was quarantined") };
        let text = arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
        assert!(["a.parquet", "| 70 ", "is binary in the file"].iter().all(|part| text.contains(part)), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_partition_decides_until_it_is_idle() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut watermark = watermark();
        watermark.observe(&a, &at(&[100, 500])).unwrap();
        assert_eq!(watermark.pass(&[a.clone(), b.clone()]), WATERMARK_START, "nothing is known of b");
        watermark.observe(&b, &at(&[200])).unwrap();
        assert_eq!(watermark.pass(&[a.clone(), b.clone()]), 190);
        tokio::time::advance(Duration::from_secs(20)).await;
        watermark.observe(&a, &at(&[600])).unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(watermark.pass(&[a.clone(), b.clone()]), 590, "b has been idle");
        watermark.observe(&b, &at(&[300])).unwrap();
        assert_eq!(watermark.pass(&[a, b]), 590, "it never moves back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_no_silence() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut watermark = watermark();
        watermark.observe(&a, &at(&[500])).unwrap();
        watermark.observe(&b, &at(&[200])).unwrap();
        watermark.pause(true);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(watermark.pass(&[a.clone(), b.clone()]), 190, "nobody could read b");
        watermark.pause(false);
        watermark.observe(&a, &at(&[600])).unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(watermark.pass(&[a.clone(), b.clone()]), 190, "b has its whole time again");
        tokio::time::advance(Duration::from_secs(20)).await;
        watermark.observe(&a, &at(&[600])).unwrap();
        assert_eq!(watermark.pass(&[a, b]), 590, "b has been idle since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_has_ended_holds_nobody_back() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut watermark = watermark();
        watermark.observe(&a, &at(&[100])).unwrap();
        watermark.observe(&b, &at(&[400])).unwrap();
        assert_eq!(watermark.pass(std::slice::from_ref(&b)), 390);
        assert_eq!(watermark.pass(&[]), 390);
    }
}
