//! Decoding a step at a time: what a chunk becomes may be many times its size, and must not all be there at once.

use super::Decoded;
use super::rows::Rows;
use super::settings::Plan;
use crate::batch::Chunk;
use crate::error::Result;

/// The records of a chunk, as its format counts them.
pub(super) trait Records {
    /// Decodes records until the rows are [full](Rows::is_full); tells whether there may be more.
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool>;
}

/// The steps of a chunk.
pub(super) struct Stepped<'a, R> {
    rows: Rows<'a>,
    /// Nothing once the last step has been taken.
    records: Option<R>,
}

impl<'a, R: Records> Stepped<'a, R> {
    pub(super) fn new(plan: &'a Plan, chunk: &'a Chunk, records: R) -> Result<Self> {
        Ok(Self { rows: Rows::new(plan, chunk)?, records: Some(records) })
    }
}

impl<R: Records> Iterator for Stepped<'_, R> {
    type Item = Result<Decoded>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.records.as_mut()?.read(&mut self.rows) {
            Ok(true) => Some(self.rows.take()),
            ended => {
                self.records = None;
                Some(ended.and_then(|_| self.rows.finish()))
            }
        }
    }
}
