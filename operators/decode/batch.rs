//! Rows that are typed already get their provenance.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::DataType;

use super::archiving::Archiving;
use super::column::type_name;
use super::provenance::{Place, Places};
use super::settings::Plan;
use super::{Decoded, FormatSettings};
use crate::batch::Chunk;
use crate::error::{Error, Result};

/// Checks that `rows` have the declared columns, and adds the provenance; `offset` counts rows.
pub(super) fn decode<'a>(
    plan: &'a Plan,
    chunk: &'a Chunk,
    offset: u64,
    rows: &'a RecordBatch,
) -> Result<impl Iterator<Item = Result<Decoded>> + Send + 'a> {
    check(plan, rows)?;
    let slices = (0..rows.num_rows()).step_by(plan.settings.batch_rows_max).map(move |start| {
        let len = plan.settings.batch_rows_max.min(rows.num_rows() - start);
        let mut places = Places::new(plan.settings.offsets);
        for row in start..start + len {
            places.push(Place::Offset(offset + row as u64))?;
        }
        let slice = rows.slice(start, len);
        let archived = if plan.settings.archives { archived(&slice, chunk)? } else { None };
        let archived = archived.into_iter().collect();
        let mut arrays: Vec<ArrayRef> = slice.columns().to_vec();
        if plan.rescues {
            arrays.push(new_null_array(&DataType::Utf8View, len));
        }
        arrays.extend(places.finish(plan, chunk, len)?);
        let batch = RecordBatch::try_new(Arc::clone(&plan.schema), arrays)?;
        Ok(Decoded { batches: vec![batch], archived, ..Decoded::default() })
    });
    Ok(slices)
}

/// Gives rows for an archive.
fn archived(rows: &RecordBatch, chunk: &Chunk) -> Result<Option<RecordBatch>> {
    let Some(mut archiving) = Archiving::of(&FormatSettings::Batch) else { return Ok(None) };
    archiving.push_rows(rows)?;
    archiving.take(chunk.read_at_us)
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

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::Field;

    use super::*;
    use crate::batch::{OffsetKind, Payload};
    use crate::decode::testing::*;
    use crate::decode::{DecoderSettings, FormatSettings, decode_whole, decoder};
    use crate::error::ErrorKind;

    fn rows(name: &str, values: Vec<Option<i64>>) -> Payload {
        let array: ArrayRef = Arc::new(Int64Array::from(values));
        let rows = RecordBatch::try_from_iter_with_nullable([(name, array, true)]).unwrap();
        Payload::Batch { offset: 40, rows }
    }

    #[test]
    fn rows_get_their_provenance() {
        for format in [FormatSettings::Batch, FormatSettings::Json] {
            let settings =
                DecoderSettings { batch_rows_max: 2, ..settings(format.clone(), vec![field("id", DataType::Int64)]) };
            let (batch, decoded) = decode_chunk(settings, &chunk(rows("id", vec![Some(1), None, Some(3)])));
            assert_eq!(decoded.batches.len(), 2);
            assert_eq!(texts(&batch, "id"), ["1", "-", "3"]);
            assert_eq!(texts(&batch, "_offset"), ["40", "41", "42"]);
            assert_eq!(batch.column_by_name("_rescued").is_some(), format == FormatSettings::Json);
        }
        let sequence = DecoderSettings {
            offsets: OffsetKind::Sequence,
            ..settings(FormatSettings::Batch, vec![field("id", DataType::Int64)])
        };
        let (batch, _) = decode_chunk(sequence, &chunk(rows("id", vec![Some(1)])));
        assert_eq!((texts(&batch, "_offset"), texts(&batch, "_key")), (vec!["40".into()], vec!["-".into()]));
    }

    #[test]
    fn rows_of_other_columns_are_refused() {
        let refused = |columns: Vec<Field>, payload: Payload| {
            let decoder = decoder(settings(FormatSettings::Batch, columns)).unwrap();
            let error = decode_whole(&*decoder, &chunk(payload)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            error.to_string()
        };
        assert!(refused(vec![], rows("id", vec![])).ends_with("they have 1 columns, but 0 are declared"));
        assert!(refused(vec![field("id", DataType::Utf8View)], rows("id", vec![])).contains("\"id\" of type int64"));
        assert!(refused(vec![field("no", DataType::Int64)], rows("id", vec![])).contains("\"no\" of type int64"));
        let not_null = vec![field("id", DataType::Int64).with_nullable(false)];
        assert!(
            refused(not_null, rows("id", vec![None])).ends_with("column \"id\" holds NULL, but is declared not null")
        );
    }
}
