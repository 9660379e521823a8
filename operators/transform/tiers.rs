//! Which files of state are merged: those of about the same size, so that what is in them is written again only each
//! time that there is several times as much.

use std::collections::BTreeSet;

/// Files of about the same size that are merged into one. Fewer would write state more often; more would make each
/// look for something ask more files.
const MERGED: usize = 8;

/// Binary digits of [`MERGED`]: sizes that differ by no more are about the same.
const MERGED_BITS: u32 = 3;

/// Picks the files that are merged with something new of the size `fresh`, beside those that are `picked` already:
/// while there are enough of one size, all that fit into a file of the size `most`.
pub fn alike(fresh: u64, sizes: &[u64], most: u64, mut picked: BTreeSet<usize>) -> BTreeSet<usize> {
    let size = |place: &usize| sizes.get(*place).copied().unwrap_or(0);
    loop {
        let so_far = fresh + picked.iter().map(size).sum::<u64>();
        // A file of more than half the largest size has found its place.
        let may = |place: &usize| {
            !picked.contains(place) && magnitude(size(place)) <= magnitude(so_far) && 2 * size(place) <= most
        };
        let mut alike: Vec<usize> = (0..sizes.len()).filter(may).collect();
        if alike.len() + 1 < MERGED {
            return picked;
        }
        alike.sort_unstable_by_key(size);
        let before = picked.len();
        let mut whole = so_far;
        for place in alike {
            whole += size(&place);
            if whole > most {
                break;
            }
            picked.insert(place);
        }
        if picked.len() == before {
            return picked;
        }
    }
}

fn magnitude(size: u64) -> u32 {
    size.max(1).ilog2() / MERGED_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(fresh: u64, sizes: &[u64]) -> Vec<usize> {
        alike(fresh, sizes, 1000, BTreeSet::new()).into_iter().collect()
    }

    #[test]
    fn eight_of_a_size_are_merged_and_then_eight_of_those() {
        assert_eq!(picked(1, &[1; 6]), [0; 0]);
        assert_eq!(picked(1, &[1; 7]), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(picked(1, &[8, 8, 8, 8, 8, 8, 8, 1, 1, 1, 1, 1, 1, 1]), (0..14).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_is_large_enough_stays() {
        assert_eq!(picked(1, &[900, 1, 1, 1, 1, 1, 1, 1]), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(picked(300, &[300; 9]), [0, 1], "no more than 1000 together");
    }
}
