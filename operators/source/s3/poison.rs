//! What becomes of messages and objects that cannot be read.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};

/// What is wrong with a message, or with an object that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poison {
    /// The message is no notification, or names what may not be read.
    Message,
    /// There is no such object.
    Missing,
    /// It may not be read.
    Denied,
    /// Its bucket is in another region.
    Region,
    /// It is larger than objects may be.
    TooLarge,
    /// Its content was overwritten, has a key that cannot be asked for, or does not unpack or divide into records.
    Unreadable,
}

/// Something that cannot be read.
pub(super) struct Rejected {
    pub(super) partition: Arc<str>,
    pub(super) offset: u64,
    pub(super) raw: Bytes,
    pub(super) reason: String,
    pub(super) poison: Poison,
    /// How often its message was received.
    pub(super) receives: u32,
}

/// What becomes of what cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPoison {
    /// It goes to the quarantine with its reason, and its message is deleted.
    #[default]
    Quarantine,
    /// It is left until its message comes again, later each time.
    Retry,
    /// The run ends.
    Fail,
}

/// What becomes of each kind of message and object that cannot be read.
#[derive(Debug, Clone)]
pub struct PoisonPolicy {
    /// Messages that are no notification, or name what may not be read.
    pub message: OnPoison,
    /// Objects that are not there.
    pub missing: OnPoison,
    /// Objects that may not be read.
    pub denied: OnPoison,
    /// Objects in another region.
    pub region: OnPoison,
    /// Objects that are too large.
    pub too_large: OnPoison,
    /// Objects with content that cannot be read.
    pub unreadable: OnPoison,
    /// How often a message is received until an object counts as missing, denied or in another region: that may pass.
    pub receives: u32,
}

impl Default for PoisonPolicy {
    fn default() -> Self {
        let on = OnPoison::default();
        Self {
            message: on,
            missing: on,
            denied: on,
            region: on,
            too_large: on,
            unreadable: on,
            // S3 is consistent: another receive only helps where permissions or a copy come late.
            receives: 3,
        }
    }
}

impl PoisonPolicy {
    /// Tells what is to be done with what was received so often: whether it is left for now, or is poison for good.
    ///
    /// # Errors
    ///
    /// [`Data`](crate::ErrorKind::Data), with the reason, if the run is to end.
    pub(super) fn decide(&self, poison: Poison, receives: u32, reason: &str) -> Result<Decision> {
        let (on, key, may_pass) = match poison {
            Poison::Message => (self.message, "message", false),
            Poison::Missing => (self.missing, "missing", true),
            Poison::Denied => (self.denied, "denied", true),
            Poison::Region => (self.region, "region", true),
            Poison::TooLarge => (self.too_large, "too_large", false),
            Poison::Unreadable => (self.unreadable, "unreadable", false),
        };
        match on {
            OnPoison::Retry => Ok(Decision::Leave),
            _ if may_pass && receives < self.receives => Ok(Decision::Leave),
            OnPoison::Quarantine => Ok(Decision::Quarantine),
            OnPoison::Fail => Err(Error::data(format!("{reason}; `on_poison: {{ {key}: fail }}` ends the run"))),
        }
    }
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is left until its message comes again.
    Leave,
    /// It goes to the quarantine.
    Quarantine,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_policy_and_what_may_pass_is_tried_first() {
        let policy = PoisonPolicy { denied: OnPoison::Retry, too_large: OnPoison::Fail, ..PoisonPolicy::default() };
        let decide = |poison, receives| policy.decide(poison, receives, "s3://b/k is too large");
        for (poison, receives, decision) in [
            (Poison::Message, 1, Decision::Quarantine),
            (Poison::Unreadable, 1, Decision::Quarantine),
            (Poison::Missing, 2, Decision::Leave),
            (Poison::Missing, 3, Decision::Quarantine),
            (Poison::Region, 2, Decision::Leave),
            (Poison::Denied, 1000, Decision::Leave),
        ] {
            assert_eq!(decide(poison, receives).unwrap(), decision, "{poison:?} {receives}");
        }
        let error = decide(Poison::TooLarge, 1).unwrap_err().to_string();
        assert_eq!(error, "s3://b/k is too large; `on_poison: { too_large: fail }` ends the run");
        let policy = PoisonPolicy { missing: OnPoison::Fail, receives: 2, ..PoisonPolicy::default() };
        assert_eq!(policy.decide(Poison::Missing, 1, "").unwrap(), Decision::Leave);
        assert!(policy.decide(Poison::Missing, 2, "").is_err());
    }
}
