//! SQL functions of one's own: `distance_km(lat, lon, lat, lon)`, of one row, and `geometric_mean(x)`, of many.
//!
//! An aggregate keeps its state between epochs like those that are built in: what `state` gives is written into the
//! snapshots, and read back by `merge_batch`.
//!
//!     cargo run --example functions

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error as StdError;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::cast::as_float64_array;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, ColumnarValue, ScalarUDF, Volatility, create_udaf, create_udf,
};
use nexus::Pipeline;
use nexus::operators::sink::memory::MemorySink;

/// The radius of the earth, in kilometres.
const EARTH_KM: f64 = 6371.0;

const FILE: &str = r#"
name: trips
lake: LAKE
sources:
  trips:
    file: { path: trips.jsonl }
    columns:
      taxi: string not null
      at: timestamp not null
      from_lat: float64
      from_lon: float64
      to_lat: float64
      to_lon: float64
      fare: float64
    event_time: { column: at }
silver:
  trips:
    sql: |
      SELECT taxi, at, fare, distance_km(from_lat, from_lon, to_lat, to_lon) AS km
      FROM trips
gold:
  hours:
    sql: |
      SELECT date_bin(INTERVAL '1 hour', at) AS hour, count(*) AS trips, sum(km) AS km, geometric_mean(fare) AS fare
      FROM silver.trips GROUP BY 1
"#;

const TRIPS: &str = r#"
{"taxi":"a","at":"2026-11-01T08:05:00Z","from_lat":40.64,"from_lon":-73.78,"to_lat":40.75,"to_lon":-73.99,"fare":16}
{"taxi":"b","at":"2026-11-01T08:40:00Z","from_lat":40.77,"from_lon":-73.87,"to_lat":40.75,"to_lon":-73.99,"fare":4}
{"taxi":"a","at":"2026-11-01T09:10:00Z","from_lat":40.75,"from_lon":-73.99,"to_lat":40.64,"to_lon":-73.78,"fare":25}
"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let folder = tempfile::tempdir()?;
    let trips = folder.path().join("trips.jsonl");
    std::fs::write(&trips, TRIPS.trim_start())?;
    let file = FILE.replace("LAKE", &folder.path().display().to_string());
    let file = file.replace("path: trips.jsonl", &format!("path: {}", trips.display()));

    let hours = MemorySink::new();
    let landed = hours.landed();
    let pipeline = Pipeline::parse(&file)?.with_function(distance_km()).with_aggregate(geometric_mean()).with_sink(
        "gold.hours",
        "shown",
        Box::new(hours),
    );
    pipeline.start().await?.wait().await?;

    let mut fares = Vec::new();
    for rows in landed.batches() {
        println!("{}", arrow::util::pretty::pretty_format_batches(std::slice::from_ref(&rows))?);
        fares.extend(rows["fare"].as_primitive::<Float64Type>().values().iter().copied());
    }
    fares.sort_by(f64::total_cmp);
    assert!((fares[0] - 8.0).abs() < 1e-9 && (fares[1] - 25.0).abs() < 1e-9, "{fares:?}");
    Ok(())
}

/// Makes the function that gives the distance between two places, in kilometres.
fn distance_km() -> ScalarUDF {
    let distance = |arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let columns = arrays.iter().map(|array| as_float64_array(array)).collect::<Result<Vec<_>>>()?;
        let at =
            |column: usize, row: usize| columns[column].is_valid(row).then(|| columns[column].value(row).to_radians());
        let of_row = |row| Some(haversine(at(0, row)?, at(1, row)?, at(2, row)?, at(3, row)?));
        let kilometres: Float64Array = (0..columns[0].len()).map(of_row).collect();
        Ok(ColumnarValue::Array(Arc::new(kilometres)))
    };
    let number = DataType::Float64;
    create_udf("distance_km", vec![number.clone(); 4], number, Volatility::Immutable, Arc::new(distance))
}

fn haversine(from_lat: f64, from_lon: f64, to_lat: f64, to_lon: f64) -> f64 {
    let half = |a: f64, b: f64| ((b - a) / 2.0).sin().powi(2);
    let chord = half(from_lat, to_lat) + from_lat.cos() * to_lat.cos() * half(from_lon, to_lon);
    2.0 * EARTH_KM * chord.sqrt().asin()
}

/// Makes the aggregate that gives the geometric mean.
fn geometric_mean() -> AggregateUDF {
    let state = Arc::new(vec![DataType::Float64, DataType::Int64]);
    let accumulator = Arc::new(|_: AccumulatorArgs<'_>| Ok(Box::new(GeometricMean::default()) as Box<dyn Accumulator>));
    let number = DataType::Float64;
    create_udaf("geometric_mean", vec![number.clone()], Arc::new(number), Volatility::Immutable, accumulator, state)
}

#[derive(Debug, Default)]
struct GeometricMean {
    logarithms: f64,
    count: i64,
}

impl Accumulator for GeometricMean {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in as_float64_array(&values[0])?.iter().flatten() {
            self.logarithms += value.ln();
            self.count += 1;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (logarithms, counts): (&Float64Array, &Int64Array) =
            (states[0].as_primitive::<Float64Type>(), states[1].as_primitive::<Int64Type>());
        self.logarithms += logarithms.iter().flatten().sum::<f64>();
        self.count += counts.iter().flatten().sum::<i64>();
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Float64(Some(self.logarithms)), ScalarValue::Int64(Some(self.count))])
    }

    #[allow(clippy::cast_precision_loss, reason = "a mean is rounded anyway")]
    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64((self.count > 0).then(|| (self.logarithms / self.count as f64).exp())))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}
