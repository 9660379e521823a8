//! Rows that are typed already get their provenance.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::DataType;

use super::Decoded;
use super::column::type_name;
use super::provenance::{Place, Places};
use super::settings::Plan;
use crate::batch::Chunk;
use crate::error::{Error, Result};

/// Checks that `rows` have the declared columns, and adds the provenance; `offset` counts rows.
pub(super) fn decode(plan: &Plan, chunk: &Chunk, offset: u64, rows: &RecordBatch) -> Result<Decoded> {
    check(plan, rows)?;
    let mut decoded = Decoded::default();
    let mut start = 0;
    while start < rows.num_rows() {
        let len = plan.settings.batch_rows_max.min(rows.num_rows() - start);
        let slice = rows.slice(start, len);
        let mut places = Places::new(plan.settings.offsets);
        for row in start..start + len {
            places.push(Place::Offset(offset + row as u64))?;
        }
        let mut arrays: Vec<ArrayRef> = slice.columns().to_vec();
        if plan.rescues {
            arrays.push(new_null_array(&DataType::Utf8View, len));
        }
        arrays.extend(places.finish(plan, chunk, len)?);
        decoded.batches.push(RecordBatch::try_new(Arc::clone(&plan.schema), arrays)?);
        start += len;
    }
    Ok(decoded)
}

fn check(plan: &Plan, rows: &RecordBatch) -> Result<()> {
    let source = &plan.settings.source;
    let schema = rows.schema();
    if schema.fields().len() != plan.declared.len() {
        return Err(Error::config(format!(
            "could not take rows of source \"{source}\": they have {} columns, but {} are declared",
            schema.fields().len(),
            plan.declared.len()
        )));
    }
    for ((is, declared), array) in schema.fields().iter().zip(&plan.declared).zip(rows.columns()) {
        if is.name() != declared.name() || is.data_type() != declared.data_type() {
            return Err(Error::config(format!(
                "could not take rows of source \"{source}\": column \"{}\" of type {} stands where \"{}\" of type {} is \
                 declared",
                is.name(),
                type_name(is.data_type(), false),
                declared.name(),
                type_name(declared.data_type(), false)
            )));
        }
        if !declared.is_nullable() && array.logical_null_count() > 0 {
            return Err(Error::config(format!(
                "could not take rows of source \"{source}\": column \"{}\" holds NULL, but is declared not null",
                declared.name()
            )));
        }
    }
    Ok(())
}
