//! The rows of one chunk under construction: cut into batches, with rescued
//! fields and provenance, and the rejects beside them.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use bytes::Bytes;

use super::archiving::Archiving;
use super::column::{Column, Misfit, Texts};
use super::provenance::{Place, Places};
use super::settings::Plan;
use super::{Decoded, Reject};
use crate::batch::Chunk;
use crate::error::Result;

/// A batch is closed when its records pass this many bytes: few enough that a chunk of large records still
/// flows in several batches, and with one record of the greatest size on top far below what 31 bits address.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Rejects of a step: when their bytes pass this, they are passed on.
const REJECT_BYTES_MAX: usize = 1 << 20;

/// What a reject takes beside its bytes, here and on its way to the quarantine, where it bears the names of its source
/// and partition: a MiB of `0` lines is half a million rejects.
const REJECT_OVERHEAD_BYTES: usize = 256;

/// Longest part of a record over the limit, or of broken bytes, that goes to the quarantine: enough to tell what it was.
pub(super) const TOO_LONG_RAW_BYTES_MAX: usize = 64 << 10;

pub(super) struct Rows<'a> {
    plan: &'a Plan,
    chunk: &'a Chunk,
    /// The declared columns. The row that is being decoded stands behind [`Rows::len`].
    pub(super) columns: Vec<Column>,
    /// `_rescued`, if there is such a column.
    rescued: Option<Texts>,
    places: Places,
    /// The line that names the columns of the records to come, if there is one.
    pub(super) header: Option<Bytes>,
    /// Bytes of the records in the open batch.
    bytes: usize,
    rows: usize,
    /// Bytes of the rejects in the open step.
    reject_bytes: usize,
    decoded: Decoded,
    /// Takes the records as they came, where they are archived.
    archiving: Option<Archiving>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(plan: &'a Plan, chunk: &'a Chunk) -> Result<Self> {
        Ok(Self {
            plan,
            chunk,
            columns: plan.columns()?,
            rescued: plan.rescues.then(Texts::new),
            places: Places::new(plan.settings.offsets),
            header: None,
            bytes: 0,
            rows: 0,
            reject_bytes: 0,
            decoded: Decoded::default(),
            archiving: if plan.settings.archives { Archiving::of(&plan.settings.format) } else { None },
        })
    }

    /// Gives the rows of the open batch.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Appends the row's rescued fields: a JSON object that is still open, or nothing.
    pub(super) fn push_rescued(&mut self, fields: &mut Vec<u8>) -> Result<(), String> {
        let Some(rescued) = &mut self.rescued else { return Ok(()) };
        if fields.is_empty() {
            rescued.push_null();
            return Ok(());
        }
        fields.push(b'}');
        rescued.push(fields).map_err(|_: Misfit| "the rescued fields make the batch too large".into())
    }

    /// Keeps the row whose values all columns have taken, from the record `raw`.
    #[inline]
    pub(super) fn keep(&mut self, place: Place<'_>, raw: &[u8]) -> Result<()> {
        self.archive(raw);
        self.keep_apart(place, raw.len())
    }

    /// Keeps the row whose values all columns have taken; the record of `record_bytes` is archived otherwise.
    #[inline]
    pub(super) fn keep_apart(&mut self, place: Place<'_>, record_bytes: usize) -> Result<()> {
        self.places.push(place)?;
        self.rows += 1;
        self.bytes += record_bytes;
        if self.rows >= self.plan.settings.batch_rows_max || self.bytes >= BATCH_BYTES_MAX {
            self.close_batch()?;
        }
        Ok(())
    }

    /// Removes what has been appended of the row that is being decoded, and rejects its record.
    #[cold]
    pub(super) fn reject(&mut self, place: Place<'_>, raw: &[u8], reason: String) {
        self.archive(raw);
        self.reject_apart(place, raw, reason);
    }

    /// The same for a record that is not to stand in an archive, where it would take what follows along.
    #[cold]
    pub(super) fn reject_apart(&mut self, place: Place<'_>, raw: &[u8], reason: String) {
        for column in &mut self.columns {
            column.truncate(self.rows);
        }
        if let Some(rescued) = &mut self.rescued {
            rescued.truncate(self.rows);
        }
        self.reject_bytes += raw.len() + reason.len() + REJECT_OVERHEAD_BYTES;
        self.decoded.rejects.push(Reject {
            offset: place.text(),
            raw: Bytes::copy_from_slice(raw),
            reason,
            key: place.key(),
            header: self.header.clone(),
            redrivable: true,
        });
    }

    /// Has a record archived as it came.
    #[inline]
    pub(super) fn archive(&mut self, raw: &[u8]) {
        if let Some(archiving) = &mut self.archiving {
            archiving.push(self.header.as_deref(), raw);
        }
    }

    /// Counts a record that holds no row by its nature.
    pub(super) fn skip(&mut self) {
        self.decoded.skipped += 1;
    }

    /// Rejects a record that is over the limit, with its first bytes.
    #[cold]
    pub(super) fn reject_too_long(&mut self, place: Place<'_>, raw: &[u8]) {
        let reason = format!(
            "the record has {} bytes, more than the limit of {} (limits.record)",
            raw.len(),
            self.plan.settings.record_bytes_max
        );
        // The source may have cut it already.
        self.reject_damaged(place, raw, reason);
    }

    /// Rejects what is broken, with its first bytes.
    #[cold]
    pub(super) fn reject_damaged(&mut self, place: Place<'_>, raw: &[u8], reason: String) {
        self.reject_apart(place, raw.get(..TOO_LONG_RAW_BYTES_MAX).unwrap_or(raw), reason);
        if let Some(reject) = self.decoded.rejects.last_mut() {
            (reject.redrivable, reject.header) = (false, None);
        }
    }

    pub(super) fn is_too_long(&self, record_bytes: usize) -> bool {
        record_bytes > self.plan.settings.record_bytes_max
    }

    /// Tells whether what is there is enough for a step.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        !self.decoded.batches.is_empty() || self.reject_bytes >= REJECT_BYTES_MAX
    }

    /// Gives what is there; the open batch stays open.
    pub(super) fn take(&mut self) -> Result<Decoded> {
        self.reject_bytes = 0;
        if let Some(archiving) = &mut self.archiving {
            self.decoded.archived.extend(archiving.take(self.chunk.read_at_us)?);
        }
        Ok(std::mem::take(&mut self.decoded))
    }

    /// Gives what is left behind the last record.
    pub(super) fn finish(&mut self) -> Result<Decoded> {
        if self.rows > 0 {
            self.close_batch()?;
        }
        self.take()
    }

    fn close_batch(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect::<Result<_>>()?;
        if let Some(rescued) = &mut self.rescued {
            arrays.push(Arc::new(rescued.finish()?));
        }
        arrays.extend(self.places.finish(self.plan, self.chunk, rows)?);
        self.decoded.batches.push(RecordBatch::try_new(Arc::clone(&self.plan.schema), arrays)?);
        Ok(())
    }
}
