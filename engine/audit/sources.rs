//! Sources: positions never move back, so that no range is read twice.

use std::collections::BTreeMap;

use nexus_operators::position::Position;

use super::{Audit, Fault};
use crate::state::record::CommitRecord;

/// Checks the cuts of all sources, epoch by epoch.
pub fn check(records: &[CommitRecord], audit: &mut Audit) {
    let mut standing: BTreeMap<(&str, &str), &Position> = BTreeMap::new();
    for record in records {
        for (name, source) in &record.sources {
            let findings = audit.sources.entry(name.clone()).or_default();
            findings.epochs += 1;
            findings.counts.add(&source.counts);
            for partition in &source.cut.forgotten {
                standing.remove(&(name.as_str(), partition.as_str()));
            }
            for (partition, position) in &source.cut.advanced {
                let before = standing.insert((name, partition), position);
                let Some(before) = before else {
                    findings.partitions += 1;
                    continue;
                };
                if let Some(expected) = moved_back(before, position) {
                    let (at, found) = (partition.clone(), tell(position));
                    audit.faults.push(Fault { of: name.clone(), at, epoch: Some(record.epoch), expected, found });
                }
            }
        }
    }
}

/// Tells what a position should have been, if it lies before the one that it follows.
fn moved_back(before: &Position, after: &Position) -> Option<String> {
    use Position::{Done, Offset, Sequence, Start, Time};
    let fits = match (before, after) {
        (Start, _) | (Time { .. }, Start | Sequence { .. } | Done { .. }) => true,
        (Time { ms: before }, Time { ms: after }) => before <= after,
        (Sequence { sequence: a, sub_sequence: a_sub }, Sequence { sequence: b, sub_sequence: b_sub }) => {
            // Sequence numbers are decimal without leading zeros: the longer is the larger. A whole record lies behind
            // each part of it.
            let place =
                |sequence: &str, sub: &Option<u64>| (sequence.len(), sequence.to_owned(), sub.unwrap_or(u64::MAX));
            place(a, a_sub) <= place(b, b_sub)
        }
        (Sequence { .. }, Done { .. }) => true,
        // Other content of the same name is read from its start, and content that has grown is read on. An end may be found
        // where nothing more was read; but what was at its end and is told of again has been read again.
        (Offset { offset: a, identity: of_a }, Done { offset: b, identity: of_b, .. }) => of_a != of_b || a <= b,
        (
            Offset { offset: a, identity: of_a } | Done { offset: a, identity: of_a, .. },
            Offset { offset: b, identity: of_b } | Done { offset: b, identity: of_b, .. },
        ) => of_a != of_b || a < b,
        _ => false,
    };
    (!fits).then(|| format!("a position behind {}", tell(before)))
}

fn tell(position: &Position) -> String {
    match position {
        Position::Start => "the start".to_owned(),
        Position::Time { ms } => format!("the time {ms} ms"),
        Position::Sequence { sequence, sub_sequence: None } => format!("sequence number {sequence}"),
        Position::Sequence { sequence, sub_sequence: Some(sub) } => format!("sequence number {sequence}:{sub}"),
        Position::Offset { offset, .. } => format!("offset {offset}"),
        Position::Done { offset, .. } => format!("the end at {offset}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(sequence: &str, sub_sequence: Option<u64>) -> Position {
        Position::Sequence { sequence: sequence.to_owned(), sub_sequence }
    }

    fn offset(offset: u64, identity: &str) -> Position {
        Position::Offset { offset, identity: Some(identity.to_owned()) }
    }

    fn done(offset: u64, identity: &str) -> Position {
        Position::Done { offset, identity: Some(identity.to_owned()), ms: 0 }
    }

    #[test]
    fn positions_that_follow_one_another() {
        for (before, after) in [
            (Position::Start, sequence("1", None)),
            (Position::Time { ms: 5 }, sequence("1", None)),
            (sequence("99", None), sequence("100", None)),
            (sequence("100", Some(3)), sequence("100", None)),
            (sequence("100", None), done(0, "")),
            (offset(7, "a"), offset(8, "a")),
            (offset(7, "a"), done(7, "a")),
            (done(7, "a"), offset(9, "a")),
            (done(7, "a"), offset(1, "b")),
        ] {
            assert_eq!(moved_back(&before, &after), None, "{before:?} {after:?}");
        }
    }

    #[test]
    fn positions_that_move_back() {
        for (before, after) in [
            (sequence("100", None), sequence("99", None)),
            (sequence("100", None), sequence("100", Some(3))),
            (sequence("100", None), Position::Start),
            (done(0, "a"), sequence("100", None)),
            (offset(8, "a"), offset(7, "a")),
            (offset(8, "a"), offset(8, "a")),
            (offset(8, "a"), done(7, "a")),
            (done(8, "a"), done(8, "a")),
            (done(8, "a"), offset(7, "a")),
            (Position::Time { ms: 5 }, Position::Time { ms: 4 }),
        ] {
            assert!(moved_back(&before, &after).is_some(), "{before:?} {after:?}");
        }
    }
}
