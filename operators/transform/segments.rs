//! State as a log of segments: what an epoch added is one segment, so that a
//! snapshot writes only what is new.

use std::fs::File;
use std::io::{BufReader, Seek};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::held::Held;
use super::sealed::Sealed;
use crate::error::{Error, Result};

/// Segments that may lie side by side before they are merged into one. More
/// would make a restart read many small files; fewer would write merged state
/// more often.
const SEGMENTS_MAX: usize = 16;

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

    /// Tells whether the segments should be merged.
    pub fn want_merge(&self) -> bool {
        self.sealed.len() >= SEGMENTS_MAX
    }

    /// Takes out all rows; they come back merged through [`add`](Self::add).
    pub fn take_all(&mut self) -> Vec<RecordBatch> {
        let sealed = self.sealed.drain(..).flat_map(|segment| segment.rows);
        let mut all: Vec<_> = sealed.collect();
        all.append(&mut self.open);
        all
    }

    /// Takes out the rows of the open segment; they come back merged through [`add`](Self::add).
    pub fn take_open(&mut self) -> Vec<RecordBatch> {
        std::mem::take(&mut self.open)
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
