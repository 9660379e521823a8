//! Queries with `tumble`, `hop`, `session` and `window_end`, and what to ask a batch engine that has none of them.

use super::shapes::Shape;

/// Queries over windows by name.
pub const FUNCTIONS: &[Shape] = &[
    Shape(&[(
        "gold",
        "tumbled",
        "SELECT tumble(ts, INTERVAL '20 minutes') AS w, window_end(tumble(ts, INTERVAL '20 minutes')) AS e, site,
                count(*) AS c, sum(n) AS s FROM events GROUP BY tumble(ts, INTERVAL '20 minutes'), site",
    )]),
    Shape(&[(
        "gold",
        "ends_of_days",
        "SELECT window_end(date_trunc('month', ts)) AS e, count(*) AS c FROM events GROUP BY date_trunc('month', ts)",
    )]),
    Shape(&[(
        "gold",
        "hopped",
        "SELECT hop(ts, INTERVAL '10 minutes', INTERVAL '25 minutes') AS w,
                window_end(hop(ts, INTERVAL '10 minutes', INTERVAL '25 minutes')) AS e, kind, count(*) AS c,
                avg(v) AS a, count(DISTINCT site) AS d
         FROM events GROUP BY hop(ts, INTERVAL '10 minutes', INTERVAL '25 minutes'), kind HAVING count(*) > 1",
    )]),
    Shape(&[(
        "gold",
        "hop_twice",
        "SELECT w, window_end(w) AS e, sum(n) AS s FROM (
             SELECT hop(ts, INTERVAL '1 day', INTERVAL '2 days') AS w, n FROM events WHERE v > 0) GROUP BY w",
    )]),
    Shape(&[(
        "gold",
        "hop_samples",
        "SELECT hop(ts, INTERVAL '10 minutes', INTERVAL '4 minutes') AS w, count(*) AS c
         FROM events GROUP BY 1",
    )]),
    Shape(&[("silver", "hop_rows", "SELECT id, hop(ts, INTERVAL '6 hours', INTERVAL '12 hours') AS w, v FROM events")]),
    Shape(&[
        (
            "gold",
            "sessions",
            "SELECT session(ts, INTERVAL '15 minutes') AS w, window_end(session(ts, INTERVAL '15 minutes')) AS e, site,
                    count(*) AS c, sum(n) AS s, count(DISTINCT kind) AS d, max(v) AS m
             FROM events WHERE ts IS NOT NULL GROUP BY session(ts, INTERVAL '15 minutes'), site",
        ),
        (
            "gold",
            "days_of_sessions",
            "SELECT date_bin(INTERVAL '1 day', w) AS day, count(*) AS sessions, sum(c) AS events FROM gold.sessions
             GROUP BY 1",
        ),
    ]),
    Shape(&[(
        "gold",
        "sessions_of_all",
        "SELECT session(t, INTERVAL '3 hours') AS w, count(*) AS c, avg(v) AS a FROM (
             SELECT ts AS t, v FROM events WHERE ts IS NOT NULL UNION ALL SELECT at, v FROM more) GROUP BY 1",
    )]),
    Shape(&[(
        "gold",
        "sessions_of_few",
        "SELECT site, session(ts, INTERVAL '40 days') AS w, array_agg(id) AS bag_ids FROM events WHERE ts IS NOT NULL
         GROUP BY 1, 2",
    )]),
];

/// Calls that mean nothing, and what is said of them.
pub const MISUSED: &[(&str, &str)] = &[
    ("SELECT session(ts, INTERVAL '1 hour') AS w FROM events", "session can stand in GROUP BY only"),
    ("SELECT session(ts, INTERVAL '1 month') AS w, count(*) AS c FROM events GROUP BY 1", "no months"),
    ("SELECT hop(ts, INTERVAL '1 month', INTERVAL '2 months') AS w, count(*) AS c FROM events GROUP BY 1", "no months"),
    (
        "SELECT hop(ts, INTERVAL '1 second', INTERVAL '1 day') AS w, count(*) AS c FROM events GROUP BY 1",
        "86400 windows",
    ),
    ("SELECT id FROM events WHERE hop(ts, INTERVAL '1 hour', INTERVAL '1 day') > '2024-01-01'", "hop can stand in"),
    ("SELECT window_end(ts) AS e FROM events", "window_end needs the window itself"),
    ("SELECT tumble(ts, 60) AS w, count(*) AS c FROM events GROUP BY 1", "INTERVAL '5 minutes'"),
];

/// What to ask a batch engine instead, by the table's name.
pub fn in_batch(table: &str, sql: &str) -> String {
    match table {
        "tumbled" => sql
            .replace(
                "window_end(tumble(ts, INTERVAL '20 minutes'))",
                "tumble(ts, INTERVAL '20 minutes') + INTERVAL '20 minutes'",
            )
            .replace("tumble(ts, INTERVAL '20 minutes')", "date_bin(INTERVAL '20 minutes', ts)"),
        "ends_of_days" => {
            sql.replace("window_end(date_trunc('month', ts))", "date_trunc('month', ts) + INTERVAL '1 month'")
        }
        "hopped" => {
            "SELECT w, w + INTERVAL '25 minutes' AS e, kind, count(*) AS c, avg(v) AS a, count(DISTINCT site) AS d
             FROM (SELECT *, date_bin(INTERVAL '10 minutes', ts) - back AS w FROM events CROSS JOIN (
                 VALUES (INTERVAL '0 minutes'), (INTERVAL '10 minutes'), (INTERVAL '20 minutes')) AS b(back))
             WHERE w + INTERVAL '25 minutes' > ts GROUP BY w, kind HAVING count(*) > 1"
                .to_owned()
        }
        "newest_of_sites" | "newest_by_number" => format!(
            "SELECT id, ts, site, kind, v, n FROM (SELECT *, row_number() OVER (PARTITION BY site, kind ORDER BY {} DESC, id) AS place
             FROM events WHERE site IS NOT NULL AND kind IS NOT NULL AND n IS NOT NULL) WHERE place = 1",
            if table == "newest_of_sites" { "ts" } else { "n" }
        ),
        "corrected_hops" => "SELECT w, count(*) AS c, min(id) AS first, avg(n) AS n
             FROM (SELECT *, date_bin(INTERVAL '20 minutes', ts) - back AS w FROM events CROSS JOIN (
                 VALUES (INTERVAL '0 minutes'), (INTERVAL '20 minutes'), (INTERVAL '40 minutes')) AS b(back))
             WHERE ts IS NOT NULL GROUP BY w"
            .to_owned(),
        "hop_twice" => "SELECT w, w + INTERVAL '2 days' AS e, sum(n) AS s FROM (
                 SELECT date_bin(INTERVAL '1 day', ts) - back AS w, n FROM events
                 CROSS JOIN (VALUES (INTERVAL '0 days'), (INTERVAL '1 day')) AS b(back)
                 WHERE v > 0 AND ts IS NOT NULL) GROUP BY w"
            .to_owned(),
        "hop_samples" => "SELECT date_bin(INTERVAL '10 minutes', ts) AS w, count(*) AS c FROM events
             WHERE ts < date_bin(INTERVAL '10 minutes', ts) + INTERVAL '4 minutes' GROUP BY 1"
            .to_owned(),
        "hop_rows" => "SELECT id, date_bin(INTERVAL '6 hours', ts) - back AS w, v FROM events
             CROSS JOIN (VALUES (INTERVAL '0 hours'), (INTERVAL '6 hours')) AS b(back) WHERE ts IS NOT NULL"
            .to_owned(),
        "sessions" => sessions(
            "events",
            "ts, site, n, kind, v",
            "PARTITION BY site",
            "15 minutes",
            "GROUP BY site, s",
            "min(ts) AS w, max(ts) + INTERVAL '15 minutes' AS e, site, count(*) AS c, sum(n) AS s, \
             count(DISTINCT kind) AS d, max(v) AS m",
        ),
        "sessions_of_all" => sessions(
            "(SELECT ts, v FROM events UNION ALL SELECT at, v FROM more)",
            "ts, v",
            "",
            "3 hours",
            "GROUP BY s",
            "min(ts) AS w, count(*) AS c, avg(v) AS a",
        ),
        "sessions_of_few" => sessions(
            "events",
            "ts, site, id",
            "PARTITION BY site",
            "40 days",
            "GROUP BY site, s",
            "site, min(ts) AS w, array_agg(id) AS bag_ids",
        ),
        _ => sql.to_owned(),
    }
}

/// Numbers the sessions of rows, and aggregates over them.
fn sessions(from: &str, columns: &str, keys: &str, gap: &str, group: &str, select: &str) -> String {
    format!(
        "WITH marked AS (
             SELECT {columns}, CASE WHEN lag(ts) OVER ({keys} ORDER BY ts) + INTERVAL '{gap}' > ts THEN 0 ELSE 1 END AS fresh
             FROM {from} WHERE ts IS NOT NULL),
         numbered AS (
             SELECT {columns}, sum(fresh) OVER ({keys} ORDER BY ts ROWS UNBOUNDED PRECEDING) AS s FROM marked)
         SELECT {select} FROM numbered {group}"
    )
}
