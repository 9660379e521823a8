//! How long an epoch takes, step by step: from the barrier at the sources to the commit by all sinks.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::state::record::CommitRecord;

/// Epochs that are remembered once they are committed: some minutes of them, as a rule.
const EPOCHS_MAX: usize = 50;

/// Epochs that may wait for who follows them: traces, which must not fill the memory while nobody takes them.
const FOLLOWED_MAX: usize = 64;

/// The bounds of durations that are counted, in seconds: from what a folder takes to what an outage does.
pub const BOUNDS_S: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// The steps of an epoch, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// All sources have cut at the barrier.
    Cut,
    /// All decoders have passed it.
    Decode,
    /// All tables have passed it.
    Transform,
    /// All sinks have prepared.
    Prepare,
    /// The commit record is written.
    Record,
    /// All sinks have committed.
    Commit,
}

/// All steps.
pub const STEPS: [Step; 6] = [Step::Cut, Step::Decode, Step::Transform, Step::Prepare, Step::Record, Step::Commit];

/// When a stage was done with its part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The step.
    pub step: Step,
    /// The source, the table or the sink; the pipeline for its record.
    pub of: String,
    /// Since the barrier.
    pub at: Duration,
}

/// An epoch that all sinks have committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochTold {
    /// Its number.
    pub epoch: u64,
    /// The process that has run it.
    pub generation: u64,
    /// When it was closed, in microseconds since the Unix epoch.
    pub closed_at_us: i64,
    /// What its stages have done, in the order in which they were done.
    pub marks: Vec<Mark>,
    /// Records that were read.
    pub records: u64,
    /// Rows that the tables have given.
    pub rows_out: u64,
    /// Records and rows that went to the quarantine.
    pub quarantined: u64,
    /// Encoded bytes that were stored.
    pub bytes: u64,
}

/// How often a step took how long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Durations {
    /// Up to each of [`BOUNDS_S`], and longer.
    pub counts: [u64; BOUNDS_S.len() + 1],
    /// All of them.
    pub sum: Duration,
}

/// The clock of the epochs that are not committed by all sinks; the coordinator's.
#[derive(Debug, Default)]
pub struct EpochClock(VecDeque<(Instant, EpochTold)>);

/// What is told of epochs that are committed. The locks are held to add one or to copy, so they need not be async.
#[derive(Debug, Default)]
pub struct Epochs {
    recent: Mutex<VecDeque<EpochTold>>,
    durations: Mutex<[Durations; STEPS.len()]>,
    /// Who is told of each. What does not fit is dropped.
    follower: Mutex<Option<mpsc::Sender<EpochTold>>>,
}

impl Step {
    /// Gives its name.
    pub fn name(self) -> &'static str {
        match self {
            Step::Cut => "cut",
            Step::Decode => "decode",
            Step::Transform => "transform",
            Step::Prepare => "prepare",
            Step::Record => "record",
            Step::Commit => "commit",
        }
    }
}

impl EpochTold {
    /// Gives how long each step took: from when the one before was done by all until this one was.
    pub fn steps(&self) -> [(Step, Duration); STEPS.len()] {
        let mut before = Duration::ZERO;
        STEPS.map(|step| {
            let done = self.marks.iter().filter(|mark| mark.step == step).map(|mark| mark.at).max();
            let done = done.unwrap_or_default().max(before);
            let took = done - before;
            before = done;
            (step, took)
        })
    }

    /// Gives the time from the barrier to the last commit.
    pub fn total(&self) -> Duration {
        self.marks.iter().map(|mark| mark.at).max().unwrap_or_default()
    }
}

impl EpochClock {
    /// Starts the clock of an epoch at its barrier.
    pub fn start(&mut self, generation: u64, epoch: u64, now_us: i64) {
        let told = EpochTold {
            epoch,
            generation,
            closed_at_us: now_us,
            marks: Vec::new(),
            records: 0,
            rows_out: 0,
            quarantined: 0,
            bytes: 0,
        };
        self.0.push_back((Instant::now(), told));
    }

    /// Notes that a stage is done with its part of a step.
    pub fn mark(&mut self, epoch: u64, step: Step, of: &str) {
        // An epoch of an earlier process has no clock.
        if let Some((started, told)) = self.0.iter_mut().find(|(_, told)| told.epoch == epoch) {
            told.marks.push(Mark { step, of: of.to_owned(), at: started.elapsed() });
        }
    }

    /// Notes what an epoch's record counts.
    pub fn recorded(&mut self, record: &CommitRecord) {
        self.mark(record.epoch, Step::Record, &record.pipeline);
        let Some((_, told)) = self.0.iter_mut().find(|(_, told)| told.epoch == record.epoch) else { return };
        told.records = record.sources.values().map(|source| source.counts.records).sum();
        told.rows_out = record.tables.values().map(|table| table.counts.rows_out).sum();
        let of_sources: u64 = record.sources.values().map(|source| source.counts.quarantined).sum();
        let of_tables: u64 = record.tables.values().map(|table| table.counts.quarantined).sum();
        told.quarantined = of_sources + of_tables;
        told.bytes = record.sinks.values().map(|prepared| prepared.bytes).sum();
    }

    /// Gives the epochs up to one that all sinks have committed.
    pub fn committed(&mut self, done: u64) -> Vec<EpochTold> {
        let behind = self.0.iter().position(|(_, told)| told.epoch > done).unwrap_or(self.0.len());
        self.0.drain(..behind).map(|(_, told)| told).collect()
    }
}

impl Epochs {
    /// Adds an epoch.
    pub fn add(&self, told: EpochTold) {
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        for (durations, (_, took)) in durations.iter_mut().zip(told.steps()) {
            durations.add(took);
        }
        drop(durations);
        if let Some(follower) = &*self.follower.lock().unwrap_or_else(PoisonError::into_inner)
            && follower.try_send(told.clone()).is_err()
        {
            tracing::warn!(epoch = told.epoch, "the trace of an epoch was dropped: those before it are not taken yet");
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.truncate(EPOCHS_MAX - 1);
        recent.push_front(told);
    }

    /// Has a receiver told of each epoch from now on; the one before is told of no more.
    pub fn follow(&self) -> mpsc::Receiver<EpochTold> {
        let (sender, receiver) = mpsc::channel(FOLLOWED_MAX);
        *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Ends what [`follow`](Self::follow) has begun: behind what waits, nothing comes.
    pub fn unfollow(&self) {
        *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Gives those that were committed last, the newest first.
    pub fn recent(&self) -> Vec<EpochTold> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Gives how long each of [`STEPS`] took.
    pub fn durations(&self) -> [Durations; STEPS.len()] {
        *self.durations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Durations {
    fn add(&mut self, took: Duration) {
        let place = BOUNDS_S.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS_S.len());
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum += took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_step_lasts_from_the_end_of_the_one_before() {
        let mut clock = EpochClock::default();
        clock.start(1, 7, 0);
        let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
        clock.mark(7, Step::Cut, "a");
        pass(10).await;
        clock.mark(7, Step::Decode, "a");
        pass(20).await;
        clock.mark(7, Step::Transform, "bronze.a");
        clock.mark(7, Step::Prepare, "bronze.a/parquet");
        pass(5).await;
        clock.mark(7, Step::Cut, "b");
        clock.recorded(&CommitRecord { epoch: 7, ..CommitRecord::default() });
        pass(100).await;
        clock.mark(7, Step::Commit, "bronze.a/parquet");
        assert!(clock.committed(6).is_empty());
        let told = clock.committed(8).remove(0);
        let took: Vec<_> = told.steps().iter().map(|(step, took)| (step.name(), took.as_millis())).collect();
        let expected = [("cut", 35), ("decode", 0), ("transform", 0), ("prepare", 0), ("record", 0), ("commit", 100)];
        assert_eq!(took, expected);
        assert_eq!(told.total().as_millis(), 135);
        let epochs = Epochs::default();
        epochs.add(told);
        let durations = epochs.durations();
        assert_eq!((durations[0].counts[2], durations[5].sum.as_millis()), (1, 100));
    }
}
