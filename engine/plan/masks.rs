//! Which columns are not shown to people: those that the file names, and those that are made of one.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::lineage::lineage;

/// Tells of each column of each table whether it is masked.
pub fn masks(plan: &Plan) -> BTreeMap<String, Vec<bool>> {
    let spec = &plan.loaded.spec;
    let of_sources =
        spec.sources.iter().flat_map(|(name, source)| source.mask.iter().map(move |column| (name, column)));
    let mut masked: BTreeSet<(String, String)> =
        of_sources.map(|(name, column)| (name.clone(), column.clone())).collect();
    let mut masks = BTreeMap::new();
    let lineage = lineage(plan);
    // Each table stands behind those that it reads.
    for table in &plan.tables {
        let name = table.name();
        let named = plan.spec_of(table).map_or(&[][..], |spec| spec.mask.as_slice());
        let origins = lineage.get(&name).map_or(&[][..], Vec::as_slice);
        let of_table: Vec<bool> = table
            .schema
            .fields()
            .iter()
            .enumerate()
            .map(|(place, field)| {
                let derives =
                    origins.get(place).is_none_or(|column| column.inputs.keys().any(|of| masked.contains(of)));
                derives || named.contains(field.name())
            })
            .collect();
        for (field, _) in table.schema.fields().iter().zip(&of_table).filter(|(_, masked)| **masked) {
            masked.insert((name.clone(), field.name().clone()));
        }
        masks.insert(name, of_table);
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pipeline;

    const FILE: &str = "
name: masked
lake: ./lake
sources:
  people:
    generate:
      rows: 1
      columns:
        n: { sequence: {} }
        ts: { time: { start: \"2026-11-01T00:00:00Z\", step: 1s } }
        mail: { choice: [a@b.c] }
        site: { choice: [reno] }
    event_time: { column: ts, lateness: 1s }
    mask: [SOURCE]
bronze:
  people: { from: people }
silver:
  people:
    sql: SELECT n, ts, lower(mail) AS who, site, site || mail AS place FROM bronze.people
    mask: [TABLE]
gold:
  sites:
    sql: |
      SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, max(who) AS last, count(*) AS people
      FROM silver.people GROUP BY 1, 2
";

    fn pipeline(source: &str, table: &str) -> Pipeline {
        Pipeline::parse(&FILE.replace("SOURCE", source).replace("TABLE", table)).unwrap()
    }

    #[tokio::test]
    async fn what_is_made_of_a_masked_column_is_masked() {
        let plan = pipeline("mail", "n").plan().await.unwrap();
        let masks = masks(&plan);
        let masked = |table: &str| -> Vec<String> {
            let columns = plan.table(table).unwrap().schema.fields().iter().zip(&masks[table]);
            columns.filter(|(_, masked)| **masked).map(|(field, _)| field.name().clone()).collect()
        };
        assert_eq!(masked("bronze.people"), ["mail"]);
        assert_eq!(masked("silver.people"), ["n", "who", "place"]);
        assert_eq!(masked("gold.sites"), ["last"]);
    }

    #[tokio::test]
    async fn a_mask_names_columns_that_are_there() {
        for (source, table, at) in [("mails", "n", "`mails`"), ("mail", "whoo", "`whoo`")] {
            let wrong = pipeline(source, table).plan().await.err().map(|wrong| wrong.to_string()).unwrap_or_default();
            assert!(wrong.contains("N0704") && wrong.contains(at) && wrong.contains("did you mean"), "{wrong}");
        }
    }
}
