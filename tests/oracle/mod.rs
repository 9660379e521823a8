//! The rule that everything rests on: for any cut of the input into batches
//! and epochs, and for any stop or crash in between, each table after the end
//! of input equals what DataFusion answers to the same SQL over the same rows.
//!
//! NEXUS_TEST_SEED gives the same input and cuts again, NEXUS_TEST_CASES asks
//! for more of them.

mod compare;
mod data;
mod run;
mod shapes;

use std::path::Path;

use nexus::Pipeline;
use nexus::operators::source::memory::MemorySource;

use crate::world::Random;
use compare::difference;
use data::{NOTHING_CSV, SITES_CSV, below, streams};
use run::{SOURCES, Trial, batch_answer};
use shapes::{REFUSED, ROWS, Shape, Table, WINDOWS};

/// Queries in one pipeline: enough to meet one another, few enough to start soon.
const SHAPES_AT_ONCE: usize = 14;

/// How often each query is asked.
const CASES: usize = 5;

fn cases() -> usize {
    let given = std::env::var("NEXUS_TEST_CASES").ok();
    given.map_or(CASES, |text| text.parse().expect("NEXUS_TEST_CASES is a number"))
}

/// Deals all shapes into groups, at random.
fn deal(random: &mut Random) -> Vec<Vec<Table>> {
    let mut deck: Vec<&Shape> = ROWS.iter().chain(WINDOWS).collect();
    for place in (1..deck.len()).rev() {
        deck.swap(place, below(random, place + 1));
    }
    let tables = |shapes: &[&Shape]| shapes.iter().flat_map(|shape| shape.0).copied().collect();
    deck.chunks(SHAPES_AT_ONCE).map(tables).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_equal_the_batch_answer_however_the_input_is_cut() {
    let mut random = Random::seeded();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in 0..cases() {
        for tables in deal(&mut random) {
            let streams = streams(&mut random);
            let plain: Vec<_> = tables.iter().map(|table| (*table, "")).collect();
            let trial = Trial::new(&mut random, &plain);
            let reports = trial.run(&mut random, &streams).await;
            let late: u64 = reports.iter().flat_map(|report| report.tables.values()).map(|table| table.counts.late).sum();
            assert_eq!(late, 0, "no row comes later than it may");
            let rows: Vec<_> = streams.iter().map(|stream| (stream.name, stream.rows.clone())).collect();
            for (name, wanted) in batch_answer(&rows, &tables).await {
                asked += 1;
                if let Some(difference) = difference(&trial.landed(&name), &wanted) {
                    wrong.push(format!("case {case}, {name}: {difference}"));
                }
            }
        }
    }
    println!("{asked} tables compared");
    assert!(wrong.is_empty(), "{} of {asked} tables are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn what_cannot_stream_is_refused_and_says_why() {
    let folder = tempfile::tempdir().expect("could not make a folder");
    std::fs::write(folder.path().join("sites.csv"), SITES_CSV).expect("could not write a file");
    std::fs::write(folder.path().join("nothing.csv"), NOTHING_CSV).expect("could not write a file");
    let mut wrong = Vec::new();
    for (sql, reason) in REFUSED {
        let told = refusal(folder.path(), sql).await;
        if !told.contains("N0702") || !told.contains(reason) {
            wrong.push(format!("{sql}\n  should be refused with `{reason}`, and: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Gives what is said of a table's query.
async fn refusal(folder: &Path, sql: &str) -> String {
    let at = folder.display();
    let file = format!(
        "name: refused\nlake: {at}/lake\n{SOURCES}reference:\n  \
         sites: {{ path: {at}/sites.csv, columns: {{ site: string, region: string, weight: int64 }} }}\n\
         gold:\n  t:\n    sql: |\n      {sql}\n"
    );
    let mut pipeline = Pipeline::parse(&file).unwrap_or_else(|e| panic!("{e}"));
    for stream in streams(&mut Random::seeded()) {
        let columns = stream.columns().iter().map(|field| field.as_ref().clone()).collect();
        let source = MemorySource::batches(Vec::new(), std::sync::Arc::new(nexus::operators::clock::SystemClock));
        let time = Some((stream.time, stream.lateness));
        pipeline = pipeline.with_rows(stream.name, columns, time, Box::new(source)).expect("the source fits");
    }
    match pipeline.plan().await {
        Ok(_) => "it is accepted".to_owned(),
        Err(wrong) => wrong.render(false),
    }
}
