//! What comes into a table: its channels up to the barrier, with late rows set apart.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{filter_record_batch, not};
use futures::future::try_join_all;
use nexus_operators::clock::SharedClock;
use nexus_operators::transform::leaf::LeafSender;
use nexus_operators::transform::rows;
use nexus_operators::transform::window::{WATERMARK_START, Window};
use nexus_operators::{Error, Result};

use super::send_quarantined;
use crate::job::channel::{Barrier, Item, Receiver, Sender, closed};
use crate::job::progress::Progress;

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

/// What arrived in an epoch.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Arrived {
    /// Rows that came.
    pub(super) rows_in: u64,
    /// Those of them that were too late.
    pub(super) late: u64,
    /// Rows of windows that have been given out and are corrected.
    pub(super) correcting: u64,
}

impl Intake {
    /// Feeds the inputs to the query until the barrier has come on all of them.
    ///
    /// Rows of windows that end up to `late_until_us` are late, those of others up to `closed_until_us` correct them.
    pub(super) async fn feed(
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
