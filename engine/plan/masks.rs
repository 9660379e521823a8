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
