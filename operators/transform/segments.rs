//! State as a log of segments: what an epoch added is one segment, so that a
//! snapshot writes only what is new.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Seek};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::held::Held;
use super::sealed::Sealed;
use super::tiers;
use crate::error::{Error, Result};

/// The rows of a stateful transform, by the epoch that added them.
#[derive(Debug, Default)]
pub struct Segments {
    sealed: Vec<Segment>,
    open: Vec<RecordBatch>,
}

/// What one epoch added, less what has been taken out since.
#[derive(Debug)]
pub struct Segment {
    /// The epoch that added it.
    pub epoch: u64,
    /// Its rows.
    pub rows: Vec<RecordBatch>,
}

/// What has to be durable so that the state can be restored.
#[derive(Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The epochs whose segments make up the state.
    pub live: Vec<u64>,
    /// The segment that this epoch has added; the others have been given before.
    pub added: Vec<RecordBatch>,
}

impl Snapshot {
    /// Gives it with what was added as an Arrow IPC stream.
    pub fn encode(self) -> Result<Sealed> {
        let Some(first) = self.added.first() else { return Ok(Sealed { live: self.live, added: None }) };
        let mut writer = StreamWriter::try_new(Vec::new(), &first.schema())?;
        for rows in &self.added {
            writer.write(rows)?;
        }
        writer.finish()?;
        Ok(Sealed { live: self.live, added: Some(writer.into_inner()?.into()) })
    }
}

impl Segment {
    /// Reads what [`Snapshot::encode`] gave at the end of an epoch.
    pub fn read((epoch, mut file): (u64, File)) -> Result<Self> {
        // Who has just written it stands at its end.
        file.rewind()?;
        let damaged = |e| Error::config("a file of state is damaged; restore it from a copy of the state").because(e);
        let reader = StreamReader::try_new(BufReader::new(file), None).map_err(damaged)?;
        let rows = reader.collect::<std::result::Result<_, _>>().map_err(damaged)?;
        Ok(Self { epoch, rows })
    }
}

impl Segments {
    /// Starts from segments that were saved.
    pub fn restore(&mut self, segments: Vec<Segment>) {
        self.sealed = segments;
        self.open.clear();
    }

    /// Adds rows to the open segment.
    pub fn add(&mut self, rows: RecordBatch) {
        if rows.num_rows() > 0 {
            self.open.push(rows);
        }
    }

    /// Takes out the rows that `mark` marks, and gives them.
    pub fn take(&mut self, mut mark: impl FnMut(&RecordBatch) -> Result<BooleanArray>) -> Result<Vec<RecordBatch>> {
        let mut taken = Vec::new();
        let all = self.sealed.iter_mut().map(|segment| &mut segment.rows).chain([&mut self.open]);
        for rows in all {
            let mut kept = Vec::with_capacity(rows.len());
            for batch in rows.drain(..) {
                let marked = mark(&batch)?;
                match marked.true_count() {
                    0 => kept.push(batch),
                    count if count == batch.num_rows() => taken.push(batch),
                    _ => {
                        kept.push(filter_record_batch(&batch, &not(&marked)?)?);
                        taken.push(filter_record_batch(&batch, &marked)?);
                    }
                }
            }
            *rows = kept;
        }
        self.sealed.retain(|segment| !segment.rows.is_empty());
        Ok(taken)
    }

    /// Takes out segments of about the same size, the open one among them, if there are enough of them; they come back
    /// merged through [`add`](Self::add).
    pub fn take_alike(&mut self) -> Vec<RecordBatch> {
        let count = |rows: &[RecordBatch]| rows.iter().map(|batch| batch.num_rows() as u64).sum();
        let sizes: Vec<u64> = self.sealed.iter().map(|segment| count(&segment.rows)).collect();
        let picked = tiers::alike(count(&self.open), &sizes, u64::MAX, BTreeSet::new());
        let (mut rows, mut kept) = (Vec::new(), Vec::new());
        for (place, segment) in std::mem::take(&mut self.sealed).into_iter().enumerate() {
            if picked.contains(&place) { rows.extend(segment.rows) } else { kept.push(segment) }
        }
        self.sealed = kept;
        if !rows.is_empty() {
            rows.append(&mut self.open);
        }
        rows
    }

    /// Closes the open segment and tells what has to be durable.
    pub fn seal(&mut self, epoch: u64) -> Snapshot {
        let added = std::mem::take(&mut self.open);
        if !added.is_empty() {
            self.sealed.push(Segment { epoch, rows: added.clone() });
        }
        Snapshot { live: self.sealed.iter().map(|segment| segment.epoch).collect(), added }
    }

    /// Gives all rows.
    pub fn rows(&self) -> impl Iterator<Item = &RecordBatch> {
        self.sealed.iter().flat_map(|segment| &segment.rows).chain(&self.open)
    }

    /// Gives the memory that the rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        Held::of(self.rows()).bytes()
    }
}
