//! What leaves a table: rows that meet its rules, each once, to its sinks and readers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use nexus_operators::clock::SharedClock;
use nexus_operators::quarantine::{self, Quarantined};
use nexus_operators::transform::expect::{Rule, judge};
use nexus_operators::transform::newest::Newest;
use nexus_operators::transform::rows::{self, conform};
use nexus_operators::transform::unique::Unique;
use nexus_operators::{ErrorKind, Result};

use super::{Tally, send_quarantined};
use crate::job::channel::{Barrier, Item, Sender, fan_out};
use crate::job::progress::Progress;
use crate::job::source::EpochLoad;

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

/// Tells whether Postgres has refused a row, which all other sinks have taken.
fn is_refused(row: &Quarantined) -> bool {
    row.rule == quarantine::REFUSED_RULE
}

impl Outlet {
    pub(super) async fn pass(&mut self, batch: RecordBatch, tally: &mut Tally) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = conform(&batch, &self.schema)?;
        tally.counts.rows_sql += batch.num_rows() as u64;
        self.judge(batch, 0, tally).await
    }

    /// Takes rows to the rules once more that broke one.
    pub(super) async fn send_again(&mut self, rows: &[Quarantined], tally: &mut Tally) -> Result<()> {
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
    pub(super) async fn put_back(&mut self, back: RecordBatch, tally: &mut Tally) -> Result<()> {
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
    pub(super) async fn give_newest(&mut self, epoch: u64, tally: &mut Tally) -> Result<()> {
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
    pub(super) fn close_if_full(&self, open_bytes: usize) {
        if open_bytes > self.state_of_epoch_max {
            self.load.fill();
        }
    }

    pub(super) async fn close(&self, barrier: Barrier) -> Result<()> {
        if let Some(quarantine) = &self.quarantine {
            quarantine.send(Item::Barrier(barrier)).await?;
        }
        fan_out(&self.to, &Item::Barrier(barrier)).await
    }
}
