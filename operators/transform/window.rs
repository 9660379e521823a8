//! Event-time windows: which window a row falls into, and when it ends.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use chrono::{DateTime, Months};
use datafusion::physical_expr::PhysicalExpr;

use super::query::failed;
use crate::error::{Error, Result};

/// No row has been seen: nothing is late, nothing closes.
pub const WATERMARK_START: i64 = i64::MIN;
/// There will be no more rows: every window closes.
pub const WATERMARK_END: i64 = i64::MAX;

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// This many microseconds.
    Micros(i64),
    /// This many months of the calendar.
    Months(u32),
}

impl Width {
    /// Gives the end of the window that starts at `start_us`; the end is not part of it.
    pub fn end_us(self, start_us: i64) -> i64 {
        match self {
            Width::Micros(width) => start_us.saturating_add(width),
            Width::Months(months) => DateTime::from_timestamp_micros(start_us)
                .and_then(|start| start.checked_add_months(Months::new(months)))
                .map_or(WATERMARK_END, |end| end.timestamp_micros()),
        }
    }

    /// Gives the time before which no window starts that is still open when the watermark stands at `watermark_us`.
    pub fn earliest_open_start_us(self, watermark_us: i64) -> i64 {
        if watermark_us == WATERMARK_START || watermark_us == WATERMARK_END {
            return watermark_us;
        }
        match self {
            Width::Micros(width) => watermark_us.saturating_sub(width).saturating_add(1),
            Width::Months(months) => DateTime::from_timestamp_micros(watermark_us)
                .and_then(|time| time.checked_sub_months(Months::new(months)))
                .map_or(WATERMARK_START, |start| start.timestamp_micros().saturating_add(1)),
        }
    }
}

/// How far a window reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every window is this long.
    Width(Width),
    /// From its first row to the gap behind its last, whose time stands at `last_index` of the aggregate's keys.
    Session {
        /// Rows this far apart are of two sessions, in microseconds.
        gap_us: i64,
        /// Place of the last time among the keys.
        last_index: usize,
    },
}

impl Extent {
    /// Gives how long a row's window lasts at least, counted from the row's start.
    ///
    /// A session that has been given out may reach up to the watermark: a row before it could belong to it.
    pub fn row_width(self) -> Width {
        match self {
            Extent::Width(width) => width,
            Extent::Session { .. } => Width::Micros(1),
        }
    }
}

/// Computes the start of a row's window, and knows the window's width.
#[derive(Debug, Clone)]
pub struct Window {
    /// Gives the start from a row; any timestamp type.
    pub start: Arc<dyn PhysicalExpr>,
    /// How long the window is.
    pub width: Width,
}

impl Window {
    /// Gives the end of each row's window in microseconds; nothing where the start is NULL.
    pub fn ends_us(&self, rows: &RecordBatch) -> Result<Vec<Option<i64>>> {
        let starts = self.start.evaluate(rows).and_then(|v| v.into_array(rows.num_rows())).map_err(failed)?;
        let starts = micros(&starts)?;
        Ok(starts.iter().map(|start| start.map(|start| self.width.end_us(start))).collect())
    }

    /// Marks the rows whose window ends at or before `bound_us`. A row without a window is not marked.
    pub fn closed(&self, rows: &RecordBatch, bound_us: i64) -> Result<BooleanArray> {
        Ok(self.ends_us(rows)?.into_iter().map(|end| Some(end.is_some_and(|end| end <= bound_us))).collect())
    }
}

/// Gives timestamps of any unit as microseconds.
pub fn micros(times: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let array = cast(times, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
    let array = array.as_any().downcast_ref::<TimestampMicrosecondArray>();
    array.cloned().ok_or_else(|| Error::internal("a cast to microseconds gave another type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 86_400_000_000;

    #[test]
    fn a_month_ends_where_the_calendar_says() {
        let january = 1_356_998_400_000_000; // 2013-01-01T00:00:00Z
        assert_eq!(Width::Months(1).end_us(january), january + 31 * DAY_US);
        assert_eq!(Width::Months(2).end_us(january), january + 59 * DAY_US);
    }

    #[test]
    fn no_open_window_starts_before_the_bound() {
        let width = Width::Micros(60);
        for watermark in 1000..1200 {
            let bound = width.earliest_open_start_us(watermark);
            for start in (900..1300).step_by(60) {
                let open = width.end_us(start) > watermark;
                assert!(!open || start >= bound, "start {start} watermark {watermark}");
            }
        }
    }

    #[test]
    fn the_end_of_input_passes_through() {
        assert_eq!(Width::Micros(5).earliest_open_start_us(WATERMARK_END), WATERMARK_END);
        assert_eq!(Width::Months(5).earliest_open_start_us(WATERMARK_START), WATERMARK_START);
    }
}
