//! Commit records: one after the other without a gap, each balanced, and the checkpoints their sum.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use nexus_operators::{Error, ErrorKind, Result};

use super::Fault;
use crate::state::history::{Span, history_file};
use crate::state::record::CommitRecord;
use crate::state::{State, StateStore, checkpoint_file, epoch_file, fold};

/// Records that are read at once: an object store answers each in some ten milliseconds.
const READS_MAX: usize = 32;

/// How often the history is listed anew because a running process has folded it meanwhile.
const LISTINGS_MAX: usize = 5;

/// The records of a pipeline.
#[derive(Default)]
pub struct Records {
    /// Those that could be read, in order.
    pub read: Vec<CommitRecord>,
    /// The numbers of all that are there, in order.
    pub numbers: Vec<u64>,
    /// Files that could not be read, or do not hold what they should.
    damaged: Vec<Damaged>,
}

/// A file of records that is not as it should be.
struct Damaged {
    name: String,
    epoch: u64,
    expected: String,
    found: String,
}

impl Records {
    /// Reads all records.
    pub async fn read(store: &StateStore) -> Result<Self> {
        let mut records = Self::default();
        let mut known: BTreeMap<u64, Option<CommitRecord>> = BTreeMap::new();
        let mut reading = futures::stream::iter(store.epochs().await?)
            .map(|epoch| async move { (epoch, store.epoch(epoch).await) })
            .buffered(READS_MAX);
        while let Some((epoch, record)) = reading.next().await {
            match record {
                Ok(Some(record)) => drop(known.insert(epoch, Some(record))),
                // A running process has folded it since: it is in the history, which is read next.
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Config => {
                    known.insert(epoch, None);
                    records.damaged.push(Damaged::unreadable(epoch_file(epoch), epoch, &error));
                }
                Err(error) => return Err(error),
            }
        }
        for (span, folded) in history(store).await? {
            let name = history_file(&span);
            match folded {
                Ok(folded) => {
                    for record in folded {
                        let epoch = record.epoch;
                        // A crash while records are folded leaves them in both places.
                        if known
                            .insert(epoch, Some(record))
                            .flatten()
                            .is_some_and(|own| Some(&Some(own)) != known.get(&epoch))
                        {
                            let (expected, found) = (format!("what {name} says"), "another record".to_owned());
                            records.damaged.push(Damaged { name: epoch_file(epoch), epoch, expected, found });
                        }
                    }
                }
                Err(error) => {
                    records.damaged.push(Damaged::unreadable(name, *span.start(), &error));
                    known.extend(span.map(|epoch| (epoch, None)));
                }
            }
        }
        records.numbers = known.keys().copied().collect();
        for (number, record) in known {
            match record {
                Some(record) if record.epoch == number => records.read.push(record),
                Some(record) => {
                    let found = format!("epoch {} of {}", record.epoch, record.pipeline);
                    let expected = format!("epoch {number} of {}", record.pipeline);
                    records.damaged.push(Damaged { name: epoch_file(number), epoch: number, expected, found });
                }
                None => {}
            }
        }
        Ok(records)
    }

    /// Reads the records that were written since.
    pub async fn read_on(&mut self, store: &StateStore) -> Result<()> {
        loop {
            let records = store.records_from(self.last_epoch() + 1).await?;
            if records.is_empty() {
                return Ok(());
            }
            self.numbers.extend(records.iter().map(|record| record.epoch));
            self.read.extend(records);
        }
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
    for Damaged { name, epoch, expected, found } in &records.damaged {
        let at = format!("{}/{name}", store.folder().url());
        faults.push(fault(at, *epoch, expected.clone(), found.clone()));
    }
    for pair in records.numbers.windows(2) {
        let [before, after] = pair else { continue };
        for missing in before + 1..*after {
            let found = format!("none, though there are those of epochs {before} and {after}");
            faults.push(fault(at(missing), missing, format!("the record of epoch {missing}"), found));
        }
    }
    let mut generation = 0;
    for record in &records.read {
        let epoch = record.epoch;
        if record.pipeline != pipeline {
            let found = format!("epoch {epoch} of {}", record.pipeline);
            faults.push(fault(at(epoch), epoch, format!("epoch {epoch} of {pipeline}"), found));
        }
        if record.generation < generation {
            let expected = format!("generation {generation} or a later one, as in the record before");
            faults.push(fault(at(epoch), epoch, expected, format!("generation {}", record.generation)));
        }
        generation = generation.max(record.generation);
        if let Some((name, counts)) = record.imbalance() {
            faults.push(fault(at(epoch), epoch, format!("counts of {name} that balance"), counts));
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

/// Reads the files of history; a file that cannot be used is given with the reason.
async fn history(store: &StateStore) -> Result<Vec<(Span, Result<Vec<CommitRecord>>)>> {
    for _ in 0..LISTINGS_MAX {
        let mut read = Vec::new();
        for span in store.history().await? {
            match store.read_history(&span).await {
                Ok(Some(records)) => read.push((span, Ok(records))),
                // It has become part of a wider file since it was listed.
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::Config => read.push((span, Err(error))),
                Err(error) => return Err(error),
            }
        }
        if read.len() == store.history().await?.len() {
            return Ok(read);
        }
    }
    Err(Error::unavailable("could not read the history of commit records: it changes all the time; try again"))
}

impl Damaged {
    fn unreadable(name: String, epoch: u64, error: &Error) -> Self {
        Self { name, epoch, expected: "a record that can be read".to_owned(), found: error.to_string() }
    }
}

/// Checks that checkpoints are what the records add up to, and that the snapshots of the newest state are there.
async fn check_sums(store: &StateStore, records: &Records, faults: &mut Vec<Fault>) -> Result<()> {
    let checkpoints: Vec<(u64, State)> = futures::stream::iter(store.checkpoints().await?)
        .map(|epoch| async move { Ok::<_, nexus_operators::Error>((epoch, store.checkpoint_of(epoch).await?)) })
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
        for (name, version) in &record.references {
            let known = sum.references.get(name).map_or(0, |known| known.version);
            if known != *version {
                let place = format!("{}/{}", store.folder().url(), epoch_file(record.epoch));
                let expected = format!("version {known} of reference table {name}, which the records tell of last");
                faults.push(fault(place, record.epoch, expected, format!("version {version}")));
            }
        }
        let Some(noted) = checkpoints.remove(&record.epoch) else { continue };
        let known = State { version: noted.version, id: noted.id.clone(), ..sum.clone() };
        if noted != known {
            let found = "other positions, watermarks or table states".to_owned();
            faults.push(fault(at(record.epoch), record.epoch, "the sum of the records up to it".to_owned(), found));
        }
    }
    for (name, table) in &sum.tables {
        let of_join = table.joins.iter().map(|(kind, files)| (kind.as_str(), files));
        for (kind, files) in of_join.chain([("windows", &table.windows), ("keys", &table.keys)]) {
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
