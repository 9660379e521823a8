//! Finding a declared field by the bytes of its name.

use std::collections::HashMap;

/// Up to so many fields, comparing one name after the other beats hashing.
const SCANNED_MAX: usize = 16;

/// The names of an object's declared fields.
pub(super) struct Names {
    names: Vec<Box<[u8]>>,
    /// Each name in quotes and with the colon, as most writers of JSON put it; nothing for one that needs escapes.
    keys: Vec<Option<Box<[u8]>>>,
    /// Empty if there are few names.
    index: HashMap<Box<[u8]>, usize>,
}

impl Names {
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<Box<[u8]>> = names.map(|name| name.as_bytes().into()).collect();
        let index = match names.len() {
            0..=SCANNED_MAX => HashMap::new(),
            _ => names.iter().enumerate().map(|(at, name)| (name.clone(), at)).collect(),
        };
        let is_plain = |name: &[u8]| !name.iter().any(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        let key = |name: &[u8]| is_plain(name).then(|| [b"\"", name, b"\":"].concat().into());
        let keys = names.iter().map(|name| key(name)).collect();
        Self { names, keys, index }
    }

    /// Gives how the field at `guess` begins in JSON, unless with escapes or spaces.
    #[inline]
    pub(super) fn key(&self, guess: usize) -> Option<&[u8]> {
        self.keys.get(guess)?.as_deref()
    }

    /// Finds a field; `guess` is where it would stand if records keep the declared order.
    #[inline]
    pub(super) fn find(&self, name: &[u8], guess: usize) -> Option<usize> {
        if self.names.get(guess).is_some_and(|guessed| guessed.as_ref() == name) {
            return Some(guess);
        }
        if self.index.is_empty() {
            return self.names.iter().position(|other| other.as_ref() == name);
        }
        self.index.get(name).copied()
    }
}
