//! A filter that tells most keys that are not there from those that may be.
//!
//! The split block Bloom filter of the Parquet format (`BloomFilter.md`), with halves of the key's own hash in place of
//! another one: eight bits in one block of 32 bytes, so that a look costs one line of cache.

/// Bits for each key: one key in some two hundred that are not there is taken for one that may be.
const KEY_BITS: u64 = 12;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 32;

/// One word for each of the eight bits of a key.
type Block = [u32; 8];

/// Odd numbers that make eight places of one hash, from the Parquet format.
const SALTS: Block =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// A filter over hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    blocks: Vec<Block>,
}

impl Filter {
    /// Makes an empty filter for this many keys.
    pub fn of(keys: u64) -> Self {
        let blocks = (keys * KEY_BITS).div_ceil(BLOCK_BYTES as u64 * 8).max(1);
        Self { blocks: vec![Block::default(); usize::try_from(blocks).unwrap_or(usize::MAX)] }
    }

    /// Reads what [`bytes`](Self::bytes) wrote: whole blocks.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or_default();
        let block = |bytes: &[u8]| {
            let mut block = Block::default();
            block.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(place, bytes)| *place = word(bytes));
            block
        };
        Self { blocks: bytes.chunks_exact(BLOCK_BYTES).map(block).collect() }
    }

    /// Gives the blocks as bytes, little-endian.
    pub fn bytes(&self) -> impl Iterator<Item = [u8; 4]> {
        self.blocks.iter().flatten().map(|word| word.to_le_bytes())
    }

    /// Adds a key.
    pub fn add(&mut self, hash: u128) {
        let place = self.place(hash);
        if let Some(block) = self.blocks.get_mut(place) {
            block.iter_mut().zip(mask(hash)).for_each(|(word, bit)| *word |= bit);
        }
    }

    /// Tells whether a key may have been added; `false` is sure.
    pub fn may_have(&self, hash: u128) -> bool {
        let block = self.blocks.get(self.place(hash));
        block.is_some_and(|block| block.iter().zip(mask(hash)).all(|(word, bit)| word & bit != 0))
    }

    /// Gives the size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Picks the block by the third quarter of the hash; the first ones order the entries, the last one picks bits.
    #[allow(clippy::cast_possible_truncation, reason = "a quarter of a hash, and a number below that of the blocks")]
    fn place(&self, hash: u128) -> usize {
        let quarter = u128::from((hash >> 32) as u32);
        ((quarter * self.blocks.len() as u128) >> 32) as usize
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a quarter of a hash")]
fn mask(hash: u128) -> Block {
    SALTS.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u128 {
        twox_hash::XxHash3_128::oneshot(&n.to_le_bytes())
    }

    #[test]
    fn what_was_added_is_found_and_little_else() {
        let mut filter = Filter::of(10_000);
        (0..10_000).for_each(|n| filter.add(hash(n)));
        assert!((0..10_000).all(|n| filter.may_have(hash(n))));
        let wrong = (10_000..110_000).filter(|n| filter.may_have(hash(*n))).count();
        assert!(wrong < 1_500, "{wrong} of 100 000 are taken for keys that may be there");

        let bytes: Vec<u8> = filter.bytes().flatten().collect();
        assert_eq!(bytes.len(), filter.size_bytes());
        assert_eq!(Filter::from_bytes(&bytes), filter);
    }
}
