//! Sets of row numbers. Rows of a side are numbered one after the other, so a bit for each number is little.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Numbers that share a chunk: few enough that one alone takes no more than a row would, and many enough that the tree
/// of chunks takes little beside them.
const CHUNK_NUMBERS: u64 = 4096;

/// Words of a chunk.
const CHUNK_WORDS: usize = 64;

/// A set of row numbers.
#[derive(Debug, Default)]
pub struct Numbers {
    chunks: BTreeMap<u64, Chunk>,
}

/// A bit for each of [`CHUNK_NUMBERS`] numbers, of which at least one is set.
#[derive(Debug)]
struct Chunk {
    words: Box<[u64; CHUNK_WORDS]>,
    set: u32,
}

impl Numbers {
    /// Adds a number.
    pub fn insert(&mut self, number: u64) {
        let empty = || Chunk { words: Box::new([0; CHUNK_WORDS]), set: 0 };
        let chunk = self.chunks.entry(number / CHUNK_NUMBERS).or_insert_with(empty);
        let (word, bit) = place(number);
        if let Some(word) = chunk.words.get_mut(word).filter(|word| **word & bit == 0) {
            *word |= bit;
            chunk.set += 1;
        }
    }

    /// Takes a number out.
    pub fn remove(&mut self, number: u64) {
        let Entry::Occupied(mut chunk) = self.chunks.entry(number / CHUNK_NUMBERS) else { return };
        let (word, bit) = place(number);
        if let Some(word) = chunk.get_mut().words.get_mut(word).filter(|word| **word & bit != 0) {
            *word &= !bit;
            chunk.get_mut().set -= 1;
        }
        if chunk.get().set == 0 {
            chunk.remove();
        }
    }

    /// Tells whether a number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        let chunk = self.chunks.get(&(number / CHUNK_NUMBERS));
        chunk.and_then(|chunk| chunk.words.get(word)).is_some_and(|word| word & bit != 0)
    }

    /// Gives the memory that the set takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.chunks.len() * (CHUNK_WORDS * size_of::<u64>() + size_of::<(u64, Chunk)>())
    }
}

/// Gives the word of a chunk that a number lies in, and its bit.
fn place(number: u64) -> (usize, u64) {
    let within = number % CHUNK_NUMBERS;
    let word = usize::try_from(within / u64::from(u64::BITS)).unwrap_or_default();
    (word, 1 << (within % u64::from(u64::BITS)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_holds_what_was_added_and_not_taken_out(
            changes in prop::collection::vec((any::<bool>(), prop_oneof![0..5_000_u64, any::<u64>()]), 0..300),
        ) {
            let (mut tested, mut known) = (Numbers::default(), HashSet::new());
            for (add, number) in changes {
                if add {
                    tested.insert(number);
                    known.insert(number);
                } else {
                    tested.remove(number);
                    known.remove(&number);
                }
            }
            prop_assert!((0..5_000).chain(known.iter().copied()).all(|n| tested.contains(n) == known.contains(&n)));
            known.into_iter().for_each(|number| tested.remove(number));
            prop_assert_eq!(tested.size_bytes(), 0);
        }
    }

    #[test]
    fn a_set_takes_about_a_bit_for_each_number_of_its_range() {
        let mut tested = Numbers::default();
        (0..1_000_000).step_by(3).for_each(|number| tested.insert((7 << 32) + number));
        assert!(tested.size_bytes() < 1_200_000 / 8, "{} bytes", tested.size_bytes());
    }
}
