//! Names: what they are made of, and that no two things share one.

use nexus_operators::batch::{
    INGESTED_AT_COLUMN, KEY_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN, RAW_COLUMN, RESCUED_COLUMN, SOURCE_COLUMN,
};

use super::Check;
use crate::spec::codes;
use crate::spec::model::Columns;
use crate::spec::tier::Tier;

/// The longest name: what PostgreSQL takes for a table, and far below what file systems and S3 take.
pub(super) const NAME_BYTES_MAX: usize = 63;

/// The columns that Nexus adds.
const OWN_COLUMNS: [&str; 7] =
    [SOURCE_COLUMN, PARTITION_COLUMN, OFFSET_COLUMN, INGESTED_AT_COLUMN, KEY_COLUMN, RESCUED_COLUMN, RAW_COLUMN];

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    name(check, &["name"], &spec.name, "the pipeline's name", "-");
    for section in ["sources", "reference", "bronze", "silver", "gold", "vibranium"] {
        for written in check.names(section) {
            name(check, &[section, written], written, "the name", "");
        }
    }
    for section in ["params", "secrets"] {
        let written: Vec<&str> = check.loaded.written_names(section).collect();
        for written in written {
            // They stay within the file, so that capital letters do no harm.
            name(check, &[section, written], &written.to_lowercase(), "the name", "-");
        }
    }
    for (tier, table, definition) in spec.all_tables() {
        for rule in definition.expect.keys() {
            name(check, &[tier.name(), table, "expect", rule], rule, "the rule's name", "");
        }
    }
    clashes(check);
    for (source, definition) in &spec.sources {
        columns(check, &["sources", source, "columns"], definition.columns.as_ref());
    }
    for (reference, definition) in &spec.reference {
        columns(check, &["reference", reference, "columns"], definition.columns.as_ref());
    }
}

fn name(check: &mut Check<'_>, path: &[&str], name: &str, what: &str, also: &str) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || also.contains(c);
    let good = name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(allowed);
    if good && name.len() <= NAME_BYTES_MAX {
        return;
    }
    let suggested = slug(name, also);
    let or = if also.is_empty() { "" } else { ", `-`" };
    let rule = format!("lower-case letters, digits{or} and `_`, at most {NAME_BYTES_MAX}, a letter first");
    let hint = if suggested.is_empty() { rule } else { format!("write `{suggested}`: {rule}") };
    let written = path.last().filter(|_| path.len() > 1).unwrap_or(&name);
    check.error(path, codes::BAD_NAME, format!("{what} `{written}` is not allowed"), hint);
}

/// Tells whether a column is one that Nexus adds.
pub(crate) fn is_own_column(name: &str) -> bool {
    OWN_COLUMNS.contains(&name)
}

/// Makes the nearest name that is allowed, if there is any; `also` are signs that are allowed beside the usual ones.
pub(crate) fn slug(name: &str, also: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || also.contains(c) { c.to_ascii_lowercase() } else { '_' };
    let fitted: String = name.chars().map(fit).collect();
    let fitted = fitted.trim_start_matches(|c: char| !c.is_ascii_lowercase()).trim_end_matches('_');
    fitted.chars().take(NAME_BYTES_MAX).collect()
}

fn clashes(check: &mut Check<'_>) {
    for section in ["sources", "reference"] {
        for name in check.names(section) {
            if Tier::by_name(name).is_some() {
                let message = format!("`{name}` is the name of a tier");
                check.error(&[section, name], codes::NAME_CLASH, message, "choose another name");
            } else if section == "reference" && check.sources.contains(name) {
                let message = format!("`{name}` is the name of a source, too");
                check.error(&[section, name], codes::NAME_CLASH, message, "SQL could not tell them apart; rename one");
            }
        }
    }
}

fn columns(check: &mut Check<'_>, path: &[&str], columns: Option<&Columns>) {
    for (column, _) in columns.map_or(&[][..], |c| &c.0) {
        let path = [path, &[column]].concat();
        if column.trim().is_empty() {
            check.error(&path, codes::BAD_NAME, "a column has no name", None);
        } else if is_own_column(column) {
            let message = format!("the column `{column}` is one that Nexus adds itself");
            check.error(&path, codes::NAME_CLASH, message, "leave it out; SQL can select it all the same");
        }
    }
}
