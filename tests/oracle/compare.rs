//! Whether two tables hold the same rows, in any order.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// What sums and spreads of the same numbers may differ by, relative to their size, when added in another order.
const RELATIVE: f64 = 1e-9;

/// What approximations (columns `approx_...`) may differ by. Values lie from -50 to 50.
const APPROXIMATE: f64 = 10.0;

/// One value.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Null,
    Text(String),
    Number { value: f64, tolerance: f64 },
    List(Vec<Cell>),
}

/// Tells how two tables differ; nothing if they hold the same rows. Lists of columns `bag_...` have no order.
pub fn difference(found: &[RecordBatch], wanted: &[RecordBatch]) -> Option<String> {
    let names = |batches: &[RecordBatch]| batches.first().map(|batch| batch.schema().fields().len());
    if let (Some(found), Some(wanted)) = (names(found), names(wanted))
        && found != wanted
    {
        return Some(format!("{found} columns instead of {wanted}"));
    }
    let (found, wanted) = (rows(found), rows(wanted));
    if found.len() == wanted.len() && found.iter().zip(&wanted).all(|(a, b)| same_row(a, b)) {
        return None;
    }
    let only = |these: &[Vec<Cell>], those: &[Vec<Cell>]| {
        let only = these.iter().filter(|row| !those.iter().any(|other| same_row(row, other)));
        only.take(5).map(|row| format!("  {row:?}")).collect::<Vec<_>>().join("\n")
    };
    Some(format!(
        "{} rows instead of {}\n only in the stream:\n{}\n only in the batch:\n{}",
        found.len(),
        wanted.len(),
        only(&found, &wanted),
        only(&wanted, &found)
    ))
}

fn rows(batches: &[RecordBatch]) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        let columns: Vec<Vec<Cell>> =
            batch.columns().iter().zip(schema.fields()).map(|(column, field)| cells(column, field.name())).collect();
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row].clone()).collect()));
    }
    rows.sort_by(|a: &Vec<Cell>, b| order_rows(a, b));
    rows
}

fn cells(column: &ArrayRef, name: &str) -> Vec<Cell> {
    let tolerance = if name.starts_with("approx_") { APPROXIMATE } else { RELATIVE };
    match column.data_type() {
        DataType::Float32 | DataType::Float64 => {
            let floats = cast(column, &DataType::Float64).expect("a float is a float");
            let floats: &Float64Array = floats.as_primitive();
            floats.iter().map(|v| v.map_or(Cell::Null, |value| Cell::Number { value, tolerance })).collect()
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let one = |row: usize| {
                if list.is_null(row) {
                    return Cell::Null;
                }
                let mut inside = cells(&list.value(row), name);
                if name.starts_with("bag_") {
                    inside.sort_by(order);
                }
                Cell::List(inside)
            };
            (0..list.len()).map(one).collect()
        }
        _ => {
            let options = FormatOptions::default();
            let texts = ArrayFormatter::try_new(column.as_ref(), &options).expect("every type can be shown");
            let one = |row| if column.is_null(row) { Cell::Null } else { Cell::Text(texts.value(row).to_string()) };
            (0..column.len()).map(one).collect()
        }
    }
}

fn same_row(a: &[Cell], b: &[Cell]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

fn same(a: &Cell, b: &Cell) -> bool {
    match (a, b) {
        (Cell::Number { value: a, tolerance }, Cell::Number { value: b, .. }) => {
            let size = if *tolerance < APPROXIMATE { a.abs().max(b.abs()).max(1.0) } else { 1.0 };
            (a - b).abs() <= tolerance * size || a.is_nan() && b.is_nan()
        }
        (Cell::List(a), Cell::List(b)) => same_row(a, b),
        _ => a == b,
    }
}

/// Exact columns decide first, so that rows whose numbers differ by a little stand at the same place.
fn order_rows(a: &[Cell], b: &[Cell]) -> Ordering {
    let exact = |row: &[Cell]| row.iter().filter(|cell| !matches!(cell, Cell::Number { .. })).cloned().collect();
    let (exact_a, exact_b): (Vec<Cell>, Vec<Cell>) = (exact(a), exact(b));
    order_all(&exact_a, &exact_b).then_with(|| order_all(a, b))
}

fn order_all(a: &[Cell], b: &[Cell]) -> Ordering {
    let decided = a.iter().zip(b).map(|(a, b)| order(a, b)).find(|ordering| ordering.is_ne());
    decided.unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn order(a: &Cell, b: &Cell) -> Ordering {
    match (a, b) {
        (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
        (Cell::Number { value: a, .. }, Cell::Number { value: b, .. }) => a.total_cmp(b),
        (Cell::List(a), Cell::List(b)) => order_all(a, b),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn rank(cell: &Cell) -> u8 {
    match cell {
        Cell::Null => 0,
        Cell::Text(_) => 1,
        Cell::Number { .. } => 2,
        Cell::List(_) => 3,
    }
}

#[test]
fn a_difference_is_seen() {
    let table = |values: Vec<Option<f64>>| {
        let column: ArrayRef = std::sync::Arc::new(Float64Array::from(values));
        vec![RecordBatch::try_from_iter([("x", column)]).unwrap()]
    };
    let one = table(vec![Some(1.0), None, Some(2.0)]);
    assert_eq!(difference(&one, &table(vec![Some(2.0 + 1e-12), Some(1.0), None])), None, "the order is no matter");
    assert!(difference(&one, &table(vec![Some(1.0), None])).is_some(), "a row is missing");
    assert!(difference(&one, &table(vec![Some(1.0), None, Some(2.1)])).is_some(), "a value differs");
    assert!(difference(&one, &table(vec![Some(1.0), Some(1.0), Some(2.0)])).is_some(), "NULL is a value of its own");
}
