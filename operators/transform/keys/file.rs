//! A file of remembered keys, used as it lies on the disk.
//!
//! ```text
//! entries   24 bytes each: the key's hash (128 bits) and an event time (microseconds), by hash and time
//! index     4 bytes each: for each value of the hash's first `bits` bits the number of its first entry, and the end
//! filter    blocks of 32 bytes, see `filter`
//! trailer   64 bytes: b"nexuskey", version (4), bits (4), entries (8), filter blocks (8), oldest and newest time
//!           (8 each), XXH3 (16) of index, filter and the trailer before it
//! ```
//!
//! Hashes are big-endian, so that their bytes lie in their order; all other numbers are little-endian. To open a file is to read its index and its filter: some two bytes a key. To look a key
//! up is to ask the filter, and then to read the few entries of one place in the index.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::transform::filter::{BLOCK_BYTES, Filter};

/// A remembered key: the hash of its columns, and an event time.
pub type Entry = (u128, i64);

/// Bytes of an entry in a file.
pub const ENTRY_BYTES: usize = 24;

const MAGIC: &[u8; 8] = b"nexuskey";
const VERSION: u32 = 1;
const TRAILER_BYTES: usize = 64;
const CHECK_BYTES: usize = 16;

/// Entries at a place of the index: three to five kilobytes, which a disk reads at once.
const PLACE_ENTRIES: u64 = 128;

/// The most bits of the index: 4 bytes times 2 to the power of this.
const BITS_MAX: u32 = 24;

/// Entries that are read at once when a file is read from its start.
const READ_ENTRIES: usize = 8192;

/// An open file of keys.
#[derive(Debug)]
pub struct KeyFile {
    file: File,
    entries: u64,
    bits: u32,
    index: Vec<u32>,
    filter: Filter,
    oldest_us: i64,
    newest_us: i64,
}

impl KeyFile {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// `Config` if it is damaged or of another version.
    pub fn open(file: File) -> Result<Self> {
        let damaged = || Error::config("a file of remembered keys is damaged; restore it from a copy of the state");
        let size = file.metadata()?.len();
        let Some(trailer_at) = size.checked_sub(TRAILER_BYTES as u64) else { return Err(damaged()) };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, trailer_at)?;
        let mut fields = Fields(&trailer);
        if fields.take::<8>() != *MAGIC {
            return Err(damaged());
        }
        let version = u32::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(Error::config(format!(
                "a file of remembered keys is of format version {version}, this nexus reads version {VERSION}; run the \
                 version of nexus that wrote it"
            )));
        }
        let bits = u32::from_le_bytes(fields.take());
        let entries = u64::from_le_bytes(fields.take());
        let blocks = u64::from_le_bytes(fields.take());
        let (oldest_us, newest_us) = (i64::from_le_bytes(fields.take()), i64::from_le_bytes(fields.take()));
        let check = u128::from_le_bytes(fields.take());
        if bits > BITS_MAX {
            return Err(damaged());
        }
        let index_bytes = ((1_u64 << bits) + 1) * 4;
        let entries_bytes = entries.checked_mul(ENTRY_BYTES as u64).ok_or_else(damaged)?;
        let filter_bytes = blocks.checked_mul(BLOCK_BYTES as u64).ok_or_else(damaged)?;
        let parts = entries_bytes.checked_add(index_bytes).and_then(|sum| sum.checked_add(filter_bytes));
        if parts != Some(trailer_at) {
            return Err(damaged());
        }
        let mut tail = vec![0; usize::try_from(size - entries_bytes).map_err(|_| damaged())?];
        file.read_exact_at(&mut tail, entries_bytes)?;
        let (checked, _) = tail.split_at_checked(tail.len() - CHECK_BYTES).ok_or_else(damaged)?;
        if twox_hash::XxHash3_128::oneshot(checked) != check {
            return Err(damaged());
        }
        let index_end = usize::try_from(index_bytes).map_err(|_| damaged())?;
        let (index, rest) = tail.split_at_checked(index_end).ok_or_else(damaged)?;
        let (filter, _) = rest.split_at_checked(rest.len() - TRAILER_BYTES).ok_or_else(damaged)?;
        let index = index.chunks_exact(4).map(|bytes| bytes.try_into().map(u32::from_le_bytes).unwrap_or_default());
        Ok(Self {
            file,
            entries,
            bits,
            index: index.collect(),
            filter: Filter::from_bytes(filter),
            oldest_us,
            newest_us,
        })
    }

    /// Gives the number of entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Gives the newest event time.
    pub fn newest_us(&self) -> i64 {
        self.newest_us
    }

    /// Gives the memory that it takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.filter.size_bytes() + self.index.len() * size_of::<u32>()
    }

    /// Tells whether a key has an event time that lies within a bound of this one.
    pub fn near(&self, hash: u128, time_us: i64, within_us: i64, scratch: &mut Vec<u8>) -> Result<bool> {
        let (from_us, to_us) = (time_us.saturating_sub(within_us), time_us.saturating_add(within_us));
        if to_us < self.oldest_us || self.newest_us < from_us || !self.filter.may_have(hash) {
            return Ok(false);
        }
        let place = place(hash, self.bits);
        let [Some(from), Some(to)] = [place, place + 1].map(|place| self.index.get(place)) else { return Ok(false) };
        scratch.resize((to.saturating_sub(*from)) as usize * ENTRY_BYTES, 0);
        self.file.read_exact_at(scratch, u64::from(*from) * ENTRY_BYTES as u64)?;
        let (entries, _) = scratch.as_chunks::<ENTRY_BYTES>();
        let first = entries.partition_point(|bytes| entry(bytes) < (hash, from_us));
        Ok(entries.get(first).map(entry).is_some_and(|(found, at_us)| found == hash && at_us <= to_us))
    }

    /// Reads all entries in their order.
    pub fn read(&self) -> Reading<'_> {
        Reading { of: self, read: Vec::new(), next: 0, at: 0 }
    }
}

/// Reads the entries of a file, one after the other.
pub struct Reading<'a> {
    of: &'a KeyFile,
    read: Vec<u8>,
    /// The next entry among those that have been read.
    next: usize,
    /// Entries that have been read.
    at: u64,
}

impl Reading<'_> {
    fn fill(&mut self) -> Result<()> {
        let left = usize::try_from(self.of.entries - self.at).unwrap_or(usize::MAX).min(READ_ENTRIES);
        self.read.resize(left * ENTRY_BYTES, 0);
        self.of.file.read_exact_at(&mut self.read, self.at * ENTRY_BYTES as u64)?;
        self.next = 0;
        self.at += left as u64;
        Ok(())
    }
}

impl Iterator for Reading<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next * ENTRY_BYTES == self.read.len() {
            if self.at == self.of.entries {
                return None;
            }
            if let Err(error) = self.fill() {
                return Some(Err(error));
            }
        }
        let (entries, _) = self.read.as_chunks::<ENTRY_BYTES>();
        let found = entries.get(self.next).map(entry);
        self.next += 1;
        found.map(Ok)
    }
}

/// Makes a file of entries that come in their order; nothing if there is none.
pub fn encode(entries: impl Iterator<Item = Result<Entry>>, entries_max: usize) -> Result<Option<Vec<u8>>> {
    let mut file = Vec::with_capacity(entries_max * ENTRY_BYTES + TRAILER_BYTES);
    let (mut oldest_us, mut newest_us) = (i64::MAX, i64::MIN);
    for entry in entries {
        let (hash, time_us) = entry?;
        file.extend_from_slice(&hash.to_be_bytes());
        file.extend_from_slice(&time_us.to_le_bytes());
        (oldest_us, newest_us) = (oldest_us.min(time_us), newest_us.max(time_us));
    }
    let entries_bytes = file.len();
    let count = (entries_bytes / ENTRY_BYTES) as u64;
    if count == 0 {
        return Ok(None);
    }
    let too_many = |_| Error::internal("a file of remembered keys would hold too many");
    let bits = (count / PLACE_ENTRIES).max(1).ilog2().min(BITS_MAX);
    let mut filter = Filter::of(count);
    let mut index = Vec::with_capacity((1 << bits) + 1);
    let (entries, _) = file.as_chunks::<ENTRY_BYTES>();
    for (number, bytes) in entries.iter().enumerate() {
        let (hash, _) = entry(bytes);
        filter.add(hash);
        while index.len() <= place(hash, bits) {
            index.push(u32::try_from(number).map_err(too_many)?);
        }
    }
    index.resize((1 << bits) + 1, u32::try_from(count).map_err(too_many)?);
    index.iter().for_each(|number| file.extend_from_slice(&number.to_le_bytes()));
    filter.bytes().for_each(|word| file.extend_from_slice(&word));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&bits.to_le_bytes());
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&((filter.size_bytes() / BLOCK_BYTES) as u64).to_le_bytes());
    file.extend_from_slice(&oldest_us.to_le_bytes());
    file.extend_from_slice(&newest_us.to_le_bytes());
    let check = twox_hash::XxHash3_128::oneshot(file.get(entries_bytes..).unwrap_or_default());
    file.extend_from_slice(&check.to_le_bytes());
    Ok(Some(file))
}

/// Gives the place of a hash in an index: its first bits.
#[allow(clippy::cast_possible_truncation, reason = "no more than 24 bits are left")]
fn place(hash: u128, bits: u32) -> usize {
    hash.checked_shr(u128::BITS - bits).unwrap_or(0) as usize
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> Entry {
    let mut fields = Fields(bytes);
    (u128::from_be_bytes(fields.take()), i64::from_le_bytes(fields.take()))
}

/// Bytes that are taken one field after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// Takes the next bytes; zeros where there are none.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }
}
