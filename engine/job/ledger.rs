//! What the coordinator knows of epochs that are recorded: which sink has committed which.

use std::collections::{BTreeMap, VecDeque};

use nexus_operators::Error;
use nexus_operators::position::Cut;
use nexus_operators::sink::RefusedUpto;
use tokio::time::Instant;

/// Which epochs have been committed by which sink.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Up to which epoch each sink has committed, and records have the rows that were refused in it.
    pub committed: BTreeMap<String, u64>,
    /// Up to which epoch each sink has landed what it could.
    landed: BTreeMap<String, u64>,
    /// Epochs that a sink has landed, and the place up to which records must have its refused rows before the epoch
    /// counts as committed, oldest first.
    held: BTreeMap<String, VecDeque<(u64, RefusedUpto)>>,
    /// Recorded epochs that some sink has not committed, oldest first.
    pub open: VecDeque<OpenEpoch>,
    /// Sources that have ended.
    pub ended: BTreeMap<String, bool>,
    /// Acknowledgements that sources owe.
    pub owed: usize,
    /// Up to where epochs were committed when old records were last folded.
    pub compacted: u64,
}

/// An epoch that some sink has not committed.
#[derive(Debug)]
pub struct OpenEpoch {
    /// Its number.
    pub epoch: u64,
    /// When it was closed; when this process started, for one of an earlier process.
    pub closed_at: Instant,
    /// What the sources are told once it is committed; empty for an epoch of an earlier process.
    pub cuts: BTreeMap<String, Cut>,
    /// Prepared bytes by sink.
    pub bytes: BTreeMap<String, u64>,
}

impl Ledger {
    /// Starts from what an earlier process has left.
    pub fn new(committed: BTreeMap<String, u64>, open: VecDeque<OpenEpoch>) -> Self {
        Self { landed: committed.clone(), committed, open, ..Self::default() }
    }

    /// Notes that a sink has committed an epoch, and that its refused rows up to a place are on their way.
    pub fn land(&mut self, sink: String, epoch: u64, refused: RefusedUpto) {
        self.landed.insert(sink.clone(), epoch);
        self.held.entry(sink).or_default().push_back((epoch, refused));
    }

    /// Counts epochs as committed whose refused rows records have.
    pub fn release(&mut self, recorded: &BTreeMap<String, RefusedUpto>) {
        for (sink, held) in &mut self.held {
            let upto = recorded.get(sink).copied().unwrap_or_default();
            while let Some((epoch, _)) = held.pop_front_if(|(_, refused)| *refused <= upto) {
                self.committed.insert(sink.clone(), epoch);
            }
        }
    }

    /// Tells whether refused rows are on their way that no record has.
    pub fn holds_refused(&self) -> bool {
        self.held.values().any(|held| !held.is_empty())
    }

    /// Tells whether all sinks have landed an epoch.
    pub fn landed_by_all<'a>(&self, mut sinks: impl Iterator<Item = &'a String>, epoch: u64) -> bool {
        sinks.all(|name| self.landed.get(name).copied().unwrap_or(0) >= epoch)
    }

    /// Gives the newest epoch that all sinks have committed.
    pub fn committed_by_all<'a>(&self, sinks: impl Iterator<Item = &'a String>) -> u64 {
        sinks.map(|name| self.committed.get(name).copied().unwrap_or(0)).min().unwrap_or(u64::MAX)
    }

    /// Gives the bytes that are prepared and not committed.
    pub fn spooled_bytes(&self) -> u64 {
        let waiting = self.open.iter().flat_map(|open| {
            let landed = |sink: &String| self.landed.get(sink).copied().unwrap_or(0);
            open.bytes.iter().filter(move |(sink, _)| landed(sink) < open.epoch).map(|(_, bytes)| *bytes)
        });
        waiting.sum()
    }

    /// Says what a run that ends now has not done up to the epoch `newest`.
    pub fn unfinished<'a>(&self, sinks: impl Iterator<Item = &'a String>, newest: u64) -> Error {
        let behind: Vec<_> = sinks.filter(|name| self.committed.get(*name).copied().unwrap_or(0) < newest).collect();
        if behind.is_empty() {
            return Error::unavailable(
                "stopped before the last rows were recorded: the state store, the lake or a table's spool did not answer \
                 in time; nothing is lost, the next start goes on from the last commit",
            );
        }
        let names = behind.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        Error::unavailable(format!(
            "stopped before {names} had committed; the rows are recorded and durable, the next start goes on with them"
        ))
    }
}
