//! Which message waits for which objects, and which objects are done.
//!
//! Pure bookkeeping: it calls nobody. An object is known by its partition name,
//! which holds its version, so a repeated notification is told from new content.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::position::{Cut, Position};

/// How long an object that is done is remembered: the longest that a queue keeps a message.
const REMEMBER_MS: i64 = 14 * 24 * 3600 * 1000;

/// How far the clocks of S3 and of this machine may be apart.
const CLOCKS_APART_MS: i64 = 3600 * 1000;

/// Objects that are remembered: a million names take some 200 MiB of memory and of commit records. Past it the
/// oldest are forgotten early; a message that comes back later than that would be read again. In the tests so few that
/// it takes little to pass it.
const REMEMBERED_MAX: usize = if cfg!(test) { 100 } else { 1_000_000 };

/// A message that was received and not deleted.
#[derive(Debug)]
struct Message {
    /// The newest receipt: only it deletes and extends.
    receipt: String,
    /// Objects whose rows are not committed.
    pending: HashSet<Arc<str>>,
    /// When its visibility began to count.
    visible_from_us: i64,
}

/// An object that is done.
#[derive(Debug)]
struct Done {
    ms: i64,
    committed: bool,
}

/// Remembers messages and objects.
#[derive(Debug, Default)]
pub struct Ledger {
    messages: HashMap<String, Message>,
    /// Objects that wait or are being read.
    started: HashSet<Arc<str>>,
    /// Objects that are done.
    done: HashMap<Arc<str>, Done>,
    /// Objects by the time at which they were done, the oldest first.
    ages: VecDeque<(i64, Arc<str>)>,
    /// Where objects stand that an earlier run began.
    begun: HashMap<Arc<str>, u64>,
    /// Messages by id and receipt of which nothing is left to do but to delete them.
    finished: HashMap<String, String>,
}

impl Ledger {
    /// Starts from committed positions.
    pub fn open(committed: &Cut, now_ms: i64) -> Self {
        let mut ledger = Self::default();
        for (name, position) in &committed.advanced {
            let name: Arc<str> = name.as_str().into();
            match position {
                Position::Done { ms, .. } => {
                    ledger.ages.push_back((*ms, Arc::clone(&name)));
                    ledger.done.insert(name, Done { ms: *ms, committed: true });
                }
                Position::Offset { offset, .. } => {
                    ledger.ages.push_back((now_ms, Arc::clone(&name)));
                    ledger.begun.insert(name, *offset);
                }
                _ => {}
            }
        }
        ledger.ages.make_contiguous().sort();
        ledger
    }

    /// Holds a message, or takes the new receipt of one that is held; gives those of its objects that are to be
    /// started.
    pub fn hold(&mut self, id: &str, receipt: &str, objects: &[Arc<str>], now_us: i64) -> Vec<Arc<str>> {
        let committed = |name: &&Arc<str>| self.done.get(*name).is_some_and(|done| done.committed);
        let pending: HashSet<_> = objects.iter().filter(|name| !committed(name)).cloned().collect();
        if pending.is_empty() {
            self.messages.remove(id);
            self.finished.insert(id.to_owned(), receipt.to_owned());
            return Vec::new();
        }
        let mut fresh = Vec::new();
        for name in objects {
            if !self.done.contains_key(name) && self.started.insert(Arc::clone(name)) {
                fresh.push(Arc::clone(name));
            }
        }
        let message = Message { receipt: receipt.to_owned(), pending, visible_from_us: now_us };
        self.messages.insert(id.to_owned(), message);
        fresh
    }

    /// Tells whether an object is done or under way.
    pub fn knows(&self, name: &str) -> bool {
        self.done.contains_key(name) || self.started.contains(name)
    }

    /// Notes that an object is begun which no message names; tells whether it was not yet.
    pub fn start(&mut self, name: &Arc<str>) -> bool {
        !self.done.contains_key(name) && self.started.insert(Arc::clone(name))
    }

    /// Gives the time since when each object that was changed, and is done, is remembered.
    pub fn remembers_since(&self, now_ms: i64) -> i64 {
        let oldest = self.ages.front().filter(|_| self.ages.len() >= REMEMBERED_MAX).map(|(ms, _)| *ms);
        oldest.unwrap_or(i64::MIN).max(now_ms.saturating_sub(REMEMBER_MS - CLOCKS_APART_MS))
    }

    /// Gives the offset from which to read an object.
    pub fn begun_at(&self, name: &str) -> u64 {
        self.begun.get(name).copied().unwrap_or_default()
    }

    /// Notes that an object has been read to its end, or never can be.
    pub fn done(&mut self, name: &Arc<str>, now_ms: i64) {
        self.started.remove(name);
        self.begun.remove(name);
        self.done.insert(Arc::clone(name), Done { ms: now_ms, committed: false });
        self.ages.push_back((now_ms, Arc::clone(name)));
    }

    /// Gives up an object for now that has been read up to an offset, and with it every message that names it: the
    /// queue sends them again. Gives their receipts.
    pub fn release(&mut self, name: &Arc<str>, offset: u64, now_ms: i64) -> Vec<String> {
        self.started.remove(name);
        if offset > 0 && self.begun.insert(Arc::clone(name), offset).is_none() {
            self.ages.push_back((now_ms, Arc::clone(name)));
        }
        let released = self.messages.extract_if(|_, message| message.pending.contains(name));
        released.map(|(_, message)| message.receipt).collect()
    }

    /// Notes that the rows up to a cut are committed.
    pub fn committed(&mut self, cut: &Cut) {
        let done = cut.advanced.iter().filter(|(_, position)| matches!(position, Position::Done { .. }));
        let names: HashSet<&str> = done.map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return;
        }
        for name in &names {
            if let Some(done) = self.done.get_mut(*name) {
                done.committed = true;
            }
        }
        let finished = &mut self.finished;
        self.messages.retain(|id, message| {
            message.pending.retain(|name| !names.contains(&**name));
            if message.pending.is_empty() {
                finished.insert(id.clone(), message.receipt.clone());
            }
            !message.pending.is_empty()
        });
    }

    /// Forgets what no message can name any more.
    pub fn forget(&mut self, now_ms: i64) -> Vec<String> {
        let mut forgotten = Vec::new();
        while let Some((ms, name)) = self.ages.front() {
            if now_ms.saturating_sub(*ms) <= REMEMBER_MS && self.ages.len() <= REMEMBERED_MAX {
                break;
            }
            match self.done.get(name) {
                // It was begun by an earlier run and done by this one: the later age counts.
                Some(done) if done.ms != *ms => {}
                Some(done) if !done.committed => break,
                None if self.started.contains(name) => {}
                _ => {
                    self.done.remove(name);
                    self.begun.remove(name);
                    forgotten.push(name.to_string());
                }
            }
            self.ages.pop_front();
        }
        forgotten
    }

    /// Counts the messages that are held.
    pub fn held(&self) -> usize {
        self.messages.len()
    }

    /// Gives ids and receipts of the messages whose visibility began before a time.
    pub fn visible_before(&self, us: i64) -> Vec<(String, String)> {
        let due = self.messages.iter().filter(|(_, message)| message.visible_from_us <= us);
        due.map(|(id, message)| (id.clone(), message.receipt.clone())).collect()
    }

    /// Notes when the visibility of a message was extended, or was tried to be.
    pub fn extended(&mut self, id: &str, now_us: i64) {
        if let Some(message) = self.messages.get_mut(id) {
            message.visible_from_us = now_us;
        }
    }

    /// Gives ids and receipts of the messages that may be deleted.
    pub fn finished(&self) -> Vec<(String, String)> {
        self.finished.iter().map(|(id, receipt)| (id.clone(), receipt.clone())).collect()
    }

    /// Notes that a message was deleted by a receipt, or that this receipt never will.
    pub fn deleted(&mut self, id: &str, receipt: &str) {
        if self.finished.get(id).is_some_and(|newest| newest == receipt) {
            self.finished.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Arc<str> {
        name.into()
    }

    fn done(names: &[&str], ms: i64) -> Cut {
        let position = Position::Done { offset: 1, identity: None, ms };
        Cut { advanced: names.iter().map(|n| ((*n).to_owned(), position.clone())).collect(), forgotten: Vec::new() }
    }

    #[test]
    fn a_message_is_finished_when_all_its_objects_are_committed() {
        let mut ledger = Ledger::open(&Cut::default(), 0);
        assert_eq!(ledger.hold("m", "r1", &[name("a"), name("b")], 0), [name("a"), name("b")]);
        ledger.done(&name("a"), 1);
        ledger.committed(&done(&["a"], 1));
        assert!(ledger.finished().is_empty(), "b is not done");
        ledger.done(&name("b"), 2);
        assert!(ledger.hold("m", "r2", &[name("a"), name("b")], 5).is_empty(), "nothing is read twice");
        assert!(ledger.finished().is_empty(), "b is not committed");
        ledger.committed(&done(&["b"], 2));
        assert_eq!(ledger.finished(), [("m".to_owned(), "r2".to_owned())]);
        ledger.deleted("m", "r1");
        assert_eq!(ledger.finished().len(), 1, "a delete by an old receipt does not count");
        ledger.deleted("m", "r2");
        assert!(ledger.finished().is_empty());
    }

    #[test]
    fn a_duplicate_is_finished_by_its_own_receipt() {
        let mut ledger = Ledger::open(&done(&["a"], 0), 0);
        assert!(ledger.hold("again", "r", &[name("a")], 0).is_empty());
        assert_eq!(ledger.finished(), [("again".to_owned(), "r".to_owned())]);
        ledger.hold("m", "r", &[name("b")], 0);
        assert!(ledger.hold("twin", "s", &[name("b")], 0).is_empty(), "it is in flight");
        ledger.done(&name("b"), 1);
        ledger.committed(&done(&["b"], 1));
        assert_eq!(ledger.finished().len(), 3);
    }

    #[test]
    fn a_released_object_is_started_when_its_message_returns() {
        let mut ledger = Ledger::open(&Cut::default(), 0);
        ledger.hold("m", "r", &[name("a"), name("b")], 0);
        assert_eq!(ledger.release(&name("a"), 7, 0), ["r"]);
        assert_eq!(ledger.held(), 0);
        assert_eq!(ledger.hold("m", "r2", &[name("a"), name("b")], 0), [name("a")], "b is still being read");
        assert_eq!([ledger.begun_at("a"), ledger.begun_at("b")], [7, 0], "it goes on where it was left");
        ledger.release(&name("a"), 9, 1);
        assert_eq!(ledger.begun_at("a"), 9);
        assert_eq!(ledger.forget(REMEMBER_MS + 1), ["a"]);
    }

    #[test]
    fn an_object_without_a_message_is_begun_once() {
        let mut ledger = Ledger::open(&done(&["old"], 0), 0);
        assert!(!ledger.start(&name("old")) && ledger.knows("old"));
        assert!(ledger.start(&name("lost")) && !ledger.start(&name("lost")));
        assert!(ledger.hold("late", "r", &[name("lost")], 0).is_empty(), "its message comes late");
        ledger.done(&name("lost"), 1);
        ledger.committed(&done(&["lost"], 1));
        assert_eq!(ledger.finished(), [("late".to_owned(), "r".to_owned())]);
        let now_ms = 30 * REMEMBER_MS;
        assert_eq!(ledger.remembers_since(now_ms), now_ms - REMEMBER_MS + CLOCKS_APART_MS);
    }

    #[test]
    fn no_more_is_remembered_than_fits() {
        let names: Vec<_> = (0..REMEMBERED_MAX + 3).map(|n| format!("{n:04}")).collect();
        let mut committed = Cut::default();
        for (ms, name) in (0..).zip(&names) {
            committed.advanced.extend(done(&[name], ms).advanced);
        }
        let mut ledger = Ledger::open(&committed, 0);
        assert_eq!(ledger.remembers_since(0), 0);
        assert_eq!(ledger.forget(0), names[..3]);
        assert!(!ledger.knows("0002") && ledger.knows("0003"));
        assert_eq!(ledger.remembers_since(0), 3, "what is older may have been read, and is not taken from a listing");
    }

    #[test]
    fn what_is_done_is_forgotten_after_two_weeks() {
        let mut ledger = Ledger::open(&done(&["old"], 0), 0);
        ledger.hold("m", "r", &[name("new")], 0);
        ledger.done(&name("new"), REMEMBER_MS);
        assert!(ledger.forget(REMEMBER_MS).is_empty());
        assert_eq!(ledger.forget(REMEMBER_MS + 1), ["old"]);
        assert!(ledger.forget(3 * REMEMBER_MS).is_empty(), "what is not committed is kept");
        ledger.committed(&done(&["new"], REMEMBER_MS));
        assert_eq!(ledger.forget(3 * REMEMBER_MS), ["new"]);
    }
}
