//! Avro: container files by blocks, and single records whose schema the pipeline file gives.
//!
//! A record is read by the schema that it was written with, and then fitted to the declared columns by name, by way of
//! JSON (docs/decisions/0024): what fits a column, what is rescued and what is rejected is the same as for JSON.

mod datum;
mod resolve;
mod schema;

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;

use self::datum::{Datums, Failure};
pub use self::schema::AvroSchema;
pub(super) use self::schema::{COLUMN_DEPTH_MAX, SHAPE_FIELDS_MAX};
use super::json;
use super::provenance::Place;
use super::rows::Rows;
use super::settings::{AvroEncoding, AvroWriter, Plan};
use super::steps::Records;
use crate::avro::{BLOCK_BYTES_MAX, Block, Header, MAGIC, SYNC_BYTES, invalid, push_bytes, push_number};
use crate::batch::{Chunk, Payload, Record};
use crate::error::{Error, Result};

/// How much longer than its limit a record may be as JSON, which repeats the names of its fields.
pub(super) const JSON_FACTOR: usize = 16;

/// Records of a block beyond one for each byte of it: some may have none.
const EMPTY_RECORDS_MAX: u64 = 1 << 20;

/// The marker of a container that holds one record again. `redrive` puts a line break behind a header, so it ends in one.
const RECORD_SYNC: &[u8; SYNC_BYTES] = b"nexus, a record\n";

/// Gives the columns that the records of a container file ask for, from the file's beginning.
pub(super) fn infer(sample: &[u8]) -> Result<Vec<arrow::datatypes::Field>> {
    let header = Header::parse(sample)?.ok_or_else(|| invalid("it ends within its header"))?;
    Ok(schema_of(&header)?.columns())
}

fn schema_of(header: &Header<'_>) -> Result<AvroSchema> {
    let text = std::str::from_utf8(header.schema).map_err(|_| invalid("its schema is not UTF-8"))?;
    AvroSchema::parse(text).map_err(|e| invalid("its schema is wrong").because(e))
}

/// The records of container files: of whole blocks of one, or of a whole one in each record.
pub(super) struct Containers<'a> {
    plan: &'a Plan,
    left: &'a [Record],
    /// The record that is open; nothing for a file.
    record: Option<&'a Record>,
    open: Option<Container<'a>>,
    json: Vec<u8>,
}

impl<'a> Containers<'a> {
    pub(super) fn of(plan: &'a Plan, chunk: &'a Chunk) -> Result<Self> {
        let (left, open) = match &chunk.payload {
            Payload::Framed { offset, bytes, header } => {
                let header = header.as_deref().unwrap_or_default();
                (&[][..], Some(Container::open(header, bytes, *offset)?))
            }
            Payload::Records(records) => (records.as_slice(), None),
            Payload::RowGroup(_) | Payload::Batch { .. } => (&[][..], None),
        };
        Ok(Self { plan, left, record: None, open, json: Vec::new() })
    }
}

impl Records for Containers<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        loop {
            if let Some(container) = &mut self.open {
                if container.read(self.plan, self.record, rows, &mut self.json)? {
                    return Ok(true);
                }
                self.open = None;
            }
            let Some((record, behind)) = self.left.split_first() else { return Ok(false) };
            (self.record, self.left) = (Some(record), behind);
            let place = Place::Record(record);
            if rows.is_too_long(record.data.len()) {
                rows.reject_too_long(place, &record.data);
                continue;
            }
            rows.header = None;
            let header = Header::parse(&record.data).and_then(|header| header.ok_or_else(|| invalid("it is cut off")));
            let opened = header.and_then(|header| {
                let (header, blocks) = record.data.split_at(header.len);
                Container::open(header, blocks, 0)
            });
            match opened {
                Ok(container) => self.open = Some(container),
                Err(error) => rows.reject(place, &record.data, error.to_string()),
            }
        }
    }
}

/// The blocks of one file.
struct Container<'a> {
    schema: Arc<AvroSchema>,
    codec: &'a [u8],
    sync: &'a [u8],
    /// The header of a container that holds one record again.
    record_header: Bytes,
    left: &'a [u8],
    /// Records before `left`.
    row: u64,
    block: Option<Unpacked>,
}

/// A block's content, and what of it is to come.
struct Unpacked {
    content: Vec<u8>,
    at: usize,
    row: u64,
    records: u64,
}

impl<'a> Container<'a> {
    fn open(header: &'a [u8], blocks: &'a [u8], row: u64) -> Result<Self> {
        let header = Header::parse(header)?.ok_or_else(|| Error::internal("an avro block came without its header"))?;
        let schema = Arc::new(schema_of(&header)?);
        let mut record_header = MAGIC.to_vec();
        push_number(&mut record_header, 1);
        push_bytes(&mut record_header, b"avro.schema");
        push_bytes(&mut record_header, header.schema);
        push_number(&mut record_header, 0);
        record_header.extend_from_slice(RECORD_SYNC.split_last().map_or(&[], |(_, before)| before));
        let (codec, sync, record_header) = (header.codec, header.sync, record_header.into());
        Ok(Self { schema, codec, sync, record_header, left: blocks, row, block: None })
    }

    /// Decodes records until `rows` are full; tells whether there are more.
    fn read(&mut self, plan: &Plan, record: Option<&Record>, rows: &mut Rows<'_>, json: &mut Vec<u8>) -> Result<bool> {
        loop {
            while let Some(block) = self.block.as_mut().filter(|block| block.records > 0) {
                if rows.is_full() {
                    return Ok(true);
                }
                rows.header = Some(self.record_header.clone());
                let place = record.map_or(Place::Offset(block.row), Place::Record);
                block.decode(&self.schema, plan, place, rows, json)?;
            }
            self.block = None;
            rows.header = None;
            if self.left.is_empty() {
                return Ok(false);
            }
            let place = record.map_or(Place::Offset(self.row), Place::Record);
            match self.next_block() {
                Ok(block) => self.block = Some(block),
                Err((why, raw)) => rows.reject_damaged(place, raw, why.to_string()),
            }
        }
    }

    /// Unpacks the next block; of one that cannot be, gives the reason and its bytes.
    fn next_block(&mut self) -> Result<Unpacked, (Error, &'a [u8])> {
        let all = std::mem::take(&mut self.left);
        let whole = Block::parse(all).and_then(|block| {
            let block = block.ok_or_else(|| invalid("it ends within a block"))?;
            let (packed, sync) = block.parts(all).ok_or_else(|| invalid("it ends within a block"))?;
            if sync != self.sync { Err(invalid("a block does not end where it says")) } else { Ok((block, packed)) }
        });
        let (block, packed) = whole.map_err(|why| (why, all))?;
        self.left = all.get(block.bytes()..).unwrap_or_default();
        let row = self.row;
        self.row += block.records;
        let content = unpack(self.codec, packed).map_err(|why| (why, packed))?;
        if block.records > EMPTY_RECORDS_MAX + content.len() as u64 {
            let why = format!("{} records cannot be in a block of {} bytes", block.records, content.len());
            return Err((invalid(&why), packed));
        }
        Ok(Unpacked { content, at: 0, row, records: block.records })
    }
}

impl Unpacked {
    fn decode(
        &mut self,
        schema: &AvroSchema,
        plan: &Plan,
        place: Place<'_>,
        rows: &mut Rows<'_>,
        json: &mut Vec<u8>,
    ) -> Result<()> {
        let bytes = self.content.get(self.at..).unwrap_or_default();
        let mut datums = Datums::new(schema, bytes, plan.settings.record_bytes_max.saturating_mul(JSON_FACTOR));
        json.clear();
        let written = datums.write(json);
        let raw = bytes.get(..bytes.len() - datums.left.len()).unwrap_or_default();
        self.at += raw.len();
        self.row += 1;
        self.records -= 1;
        let reason = match written {
            Err(Failure::Broken(why)) => {
                let left =
                    if self.records > 0 { format!(" (and the {} behind it)", self.records) } else { String::new() };
                self.records = 0;
                rows.reject_damaged(place, bytes, format!("{why}{left}"));
                return Ok(());
            }
            _ if rows.is_too_long(raw.len()) => {
                rows.reject_too_long(place, raw);
                return Ok(());
            }
            Err(Failure::Value(why)) => why,
            Ok(()) => match json::decode_document(rows, plan, json) {
                Ok(()) => return rows.keep(place, raw),
                Err(why) => why,
            },
        };
        rows.reject(place, &one_record(raw), reason);
        Ok(())
    }
}

/// Makes a block of one record, as it stands behind a container's header.
fn one_record(raw: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(raw.len() + SYNC_BYTES + 8);
    push_number(&mut block, 1);
    push_bytes(&mut block, raw);
    block.extend_from_slice(RECORD_SYNC);
    block
}

fn unpack(codec: &[u8], packed: &[u8]) -> Result<Vec<u8>> {
    let broken = |e: std::io::Error| invalid("a block cannot be unpacked").because(e);
    let mut content = Vec::new();
    let limit = BLOCK_BYTES_MAX as u64 + 1;
    match codec {
        b"null" => content.extend_from_slice(packed),
        b"deflate" => {
            flate2::read::DeflateDecoder::new(packed).take(limit).read_to_end(&mut content).map_err(broken)?;
        }
        b"zstandard" => {
            let decoder = zstd::stream::read::Decoder::new(packed).map_err(broken)?;
            decoder.take(limit).read_to_end(&mut content).map_err(broken)?;
        }
        b"snappy" => content = snappy(packed)?,
        other => {
            return Err(invalid(&format!(
                "its blocks are packed by codec {}, not by null, deflate, snappy or zstandard",
                String::from_utf8_lossy(other)
            )));
        }
    }
    if content.len() > BLOCK_BYTES_MAX {
        return Err(invalid(&format!("a block unpacks to more than {BLOCK_BYTES_MAX} bytes")));
    }
    Ok(content)
}

/// Unpacks a block of snappy, behind which stands the checksum of its content.
fn snappy(packed: &[u8]) -> Result<Vec<u8>> {
    let (packed, checksum) = packed.split_last_chunk::<4>().ok_or_else(|| invalid("a block has no checksum"))?;
    let broken = |e: snap::Error| invalid("a block cannot be unpacked").because(e);
    if snap::raw::decompress_len(packed).map_err(broken)? > BLOCK_BYTES_MAX {
        return Err(invalid(&format!("a block unpacks to more than {BLOCK_BYTES_MAX} bytes")));
    }
    let content = snap::raw::Decoder::new().decompress_vec(packed).map_err(broken)?;
    let mut crc = flate2::Crc::new();
    crc.update(&content);
    if crc.sum() != u32::from_be_bytes(*checksum) {
        return Err(invalid("the checksum of a block is wrong"));
    }
    Ok(content)
}

/// Single records, one datum each.
pub(super) struct Singles<'a> {
    plan: &'a Plan,
    writers: Writers<'a>,
    left: &'a [Record],
    json: Vec<u8>,
}

/// The schemas that records may have been written with, and how they tell which.
#[derive(Clone, Copy)]
pub(super) struct Writers<'a> {
    pub(super) newest: &'a AvroSchema,
    pub(super) older: &'a [AvroWriter],
    pub(super) encoding: AvroEncoding,
}

impl<'a> Singles<'a> {
    pub(super) fn of(plan: &'a Plan, writers: Writers<'a>, records: &'a [Record]) -> Self {
        Self { plan, writers, left: records, json: Vec::new() }
    }

    fn write(&mut self, record: &[u8]) -> Result<(), String> {
        let record_bytes_max = self.plan.settings.record_bytes_max;
        let (schema, bytes) = self.writers.open(record, record_bytes_max)?;
        let mut datums = Datums::new(schema, &bytes, record_bytes_max.saturating_mul(JSON_FACTOR));
        self.json.clear();
        datums.write(&mut self.json).map_err(|failure| match failure {
            Failure::Broken(why) | Failure::Value(why) => why,
        })?;
        match datums.left.len() {
            0 => Ok(()),
            left => Err(format!("the record is not of the schema: {left} bytes are left behind it")),
        }
    }
}

impl Records for Singles<'_> {
    fn read(&mut self, rows: &mut Rows<'_>) -> Result<bool> {
        while let Some((record, behind)) = self.left.split_first() {
            self.left = behind;
            let (place, raw) = (Place::Record(record), &record.data);
            if rows.is_too_long(raw.len()) {
                rows.reject_too_long(place, raw);
            } else {
                match self.write(raw).and_then(|()| json::decode_document(rows, self.plan, &self.json)) {
                    Ok(()) => rows.keep(place, raw)?,
                    Err(reason) => rows.reject(place, raw, reason),
                }
            }
            if rows.is_full() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<'a> Writers<'a> {
    /// Finds the datum in a record, and the schema that it was written with by what stands before it.
    fn open<'r>(&self, record: &'r [u8], bytes_max: usize) -> Result<(&'a AvroSchema, Cow<'r, [u8]>), String> {
        match (self.encoding, record) {
            (AvroEncoding::Datum, _) => Ok((self.newest, record.into())),
            (AvroEncoding::SingleObject, [0xc3, 0x01, rest @ ..]) => {
                let (id, datum) = rest.split_first_chunk().ok_or("the record ends within its schema's fingerprint")?;
                let (found, newest) = (u64::from_le_bytes(*id), self.newest.fingerprint);
                let schema = self.by(found.into(), Some(newest.into())).ok_or_else(|| {
                    format!(
                        "the record was written with another schema: its fingerprint is {found:016x}, not {newest:016x}"
                    )
                })?;
                Ok((schema, datum.into()))
            }
            (AvroEncoding::SingleObject, _) => {
                Err("the record is no single object of avro: it does not begin with c3 01".into())
            }
            (AvroEncoding::Confluent { id }, [0, rest @ ..]) => {
                let (number, datum) =
                    rest.split_first_chunk().ok_or("the record ends within the number of its schema")?;
                let found = u32::from_be_bytes(*number);
                let schema = self.by(found.into(), id.map(u128::from));
                let schema = schema.ok_or_else(|| {
                    format!("the record was written with schema {found}, not {}", id.unwrap_or_default())
                })?;
                Ok((schema, datum.into()))
            }
            (AvroEncoding::Confluent { .. }, _) => {
                Err("the record does not begin with 00 and the number of its schema".into())
            }
            (AvroEncoding::Glue { version }, [3, packing @ (0 | 5), rest @ ..]) => {
                let (id, datum) = rest.split_first_chunk().ok_or("the record ends within the version of its schema")?;
                let found = u128::from_be_bytes(*id);
                let schema = self.by(found, version);
                let schema = schema.ok_or_else(|| {
                    format!(
                        "the record was written with version {found:032x} of the schema, not {:032x}",
                        version.unwrap_or_default()
                    )
                })?;
                Ok((schema, if *packing == 0 { datum.into() } else { inflate(datum, bytes_max)?.into() }))
            }
            (AvroEncoding::Glue { .. }, _) => {
                Err("the record does not begin with the header of the registry of glue: 03, 00 or 05, and a version"
                    .into())
            }
        }
    }

    /// Gives the schema that an id names; the newest if it has none.
    fn by(&self, id: u128, newest: Option<u128>) -> Option<&'a AvroSchema> {
        if newest.is_none_or(|newest| newest == id) {
            return Some(self.newest);
        }
        self.older.iter().find(|writer| writer.id == id).map(|writer| &*writer.schema)
    }
}

fn inflate(packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let limit = (bytes_max as u64).saturating_add(1);
    let unpacked = flate2::read::ZlibDecoder::new(packed).take(limit).read_to_end(&mut content);
    unpacked.map_err(|e| format!("the record cannot be unpacked: {e}"))?;
    if content.len() > bytes_max {
        return Err(format!("the record unpacks to more than {bytes_max} bytes"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests;
