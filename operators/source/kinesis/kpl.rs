//! De-aggregation: the user records inside one record of the Kinesis Producer Library.
//!
//! The format is the one of the library's `aggregation-format.md`: four magic
//! bytes, a protobuf `AggregatedRecord`, and the MD5 of the protobuf. What is
//! not exactly that is not an aggregate, and is passed on as it came.

use std::ops::RangeInclusive;

use bytes::Bytes;
use md5::{Digest, Md5};

/// The hash keys that a shard is responsible for.
pub(crate) type HashRange = RangeInclusive<u128>;

/// The first bytes of every aggregate.
const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

/// Length of the MD5 behind the protobuf.
const DIGEST_LEN: usize = 16;

/// What a record turned out to hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The record is no aggregate.
    Plain,
    /// The records that the producer put together, in order; sub-sequence numbers count them from 0.
    Aggregate(Vec<UserRecord>),
    /// An aggregate that reached the wrong shard because of a reshard. The
    /// producer sees that too and sends its records again, so it is dropped.
    Misplaced,
}

/// One record as the producer's user put it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UserRecord {
    /// The partition key.
    pub key: String,
    /// The bytes.
    pub data: Bytes,
}

/// Tells whether a record may be an aggregate: cheap, and wrong only for what [`open`] then finds to be plain.
pub(crate) fn looks_aggregated(data: &[u8]) -> bool {
    data.starts_with(&MAGIC) && data.len() >= MAGIC.len() + DIGEST_LEN
}

/// Opens a record that came from a shard with this hash range (unknown: not checked).
pub(crate) fn open(data: &Bytes, range: Option<&HashRange>) -> Content {
    let Some((protobuf, digest)) =
        data.strip_prefix(MAGIC.as_slice()).and_then(|rest| rest.split_last_chunk::<DIGEST_LEN>())
    else {
        return Content::Plain;
    };
    if md5(protobuf) != *digest {
        return Content::Plain;
    }
    let Ok(parsed) = parse(protobuf).and_then(|aggregate| aggregate.resolve()) else { return Content::Plain };
    let misplaced = range.is_some_and(|range| parsed.iter().any(|record| !range.contains(&record.hash)));
    if misplaced {
        return Content::Misplaced;
    }
    let user_record = |r: Resolved<'_>| UserRecord { key: r.key.to_owned(), data: data.slice_ref(r.data) };
    Content::Aggregate(parsed.into_iter().map(user_record).collect())
}

/// Gives the place of a partition key among the shards' hash ranges.
fn hash_of_key(key: &str) -> u128 {
    u128::from_be_bytes(md5(key.as_bytes()))
}

fn md5(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    Md5::digest(bytes).into()
}

/// The protobuf does not parse, or names what is not there.
#[derive(Debug)]
struct Malformed;

/// The message `AggregatedRecord`.
#[derive(Default)]
struct Aggregate<'a> {
    keys: Vec<&'a str>,
    hash_keys: Vec<&'a str>,
    records: Vec<Indexed<'a>>,
}

/// The message `Record`: its keys are places in the tables.
struct Indexed<'a> {
    key: u64,
    hash_key: Option<u64>,
    data: &'a [u8],
}

/// A record with what its places stand for.
struct Resolved<'a> {
    key: &'a str,
    hash: u128,
    data: &'a [u8],
}

impl<'a> Aggregate<'a> {
    fn resolve(&self) -> Result<Vec<Resolved<'a>>, Malformed> {
        self.records.iter().map(|record| self.resolve_one(record)).collect()
    }

    fn resolve_one(&self, record: &Indexed<'a>) -> Result<Resolved<'a>, Malformed> {
        let key = at(&self.keys, record.key)?;
        let hash = match record.hash_key {
            Some(index) => at(&self.hash_keys, index)?.parse().map_err(|_| Malformed)?,
            None => hash_of_key(key),
        };
        Ok(Resolved { key, hash, data: record.data })
    }
}

fn at<'a>(table: &[&'a str], index: u64) -> Result<&'a str, Malformed> {
    usize::try_from(index).ok().and_then(|index| table.get(index).copied()).ok_or(Malformed)
}

fn parse(protobuf: &[u8]) -> Result<Aggregate<'_>, Malformed> {
    let mut aggregate = Aggregate::default();
    let mut rest = protobuf;
    while let Some((number, value)) = next_field(&mut rest)? {
        match number {
            1 => aggregate.keys.push(value.text()?),
            2 => aggregate.hash_keys.push(value.text()?),
            3 => aggregate.records.push(parse_record(value.bytes()?)?),
            _ => {}
        }
    }
    Ok(aggregate)
}

fn parse_record(protobuf: &[u8]) -> Result<Indexed<'_>, Malformed> {
    let (mut key, mut hash_key, mut data) = (None, None, None);
    let mut rest = protobuf;
    while let Some((number, value)) = next_field(&mut rest)? {
        match number {
            1 => key = Some(value.number()?),
            2 => hash_key = Some(value.number()?),
            3 => data = Some(value.bytes()?),
            _ => {}
        }
    }
    Ok(Indexed { key: key.ok_or(Malformed)?, hash_key, data: data.ok_or(Malformed)? })
}

/// A field's value, as far as the wire tells its type.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

impl<'a> Value<'a> {
    fn number(self) -> Result<u64, Malformed> {
        if let Value::Number(number) = self { Ok(number) } else { Err(Malformed) }
    }

    fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed) }
    }

    fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
}

/// Takes the next field off a protobuf message; nothing at its end.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, Value<'a>)>, Malformed> {
    if rest.is_empty() {
        return Ok(None);
    }
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Skipped)?,
        2 => {
            let len = usize::try_from(varint(rest)?).map_err(|_| Malformed)?;
            Value::Bytes(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_| Value::Skipped)?,
        _ => return Err(Malformed),
    };
    match tag >> 3 {
        0 => Err(Malformed),
        number => Ok(Some((number, value))),
    }
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?.first().copied().ok_or(Malformed)?;
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && bits > 1 {
            return Err(Malformed);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

#[cfg(any(test, feature = "testing"))]
pub(crate) mod encoder {
    //! Writes aggregates as the producer library does.

    use super::*;

    /// Encodes user records: partition key, explicit hash key, data.
    pub fn aggregate(records: &[(&str, Option<&str>, &[u8])]) -> Bytes {
        let (mut keys, mut hash_keys) = (Vec::<&str>::new(), Vec::<&str>::new());
        let mut body = Vec::new();
        for (key, hash_key, data) in records {
            let mut record = Vec::new();
            put_number(&mut record, 1, place(&mut keys, key));
            if let Some(hash_key) = hash_key {
                put_number(&mut record, 2, place(&mut hash_keys, hash_key));
            }
            put_bytes(&mut record, 3, data);
            put_bytes(&mut body, 3, &record);
        }
        let mut protobuf = Vec::new();
        keys.iter().for_each(|key| put_bytes(&mut protobuf, 1, key.as_bytes()));
        hash_keys.iter().for_each(|key| put_bytes(&mut protobuf, 2, key.as_bytes()));
        protobuf.extend_from_slice(&body);
        seal(&protobuf)
    }

    /// Puts the magic before and the digest behind a protobuf.
    pub fn seal(protobuf: &[u8]) -> Bytes {
        [&MAGIC, protobuf, &md5(protobuf)].concat().into()
    }

    fn place<'a>(table: &mut Vec<&'a str>, key: &'a str) -> u64 {
        let index = table.iter().position(|k| *k == key).unwrap_or_else(|| {
            table.push(key);
            table.len() - 1
        });
        index as u64
    }

    pub fn put_number(out: &mut Vec<u8>, field: u64, number: u64) {
        put_varint(out, field << 3);
        put_varint(out, number);
    }

    pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
        put_varint(out, field << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }

    fn put_varint(out: &mut Vec<u8>, mut number: u64) {
        while number > 0x7F {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::encoder::{aggregate, put_bytes, put_number, seal};
    use super::*;

    const ALL: HashRange = 0..=u128::MAX;

    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect::<Vec<_>>().into()
    }

    fn users(content: Content) -> Vec<(String, Vec<u8>)> {
        match content {
            Content::Aggregate(records) => records.into_iter().map(|r| (r.key, r.data.to_vec())).collect(),
            other => panic!("no aggregate: {other:?}"),
        }
    }

    /// Made by `aws_kinesis_agg` 1.2.3 for Python, the aggregator that AWS publishes.
    const FIXTURE: &str = "f3899ac2 0a016b 0a026c32 120130 \
        1227333430323832333636393230393338343633343633333734363037343331373638323131343535 \
        1a0b 0800 1000 1a056669727374 1a0a 0801 1a067365636f6e64 1a06 0800 1001 1a00 \
        4d69d2edec531afeeee8a4b798f17bfa";

    #[test]
    fn an_aggregate_made_elsewhere_opens() {
        let expected = [("k", "first"), ("l2", "second"), ("k", "")].map(|(k, d)| (k.to_owned(), d.into()));
        assert_eq!(users(open(&hex(FIXTURE), Some(&ALL))), expected);
        let same =
            aggregate(&[("k", Some("0"), b"first"), ("l2", None, b"second"), ("k", Some(&u128::MAX.to_string()), b"")]);
        assert_eq!(same, hex(FIXTURE), "the encoder of these tests writes the same");
    }

    #[test]
    fn what_is_no_aggregate_stays_as_it_is() {
        let good = aggregate(&[("key", None, b"data")]);
        let mut wrong_digest = good.to_vec();
        *wrong_digest.last_mut().unwrap() ^= 1;
        let (mut index_too_far, mut no_data, mut bad_hash_key) = (Vec::new(), Vec::new(), Vec::new());
        put_number(&mut index_too_far, 1, 3);
        put_bytes(&mut index_too_far, 3, b"x");
        put_number(&mut no_data, 1, 0);
        put_bytes(&mut bad_hash_key, 1, b"key");
        put_bytes(&mut bad_hash_key, 2, b"not a number");
        put_bytes(&mut bad_hash_key, 3, &[8, 0, 16, 0, 26, 0]);
        let with_record = |record: &[u8]| {
            let mut protobuf = Vec::new();
            put_bytes(&mut protobuf, 1, b"key");
            put_bytes(&mut protobuf, 3, record);
            seal(&protobuf)
        };
        let cases = [
            Bytes::new(),
            Bytes::from_static(b"{\"a\":1}"),
            Bytes::copy_from_slice(&MAGIC),
            good.slice(..good.len() - 1),
            wrong_digest.into(),
            seal(b"\xFF\xFF\xFF"),
            seal(&[0x0A, 0x05, b'x']),
            seal(&[0x0A, 0x01, 0xFF]),
            seal(&[0x00, 0x00]),
            with_record(&index_too_far),
            with_record(&no_data),
            seal(&bad_hash_key),
        ];
        for case in cases {
            assert_eq!(open(&case, Some(&ALL)), Content::Plain, "{case:?}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut protobuf = Vec::new();
        put_bytes(&mut protobuf, 1, b"key");
        put_number(&mut protobuf, 9, 300);
        protobuf.extend_from_slice(&[10 << 3 | 5, 1, 2, 3, 4, 11 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        put_bytes(&mut protobuf, 3, &[8, 0, 26, 1, b'x', 34, 2, 10, 0]);
        assert_eq!(users(open(&seal(&protobuf), Some(&ALL))), vec![("key".to_owned(), b"x".to_vec())]);
    }

    #[test]
    fn an_aggregate_with_a_record_of_another_shard_is_dropped_whole() {
        let half = u128::MAX / 2;
        let low = aggregate(&[("any", Some("5"), b"a"), ("any", Some("6"), b"b")]);
        let mixed = aggregate(&[("any", Some("5"), b"a"), ("any", Some(&u128::MAX.to_string()), b"b")]);
        assert_eq!(users(open(&low, Some(&(0..=half)))).len(), 2);
        assert_eq!(open(&low, Some(&(half..=u128::MAX))), Content::Misplaced);
        assert_eq!(open(&mixed, Some(&(0..=half))), Content::Misplaced);
        assert_eq!(users(open(&mixed, None)).len(), 2);
        // The published MD5 of "a", as the service places a partition key.
        let place = 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661;
        let by_key = aggregate(&[("a", None, b"x")]);
        assert_eq!(users(open(&by_key, Some(&(place..=place)))).len(), 1);
        assert_eq!(open(&by_key, Some(&(place + 1..=u128::MAX))), Content::Misplaced);
    }

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart(
            records in prop::collection::vec(("[a-zé]{0,4}", prop::option::of(any::<u128>()), prop::collection::vec(any::<u8>(), 0..300)), 0..40)
        ) {
            let hash_keys: Vec<_> = records.iter().map(|(_, hash, _)| hash.map(|h| h.to_string())).collect();
            let input: Vec<_> = records.iter().zip(&hash_keys)
                .map(|((key, _, data), hash)| (key.as_str(), hash.as_deref(), data.as_slice())).collect();
            let expected: Vec<_> = records.iter().map(|(key, _, data)| (key.clone(), data.clone())).collect();
            prop_assert_eq!(users(open(&aggregate(&input), Some(&ALL))), expected);
        }

        #[test]
        fn no_bytes_make_it_panic(protobuf in prop::collection::vec(any::<u8>(), 0..60), data in prop::collection::vec(any::<u8>(), 0..60)) {
            open(&seal(&protobuf), Some(&ALL));
            prop_assert_eq!(open(&data.into(), None), Content::Plain);
        }
    }
}
