//! Joins within a time bound.

use std::fs::File;

use arrow::array::RecordBatch;
use futures::TryStreamExt;

use super::Out;
use super::meetings::Meetings;
use super::side::Side;
use crate::error::Result;
use crate::transform::query::Query;
use crate::transform::sealed::Sealed;
use crate::transform::states::States;

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
}

impl Bounded {
    /// Takes both sides, and the query that gives the pairs of their rows if the kind gives any.
    pub fn new(kind: JoinKind, [left, right]: [Side; 2], pairs: Option<Meetings>) -> Self {
        Self { kind, left, right, pairs }
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

    /// Has the fresh rows of both sides meet, and tells up to which time rows are late from now on.
    ///
    /// Without a time the input has ended: all rows that still wait for a partner come out, and whoever could have been
    /// one is late from now on. Rows that have come out with their partners stay.
    pub async fn meet(
        &mut self,
        [left, right]: [Vec<RecordBatch>; 2],
        time_us: Option<i64>,
        passed_us: i64,
        out: &Out,
    ) -> Result<i64> {
        let alone = Some(out).filter(|_| self.kind != JoinKind::Semi);
        let paired = Some(out).filter(|_| self.kind == JoinKind::Semi);
        let (left, right) = (self.left.admit(left, alone).await?, self.right.admit(right, alone).await?);
        self.left.find(&left, &mut self.right, &right, paired).await?;
        self.right.find(&right, &mut self.left, &left, paired).await?;
        if let Some(pairs) = &mut self.pairs {
            let mut met = pairs.of_first(&left, self.right.kept(), &right).await?;
            while let Some(rows) = met.try_next().await? {
                out.give(&rows).await?;
            }
            drop(met);
            let mut met = pairs.of_second(self.left.kept(), &right).await?;
            while let Some(rows) = met.try_next().await? {
                out.give(&rows).await?;
            }
        }
        let bound_us = match time_us {
            Some(time_us) => time_us,
            None => self.last_alone_us([&left, &right])?.map_or(passed_us, |last| last.max(passed_us)),
        };
        self.left.keep(left, bound_us, alone).await?;
        self.right.keep(right, bound_us, alone).await?;
        Ok(bound_us)
    }

    /// Closes the epoch: tells what has to be durable of each side.
    pub fn seal(&mut self, epoch: u64) -> Result<[[Sealed; 2]; 2]> {
        Ok([self.left.seal(epoch)?, self.right.seal(epoch)?])
    }

    /// Gives what is kept of each side.
    pub fn states(&mut self) -> [[Option<&mut States>; 2]; 2] {
        [self.left.states(), self.right.states()]
    }

    /// Goes on from the files of some epochs: of each side its rows, and which of them had found a partner.
    pub fn restore(&mut self, [left, right]: [[Vec<(u64, File)>; 2]; 2], passed_us: i64) -> Result<()> {
        let ([left, left_found], [right, right_found]) = (left, right);
        self.left.restore(left, left_found, passed_us)?;
        self.right.restore(right, right_found, passed_us)
    }

    /// Gives the memory that the kept rows take, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.left.size_bytes() + self.right.size_bytes()
    }

    /// Gives the time at which the last row passes that waits to come out alone.
    fn last_alone_us(&mut self, [left, right]: [&[RecordBatch]; 2]) -> Result<Option<i64>> {
        if self.kind == JoinKind::Semi {
            return Ok(None);
        }
        Ok(self.left.last_alone_us(left)?.max(self.right.last_alone_us(right)?))
    }
}
