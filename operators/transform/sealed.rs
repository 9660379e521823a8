//! What a transform hands over at the end of an epoch, so that its state can be restored.

use bytes::Bytes;

/// What has to be durable so that a state can be restored: a file for each of some epochs.
#[derive(Debug, Default, PartialEq)]
pub struct Sealed {
    /// The epochs whose files make up the state.
    pub live: Vec<u64>,
    /// The file that this epoch has added, if it has; the others have been given before.
    pub added: Option<Bytes>,
}
