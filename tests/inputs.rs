//! The fuzz targets of the engine, given their kept inputs and seeded mutations of these; and Parquet files that are none.

use std::fs;

use nexus_operators::testing::fuzz::{Target, replay};
use serde_json::json;

use crate::fuzz_engine::{pipeline, state};
use crate::world::{World, ask, repository};

/// Mutations of the kept inputs that each target is given: to plan a pipeline takes milliseconds.
const MUTATIONS: usize = 300;

#[test]
fn kept_inputs_and_mutations_of_them_hold() {
    let targets: [(&str, Target); 2] = [("pipeline", pipeline), ("state", state)];
    replay(&repository("tests/fuzz/corpus"), &targets, MUTATIONS);
}

#[test]
fn parquet_files_that_are_none_go_to_the_quarantine() {
    let world = World::new();
    let lake = world.path("lake");
    fs::create_dir(world.path("in")).expect("could not make a folder");
    let columns = [("n", std::sync::Arc::new(arrow::array::Int64Array::from(vec![1, 2, 3])) as _)];
    let rows = arrow::array::RecordBatch::try_from_iter(columns).expect("the columns are of one length");
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), rows.schema(), None).expect("it can be written");
    writer.write(&rows).expect("it can be written");
    let good = writer.into_inner().expect("it can be written");
    let mut broken = Vec::new();
    // The first page's header, the middle of the file, and its footer, each with bits turned over; files cut short.
    for (at, bits) in [(4, 0xff), (6, 0x80), (good.len() / 2, 0xff), (good.len() - 30, 0x55), (good.len() - 6, 0x7f)] {
        let mut file = good.clone();
        file[at] ^= bits;
        broken.push(file);
    }
    broken.extend([good[..good.len() / 2].to_vec(), b"PAR1".to_vec(), b"not parquet at all".to_vec()]);
    for (number, file) in broken.iter().enumerate() {
        fs::write(world.path(&format!("in/broken-{number}.parquet")), file).expect("could not write a file");
    }
    fs::write(world.path("in/good.parquet"), &good).expect("could not write a file");
    let pipeline = world.file(
        "files.yaml",
        &format!(
            "name: files\nlake: {}\nsources:\n  events:\n    file: {{ path: 'in/*.parquet' }}\n    format: parquet\n    \
             columns: {{ n: int64 }}\nbronze:\n  events: {{ from: events }}\n",
            lake.display()
        ),
    );
    let said = world.nexus(&["run", pipeline.to_str().expect("the tests' paths are UTF-8")]).expect_code(0).said();
    assert!(!said.contains("panicked"), "{said}");
    let good = "SELECT count(*), sum(n) FROM bronze.events WHERE _partition LIKE '%good.parquet'";
    assert_eq!(ask(&lake, good), [json!([3, 6])]);
    let reasons = "SELECT count(DISTINCT _partition) >= 6, bool_and(length(reason) > 20) FROM quarantine.events";
    assert_eq!(ask(&lake, reasons), [json!([true, true])]);
}
