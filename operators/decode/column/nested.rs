//! Columns whose values have parts: lists, structs and maps.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, MapArray, NullBufferBuilder, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};

use super::{Column, Misfit};
use crate::decode::names::Names;
use crate::error::{Error, Result};

/// Lists under construction: the items of all of them, and where each list ends.
pub(in crate::decode) struct ListColumn {
    pub(in crate::decode) item: Column,
    ends: Ends,
    field: FieldRef,
}

impl ListColumn {
    pub(super) fn new(field: &FieldRef, path: &str) -> Result<Self> {
        Ok(Self { item: Column::new(field, &format!("{path}[]"))?, ends: Ends::new(), field: Arc::clone(field) })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.item.truncate(self.ends.last());
    }

    pub(super) fn push_null(&mut self) {
        self.ends.push_null();
    }

    /// Makes one list of the items that were appended since the last.
    pub(in crate::decode) fn seal(&mut self) -> Result<(), Misfit> {
        self.ends.push(self.item.len())
    }

    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        let (offsets, nulls) = self.ends.finish();
        Ok(Arc::new(ListArray::try_new(Arc::clone(&self.field), offsets, self.item.finish()?, nulls)?))
    }
}

/// Structs under construction: one column for each field.
pub(in crate::decode) struct StructColumn {
    pub(in crate::decode) columns: Vec<Column>,
    pub(in crate::decode) names: Arc<Names>,
    fields: Fields,
    nulls: NullBufferBuilder,
}

impl StructColumn {
    pub(super) fn new(fields: &Fields, path: &str) -> Result<Self> {
        let columns = fields.iter().map(|field| Column::new(field, &format!("{path}.{}", field.name())));
        Ok(Self {
            columns: columns.collect::<Result<_>>()?,
            names: Arc::new(Names::new(fields.iter().map(|field| field.name().as_str()))),
            fields: fields.clone(),
            nulls: NullBufferBuilder::new(0),
        })
    }

    pub(in crate::decode) fn len(&self) -> usize {
        self.nulls.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.nulls.truncate(len);
        for column in &mut self.columns {
            column.truncate(len);
        }
    }

    pub(super) fn push_null(&mut self) {
        let len = self.len();
        for column in &mut self.columns {
            column.truncate(len);
            column.push_filler();
        }
        self.nulls.append_null();
    }

    /// Makes one struct of the values that were appended to each column.
    pub(in crate::decode) fn seal(&mut self) {
        self.nulls.append_non_null();
    }

    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        let len = self.len();
        let arrays = self.columns.iter_mut().map(Column::finish).collect::<Result<_>>()?;
        Ok(Arc::new(StructArray::try_new_with_length(self.fields.clone(), arrays, self.nulls.finish(), len)?))
    }
}

/// Maps under construction: the keys and values of all of them, and where each map ends.
pub(in crate::decode) struct MapColumn {
    pub(in crate::decode) keys: Column,
    pub(in crate::decode) values: Column,
    ends: Ends,
    entries: FieldRef,
}

impl MapColumn {
    pub(super) fn new(entries: &FieldRef, path: &str) -> Result<Self> {
        let (key, value) = key_and_value(entries)?;
        let path = format!("{path}[]");
        Ok(Self {
            keys: Column::new(key, &path)?,
            values: Column::new(value, &path)?,
            ends: Ends::new(),
            entries: Arc::clone(entries),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.keys.truncate(self.ends.last());
        self.values.truncate(self.ends.last());
    }

    pub(super) fn push_null(&mut self) {
        self.ends.push_null();
    }

    /// Makes one map of the keys and values that were appended since the last.
    pub(in crate::decode) fn seal(&mut self) -> Result<(), Misfit> {
        self.ends.push(self.keys.len())
    }

    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        let DataType::Struct(fields) = self.entries.data_type() else {
            return Err(Error::internal("could not make a map column: its entries are no struct"));
        };
        let entries = StructArray::try_new(fields.clone(), vec![self.keys.finish()?, self.values.finish()?], None)?;
        let (offsets, nulls) = self.ends.finish();
        Ok(Arc::new(MapArray::try_new(Arc::clone(&self.entries), offsets, entries, nulls, false)?))
    }
}

fn key_and_value(entries: &Field) -> Result<(&FieldRef, &FieldRef)> {
    match entries.data_type() {
        DataType::Struct(fields) => match fields.iter().as_slice() {
            [key, value] => Ok((key, value)),
            _ => Err(Error::config("could not decode a map column: its entries must be a key and a value")),
        },
        other => Err(Error::config(format!("could not decode a map column: its entries are {other}, not a struct"))),
    }
}

/// Where each list or map ends in the columns of its parts.
struct Ends {
    /// Starts with 0.
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl Ends {
    fn new() -> Self {
        Self { offsets: vec![0], nulls: NullBufferBuilder::new(0) }
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn last(&self) -> usize {
        self.offsets.last().and_then(|&end| usize::try_from(end).ok()).unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.nulls.truncate(len);
    }

    fn push_null(&mut self) {
        self.offsets.push(self.offsets.last().copied().unwrap_or(0));
        self.nulls.append_null();
    }

    fn push(&mut self, end: usize) -> Result<(), Misfit> {
        self.offsets.push(i32::try_from(end).map_err(|_| Misfit::TooLarge)?);
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(&mut self) -> (OffsetBuffer<i32>, Option<arrow::buffer::NullBuffer>) {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        (OffsetBuffer::new(offsets.into()), self.nulls.finish())
    }
}
