//! Error budgets: how many rows of a source or a table may go to the quarantine in a time.
//!
//! They are looked at when an epoch is closed, before its record is written: an epoch that exceeds one is not committed,
//! so the next start reads its rows again, through a file that may have been corrected. What was counted stands in the
//! commit records, and so a restart forgives nothing: whoever starts a pipeline again and again gets no further than the
//! budget allows.

use std::collections::BTreeMap;

use nexus_operators::{Error, Result};

use super::progress::ErrorsCounted;
use crate::plan::Plan;
use crate::spec::model::{ErrorBudget, Otherwise};
use crate::state::record::{CommitRecord, Counted};

/// Into how many parts a budget's time is cut: rows are forgotten a part at a time. Each stands in every record.
const PARTS: i64 = 30;

/// What a share is taken of at least, unless the file says so: with fewer rows a few bad ones say little.
const ROWS_MIN: u64 = 100;

/// Shapes of reasons that are told apart. Text that comes from records could make any number.
const SHAPES_MAX: usize = 64;

/// The budgets of a pipeline.
#[derive(Debug, Default)]
pub struct Budgets(Vec<Budget>);

/// One budget.
#[derive(Debug)]
struct Budget {
    /// The source or table.
    of: String,
    counts: Counts,
    spec: ErrorBudget,
    counted: Vec<Counted>,
}

/// What a budget counts.
#[derive(Debug)]
enum Counts {
    /// Records that do not decode, with the reasons of this run.
    Records(Reasons),
    /// Rows that break rules, which are given by their names, with their texts.
    Rules(BTreeMap<String, String>),
    /// Rows that come too late.
    Late,
}

/// How often records were bad for which reason.
#[derive(Debug, Default)]
pub struct Reasons(BTreeMap<String, Noted>);

/// A reason as it was first given, and where.
#[derive(Debug)]
struct Noted {
    times: u64,
    reason: String,
    at: String,
}

impl Budgets {
    /// Makes the budgets of a pipeline's file; they go on from what earlier runs have counted.
    pub fn new(plan: &Plan, counted: &BTreeMap<String, Vec<Counted>>) -> Self {
        let mut budgets = Vec::new();
        for of in plan.opened_sources() {
            let spec = plan.loaded.spec.sources.get(&of).and_then(|source| source.errors.clone());
            budgets.extend(spec.map(|spec| (of, Counts::Records(Reasons::default()), spec)));
        }
        for table in &plan.tables {
            let Some(spec) = plan.spec_of(table) else { continue };
            let Some(errors) = &spec.errors else { continue };
            let rules = spec.expect.iter().filter(|(_, rule)| rule.otherwise == Otherwise::Quarantine);
            let rules: BTreeMap<_, _> = rules.map(|(name, rule)| (name.clone(), rule.that.clone())).collect();
            if !rules.is_empty() {
                budgets.push((table.name(), Counts::Rules(rules), errors.clone()));
            }
            if errors.late {
                budgets.push((table.name(), Counts::Late, errors.clone()));
            }
        }
        let budget = |(of, counts, spec)| {
            let mut budget = Budget { of, counts, spec, counted: Vec::new() };
            budget.counted = counted.get(&budget.key()).cloned().unwrap_or_default();
            budget
        };
        Self(budgets.into_iter().map(budget).collect())
    }

    /// Takes the reasons for which records of a source were bad.
    pub fn hear(&mut self, source: &str, reasons: Reasons) {
        for budget in &mut self.0 {
            if let (Counts::Records(known), true) = (&mut budget.counts, budget.of == source) {
                return known.add(reasons);
            }
        }
    }

    /// Counts an epoch, and has its record keep what is counted.
    ///
    /// # Errors
    ///
    /// `Config` if a budget is exceeded.
    pub fn count(&mut self, record: &mut CommitRecord, now_us: i64) -> Result<()> {
        for budget in &mut self.0 {
            let (rows, bad) = budget.of_epoch(record);
            budget.add(rows, bad, now_us);
            record.errors.insert(budget.key(), budget.counted.clone());
        }
        self.0.iter().find(|budget| budget.is_exceeded()).map_or(Ok(()), |budget| Err(budget.error(record)))
    }

    /// Gives where the budgets stand.
    pub fn standing(&self) -> BTreeMap<String, ErrorsCounted> {
        self.0.iter().map(|budget| (budget.key(), budget.standing())).collect()
    }
}

impl Budget {
    /// Gives the name under which a record keeps what is counted.
    fn key(&self) -> String {
        match self.counts {
            Counts::Records(_) | Counts::Rules(_) => self.of.clone(),
            Counts::Late => format!("{}/late", self.of),
        }
    }

    /// Gives the rows of an epoch, and how many of them are bad.
    fn of_epoch(&self, record: &CommitRecord) -> (u64, u64) {
        let source = record.sources.get(&self.of).map(|source| source.counts).unwrap_or_default();
        let table = record.tables.get(&self.of).map(|table| table.counts).unwrap_or_default();
        match self.counts {
            Counts::Records(_) => (source.records, source.quarantined),
            Counts::Rules(_) => (table.rows_sql, table.quarantined),
            Counts::Late => (table.rows_in, table.late),
        }
    }

    fn add(&mut self, rows: u64, bad: u64, now_us: i64) {
        let time_us = i64::try_from(self.spec.time.0.as_micros()).unwrap_or(i64::MAX);
        self.counted.retain(|part| part.from_us > now_us.saturating_sub(time_us));
        match self.counted.last_mut() {
            Some(part) if now_us < part.from_us.saturating_add(time_us / PARTS) => {
                part.rows = part.rows.saturating_add(rows);
                part.bad = part.bad.saturating_add(bad);
            }
            _ if rows > 0 || bad > 0 => self.counted.push(Counted { from_us: now_us, rows, bad }),
            _ => {}
        }
    }

    fn standing(&self) -> ErrorsCounted {
        let sum = |of: fn(&Counted) -> u64| self.counted.iter().map(of).fold(0, u64::saturating_add);
        let (rows, bad) = (sum(|part| part.rows), sum(|part| part.bad));
        let one_bad = 1_000_000_u64.checked_div(self.spec.at_most.millionths.into()).unwrap_or(0);
        let of_at_least = self.spec.of_at_least.unwrap_or_else(|| one_bad.max(ROWS_MIN));
        let allowed = u128::from(rows.max(of_at_least)) * u128::from(self.spec.at_most.millionths) / 1_000_000;
        ErrorsCounted { rows, bad, allowed: u64::try_from(allowed).unwrap_or(u64::MAX) }
    }

    fn is_exceeded(&self) -> bool {
        let standing = self.standing();
        standing.bad > standing.allowed
    }

    fn error(&self, record: &CommitRecord) -> Error {
        let (of, ErrorsCounted { rows, bad, .. }) = (&self.of, self.standing());
        let (time, share) = (self.spec.time, self.spec.at_most);
        let what = match &self.counts {
            Counts::Records(_) => format!("{bad} of {rows} records of source {of} could not be used"),
            Counts::Rules(_) => format!("{bad} of {rows} rows of {of} broke a rule"),
            Counts::Late => format!("{bad} of {rows} rows came too late for their window in {of}"),
        };
        let most_often = match &self.counts {
            Counts::Records(reasons) => reasons.commonest(),
            Counts::Rules(rules) => {
                let broken = record.tables.get(of).into_iter().flat_map(|table| &table.rules);
                let broken = broken.filter(|(rule, _)| rules.contains_key(*rule)).max_by_key(|(_, times)| **times);
                broken.map(|(rule, times)| {
                    let text = rules.get(rule).map(String::as_str).unwrap_or_default();
                    format!("; most often `{rule}` ({text}), {times} times in the last epoch")
                })
            }
            Counts::Late => Some("; `lateness` of the source's event time says how late rows may come".to_owned()),
        };
        Error::config(format!(
            "stopped by an error budget: {what} in {time}, more than {share} (`errors`){}. Nothing of the open epoch was \
             committed and nothing is lost: correct the input or the pipeline file, or raise `at_most`, and start again; \
             its rows are read again then",
            most_often.unwrap_or_default()
        ))
    }
}

impl Reasons {
    /// Notes a reason and where it was met.
    pub fn note(&mut self, reason: &str, at: impl FnOnce() -> String) {
        let noted = || Noted { times: 0, reason: reason.to_owned(), at: at() };
        self.enter(shape(reason), 1, noted);
    }

    fn add(&mut self, other: Self) {
        for (shape, noted) in other.0 {
            self.enter(shape, noted.times, || Noted { times: 0, ..noted });
        }
    }

    fn enter(&mut self, shape: String, times: u64, noted: impl FnOnce() -> Noted) {
        if self.0.len() < SHAPES_MAX || self.0.contains_key(&shape) {
            self.0.entry(shape).or_insert_with(noted).times += times;
        }
    }

    fn commonest(&self) -> Option<String> {
        let Noted { times, reason, at } = self.0.values().max_by_key(|noted| noted.times)?;
        Some(format!("; most often in this run, {times} times, first at {at}: {reason}"))
    }
}

/// Gives what reasons have in common that differ by the value alone: numbers, and texts in quotes behind the first one,
/// which names the column.
pub(super) fn shape(reason: &str) -> String {
    let mut shape = String::with_capacity(reason.len());
    for (part, text) in reason.split('"').enumerate() {
        match part {
            0 | 1 => shape.push_str(text),
            _ if part % 2 == 0 => shape.extend(text.chars().filter(|c| !c.is_ascii_digit())),
            _ => shape.push('"'),
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::units::{Share, Span};
    use crate::state::record::SourceRecord;

    const SECOND_US: i64 = 1_000_000;

    fn budgets(at_most: &str, of_at_least: Option<u64>) -> Budgets {
        let spec = ErrorBudget {
            at_most: Share::try_from(at_most.to_owned()).unwrap(),
            time: Span(Duration::from_secs(300)),
            of_at_least,
            late: false,
        };
        let counts = Counts::Records(Reasons::default());
        Budgets(vec![Budget { of: "events".into(), counts, spec, counted: Vec::new() }])
    }

    /// Closes an epoch of so many records at a second, and tells whether it may be committed.
    fn close(budgets: &mut Budgets, second: i64, records: u64, bad: u64) -> Result<BTreeMap<String, Vec<Counted>>> {
        let mut source = SourceRecord::default();
        (source.counts.records, source.counts.quarantined) = (records, bad);
        let mut record =
            CommitRecord { sources: BTreeMap::from([("events".into(), source)]), ..CommitRecord::default() };
        budgets.count(&mut record, second * SECOND_US).map(|()| record.errors)
    }

    #[test]
    fn the_first_bad_record_of_ten_stops_nothing_and_the_second_of_a_hundred_does() {
        let mut one = budgets("1%", None);
        close(&mut one, 0, 10, 1).unwrap();
        close(&mut one, 10, 10, 0).unwrap();
        close(&mut one, 20, 10, 1).unwrap_err();
        close(&mut budgets("10%", Some(10)), 0, 10, 1).unwrap();
        close(&mut budgets("10%", Some(10)), 0, 10, 2).unwrap_err();
        close(&mut budgets("0.1%", None), 0, 1, 1).unwrap();
        close(&mut budgets("0%", None), 0, 1_000_000, 1).unwrap_err();
        close(&mut budgets("0.3%", None), 0, 1_000, 3).unwrap();
    }

    #[test]
    fn what_is_older_than_the_time_counts_no_more() {
        let mut budgets = budgets("1%", None);
        for epoch in 0..100 {
            let kept = close(&mut budgets, epoch * 301, 50, 1).unwrap();
            assert_eq!(kept["events"].len(), 1);
        }
        for epoch in 0..2000 {
            let kept = close(&mut budgets, 100 * 301 + epoch, 10, 0).unwrap();
            let rows: u64 = kept["events"].iter().map(|part| part.rows).sum();
            assert!(kept["events"].len() <= 31 && rows <= 3010, "{kept:?}");
        }
    }

    #[test]
    fn what_was_counted_outlives_a_restart() {
        let mut before = budgets("1%", None);
        let kept = close(&mut before, 0, 60, 1).unwrap();
        for (second, may) in [(100, false), (400, true)] {
            let mut after = budgets("1%", None);
            after.0[0].counted.clone_from(&kept["events"]);
            assert_eq!(close(&mut after, second, 10, 1).is_ok(), may, "{second} s later");
        }
    }

    #[test]
    fn the_error_names_the_place_the_counts_and_the_commonest_reason() {
        let mut budgets = budgets("1%", None);
        let mut reasons = Reasons::default();
        for (line, value) in ["seven", "8 of 9", "x"].into_iter().enumerate() {
            reasons.note(&format!("column \"n\": \"{value}\" is not an int64"), || format!("a.json, {line}"));
        }
        reasons.note("column \"m\": is missing", || "a.json, 9".into());
        budgets.hear("events", reasons);
        let error = close(&mut budgets, 0, 200, 4).unwrap_err().to_string();
        for part in [
            "4 of 200 records of source events",
            "in 5m, more than 1%",
            "most often in this run, 3 times, first at a.json, 0: column \"n\": \"seven\" is not an int64",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
