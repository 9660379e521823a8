//! Finding a declared field by the bytes of its name.

use std::collections::HashMap;

/// Up to so many fields, comparing one name after the other beats hashing.
const SCANNED_MAX: usize = 16;

/// How a field begins. Short ones are compared as one number: to call for a comparison of ten bytes costs more than it.
pub(super) struct Key {
    bytes: Box<[u8]>,
    /// The bytes as a number, and which bits of it count; no bit if there are more than fit.
    number: u128,
    mask: u128,
}

impl Key {
    fn new(bytes: Box<[u8]>) -> Self {
        let (mut padded, mut mask) = ([0; size_of::<u128>()], [0; size_of::<u128>()]);
        if let (Some(head), Some(counts)) = (padded.get_mut(..bytes.len()), mask.get_mut(..bytes.len())) {
            head.copy_from_slice(&bytes);
            counts.fill(u8::MAX);
        }
        Self { bytes, number: u128::from_le_bytes(padded), mask: u128::from_le_bytes(mask) }
    }

    /// Tells whether `text` begins with the key.
    #[inline]
    pub(super) fn begins(&self, text: &[u8]) -> bool {
        match text.first_chunk() {
            Some(head) if self.mask != 0 => u128::from_le_bytes(*head) & self.mask == self.number,
            _ => text.starts_with(&self.bytes),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The names of an object's declared fields.
pub(super) struct Names {
    names: Vec<Box<[u8]>>,
    /// Each name in quotes and with the colon, as most writers of JSON put it; nothing for one that needs escapes.
    keys: Vec<Option<Key>>,
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
        let key = |name: &[u8]| is_plain(name).then(|| Key::new([b"\"", name, b"\":"].concat().into()));
        let keys = names.iter().map(|name| key(name)).collect();
        Self { names, keys, index }
    }

    /// Gives how the field at `guess` begins in JSON, unless with escapes or spaces.
    #[inline]
    pub(super) fn key(&self, guess: usize) -> Option<&Key> {
        self.keys.get(guess)?.as_ref()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_others_whatever_its_length() {
        for len in 0..40 {
            let name = "n".repeat(len);
            let names = Names::new([name.as_str()].into_iter());
            let key = names.key(0).unwrap();
            let text = format!("\"{name}\":");
            for behind in ["", "1", "\"a text that is longer than a number\"}"] {
                assert!(key.begins(format!("{text}{behind}").as_bytes()), "{len} {behind}");
                assert!(!key.begins(format!("\"{name}n\":{behind}").as_bytes()), "{len} {behind}");
                assert!(!key.begins(format!("\"{name}\" :{behind}").as_bytes()), "{len} {behind}");
            }
            assert!(!key.begins(&text.as_bytes()[..text.len() - 1]), "{len}");
        }
        assert!(Names::new(["a\"b"].into_iter()).key(0).is_none());
    }
}
