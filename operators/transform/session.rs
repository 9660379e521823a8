//! Sessions: windows that last as long as rows follow one another.
//!
//! The states of a session are kept by the times of their rows, as spans from a first to a last time. Spans of the
//! same keys that lie less than the gap apart are one session, whatever the order in which their rows came.

use arrow::array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::row::{RowConverter, SortField};

use super::window::{WATERMARK_END, micros};
use crate::error::{Error, Result};

/// By which part of the gap the places of sessions' ends are rounded up. States that stand at the same end are ordered
/// by key, so that those of a key are found in few blocks: the more there are of them, the fewer blocks. The states of
/// the part that the watermark stands in are read by each epoch: the fewer, the better.
const PARTS_OF_GAP: i64 = 16;

/// A first and a last time, in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The time of the first row.
    pub first_us: i64,
    /// The time of the last row.
    pub last_us: i64,
}

/// How the states of an aggregate over sessions belong together.
#[derive(Debug, Clone)]
pub struct Sessions {
    first_index: usize,
    last_index: usize,
    /// The columns of the keys, with those of the first and the last time.
    columns: usize,
    keys: Vec<usize>,
    gap_us: i64,
}

impl Sessions {
    /// Takes the places of a state's first time, its last time and all keys, which are the first columns; rows this far
    /// apart are of two sessions.
    pub fn new(first_index: usize, last_index: usize, columns: usize, gap_us: i64) -> Self {
        let keys = (0..columns).filter(|index| ![first_index, last_index].contains(index)).collect();
        Self { first_index, last_index, columns, keys, gap_us }
    }

    /// Gives the columns that the states of a session have in common.
    pub fn keys(&self) -> &[usize] {
        &self.keys
    }

    /// Leaves of states what tells to which session they belong.
    pub fn without_accumulators(&self, states: &RecordBatch) -> Result<RecordBatch> {
        Ok(states.project(&(0..self.columns).collect::<Vec<_>>())?)
    }

    /// Gives the end of a session; [`WATERMARK_END`] of a state without a time.
    pub fn end_us(&self, span: Option<Span>) -> i64 {
        span.map_or(WATERMARK_END, |span| span.last_us.saturating_add(self.gap_us))
    }

    /// Gives the end at which a state stands whose session ends at `end_us`: not before it, and by less than
    /// [`stands_within_us`](Self::stands_within_us) behind it.
    pub fn stands_at_us(&self, end_us: i64) -> i64 {
        let part = self.stands_within_us();
        match end_us.rem_euclid(part) {
            0 => end_us,
            over => end_us.saturating_add(part - over),
        }
    }

    /// Gives how far behind its end a state may stand, and one more. No state that comes in stands as close to the
    /// watermark.
    pub fn stands_within_us(&self) -> i64 {
        (self.gap_us / PARTS_OF_GAP).max(1)
    }

    /// Gives each state the first and the last time of its session, so that the states of a session have equal keys.
    pub fn unite(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let found = self.find(&states.iter().collect::<Vec<_>>())?;
        states.iter().zip(found).map(|(batch, spans)| self.with_spans(batch, &spans)).collect()
    }

    /// Gives states other times.
    pub fn with_spans(&self, states: &RecordBatch, spans: &[Option<Span>]) -> Result<RecordBatch> {
        let mut columns = states.columns().to_vec();
        let firsts = spans.iter().map(|span| span.map(|span| span.first_us)).collect();
        let lasts = spans.iter().map(|span| span.map(|span| span.last_us)).collect();
        for (index, times) in [(self.first_index, firsts), (self.last_index, lasts)] {
            let column = columns.get_mut(index).ok_or_else(damaged)?;
            *column = like(times, column)?;
        }
        Ok(RecordBatch::try_new(states.schema(), columns)?)
    }

    /// Gives the span of each state; none of one without a time.
    pub fn spans(&self, states: &RecordBatch) -> Result<Vec<Option<Span>>> {
        let times = |index| states.columns().get(index).ok_or_else(damaged).and_then(micros);
        let (firsts, lasts) = (times(self.first_index)?, times(self.last_index)?);
        let span = |(first, last): (Option<i64>, Option<i64>)| Some(Span { first_us: first?, last_us: last? });
        Ok(firsts.iter().zip(lasts.iter()).map(span).collect())
    }

    /// Gives the span of each state's session among all states; none of a state without a time.
    pub fn find(&self, states: &[&RecordBatch]) -> Result<Vec<Vec<Option<Span>>>> {
        let Some(first) = states.first() else { return Ok(Vec::new()) };
        let fields = self.keys.iter().map(|index| SortField::new(first.schema_ref().field(*index).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        let mut found = Vec::with_capacity(states.len());
        let mut keys = Vec::with_capacity(states.len());
        let mut order = Vec::new();
        for (place, batch) in states.iter().enumerate() {
            let columns: Vec<ArrayRef> = batch.project(&self.keys)?.columns().to_vec();
            // Without keys there is nothing to convert, and all rows have the same none.
            keys.push(if columns.is_empty() { None } else { Some(converter.convert_columns(&columns)?) });
            let spans = self.spans(batch)?;
            order.extend(spans.iter().enumerate().filter_map(|(row, span)| span.map(|span| (place, row, span))));
            found.push(spans);
        }
        let key = |(place, row, _): &(usize, usize, Span)| {
            keys.get(*place).and_then(Option::as_ref).map(|keys| keys.row(*row))
        };
        order.sort_unstable_by(|a, b| key(a).cmp(&key(b)).then(a.2.first_us.cmp(&b.2.first_us)));
        let mut session: Vec<(usize, usize)> = Vec::new();
        let mut open: Option<(Option<arrow::row::Row<'_>>, Span)> = None;
        for state @ (place, row, span) in &order {
            match &mut open {
                Some((of, whole)) if *of == key(state) && span.first_us.saturating_sub(whole.last_us) < self.gap_us => {
                    whole.last_us = whole.last_us.max(span.last_us);
                }
                _ => {
                    close(&mut found, &mut session, open.take().map(|(_, whole)| whole));
                    open = Some((key(state), *span));
                }
            }
            session.push((*place, *row));
        }
        close(&mut found, &mut session, open.map(|(_, whole)| whole));
        Ok(found)
    }
}

/// Writes a whole session's span to all of its states.
fn close(found: &mut [Vec<Option<Span>>], session: &mut Vec<(usize, usize)>, whole: Option<Span>) {
    for (place, row) in session.drain(..) {
        if let Some(span) = found.get_mut(place).and_then(|spans| spans.get_mut(row)) {
            *span = whole;
        }
    }
}

/// Makes a column of times of the same type as another.
fn like(times_us: Vec<Option<i64>>, column: &ArrayRef) -> Result<ArrayRef> {
    let times = TimestampMicrosecondArray::from(times_us).with_timezone_opt(match column.data_type() {
        arrow::datatypes::DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    });
    Ok(arrow::compute::cast(&times, column.data_type())?)
}

fn damaged() -> Error {
    Error::internal("the state of a session does not have the columns it should")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::TimestampMicrosecondType;

    use super::*;

    fn states(rows: &[(Option<i64>, Option<i64>, i64)]) -> RecordBatch {
        let times = |times: Vec<Option<i64>>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
        };
        let firsts = times(rows.iter().map(|row| row.0).collect());
        let lasts = times(rows.iter().map(|row| row.1).collect());
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2)));
        RecordBatch::try_from_iter([("first", firsts), ("key", keys), ("last", lasts)]).unwrap()
    }

    fn united(rows: &[RecordBatch]) -> Vec<(Option<i64>, Option<i64>)> {
        let sessions = Sessions::new(0, 2, 3, 10);
        let times = |batch: &RecordBatch, index: usize| {
            batch.column(index).as_primitive::<TimestampMicrosecondType>().iter().collect::<Vec<_>>()
        };
        let united = sessions.unite(rows.to_vec()).unwrap();
        united.iter().flat_map(|batch| times(batch, 0).into_iter().zip(times(batch, 2))).collect()
    }

    #[test]
    fn rows_less_than_the_gap_apart_are_one_session_in_any_order() {
        let at = |time: i64, key| (Some(time), Some(time), key);
        let found =
            united(&[states(&[at(9, 1), at(20, 1), at(0, 1)]), states(&[at(19, 2), at(28, 2), (None, None, 1)])]);
        let one = (Some(0), Some(9));
        let two = (Some(19), Some(28));
        assert_eq!(found, [one, (Some(20), Some(20)), one, two, two, (None, None)]);
        assert_eq!(
            united(&[states(&[at(10, 1), at(0, 1)])]),
            [(Some(10), Some(10)), (Some(0), Some(0))],
            "a gap apart"
        );
    }

    #[test]
    fn a_span_within_another_does_not_shorten_it() {
        let found = united(&[states(&[(Some(0), Some(30), 1), (Some(5), Some(6), 1), (Some(39), Some(39), 1)])]);
        assert_eq!(found, [(Some(0), Some(39)); 3]);
    }

    #[test]
    fn a_state_stands_close_behind_the_end_of_its_session() {
        let sessions = Sessions::new(0, 2, 3, 160);
        let within = sessions.stands_within_us();
        for end in (-50..50).chain([i64::MIN + 200, WATERMARK_END - 1, WATERMARK_END]) {
            let stands = sessions.stands_at_us(end);
            assert!(stands >= end && stands - end < within, "{end} stands at {stands}");
            assert!(stands == WATERMARK_END || stands % within == 0, "{end} stands at {stands}");
        }
        assert_eq!(sessions.end_us(None), WATERMARK_END, "without a time there is no end");
    }
}
