//! Every row is accounted for: what the lines of a report must add up to.

use serde_json::Value;

/// Fails unless every line of a report balances.
pub fn check(report: &Value) {
    for (name, source) in entries(report, "sources") {
        let [records, rows, quarantined] = ["records", "rows", "quarantined"].map(|n| count(source, n));
        let came = records + redriven(source);
        assert_eq!(came, rows + quarantined, "source {name}: records + redriven = rows + quarantined\n{report:#}");
    }
    for (name, table) in entries(report, "tables") {
        let [out_of_sql, stored, dropped, quarantined, duplicates] =
            ["rows_sql", "rows_out", "dropped", "quarantined", "duplicates"].map(|n| count(table, n));
        assert_eq!(
            out_of_sql + redriven(table),
            stored + dropped + quarantined + duplicates,
            "table {name}: rows_sql + redriven = rows_out + dropped + quarantined + duplicates\n{report:#}"
        );
    }
}

/// Gives the entries of a report's section.
fn entries<'a>(report: &'a Value, section: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let section = report[section].as_object().unwrap_or_else(|| panic!("the report has no {section}\n{report:#}"));
    section.iter()
}

/// Gives the rows of a report's entry that came out of the quarantine.
fn redriven(entry: &Value) -> u64 {
    if entry["redriven"].is_null() { 0 } else { count(entry, "redriven") }
}

/// Gives a number of a report.
pub fn count(entry: &Value, name: &str) -> u64 {
    entry[name].as_u64().unwrap_or_else(|| panic!("{name} is not a number in {entry}"))
}
