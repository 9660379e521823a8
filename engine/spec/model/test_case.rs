//! Cases for `nexus test`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::units::Span;

/// Behind this, in the names of tables that a case expects rows of, stands a source or a table whose quarantine is meant.
pub const QUARANTINE: &str = "quarantine.";

/// A case for `nexus test`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// What the case shows.
    pub name: String,
    /// The time that the clock shows, such as `2026-11-21T08:00:00Z`: `now()` gives it. The clock stands still but for
    /// the `wait` of steps; that of the machine if not given.
    #[serde(default)]
    pub clock: Option<String>,
    /// What each source reads first: a file's path, or records in place.
    #[serde(default)]
    pub given: BTreeMap<String, Given>,
    /// What happens next, one step after the other. The rows of each step are committed before the next begins; the end
    /// of the input, which closes all windows, is behind the last.
    #[serde(default)]
    pub then: Vec<TestStep>,
    /// What each table must hold at the end, as `tier.table`, and each quarantine, as `quarantine.source` or
    /// `quarantine.tier.table`.
    pub expect: BTreeMap<String, Expected>,
}

/// A step of a test case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestStep {
    /// The clock moves on by so much first.
    #[serde(default)]
    pub wait: Option<Span>,
    /// What each source reads.
    #[serde(default)]
    pub given: BTreeMap<String, Given>,
    /// Sources that give everything once more that they gave before this step, as services do that deliver at least once.
    #[serde(default)]
    pub again: Vec<String>,
    /// The process dies here while the rows of this step are committed, and starts again.
    #[serde(default)]
    pub crash: Option<CrashAt>,
}

/// A step of a commit at which the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrashAt {
    /// While the sinks prepare: there is no commit record yet, so the rows are read again.
    Prepare,
    /// Behind the commit record, and before a sink has committed: the next start commits by the record.
    Commit,
    /// Behind the commit of all sinks, and before a source has heard of it.
    Acknowledge,
}

/// What a source reads in a test case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Given {
    /// A file in the source's format, from the pipeline file's folder.
    File(String),
    /// Records in place.
    Records(Vec<GivenRecord>),
}

/// A record in place.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GivenRecord {
    /// A row: column name to value.
    Row(BTreeMap<String, serde_json::Value>),
    /// A record as it comes, which may be one that does not decode. Records in place are JSON, whatever the format of the
    /// source.
    Raw(String),
}

/// What a table must hold at the end of a test case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Expected {
    /// Exactly these rows, in any order; columns that a row does not name are not compared.
    Rows(Vec<BTreeMap<String, serde_json::Value>>),
    /// This many rows.
    Count(ExpectedCount),
}

/// How many rows a table must hold.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectedCount {
    /// The number of rows.
    pub rows: u64,
}

impl TestCase {
    /// Gives what sources read at a step; 0 is what is given first.
    pub fn given_at(&self, step: usize) -> Option<&BTreeMap<String, Given>> {
        match step.checked_sub(1) {
            None => Some(&self.given),
            Some(later) => self.then.get(later).map(|step| &step.given),
        }
    }
}
