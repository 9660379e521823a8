//! Joins of two streams, and what to ask a batch engine that has no as-of join.

use super::shapes::Shape;

/// Joins of streams within a bound of their times, and with the newest row.
pub const JOINS: &[Shape] = &[
    Shape(&[(
        "silver",
        "met_within",
        "SELECT e.id, m.id AS mid, e.ts, m.at, e.v + m.v AS s FROM events e
         JOIN more m ON e.site = m.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '2 hours'",
    )]),
    Shape(&[(
        "silver",
        "met_in_where",
        "SELECT m.id AS mid, m.at, e.id FROM events e, more m WHERE e.site = m.site
         AND e.ts >= m.at - INTERVAL '10 minutes' AND e.ts < m.at + INTERVAL '1 day' AND e.v > m.v",
    )]),
    Shape(&[(
        "silver",
        "met_without_key",
        "SELECT e.id, m.id AS mid FROM events e JOIN more m
         ON m.at >= e.ts - INTERVAL '20 seconds' AND m.at - INTERVAL '1 minute' <= e.ts",
    )]),
    Shape(&[(
        "silver",
        "met_itself",
        "SELECT e.id, o.id AS oid, e.ts, o.ts AS later FROM events e JOIN events o
         ON e.site = o.site AND e.kind = o.kind AND o.ts > e.ts AND o.ts <= e.ts + INTERVAL '6 hours'",
    )]),
    Shape(&[(
        "silver",
        "met_at_once",
        "SELECT e.id, o.id AS oid FROM events e JOIN events o ON e.ts = o.ts AND e.id < o.id AND e.n IS DISTINCT FROM o.n",
    )]),
    Shape(&[(
        "silver",
        "met_before",
        "SELECT e.id, m.id AS mid, e.ts FROM events e JOIN more m USING (site)
         WHERE m.at BETWEEN e.ts - INTERVAL '2 days' AND e.ts - INTERVAL '1 hour' AND e.ts < now()",
    )]),
    Shape(&[(
        "silver",
        "met_in_month",
        "SELECT e.id, m.id AS mid FROM events e JOIN more m ON e.n = m.n AND e.site = m.site
         AND m.at > e.ts AND m.at < e.ts + INTERVAL '1 month'",
    )]),
    Shape(&[(
        "silver",
        "met_in_hour",
        "SELECT e.id, m.id AS mid, e.ts FROM events e JOIN more m
         ON date_bin(INTERVAL '1 hour', e.ts) = date_bin(INTERVAL '1 hour', m.at) AND e.site = m.site",
    )]),
    Shape(&[(
        "silver",
        "met_apart",
        "SELECT e.id, m.id AS mid FROM events e JOIN more m
         ON e.site = m.site AND m.at - e.ts >= INTERVAL '5 minutes' AND m.at - e.ts < INTERVAL '3 hours'",
    )]),
    Shape(&[(
        "silver",
        "met_or_alone",
        "SELECT e.id, e.ts, m.id AS mid, m.v FROM events e LEFT JOIN more m
         ON e.site = m.site AND m.at BETWEEN e.ts - INTERVAL '1 hour' AND e.ts + INTERVAL '1 hour' AND m.v < e.v",
    )]),
    Shape(&[(
        "silver",
        "met_long_after_or_alone",
        "SELECT e.id, e.ts, m.id AS mid FROM events e LEFT JOIN more m
         ON e.site = m.site AND m.at BETWEEN e.ts - INTERVAL '2 days' AND e.ts - INTERVAL '3 hours'",
    )]),
    Shape(&[(
        "silver",
        "met_or_right_alone",
        "SELECT m.id AS mid, e.id, m.at, e.kind FROM events e RIGHT JOIN more m
         ON e.site = m.site AND m.at >= e.ts AND m.at < e.ts + INTERVAL '5 minutes'",
    )]),
    Shape(&[(
        "silver",
        "met_or_each_alone",
        "SELECT e.id, m.id AS mid, e.site, m.site AS msite FROM events e FULL JOIN more m
         ON e.n = m.n AND m.at >= e.ts AND m.at < e.ts + INTERVAL '1 day'",
    )]),
    Shape(&[(
        "silver",
        "followed",
        "SELECT id, ts, site FROM events e WHERE EXISTS (
             SELECT 1 FROM more m WHERE m.site = e.site AND m.at > e.ts AND m.at <= e.ts + INTERVAL '1 hour')",
    )]),
    Shape(&[(
        "silver",
        "followed_in",
        "SELECT id, v FROM events e WHERE e.site IN (
             SELECT m.site FROM more m WHERE m.v > 0 AND m.at BETWEEN e.ts AND e.ts + INTERVAL '2 days')",
    )]),
    Shape(&[(
        "silver",
        "followed_semi",
        "SELECT e.id, e.ts FROM events e LEFT SEMI JOIN events o
         ON e.site = o.site AND o.ts > e.ts AND o.ts < e.ts + INTERVAL '15 minutes'",
    )]),
    Shape(&[(
        "silver",
        "followed_right_semi",
        "SELECT m.id, m.at FROM events e RIGHT SEMI JOIN more m
         ON e.site = m.site AND e.ts BETWEEN m.at - INTERVAL '3 hours' AND m.at",
    )]),
    Shape(&[(
        "silver",
        "not_followed",
        "SELECT id, ts, site FROM events e WHERE v IS NOT NULL AND NOT EXISTS (
             SELECT 1 FROM more m WHERE m.site = e.site AND m.at > e.ts AND m.at <= e.ts + INTERVAL '1 hour')",
    )]),
    Shape(&[(
        "silver",
        "not_followed_anti",
        "SELECT e.id FROM events e LEFT ANTI JOIN events o
         ON e.kind = o.kind AND o.ts > e.ts AND o.ts < e.ts + INTERVAL '1 minute'",
    )]),
    Shape(&[(
        "silver",
        "without_other",
        "SELECT e.id, e.ts FROM events e LEFT JOIN more m
         ON m.site = e.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '7 days' WHERE m.id IS NULL",
    )]),
    Shape(&[(
        "gold",
        "met_of_regions",
        "SELECT e.id, m.id AS mid, s.region, t.weight FROM events e JOIN sites s ON s.site = e.site
         JOIN more m ON m.site = e.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '4 hours'
         LEFT JOIN sites t ON t.site = m.site AND t.weight > 1",
    )]),
    Shape(&[(
        "gold",
        "met_of_all",
        "SELECT e.id, a.id AS aid, a.t FROM events e JOIN (
             SELECT id, at AS t, site FROM more WHERE v > 0 UNION ALL SELECT id, ts, site FROM events WHERE n > 4) a
         ON a.site = e.site AND a.t >= e.ts AND a.t < e.ts + INTERVAL '40 minutes'",
    )]),
    Shape(&[
        ("gold", "hours_of_events", "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM events GROUP BY 1, 2"),
        ("gold", "hours_of_more", "SELECT date_bin(INTERVAL '1 hour', at) AS w, site, sum(v) AS s FROM more GROUP BY 1, 2"),
        (
            "vibranium",
            "hours_of_both",
            "SELECT e.w, e.site, e.c, m.s FROM gold.hours_of_events e JOIN gold.hours_of_more m
             ON e.w = m.w AND e.site = m.site",
        ),
        (
            "vibranium",
            "hours_of_events_at_least",
            "SELECT e.w, e.site, e.c, m.s FROM gold.hours_of_events e LEFT JOIN gold.hours_of_more m
             ON m.w = e.w AND e.site = m.site",
        ),
        (
            "vibranium",
            "days_of_both",
            "SELECT date_bin(INTERVAL '1 day', w) AS day, sum(c) AS c, sum(s) AS s FROM vibranium.hours_of_both GROUP BY 1",
        ),
    ]),
    Shape(&[
        (
            "silver",
            "answered",
            "SELECT e.id, e.ts, m.at, m.v FROM events e JOIN more m
             ON e.site = m.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '3 hours'",
        ),
        (
            "gold",
            "answered_hours",
            "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c, sum(v) AS s, max(at) AS last FROM silver.answered
             GROUP BY 1",
        ),
    ]),
    Shape(&[
        (
            "silver",
            "asked",
            "SELECT m.at, e.id, e.n FROM more m JOIN events e
             ON e.site = m.site AND e.ts BETWEEN m.at - INTERVAL '3 hours' AND m.at - INTERVAL '1 minute'",
        ),
        ("gold", "asked_hours", "SELECT date_trunc('hour', at) AS w, count(*) AS c, sum(n) AS n FROM silver.asked GROUP BY 1"),
        (
            "gold",
            "asked_again",
            "SELECT a.id, b.id AS other FROM silver.asked a JOIN silver.asked b
             ON a.n = b.n AND a.id < b.id AND b.at BETWEEN a.at - INTERVAL '10 minutes' AND a.at",
        ),
    ]),
    Shape(&[
        (
            "silver",
            "unanswered",
            "SELECT e.id, e.ts, e.site FROM events e WHERE NOT EXISTS (
                 SELECT 1 FROM more m WHERE m.site = e.site AND m.at BETWEEN e.ts AND e.ts + INTERVAL '2 hours')",
        ),
        ("gold", "unanswered_hours", "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM silver.unanswered GROUP BY 1, 2"),
    ]),
    Shape(&[(
        "silver",
        "as_of",
        "SELECT e.id, e.ts, m.id AS mid, m.at, m.v FROM events e
         ASOF JOIN more m MATCH_CONDITION (e.ts >= m.at) ON e.site = m.site",
    )]),
    Shape(&[(
        "silver",
        "as_of_before",
        "SELECT e.id, m.id AS mid FROM events e ASOF JOIN more m MATCH_CONDITION (m.at < e.ts) ON e.site = m.site AND m.n = e.n
         WHERE e.v > 0 AND m.v < 30",
    )]),
    Shape(&[(
        "silver",
        "as_of_any",
        "SELECT m.id, m.at, m.site, m.v, m.n, e.id AS eid, e.tags FROM more m ASOF JOIN (SELECT * FROM events WHERE ok) e MATCH_CONDITION (m.at >= e.ts)",
    )]),
    Shape(&[
        (
            "silver",
            "as_of_itself",
            "SELECT e.id, e.ts, o.id AS oid, o.v FROM events e
             ASOF JOIN events o MATCH_CONDITION (e.ts > o.ts) ON o.site = e.site JOIN sites s ON s.site = o.site",
        ),
        (
            "gold",
            "as_of_hours",
            "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c, sum(v) AS s FROM silver.as_of_itself GROUP BY 1",
        ),
    ]),
];

/// What is refused of joins of streams, and what people are told.
pub const REFUSED_JOINS: &[(&str, &str)] = &[
    ("SELECT e.id FROM events e JOIN more m ON e.id = m.id", "a join of two streams without a bound"),
    ("SELECT e.id FROM events e JOIN events o ON e.id = o.n", "a join of two streams without a bound"),
    ("SELECT id FROM events WHERE id IN (SELECT n FROM more)", "a join of two streams without a bound"),
    (
        "SELECT id FROM events e WHERE NOT EXISTS (SELECT 1 FROM more m WHERE m.id = e.id)",
        "a join of two streams without a bound",
    ),
    ("SELECT e.id FROM events e JOIN more m ON e.id = m.id AND m.at > e.ts", "bounded on one side only"),
    (
        "SELECT e.id FROM events e JOIN more m ON e.id = m.id AND m.at > e.ts AND m.at < TIMESTAMP '2030-01-01T00:00:00Z'",
        "bounded on one side only",
    ),
    (
        "SELECT e.id FROM events e JOIN more m ON e.id = m.id AND (m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour' OR e.v > 0)",
        "a join of two streams without a bound",
    ),
    (
        "SELECT e.id FROM events e JOIN more m ON e.ts IS NOT DISTINCT FROM m.at",
        "a join of two streams without a bound",
    ),
    (
        "SELECT e.id FROM events e JOIN (SELECT id, CASE WHEN n > 3 THEN at END AS at FROM more) m
         ON m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour'",
        "a join of two streams without a bound",
    ),
    (
        "SELECT id FROM events e WHERE id NOT IN (SELECT n FROM more m WHERE m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour')",
        "NOT IN (SELECT ...)",
    ),
    (
        "SELECT e.id FROM events e JOIN more m ON m.at - e.ts BETWEEN INTERVAL '0 hours' AND INTERVAL '1 day'",
        "bounded on one side only",
    ),
    (
        "SELECT id FROM events e WHERE v > 3 OR EXISTS (
             SELECT 1 FROM more m WHERE m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour')",
        "as a part of another condition",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', e.ts) AS w, count(*) AS c FROM events e
         JOIN more m ON m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour' GROUP BY 1",
        "a join and an aggregate of streams in one query",
    ),
    (
        "SELECT e.id FROM events e JOIN more m ON m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour'
         JOIN events o ON o.ts = e.ts",
        "two joins of streams in one query",
    ),
    (
        "SELECT e.id FROM events e JOIN more m ON m.at BETWEEN e.ts AND e.ts + INTERVAL '1 hour'
         UNION ALL SELECT id FROM more",
        "a UNION of a join of streams",
    ),
    (
        "SELECT e.id FROM events e ASOF JOIN sites s MATCH_CONDITION (e.ts >= to_timestamp(s.weight)) ON e.site = s.site",
        "with a reference table",
    ),
    ("SELECT e.id FROM events e ASOF JOIN more m MATCH_CONDITION (e.ts <= m.at) ON e.site = m.site", "MATCH_CONDITION"),
    ("SELECT e.id FROM events e ASOF JOIN more m MATCH_CONDITION (e.id >= m.id) ON e.site = m.site", "MATCH_CONDITION"),
    (
        "SELECT e.id FROM events e ASOF JOIN more m MATCH_CONDITION (e.ts >= m.at) ON e.n > m.n",
        "in the ON of an ASOF JOIN",
    ),
];

/// What to ask a batch engine instead, by the table's name.
pub fn in_batch(table: &str, sql: &str) -> String {
    // The newest row of the right; among those of one time the greatest by its columns.
    let newest = |id: &str, select: &str, from: &str, on: &str, order: &str| {
        format!(
            "SELECT {select} FROM (SELECT *, row_number() OVER (PARTITION BY {id} ORDER BY {order}) AS place FROM (
                 SELECT e.id, e.ts, e.site, e.v, e.n, e.tags, e.ok, m.id AS mid, m.at, m.site AS msite, m.v AS mv, m.n AS mn
                 FROM {from} ON {on})) WHERE place = 1"
        )
    };
    match table {
        "as_of" => newest(
            "id",
            "id, ts, mid, at, mv AS v",
            "events e LEFT JOIN more m",
            "e.site = m.site AND e.ts >= m.at",
            "at DESC, mid DESC",
        ),
        "as_of_before" => {
            let all = newest(
                "id",
                "id, mid, v, mv",
                "events e LEFT JOIN more m",
                "e.site = m.site AND m.n = e.n AND m.at < e.ts",
                "at DESC, mid DESC",
            );
            format!("SELECT id, mid FROM ({all}) WHERE v > 0 AND mv < 30")
        }
        "as_of_any" => newest(
            "mid",
            "mid AS id, at, msite AS site, mv AS v, mn AS n, id AS eid, tags",
            "more m LEFT JOIN (SELECT * FROM events WHERE ok) e",
            "m.at >= e.ts",
            "ts DESC, id DESC",
        ),
        "as_of_itself" => {
            let all = newest(
                "id",
                "id, ts, mid AS oid, mv AS v, msite",
                "events e LEFT JOIN (SELECT *, ts AS at FROM events) m",
                "e.site = m.site AND e.ts > m.at",
                "at DESC, mid DESC",
            );
            format!("SELECT id, ts, oid, v FROM ({all}) o JOIN sites s ON s.site = o.msite")
        }
        _ => sql.to_owned(),
    }
}
