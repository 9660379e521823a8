//! What a run has put into the quarantine: how much by which rule, and the last reasons.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use nexus_operators::quarantine::{Quarantined, REFUSED_RULE};

use super::errors::shape;

/// Reasons that are remembered of each rule: enough to see what they have in common.
const REASONS_MAX: usize = 10;

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 400;

/// What was put into the quarantine, by source or table and by rule. The lock is held to add to it or to copy it, and
/// only where rows are bad, so it need not be async.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<BTreeMap<String, BTreeMap<String, Trouble>>>);

/// What broke one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Records or rows, committed or not.
    pub rows: u64,
    /// The last reasons, the newest first.
    pub recent: VecDeque<Reason>,
}

/// Why one record or row could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What is wrong.
    pub reason: String,
    /// When it was found, in microseconds since the Unix epoch.
    pub at_us: i64,
    /// The partition of the source that it came from, if known.
    pub partition: Option<String>,
    /// Its place there, if known.
    pub offset: Option<String>,
}

impl Troubles {
    /// Notes rows that go to the quarantine of a source or table. Where columns are masked (`hides`), reasons are told
    /// without the values that they quote.
    pub fn note(&self, of: &str, rows: &[Quarantined], now_us: i64, hides: bool) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !troubles.contains_key(of) {
            troubles.insert(of.to_owned(), BTreeMap::new());
        }
        let Some(rules) = troubles.get_mut(of) else { return };
        for (place, row) in rows.iter().enumerate() {
            if !rules.contains_key(&row.rule) {
                rules.insert(row.rule.clone(), Trouble::default());
            }
            let Some(trouble) = rules.get_mut(&row.rule) else { continue };
            trouble.rows += 1;
            if rows.len() - place <= REASONS_MAX || trouble.recent.len() < REASONS_MAX {
                trouble.recent.truncate(REASONS_MAX - 1);
                trouble.recent.push_front(Reason::of(row, now_us, hides));
            }
        }
    }

    /// Gives all of them.
    pub fn told(&self) -> BTreeMap<String, BTreeMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Reason {
    fn of(row: &Quarantined, now_us: i64, hides: bool) -> Self {
        let reason = match (hides, row.rule == REFUSED_RULE) {
            (false, _) => row.reason.clone(),
            (true, false) => shape(&row.reason),
            // The server quotes values in its own ways.
            (true, true) => "the reason may hold masked values; the quarantine has it".to_owned(),
        };
        let reason = match reason.chars().nth(REASON_CHARS_MAX) {
            Some(_) => reason.chars().take(REASON_CHARS_MAX).chain(['…']).collect(),
            None => reason,
        };
        Self { reason, at_us: now_us, partition: row.partition.clone(), offset: row.offset.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rule: &str, reason: &str) -> Quarantined {
        Quarantined {
            source: None,
            partition: Some("a.json".into()),
            offset: Some("3".into()),
            reason: reason.into(),
            rule: rule.into(),
            raw: bytes::Bytes::new(),
            key: None,
            header: None,
            redrivable: false,
            attempts: 0,
        }
    }

    #[test]
    fn all_are_counted_and_the_last_reasons_are_kept() {
        let troubles = Troubles::default();
        let many: Vec<_> = (0..1000).map(|n| row("sane", &format!("row {n}"))).collect();
        troubles.note("silver.a", &many, 5, false);
        troubles.note("silver.a", &[row("decode", "no JSON")], 6, false);
        let told = troubles.told().remove("silver.a").unwrap();
        assert_eq!((told["sane"].rows, told["sane"].recent.len(), told["decode"].rows), (1000, REASONS_MAX, 1));
        assert_eq!((told["sane"].recent[0].reason.as_str(), told["decode"].recent[0].at_us), ("row 999", 6));
    }

    #[test]
    fn masked_values_are_not_told() {
        let troubles = Troubles::default();
        let quoted = row("decode", "column \"mail\": \"anna@example.org 42\" is not an int64");
        troubles.note("a", &[quoted, row(REFUSED_RULE, "Key (mail)=(anna@example.org) exists")], 0, true);
        let told = format!("{:?}", troubles.told());
        assert!(told.contains("mail: ") && !told.contains("anna") && !told.contains("42"), "{told}");
    }
}
