//! Sorting more rows than fit into memory: sorted runs in temporary files, merged a few at a time.
//!
//! Rows of equal keys stay in the order in which they came.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::{Row, RowConverter, Rows, SortField};
use zstd::stream::{read::Decoder, write::Encoder};

use super::settings::OrderBy;
use crate::batch::without_shared_buffers;
use crate::error::{Error, Result};

/// Runs that are merged at a time. Each holds a piece in memory, and each merge of so many spares the next one as many
/// open files: rows of a hundred times the memory are written twice.
const RUNS_MAX: usize = 16;

/// Rows of one piece at most, as elsewhere in the engine.
const PIECE_ROWS_MAX: usize = 8192;

/// Bytes of one piece at least and at most: smaller ones cost more than they hold, larger ones save nothing.
const PIECE_BYTES: (usize, usize) = (16 << 10, 1 << 20);

/// Fast, and a third of the size for rows that look alike.
const ZSTD_LEVEL: i32 = 1;

/// Takes rows in any order and gives them sorted.
pub(super) struct Sorter {
    schema: SchemaRef,
    /// Indices of the columns that rows are sorted by.
    columns: Vec<usize>,
    converter: RowConverter,
    bytes_max: usize,
    held: Vec<RecordBatch>,
    held_bytes: usize,
    /// Runs on disk by how often their rows have been merged, the oldest first.
    runs: Vec<Vec<File>>,
    /// What is given out.
    giving: Option<Giving>,
}

/// Sorted rows on their way out.
enum Giving {
    Held(Held),
    Merged(Merge),
}

/// Sorted rows in memory.
struct Held {
    batches: Vec<RecordBatch>,
    /// Batch and row of each.
    order: Vec<(usize, usize)>,
    given: usize,
    piece_rows: usize,
}

/// Runs that are merged.
struct Merge {
    /// Older rows first: of equal ones the first is given first.
    cursors: Vec<Cursor>,
    /// The batches that the next piece is made of.
    batches: Vec<RecordBatch>,
    piece_rows: usize,
}

/// A place in a run.
struct Cursor {
    run: StreamReader<BufReader<Decoder<'static, BufReader<File>>>>,
    keys: Rows,
    row: usize,
    /// Its batch among those of the next piece.
    batch: usize,
}

impl Sorter {
    /// Sorts rows of a schema, holding up to `bytes_max` bytes of them, and their keys beside them.
    pub(super) fn new(schema: SchemaRef, order_by: &[OrderBy], table: &str, bytes_max: usize) -> Result<Self> {
        let columns = order_by.iter().map(|by| by.index(&schema, table)).collect::<Result<Vec<_>>>()?;
        let fields = columns.iter().zip(order_by).map(|(column, by)| {
            let data_type = schema.field(*column).data_type().clone();
            SortField::new_with_options(data_type, by.options())
        });
        let converter = RowConverter::new(fields.collect())?;
        Ok(Self {
            schema,
            columns,
            converter,
            bytes_max,
            held: Vec::new(),
            held_bytes: 0,
            runs: Vec::new(),
            giving: None,
        })
    }

    /// Takes rows.
    pub(super) fn push(&mut self, rows: RecordBatch) -> Result<()> {
        self.held_bytes += rows.get_array_memory_size();
        self.held.push(rows);
        if self.held_bytes <= self.bytes_max {
            return Ok(());
        }
        let sorted = self.sort_held()?;
        let run = self.write_run(Giving::Held(sorted))?;
        self.add_run(0, run)
    }

    /// Gives the bytes of the rows that are neither in a run nor given out.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Gives the next rows in order; nothing at the end, after which rows can be taken anew.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        if self.giving.is_none() {
            let held = self.sort_held()?;
            if self.runs.is_empty() {
                self.giving = Some(Giving::Held(held));
            } else {
                if !held.order.is_empty() {
                    let run = self.write_run(Giving::Held(held))?;
                    self.add_run(0, run)?;
                }
                // Rows that have been merged more often are older.
                let runs = std::mem::take(&mut self.runs).into_iter().rev().flatten().collect();
                self.giving = Some(Giving::Merged(self.merge(runs)?));
            }
        }
        let Some(mut giving) = self.giving.take() else { return Ok(None) };
        let piece = self.piece(&mut giving)?;
        if piece.is_some() {
            self.giving = Some(giving);
        }
        Ok(piece)
    }

    fn piece(&self, giving: &mut Giving) -> Result<Option<RecordBatch>> {
        match giving {
            Giving::Held(held) => held.piece(),
            Giving::Merged(merge) => merge.piece(self),
        }
    }

    fn keys(&self, rows: &RecordBatch) -> Result<Rows> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|column| rows.column(*column).clone()).collect();
        Ok(self.converter.convert_columns(&columns)?)
    }

    fn sort_held(&mut self) -> Result<Held> {
        let batches = std::mem::take(&mut self.held);
        let bytes = std::mem::take(&mut self.held_bytes);
        let keys = batches.iter().map(|batch| self.keys(batch)).collect::<Result<Vec<_>>>()?;
        let places =
            keys.iter().enumerate().flat_map(|(batch, keys)| (0..keys.num_rows()).map(move |row| (batch, row)));
        let key = |(batch, row): &(usize, usize)| keys.get(*batch).map(|keys| keys.row(*row));
        let mut order: Vec<(usize, usize)> = places.collect();
        order.sort_by(|a, b| key(a).cmp(&key(b)));
        let piece_rows = (self.piece_bytes() * order.len() / bytes.max(1)).clamp(1, PIECE_ROWS_MAX);
        Ok(Held { batches, order, given: 0, piece_rows })
    }

    fn piece_bytes(&self) -> usize {
        (self.bytes_max / RUNS_MAX).clamp(PIECE_BYTES.0, PIECE_BYTES.1)
    }

    /// Writes sorted rows to a file without a name, which goes when it is closed or the process ends.
    fn write_run(&self, mut rows: Giving) -> Result<File> {
        let doing = |e: std::io::Error| Error::from(e).while_doing("could not write rows that are sorted");
        let file = tempfile::tempfile().map_err(doing)?;
        let frame = Encoder::new(BufWriter::new(file), ZSTD_LEVEL).map_err(doing)?;
        let mut writer = StreamWriter::try_new(frame, &self.schema)?;
        while let Some(piece) = self.piece(&mut rows)? {
            writer.write(&without_shared_buffers(&piece))?;
        }
        let mut buffer = writer.into_inner()?.finish().map_err(doing)?;
        buffer.flush().map_err(doing)?;
        let mut file = buffer.into_inner().map_err(|e| doing(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(doing)?;
        Ok(file)
    }

    fn add_run(&mut self, level: usize, run: File) -> Result<()> {
        if self.runs.len() <= level {
            self.runs.push(Vec::new());
        }
        let Some(runs) = self.runs.get_mut(level) else { return Ok(()) };
        runs.push(run);
        if runs.len() < RUNS_MAX {
            return Ok(());
        }
        let full = std::mem::take(runs);
        let merge = self.merge(full)?;
        let merged = self.write_run(Giving::Merged(merge))?;
        self.add_run(level + 1, merged)
    }

    fn merge(&self, runs: Vec<File>) -> Result<Merge> {
        let mut merge = Merge { cursors: Vec::new(), batches: Vec::new(), piece_rows: PIECE_ROWS_MAX };
        for run in runs {
            let frame = Decoder::new(run)?;
            let mut run = StreamReader::try_new(BufReader::new(frame), None)?;
            if let Some(batch) = run.next().transpose()? {
                merge.piece_rows = merge.piece_rows.min(batch.num_rows().max(1));
                merge.cursors.push(Cursor { run, keys: self.keys(&batch)?, row: 0, batch: merge.batches.len() });
                merge.batches.push(batch);
            }
        }
        Ok(merge)
    }
}

impl Held {
    fn piece(&mut self) -> Result<Option<RecordBatch>> {
        let left = self.order.get(self.given..).unwrap_or_default();
        let now = left.get(..left.len().min(self.piece_rows)).unwrap_or_default();
        if now.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let piece = interleave_record_batch(&batches, now)?;
        self.given += now.len();
        Ok(Some(piece))
    }
}

impl Merge {
    fn piece(&mut self, sorter: &Sorter) -> Result<Option<RecordBatch>> {
        let mut rows = Vec::with_capacity(self.piece_rows);
        while rows.len() < self.piece_rows {
            let least = self.cursors.iter().enumerate().min_by(|(_, a), (_, b)| a.key().cmp(&b.key()));
            let Some(number) = least.map(|(number, _)| number) else { break };
            let Some(cursor) = self.cursors.get_mut(number) else { break };
            rows.push((cursor.batch, cursor.row));
            cursor.row += 1;
            if cursor.row < cursor.keys.num_rows() {
                continue;
            }
            match cursor.run.next().transpose()? {
                Some(batch) => {
                    (cursor.keys, cursor.row, cursor.batch) = (sorter.keys(&batch)?, 0, self.batches.len());
                    self.batches.push(batch);
                }
                None => drop(self.cursors.remove(number)),
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let piece = interleave_record_batch(&batches, &rows)?;
        // What has been given out is let go.
        let kept = std::mem::take(&mut self.batches);
        for cursor in &mut self.cursors {
            if let Some(batch) = kept.get(cursor.batch) {
                cursor.batch = self.batches.len();
                self.batches.push(batch.clone());
            }
        }
        Ok(Some(piece))
    }
}

impl Cursor {
    fn key(&self) -> Row<'_> {
        self.keys.row(self.row)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array, StringViewArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    use super::*;

    type Keyed = (Option<i64>, Option<String>, i64);

    fn batch(rows: &[Keyed]) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("a", Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()) as ArrayRef, true),
            ("b", Arc::new(rows.iter().map(|row| row.1.clone()).collect::<StringViewArray>()) as ArrayRef, true),
            ("place", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()) as ArrayRef, true),
        ])
        .unwrap()
    }

    fn sorted(sorter: &mut Sorter) -> Vec<i64> {
        let mut places = Vec::new();
        while let Some(piece) = sorter.next().unwrap() {
            assert!(piece.num_rows() <= PIECE_ROWS_MAX);
            places.extend(piece.column(2).as_primitive::<Int64Type>().values());
        }
        places
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_come_out_as_a_stable_sort_has_them(
            keys in prop::collection::vec((prop::option::of(-3_i64..3), prop::option::of("[ab]{0,20}")), 0..400),
            cut in 1_usize..60,
            bytes_max in prop::sample::select(vec![1_usize, 5_000, 20_000, 10_000_000]),
            (descending, nulls_first) in (any::<bool>(), any::<bool>()),
        ) {
            let rows: Vec<Keyed> = (0_i64..).zip(keys).map(|(place, (a, b))| (a, b, place)).collect();
            let order_by = [
                OrderBy { column: "a".into(), descending, nulls_first },
                OrderBy { column: "b".into(), descending: false, nulls_first: false },
            ];
            let mut sorter = Sorter::new(batch(&rows).schema(), &order_by, "t", bytes_max).unwrap();
            let mut expected = rows.clone();
            let rank = |null: bool, first: bool| if null == first { 0 } else { 1 };
            expected.sort_by(|x, y| {
                let by_a = rank(x.0.is_none(), nulls_first).cmp(&rank(y.0.is_none(), nulls_first));
                let by_a = by_a.then(if descending { y.0.cmp(&x.0) } else { x.0.cmp(&y.0) });
                by_a.then(x.1.is_none().cmp(&y.1.is_none())).then(x.1.cmp(&y.1))
            });
            let expected: Vec<i64> = expected.iter().map(|row| row.2).collect();
            // Twice, since it is used again for the next epoch.
            for _ in 0..2 {
                for part in rows.chunks(cut) {
                    sorter.push(batch(part)).unwrap();
                }
                prop_assert_eq!(&sorted(&mut sorter), &expected);
            }
        }
    }
}
