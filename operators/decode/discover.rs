//! Finds columns among the fields that no column declares.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};

use super::infer::{Columns, Kind, infer_document};
use super::settings::FormatSettings;
use crate::batch::RESCUED_COLUMN;

/// Columns that are found in one source. Keys that are values themselves, such as ids, never end; a table of more
/// columns is of no use to anybody.
pub const FOUND_MAX: usize = 128;

/// Longest name of a column, in bytes: what Postgres takes.
const NAME_BYTES_MAX: usize = 63;

/// Finds columns among the rescued fields of decoded rows.
///
/// A field becomes a column once it has had a value that is not NULL; its type holds all values that were seen by then.
/// Fields inside of structs stay rescued, and so do those whose names begin with `_`, hold other characters than
/// letters, digits, `_`, `-` and spaces, or differ from another column's only in upper and lower case, which most
/// readers do not tell apart.
#[derive(Debug)]
pub struct Discovery {
    /// Texts that mean NULL, if all values are texts, as in CSV.
    csv_nulls: Option<Vec<String>>,
    found: Columns,
    /// Names that are taken, in lower case.
    taken: HashSet<String>,
}

impl Discovery {
    /// Looks for columns in a source of this format, whose rows have the columns of `schema` already.
    pub fn new(format: &FormatSettings, schema: &Schema) -> Self {
        let csv_nulls = match format {
            FormatSettings::Csv { nulls, .. } => Some(nulls.clone()),
            _ => None,
        };
        let taken = schema.fields().iter().map(|field| field.name().to_lowercase()).collect();
        Self { csv_nulls, found: Columns::default(), taken }
    }

    /// Looks at decoded rows.
    pub fn observe(&mut self, rows: &RecordBatch) {
        let Some(rescued) = rows.column_by_name(RESCUED_COLUMN) else { return };
        if rescued.null_count() == rescued.len() || *rescued.data_type() != DataType::Utf8View {
            return;
        }
        let Self { csv_nulls, found, .. } = self;
        let csv_nulls = csv_nulls.as_deref();
        for text in rescued.as_string_view().iter().flatten() {
            let kind = |inside: &[u8]| match csv_nulls {
                Some(nulls) if nulls.iter().any(|null| null.as_bytes() == inside) => Kind::Null,
                Some(_) => Kind::of_csv(inside),
                None => Kind::of_text(inside),
            };
            // What is rescued was decoded before, so it is a document.
            let _ = infer_document(text.as_bytes(), 0, FOUND_MAX, &kind, found);
        }
    }

    /// Gives the columns that have been found since this was last asked.
    pub fn take(&mut self) -> Vec<Field> {
        let mut fields = self.found.fields_with_values();
        // `taken` grows on the way: of two names that differ in case only, the first counts.
        fields.retain(|field| is_name(field.name()) && self.taken.insert(field.name().to_lowercase()));
        fields
    }
}

fn is_name(name: &str) -> bool {
    let is_fit = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('_') && name.chars().all(is_fit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Payload;
    use crate::decode::column::{is_json, type_name};
    use crate::decode::testing::{chunk, decode_chunk, field, settings};

    fn found(format: FormatSettings, contents: &[&str]) -> Vec<Vec<String>> {
        let settings = settings(format.clone(), vec![field("id", DataType::Int64)]);
        let mut discovery = Discovery::new(&format, &crate::decode::decoder(settings.clone()).unwrap().schema());
        let observe = |content: &&str| {
            let bytes = bytes::Bytes::copy_from_slice(content.as_bytes());
            let (rows, _) = decode_chunk(settings.clone(), &chunk(Payload::Framed { offset: 0, bytes, header: None }));
            discovery.observe(&rows);
            let name = |f: &Field| format!("{}: {}", f.name(), type_name(f.data_type(), is_json(f)));
            discovery.take().iter().map(name).collect()
        };
        contents.iter().map(observe).collect()
    }

    #[test]
    fn fields_of_documents_are_found_once_they_have_a_value() {
        let first = r#"{"id":1,"a":1,"n":null,"t":"2024-01-01","j":{"x":1}} {"id":2,"a":1.5} {"id":3}"#;
        let second = r#"{"id":4,"a":"text","n":true,"ID":5,"_x":1,"p.q":1,"Za-b c":"v"}"#;
        assert_eq!(
            found(FormatSettings::Json, &[first, second, second]),
            [vec!["a: float64", "t: date", "j: json"], vec!["n: bool", "Za-b c: string"], vec![]]
        );
    }

    #[test]
    fn fields_of_csv_are_typed_as_inference_does() {
        let csv = FormatSettings::Csv { header: true, delimiter: b',', quote: b'"', nulls: vec!["NA".into()] };
        let content = "id,delay,zip,none\n1,NA,01234,NA\n2,1.5,99999,\n";
        assert_eq!(found(csv, &[content]), [vec!["delay: float64", "zip: string"]]);
    }

    #[test]
    fn no_more_columns_are_found_than_a_table_can_have() {
        let document: Vec<String> = (0..10_000).map(|n| format!("\"k{n}\":1")).collect();
        let document = format!("{{{}}}", document.join(","));
        assert_eq!(found(FormatSettings::Json, &[&document])[0].len(), FOUND_MAX);
    }
}
