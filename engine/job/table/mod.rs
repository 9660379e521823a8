//! The stage of a table: its query runs from barrier to barrier.

mod intake;
mod outlet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream::select_all;
use nexus_operators::clock::SharedClock;
use nexus_operators::quarantine::{self, Quarantined};
use nexus_operators::transform::newest::Newest;
use nexus_operators::transform::query::{Running, failed};
use nexus_operators::transform::unique::Unique;
use nexus_operators::transform::window::{WATERMARK_END, WATERMARK_START};
use nexus_operators::transform::{Transform, WINDOWS};
use nexus_operators::{Error, Result, fail};
use tokio::sync::mpsc;

pub use intake::{Input, Intake};
pub use outlet::Outlet;

use super::budget::StateShare;
use super::channel::{Barrier, Item, Sender, closed};
use super::coordinator::Report;
use super::progress::Progress;
use super::redrive::Taken;
use crate::plan::reference::ReferenceView;
use crate::state::record::{Basis, TableCounts, TableRecord, TableState};
use crate::state::snapshot::Snapshots;

/// Runs one table.
pub struct TableStage {
    /// The table's name, `tier.table`.
    pub name: String,
    /// The query.
    pub transform: Transform,
    /// What arrives.
    pub intake: Intake,
    /// What leaves.
    pub outlet: Outlet,
    /// Where state is kept; nothing if the table has none.
    pub memory: Option<Memory>,
    /// Rows that broke a rule of the table and are sent again, in the first epoch.
    pub redriven: Option<Taken>,
    /// Whether the result carries event time. Whoever reads one without it waits for the end of input.
    pub carries_time: bool,
    /// The reference tables that the query reads.
    pub references: Vec<Arc<ReferenceView>>,
    /// The epoch that is open, or about to be.
    pub open: u64,
    /// The coordinator's ear.
    pub reports: mpsc::UnboundedSender<Report>,
}

/// Where a table's state is kept.
pub struct Memory {
    /// The query and the rule of uniqueness that the state belongs to.
    pub query: String,
    /// What of them the state rests on.
    pub basis: Basis,
    /// What outlives an epoch of the query, by its kind.
    pub states: BTreeMap<&'static str, Snapshots>,
    /// Remembered keys.
    pub keys: Snapshots,
    /// The table's part of the memory for state.
    pub share: StateShare,
}

/// What is counted while an epoch runs.
#[derive(Debug, Default)]
struct Tally {
    counts: TableCounts,
    rules: Vec<u64>,
}

impl TableStage {
    /// Runs until the last barrier.
    pub async fn run(mut self) -> Result<()> {
        loop {
            let barrier = self.epoch().await.map_err(|e| e.while_doing(format!("table {}", self.name)))?;
            if barrier.last {
                return Ok(());
            }
        }
    }

    async fn epoch(&mut self) -> Result<Barrier> {
        let mut tally = Tally { rules: vec![0; self.outlet.rules.len()], ..Tally::default() };
        for reference in &self.references {
            if reference.turn_to(self.open) {
                self.transform.refresh();
            }
        }
        if let Some(taken) = self.redriven.take() {
            let mut rows = taken.rows();
            while let Some((again, back)) = rows.next().await? {
                self.outlet.put_back(back, &mut tally).await?;
                self.outlet.send_again(&again, &mut tally).await?;
            }
        }
        let closed_until_us = self.transform.closed_until_us();
        let late_until_us = self.transform.forgotten_until_us().unwrap_or(closed_until_us);
        let Running { inputs, rows } = self.transform.start().await?;
        let numbered = rows.into_iter().enumerate();
        let mut rows = select_all(numbered.map(|(stream, rows)| rows.map(move |batch| (stream, batch))));
        let arriving = self.intake.feed(inputs, late_until_us, closed_until_us);
        // The plan may end before its input does (a join with nothing): what it held must not hold the input back.
        let leaving = async {
            while let Some((stream, batch)) = rows.next().await {
                match self.transform.absorb(stream, batch.map_err(failed)?)? {
                    Some(batch) => self.outlet.pass(batch, &mut tally).await?,
                    None => {
                        self.outlet.close_if_full(self.transform.open_bytes());
                        hold(&mut self.memory, &self.transform, &self.outlet)?;
                    }
                }
            }
            drop(rows);
            self.transform.disconnect();
            Ok::<_, Error>(())
        };
        // Both run side by side: the query takes rows while they arrive.
        let ((arrived, barrier), ()) = futures::future::try_join(arriving, leaving).await?;
        tally.counts.rows_in = arrived.rows_in;
        tally.counts.late = arrived.late;
        tally.counts.correcting = arrived.correcting;

        let watermark_us = barrier.watermark_us.unwrap_or(WATERMARK_START);
        if let (Some(progress), Some(us)) = (self.outlet.progress.tables.get(&self.name), barrier.watermark_us) {
            progress.watermark.set(us);
        }
        let mut closing = self.transform.close(barrier.epoch, watermark_us).await?;
        while let Some(batch) = closing.next().await? {
            self.outlet.pass(batch, &mut tally).await?;
        }
        drop(closing);
        self.outlet.give_newest(barrier.epoch, &mut tally).await?;
        self.report(&barrier, watermark_us, tally).await?;
        let forwarded = Barrier { watermark_us: self.forward(barrier.watermark_us)?, ..barrier };
        self.outlet.close(forwarded).await?;
        self.open = barrier.epoch + 1;
        Ok(barrier)
    }

    /// Gives the watermark of the result from the watermark of the input.
    fn forward(&self, watermark_us: Option<i64>) -> Result<Option<i64>> {
        match watermark_us {
            None => Ok(None),
            Some(WATERMARK_END) => Ok(Some(WATERMARK_END)),
            Some(watermark_us) if self.carries_time => self.transform.earliest_open_us(watermark_us).map(Some),
            Some(_) => Ok(Some(WATERMARK_START)),
        }
    }

    async fn report(&mut self, barrier: &Barrier, watermark_us: i64, tally: Tally) -> Result<()> {
        let broken = self.outlet.rules.iter().zip(&tally.rules).filter(|(_, count)| **count > 0);
        let rules: BTreeMap<_, _> = broken.map(|(rule, count)| (rule.name.clone(), *count)).collect();
        // Rows that lie further back may still come out, and repeat a key.
        let behind_us = self.transform.earliest_open_us(watermark_us)?;
        let state = self.snapshot(barrier.epoch, behind_us).await?;
        let record = TableRecord { counts: tally.counts, rules, state, schema: None };
        let told = Report::Table { table: self.name.clone(), epoch: barrier.epoch, record: Box::new(record) };
        self.reports.send(told).map_err(|_| closed())
    }

    async fn snapshot(&mut self, epoch: u64, behind_us: i64) -> Result<Option<TableState>> {
        hold(&mut self.memory, &self.transform, &self.outlet)?;
        let Some(memory) = &mut self.memory else { return Ok(None) };
        fail::point("before_snapshot")?;
        let mut sealed = self.transform.seal(epoch).await?;
        if let Some(newest) = &mut self.outlet.newest {
            sealed.push((WINDOWS, newest.seal(epoch, behind_us)?));
        }
        let keys = match &mut self.outlet.unique {
            Some(unique) => memory.save_keys(unique, epoch, behind_us).await?,
            None => BTreeMap::new(),
        };
        fail::point("after_keys_snapshot")?;
        let closed_until_us = self.transform.closed_until_us();
        let newest = self.outlet.newest.as_ref().map(Newest::forgotten_until_us);
        let forgotten_until_us = newest.or_else(|| self.transform.forgotten_until_us());
        let (query, basis) = (memory.query.clone(), Some(memory.basis.clone()));
        let mut state = TableState { query, basis, closed_until_us, forgotten_until_us, keys, ..TableState::default() };
        for (kind, sealed) in sealed {
            let kept = memory.states.get_mut(kind).ok_or_else(|| Error::internal(format!("nothing keeps {kind}")))?;
            let (files, added) = kept.save(epoch, sealed).await?;
            if let Some(added) = added {
                match &mut self.outlet.newest {
                    Some(newest) if kind == WINDOWS => newest.adopt(epoch, added)?,
                    _ => self.transform.adopt(kind, epoch, added)?,
                }
            }
            if kind == WINDOWS {
                state.windows = files;
            } else if !files.is_empty() {
                state.joins.insert(kind.to_owned(), files);
            }
        }
        fail::point("after_snapshot")?;
        Ok(Some(state))
    }
}

/// Notes what the state of a table takes, which must not be more than its share.
fn hold(memory: &mut Option<Memory>, transform: &Transform, outlet: &Outlet) -> Result<()> {
    let Some(memory) = memory else { return Ok(()) };
    let keys = outlet.unique.as_ref().map_or(0, Unique::size_bytes);
    let newest = outlet.newest.as_ref().map_or(0, Newest::size_bytes);
    let bytes = transform.size_bytes() + keys + newest;
    if let Some(progress) = outlet.progress.tables.get(&outlet.table) {
        progress.state_bytes.store(bytes as u64, Ordering::Relaxed);
    }
    memory.share.hold(bytes)
}

impl Memory {
    /// Makes the remembered keys durable, and gives the files that they consist of.
    async fn save_keys(&mut self, unique: &mut Unique, epoch: u64, watermark_us: i64) -> Result<BTreeMap<u64, String>> {
        let (files, added) = self.keys.save(epoch, unique.seal(epoch, watermark_us)?).await?;
        if let Some(added) = added {
            unique.adopt(epoch, added)?;
        }
        Ok(files)
    }
}

async fn send_quarantined(
    table: &str,
    rows: &[Quarantined],
    quarantine: &Sender<Item>,
    (progress, clock): (&Progress, &SharedClock),
) -> Result<()> {
    progress.note_quarantined(table, rows, clock);
    quarantine.send(Item::Batch(quarantine::batch(table, rows, clock.now_us())?)).await
}
