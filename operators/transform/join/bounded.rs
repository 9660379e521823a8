//! Joins within a time bound.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;

use super::side::{Meetings, Side};
use super::{at_hand, widened};
use crate::error::Result;
use crate::transform::query::Query;
use crate::transform::segments::{Segment, Snapshot};

/// What of a row of the left comes out of a join. (A join that keeps the right is one that keeps the left, turned.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinKind {
    /// With each partner.
    Inner,
    /// With each partner; alone if it has none.
    Left,
    /// As `Left`, and so the rows of the right.
    Full,
    /// Once, if it has a partner.
    Semi,
    /// Once, if it has none.
    Anti,
}

impl JoinKind {
    /// Tells whether rows come out with their partners.
    pub fn gives_pairs(self) -> bool {
        matches!(self, JoinKind::Inner | JoinKind::Left | JoinKind::Full)
    }
}

/// Has rows of two streams meet within a time bound.
pub struct Bounded {
    kind: JoinKind,
    left: Side,
    right: Side,
    pairs: Option<Meetings>,
    columns: [usize; 2],
}

impl Bounded {
    /// Takes both sides, the query that gives the pairs of their rows if the kind gives any, and how many columns each
    /// side has.
    pub fn new(kind: JoinKind, [left, right]: [Side; 2], pairs: Option<Meetings>, columns: [usize; 2]) -> Self {
        Self { kind, left, right, pairs, columns }
    }

    /// Gives the query that has rows meet.
    pub fn query(&self) -> Option<&Query> {
        self.pairs.as_ref().map(Meetings::query).or_else(|| self.left.query())
    }

    /// Has the plans made again before the next run.
    pub fn refresh(&mut self) {
        self.left.refresh();
        self.right.refresh();
        if let Some(pairs) = &mut self.pairs {
            pairs.refresh();
        }
    }

    /// Has the fresh rows of both sides meet, and gives what comes out and up to which time rows are late from now on.
    ///
    /// Without a time the input has ended: all rows that still wait for a partner come out, and whoever could have been
    /// one is late from now on. Rows that have come out with their partners stay.
    pub async fn meet(
        &mut self,
        fresh: [Vec<RecordBatch>; 2],
        time_us: Option<i64>,
        passed_us: i64,
        joined: &SchemaRef,
    ) -> Result<(Vec<SendableRecordBatchStream>, i64)> {
        let [left, right] = fresh;
        let (left, right) = (self.left.number(left)?, self.right.number(right)?);
        let left_found = self.left.find(&left, &self.right, &right).await?;
        let right_found = self.right.find(&right, &self.left, &left).await?;
        let mut met = match &mut self.pairs {
            Some(pairs) => pairs.run((self.left.rows(), &left), (self.right.rows(), &right)).await?,
            None => Vec::new(),
        };
        let paired = self.left.keep(left, left_found)?;
        self.right.keep(right, right_found)?;
        let bound_us = match time_us {
            Some(time_us) => time_us,
            None => self.last_alone_us()?.map_or(passed_us, |last| last.max(passed_us)),
        };
        let (left_alone, right_alone) = (self.left.expire(bound_us)?, self.right.expire(bound_us)?);
        let (left_out, right_out) = match self.kind {
            JoinKind::Inner => (Vec::new(), Vec::new()),
            JoinKind::Semi => (paired, Vec::new()),
            JoinKind::Left | JoinKind::Anti => (left_alone, Vec::new()),
            JoinKind::Full => (left_alone, right_alone),
        };
        let [left_columns, right_columns] = self.columns;
        for (rows, first, columns) in [(left_out, 0, left_columns), (right_out, left_columns, right_columns)] {
            let rows = rows.iter().map(|rows| widened(rows, first, columns, joined)).collect::<Result<_>>()?;
            met.extend(at_hand(rows));
        }
        Ok((met, bound_us))
    }

    /// Closes the epoch: gives what has to be durable of each side.
    pub fn seal(&mut self, epoch: u64) -> Result<((Snapshot, Snapshot), (Snapshot, Snapshot))> {
        Ok((self.left.seal(epoch)?, self.right.seal(epoch)?))
    }

    /// Goes on from a snapshot: of each side its rows, and which of them had found a partner.
    pub fn restore(
        &mut self,
        left: (Vec<Segment>, Vec<Segment>),
        right: (Vec<Segment>, Vec<Segment>),
        passed_us: i64,
    ) -> Result<()> {
        self.left.restore(left.0, left.1, passed_us)?;
        self.right.restore(right.0, right.1, passed_us)
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.left.size_bytes() + self.right.size_bytes()
    }

    /// Gives the time at which the last row passes that waits to come out alone.
    fn last_alone_us(&self) -> Result<Option<i64>> {
        if self.kind == JoinKind::Semi {
            return Ok(None);
        }
        Ok(self.left.last_alone_us()?.max(self.right.last_alone_us()?))
    }
}
