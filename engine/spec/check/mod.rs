//! What can be checked of a pipeline file without planning its SQL: names,
//! references between its parts, and values that only mean something together.

mod archive;
mod aws;
mod names;
mod pipeline;
mod sources;
mod tables;

#[cfg(feature = "cli")]
pub(crate) use names::{is_own_column, slug};

use std::collections::{BTreeSet, HashSet};

use super::codes;
use super::diagnostic::Diagnostic;
use super::loaded::{Loaded, is_url};
use super::model::{ErrorBudget, Spec};
use super::tier::Tier;

/// How many mistakes are gathered: more than anybody reads, and a bound on the work.
const FOUND_MAX: usize = 200;

/// Finds what is wrong, with the path of each mistake.
pub(super) fn check(loaded: &Loaded) -> Vec<(Vec<String>, Diagnostic)> {
    let mut check =
        Check { loaded, spec: &loaded.spec, sources: BTreeSet::new(), tables: BTreeSet::new(), found: Vec::new() };
    check.sources = check.names("sources");
    for tier in Tier::ALL {
        check.tables.extend(check.names(tier.name()).into_iter().map(|table| format!("{tier}.{table}")));
    }
    names::check(&mut check);
    aws::check(&mut check);
    pipeline::check(&mut check);
    sources::check(&mut check);
    archive::check(&mut check);
    tables::check(&mut check);
    check.found
}

/// Gathers what is wrong.
struct Check<'a> {
    loaded: &'a Loaded,
    spec: &'a Spec,
    /// The names of all sources.
    sources: BTreeSet<&'a str>,
    /// The names of all tables, as `tier.table`.
    tables: BTreeSet<String>,
    found: Vec<(Vec<String>, Diagnostic)>,
}

impl<'a> Check<'a> {
    fn error(&mut self, path: &[&str], code: &'static str, message: impl Into<String>, hint: impl Hint) {
        if self.is_full() {
            return;
        }
        let diagnostic = self.loaded.diagnostic_at(path, code, message, hint.hint());
        self.add(path, diagnostic);
    }

    /// Tells whether enough has been found, and more is not worth the work.
    fn is_full(&self) -> bool {
        self.found.len() >= FOUND_MAX
    }

    fn warning(&mut self, path: &[&str], code: &'static str, message: impl Into<String>, hint: impl Hint) {
        let diagnostic = self.loaded.diagnostic_at(path, code, message, hint.hint());
        self.add(path, diagnostic.as_warning());
    }

    fn add(&mut self, path: &[&str], diagnostic: Diagnostic) {
        self.found.push((path.iter().map(|s| (*s).to_owned()).collect(), diagnostic));
    }

    /// Gives the names of a section: those of the model, and those whose value is wrong, which exist all the same.
    fn names(&self, section: &str) -> BTreeSet<&'a str> {
        let spec = self.spec;
        let mut names: BTreeSet<&str> = match section {
            "sources" => spec.sources.keys().map(String::as_str).collect(),
            "reference" => spec.reference.keys().map(String::as_str).collect(),
            "secrets" => spec.secrets.keys().map(String::as_str).collect(),
            _ => Tier::by_name(section)
                .map_or_else(BTreeSet::new, |tier| spec.tables(tier).keys().map(String::as_str).collect()),
        };
        names.extend(self.loaded.written_names(section));
        names
    }

    /// Checks that a key names at least one column, and each once.
    fn key(&mut self, path: &[&str], key: &[String]) {
        if key.is_empty() {
            self.error(path, codes::BAD_KEY, "the key names no column", "name the columns that tell rows apart");
        }
        self.once_each(path, key, codes::BAD_KEY);
    }

    /// Checks an error budget, as far as it is the same for sources and tables.
    fn errors(&mut self, path: &[&str], errors: &ErrorBudget) {
        if errors.at_most.millionths >= 1_000_000 {
            let place = [path, &["at_most"]].concat();
            self.error(&place, codes::BAD_ERRORS, "all rows may be bad", "write a smaller share: `0.1%`");
        }
        if errors.time.0.is_zero() {
            let place = [path, &["in"]].concat();
            self.error(&place, codes::BAD_LIMIT, "no row would be counted", "write a time: `5m`");
        }
        if errors.of_at_least == Some(0) {
            let place = [path, &["of_at_least"]].concat();
            self.error(&place, codes::BAD_LIMIT, "a share of no rows is none", "at least 1");
        }
    }

    fn once_each(&mut self, path: &[&str], items: &[String], code: &'static str) {
        let mut before = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            if !before.insert(item) {
                let index = index.to_string();
                self.error(&[path, &[&index]].concat(), code, format!("`{item}` is named twice"), "remove one");
            }
        }
    }

    /// Checks a folder or `s3://` URL.
    fn location(&mut self, path: &[&str], text: &str) {
        let wrong = match text.strip_prefix("s3://") {
            Some(rest) if rest.split('/').next().unwrap_or_default().is_empty() => "the URL names no bucket",
            Some(_) => return,
            None if text.trim().is_empty() => "the location is empty",
            None if is_url(text) => "the location is neither a folder nor on S3",
            None => return,
        };
        self.error(path, codes::BAD_LOCATION, wrong, "write a folder, or `s3://bucket/prefix`");
    }

    /// Checks a path with `*`, `?`, `**` and `[...]`.
    fn glob(&mut self, path: &[&str], text: &str) {
        if text.trim().is_empty() {
            return self.error(path, codes::BAD_LOCATION, "the path is empty", "write a path or a glob: `data/*.csv`");
        }
        if let Err(e) = glob::Pattern::new(text) {
            let before: usize = text.chars().take(e.pos).map(char::len_utf8).sum();
            let column = text.get(..before).map_or(1, |t| t.chars().count() + 1);
            let hint = Some("`*` and `?` stand for anything within a name, `**` for folders, `[ab]` for a or b".into());
            let message = format!("the path is not a glob: {}", e.msg.to_lowercase());
            let diagnostic = self.loaded.diagnostic_in_text(path, (1, column), codes::BAD_LOCATION, message, hint);
            self.add(path, diagnostic);
        }
    }

    /// Checks a time by RFC 3339.
    fn time(&mut self, path: &[&str], text: &str, also: &str) {
        if chrono::DateTime::parse_from_rfc3339(text).is_err() {
            let hint = format!("write {also}`2026-11-21T08:00:00Z`");
            self.error(path, codes::BAD_TIME, format!("`{text}` is not a time"), hint);
        }
    }
}

/// What can be a hint: a text, or perhaps one.
trait Hint {
    fn hint(self) -> Option<String>;
}

impl Hint for &str {
    fn hint(self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl Hint for String {
    fn hint(self) -> Option<String> {
        Some(self)
    }
}

impl Hint for Option<String> {
    fn hint(self) -> Option<String> {
        self
    }
}
