//! The columns that tell where a row came from.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewBuilder, TimestampMicrosecondArray};

use super::column::repeated;
use super::settings::Plan;
use crate::batch::{Chunk, OffsetKind, Record};
use crate::error::{Error, Result};

/// Where in its partition a row stands.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// At this byte or row.
    Offset(u64),
    /// In this record.
    Record(&'a Record),
}

impl Place<'_> {
    /// Gives the place as a reject has it.
    pub(super) fn text(&self) -> String {
        match self {
            Place::Offset(offset) => offset.to_string(),
            Place::Record(record) => record.offset.clone(),
        }
    }

    /// Gives the record's key, if its source has one.
    pub(super) fn key(&self) -> Option<String> {
        match self {
            Place::Offset(_) => None,
            Place::Record(record) => record.key.clone(),
        }
    }

    fn number(&self) -> Result<i64> {
        let number = match self {
            Place::Offset(offset) => i64::try_from(*offset).ok(),
            Place::Record(record) => record.offset.parse().ok(),
        };
        number.ok_or_else(|| Error::internal(format!("could not use offset {} as a 64-bit number", self.text())))
    }
}

/// The places of a batch's rows under construction.
pub(super) enum Places {
    Numbers(Vec<i64>),
    Sequences(Box<Sequences>),
}

/// Sequence numbers and partition keys.
pub(super) struct Sequences {
    offsets: StringViewBuilder,
    keys: StringViewBuilder,
}

impl Places {
    pub(super) fn new(kind: OffsetKind) -> Self {
        match kind {
            OffsetKind::Number => Places::Numbers(Vec::new()),
            OffsetKind::Sequence => Places::Sequences(Box::new(Sequences {
                offsets: StringViewBuilder::new(),
                keys: StringViewBuilder::new(),
            })),
        }
    }

    pub(super) fn push(&mut self, place: Place<'_>) -> Result<()> {
        match self {
            Places::Numbers(numbers) => numbers.push(place.number()?),
            Places::Sequences(sequences) => match place {
                Place::Offset(offset) => {
                    sequences.offsets.append_value(offset.to_string());
                    sequences.keys.append_null();
                }
                Place::Record(record) => {
                    sequences.offsets.append_value(&record.offset);
                    sequences.keys.append_option(record.key.as_deref());
                }
            },
        }
        Ok(())
    }

    /// Takes the places out and makes all provenance columns of these rows.
    pub(super) fn finish(&mut self, plan: &Plan, chunk: &Chunk, rows: usize) -> Result<Vec<ArrayRef>> {
        let (offsets, keys): (ArrayRef, Option<ArrayRef>) = match self {
            Places::Numbers(numbers) => (Arc::new(Int64Array::from(std::mem::take(numbers))), None),
            Places::Sequences(sequences) => {
                (Arc::new(sequences.offsets.finish()), Some(Arc::new(sequences.keys.finish())))
            }
        };
        let read_at = TimestampMicrosecondArray::from_value(chunk.read_at_us, rows).with_timezone("UTC");
        let mut columns = vec![
            repeated(&plan.settings.source, rows)?,
            repeated(&chunk.partition, rows)?,
            offsets,
            Arc::new(read_at) as ArrayRef,
        ];
        columns.extend(keys);
        Ok(columns)
    }
}
