//! Random input: two streams whose rows come in disorder, and reference tables.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray,
    StringBuilder, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use nexus::operators::batch::timestamp_type;

use crate::world::Random;

/// Where time begins: at the turn of a year, in a leap year's February, and before 1970.
const BEGINNINGS_US: [i64; 3] = [1_704_058_000_000_000, 1_709_150_000_000_000, -20_000_000_000];

/// How far rows are apart in the mean: from many in a second to few in a month.
const STEPS_US: [i64; 6] = [100_000, 7_000_000, 60_000_000, 900_000_000, 14_400_000_000, 260_000_000_000];

/// The rows of one source.
pub struct Stream {
    /// The source's name.
    pub name: &'static str,
    /// The column with the event time.
    pub time: &'static str,
    /// How far rows come out of order.
    pub lateness: Duration,
    /// All rows, in the order in which they come.
    pub rows: RecordBatch,
    /// Where one partition ends and the next begins.
    pub cuts: Vec<usize>,
}

/// Gives a whole number below `end`.
pub fn below(random: &mut Random, end: usize) -> usize {
    random.between(0.0, end as f64) as usize
}

/// Gives a whole number below `end`, for arithmetic with times and values.
fn upto(random: &mut Random, end: i64) -> i64 {
    random.between(0.0, end as f64) as i64
}

/// Gives the streams `events` and `more`, over the same time.
pub fn streams(random: &mut Random) -> [Stream; 2] {
    let begin_us = BEGINNINGS_US[below(random, BEGINNINGS_US.len())];
    let step_us = STEPS_US[below(random, STEPS_US.len())];
    let rows = 30 + below(random, 250);
    let events = stream(random, "events", "ts", (begin_us, step_us), rows);
    let fewer = 10 + below(random, rows);
    let apart_us = step_us * rows as i64 / fewer as i64;
    [events, stream(random, "more", "at", (begin_us, apart_us), fewer)]
}

fn stream(
    random: &mut Random,
    name: &'static str,
    time: &'static str,
    (begin_us, step_us): (i64, i64),
    rows: usize,
) -> Stream {
    let lateness_us = upto(random, 30 * step_us).max(1);
    let mut newest_us = i64::MIN;
    let mut now_us = begin_us;
    let times = (0..rows).map(|_| {
        now_us += upto(random, 2 * step_us);
        if name == "events" && below(random, 40) == 0 {
            return None;
        }
        // Several rows happen at the same time now and then.
        let late_us = if below(random, 5) == 0 { 0 } else { upto(random, lateness_us) };
        let time_us = (now_us - late_us).max(newest_us.saturating_sub(lateness_us));
        newest_us = newest_us.max(time_us);
        Some(time_us)
    });
    let times = TimestampMicrosecondArray::from(times.collect::<Vec<_>>()).with_timezone("UTC");
    let mut cuts: Vec<usize> = (0..below(random, 4)).map(|_| below(random, rows)).collect();
    cuts.sort_unstable();
    let rows = batch(random, name, Arc::new(times));
    Stream { name, time, lateness: Duration::from_micros(lateness_us.unsigned_abs()), rows, cuts }
}

/// Gives rows of a stream at these times, the identifier of each being its place.
fn batch(random: &mut Random, name: &str, times: ArrayRef) -> RecordBatch {
    let rows = times.len();
    let mut texts = |choices: &[&str]| {
        let pick = |_| choices.get(below(random, choices.len() + 1)).copied();
        Arc::new((0..rows).map(pick).collect::<StringArray>()) as ArrayRef
    };
    let (site, kind) = (texts(&["reno", "yuma", "bend", "ely", "taos"]), texts(&["a", "b", "c"]));
    let mut some = |end: i64| if below(random, 12) == 0 { None } else { Some(upto(random, end)) };
    // Quarters have an exact sum, in whatever order they are added.
    let v: Float64Array = (0..rows).map(|_| some(400).map(|v| (v - 200) as f64 / 4.0)).collect();
    let n: Int64Array = (0..rows).map(|_| some(10)).collect();
    let id = Int64Array::from_iter_values(0..rows as i64);
    if name == "more" {
        return record(more_schema(), vec![Arc::new(id), times, site, Arc::new(v), Arc::new(n)]);
    }
    let amount: Decimal128Array = (0..rows).map(|_| some(100_000).map(i128::from)).collect();
    let amount = amount.with_precision_and_scale(12, 2).expect("the values are small");
    let ok: BooleanArray = (0..rows).map(|_| some(2).map(|ok| ok == 1)).collect();
    let mut tags = ListBuilder::new(StringBuilder::new());
    for _ in 0..rows {
        match below(random, 5) {
            4 => tags.append_null(),
            many => {
                (0..many).for_each(|_| tags.values().append_value(["x", "y", "z"][below(random, 3)]));
                tags.append(true);
            }
        }
    }
    let (id, v, n, ok) = (Arc::new(id), Arc::new(v), Arc::new(n), Arc::new(ok));
    record(events_schema(), vec![id, times, site, kind, v, n, Arc::new(amount), ok, Arc::new(tags.finish())])
}

fn record(schema: SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("the columns fit")
}

fn events_schema() -> SchemaRef {
    let mut fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("ts", timestamp_type(), true),
        Field::new("site", DataType::Utf8, true),
        Field::new("kind", DataType::Utf8, true),
    ];
    fields.extend([("v", DataType::Float64), ("n", DataType::Int64)].map(|(name, of)| Field::new(name, of, true)));
    fields.push(Field::new("amount", DataType::Decimal128(12, 2), true));
    fields.push(Field::new("ok", DataType::Boolean, true));
    fields.push(Field::new_list("tags", Field::new_list_field(DataType::Utf8, true), true));
    Arc::new(Schema::new(fields))
}

fn more_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", timestamp_type(), true),
        Field::new("site", DataType::Utf8, true),
        Field::new("v", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
    ]))
}

impl Stream {
    /// Gives the columns.
    pub fn columns(&self) -> Fields {
        self.rows.schema().fields().clone()
    }

    /// Gives the partitions, each in batches of random sizes.
    pub fn partitions(&self, random: &mut Random) -> Vec<(String, Vec<RecordBatch>)> {
        let ends = self.cuts.iter().copied().chain([self.rows.num_rows()]);
        let mut from = 0;
        let mut partitions = Vec::new();
        for (place, end) in ends.enumerate() {
            let mut batches = Vec::new();
            while from < end {
                let rows = (1 + below(random, 40)).min(end - from);
                // A copy: a slice would count the whole stream's memory against the epoch.
                let slice = self.rows.slice(from, rows);
                batches.push(concat_batches(&slice.schema(), [&slice]).expect("a copy"));
                from += rows;
            }
            partitions.push((format!("{}-{place}", self.name), batches));
        }
        partitions
    }
}

/// The reference table `sites`, as CSV; some sites of the streams are not in it.
pub const SITES_CSV: &str = "site,region,weight\nreno,west,1\nyuma,south,2\nbend,west,3\noslo,north,4\n";

/// The reference table `nothing`, as CSV.
pub const NOTHING_CSV: &str = "site\n";

/// Gives the rows of the reference tables.
pub fn references() -> [(&'static str, RecordBatch); 2] {
    let texts = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let sites = [
        ("site", texts(&["reno", "yuma", "bend", "oslo"])),
        ("region", texts(&["west", "south", "west", "north"])),
        ("weight", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
    ];
    let sites = RecordBatch::try_from_iter(sites).expect("the columns are of the same length");
    let nothing = RecordBatch::try_from_iter([("site", texts(&[]))]).expect("one column");
    [("sites", sites), ("nothing", nothing)]
}
