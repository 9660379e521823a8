//! Avro's container files (Avro 1.12, "Object Container Files"), as far as source and decoder share them: a source cuts
//! them between blocks, a decoder reads what is in these.

use crate::error::{Error, Result};

/// Bytes of a header: a schema of a thousand columns has some hundred KiB.
pub const HEADER_BYTES_MAX: usize = 16 << 20;

/// Bytes of a block, packed or not: writers close one at 16 KiB to 4 MiB. It is held in memory as a whole.
pub const BLOCK_BYTES_MAX: usize = 64 << 20;

/// Length of the marker behind the header and behind each block.
pub const SYNC_BYTES: usize = 16;

/// What a container file begins with.
pub const MAGIC: &[u8] = b"Obj\x01";

/// Most bytes of a number.
const NUMBER_BYTES_MAX: usize = 10;

/// Reads a zig-zag number of up to 64 bits; gives it and its length, or nothing if `bytes` end within it.
pub fn number(bytes: &[u8]) -> Result<Option<(i64, usize)>> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(NUMBER_BYTES_MAX) {
        let bits = u64::from(byte & 0x7f);
        if at == NUMBER_BYTES_MAX - 1 && bits > 1 {
            break;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some(((value >> 1).cast_signed() ^ -(value & 1).cast_signed(), at + 1)));
        }
    }
    if bytes.len() < NUMBER_BYTES_MAX { Ok(None) } else { Err(invalid("a number has more than 64 bits")) }
}

/// Appends a zig-zag number.
pub fn push_number(out: &mut Vec<u8>, number: i64) {
    let mut left = (number << 1 ^ number >> 63).cast_unsigned();
    while left >= 0x80 {
        out.push(u8::try_from(left & 0x7f).unwrap_or_default() | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or_default());
}

/// Appends bytes behind their length.
pub fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_number(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(bytes);
}

/// What a container file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// The schema of its records, as JSON.
    pub schema: &'a [u8],
    /// How its blocks are packed.
    pub codec: &'a [u8],
    /// What stands behind each block.
    pub sync: &'a [u8],
    /// Length in bytes.
    pub len: usize,
}

impl<'a> Header<'a> {
    /// Reads a header; nothing if `bytes` end within it.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Self>> {
        let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if !MAGIC.starts_with(start) {
            return Err(invalid("it does not begin as one"));
        }
        let mut entries = Entries { bytes, at: MAGIC.len() };
        let (mut schema, mut codec) = (None, &b"null"[..]);
        loop {
            let Some(count) = entries.number()? else { return Ok(None) };
            if count == 0 {
                break;
            }
            // A negative count has the length of the entries behind it.
            if count < 0 && entries.number()?.is_none() {
                return Ok(None);
            }
            for _ in 0..count.unsigned_abs() {
                let Some(key) = entries.bytes()? else { return Ok(None) };
                let Some(value) = entries.bytes()? else { return Ok(None) };
                match key {
                    b"avro.schema" => schema = Some(value),
                    b"avro.codec" => codec = value,
                    _ => {}
                }
            }
        }
        let at = entries.at;
        let Some(sync) = bytes.get(at..at + SYNC_BYTES) else { return Ok(None) };
        let schema = schema.ok_or_else(|| invalid("its header has no schema"))?;
        Ok(Some(Self { schema, codec, sync, len: at + SYNC_BYTES }))
    }
}

/// The entries of a header.
struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Entries<'a> {
    fn number(&mut self) -> Result<Option<i64>> {
        let found = number(self.bytes.get(self.at..).unwrap_or_default())?;
        Ok(found.map(|(number, len)| {
            self.at += len;
            number
        }))
    }

    fn bytes(&mut self) -> Result<Option<&'a [u8]>> {
        let Some(len) = self.number()? else { return Ok(None) };
        let len = usize::try_from(len).ok().filter(|len| *len <= HEADER_BYTES_MAX);
        let len = len.ok_or_else(|| invalid("its header is too large"))?;
        let found = self.bytes.get(self.at..self.at + len);
        self.at += len;
        Ok(found)
    }
}

/// The beginning of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// How many records it holds.
    pub records: u64,
    /// Bytes before its content.
    pub head: usize,
    /// Bytes of its content.
    pub size: usize,
}

impl Block {
    /// Reads the beginning of a block; nothing if `bytes` end within it.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some((records, first)) = number(bytes)? else { return Ok(None) };
        let Some((size, second)) = number(bytes.get(first..).unwrap_or_default())? else { return Ok(None) };
        let records = u64::try_from(records).map_err(|_| invalid("a block has less than no records"))?;
        let size = usize::try_from(size).map_err(|_| invalid("a block has less than no bytes"))?;
        if size > BLOCK_BYTES_MAX {
            return Err(invalid(&format!("a block of {size} bytes is larger than {BLOCK_BYTES_MAX}")));
        }
        Ok(Some(Self { records, head: first + second, size }))
    }

    /// Gives how many bytes it takes with the marker behind it.
    pub fn bytes(&self) -> usize {
        self.head + self.size + SYNC_BYTES
    }

    /// Gives the content and the marker of the block that `bytes` begin with; nothing if they end within it.
    pub fn parts<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        Some(bytes.get(self.head..self.bytes())?.split_at(self.size))
    }
}

/// An error about a container file that is none, or is broken.
pub fn invalid(why: &str) -> Error {
    Error::data(format!("the avro file cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused() {
        assert_eq!(number(&[0x80, 0x80]).unwrap(), None);
        assert!(number(&[0xff; 10]).is_err());
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).unwrap(), Some((i64::MIN, 10)));
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_written(written: i64, behind: Vec<u8>) {
            let mut bytes = Vec::new();
            push_number(&mut bytes, written);
            let len = bytes.len();
            prop_assert!((0..len).all(|cut| number(&bytes[..cut]).unwrap().is_none()));
            bytes.extend(behind);
            prop_assert_eq!(number(&bytes).unwrap(), Some((written, len)));
        }

        #[test]
        fn a_header_is_whole_or_cut_off(schema: Vec<u8>, codec in "[a-z]{1,9}", sync: [u8; SYNC_BYTES]) {
            let mut bytes = MAGIC.to_vec();
            push_number(&mut bytes, 2);
            for text in [&b"avro.codec"[..], codec.as_bytes(), b"avro.schema", &schema] {
                push_bytes(&mut bytes, text);
            }
            push_number(&mut bytes, 0);
            bytes.extend(sync);
            prop_assert!((0..bytes.len()).all(|cut| Header::parse(&bytes[..cut]).unwrap().is_none()));
            let whole = Header { schema: &schema, codec: codec.as_bytes(), sync: &sync, len: bytes.len() };
            prop_assert_eq!(Header::parse(&bytes).unwrap(), Some(whole));
        }
    }
}
