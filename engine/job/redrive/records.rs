//! The stage that stands in for a source and its decoder while quarantined rows are sent again.

use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;
use nexus_operators::batch::{Chunk, Payload, Record};
use nexus_operators::clock::SharedClock;
use nexus_operators::decode::{Decoded, Decoder, Reject, decode_whole};
use nexus_operators::position::Cut;
use nexus_operators::quarantine::{self, Quarantined};
use nexus_operators::transform::window::{WATERMARK_END, WATERMARK_START};
use nexus_operators::{ErrorKind, Result};
use tokio::sync::mpsc;

use super::super::archive::Archive;
use super::super::channel::{Barrier, Item, Sender, closed, fan_out};
use super::super::coordinator::Report;
use super::super::decode::quarantined;
use super::super::errors::Reasons;
use super::super::source::{Closing, Command};
use super::Taken;
use crate::state::record::SourceCounts;

/// Sends a source's quarantined records through its decoder.
pub struct RecordStage {
    /// The source's name.
    pub name: String,
    /// The decoder.
    pub decoder: Arc<dyn Decoder>,
    /// The files; nothing if other sources or tables have them.
    pub taken: Option<Taken>,
    /// The channels of the tables that read the source.
    pub to: Vec<Sender<Item>>,
    /// The channel of the source's quarantine.
    pub quarantine: Sender<Item>,
    /// The source's archive, which has these records.
    pub archive: Option<Archive>,
    /// The coordinator's orders. When the coordinator is gone, the stage ends.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
    /// The source's watermark, which stays where it is.
    pub watermark_us: Option<i64>,
    /// Whether the input has ended.
    pub ends: bool,
    /// The time at which records are read and quarantined.
    pub clock: SharedClock,
}

impl RecordStage {
    /// Runs until the coordinator is gone. No order is obeyed before all rows have been sent: a barrier between them
    /// would have their files removed when only some of them had come.
    pub async fn run(mut self) -> Result<()> {
        let mut counts = SourceCounts::default();
        if let Some(taken) = self.taken.take() {
            let mut rows = taken.rows();
            while let Some((again, back)) = rows.next().await? {
                self.put_back(back, &mut counts).await?;
                self.send_again(&again, &mut counts).await?;
            }
        }
        self.reports.send(Report::Ended { source: self.name.clone() }).map_err(|_| closed())?;
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Committed(_) => {
                    let told = Report::Acknowledged { source: self.name.clone() };
                    self.reports.send(told).map_err(|_| closed())?;
                }
                Command::Barrier(closing) => self.barrier(closing, std::mem::take(&mut counts)).await?,
            }
        }
        Ok(())
    }

    async fn put_back(&mut self, back: RecordBatch, counts: &mut SourceCounts) -> Result<()> {
        let rows = back.num_rows() as u64;
        counts.redriven += rows;
        counts.quarantined += rows;
        if rows > 0 { self.quarantine.send(Item::Batch(back)).await } else { Ok(()) }
    }

    async fn send_again(&mut self, rows: &[Quarantined], counts: &mut SourceCounts) -> Result<()> {
        for alike in rows.chunk_by(|a, b| a.partition == b.partition && a.attempts == b.attempts) {
            let Some(first) = alike.first() else { continue };
            let partition: Arc<str> = first.partition.clone().unwrap_or_default().into();
            counts.redriven += alike.len() as u64;
            counts.bytes += alike.iter().map(|row| row.raw.len() as u64).sum::<u64>();
            let Decoded { batches, rejects, .. } = self.decode(&partition, alike)?;
            for batch in batches {
                counts.rows += batch.num_rows() as u64;
                fan_out(&self.to, &Item::Batch(batch)).await?;
            }
            counts.quarantined += rejects.len() as u64;
            let again = rejects.into_iter().map(|r| quarantined(&self.name, &partition, r, first.attempts + 1));
            let again: Vec<_> = again.collect();
            if !again.is_empty() {
                let batch = quarantine::batch(&self.name, &again, self.clock.now_us())?;
                self.quarantine.send(Item::Batch(batch)).await?;
            }
        }
        Ok(())
    }

    /// Decodes records of one partition. Each becomes one row or one reject: bytes that were quarantined as one record
    /// and are several now go back as they are.
    fn decode(&self, partition: &Arc<str>, rows: &[Quarantined]) -> Result<Decoded> {
        let payload = Payload::Records(rows.iter().map(record).collect());
        let chunk = Chunk { partition: partition.clone(), payload, read_at_us: self.clock.now_us(), lag_ms: None };
        let why = match decode_whole(self.decoder.as_ref(), &chunk) {
            Ok(decoded) => {
                let found = decoded.batches.iter().map(RecordBatch::num_rows).sum::<usize>() + decoded.rejects.len();
                if found == rows.len() {
                    return Ok(decoded);
                }
                format!("the bytes hold {found} records, and were quarantined as one")
            }
            Err(error) if error.kind() == ErrorKind::Data => error.to_string(),
            Err(error) => {
                return Err(error.while_doing(format!("could not decode quarantined records of {}", self.name)));
            }
        };
        let mut whole = Decoded::default();
        match rows {
            [row] => whole.rejects.push(Reject {
                offset: row.offset.clone().unwrap_or_default(),
                raw: row.raw.clone(),
                reason: why,
                key: row.key.clone(),
                header: row.header.clone(),
                redrivable: true,
            }),
            rows => {
                for row in rows {
                    let decoded = self.decode(partition, std::slice::from_ref(row))?;
                    whole.batches.extend(decoded.batches);
                    whole.rejects.extend(decoded.rejects);
                }
            }
        }
        Ok(whole)
    }

    async fn barrier(&mut self, closing: Closing, counts: SourceCounts) -> Result<()> {
        let (source, epoch) = (self.name.clone(), closing.epoch);
        let told = Report::Cut { source: source.clone(), epoch, cut: Cut::default() };
        self.reports.send(told).map_err(|_| closed())?;
        let (watermark_us, reasons) = (self.watermark_us, Reasons::default());
        let told = Report::Decoded { source, epoch, counts, watermark_us, reasons, found: Vec::new() };
        self.reports.send(told).map_err(|_| closed())?;
        let ended = self.ends && closing.end_of_input;
        let passed_us = if ended { WATERMARK_END } else { watermark_us.unwrap_or(WATERMARK_START) };
        let barrier = Barrier { epoch, watermark_us: Some(passed_us), last: closing.last };
        if let Some(archive) = &self.archive {
            archive.close(barrier).await?;
        }
        let barrier = Item::Barrier(barrier);
        self.quarantine.send(barrier.clone()).await?;
        fan_out(&self.to, &barrier).await
    }
}

/// Gives a record as its source would have.
fn record(row: &Quarantined) -> Record {
    let data = match &row.header {
        Some(header) => Bytes::from([header.as_ref(), b"\n", row.raw.as_ref()].concat()),
        None => row.raw.clone(),
    };
    Record { offset: row.offset.clone().unwrap_or_default(), key: row.key.clone(), data }
}
