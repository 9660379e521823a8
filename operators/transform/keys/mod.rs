//! Remembered keys: the newest in memory, all others in files that are used as they lie on the disk.
//!
//! What an epoch adds becomes a file, ordered by hash. Files of about the same size are merged, eight into one, so that
//! a key is written again only each time that there are eight times as many. Of a file, the filter and the index are
//! in memory, some two bytes a key; a restart reads these, and makes nothing anew. The keys of the newest files are in
//! memory too, in a map, until that is full: most duplicates come soon.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};

use arrow::array::ArrayRef;
use arrow::row::RowConverter;
use bytes::Bytes;

mod file;

use super::sealed::Sealed;
use super::tiers;
use crate::error::Result;
use file::{ENTRY_BYTES, Entry, KeyFile, encode};

/// Under this many free places a map is left as it is: making it smaller would cost more than it frees.
const FREE_PLACES_MIN: usize = 65_536;

/// Gives hashes of 128 bits (XXH3) of keys in their encoding as Arrow's rows, which stand for the keys: with ten thousand
/// million of them the chance that two have the same is below 10^-18.
pub fn hashes(converter: &RowConverter, columns: &[ArrayRef]) -> Result<Vec<u128>> {
    let keys = converter.convert_columns(columns)?;
    Ok(keys.iter().map(|key| twox_hash::XxHash3_128::oneshot(key.as_ref())).collect())
}

/// What remembered keys may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// Memory of keys that have a file already, in bytes.
    pub map_bytes: usize,
    /// The largest file that is merged of smaller ones, in bytes: it is made in memory.
    pub file_bytes: usize,
}

/// Keys with the event times at which they were seen.
pub struct Keys {
    within_us: i64,
    limits: KeyLimits,
    newest: Newest,
    /// What the open epoch has added; it is in `newest` too.
    fresh: Vec<Entry>,
    /// Older files come first.
    segments: Vec<Segment>,
    /// Whether all keys of the file that is being made are in the map too.
    sealed_in_map: bool,
    /// What was read last of a file; kept so that its memory is.
    scratch: Vec<u8>,
}

/// A file, and the epoch that added it.
struct Segment {
    epoch: u64,
    file: KeyFile,
    /// Whether all its keys are in the map too, and it need not be asked.
    in_map: bool,
}

impl Keys {
    /// Remembers nothing yet. A key counts as seen within `within_us` of an event time at which it was.
    pub fn new(within_us: i64, limits: KeyLimits) -> Self {
        let (newest, fresh, segments, sealed_in_map, scratch) = Default::default();
        Self { within_us, limits, newest, fresh, segments, sealed_in_map, scratch }
    }

    /// Remembers a key, and tells whether it is new: not seen within the bound.
    pub fn insert(&mut self, hash: u128, time_us: i64) -> Result<bool> {
        if self.newest.near(hash, time_us, self.within_us) {
            return Ok(false);
        }
        for segment in self.segments.iter().rev().filter(|segment| !segment.in_map) {
            if segment.file.near(hash, time_us, self.within_us, &mut self.scratch)? {
                return Ok(false);
            }
        }
        self.newest.insert(hash, time_us);
        self.fresh.push((hash, time_us));
        Ok(true)
    }

    /// Closes an epoch: forgets keys from before `bound_us`, merges what should be, and tells what has to be durable.
    ///
    /// What was added must be given back as a file by [`adopt`](Self::adopt) before the next key is.
    pub fn seal(&mut self, epoch: u64, bound_us: i64) -> Result<Sealed> {
        self.newest.forget_before(bound_us);
        self.segments.retain(|segment| segment.file.newest_us() >= bound_us);
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|(_, time_us)| *time_us >= bound_us);
        fresh.sort_unstable();
        let full = self.newest.size_bytes() > self.limits.map_bytes;
        let merged = self.pick(fresh.len() as u64, full);
        let entries_max = fresh.len() as u64 + self.entries_of(&merged);
        let sources = merged.iter().filter_map(|place| self.segments.get(*place)).map(|segment| segment.file.read());
        let merge = Merge::new(fresh, sources.collect(), bound_us)?;
        let added = encode(merge, usize::try_from(entries_max).unwrap_or(usize::MAX))?;

        let (mut place, mut in_map) = (0, !full);
        self.segments.retain(|segment| {
            let kept = !merged.contains(&place);
            in_map &= kept || segment.in_map;
            place += 1;
            kept
        });
        self.sealed_in_map = in_map;
        if full {
            // What was in the map alone is in the file that is made now.
            self.newest = Newest::default();
            self.segments.iter_mut().for_each(|segment| segment.in_map = false);
        }
        let mut live: Vec<u64> = self.segments.iter().map(|segment| segment.epoch).collect();
        live.extend(added.is_some().then_some(epoch));
        Ok(Sealed { live, added: added.map(Bytes::from) })
    }

    /// Takes the file that [`seal`](Self::seal) has made, and that is durable now.
    pub fn adopt(&mut self, epoch: u64, file: File) -> Result<()> {
        self.segments.push(Segment { epoch, file: KeyFile::open(file)?, in_map: self.sealed_in_map });
        Ok(())
    }

    /// Goes on from the files of these epochs.
    pub fn restore(&mut self, files: Vec<(u64, File)>) -> Result<()> {
        self.newest = Newest::default();
        self.fresh.clear();
        self.segments.clear();
        for (epoch, file) in files {
            self.segments.push(Segment { epoch, file: KeyFile::open(file)?, in_map: false });
        }
        Ok(())
    }

    /// Gives the memory that the keys take, in bytes.
    pub fn size_bytes(&self) -> usize {
        let files: usize = self.segments.iter().map(|segment| segment.file.size_bytes()).sum();
        files + self.newest.size_bytes() + self.fresh.capacity() * size_of::<Entry>()
    }

    /// Gives the part of it that the open epoch has added: what its barrier may free.
    pub fn open_bytes(&self) -> usize {
        2 * self.fresh.len() * size_of::<Entry>()
    }

    fn entries_of(&self, places: &BTreeSet<usize>) -> u64 {
        let picked = places.iter().filter_map(|place| self.segments.get(*place));
        picked.map(|segment| segment.file.entries()).sum()
    }

    /// Picks the files that are merged with `fresh` new keys.
    fn pick(&self, fresh: u64, full: bool) -> BTreeSet<usize> {
        let entries_max = (self.limits.file_bytes / ENTRY_BYTES) as u64;
        let sizes: Vec<u64> = self.segments.iter().map(|segment| segment.file.entries()).collect();
        let in_map = self.segments.iter().enumerate().filter(|(_, segment)| full && segment.in_map);
        tiers::alike(fresh, &sizes, entries_max, in_map.map(|(place, _)| place).collect())
    }
}

/// Keys in memory. A key may come again beyond the bound, and rows come in any order, so that a key has several times.
#[derive(Default)]
struct Newest {
    newest_us: HashMap<u128, i64, BuildHasherDefault<HashAsItIs>>,
    /// All but the newest times of keys that have several: few.
    others: BTreeSet<Entry>,
}

impl Newest {
    fn near(&self, key: u128, time_us: i64, within_us: i64) -> bool {
        let Some(newest_us) = self.newest_us.get(&key) else { return false };
        if newest_us.abs_diff(time_us) <= within_us.unsigned_abs() {
            return true;
        }
        let bounds = (key, time_us.saturating_sub(within_us))..=(key, time_us.saturating_add(within_us));
        self.others.range(bounds).next().is_some()
    }

    fn insert(&mut self, key: u128, time_us: i64) {
        match self.newest_us.entry(key) {
            MapEntry::Vacant(free) => drop(free.insert(time_us)),
            MapEntry::Occupied(mut newest) => {
                self.others.insert((key, time_us.min(*newest.get())));
                newest.insert(time_us.max(*newest.get()));
            }
        }
    }

    fn forget_before(&mut self, bound_us: i64) {
        self.newest_us.retain(|_, time_us| *time_us >= bound_us);
        self.others.retain(|(_, time_us)| *time_us >= bound_us);
        let (kept, places) = (self.newest_us.len(), self.newest_us.capacity());
        if places - kept > kept.max(FREE_PLACES_MIN) {
            self.newest_us.shrink_to(2 * kept);
        }
    }

    fn size_bytes(&self) -> usize {
        (self.newest_us.capacity() + self.others.len()) * size_of::<Entry>()
    }
}

/// Takes a key that is a hash as its own hash.
#[derive(Default)]
struct HashAsItIs(u64);

impl Hasher for HashAsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "half a hash is one")]
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// Entries of several sources in one order, without those from before a bound.
struct Merge<'a> {
    fresh: std::vec::IntoIter<Entry>,
    files: Vec<file::Reading<'a>>,
    /// The next entry of each source; the last source is what is fresh.
    next: BinaryHeap<std::cmp::Reverse<(Entry, usize)>>,
    bound_us: i64,
}

impl<'a> Merge<'a> {
    fn new(fresh: Vec<Entry>, files: Vec<file::Reading<'a>>, bound_us: i64) -> Result<Self> {
        let sources = files.len() + 1;
        let mut merge = Self { fresh: fresh.into_iter(), files, next: BinaryHeap::new(), bound_us };
        for source in 0..sources {
            merge.advance(source)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, source: usize) -> Result<()> {
        let next = match self.files.get_mut(source) {
            Some(file) => file.next().transpose()?,
            None => self.fresh.next(),
        };
        self.next.extend(next.map(|entry| std::cmp::Reverse((entry, source))));
        Ok(())
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let std::cmp::Reverse((entry, source)) = self.next.pop()?;
            if let Err(error) = self.advance(source) {
                return Some(Err(error));
            }
            if entry.1 >= self.bound_us {
                return Some(Ok(entry));
            }
        }
    }
}
