//! Rows and records that are handed over by the program itself.
//!
//! An embedding service gives partitions at once, or feeds batches through a
//! [`MemoryHandle`]. Positions are kept as those of any other source, so what
//! was committed is not read again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::framed::{Framed, FramedSettings, Input, Step};
use super::{Source, SourceEvent};
use crate::batch::{Chunk, Payload};
use crate::clock::SharedClock;
use crate::error::{Error, ErrorKind, Result};
use crate::framing::Framing;
use crate::position::{Cut, Position};

/// The partition of a source that is fed through a handle.
const FED_PARTITION: &str = "memory";

/// How long a call waits for a batch before it answers that there is none.
const WAIT: Duration = Duration::from_millis(500);

/// Gives rows or records from memory.
pub struct MemorySource {
    clock: SharedClock,
    moved: Cut,
    content: Content,
}

/// Feeds a [`MemorySource`]. When it is closed or dropped, the source ends.
#[derive(Debug)]
pub struct MemoryHandle {
    /// Full when the pipeline is behind: `send` then waits.
    batches: mpsc::Sender<RecordBatch>,
    /// Rows that every sink has committed; none until the source is open.
    committed: watch::Receiver<Option<u64>>,
}

enum Content {
    Partitions { waiting: VecDeque<(Arc<str>, Given)>, current: Option<Current>, committed: Cut },
    Fed { batches: mpsc::Receiver<RecordBatch>, committed: watch::Sender<Option<u64>>, row: u64, ended: bool },
}

/// What a partition was given as.
enum Given {
    Batches(VecDeque<RecordBatch>),
    Records { bytes: Bytes, settings: FramedSettings },
}

/// A partition that is being read.
struct Current {
    partition: Arc<str>,
    reading: Reading,
}

enum Reading {
    Batches { batches: VecDeque<RecordBatch>, row: u64, skip: u64 },
    Records(Box<Framed>),
}

impl MemorySource {
    /// Makes a source of partitions of batches, which are read one partition after the other.
    pub fn batches(partitions: Vec<(String, Vec<RecordBatch>)>, clock: SharedClock) -> Self {
        let given = partitions.into_iter().map(|(name, batches)| (name, Given::Batches(batches.into()))).collect();
        Self::given(given, clock)
    }

    /// Makes a source of partitions of bytes, which read as the content of a file does.
    pub fn records(
        partitions: Vec<(String, Bytes)>,
        framing: Framing,
        record_bytes_max: usize,
        clock: SharedClock,
    ) -> Self {
        let settings = FramedSettings { framing, record_bytes_max, waits: false };
        let given = partitions.into_iter().map(|(name, bytes)| (name, Given::Records { bytes, settings })).collect();
        Self::given(given, clock)
    }

    /// Makes a source that is fed through a handle, and holds at most `batches_max` batches that were not read.
    pub fn fed(batches_max: usize, clock: SharedClock) -> (MemoryHandle, Self) {
        let (sender, batches) = mpsc::channel(batches_max.max(1));
        let (committed, committed_rows) = watch::channel(None);
        let content = Content::Fed { batches, committed, row: 0, ended: false };
        let handle = MemoryHandle { batches: sender, committed: committed_rows };
        (handle, Self { clock, moved: Cut::default(), content })
    }

    fn given(partitions: Vec<(String, Given)>, clock: SharedClock) -> Self {
        let waiting = partitions.into_iter().map(|(name, given)| (name.into(), given)).collect();
        let content = Content::Partitions { waiting, current: None, committed: Cut::default() };
        Self { clock, moved: Cut::default(), content }
    }

    fn chunk(&mut self, partition: Arc<str>, payload: Payload, next: u64) -> SourceEvent {
        let position = Position::Offset { offset: next, identity: None };
        self.moved.advanced.insert(partition.to_string(), position);
        SourceEvent::Chunk(Chunk { partition, payload, read_at_us: self.clock.now_us(), lag_ms: None })
    }

    fn done(&mut self, partition: &str, offset: u64) {
        let ms = self.clock.now_us().div_euclid(1000);
        self.moved.advanced.insert(partition.to_owned(), Position::Done { offset, identity: None, ms });
    }

    async fn next_given(&mut self) -> Result<SourceEvent> {
        loop {
            let Content::Partitions { waiting, current, committed } = &mut self.content else {
                return Err(Error::internal("a memory source that is fed has no partitions"));
            };
            let Some(open) = current else {
                let Some((partition, given)) = waiting.pop_front() else { return Ok(SourceEvent::End) };
                let offset = match committed.advanced.get(&*partition) {
                    Some(Position::Done { .. }) => continue,
                    Some(Position::Offset { offset, .. }) => *offset,
                    _ => 0,
                };
                let reading = given.read(&partition, offset);
                *current = Some(Current { partition, reading });
                continue;
            };
            let partition = Arc::clone(&open.partition);
            match open.reading.next().await {
                Ok(Step::Piece { payload, next }) => return Ok(self.chunk(partition, payload, next)),
                Ok(Step::End | Step::Incomplete) => {
                    let offset = open.reading.offset();
                    *current = None;
                    self.done(&partition, offset);
                }
                Err(e) if e.kind() == ErrorKind::Data => {
                    let (offset, raw) = (open.reading.offset(), open.reading.rest());
                    *current = None;
                    self.done(&partition, offset);
                    return Ok(SourceEvent::Reject {
                        partition,
                        offset: offset.to_string(),
                        raw,
                        reason: e.to_string(),
                    });
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn next_fed(&mut self) -> Result<SourceEvent> {
        let Content::Fed { batches, row, ended, .. } = &mut self.content else {
            return Err(Error::internal("a memory source with partitions is not fed"));
        };
        loop {
            match tokio::time::timeout(WAIT, batches.recv()).await {
                Err(_) => return Ok(SourceEvent::Idle),
                Ok(Some(rows)) if rows.num_rows() == 0 => {}
                Ok(Some(rows)) => {
                    let offset = *row;
                    *row += rows.num_rows() as u64;
                    let next = *row;
                    return Ok(self.chunk(FED_PARTITION.into(), Payload::Batch { offset, rows }, next));
                }
                Ok(None) => {
                    let (row, first) = (*row, !std::mem::replace(ended, true));
                    if first {
                        self.done(FED_PARTITION, row);
                    }
                    return Ok(SourceEvent::End);
                }
            }
        }
    }
}

impl MemoryHandle {
    /// Hands a batch over; waits while the pipeline is behind.
    pub async fn send(&self, rows: RecordBatch) -> Result<()> {
        self.batches.send(rows).await.map_err(|_| Error::unavailable("could not hand over a batch: the pipeline ended"))
    }

    /// Waits until the source is open, and gives the number of rows that earlier runs committed: the row to
    /// go on with.
    pub async fn resume_at(&mut self) -> Result<u64> {
        let rows = self.committed.wait_for(Option::is_some).await;
        let rows = rows.map_err(|e| Error::unavailable("the pipeline ended before it was open").because(e))?;
        Ok(rows.unwrap_or_default())
    }

    /// Gives the number of rows, over all runs, that every sink has committed.
    pub fn committed_rows(&self) -> u64 {
        self.committed.borrow().unwrap_or_default()
    }

    /// Ends the source once it has given what was sent.
    pub fn close(self) {}
}

#[async_trait]
impl Source for MemorySource {
    async fn open(&mut self, cut: &Cut) -> Result<()> {
        match &mut self.content {
            Content::Partitions { committed, .. } => *committed = cut.clone(),
            Content::Fed { committed, row, .. } => {
                *row = fed_rows(cut).unwrap_or_default();
                committed.send_replace(Some(*row));
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        match self.content {
            Content::Partitions { .. } => self.next_given().await,
            Content::Fed { .. } => self.next_fed().await,
        }
    }

    fn cut(&mut self) -> Cut {
        std::mem::take(&mut self.moved)
    }

    fn reading(&self) -> Vec<Arc<str>> {
        match &self.content {
            Content::Partitions { current, .. } => current.iter().map(|open| Arc::clone(&open.partition)).collect(),
            Content::Fed { ended: false, .. } => vec![FED_PARTITION.into()],
            Content::Fed { .. } => Vec::new(),
        }
    }

    async fn committed(&mut self, cut: &Cut) -> Result<()> {
        if let (Content::Fed { committed, .. }, Some(row)) = (&self.content, fed_rows(cut)) {
            committed.send_if_modified(|rows| rows.replace(row) != Some(row));
        }
        Ok(())
    }

    async fn maintain(&mut self) -> Result<()> {
        Ok(())
    }

    /// A source that is fed ends too: when its handle is closed.
    fn bounded(&self) -> bool {
        true
    }
}

impl Given {
    fn read(self, partition: &Arc<str>, offset: u64) -> Reading {
        match self {
            Given::Batches(batches) => Reading::Batches { batches, row: offset, skip: offset },
            Given::Records { bytes, settings } => {
                let framed = Framed::new(Arc::clone(partition), Input::Memory(bytes), settings, offset);
                Reading::Records(Box::new(framed))
            }
        }
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Step> {
        match self {
            Reading::Records(framed) => framed.next().await,
            Reading::Batches { batches, row, skip } => {
                while let Some(batch) = batches.pop_front() {
                    let known = usize::try_from(*skip).unwrap_or(usize::MAX).min(batch.num_rows());
                    *skip -= known as u64;
                    let rows = batch.slice(known, batch.num_rows() - known);
                    if rows.num_rows() > 0 {
                        let offset = *row;
                        *row += rows.num_rows() as u64;
                        return Ok(Step::Piece { payload: Payload::Batch { offset, rows }, next: *row });
                    }
                }
                Ok(Step::End)
            }
        }
    }

    fn offset(&self) -> u64 {
        match self {
            Reading::Records(framed) => framed.offset(),
            Reading::Batches { row, .. } => *row,
        }
    }

    fn rest(&self) -> Bytes {
        match self {
            Reading::Records(framed) => framed.rest(),
            Reading::Batches { .. } => Bytes::new(),
        }
    }
}

/// Gives the rows that a cut of a source that is fed has behind it.
fn fed_rows(cut: &Cut) -> Option<u64> {
    match cut.advanced.get(FED_PARTITION)? {
        Position::Offset { offset, .. } | Position::Done { offset, .. } => Some(*offset),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use arrow::compute::concat_batches;
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;

    use super::*;
    use crate::testing::clock::ManualClock;
    use crate::testing::source::{conforms, read};

    fn batches(lengths: &[i64]) -> Vec<RecordBatch> {
        let mut from = 0;
        let mut batch = |length: &i64| {
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + length));
            from += length;
            RecordBatch::try_from_iter([("n", column)]).unwrap()
        };
        lengths.iter().map(&mut batch).collect()
    }

    fn all(batches: &[RecordBatch]) -> RecordBatch {
        concat_batches(&batches[0].schema(), batches).unwrap()
    }

    #[tokio::test]
    async fn batches_conform() {
        let given = vec![("a".to_owned(), batches(&[3, 0, 5])), ("b".to_owned(), batches(&[1]))];
        let make = |_| async { Box::new(MemorySource::batches(given.clone(), ManualClock::at(0))) as _ };
        let seen = conforms(make).await;
        assert_eq!(seen.rows("a"), Some(&all(&given[0].1)));
        assert_eq!(seen.rows("b"), Some(&all(&given[1].1)));
    }

    #[tokio::test]
    async fn records_conform() {
        let given = vec![("a".to_owned(), Bytes::from("one\ntwo\n")), ("b".to_owned(), Bytes::new())];
        let make =
            |_| async { Box::new(MemorySource::records(given.clone(), Framing::Whole, 1024, ManualClock::at(0))) as _ };
        assert_eq!(conforms(make).await.text("a"), "one two ");
    }

    #[tokio::test]
    async fn row_groups_conform_and_damaged_files_are_rejected() {
        let rows = all(&batches(&[2500]));
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1000)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        let file = Bytes::from(writer.into_inner().unwrap());
        let mut long_footer = file.to_vec();
        let at = long_footer.len() - 8;
        long_footer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let given = vec![
            ("cut".to_owned(), file.slice(..file.len() - 20)),
            ("good".to_owned(), file.clone()),
            ("long-footer".to_owned(), long_footer.into()),
            ("text".to_owned(), Bytes::from("PAR1, no more than a text")),
        ];
        let make = |_| async {
            Box::new(MemorySource::records(given.clone(), Framing::Parquet, 1024, ManualClock::at(0))) as _
        };
        let seen = conforms(make).await;
        assert_eq!(seen.partitions(), ["good"]);
        let rejected: Vec<_> = seen.rejects.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(rejected, ["cut", "long-footer", "text"]);

        let mut source = MemorySource::records(given, Framing::Parquet, 1024, ManualClock::at(0));
        source.open(&Cut::default()).await.unwrap();
        let mut groups = Vec::new();
        loop {
            match source.next().await.unwrap() {
                SourceEvent::Chunk(Chunk { payload: Payload::RowGroup(group), .. }) => {
                    assert_eq!(group.file_len, file.len() as u64);
                    for (offset, bytes) in &group.pieces {
                        assert_eq!(file.slice(*offset as usize..*offset as usize + bytes.len()), bytes);
                    }
                    groups.push((group.index, group.first_row));
                }
                SourceEvent::End => break,
                _ => {}
            }
        }
        assert_eq!(groups, [(0, 0), (1, 1000), (2, 2000)]);
    }

    #[tokio::test]
    async fn what_is_fed_conforms() {
        let rows = all(&batches(&[100]));
        let make = |cut: Cut| {
            let known = fed_rows(&cut).unwrap_or_default() as usize;
            let (handle, source) = MemorySource::fed(100, ManualClock::at(0));
            let rows = &rows;
            async move {
                for row in known..rows.num_rows() {
                    handle.send(rows.slice(row, 1)).await.unwrap();
                }
                handle.close();
                Box::new(source) as _
            }
        };
        assert_eq!(conforms(make).await.rows(FED_PARTITION), Some(&rows));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_waits_while_the_source_is_full_and_learns_what_is_committed() {
        let position = Position::Offset { offset: 7, identity: None };
        let cut = Cut { advanced: [(FED_PARTITION.to_owned(), position)].into(), forgotten: Vec::new() };
        let (mut handle, mut source) = MemorySource::fed(1, ManualClock::at(0));
        source.open(&cut).await.unwrap();
        assert_eq!(handle.resume_at().await.unwrap(), 7);
        let batch = batches(&[3]).remove(0);
        handle.send(batch.clone()).await.unwrap();
        assert!(tokio::time::timeout(WAIT, handle.send(batch.clone())).await.is_err(), "it is full");
        let SourceEvent::Chunk(chunk) = source.next().await.unwrap() else { panic!("a batch was sent") };
        assert!(matches!(chunk.payload, Payload::Batch { offset: 7, .. }));
        assert!(matches!(source.next().await.unwrap(), SourceEvent::Idle));
        let cut = source.cut();
        assert_eq!(handle.committed_rows(), 7);
        source.committed(&cut).await.unwrap();
        assert_eq!(handle.committed_rows(), 10);
        drop(source);
        assert_eq!(handle.send(batch).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_partition_that_is_done_is_not_read_again() {
        let given = vec![("a".to_owned(), batches(&[3]))];
        let mut first = MemorySource::batches(given.clone(), ManualClock::at(0));
        read(&mut first, &Cut::default()).await;
        let (seen, events) = read(&mut MemorySource::batches(given, ManualClock::at(0)), &first.cut()).await;
        assert_eq!((seen.partitions().len(), events), (0, 0));
    }
}
