//! Which columns of a file get a dictionary, by the rows that it begins with.
//!
//! A dictionary makes columns small whose values come again, and costs a look-up
//! for each value. Where hardly any value comes again (identifiers, sequence
//! numbers, coordinates) it saves nothing and costs more than all the rest of
//! the encoding: the encoder finds that out only when the dictionary has become
//! too large, and again in each row group.

use std::collections::HashSet;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use parquet::basic::Encoding;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::error::Result;

/// Rows that are looked at. Of as many that are drawn from 100 000 values at random, some 4 % come again.
const SAMPLE_ROWS: usize = 8192;

/// The fewest rows that say anything. A file that begins with fewer is one of short epochs, and small.
const SAMPLE_ROWS_MIN: usize = 1024;

/// The bytes of a value, by which the number of values is known from which a dictionary is left out: with so many it is at
/// the limit of the table, where it is given up anyway.
const VALUE_BYTES: usize = 8;

/// Gives the settings of a file that begins with `rows`.
pub(super) fn fitting(properties: &WriterProperties, rows: &RecordBatch) -> Result<WriterProperties> {
    let sampled = rows.num_rows().min(SAMPLE_ROWS);
    if sampled < SAMPLE_ROWS_MIN {
        return Ok(properties.clone());
    }
    let sample = rows.slice(0, sampled);
    let mut builder = properties.clone().into_builder();
    let values_max = properties.dictionary_page_size_limit() / VALUE_BYTES;
    for (field, values) in sample.schema_ref().fields().iter().zip(sample.columns()) {
        if field.data_type().is_nested() || *field.data_type() == DataType::Boolean {
            continue;
        }
        let path = ColumnPath::from(field.name().as_str());
        if is_stored_whole(field.data_type()) {
            // Also for what comes after the dictionary has become too large.
            builder = builder.set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
        }
        let encoded = RowConverter::new(vec![SortField::new(field.data_type().clone())])?
            .convert_columns(std::slice::from_ref(values))?;
        let distinct = encoded.iter().map(|row| row.data()).collect::<HashSet<_>>().len();
        if values_estimated(sampled, distinct) > values_max {
            builder = builder.set_column_dictionary_enabled(path, false);
        }
    }
    Ok(builder.build())
}

/// Estimates of how many values rows were drawn, if `distinct` of `rows` differ: n rows of D values have about
/// n²/2D pairs of equals, as long as n is small beside D.
fn values_estimated(rows: usize, distinct: usize) -> usize {
    let equals = rows - distinct.min(rows);
    rows.saturating_mul(rows) / (2 * equals.max(1))
}

/// Tells whether values are whole numbers in the file, whose differences are small where they grow.
fn is_stored_whole(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_temporal()
}
