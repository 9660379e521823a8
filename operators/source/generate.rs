//! Rows made from their number, for trials and benchmarks.
//!
//! A column's value in row `n` depends on the seed, the column's name and `n`
//! and on nothing else, so it is the same however the rows are cut into
//! batches, and after any restart.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;

use super::{Source, SourceEvent};
use crate::batch::{Chunk, Payload, timestamp_type};
use crate::clock::SharedClock;
use crate::error::{Error, Result};
use crate::position::{Cut, Position};

/// Rows of a batch: what DataFusion's operators take at once.
const BATCH_ROWS: u64 = 8192;

/// The only partition.
const PARTITION: &str = "generate";

/// The longest that a call waits for its rate: a source answers within about a second.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How much of a standstill is caught up with, in microseconds: more would be a burst that no rate describes.
const CATCH_UP_US: i64 = 1_000_000;

/// What a [`GenerateSource`] makes.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSettings {
    /// The source's name.
    pub name: String,
    /// How many rows; without it the source never ends.
    pub rows: Option<u64>,
    /// Rows a second; as fast as they are taken if not given.
    pub rate: Option<u64>,
    /// Makes other values of the same kind.
    pub seed: u64,
    /// The columns by name, and what each holds.
    pub columns: Vec<(String, Generator)>,
}

/// What a generated column holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Generator {
    /// The row's number, from 0.
    Sequence,
    /// A whole number from `min` to `max`, both included.
    Integer {
        /// The smallest.
        min: i64,
        /// The largest.
        max: i64,
    },
    /// A number from `min` up to `max`.
    Number {
        /// The smallest.
        min: f64,
        /// The bound that is not reached.
        max: f64,
    },
    /// One of these texts.
    Choice(Vec<String>),
    /// A time that moves on by a step a row.
    Time {
        /// The first row's time, in microseconds since the Unix epoch.
        start_us: i64,
        /// What lies between two rows, in microseconds.
        step_us: i64,
    },
}

/// Makes rows.
pub struct GenerateSource {
    rows: Option<u64>,
    rate: Option<u64>,
    columns: Vec<Column>,
    schema: SchemaRef,
    clock: SharedClock,
    /// The next row.
    row: u64,
    /// When and with which row the rate began to count.
    since: Option<(i64, u64)>,
    moved: Cut,
}

/// A column, ready to be made.
struct Column {
    salt: u64,
    kind: Kind,
}

enum Kind {
    Sequence,
    Integer { min: i64, values: u128 },
    Number { min: f64, width: f64 },
    Choice(StringViewArray),
    Time { start_us: i64, step_us: i64 },
}

impl GenerateSource {
    /// Makes a source of the rows that `settings` describes.
    pub fn new(settings: &GenerateSettings, clock: SharedClock) -> Result<Self> {
        let column = |(name, generator): &(String, Generator)| {
            let kind =
                generator.kind().map_err(|e| e.while_doing(format!("source {}, column {name}", settings.name)))?;
            let salt = name.bytes().fold(mix(settings.seed), |salt, byte| mix(salt ^ u64::from(byte)));
            Ok(Column { salt, kind })
        };
        let columns = settings.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        if columns.is_empty() {
            return Err(Error::config(format!("source {} generates no columns; give it some", settings.name)));
        }
        if settings.rate == Some(0) {
            return Err(Error::config(format!("source {} has a rate of 0 rows a second; leave it out", settings.name)));
        }
        let schema = Arc::new(Schema::new(fields(&settings.columns)));
        let (rows, rate) = (settings.rows, settings.rate);
        Ok(Self { rows, rate, columns, schema, clock, row: 0, since: None, moved: Cut::default() })
    }

    /// Tells how many rows are due now.
    fn due(&mut self) -> u64 {
        let left = self.rows.map_or(u64::MAX, |rows| rows.saturating_sub(self.row));
        let Some(rate) = self.rate else { return left.min(BATCH_ROWS) };
        let now_us = self.clock.now_us();
        let (since_us, first) = *self.since.get_or_insert((now_us, self.row));
        let due = first + rows_in(now_us.saturating_sub(since_us), rate);
        let burst = rows_in(CATCH_UP_US, rate).max(1);
        let behind = due.saturating_sub(self.row);
        if behind > burst {
            self.since = Some((now_us, self.row));
            return burst.min(left).min(BATCH_ROWS);
        }
        behind.min(left).min(BATCH_ROWS)
    }

    /// Makes the next `rows` rows.
    fn make(&mut self, rows: u64) -> Result<RecordBatch> {
        let columns = self.columns.iter().map(|c| c.make(self.row, rows)).collect::<Result<Vec<_>>>()?;
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.row += rows;
        Ok(batch)
    }

    fn ends(&self) -> bool {
        self.rows.is_some_and(|rows| self.row >= rows)
    }

    fn remember(&mut self) {
        let (offset, identity) = (self.row, None);
        let position = if self.ends() {
            Position::Done { offset, identity, ms: self.clock.now_us().div_euclid(1000) }
        } else {
            Position::Offset { offset, identity }
        };
        self.moved.advanced.insert(PARTITION.to_owned(), position);
    }
}

/// Gives the columns that these generators make.
pub fn fields(columns: &[(String, Generator)]) -> Vec<Field> {
    columns.iter().map(|(name, generator)| Field::new(name, generator.data_type(), false)).collect()
}

#[async_trait]
impl Source for GenerateSource {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        self.row = match committed.advanced.get(PARTITION) {
            Some(Position::Offset { offset, .. } | Position::Done { offset, .. }) => *offset,
            _ => 0,
        };
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        tokio::task::consume_budget().await;
        if self.ends() {
            return Ok(SourceEvent::End);
        }
        let mut due = self.due();
        if let (0, Some(rate)) = (due, self.rate) {
            tokio::time::sleep(Duration::from_secs_f64(1.0 / rate as f64).clamp(Duration::from_millis(1), WAIT_MAX))
                .await;
            due = self.due();
        }
        if due == 0 {
            return Ok(SourceEvent::Idle);
        }
        let offset = self.row;
        let rows = self.make(due)?;
        self.remember();
        Ok(SourceEvent::Chunk(Chunk {
            partition: PARTITION.into(),
            payload: Payload::Batch { offset, rows },
            read_at_us: self.clock.now_us(),
            lag_ms: None,
        }))
    }

    fn cut(&mut self) -> Cut {
        std::mem::take(&mut self.moved)
    }

    fn reading(&self) -> Vec<Arc<str>> {
        if self.ends() { Vec::new() } else { vec![PARTITION.into()] }
    }

    async fn committed(&mut self, _: &Cut) -> Result<()> {
        Ok(())
    }

    async fn maintain(&mut self) -> Result<()> {
        Ok(())
    }

    fn bounded(&self) -> bool {
        self.rows.is_some()
    }
}

impl Generator {
    fn data_type(&self) -> DataType {
        match self {
            Generator::Sequence | Generator::Integer { .. } => DataType::Int64,
            Generator::Number { .. } => DataType::Float64,
            Generator::Choice(_) => DataType::Utf8View,
            Generator::Time { .. } => timestamp_type(),
        }
    }

    fn kind(&self) -> Result<Kind> {
        match self {
            Generator::Sequence => Ok(Kind::Sequence),
            Generator::Integer { min, max } => {
                let width = i128::from(*max) - i128::from(*min) + 1;
                let values = u128::try_from(width).ok().filter(|width| *width > 0);
                let values = values.ok_or_else(|| Error::config(format!("min {min} is above max {max}")))?;
                Ok(Kind::Integer { min: *min, values })
            }
            Generator::Number { min, max } if max - min > 0.0 && (max - min).is_finite() => {
                Ok(Kind::Number { min: *min, width: max - min })
            }
            Generator::Number { min, max } => Err(Error::config(format!("min {min} is not below max {max}"))),
            Generator::Choice(texts) if texts.is_empty() => Err(Error::config("there is nothing to choose from")),
            Generator::Choice(texts) => Ok(Kind::Choice(StringViewArray::from_iter_values(texts))),
            Generator::Time { start_us, step_us } => Ok(Kind::Time { start_us: *start_us, step_us: *step_us }),
        }
    }
}

impl Column {
    fn make(&self, first: u64, rows: u64) -> Result<ArrayRef> {
        let numbers = first..first + rows;
        // Rows are numbered below 2^63: at 100 million a second that lasts for 2900 years.
        let signed = |row: u64| i64::try_from(row).unwrap_or(i64::MAX);
        Ok(match &self.kind {
            Kind::Sequence => Arc::new(Int64Array::from(numbers.map(signed).collect::<Vec<_>>())),
            Kind::Integer { min, values } => {
                let value = |row| min.wrapping_add_unsigned(below(*values, self.hash(row)));
                Arc::new(Int64Array::from(numbers.map(value).collect::<Vec<_>>()))
            }
            Kind::Number { min, width } => {
                let last = (min + width).next_down();
                let value = |row| (min + width * fraction(self.hash(row))).min(last);
                Arc::new(Float64Array::from(numbers.map(value).collect::<Vec<_>>()))
            }
            Kind::Choice(texts) => {
                let choices = texts.len() as u128;
                let chosen = UInt64Array::from(numbers.map(|row| below(choices, self.hash(row))).collect::<Vec<_>>());
                take(texts, &chosen, None)?
            }
            Kind::Time { start_us, step_us } => {
                let value = |row| start_us.saturating_add(step_us.saturating_mul(signed(row)));
                Arc::new(TimestampMicrosecondArray::from(numbers.map(value).collect::<Vec<_>>()).with_timezone("UTC"))
            }
        })
    }

    fn hash(&self, row: u64) -> u64 {
        mix(self.salt.wrapping_add(row.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// Scatters a number's bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Maps a hash to a number below `bound`, which is at most 2^64 (Lemire's multiplication).
fn below(bound: u128, hash: u64) -> u64 {
    // The product is below bound * 2^64, so what is left of the shift fits.
    ((u128::from(hash) * bound) >> 64) as u64
}

/// Maps a hash to a number from 0 up to 1, by the 53 bits that a float64 holds exactly.
fn fraction(hash: u64) -> f64 {
    (hash >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Tells how many rows a rate allows in a time.
fn rows_in(us: i64, rate: u64) -> u64 {
    let rows = u128::try_from(us).unwrap_or_default() * u128::from(rate) / 1_000_000;
    u64::try_from(rows).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};

    use super::*;
    use crate::testing::clock::ManualClock;
    use crate::testing::source::{conforms, read};

    fn settings(rows: Option<u64>, rate: Option<u64>) -> GenerateSettings {
        let texts = ["short", "a text that is longer than twelve bytes"].map(String::from).to_vec();
        let columns = [
            ("n", Generator::Sequence),
            ("i", Generator::Integer { min: -3, max: 3 }),
            ("all", Generator::Integer { min: i64::MIN, max: i64::MAX }),
            ("f", Generator::Number { min: 1.0, max: 2.0 }),
            ("c", Generator::Choice(texts)),
            ("t", Generator::Time { start_us: 1_000_000, step_us: 500 }),
        ];
        let columns = columns.map(|(name, generator)| (name.to_owned(), generator)).to_vec();
        GenerateSettings { name: "made".into(), rows, rate, seed: 42, columns }
    }

    fn source(rows: Option<u64>, rate: Option<u64>) -> GenerateSource {
        GenerateSource::new(&settings(rows, rate), ManualClock::at(0)).unwrap()
    }

    #[tokio::test]
    async fn rows_conform_and_keep_to_their_bounds() {
        let seen = conforms(|_| async { Box::new(source(Some(30_000), None)) as _ }).await;
        let rows = seen.rows(PARTITION).unwrap();
        assert_eq!(rows.num_rows(), 30_000);
        assert_eq!(
            rows.schema().fields().to_vec(),
            fields(&settings(None, None).columns).into_iter().map(Arc::new).collect::<Vec<_>>()
        );
        let column = |name| rows.column_by_name(name).unwrap();
        let numbers = column("n").as_primitive::<Int64Type>();
        assert!(numbers.values().iter().copied().eq(0..30_000));
        let integers = column("i").as_primitive::<Int64Type>();
        for wanted in -3..=3 {
            let share = integers.values().iter().filter(|value| **value == wanted).count();
            assert!((4000..4600).contains(&share), "{wanted} stands in {share} of 30000 rows");
        }
        let fractions = column("f").as_primitive::<Float64Type>();
        let mean = fractions.values().iter().sum::<f64>() / 30_000.0;
        assert!(fractions.values().iter().all(|value| (1.0..2.0).contains(value)) && (1.49..1.51).contains(&mean));
        assert_eq!(column("t").as_primitive::<TimestampMicrosecondType>().value(2), 1_001_000);
        let texts = column("c").as_string_view();
        assert!((14_000..16_000).contains(&texts.iter().flatten().filter(|text| *text == "short").count()));
    }

    #[tokio::test]
    async fn a_row_depends_on_its_number_and_the_seed_alone() {
        let mut whole = source(Some(10_000), None);
        let (seen, _) = read(&mut whole, &Cut::default()).await;
        let position = Position::Offset { offset: 9_990, identity: None };
        let cut = Cut { advanced: [(PARTITION.to_owned(), position)].into(), forgotten: Vec::new() };
        let (rest, _) = read(&mut source(Some(10_000), None), &cut).await;
        assert_eq!(rest.rows(PARTITION).unwrap(), &seen.rows(PARTITION).unwrap().slice(9_990, 10));
        let other = GenerateSource::new(&GenerateSettings { seed: 43, ..settings(Some(64), None) }, ManualClock::at(0));
        let (other, _) = read(&mut other.unwrap(), &Cut::default()).await;
        let same = seen.rows(PARTITION).unwrap().slice(0, 64);
        assert_ne!(other.rows(PARTITION).unwrap(), &same);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_by_the_clock() {
        let clock = ManualClock::at(0);
        let mut source = GenerateSource::new(&settings(None, Some(1000)), clock.clone()).unwrap();
        source.open(&Cut::default()).await.unwrap();
        assert!(matches!(source.next().await.unwrap(), SourceEvent::Idle));
        let mut rows = 0;
        for step in 1..=100 {
            clock.advance(Duration::from_millis(50));
            while let SourceEvent::Chunk(chunk) = source.next().await.unwrap() {
                rows += chunk_rows(&chunk);
            }
            assert_eq!(rows, step * 50);
        }
        clock.advance(Duration::from_secs(3600));
        while let SourceEvent::Chunk(chunk) = source.next().await.unwrap() {
            rows += chunk_rows(&chunk);
        }
        assert_eq!(rows, 6000, "a standstill is caught up with for a second at most");
        assert!(!source.bounded());
    }

    fn chunk_rows(chunk: &Chunk) -> usize {
        let Payload::Batch { rows, .. } = &chunk.payload else { panic!() };
        rows.num_rows()
    }

    #[test]
    fn impossible_columns_are_refused_by_name() {
        for generator in [
            Generator::Integer { min: 1, max: 0 },
            Generator::Number { min: 1.0, max: 1.0 },
            Generator::Number { min: f64::NAN, max: 1.0 },
            Generator::Choice(Vec::new()),
        ] {
            let settings = GenerateSettings { columns: vec![("bad".into(), generator)], ..settings(None, None) };
            let error = GenerateSource::new(&settings, ManualClock::at(0)).err().unwrap();
            assert!(error.to_string().contains("column bad"), "{error}");
        }
    }
}
