//! Bytes of any length, one behind the other, as in Arrow's offset layout.
//!
//! This layout is cut back by two truncations, and Arrow validates the UTF-8 of
//! a whole batch in one pass before the views are made.

use arrow::array::{BinaryArray, BinaryViewArray, NullBufferBuilder, StringArray, StringViewArray};
use arrow::buffer::{Buffer, OffsetBuffer};

use super::Misfit;
use crate::error::{Error, Result};

/// Longest text that a view holds inside itself.
const INLINE_BYTES_MAX: usize = 12;

pub(in crate::decode) struct Texts {
    /// Where each value ends; starts with 0.
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    nulls: NullBufferBuilder,
    longest: usize,
}

impl Texts {
    pub(in crate::decode) fn new() -> Self {
        Self { offsets: vec![0], bytes: Vec::new(), nulls: NullBufferBuilder::new(0), longest: 0 }
    }

    pub(in crate::decode) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(in crate::decode) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.nulls.truncate(len);
        self.bytes.truncate(self.end());
    }

    pub(in crate::decode) fn push_null(&mut self) {
        self.offsets.push(self.offsets.last().copied().unwrap_or(0));
        self.nulls.append_null();
    }

    #[inline]
    pub(in crate::decode) fn push(&mut self, value: &[u8]) -> Result<(), Misfit> {
        self.bytes.extend_from_slice(value);
        self.seal()
    }

    /// Appends what `write` puts behind the bytes that are there.
    pub(in crate::decode) fn push_with<E: From<Misfit>>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        write(&mut self.bytes)?;
        Ok(self.seal()?)
    }

    #[inline]
    fn seal(&mut self) -> Result<(), Misfit> {
        let end = i32::try_from(self.bytes.len()).map_err(|_| Misfit::TooLarge)?;
        self.longest = self.longest.max(self.bytes.len() - self.end());
        self.offsets.push(end);
        self.nulls.append_non_null();
        Ok(())
    }

    fn end(&self) -> usize {
        self.offsets.last().and_then(|&end| usize::try_from(end).ok()).unwrap_or(0)
    }

    /// Takes the values out as text.
    pub(in crate::decode) fn finish(&mut self) -> Result<StringViewArray> {
        let short = std::mem::take(&mut self.longest) <= INLINE_BYTES_MAX;
        let (offsets, bytes, nulls) = self.take();
        let texts = StringArray::try_new(offsets, bytes, nulls)
            .map_err(|error| Error::internal("could not make a string column").because(error))?;
        let views = StringViewArray::from(&texts);
        // No view points into the bytes then, so they need not live on.
        Ok(if short { views.gc() } else { views })
    }

    /// Takes the values out as bytes.
    pub(in crate::decode) fn finish_binary(&mut self) -> Result<BinaryViewArray> {
        self.longest = 0;
        let (offsets, bytes, nulls) = self.take();
        Ok(BinaryViewArray::from(&BinaryArray::try_new(offsets, bytes, nulls)?))
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer, Option<arrow::buffer::NullBuffer>) {
        let rows = self.offsets.len();
        let mut next = Vec::with_capacity(rows);
        next.push(0);
        let offsets = std::mem::replace(&mut self.offsets, next);
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes.reserve(bytes.len());
        (OffsetBuffer::new(offsets.into()), bytes.into(), self.nulls.finish())
    }
}
