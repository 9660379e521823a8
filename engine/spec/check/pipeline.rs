//! The pipeline as a whole: lake, state, limits, secrets, and test cases.

use std::time::Duration;

use super::Check;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::loaded::is_url;
use crate::spec::model::{Encryption, Given, Lake, QUARANTINE, TestCase};
use crate::spec::suggest;
use crate::spec::tier::Tier;
use crate::spec::units::ByteSize;

/// The least memory: what the channels, one decoder and one Parquet writer hold at their smallest.
const MEMORY_MIN: ByteSize = ByteSize::mib(64);

/// How many of the largest records must fit in the memory: raw, decoded, in a channel, and in a writer.
const RECORDS_IN_MEMORY_MIN: u64 = 4;

/// The least time between two events about a run: each tells all of its datasets.
const LINEAGE_EVERY_MIN: Duration = Duration::from_secs(1);

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    if check.sources.is_empty() {
        let hint = "add one: `sources: { orders: { file: { path: data/*.json } } }`";
        check.error(&["sources"], codes::NO_SOURCES, "the pipeline has no source", hint);
    }
    if check.tables.is_empty() {
        let hint = "add one: `bronze: { orders: { from: orders } }`";
        check.error(&["bronze"], codes::NO_TABLES, "the pipeline has no table", hint);
    }
    lake(check);
    if let Some(state) = &spec.state {
        check.location(&state.place_of_path(&["state"]), state.path());
    }
    if matches!(&spec.encryption, Encryption::Kms(key) if key.trim().is_empty()) {
        let hint = "write its id, alias or ARN";
        check.error(&["encryption", "kms"], codes::BAD_LOCATION, "the KMS key is empty", hint);
    }
    limits(check);
    lineage(check);
    secrets(check);
    tests(check);
}

fn lineage(check: &mut Check<'_>) {
    let Some(lineage) = &check.spec.lineage else { return };
    match (&lineage.file, &lineage.url) {
        (Some(file), None) if is_url(file) || file.trim().is_empty() => {
            let hint = "write a path on this machine, or take `url`";
            check.error(&["lineage", "file"], codes::BAD_LOCATION, "the events cannot be written to such a file", hint);
        }
        (Some(_), None) => {}
        (None, Some(url)) => {
            let place = ["lineage", "url"];
            match url::Url::parse(url) {
                Ok(url) if url.password().is_some() => {
                    let message = "a password must not stand in the file";
                    let hint = "let a proxy beside Nexus add what the endpoint asks for".to_owned();
                    let found = Diagnostic::error(codes::LINEAGE_TARGET, check.loaded.file(), message).with_hint(hint);
                    check.add(&place, found);
                }
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
                _ => {
                    let hint = "write one such as `http://marquez:5000/api/v1/lineage`";
                    check.error(&place, codes::BAD_LOCATION, "the address is no HTTP URL", hint);
                }
            }
        }
        (Some(_), Some(_)) => {
            let message = "events go to a file or to an address, and both are given";
            check.error(&["lineage", "url"], codes::LINEAGE_TARGET, message, "keep one of them");
        }
        (None, None) => {
            let message = "it is not said where the events go";
            check.error(&["lineage"], codes::LINEAGE_TARGET, message, "give `file` or `url`");
        }
    }
    if lineage.every.0 < LINEAGE_EVERY_MIN {
        let message = "the events would come too often";
        check.error(&["lineage", "every"], codes::BAD_LIMIT, message, "at least `1s`");
    }
}

fn lake(check: &mut Check<'_>) {
    let spec = check.spec;
    let tiers = match &spec.lake {
        Lake::Root(root) => return check.location(&["lake"], root),
        Lake::Tiers(tiers) => tiers,
    };
    let roots = [Some(&tiers.bronze), tiers.silver.as_ref(), tiers.gold.as_ref(), tiers.vibranium.as_ref()];
    for (tier, root) in Tier::ALL.into_iter().zip(roots) {
        let stored = spec.tables(tier).iter().find(|(_, table)| table.store);
        match (root, stored) {
            (Some(root), _) => check.location(&root.place_of_path(&["lake", tier.name()]), root.path()),
            (None, Some((table, _))) => {
                let message = format!("the tier `{tier}` has no root in the lake, and `{tier}.{table}` is stored");
                let hint = format!("add `{tier}:` under `lake`, or set `store: false` for its tables");
                check.error(&["lake"], codes::NO_ROOT, message, hint);
            }
            (None, None) => {}
        }
    }
}

fn limits(check: &mut Check<'_>) {
    let (limits, commit) = (&check.spec.limits, &check.spec.commit);
    let mut too_small = |path: &[&str], wrong: bool, least: String| {
        if wrong {
            let what = path.join(".");
            check.error(path, codes::BAD_LIMIT, format!("`{what}` is too small"), format!("at least {least}"));
        }
    };
    too_small(&["limits", "memory"], limits.memory < MEMORY_MIN, MEMORY_MIN.to_string());
    too_small(&["limits", "record"], limits.record.0 == 0, "1B".into());
    too_small(&["limits", "open_partitions"], limits.open_partitions == 0, "1".into());
    too_small(&["limits", "spool"], limits.spool < limits.record, format!("a record: {}", limits.record));
    too_small(&["commit", "every"], commit.every.0 == Duration::ZERO, "1ms".into());
    too_small(&["commit", "bytes"], commit.bytes.0 == 0, "1B".into());
    too_small(&["commit", "rows"], commit.rows == Some(0), "1".into());
    if limits.memory >= MEMORY_MIN && limits.record.0.saturating_mul(RECORDS_IN_MEMORY_MIN) > limits.memory.0 {
        let message = format!("a record may be larger than a quarter of the memory ({})", limits.memory);
        let hint = "lower `limits.record` or raise `limits.memory`";
        check.error(&["limits", "record"], codes::BAD_LIMIT, message, hint);
    }
}

fn secrets(check: &mut Check<'_>) {
    let spec = check.spec;
    let used: Vec<&str> = spec.all_tables().filter_map(|(_, _, t)| Some(t.postgres.as_ref()?.url.as_str())).collect();
    if used.iter().any(|name| !spec.secrets.contains_key(*name)) {
        // The one that is not used may be the one that was meant, and that has been said.
        return;
    }
    for secret in spec.secrets.keys().filter(|secret| !used.contains(&secret.as_str())) {
        let message = format!("the secret `{secret}` is not used");
        check.warning(&["secrets", secret], codes::UNUSED_SECRET, message, "use it as a sink's `url`, or remove it");
    }
}

fn tests(check: &mut Check<'_>) {
    let spec = check.spec;
    for (index, case) in spec.tests.iter().enumerate() {
        let index = index.to_string();
        if let Some(clock) = &case.clock {
            check.time(&["tests", &index, "clock"], clock, "a time: ");
        }
        for step in 0..=case.then.len() {
            let later = step.checked_sub(1).map(|index| index.to_string());
            let mut place = vec!["tests", index.as_str()];
            place.extend(later.iter().flat_map(|index| ["then", index.as_str()]));
            given(check, &place, case, step);
        }
        let tables = check.tables.clone();
        let held: Vec<String> = check.sources.iter().map(|s| (*s).to_owned()).chain(tables.iter().cloned()).collect();
        let quarantines = held.iter().map(|of| format!("{QUARANTINE}{of}"));
        let known: Vec<String> = tables.iter().cloned().chain(quarantines).collect();
        for table in case.expect.keys().filter(|table| !known.contains(*table)) {
            let message = format!("the case expects rows of `{table}`, which is no table");
            let hint = suggest::hint(table, known.iter().map(String::as_str));
            check.error(&["tests", &index, "expect", table], codes::UNKNOWN_INPUT, message, hint);
        }
    }
}

/// Checks what sources are given at a step of a case, whose keys lie at `place`.
fn given(check: &mut Check<'_>, place: &[&str], case: &TestCase, step: usize) {
    let sources = check.sources.clone();
    let again = step.checked_sub(1).and_then(|index| case.then.get(index)).map_or(&[][..], |step| &step.again);
    let unknown = |source: &str| (!sources.contains(source)).then(|| suggest::hint(source, sources.iter().copied()));
    for (index, source) in again.iter().enumerate() {
        if let Some(hint) = unknown(source) {
            let message = format!("the case has `{source}` give records again, which is no source");
            check.error(&[place, &["again", &index.to_string()]].concat(), codes::UNKNOWN_INPUT, message, hint);
        }
    }
    for (source, given) in case.given_at(step).into_iter().flatten() {
        let at = [place, &["given", source]].concat();
        if let Some(hint) = unknown(source) {
            let message = format!("the case gives rows to `{source}`, which is no source");
            check.error(&at, codes::UNKNOWN_INPUT, message, hint);
        }
        let is_other = |before: &Given| matches!(before, Given::File(_)) != matches!(given, Given::File(_));
        let mut before = (0..step).filter_map(|step| case.given_at(step)?.get(source));
        if before.any(is_other) {
            let message = format!("`{source}` has a file in one step, and records in place in another");
            check.error(
                &at,
                codes::MIXED_CASE,
                message,
                "records in place are JSON: give it files, or records, in all steps",
            );
        }
    }
}
