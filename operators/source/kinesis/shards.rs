//! Which shards are read, in which order: positions, and the rule of parents and children.
//!
//! Pure: what the service tells goes in, which shards may be read comes out.
//!
//! - A child is taken up when the last of its parents has been read to its
//!   end; the parent's `Done` and the child's `Start` stand in the same cut.
//! - It may be read once the cuts that hold its parents' `Done` are committed.
//! - A `Done` shard is remembered until the service lists it no more, so that
//!   no listing can bring it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::service::ShardFacts;
use crate::position::{Cut, Position};

/// The shards of a stream, as far as they concern us.
#[derive(Debug, Default)]
pub(super) struct Shards {
    /// Those that we have begun to read, or may soon; positions are those of what has been handed on.
    tracked: BTreeMap<Arc<str>, Tracked>,
    /// What the service has told last of each shard it has.
    known: BTreeMap<Arc<str>, ShardFacts>,
    /// Shards whose `Done` stands in a committed cut.
    done_committed: BTreeSet<Arc<str>>,
    /// Tracked shards that have moved since the last cut.
    changed: BTreeSet<Arc<str>>,
    /// Shards that are tracked no more since the last cut.
    forgotten: Vec<String>,
}

#[derive(Debug)]
struct Tracked {
    position: Position,
    /// Whether a listing has shown it. A child that an answer has named may be
    /// missing from a listing that began earlier; it has not vanished.
    listed: bool,
}

impl Shards {
    /// Goes on from committed positions.
    pub fn resume(committed: &Cut) -> Self {
        let mut shards = Self::default();
        for (id, position) in &committed.advanced {
            // A shard of which nothing was read may be so new that a listing lags behind it.
            let listed = *position != Position::Start;
            shards.tracked.insert(id.as_str().into(), Tracked { position: position.clone(), listed });
        }
        shards.committed(committed);
        shards
    }

    /// Begins for the first time with these shards, all at one position.
    pub fn start(shards: Vec<ShardFacts>, position: &Position) -> Self {
        let mut begun = Self::default();
        let ids: BTreeSet<_> = shards.iter().map(|shard| shard.id.clone()).collect();
        for shard in shards {
            // A child whose parent is also wanted comes by the rule, at its start.
            if !shard.parents.iter().any(|parent| ids.contains(parent)) {
                begun.track(&shard.id, position.clone(), true);
            }
            begun.known.insert(shard.id.clone(), shard);
        }
        begun
    }

    /// Takes a full listing in; gives the shards that vanished before they were read to their end.
    pub fn listed(&mut self, listing: Vec<ShardFacts>) -> Vec<Arc<str>> {
        let fresh: BTreeMap<_, _> = listing.into_iter().map(|shard| (shard.id.clone(), shard)).collect();
        let before = std::mem::take(&mut self.known);
        let mut lost = Vec::new();
        let mut vanished = Vec::new();
        for (id, shard) in &mut self.tracked {
            shard.listed |= fresh.contains_key(id);
            let gone = shard.listed && !fresh.contains_key(id);
            match (&shard.position, gone) {
                (Position::Done { .. }, true) => vanished.push(id.clone()),
                (_, true) => lost.push(id.clone()),
                (_, false) => {}
            }
        }
        self.known = fresh;
        for (id, facts) in &before {
            if self.tracked.get(id).is_some_and(|shard| !shard.listed) {
                self.known.entry(id.clone()).or_insert_with(|| facts.clone());
            }
        }
        for id in vanished {
            // Not before its parent: a listing that flickers would bring it back.
            let parents = before.get(&id).map_or(&[][..], |facts| &facts.parents);
            let has_parent = parents.iter().any(|parent| self.tracked.contains_key(parent));
            if !has_parent && self.done_committed.remove(&id) {
                self.tracked.remove(&id);
                self.changed.remove(&id);
                self.forgotten.push(id.as_ref().to_owned());
            }
        }
        self.grow();
        lost
    }

    /// Notes that the service denies a shard, so that a listing without it is believed.
    pub fn doubt(&mut self, id: &str) {
        if let Some(shard) = self.tracked.get_mut(id) {
            shard.listed = true;
        }
    }

    /// Gives lost shards up, and goes on with the oldest of their descendants that are still there.
    pub fn give_up(&mut self, lost: &[Arc<str>], now_ms: i64) {
        for id in lost {
            self.advance(id, done(now_ms));
        }
        self.grow();
        let ancestors = self.ancestors_of_tracked();
        let orphan = |facts: &&ShardFacts| {
            let has_parent = facts.parents.iter().any(|p| self.known.contains_key(p) || self.tracked.contains_key(p));
            !self.tracked.contains_key(&facts.id) && !ancestors.contains(&facts.id) && !has_parent
        };
        let orphans: Vec<_> = self.known.values().filter(orphan).map(|facts| facts.id.clone()).collect();
        for id in orphans {
            self.track(&id, Position::Start, true);
        }
    }

    /// Moves a shard's position.
    pub fn advance(&mut self, id: &Arc<str>, position: Position) {
        if let Some(shard) = self.tracked.get_mut(id) {
            shard.position = position;
            self.changed.insert(id.clone());
        }
    }

    /// Ends a shard, and takes up its children that wait for no other parent.
    pub fn end(&mut self, id: &Arc<str>, children: Vec<ShardFacts>, now_ms: i64) {
        for child in children {
            self.known.entry(child.id.clone()).or_insert(child);
        }
        self.advance(id, done(now_ms));
        self.grow();
    }

    /// Takes a committed cut in.
    pub fn committed(&mut self, cut: &Cut) {
        for id in &cut.forgotten {
            self.done_committed.remove(id.as_str());
        }
        for (id, position) in &cut.advanced {
            // One that has been forgotten since is not taken up again.
            if matches!(position, Position::Done { .. }) && self.tracked.contains_key(id.as_str()) {
                self.done_committed.insert(id.as_str().into());
            }
        }
    }

    /// Gives what has moved since the last cut.
    pub fn cut(&mut self) -> Cut {
        let position = |id: Arc<str>| Some((id.as_ref().to_owned(), self.tracked.get(&id)?.position.clone()));
        let advanced = std::mem::take(&mut self.changed).into_iter().filter_map(position).collect();
        Cut { advanced, forgotten: std::mem::take(&mut self.forgotten) }
    }

    /// Gives the shards that are not read to their end.
    pub fn open(&self) -> impl Iterator<Item = (&Arc<str>, &Position)> {
        let not_done = |(_, shard): &(_, &Tracked)| !matches!(shard.position, Position::Done { .. });
        self.tracked.iter().filter(not_done).map(|(id, shard)| (id, &shard.position))
    }

    /// Tells whether every parent of a shard that we know of is read to its end, and that is committed.
    pub fn may_be_read(&self, id: &str) -> bool {
        let parents = self.known.get(id).map_or(&[][..], |facts| &facts.parents);
        parents.iter().all(|parent| !self.tracked.contains_key(parent) || self.done_committed.contains(parent))
    }

    /// Gives what the service has told of a shard.
    pub fn facts(&self, id: &str) -> Option<&ShardFacts> {
        self.known.get(id)
    }

    /// Tells whether the service has listed a shard as closed, with its children.
    pub fn is_closed(&self, id: &str) -> bool {
        let has_child = || self.known.values().any(|facts| facts.parents.iter().any(|parent| parent.as_ref() == id));
        self.known.get(id).is_some_and(|facts| facts.closed) && has_child()
    }

    /// Takes up the shards whose parents have all been read to their end.
    fn grow(&mut self) {
        let is_done = |id: &Arc<str>| self.tracked.get(id).is_some_and(|s| matches!(s.position, Position::Done { .. }));
        let is_unknown = |id: &Arc<str>| !self.tracked.contains_key(id) && !self.known.contains_key(id);
        let is_due = |facts: &&ShardFacts| {
            !self.tracked.contains_key(&facts.id)
                && facts.parents.iter().any(is_done)
                && facts.parents.iter().all(|parent| is_done(parent) || is_unknown(parent))
        };
        let due: Vec<_> = self.known.values().filter(is_due).map(|facts| facts.id.clone()).collect();
        for id in due {
            self.track(&id, Position::Start, false);
        }
    }

    fn track(&mut self, id: &Arc<str>, position: Position, listed: bool) {
        self.tracked.insert(id.clone(), Tracked { position, listed });
        self.changed.insert(id.clone());
    }

    fn ancestors_of_tracked(&self) -> BTreeSet<Arc<str>> {
        let mut ancestors = BTreeSet::new();
        let mut to_visit: Vec<_> = self.tracked.keys().collect();
        while let Some(id) = to_visit.pop() {
            for parent in self.known.get(id).map_or(&[][..], |facts| &facts.parents) {
                if ancestors.insert(parent.clone()) {
                    to_visit.push(parent);
                }
            }
        }
        ancestors
    }
}

fn done(ms: i64) -> Position {
    Position::Done { offset: 0, identity: None, ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, parents: &[&str]) -> ShardFacts {
        let parents = parents.iter().map(|p| Arc::from(*p)).collect();
        ShardFacts { id: id.into(), parents, hash_range: None, closed: false }
    }

    fn readable(shards: &Shards) -> Vec<String> {
        shards.open().filter(|(id, _)| shards.may_be_read(id)).map(|(id, _)| id.to_string()).collect()
    }

    fn open(shards: &Shards) -> Vec<String> {
        shards.open().map(|(id, _)| id.to_string()).collect()
    }

    fn sequence(n: u64) -> Position {
        Position::Sequence { sequence: n.to_string(), sub_sequence: None }
    }

    #[test]
    fn a_child_waits_for_the_commit_of_its_parent() {
        let mut shards = Shards::start(vec![shard("a", &[])], &Position::Time { ms: 5 });
        let first = shards.cut();
        assert_eq!(first.advanced["a"], Position::Time { ms: 5 });
        shards.end(&"a".into(), vec![shard("b", &["a"]), shard("c", &["a"])], 9);
        assert_eq!((open(&shards), readable(&shards)), (vec!["b".into(), "c".into()], vec![]));
        let second = shards.cut();
        assert_eq!(second.advanced["a"], done(9));
        assert_eq!((&second.advanced["b"], &second.advanced["c"]), (&Position::Start, &Position::Start));
        shards.committed(&first);
        assert!(readable(&shards).is_empty());
        shards.committed(&second);
        assert_eq!(readable(&shards), ["b", "c"]);
        assert!(shards.cut().is_empty());
    }

    #[test]
    fn a_merged_child_waits_for_both_parents() {
        let both = || vec![shard("m", &["a", "b"])];
        let mut shards = Shards::start(vec![shard("a", &[]), shard("b", &[])], &Position::Start);
        shards.end(&"a".into(), both(), 1);
        let cut = shards.cut();
        shards.committed(&cut);
        assert_eq!(open(&shards), ["b"]);
        shards.end(&"b".into(), both(), 2);
        assert_eq!((open(&shards), readable(&shards)), (vec!["m".into()], vec![]));
        let cut = shards.cut();
        assert_eq!(cut.advanced.keys().collect::<Vec<_>>(), ["b", "m"]);
        shards.committed(&cut);
        assert_eq!(readable(&shards), ["m"]);
    }

    #[test]
    fn a_merge_with_a_shard_that_is_yet_to_come_waits_for_it() {
        // a splits into a1 and a2; a2 and b merge into m; a is read last.
        let all = || {
            vec![shard("a", &[]), shard("a1", &["a"]), shard("a2", &["a"]), shard("b", &[]), shard("m", &["a2", "b"])]
        };
        let mut shards = Shards::start(vec![shard("a", &[]), shard("b", &[])], &Position::Start);
        assert!(shards.listed(all()).is_empty());
        shards.end(&"b".into(), vec![shard("m", &["a2", "b"])], 1);
        assert_eq!(open(&shards), ["a"]);
        shards.end(&"a".into(), vec![], 2);
        assert_eq!(open(&shards), ["a1", "a2"]);
        shards.end(&"a2".into(), vec![], 3);
        assert_eq!(open(&shards), ["a1", "m"]);
    }

    #[test]
    fn a_child_is_found_after_a_restart_between_its_parents() {
        let mut shards = Shards::start(vec![shard("a", &[]), shard("b", &[])], &Position::Start);
        let mut committed = shards.cut();
        shards.end(&"a".into(), vec![shard("m", &["a", "b"])], 1);
        committed.fold(&shards.cut());
        let mut shards = Shards::resume(&committed);
        assert!(shards.listed(vec![shard("a", &[]), shard("b", &[]), shard("m", &["a", "b"])]).is_empty());
        assert_eq!((open(&shards), readable(&shards)), (vec!["b".into()], vec!["b".into()]));
        shards.end(&"b".into(), vec![], 2);
        committed.fold(&shards.cut());
        let mut shards = Shards::resume(&committed);
        shards.listed(vec![shard("a", &[]), shard("b", &[]), shard("m", &["a", "b"])]);
        assert_eq!(readable(&shards), ["m"]);
    }

    #[test]
    fn older_shards_than_the_start_are_never_read() {
        let mut shards = Shards::start(vec![shard("b", &["a"]), shard("c", &["a"])], &Position::Time { ms: 1 });
        shards.listed(vec![shard("a", &[]), shard("b", &["a"]), shard("c", &["a"])]);
        assert_eq!(readable(&shards), ["b", "c"]);
        let lost = shards.listed(vec![shard("a", &[]), shard("c", &["a"])]);
        shards.give_up(&lost, 1);
        assert_eq!(readable(&shards), ["c"]);
    }

    #[test]
    fn a_start_with_parents_and_children_takes_the_parents() {
        let shards = Shards::start(vec![shard("a", &[]), shard("b", &["a"])], &Position::Start);
        assert_eq!(open(&shards), ["a"]);
    }

    #[test]
    fn done_shards_are_forgotten_once_they_vanish_and_are_committed() {
        let mut shards = Shards::start(vec![shard("a", &[])], &Position::Start);
        shards.end(&"a".into(), vec![shard("b", &["a"])], 1);
        assert!(shards.listed(vec![shard("a", &[]), shard("b", &["a"])]).is_empty());
        assert!(shards.listed(vec![shard("b", &["a"])]).is_empty());
        let cut = shards.cut();
        assert!(cut.forgotten.is_empty(), "not committed yet");
        shards.committed(&cut);
        shards.listed(vec![shard("b", &["a"])]);
        assert_eq!(shards.cut(), Cut { forgotten: vec!["a".into()], ..Cut::default() });
        assert_eq!(readable(&shards), ["b"]);
        shards.committed(&cut);
        assert!(shards.listed(vec![shard("b", &["a"])]).is_empty());
        assert!(shards.cut().is_empty(), "committing twice changes nothing");
    }

    #[test]
    fn a_child_that_no_listing_has_shown_has_not_vanished() {
        let mut shards = Shards::start(vec![shard("a", &[])], &Position::Start);
        shards.end(&"a".into(), vec![shard("b", &["a"])], 1);
        assert!(shards.listed(vec![shard("a", &[])]).is_empty());
        assert_eq!(open(&shards), ["b"]);
        assert!(!shards.may_be_read("b"), "its parent is still known");
        shards.doubt("b");
        assert_eq!(shards.listed(vec![shard("a", &[])]), ["b".into()]);
    }

    #[test]
    fn what_a_lost_shard_leaves_is_read_from_its_oldest_descendants() {
        let mut committed = Cut::default();
        committed.advanced.insert("a".into(), sequence(7));
        committed.advanced.insert("x".into(), sequence(8));
        let mut shards = Shards::resume(&committed);
        // a's children are gone as well; only a grandchild and its child are left.
        let lost = shards.listed(vec![shard("a11", &["a1"]), shard("a111", &["a11"]), shard("x", &[])]);
        assert_eq!(lost, ["a".into()]);
        shards.give_up(&lost, 3);
        assert_eq!(readable(&shards), ["a11", "x"]);
        let cut = shards.cut();
        assert_eq!((&cut.advanced["a"], &cut.advanced["a11"]), (&done(3), &Position::Start));
        shards.end(&"a11".into(), vec![], 4);
        assert_eq!(open(&shards), ["a111", "x"]);
    }

    #[test]
    fn a_shard_is_closed_only_with_a_child() {
        let mut shards = Shards::start(vec![shard("a", &[])], &Position::Start);
        shards.listed(vec![ShardFacts { closed: true, ..shard("a", &[]) }]);
        assert!(!shards.is_closed("a"));
        shards.listed(vec![ShardFacts { closed: true, ..shard("a", &[]) }, shard("b", &["a"])]);
        assert!(shards.is_closed("a"));
        shards.listed(vec![shard("a", &[]), shard("b", &["a"])]);
        assert!(!shards.is_closed("a"));
    }
}
