//! Commit records: one after the other without a gap, each balanced, and the checkpoints their sum.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use nexus_operators::{ErrorKind, Result};

use super::Fault;
use crate::state::record::CommitRecord;
use crate::state::{State, StateStore, checkpoint_file, epoch_file, fold};

/// Records that are read at once: an object store answers each in some ten milliseconds.
const READS_MAX: usize = 32;

/// The records of a pipeline.
pub struct Records {
    /// Those that could be read, in order.
    pub read: Vec<CommitRecord>,
    /// The numbers of all that are there.
    pub numbers: Vec<u64>,
    /// Those that could not be read, with the reason.
    damaged: Vec<(u64, String)>,
}

impl Records {
    /// Reads all records.
    pub async fn read(store: &StateStore) -> Result<Self> {
        let mut numbers = store.epochs().await?;
        numbers.sort_unstable();
        let mut records = Self { read: Vec::new(), numbers: numbers.clone(), damaged: Vec::new() };
        let mut reading = futures::stream::iter(numbers)
            .map(|epoch| async move { (epoch, store.epoch(epoch).await) })
            .buffered(READS_MAX);
        while let Some((epoch, record)) = reading.next().await {
            match record {
                Ok(Some(record)) => records.read.push(record),
                Ok(None) => records.damaged.push((epoch, "it was listed, but is gone".to_owned())),
                Err(error) if error.kind() == ErrorKind::Config => records.damaged.push((epoch, error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Reads the records that were written since.
    pub async fn read_on(&mut self, store: &StateStore) -> Result<()> {
        let mut next = self.last_epoch() + 1;
        while let Some(record) = store.epoch(next).await? {
            self.numbers.push(next);
            self.read.push(record);
            next += 1;
        }
        Ok(())
    }

    /// Gives the newest epoch; 0 if there is none.
    pub fn last_epoch(&self) -> u64 {
        self.numbers.last().copied().unwrap_or(0)
    }

    /// Gives the newest epoch before the first record: those up to it are known by their sum alone.
    pub fn base(&self) -> u64 {
        self.numbers.first().map_or(0, |first| first.saturating_sub(1))
    }
}

/// Checks the records among themselves.
pub async fn check(
    pipeline: &str,
    store: &StateStore,
    records: &Records,
    committed: &BTreeMap<String, u64>,
) -> Result<Vec<Fault>> {
    let mut faults: Vec<Fault> = Vec::new();
    let at = |epoch| format!("{}/{}", store.folder().url(), epoch_file(epoch));
    for (epoch, why) in &records.damaged {
        faults.push(fault(at(*epoch), *epoch, "a record that can be read".to_owned(), why.clone()));
    }
    for pair in records.numbers.windows(2) {
        let [before, after] = pair else { continue };
        for missing in before + 1..*after {
            let found = format!("none, though there are those of epochs {before} and {after}");
            faults.push(fault(at(missing), missing, format!("the record of epoch {missing}"), found));
        }
    }
    let mut generation = 0;
    for (number, record) in readable(records) {
        if record.epoch != number || record.pipeline != pipeline {
            let found = format!("epoch {} of {}", record.epoch, record.pipeline);
            faults.push(fault(at(number), number, format!("epoch {number} of {pipeline}"), found));
        }
        if record.generation < generation {
            let expected = format!("generation {generation} or a later one, as in the record before");
            faults.push(fault(at(number), number, expected, format!("generation {}", record.generation)));
        }
        generation = generation.max(record.generation);
        if let Some((name, counts)) = record.imbalance() {
            faults.push(fault(at(number), number, format!("counts of {name} that balance"), counts));
        }
    }
    for (sink, noted) in committed {
        if *noted > records.last_epoch() {
            let expected = format!("the record of epoch {noted}, which {sink} has committed");
            let found = format!("epoch {} is the last", records.last_epoch());
            faults.push(fault(at(*noted), *noted, expected, found));
        }
    }
    check_sums(store, records, &mut faults).await?;
    Ok(faults)
}

/// Gives the records that could be read with the numbers under which they lie.
fn readable(records: &Records) -> impl Iterator<Item = (u64, &CommitRecord)> {
    let is_readable = |number: &u64| records.damaged.iter().all(|(damaged, _)| damaged != number);
    records.numbers.iter().copied().filter(is_readable).zip(&records.read)
}

/// Checks that checkpoints are what the records add up to, and that the snapshots of the newest state are there.
async fn check_sums(store: &StateStore, records: &Records, faults: &mut Vec<Fault>) -> Result<()> {
    let checkpoints: Vec<(u64, State)> = futures::stream::iter(store.checkpoints().await?)
        .map(|epoch| async move { Ok::<_, nexus_operators::Error>((epoch, store.checkpoint(epoch).await?)) })
        .buffered(READS_MAX)
        .try_filter_map(|(epoch, state)| async move { Ok(state.map(|state| (epoch, state))) })
        .try_collect()
        .await?;
    let at = |epoch| format!("{}/{}", store.folder().url(), checkpoint_file(epoch));
    let base = records.base();
    let mut sum = match checkpoints.iter().find(|(epoch, _)| *epoch == base) {
        Some((_, state)) => state.clone(),
        None => {
            if base > 0 {
                let expected = format!("the records from epoch 1, or a checkpoint of epoch {base}");
                faults.push(fault(at(base), base, expected, format!("epoch {} is the first", base + 1)));
            }
            State::default()
        }
    };
    // Where a record is lost the sum cannot be told; the loss itself is named above.
    if (base + 1..).zip(&records.numbers).any(|(expected, number)| expected != *number) || !records.damaged.is_empty() {
        return Ok(());
    }
    let mut checkpoints: BTreeMap<u64, State> = checkpoints.into_iter().collect();
    for record in &records.read {
        fold(&mut sum, record);
        let Some(noted) = checkpoints.remove(&record.epoch) else { continue };
        let known = State { version: noted.version, id: noted.id.clone(), ..sum.clone() };
        if noted != known {
            let found = "other positions, watermarks or table states".to_owned();
            faults.push(fault(at(record.epoch), record.epoch, "the sum of the records up to it".to_owned(), found));
        }
    }
    for (name, table) in &sum.tables {
        for (kind, files) in [("windows", &table.windows), ("keys", &table.keys)] {
            for (epoch, file) in files {
                let path = format!("snapshots/{name}/{kind}/{file}");
                if store.folder().size(&path).await?.is_none() {
                    let at = format!("{}/{path}", store.folder().url());
                    let expected = format!("the state of {name}, which the newest record names");
                    faults.push(fault(at, *epoch, expected, "no such file".to_owned()));
                }
            }
        }
    }
    Ok(())
}

fn fault(at: String, epoch: u64, expected: String, found: String) -> Fault {
    Fault { of: "records".to_owned(), at, epoch: Some(epoch), expected, found }
}
