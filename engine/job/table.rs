//! The stage of a table: its query runs from barrier to barrier.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::select_all;
use nexus_operators::clock::SharedClock;
use nexus_operators::quarantine::{self, Quarantined};
use nexus_operators::transform::expect::{Rule, judge};
use nexus_operators::transform::leaf::LeafSender;
use nexus_operators::transform::newest::Newest;
use nexus_operators::transform::query::{Running, failed};
use nexus_operators::transform::rows::{self, conform};
use nexus_operators::transform::unique::Unique;
use nexus_operators::transform::window::{WATERMARK_END, WATERMARK_START, Window};
use nexus_operators::transform::{Transform, WINDOWS};
use nexus_operators::{Error, ErrorKind, Result, fail};
use tokio::sync::mpsc;

use super::budget::StateShare;
use super::channel::{Barrier, Item, Receiver, Sender, closed, fan_out};
use super::coordinator::Report;
use super::progress::Progress;
use super::redrive::Taken;
use super::source::EpochLoad;
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

/// The inputs of a table.
pub struct Intake {
    /// The table's name.
    pub table: String,
    /// The channels, in the order of the query's inputs.
    pub inputs: Vec<Input>,
    /// The quarantine of late rows; without it they are dropped.
    pub quarantine: Option<Sender<Item>>,
    /// Why late rows cannot be used.
    pub late_reason: &'static str,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// The time of quarantined rows.
    pub clock: SharedClock,
}

/// One input of a table.
pub struct Input {
    /// The channel.
    pub from: Receiver<Item>,
    /// The window that a row falls into, if the query has windows; of a join, its time.
    pub window: Option<Window>,
}

/// What happens to rows behind the query.
pub struct Outlet {
    /// The table's name.
    pub table: String,
    /// The columns of the table.
    pub schema: SchemaRef,
    /// The rules that a row must meet.
    pub rules: Vec<Rule>,
    /// The keys that have been seen.
    pub unique: Option<Unique>,
    /// The newest row of each key, where rows may replace those before.
    pub newest: Option<Newest>,
    /// What an epoch may add to the keys, in bytes, before it is closed: its barrier frees those that are old enough.
    pub state_of_epoch_max: usize,
    /// What all sources share.
    pub load: Arc<EpochLoad>,
    /// The channels of sinks and of the tables that read this one.
    pub to: Vec<Sender<Item>>,
    /// The quarantine of rows that break a rule.
    pub quarantine: Option<Sender<Item>>,
    /// The channel of the sink to Postgres, if there is one: it alone takes again what Postgres has refused.
    pub postgres: Option<Sender<Item>>,
    /// What the job tells of itself.
    pub progress: Arc<Progress>,
    /// The time of quarantined rows.
    pub clock: SharedClock,
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

/// What arrived in an epoch.
#[derive(Debug, Default, Clone, Copy)]
struct Arrived {
    rows_in: u64,
    late: u64,
    /// Rows of windows that have been given out and are corrected.
    correcting: u64,
}

impl Intake {
    /// Feeds the inputs to the query until the barrier has come on all of them.
    ///
    /// Rows of windows that end up to `late_until_us` are late, those of others up to `closed_until_us` correct them.
    async fn feed(
        &mut self,
        senders: Vec<LeafSender>,
        late_until_us: i64,
        closed_until_us: i64,
    ) -> Result<(Arrived, Barrier)> {
        let Self { table, inputs, quarantine, late_reason, progress, clock } = self;
        let (table, quarantine, late_reason, told) = (&*table, &*quarantine, *late_reason, (&**progress, &*clock));
        let fed = inputs.iter_mut().zip(senders).map(|(input, sender)| async move {
            let mut arrived = Arrived::default();
            loop {
                match input.from.recv().await.ok_or_else(closed)? {
                    Item::Barrier(barrier) => return Ok::<_, Error>((arrived, barrier)),
                    Item::Refused(_) => return Err(Error::internal("refused rows have come to a table")),
                    Item::Batch(batch) => {
                        arrived.rows_in += batch.num_rows() as u64;
                        let (batch, late) = on_time(batch, input.window.as_ref(), late_until_us)?;
                        if let Some(late) = late {
                            arrived.late += late.num_rows() as u64;
                            if let Some(quarantine) = quarantine {
                                let rows = rows::late(&late, late_reason)?;
                                send_quarantined(table, &rows, quarantine, told).await?;
                            }
                        }
                        if let Some(window) = input.window.as_ref().filter(|_| late_until_us < closed_until_us) {
                            arrived.correcting += window.closed(&batch, closed_until_us)?.true_count() as u64;
                        }
                        sender.send(batch).await;
                    }
                }
            }
        });
        let mut total = Arrived::default();
        let mut aligned: Option<Barrier> = None;
        for (arrived, barrier) in try_join_all(fed).await? {
            total.rows_in += arrived.rows_in;
            total.late += arrived.late;
            total.correcting += arrived.correcting;
            let watermark_us = match (aligned.and_then(|known| known.watermark_us), barrier.watermark_us) {
                (Some(known), Some(here)) => Some(known.min(here)),
                (known, here) => known.or(here),
            };
            aligned = Some(Barrier { watermark_us, ..barrier });
        }
        let barrier = aligned.ok_or_else(|| Error::internal("the table reads no stream"))?;
        Ok((total, barrier))
    }
}

/// Parts the rows of windows that end up to a time, or whose time has passed, from the others.
fn on_time(
    batch: RecordBatch,
    window: Option<&Window>,
    late_until_us: i64,
) -> Result<(RecordBatch, Option<RecordBatch>)> {
    let Some(window) = window.filter(|_| late_until_us > WATERMARK_START) else { return Ok((batch, None)) };
    let late = window.closed(&batch, late_until_us)?;
    if late.true_count() == 0 {
        return Ok((batch, None));
    }
    Ok((filter_record_batch(&batch, &not(&late)?)?, Some(filter_record_batch(&batch, &late)?)))
}

/// Tells whether Postgres has refused a row, which all other sinks have taken.
fn is_refused(row: &Quarantined) -> bool {
    row.rule == quarantine::REFUSED_RULE
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

impl Outlet {
    async fn pass(&mut self, batch: RecordBatch, tally: &mut Tally) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = conform(&batch, &self.schema)?;
        tally.counts.rows_sql += batch.num_rows() as u64;
        self.judge(batch, 0, tally).await
    }

    /// Takes rows to the rules once more that broke one.
    async fn send_again(&mut self, rows: &[Quarantined], tally: &mut Tally) -> Result<()> {
        for alike in rows.chunk_by(|a, b| (a.attempts, is_refused(a)) == (b.attempts, is_refused(b))) {
            let documents: Vec<_> = alike.iter().map(|row| row.raw.clone()).collect();
            match (rows::from_json(&documents, &self.schema), alike) {
                (Ok(batch), [first, ..]) if is_refused(first) => {
                    let rows = alike.len() as u64;
                    tally.counts.redriven += rows;
                    match &self.postgres {
                        Some(postgres) => {
                            tally.counts.resent += rows;
                            let batch = quarantine::with_attempts(&batch, first.attempts + 1)?;
                            postgres.send(Item::Batch(batch)).await?;
                        }
                        // The file has no such sink any more: nobody else may have them twice.
                        None => {
                            tally.counts.quarantined += rows;
                            self.quarantine(alike).await?;
                        }
                    }
                }
                (Ok(batch), [first, ..]) => {
                    tally.counts.redriven += alike.len() as u64;
                    self.judge(batch, first.attempts + 1, tally).await?;
                }
                (Err(error), [row]) if error.kind() == ErrorKind::Data => {
                    tally.counts.redriven += 1;
                    tally.counts.quarantined += 1;
                    let (reason, rule, attempts) = (error.to_string(), "redrive".to_owned(), row.attempts + 1);
                    self.quarantine(&[Quarantined { reason, rule, attempts, ..row.clone() }]).await?;
                }
                (Err(error), alike) if error.kind() == ErrorKind::Data => {
                    for row in alike {
                        Box::pin(self.send_again(std::slice::from_ref(row), tally)).await?;
                    }
                }
                (Err(error), _) => return Err(error),
                (Ok(_), []) => {}
            }
        }
        Ok(())
    }

    /// Puts rows back that cannot be sent again.
    async fn put_back(&mut self, back: RecordBatch, tally: &mut Tally) -> Result<()> {
        let rows = back.num_rows() as u64;
        tally.counts.redriven += rows;
        tally.counts.quarantined += rows;
        match &self.quarantine {
            Some(quarantine) if rows > 0 => quarantine.send(Item::Batch(back)).await,
            _ => Ok(()),
        }
    }

    async fn quarantine(&self, rows: &[Quarantined]) -> Result<()> {
        let told = (&*self.progress, &self.clock);
        match &self.quarantine {
            Some(quarantine) if !rows.is_empty() => send_quarantined(&self.table, rows, quarantine, told).await,
            _ => Ok(()),
        }
    }

    /// Passes on what meets the rules and has not been there before.
    async fn judge(&mut self, batch: RecordBatch, attempts: u32, tally: &mut Tally) -> Result<()> {
        let judged = judge(&self.table, &self.rules, batch, attempts)?;
        let counts = &mut tally.counts;
        counts.dropped += judged.dropped;
        counts.quarantined += judged.quarantined.len() as u64;
        tally.rules.iter_mut().zip(judged.broken).for_each(|(total, broken)| *total += broken);
        self.quarantine(&judged.quarantined).await?;
        let mut kept = judged.kept;
        if let Some(unique) = &mut self.unique {
            let before = kept.num_rows();
            kept = unique.first_seen(kept)?;
            counts.duplicates += (before - kept.num_rows()) as u64;
            let open_bytes = unique.open_bytes();
            self.close_if_full(open_bytes);
        }
        if let Some(newest) = &mut self.newest {
            let offered = newest.offer(&kept, attempts)?;
            counts.duplicates += offered.older;
            counts.quarantined += offered.unfit.len() as u64;
            // Rows that are on their way come before the barrier does, and narrow ones take several times as much here.
            if newest.open_bytes() > self.state_of_epoch_max / 4 {
                self.load.fill();
            }
            return self.quarantine(&offered.unfit).await;
        }
        self.send(kept, tally).await
    }

    /// Passes on the rows of an epoch that are the newest of their keys.
    async fn give_newest(&mut self, epoch: u64, tally: &mut Tally) -> Result<()> {
        let Some(newest) = &mut self.newest else { return Ok(()) };
        let closed = newest.close(epoch)?;
        tally.counts.duplicates += closed.older;
        tally.counts.quarantined += closed.unfit.len() as u64;
        self.quarantine(&closed.unfit).await?;
        for batch in closed.rows {
            self.send(batch, tally).await?;
        }
        Ok(())
    }

    async fn send(&self, kept: RecordBatch, tally: &mut Tally) -> Result<()> {
        let rows = kept.num_rows() as u64;
        tally.counts.rows_out += rows;
        if rows == 0 {
            return Ok(());
        }
        if let Some(progress) = self.progress.tables.get(&self.table) {
            progress.rows_out.fetch_add(rows, Ordering::Relaxed);
        }
        self.progress.show(&self.table, &kept);
        fan_out(&self.to, &Item::Batch(kept)).await
    }

    /// Asks for the end of the epoch when it has added more to a state than it may.
    fn close_if_full(&self, open_bytes: usize) {
        if open_bytes > self.state_of_epoch_max {
            self.load.fill();
        }
    }

    async fn close(&self, barrier: Barrier) -> Result<()> {
        if let Some(quarantine) = &self.quarantine {
            quarantine.send(Item::Barrier(barrier)).await?;
        }
        fan_out(&self.to, &Item::Barrier(barrier)).await
    }
}
