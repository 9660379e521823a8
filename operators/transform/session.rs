//! Sessions: windows that last as long as rows follow one another.
//!
//! The states of a session are kept by the times of their rows, as spans from a first to a last time. Spans of the
//! same keys that lie less than the gap apart are one session, whatever the order in which their rows came.

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::row::{RowConverter, SortField};

use super::window::{WATERMARK_END, micros};
use crate::error::{Error, Result};

/// A first and a last time, in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first_us: i64,
    last_us: i64,
}

/// How the states of an aggregate over sessions belong together.
#[derive(Debug, Clone)]
pub struct Sessions {
    first_index: usize,
    last_index: usize,
    keys: Vec<usize>,
    gap_us: i64,
}

/// The sessions of some states: a span for each row, by batch. A row without a time has none.
struct Found(Vec<Vec<Option<Span>>>);

impl Sessions {
    /// Takes the places of a state's first time, its last time and all keys; rows this far apart are of two sessions.
    pub fn new(first_index: usize, last_index: usize, keys: usize, gap_us: i64) -> Self {
        let keys = (0..keys).filter(|index| ![first_index, last_index].contains(index)).collect();
        Self { first_index, last_index, keys, gap_us }
    }

    /// Marks the states of sessions that end at or before `bound_us`, by batch. A row without a time is not marked.
    pub fn closed(&self, states: &[&RecordBatch], bound_us: i64) -> Result<Vec<BooleanArray>> {
        let ends = |span: &Option<Span>| Some(span.is_some_and(|span| self.end_us(span) <= bound_us));
        Ok(self.find(states)?.0.iter().map(|spans| spans.iter().map(ends).collect()).collect())
    }

    /// Gives the end of the last session; nothing if there is none.
    pub fn last_end_us(&self, states: &[RecordBatch]) -> Result<Option<i64>> {
        let mut last = None;
        for batch in states {
            for span in self.spans(batch)?.into_iter().flatten() {
                last = last.max(Some(self.end_us(span)));
            }
        }
        Ok(last)
    }

    /// Gives the first time of the first session.
    pub fn earliest_us<'a>(&self, states: impl Iterator<Item = &'a RecordBatch>) -> Result<i64> {
        let mut earliest = WATERMARK_END;
        for batch in states {
            earliest = self.spans(batch)?.into_iter().flatten().map(|span| span.first_us).fold(earliest, i64::min);
        }
        Ok(earliest)
    }

    /// Gives each state the first and the last time of its session, so that the states of a session have equal keys.
    pub fn unite(&self, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let found = self.find(&states.iter().collect::<Vec<_>>())?;
        let united = states.into_iter().zip(found.0).map(|(batch, spans)| {
            let mut columns = batch.columns().to_vec();
            let firsts = spans.iter().map(|span| span.map(|span| span.first_us)).collect();
            let lasts = spans.iter().map(|span| span.map(|span| span.last_us)).collect();
            for (index, times) in [(self.first_index, firsts), (self.last_index, lasts)] {
                let column = columns.get_mut(index).ok_or_else(damaged)?;
                *column = like(times, column)?;
            }
            Ok(RecordBatch::try_new(batch.schema(), columns)?)
        });
        united.collect()
    }

    fn end_us(&self, span: impl std::borrow::Borrow<Span>) -> i64 {
        span.borrow().last_us.saturating_add(self.gap_us)
    }

    fn spans(&self, batch: &RecordBatch) -> Result<Vec<Option<Span>>> {
        let times = |index| batch.columns().get(index).ok_or_else(damaged).and_then(micros);
        let (firsts, lasts) = (times(self.first_index)?, times(self.last_index)?);
        let span = |(first, last): (Option<i64>, Option<i64>)| Some(Span { first_us: first?, last_us: last? });
        Ok(firsts.iter().zip(lasts.iter()).map(span).collect())
    }

    /// Finds each state's session among all states.
    fn find(&self, states: &[&RecordBatch]) -> Result<Found> {
        let Some(first) = states.first() else { return Ok(Found(Vec::new())) };
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
        Ok(Found(found))
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
    fn a_session_is_closed_as_a_whole() {
        let rows = states(&[(Some(0), Some(0), 1), (Some(9), Some(9), 1), (Some(5), Some(5), 2)]);
        let sessions = Sessions::new(0, 2, 3, 10);
        let closed =
            |bound| sessions.closed(&[&rows], bound).unwrap()[0].iter().map(Option::unwrap).collect::<Vec<_>>();
        assert_eq!(closed(14), [false, false, false]);
        assert_eq!(closed(15), [false, false, true]);
        assert_eq!(closed(19), [true, true, true]);
        assert_eq!(sessions.last_end_us(std::slice::from_ref(&rows)).unwrap(), Some(19));
        assert_eq!(sessions.earliest_us([&rows].into_iter()).unwrap(), 0);
    }
}
