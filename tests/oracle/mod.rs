//! The rule that everything rests on: for any cut of the input into batches
//! and epochs, and for any stop or crash in between, each table after the end
//! of input equals what DataFusion answers to the same SQL over the same rows.
//!
//! NEXUS_TEST_SEED gives the same input and cuts again, NEXUS_TEST_CASES asks
//! for more of them.

mod compare;
mod data;
mod functions;
mod joins;
mod run;
mod shapes;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::{cast, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::catalog::MemTable;
use datafusion::prelude::SessionContext;
use nexus::Pipeline;
use nexus::operators::source::memory::MemorySource;

use crate::world::{Random, table_files};
use compare::difference;
use data::{NOTHING_CSV, SITES_CSV, Stream, below, streams};
use functions::{FUNCTIONS, MISUSED};
use joins::{JOINS, REFUSED_JOINS};
use run::{SOURCES, Trial, batch_answer, stored};
use shapes::{REFUSED, ROWS, Shape, Table, WINDOWS};

/// Queries in one pipeline: enough to meet one another, few enough to start soon.
const SHAPES_AT_ONCE: usize = 14;

/// How often each query is asked.
const CASES: usize = 8;

fn cases() -> usize {
    let given = std::env::var("NEXUS_TEST_CASES").ok();
    given.map_or(CASES, |text| text.parse().expect("NEXUS_TEST_CASES is a number"))
}

/// Deals all shapes into groups, at random.
fn deal(random: &mut Random) -> Vec<Vec<Table>> {
    let mut deck: Vec<&Shape> = ROWS.iter().chain(WINDOWS).chain(FUNCTIONS).chain(JOINS).collect();
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
            let late: u64 =
                reports.iter().flat_map(|report| report.tables.values()).map(|table| table.counts.late).sum();
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

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_are_quarantined_and_the_others_answered() {
    const HOURS: Table = (
        "gold",
        "hours",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c, sum(v) AS s FROM events GROUP BY 1, 2",
    );
    let over_events = ["hopped", "hop_twice", "sessions", "sessions_of_few"];
    let one = |table: &Table| over_events.contains(&table.1) || table.1.contains("itself") || table.1.contains("met_");
    let functions = FUNCTIONS.iter().chain(JOINS).map(|shape| shape.0[0]).filter(one);
    let tables: Vec<Table> = functions.chain([HOURS]).collect();
    let mut random = Random::seeded();
    let mut late = 0;
    for _ in 0..8 * cases() {
        let mut streams = streams(&mut random);
        streams.iter_mut().for_each(|stream| stream.lateness /= 10);
        let table = tables[below(&mut random, tables.len())];
        let trial = Trial::new(&mut random, &[(table, "")]);
        trial.run(&mut random, &streams).await;
        let quarantine = stored(&trial.lake().join(format!("_quarantine/{}.{}", table.0, table.1))).await;
        let mut accepted = Vec::new();
        let mut late_here = 0;
        for stream in &streams {
            let ids = quarantined_ids(&quarantine, Some(stream.time));
            late_here += ids.len();
            accepted.push((stream.name, without(&stream.rows, &ids)));
        }
        assert_eq!(quarantine.iter().map(RecordBatch::num_rows).sum::<usize>(), late_here, "each late row once");
        late += late_here;
        for (name, wanted) in batch_answer(&accepted, &[table]).await {
            assert_eq!(difference(&trial.landed(&name), &wanted), None, "{name} with {late_here} late rows");
        }
    }
    assert!(late > 0, "no row was late: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_and_rules_mean_the_same_over_restarts() {
    const ONCE: Table = ("silver", "once", "SELECT id, ts, site, v, n FROM events");
    const KEPT: Table = ("silver", "once", "SELECT id, ts, site, v, n FROM events WHERE v > -20 AND n < 9");
    const HOURS: Table = (
        "gold",
        "once_hours",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c, sum(v) AS s FROM silver.once GROUP BY 1",
    );
    let mut random = Random::seeded();
    let (mut repeated, mut broken) = (0, 0);
    for _ in 0..4 * cases() {
        let [mut events, _] = streams(&mut random);
        let original = events.rows.clone();
        let within_ms = repeat_some(&mut random, &mut events);
        repeated += events.rows.num_rows() - original.num_rows();
        let options = format!(
            "\n    unique: {{ key: [id], within: {within_ms}ms }}\n    expect:\n      \
             warm: {{ that: v > -20, else: drop }}\n      low: {{ that: n < 9, else: quarantine }}"
        );
        let trial = Trial::new(&mut random, &[(ONCE, options.as_str()), (HOURS, "")]);
        trial.run(&mut random, &[events]).await;
        broken += quarantined_ids(&stored(&trial.lake().join("_quarantine/silver.once")).await, None).len();
        for (name, wanted) in batch_answer(&[("events", original.clone())], &[KEPT, HOURS]).await {
            assert_eq!(difference(&trial.landed(&name), &wanted), None, "{name} with keys kept for {within_ms} ms");
        }
    }
    assert!(repeated > 0 && broken > 0, "{repeated} repeated, {broken} broken: the test shows nothing");
}

/// Windows that late rows correct, with their keys.
const CORRECTED: &[(Table, &str)] = &[
    (
        (
            "gold",
            "corrected_hours",
            "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c, sum(v) AS s, count(DISTINCT kind) AS k,
                    sum(n) FILTER (WHERE ok) AS n FROM events WHERE ts IS NOT NULL AND site IS NOT NULL GROUP BY 1, 2",
        ),
        "w, site",
    ),
    (
        (
            "gold",
            "corrected_hops",
            "SELECT hop(ts, INTERVAL '20 minutes', INTERVAL '1 hour') AS w, count(*) AS c, min(id) AS first, avg(n) AS n
             FROM events WHERE ts IS NOT NULL GROUP BY 1",
        ),
        "w",
    ),
    (
        (
            "gold",
            "corrected_months",
            "SELECT kind, date_trunc('month', ts) AS w, max(id) AS last, count(*) AS c FROM events
             WHERE ts IS NOT NULL AND kind IS NOT NULL GROUP BY 1, 2",
        ),
        "kind, w",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_correct_their_windows_until_these_are_forgotten() {
    let mut random = Random::seeded();
    let (mut late, mut correcting) = (0, 0);
    for case in 0..3 * cases() {
        let [mut events, _] = streams(&mut random);
        events.lateness /= 10;
        let (table, keys) = CORRECTED[case % CORRECTED.len()];
        // Each of them: where nothing is ever forgotten, nothing is late.
        let within = ["1ms", "2h", "3d", "3000d"][case % 4];
        let options = format!(
            "\n    late: {{ update: {{ within: {within} }} }}\n    postgres: {{ url: pg, table: corrected, key: [{keys}] }}"
        );
        let server = crate::servers::postgres::shared();
        let url = crate::servers::postgres::url(server.port, &server.database());
        let trial = Trial::new(&mut random, &[(table, options.as_str())]).with_postgres(&url);
        let streams = [events];
        for report in trial.run(&mut random, &streams).await {
            correcting += report.tables.values().map(|table| table.counts.correcting).sum::<u64>();
        }
        let quarantine = stored(&trial.lake().join(format!("_quarantine/{}.{}", table.0, table.1))).await;
        let ids = quarantined_ids(&quarantine, None);
        late += ids.len();
        let accepted = without(&streams[0].rows, &ids);
        for (name, wanted) in batch_answer(&[("events", accepted)], &[table]).await {
            let newest = newest(trial.landed(&name), keys).await;
            assert_eq!(difference(&newest, &wanted), None, "{name}, {} late rows, within {within}", ids.len());
            let rows: i64 = wanted.iter().map(|batch| batch.num_rows() as i64).sum();
            let found = crate::servers::postgres::ask(&url, "SELECT count(*), count(DISTINCT c) FROM corrected");
            assert_eq!(found[0][0], serde_json::json!(rows), "{name}: windows in Postgres");
        }
    }
    assert!(late > 0 && correcting > 0, "{late} late, {correcting} correcting: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_row_of_each_key_is_kept() {
    const SQL: &str = "SELECT id, ts, site, kind, v, n FROM events
        WHERE site IS NOT NULL AND kind IS NOT NULL AND n IS NOT NULL";
    let mut random = Random::seeded();
    let (mut quarantined, mut older) = (0, 0);
    for case in 0..3 * cases() {
        let [mut events, _] = streams(&mut random);
        events.lateness /= 10;
        let (name, order) = [("newest_of_sites", ""), ("newest_by_number", ", order_by: n")][case % 2];
        // By another column than the time, what is forgotten might have been the newest.
        let within = if case % 2 == 0 { ["1ms", "2h", "3d"][below(&mut random, 3)] } else { "90000d" };
        let options = format!(
            "\n    unique: {{ key: [kind, site], within: {within}, keep: newest{order} }}\n    expect: {{ warm: {{ that: \
             v > -20 }} }}\n    postgres: {{ url: pg, table: newest, key: [site, kind] }}"
        );
        let server = crate::servers::postgres::shared();
        let url = crate::servers::postgres::url(server.port, &server.database());
        let table = ("silver", name, SQL);
        let trial = Trial::new(&mut random, &[(table, options.as_str())]).with_postgres(&url);
        let streams = [events];
        for report in trial.run(&mut random, &streams).await {
            older += report.tables.values().map(|table| table.counts.duplicates).sum::<u64>();
        }
        let ids = quarantined_ids(&stored(&trial.lake().join(format!("_quarantine/silver.{name}"))).await, None);
        quarantined += ids.len();
        let accepted = without(&streams[0].rows, &ids);
        for (name, wanted) in batch_answer(&[("events", accepted)], &[table]).await {
            let newest = newest(trial.landed(&name), "kind, site").await;
            assert_eq!(difference(&newest, &wanted), None, "{name}, {} quarantined, within {within}", ids.len());
            let sum = "SELECT count(*), coalesce(sum(id), 0)::bigint FROM newest";
            let ids = wanted.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
            let ids: Vec<i64> = ids.collect();
            let found = crate::servers::postgres::ask(&url, sum);
            assert_eq!(found, [serde_json::json!([ids.len(), ids.iter().sum::<i64>()])], "{name} in Postgres");
        }
    }
    assert!(quarantined > 0 && older > 0, "{quarantined} quarantined, {older} older: the test shows nothing");
}

/// Gives the newest row of each key.
async fn newest(changes: Vec<RecordBatch>, keys: &str) -> Vec<RecordBatch> {
    let Some(first) = changes.first() else { return Vec::new() };
    let schema = first.schema();
    let columns = schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != "_sequence");
    let columns = columns.collect::<Vec<_>>().join(", ");
    let session = SessionContext::new();
    let table = MemTable::try_new(first.schema(), vec![changes]).expect("the columns fit");
    session.register_table("changes", Arc::new(table)).expect("the name is free");
    let sql = format!(
        "SELECT {columns} FROM (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY _sequence DESC) AS place \
         FROM changes) WHERE place = 1"
    );
    session.sql(&sql).await.expect("it is a query").collect().await.expect("the rows are there")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_sent_again_are_where_they_would_have_been() {
    const ONCE: Table = ("silver", "once", "SELECT id, ts, site, v, n FROM events");
    let mut random = Random::seeded();
    let mut sent = 0;
    for _ in 0..2 * cases() {
        let [mut events, _] = streams(&mut random);
        let original = events.rows.clone();
        let within_ms = repeat_some(&mut random, &mut events);
        let options = format!(
            "\n    unique: {{ key: [id], within: {within_ms}ms }}\n    expect:\n      \
             low: {{ that: n < 5 AND v > -20, else: quarantine }}"
        );
        let trial = Trial::new(&mut random, &[(ONCE, options.as_str())]);
        let streams = [events];
        trial.run(&mut random, &streams).await;
        let quarantine = trial.lake().join("_quarantine/silver.once");
        sent += quarantined_ids(&stored(&quarantine).await, None).len();
        trial.redrive(&mut random, &streams, ("n < 5 AND v > -20", "id >= 0")).await;
        assert_eq!(table_files(&quarantine, ""), 0, "files of the quarantine are left");
        for (name, wanted) in batch_answer(&[("events", original.clone())], &[ONCE]).await {
            assert_eq!(difference(&trial.landed(&name), &wanted), None, "{name} with keys kept for {within_ms} ms");
        }
    }
    assert!(sent > 0, "no row was in the quarantine: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_out_of_a_join_again_is_known_as_long_as_it_can() {
    const MET: Table = (
        "silver",
        "met",
        "SELECT e.id, e.ts FROM events e JOIN more m ON e.site = m.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '5 hours'",
    );
    const ONCE: Table = (
        "silver",
        "met",
        "SELECT DISTINCT e.id, e.ts FROM events e JOIN more m ON e.site = m.site AND m.at BETWEEN e.ts AND e.ts + \
         INTERVAL '5 hours'",
    );
    let mut random = Random::seeded();
    let mut repeated = 0;
    for _ in 0..4 * cases() {
        let streams = streams(&mut random);
        let trial = Trial::new(&mut random, &[(MET, "\n    unique: { key: [id], within: 1ms }")]);
        let reports = trial.run(&mut random, &streams).await;
        repeated += reports.iter().map(|report| report.tables["silver.met"].counts.duplicates).sum::<u64>();
        let rows: Vec<_> = streams.iter().map(|stream| (stream.name, stream.rows.clone())).collect();
        for (name, wanted) in batch_answer(&rows, &[ONCE]).await {
            assert_eq!(difference(&trial.landed(&name), &wanted), None);
        }
    }
    assert!(repeated > 0, "no row came again: the test shows nothing");
}

/// Sends some rows again, a few rows behind; gives for how many milliseconds of event time a key has to be known.
fn repeat_some(random: &mut Random, stream: &mut Stream) -> i64 {
    let times: &TimestampMicrosecondArray = stream.rows.column(1).as_primitive();
    let rows = stream.rows.num_rows();
    let mut order: Vec<usize> = Vec::new();
    let mut behind: Vec<usize> = Vec::new();
    for row in 0..rows {
        order.push(row);
        if times.is_valid(row) && below(random, 4) == 0 {
            behind.push(row);
        }
        if below(random, 3) == 0 {
            order.append(&mut behind);
        }
    }
    let (mut newest_us, mut longest_us) = (i64::MIN, 0);
    for row in order.iter().copied().filter(|row| times.is_valid(*row)) {
        newest_us = newest_us.max(times.value(row));
        longest_us = longest_us.max(newest_us - times.value(row));
    }
    let order = UInt64Array::from_iter_values(order.into_iter().map(|row| row as u64));
    stream.rows = take_record_batch(&stream.rows, &order).expect("the rows are there");
    longest_us / 1000 + 1
}

/// Gives the identifiers of quarantined rows, of those with a column only.
fn quarantined_ids(quarantine: &[RecordBatch], with: Option<&str>) -> BTreeSet<i64> {
    let mut ids = BTreeSet::new();
    for batch in quarantine {
        let raw = batch.column_by_name("raw").expect("a quarantine has the raw row");
        let raw = cast(raw, &DataType::Binary).expect("it is bytes");
        for document in raw.as_binary::<i32>().iter().flatten() {
            let row: serde_json::Value = serde_json::from_slice(document).expect("a row is JSON");
            if with.is_none_or(|column| row.get(column).is_some()) {
                ids.insert(row["id"].as_i64().expect("each row has an identifier"));
            }
        }
    }
    ids
}

fn without(rows: &RecordBatch, ids: &BTreeSet<i64>) -> RecordBatch {
    let id: &Int64Array = rows.column(0).as_primitive();
    let kept: BooleanArray = id.iter().map(|id| Some(id.is_none_or(|id| !ids.contains(&id)))).collect();
    filter_record_batch(rows, &kept).expect("the rows are there")
}

#[tokio::test]
async fn what_cannot_stream_is_refused_and_says_why() {
    let folder = tempfile::tempdir().expect("could not make a folder");
    std::fs::write(folder.path().join("sites.csv"), SITES_CSV).expect("could not write a file");
    std::fs::write(folder.path().join("nothing.csv"), NOTHING_CSV).expect("could not write a file");
    let mut wrong = Vec::new();
    let refused = REFUSED.iter().chain(REFUSED_JOINS).map(|refused| (refused, "N0702"));
    for ((sql, reason), code) in refused.chain(MISUSED.iter().map(|misused| (misused, "N0701"))) {
        let told = refusal(folder.path(), sql).await;
        if !told.contains(code) || !told.contains(reason) {
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
