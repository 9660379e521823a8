//! What comes behind the record of an epoch: its commits are heard of, sources are told, and old records folded.

use std::collections::BTreeMap;

use nexus_operators::position::Cut;
use nexus_operators::{Error, ErrorKind, Result, fail};

use super::channel::closed;
use super::coordinator::{Coordinator, Report};
use super::ledger::OpenEpoch;
use super::progress::Standing;
use super::source::Command;
use super::steps::Step;
use crate::state::history;

impl Coordinator {
    /// Takes a report that is not part of the epoch being closed.
    pub(super) async fn hear(&mut self, report: Report) -> Result<()> {
        match report {
            Report::Ended { source } => {
                self.ledger.ended.insert(source, true);
            }
            Report::Acknowledged { .. } => {
                self.ledger.owed = self.ledger.owed.saturating_sub(1);
                fail::point("after_acknowledge")?;
            }
            Report::Committed { sink, epoch, refused } => {
                self.epochs.mark(epoch, Step::Commit, &sink);
                self.ledger.land(sink, epoch, refused);
                self.ledger.release(&self.state.refused);
            }
            other => return Err(Error::internal(format!("a report came out of turn: {other:?}"))),
        }
        // Whatever comes last: behind a commit there may be another report, and then none for long.
        if self.reports.is_empty() { self.settle().await } else { Ok(()) }
    }

    /// Tells the sources of epochs that every sink has committed.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let done = self.ledger.committed_by_all(self.sinks.keys());
        if self.ledger.open.front().is_none_or(|open| open.epoch > done) {
            self.tell_standing();
            return Ok(());
        }
        fail::point("before_committed_note")?;
        self.store.note_committed(self.generation, &self.ledger.committed).await?;
        fail::point("after_committed_note")?;
        while let Some(open) = self.ledger.open.pop_front_if(|open| open.epoch <= done) {
            fail::point("before_acknowledge")?;
            self.acknowledge(open.cuts)?;
        }
        self.committed_at_us = Some(self.clock.now_us());
        self.epochs.committed(done).into_iter().for_each(|told| self.progress.epochs.add(told));
        self.tell_standing();
        self.compact(done.min(self.state.epoch)).await
    }

    /// Tells those who watch the job where the commits stand.
    pub(super) fn tell_standing(&self) {
        let oldest = self.ledger.open.front();
        let committed = |name: &String| self.ledger.committed.get(name).copied().unwrap_or(0);
        let behind =
            |open: &OpenEpoch| self.sinks.keys().filter(|name| committed(name) < open.epoch).cloned().collect();
        self.progress.set_standing(Standing {
            open_since: oldest.map(|open| open.closed_at).or(self.closing_since),
            behind: oldest.map(behind).unwrap_or_default(),
            spooled_bytes: self.ledger.spooled_bytes(),
            committed_at_us: self.committed_at_us,
        });
    }

    /// Tells the sources that all rows up to these cuts are committed.
    pub(super) fn acknowledge(&mut self, cuts: BTreeMap<String, Cut>) -> Result<()> {
        for (name, cut) in cuts {
            if let Some(source) = self.sources.get(&name) {
                source.send(Command::Committed(cut)).map_err(|_| closed())?;
                self.ledger.owed += 1;
            }
        }
        Ok(())
    }

    /// Folds old records when it is time. A store that is away is no reason to stop: the next time will do.
    async fn compact(&mut self, done: u64) -> Result<()> {
        if !history::is_due(self.ledger.compacted, done) {
            return Ok(());
        }
        self.ledger.compacted = done;
        match self.store.compact(self.generation, done).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "could not fold old commit records; they stay until the next time");
                Ok(())
            }
            compacted => compacted,
        }
    }
}
