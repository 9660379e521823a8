//! Archives of sources.

use std::collections::BTreeMap;

use super::Check;
use crate::spec::codes;
use crate::spec::model::{Archive, Format, Source};
use crate::spec::tier::Tier;

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    let mut taken = folders(check);
    for (name, source) in &spec.sources {
        let Some(archive) = &source.archive else { continue };
        let path = ["sources", name.as_str(), "archive"];
        check.location(&[&path[..], &["path"]].concat(), &archive.path);
        format(check, &path, source);
        prefix(check, &path, &archive.prefix);
        buffer(check, &path, archive);
        let Some(places) = check.loaded.archive_places(name) else { continue };
        let near = |place: &String| {
            let found = taken.iter().find(|(folder, _)| is_below(place, folder) || is_below(folder, place));
            found.map(|(folder, what)| (place.clone(), folder.clone(), what.clone()))
        };
        if let Some((place, folder, what)) = places.iter().find_map(near) {
            let message = format!("the archive would lie in {place}, and {what} in {folder}");
            let hint = "give each a folder that does not lie within the other's";
            check.error(&path, codes::BAD_ARCHIVE, message, hint);
        }
        taken.extend(places.map(|place| (place, format!("the archive of `{name}`"))));
    }
}

/// Gives the folders in which no other files may lie, and what lies in each.
fn folders(check: &Check<'_>) -> BTreeMap<String, String> {
    let mut folders = BTreeMap::new();
    for tier in Tier::ALL {
        let root = check.loaded.lake_root(tier);
        let root = root.trim_end_matches('/');
        folders.insert(format!("{root}/_quarantine"), "the quarantine".to_owned());
        folders.insert(format!("{root}/_nexus"), "what is staged".to_owned());
    }
    folders.insert(check.loaded.state_root().trim_end_matches('/').to_owned(), "the state".to_owned());
    for (tier, table, _) in check.spec.all_tables().filter(|(_, _, spec)| spec.store) {
        let root = check.loaded.lake_root(tier);
        let folder = format!("{}/{tier}/{table}", root.trim_end_matches('/'));
        folders.insert(folder, format!("the table `{tier}.{table}`"));
    }
    folders
}

/// Tells whether a folder is another, or lies below it.
fn is_below(folder: &str, other: &str) -> bool {
    folder.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn format(check: &mut Check<'_>, path: &[&str], source: &Source) {
    let what = match &source.format {
        Some(Format::Avro(_)) => "Avro",
        Some(Format::Parquet) => "Parquet",
        _ => return,
    };
    let message = format!("records of {what} cannot stand behind one another in an archive");
    let hint = "keep the files themselves; records of a stream are kept by a table of a source with `format: raw`";
    check.error(path, codes::BAD_ARCHIVE, message, hint);
}

fn prefix(check: &mut Check<'_>, path: &[&str], prefix: &str) {
    let place = [path, &["prefix"]].concat();
    if prefix.contains("!{") {
        let message = "expressions of Amazon Data Firehose are not known here";
        let hint = "leave out the time: `yyyy/MM/dd/HH/` always follows the prefix";
        return check.error(&place, codes::BAD_ARCHIVE, message, hint);
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
    let is_folder = |part: &str| !part.is_empty() && part.chars().all(is_allowed) && !part.trim_matches('.').is_empty();
    let folders = prefix.strip_suffix('/');
    let is_good = prefix.is_empty() || folders.is_some_and(|folders| folders.split('/').all(is_folder));
    if !is_good {
        let message = format!("`{prefix}` is not a prefix of folders");
        let hint = "write folders of letters, digits and `-_.=`, with a slash behind each: `client/`";
        check.error(&place, codes::BAD_ARCHIVE, message, hint);
    }
}

fn buffer(check: &mut Check<'_>, path: &[&str], archive: &Archive) {
    for (key, is_zero) in [("size", archive.buffer.size.0 == 0), ("every", archive.buffer.every.0.is_zero())] {
        if is_zero {
            let place = [path, &["buffer", key]].concat();
            let hint = "write what an object takes (`size: 64MiB`) and how long records wait for it (`every: 60s`)";
            check.error(&place, codes::BAD_LIMIT, "no object would hold more than a commit", hint);
        }
    }
}
