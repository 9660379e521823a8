//! The order of states: by the time at which they end, then by a hash of their keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::physical_expr::PhysicalExpr;

use super::file::{Block, Opening};
use crate::error::Result;
use crate::transform::filter::Filter;
use crate::transform::held::Held;
use crate::transform::query::failed;
use crate::transform::rows::conform;
use crate::transform::session::Sessions;
use crate::transform::window::{WATERMARK_END, Window};

/// Bytes of states that are read at once, where all are read in their order: enough for a disk, and little enough that
/// dozens of files can be read side by side.
const BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of states that are read at once, where they are looked up: little, since most of it is not asked for, and
/// enough that the index, with some fifty bytes of each block, stays small beside them.
const SOUGHT_BLOCK_BYTES: usize = 32 * 1024;

/// Rows of small states that are read at once.
const BLOCK_ROWS_MAX: usize = 8192;

/// When states end.
#[derive(Debug, Clone)]
pub enum Ends {
    /// With their window.
    Window(Window),
    /// With their window, later by up to so many microseconds: few different ends are there at a time, so that states can
    /// be looked up by their keys alone.
    Steps(Window, i64),
    /// With their session, as far as it is known: states that come later may make it longer.
    Session(Sessions),
    /// Not by time: they are looked up by their keys.
    Never,
}

/// How many times the places of a filter that tells one of two hundred keys wrongly has one of sessions: a look that goes
/// wrong reads a block, and there are as many looks as sessions that end.
const FILTER_PLACES: u64 = 2;

/// Where a state stands in the order. States with the same end and key stand at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The end in microseconds, of a session rounded up; [`WATERMARK_END`] of a state without one.
    pub end_us: i64,
    /// A hash of the keys.
    pub key: u64,
}

impl Place {
    /// No state stands behind it.
    pub const LAST: Self = Self { end_us: WATERMARK_END, key: u64::MAX };
}

/// Knows where states stand.
pub struct Order {
    schema: SchemaRef,
    /// The columns as they are kept: dictionaries, which differ from batch to batch, are resolved.
    plain: SchemaRef,
    ends: Ends,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// What the keys are as they are kept.
    key_types: Vec<DataType>,
    converter: RowConverter,
    /// Gives the hash of a key. States of different keys may have the same.
    pub(super) hash: fn(&[u8]) -> u64,
}

impl Order {
    /// Takes the columns of states, and what gives their keys.
    pub fn new(schema: SchemaRef, keys: Vec<Arc<dyn PhysicalExpr>>, ends: Ends) -> Result<Self> {
        let plain = Arc::new(Schema::new(schema.fields().iter().map(|field| resolved(field)).collect::<Vec<_>>()));
        let key_types = keys.iter().map(|key| key.data_type(&plain).map_err(failed)).collect::<Result<Vec<_>>>()?;
        let converter = RowConverter::new(key_types.iter().cloned().map(SortField::new).collect())?;
        Ok(Self { schema, plain, ends, keys, key_types, converter, hash })
    }

    /// Gives when states end.
    pub fn ends_by(&self) -> &Ends {
        &self.ends
    }

    /// Gives the columns of states.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Gives the columns as they are kept.
    pub fn plain_schema(&self) -> &SchemaRef {
        &self.plain
    }

    /// Gives states as they are kept.
    pub fn plain(&self, states: &RecordBatch) -> Result<RecordBatch> {
        conform(states, &self.plain)
    }

    /// Gives states as they came.
    pub fn typed(&self, states: &RecordBatch) -> Result<RecordBatch> {
        conform(states, &self.schema)
    }

    /// Gives how sessions are made of states, if they are.
    pub fn sessions(&self) -> Option<&Sessions> {
        match &self.ends {
            Ends::Session(sessions) => Some(sessions),
            Ends::Window(_) | Ends::Steps(..) | Ends::Never => None,
        }
    }

    /// Gives the earliest end of a state that stands at an end.
    pub fn earliest_end_us(&self, end_us: i64) -> i64 {
        let within = self.sessions().map_or(1, Sessions::stands_within_us);
        end_us.saturating_sub(within - 1)
    }

    /// Leaves of states those that end behind a time.
    pub fn open(&self, states: &RecordBatch, closed_until_us: i64) -> Result<RecordBatch> {
        let open: BooleanArray = match self.sessions() {
            Some(sessions) => {
                let is_open = |span| Some(sessions.end_us(span) > closed_until_us);
                sessions.spans(states)?.into_iter().map(is_open).collect()
            }
            None => self.ends(states)?.into_iter().map(|place| Some(place.end_us > closed_until_us)).collect(),
        };
        Ok(filter_record_batch(states, &open)?)
    }

    /// Gives the first place with each state's end.
    pub fn ends(&self, states: &RecordBatch) -> Result<Vec<Place>> {
        let place = |end: Option<i64>| Place { end_us: end.unwrap_or(WATERMARK_END), key: 0 };
        match &self.ends {
            Ends::Window(window) => Ok(window.ends_us(states)?.into_iter().map(place).collect()),
            Ends::Steps(window, step_us) => {
                let last = |end: i64| end.checked_add(step_us - 1).map_or(end, |up| up - up.rem_euclid(*step_us));
                Ok(window.ends_us(states)?.into_iter().map(|end| place(end.map(last))).collect())
            }
            Ends::Session(sessions) => {
                let stands_at = |span| sessions.stands_at_us(sessions.end_us(span));
                Ok(sessions.spans(states)?.into_iter().map(stands_at).map(Some).map(place).collect())
            }
            Ends::Never => Ok(vec![place(None); states.num_rows()]),
        }
    }

    /// Gives the place of each state.
    pub fn places(&self, states: &RecordBatch) -> Result<Vec<Place>> {
        let mut places = self.ends(states)?;
        self.hash_keys(&mut places, self.keys(states)?);
        Ok(places)
    }

    /// Gives the places of states that do not end, by their keys.
    pub fn places_of(&self, keys: &[ArrayRef], rows: usize) -> Result<Vec<Place>> {
        let mut places = vec![Place { end_us: WATERMARK_END, key: 0 }; rows];
        if !keys.is_empty() {
            let kept = keys.iter().zip(&self.key_types).map(|(key, kept)| Ok(cast(key, kept)?));
            let keys = self.converter.convert_columns(&kept.collect::<Result<Vec<_>>>()?)?;
            self.hash_keys(&mut places, Some(keys));
        }
        Ok(places)
    }

    /// Gives the key of each state; nothing if all have the same none.
    pub fn keys(&self, states: &RecordBatch) -> Result<Option<Rows>> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(states).and_then(|key| key.into_array(states.num_rows()));
        let keys = self.keys.iter().map(|expr| key(expr).map_err(failed)).collect::<Result<Vec<_>>>()?;
        Ok(Some(self.converter.convert_columns(&keys)?))
    }

    fn hash_keys(&self, places: &mut [Place], keys: Option<Rows>) {
        if let Some(keys) = keys {
            places.iter_mut().zip(keys.iter()).for_each(|(place, key)| place.key = (self.hash)(key.as_ref()));
        }
    }

    /// Puts states in order, in blocks of memory of their own, and tells which keys there are, if that is asked for.
    pub fn sorted(&self, states: &[RecordBatch]) -> Result<(Vec<Block>, Option<Filter>)> {
        let mut order = Vec::with_capacity(states.iter().map(RecordBatch::num_rows).sum());
        for (batch, rows) in states.iter().enumerate() {
            order.extend(self.places(rows)?.into_iter().enumerate().map(|(row, place)| (place, (batch, row))));
        }
        order.sort_unstable();
        let row_bytes = Held::of(states).bytes() / order.len().max(1) + 1;
        let block_bytes = if matches!(self.ends, Ends::Window(_)) { BLOCK_BYTES } else { SOUGHT_BLOCK_BYTES };
        let rows_max = (block_bytes / row_bytes).clamp(1, BLOCK_ROWS_MAX);
        let batches: Vec<&RecordBatch> = states.iter().collect();
        let mut blocks = Vec::with_capacity(order.len() / rows_max + 1);
        for part in order.chunks(rows_max) {
            let rows: Vec<(usize, usize)> = part.iter().map(|(_, row)| *row).collect();
            let rows = owned(&interleave_record_batch(&batches, &rows)?)?;
            if let ([(first, _), ..], [.., (last, _)]) = (part, part) {
                let bytes = rows.get_array_memory_size();
                let openings = self.openings(part.iter().map(|(place, _)| place.end_us), &rows)?;
                blocks.push(Block { first: *first, last: *last, bytes, openings, rows: Some(rows) });
            }
        }
        let filter = self.sessions().map(|_| {
            let mut filter = Filter::of(FILTER_PLACES * order.len() as u64);
            order.iter().for_each(|(place, _)| filter.add(place.key.into()));
            filter
        });
        Ok((blocks, filter))
    }

    /// Gives the first times of the sessions of some states, which are in order.
    fn openings(&self, ends: impl Iterator<Item = i64>, states: &RecordBatch) -> Result<Vec<Opening>> {
        let mut openings: Vec<Opening> = Vec::new();
        let Some(sessions) = self.sessions() else { return Ok(openings) };
        for (end_us, span) in ends.zip(sessions.spans(states)?) {
            match (openings.last_mut(), span) {
                (_, None) => {}
                (Some((end, first)), Some(span)) if *end == end_us => *first = span.first_us.min(*first),
                (_, Some(span)) => openings.push((end_us, span.first_us)),
            }
        }
        Ok(openings)
    }
}

/// Gives the hash of a key.
fn hash(key: &[u8]) -> u64 {
    // Half of a hash is one.
    u64::try_from(twox_hash::XxHash3_128::oneshot(key) >> 64).unwrap_or_default()
}

/// Gives rows that share no buffer with those that they were made of.
pub fn owned(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(|column| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => column.clone(),
        }
    });
    Ok(RecordBatch::try_new(rows.schema(), columns.collect())?)
}

/// Gives a column without dictionaries.
fn resolved(field: &Field) -> Field {
    match field.data_type() {
        DataType::Dictionary(_, value) => field.clone().with_data_type(value.as_ref().clone()),
        DataType::List(item) => field.clone().with_data_type(DataType::List(Arc::new(resolved(item)))),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| Arc::new(resolved(field)));
            field.clone().with_data_type(DataType::Struct(fields.collect()))
        }
        _ => field.clone(),
    }
}
