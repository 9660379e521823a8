//! The files of public test suites: the good ones are read, the bad ones are refused with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, Field};
use bytes::Bytes;

use super::fuzz::reading::{Outcome, read, settings};
use crate::decode::{FormatSettings, UnknownColumns, infer};
use crate::source::framed::Grain;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a JSON text as the value of a field: documents are objects here.
fn json(text: &[u8]) -> Outcome {
    let kept = BTreeMap::from([("nexus.type".to_owned(), "json".to_owned())]);
    let value = Field::new("v", DataType::Utf8View, true).with_metadata(kept.into_iter().collect());
    let settings = settings(FormatSettings::Json, vec![value], UnknownColumns::Reject);
    let content = [b"{\"v\":", text, b"}\n"].concat();
    read(&settings, &content.into(), Grain::default(), 0)
}

fn json_case(name: &str, text: &[u8]) -> Option<String> {
    let outcome = json(text);
    let (rows, rejects) = (outcome.rows.num_rows(), outcome.rejects.len() + usize::from(outcome.damage.is_some()));
    let fits = match name.get(..2) {
        Some("y_") => (rows, rejects) == (1, 0),
        Some("n_") => rejects > 0,
        _ => rows + rejects > 0,
    };
    (!fits).then(|| format!("{name}: {rows} rows and {rejects} rejects of {}", text.escape_ascii()))
}

#[test]
fn json_test_suite() {
    let cases: BTreeMap<String, String> = serde_json::from_str(&fixture("json-test-suite/parsing.json")).unwrap();
    assert!(cases.len() > 280, "{} cases", cases.len());
    let mut wrong: Vec<String> = cases.iter().filter_map(|(name, text)| json_case(name, text.as_bytes())).collect();
    wrong.extend(json_case("n_structure_100000_opening_arrays", "[".repeat(100_000).as_bytes()));
    wrong.extend(json_case("n_structure_open_array_object", "[{\"\":".repeat(50_000).as_bytes()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "needs JSON_TEST_SUITE, the folder of a checkout of nst/JSONTestSuite"]
fn json_test_suite_as_it_is() {
    let folder =
        PathBuf::from(std::env::var_os("JSON_TEST_SUITE").expect("JSON_TEST_SUITE is set")).join("test_parsing");
    let (mut cases, mut wrong) = (0, Vec::new());
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        wrong.extend(json_case(&name, &fs::read(path).unwrap()));
        cases += 1;
    }
    println!("{cases} cases of JSONTestSuite");
    assert!(cases > 300 && wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Reads all Parquet files of a folder by the columns that they say to have; tells what is wrong with each.
fn parquet_files(folder: &Path) -> BTreeMap<String, Result<usize, String>> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "parquet") {
            continue;
        }
        let content = Bytes::from(fs::read(&path).unwrap());
        let rows = infer(&FormatSettings::Parquet, &content).map_err(|error| error.to_string()).and_then(|columns| {
            let settings = settings(FormatSettings::Parquet, columns, UnknownColumns::Ignore);
            let outcome = read(&settings, &content, Grain::default(), 0);
            let reject = outcome.rejects.first().map(|reject| reject.reason.clone());
            outcome.damage.or(reject).map_or(Ok(outcome.rows.num_rows()), Err)
        });
        found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), rows);
    }
    found
}

#[test]
#[ignore = "needs PARQUET_TEST_DATA, the folder `data` of a checkout of apache/parquet-testing"]
fn parquet_testing() {
    let data = PathBuf::from(std::env::var_os("PARQUET_TEST_DATA").expect("PARQUET_TEST_DATA is set"));
    let bad = parquet_files(&data.join("../bad_data"));
    for (name, rows) in bad.iter().chain(&parquet_files(&data)) {
        println!("{name}: {}", rows.as_ref().map_or_else(Clone::clone, |rows| format!("{rows} rows")));
    }
    // Of no bits to say which of a dictionary's values, all are the first: that can be read.
    let taken: Vec<_> = bad.iter().filter(|(name, rows)| rows.is_ok() && *name != "ARROW-GH-43605.parquet").collect();
    assert!(bad.len() >= 8 && taken.is_empty(), "{taken:?}");
}
