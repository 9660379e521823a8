//! Tests of the whole way from text to [`Loaded`](super::Loaded).

mod codes;
mod example;
mod mistakes;
mod mutations;

use std::path::Path;

use super::{Diagnostics, Loaded, parse};

/// The example of the documentation.
const FLIGHTS: &str = include_str!("flights.yaml");

/// The smallest pipeline.
const SMALL: &str = "name: trial\nlake: ./lake\nsources:\n  orders: { file: { path: orders.json } }\nbronze:\n  orders: { from: orders }\n";

/// Parses a file that lies in `/srv`.
fn read(text: &str) -> Result<Loaded, Diagnostics> {
    read_with(text, &[])
}

/// Parses a file that lies in `/srv`, with `--set`.
fn read_with(text: &str, overrides: &[(&str, &str)]) -> Result<Loaded, Diagnostics> {
    let overrides: Vec<_> = overrides.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    parse(text, "x.yaml", Path::new("/srv"), &overrides)
}

/// Gives what is wrong with a file, as it is shown.
fn wrong(text: &str) -> String {
    read(text).expect_err("a mistake").to_string()
}
