use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use nexus_operators::batch::timestamp_type;
use nexus_operators::transform::window::Width;

use super::*;
use crate::plan::session::{Functions, runtime, state};

const HOUR_US: i64 = 3_600_000_000;

/// Analyses a query over the streams `a` (ts, id, k, tags) and `b` (at, id, k), and the reference table `r` (k, at).
async fn shape(sql: &str) -> Result<Shape, Unfit> {
    let session = SessionContext::new_with_state(state(runtime(1 << 24).unwrap(), &Functions::default()).unwrap());
    let times = |name| Field::new(name, timestamp_type(), true);
    let tags = Field::new_list("tags", Field::new_list_field(DataType::Utf8, true), true);
    let plain = Field::new("plain", DataType::Timestamp(TimeUnit::Microsecond, None), true);
    let number = |name| Field::new(name, DataType::Int64, true);
    for (table, fields) in [
        ("a", vec![times("ts"), number("id"), number("k"), tags, plain]),
        ("b", vec![times("at"), number("id"), number("k")]),
        ("r", vec![number("k"), times("at")]),
    ] {
        let rows = MemTable::try_new(Arc::new(Schema::new(fields)), vec![vec![]]).unwrap();
        session.register_table(table, Arc::new(rows)).unwrap();
    }
    let state = session.state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    let times = [("a".to_owned(), Some("ts".to_owned())), ("b".to_owned(), Some("at".to_owned()))];
    analyze(&state.optimize(&plan).unwrap(), &EventTimes::from(times))
}

async fn extent(key: &str) -> Option<Extent> {
    let shape = shape(&format!("SELECT count(*) AS c, {key} AS w FROM a GROUP BY w")).await.ok()?;
    shape.window.map(|window| window.extent)
}

#[tokio::test]
async fn windows_are_as_wide_as_they_say_or_wider() {
    for (key, wide) in [
        ("date_bin(INTERVAL '1 hour', ts)", Width::Micros(HOUR_US)),
        ("date_bin(INTERVAL '90 minutes', ts, TIMESTAMP '2024-01-31T00:00:00Z')", Width::Micros(HOUR_US * 3 / 2)),
        ("date_bin(INTERVAL '2 months', ts, TIMESTAMP '2024-01-28T00:00:00Z')", Width::Months(2)),
        ("date_trunc('week', ts)", Width::Micros(7 * 24 * HOUR_US)),
        ("date_trunc('QUARTER', ts)", Width::Months(3)),
        ("date_trunc('day', CAST(ts AS TIMESTAMP))", Width::Micros(24 * HOUR_US)),
        ("CAST(ts AS DATE)", Width::Micros(24 * HOUR_US)),
        ("CAST(date_trunc('month', ts) AS DATE)", Width::Months(1)),
        ("ts", Width::Micros(1)),
        ("date_trunc('minute', ts AT TIME ZONE 'Asia/Kolkata')", Width::Micros(HOUR_US / 60)),
        ("date_trunc('day', ts AT TIME ZONE 'America/New_York')", Width::Micros(27 * HOUR_US)),
        ("date_trunc('month', ts AT TIME ZONE 'Asia/Tokyo')", Width::Micros((31 * 24 + 3) * HOUR_US)),
    ] {
        assert_eq!(extent(key).await, Some(Extent::Width(wide)), "{key}");
    }
}

#[tokio::test]
async fn what_is_no_window_of_event_time_is_none() {
    for key in [
        "plain",
        "CAST(ts AS TIME)",
        "CAST(date_bin(INTERVAL '1 hour', ts) AS DATE)",
        "date_bin(INTERVAL '1 hour', CAST(ts AS DATE))",
        "date_trunc('hour', CAST(ts AS TIMESTAMP) AT TIME ZONE 'Asia/Tokyo')",
        "CAST(ts AT TIME ZONE 'Asia/Tokyo' AS DATE)",
        "date_trunc('hour', ts + INTERVAL '1 day')",
        "date_bin(INTERVAL '1 month', ts, TIMESTAMP '2024-01-29T00:00:00Z')",
        "date_part('hour', ts)",
        "id",
    ] {
        assert_eq!(extent(key).await, None, "{key}");
    }
}

#[tokio::test]
async fn event_time_passes_through_what_keeps_it() {
    for (sql, time) in [
        ("SELECT id, ts FROM a", Some(1)),
        ("SELECT CAST(ts AS DATE) AS day, ts AT TIME ZONE 'Asia/Tokyo' AS there FROM a", Some(1)),
        ("SELECT CAST(ts AS DATE) AS day FROM a", None),
        ("SELECT ts + INTERVAL '1 hour' AS later FROM a", None),
        ("SELECT ts AS t, id FROM a UNION ALL SELECT at, id FROM b", Some(0)),
        ("SELECT ts AS t, id FROM a UNION ALL SELECT now(), id FROM b", None),
        ("SELECT unnest(tags) AS tag, ts FROM a", Some(1)),
        ("SELECT r.at, a.ts FROM a JOIN r ON a.k = r.k", Some(1)),
        ("SELECT r.at FROM a LEFT JOIN r ON a.k = r.k", None),
        ("SELECT count(*) AS c, date_bin(INTERVAL '1 hour', ts) AS w FROM a GROUP BY w", Some(1)),
        ("SELECT CAST(date_trunc('day', ts) AS DATE) AS w, count(*) AS c FROM a GROUP BY 1", None),
        ("SELECT w + INTERVAL '1 hour' AS e FROM (SELECT ts AS w, count(*) AS c FROM a GROUP BY 1)", None),
        (
            "SELECT r.at, h.w FROM (SELECT ts AS w, k, count(*) AS c FROM a GROUP BY 1, 2) h JOIN r ON h.k = r.k",
            Some(1),
        ),
    ] {
        assert_eq!(shape(sql).await.unwrap().event_time, time, "{sql}");
    }
}

#[tokio::test]
async fn each_stream_of_a_union_has_its_own_start() {
    let sql = "SELECT date_bin(INTERVAL '1 hour', t) AS w, count(*) AS c
               FROM (SELECT ts AS t FROM a UNION ALL SELECT at FROM b) GROUP BY 1";
    let window = shape(sql).await.unwrap().window.unwrap();
    let starts: Vec<_> = window.starts.iter().map(|(stream, start)| (stream.as_str(), start.to_string())).collect();
    assert_eq!(starts.len(), 2);
    assert!(starts[0].0 == "a" && starts[0].1.contains("ts"), "{starts:?}");
    assert!(starts[1].0 == "b" && starts[1].1.contains("at"), "{starts:?}");
}

#[tokio::test]
async fn a_reference_table_alone_is_no_stream() {
    let found =
        shape("SELECT a.id FROM a JOIN (SELECT k, count(*) AS c FROM r GROUP BY k ORDER BY c LIMIT 3) r USING (k)");
    assert!(found.await.unwrap().window.is_none());
}

/// Gives for how long rows of the left and of the right are kept, in microseconds.
async fn kept(join: &str, condition: &str) -> [i64; 2] {
    let found = shape(&format!("SELECT a.id, b.id AS other FROM a {join} b ON a.k = b.k AND {condition}")).await;
    match found.unwrap_or_else(|unfit| panic!("{condition}: {unfit:?}")).join {
        Some(JoinShape::Bounded { until: [left, right], .. }) => [left.reach_us, right.reach_us],
        other => panic!("{condition}: {other:?}"),
    }
}

#[tokio::test]
async fn bounds_of_joins_are_found_however_they_are_written() {
    const DAY_US: i64 = 24 * HOUR_US;
    for (condition, expected) in [
        ("b.at BETWEEN a.ts AND a.ts + INTERVAL '1 hour'", [HOUR_US, 0]),
        ("a.ts >= b.at - INTERVAL '1 hour' AND a.ts <= b.at", [HOUR_US, 0]),
        ("a.ts > b.at AND b.at > a.ts - INTERVAL '2 hours'", [0, 2 * HOUR_US]),
        ("b.at - INTERVAL '30 minutes' BETWEEN a.ts - INTERVAL '1 hour' AND a.ts", [HOUR_US / 2, HOUR_US / 2]),
        ("b.at < a.ts + INTERVAL '1 day' AND b.at < a.ts + INTERVAL '2 days' AND b.at >= a.ts", [DAY_US, 0]),
        ("b.at >= a.ts + INTERVAL '1 hour' AND b.at <= a.ts + INTERVAL '3 hours'", [3 * HOUR_US, -HOUR_US]),
        ("b.at - a.ts BETWEEN INTERVAL '-1 hours' AND INTERVAL '90 minutes'", [HOUR_US * 3 / 2, HOUR_US]),
        ("a.ts - b.at > INTERVAL '0 hours' AND INTERVAL '2 hours' >= a.ts - b.at", [0, 2 * HOUR_US]),
        ("a.ts = b.at", [0, 0]),
        ("a.ts AT TIME ZONE 'Asia/Tokyo' = b.at", [0, 0]),
        ("b.at <= a.ts + INTERVAL '1 month' AND b.at >= a.ts - INTERVAL '1 month'", [31 * DAY_US, 31 * DAY_US]),
        ("date_bin(INTERVAL '1 hour', a.ts) = date_bin(INTERVAL '1 hour', b.at)", [2 * HOUR_US - 2, 2 * HOUR_US - 2]),
        ("date_bin(INTERVAL '1 hour', a.ts) = date_bin(INTERVAL '1 hour', b.at) AND a.ts = b.at", [0, 0]),
        ("CAST(a.ts AS DATE) = CAST(b.at AS DATE) AND b.id > a.id", [2 * DAY_US - 2, 2 * DAY_US - 2]),
    ] {
        assert_eq!(kept("JOIN", condition).await, expected, "{condition}");
    }
    let later = "b.at BETWEEN a.ts AND a.ts + INTERVAL '1 hour'";
    assert_eq!(kept("LEFT JOIN", later).await, [HOUR_US, 0]);
    assert_eq!(kept("RIGHT JOIN", later).await, [0, HOUR_US], "the right stands for the left");
}

#[tokio::test]
async fn a_joins_time_is_behind_by_what_its_rows_wait_for() {
    let later = "a.k = b.k AND b.at BETWEEN a.ts AND a.ts + INTERVAL '1 hour'";
    for (select, join, time, behind) in [
        ("a.ts, b.at", "JOIN", Some(0), HOUR_US),
        ("b.at, a.ts", "JOIN", Some(0), 0),
        ("b.at, a.ts", "LEFT JOIN", Some(1), HOUR_US),
        ("a.ts, b.at", "RIGHT JOIN", Some(1), 0),
        ("a.id, b.at", "LEFT JOIN", None, 0),
        ("a.ts", "LEFT ANTI JOIN", Some(0), HOUR_US),
    ] {
        let found = shape(&format!("SELECT {select} FROM a {join} b ON {later}")).await.unwrap();
        let Some(JoinShape::Bounded { behind_us, .. }) = found.join else { panic!("{found:?}") };
        assert_eq!((found.event_time, behind_us), (time, behind), "{select} {join}");
    }
}

#[tokio::test]
async fn rows_that_would_come_again_are_refused() {
    for (sql, why) in [
        ("SELECT k FROM a UNION ALL SELECT k FROM r", "from no stream"),
        ("SELECT k FROM a UNION ALL VALUES (1)", "from no stream"),
        ("SELECT a.id, r.k FROM a FULL JOIN r ON a.k = r.k", "keeps the rows of a reference table"),
        ("SELECT ts, count(*) AS c FROM a GROUP BY 1 UNION ALL SELECT at, id FROM b", "an aggregate with other rows"),
        ("SELECT a.id FROM a JOIN b ON a.k = b.k", "a join of two streams"),
    ] {
        let unfit = shape(sql).await.unwrap_err();
        assert!(unfit.message.contains(why), "{sql}: {unfit:?}");
        assert!(!unfit.hint.is_empty());
    }
}
