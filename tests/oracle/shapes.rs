//! The queries that streams are asked, and those that are refused.
//!
//! `events` has the columns id, ts (event time), site, kind, v, n, amount, ok and tags; `more` has id, at (event
//! time), site, v and n. `sites` (site, region, weight) and `nothing` (site) are reference tables.

/// A table of a shape: tier, name, query.
pub type Table = (&'static str, &'static str, &'static str);

/// A query over streams, with the tables that it reads. Table names are unique over all shapes.
pub struct Shape(pub &'static [Table]);

/// Shortens a shape of one table.
const fn one(table: &'static [Table; 1]) -> Shape {
    Shape(table)
}

/// What keeps no state: each row stands for itself.
pub const ROWS: &[Shape] = &[
    one(&[("silver", "projected", "SELECT id, ts, upper(site) AS site, v * 2 + 1 AS w, n % 7 AS m FROM events")]),
    one(&[("silver", "filtered", "SELECT id, v FROM events WHERE v > 0 AND site IS NOT NULL AND kind <> 'c'")]),
    one(&[(
        "silver",
        "cases",
        "SELECT id, CASE WHEN v < 0 THEN 'less' WHEN v IS NULL THEN 'none' ELSE 'more' END AS sign,
                coalesce(n, -1) AS n, nullif(kind, 'a') AS kind FROM events",
    )]),
    one(&[(
        "silver",
        "casts",
        "SELECT id, CAST(n AS VARCHAR) AS n, CAST(v AS BIGINT) AS whole, CAST(amount AS DOUBLE) AS amount,
                CAST(ts AS DATE) AS day, CAST(ok AS INT) AS ok FROM events",
    )]),
    one(&[(
        "silver",
        "strings",
        "SELECT id, site || '-' || kind AS both, substr(site, 2, 2) AS part, length(site) AS long,
                replace(site, 'e', 'x') AS x, regexp_replace(site, '[aeiou]', '_', 'g') AS _vowels,
                split_part(site, 'e', 1) AS head, md5(site) AS md5 FROM events WHERE site LIKE '%e%'",
    )]),
    one(&[(
        "silver",
        "times",
        "SELECT id, extract(hour FROM ts) AS hour, date_part('dow', ts) AS dow, date_trunc('hour', ts) AS start,
                ts + INTERVAL '36 hours' AS later, date_bin(INTERVAL '7 minutes', ts) AS bin,
                to_char(ts, '%Y-%m') AS month FROM events",
    )]),
    one(&[("silver", "united", "SELECT id, ts AS t, v FROM events UNION ALL SELECT id, at, v FROM more WHERE n > 2")]),
    one(&[(
        "silver",
        "twice",
        "SELECT id, 'v' AS why FROM events WHERE v > 0 UNION ALL SELECT id, 'n' FROM events WHERE n > 2",
    )]),
    one(&[(
        "silver",
        "inner_joined",
        "SELECT e.id, s.region, e.v * s.weight AS wv FROM events e JOIN sites s USING (site)",
    )]),
    one(&[(
        "silver",
        "left_joined",
        "SELECT e.id, e.site, s.region, s.weight FROM events e LEFT JOIN sites s ON s.site = e.site AND s.weight < 3",
    )]),
    one(&[("silver", "right_joined", "SELECT e.id, s.region FROM sites s RIGHT JOIN events e ON s.site = e.site")]),
    one(&[("silver", "among", "SELECT id FROM events WHERE site IN (SELECT site FROM sites WHERE weight > 1)")]),
    one(&[("silver", "not_among", "SELECT id FROM events WHERE site NOT IN (SELECT site FROM sites)")]),
    one(&[(
        "silver",
        "without",
        "SELECT id, site FROM events e WHERE NOT EXISTS (SELECT 1 FROM sites s WHERE s.site = e.site)",
    )]),
    one(&[(
        "silver",
        "with_or",
        "SELECT id FROM events e WHERE n > 7 OR EXISTS (SELECT 1 FROM sites s WHERE s.site = e.site AND weight = 2)",
    )]),
    one(&[("silver", "unequal", "SELECT e.id, s.site AS other FROM events e LEFT JOIN sites s ON e.n > s.weight + 5")]),
    one(&[(
        "silver",
        "crossed",
        "SELECT e.id, m.most FROM events e CROSS JOIN (SELECT max(weight) AS most FROM sites) m",
    )]),
    one(&[("silver", "above_mean", "SELECT id, n FROM events WHERE n > (SELECT avg(weight) FROM sites)")]),
    one(&[(
        "silver",
        "correlated",
        "SELECT id, (SELECT max(weight) FROM sites s WHERE s.site = e.site) AS weight FROM events e",
    )]),
    one(&[("silver", "inner_with_nothing", "SELECT e.id FROM events e JOIN nothing USING (site)")]),
    one(&[("silver", "left_with_nothing", "SELECT e.id, x.site FROM events e LEFT JOIN nothing x USING (site)")]),
    one(&[("silver", "anti_with_nothing", "SELECT id FROM events WHERE site NOT IN (SELECT site FROM nothing)")]),
    one(&[("silver", "never", "SELECT id FROM events WHERE n > 1 AND n < 1")]),
    one(&[(
        "silver",
        "now_and_then",
        "SELECT id FROM events WHERE now() > TIMESTAMP '2020-01-01T00:00:00Z' AND n > 3",
    )]),
    one(&[("silver", "not_any_more", "SELECT id FROM events WHERE now() < TIMESTAMP '2020-01-01T00:00:00Z'")]),
    one(&[("silver", "unnested", "SELECT id, ts, unnest(tags) AS tag FROM events")]),
    one(&[(
        "silver",
        "named_parts",
        "WITH good AS (SELECT id, v, n FROM events WHERE ok), big AS (SELECT * FROM good WHERE v > 10)
         SELECT id, v - n AS d FROM (SELECT * FROM big) AS b WHERE n IS NOT NULL",
    )]),
    one(&[(
        "silver",
        "arrays",
        "SELECT id, array_length(tags) AS many, tags[1] AS first, make_array(n, 1) AS pair FROM events",
    )]),
];

/// What is grouped by windows of event time.
pub const WINDOWS: &[Shape] = &[
    one(&[("gold", "per_second", "SELECT date_bin(INTERVAL '1 second', ts) AS w, count(*) AS c FROM events GROUP BY 1")]),
    one(&[(
        "gold",
        "per_minutes",
        "SELECT date_bin(INTERVAL '10 minutes', ts, TIMESTAMP '2024-01-01T00:03:00Z') AS w, sum(n) AS n, count(v) AS c
         FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "per_hour",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c, sum(v) AS s, avg(v) AS a, min(n) AS low,
                max(site) AS high, max(ts) AS last FROM events GROUP BY 1",
    )]),
    one(&[("gold", "per_day", "SELECT date_bin(INTERVAL '1 day', ts) AS w, site, avg(n) AS a FROM events GROUP BY 1, 2")]),
    one(&[("gold", "per_month", "SELECT kind, date_bin(INTERVAL '1 month', ts) AS w, sum(v) AS s FROM events GROUP BY 2, 1")]),
    one(&[(
        "gold",
        "per_months",
        "SELECT date_bin(INTERVAL '2 months', ts, TIMESTAMP '2024-01-28T06:00:00Z') AS w, count(*) AS c
         FROM events GROUP BY 1",
    )]),
    one(&[("gold", "trunc_minute", "SELECT date_trunc('minute', ts) AS w, sum(n) AS s FROM events GROUP BY 1")]),
    one(&[("gold", "trunc_hour", "SELECT date_trunc('hour', ts) AS w, site, kind, sum(n) AS s FROM events GROUP BY ALL")]),
    one(&[("gold", "trunc_day", "SELECT date_trunc('day', ts) AS w, count(*) AS c FROM events GROUP BY 1")]),
    one(&[("gold", "trunc_week", "SELECT date_trunc('week', ts) AS w, count(*) AS c FROM events GROUP BY 1")]),
    one(&[("gold", "trunc_month", "SELECT date_trunc('MONTH', ts) AS w, count(*) AS c FROM events GROUP BY 1")]),
    one(&[("gold", "trunc_year", "SELECT date_trunc('year', ts) AS w, count(*) AS c FROM events GROUP BY 1")]),
    one(&[("gold", "dates", "SELECT CAST(ts AS DATE) AS day, site, sum(v) AS s FROM events GROUP BY 1, 2")]),
    one(&[("gold", "weeks", "SELECT CAST(date_trunc('week', ts) AS DATE) AS day, count(*) AS c FROM events GROUP BY 1")]),
    one(&[(
        "gold",
        "local_days",
        "SELECT date_trunc('day', ts AT TIME ZONE 'Asia/Tokyo') AS w, count(*) AS c FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "local_months",
        "SELECT date_trunc('month', ts AT TIME ZONE 'America/New_York') AS w, count(*) AS c FROM events GROUP BY 1",
    )]),
    one(&[("gold", "per_time", "SELECT ts, count(*) AS c, sum(v) AS s FROM events GROUP BY ts")]),
    one(&[("gold", "distinct_rows", "SELECT DISTINCT ts, site, kind FROM events")]),
    one(&[(
        "gold",
        "keys",
        "SELECT site, n % 3 AS rest, ok, date_bin(INTERVAL '1 hour', ts) AS w, kind, count(*) AS c
         FROM events GROUP BY site, n % 3, ok, w, kind",
    )]),
    one(&[(
        "gold",
        "distinct_counts",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(DISTINCT site) AS sites FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "distinct_sums",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(DISTINCT site) AS sites, count(DISTINCT n) AS ns,
                sum(DISTINCT n) AS s, avg(v) AS a FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "medians",
        "SELECT date_bin(INTERVAL '1 day', ts) AS w, median(v) AS m, percentile_cont(0.3) WITHIN GROUP (ORDER BY v) AS p
         FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "approximations",
        "SELECT date_bin(INTERVAL '1 day', ts) AS w, site, approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY v) AS approx_p,
                approx_median(v) AS approx_m, approx_distinct(n) AS d FROM events GROUP BY 1, 2",
    )]),
    one(&[(
        "gold",
        "lists_in_order",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, array_agg(id ORDER BY v DESC, id) AS by_v,
                array_agg(site ORDER BY id) AS by_id FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "bags",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, array_agg(n) AS bag_all, array_agg(DISTINCT kind) AS bag_kinds
         FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "texts",
        "SELECT date_bin(INTERVAL '6 hours', ts) AS w, string_agg(kind, ',' ORDER BY id) AS kinds FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "spreads",
        "SELECT date_bin(INTERVAL '1 day', ts) AS w, stddev(v) AS sd, var_pop(v) AS vp, corr(v, n) AS r,
                covar_samp(v, n) AS cv, regr_slope(v, n) AS slope FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "ends",
        "SELECT date_bin(INTERVAL '3 hours', ts) AS w, first_value(v ORDER BY ts, id) AS first,
                last_value(site ORDER BY ts, id) AS last, nth_value(n, 2 ORDER BY id) AS second FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "bits",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, bool_and(ok) AS every_ok, bool_or(ok) AS some_ok, bit_xor(n) AS x,
                bit_or(id) AS o FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "filters",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) FILTER (WHERE v > 0) AS pos,
                sum(n) FILTER (WHERE kind = 'a') AS a, array_agg(id ORDER BY id) FILTER (WHERE ok) AS ids
         FROM events WHERE n IS NOT NULL GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "having",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site FROM events GROUP BY 1, 2 HAVING count(*) > 1 AND sum(v) > 0",
    )]),
    one(&[(
        "gold",
        "expressions",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, sum(v) / count(*) AS mean, max(n) - min(n) + 1 AS width,
                CASE WHEN count(*) > 3 THEN 'many' ELSE 'few' END AS much, 7 AS seven FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "decimals",
        "SELECT date_bin(INTERVAL '1 day', ts) AS w, sum(amount) AS s, avg(amount) AS a, max(amount) AS m FROM events GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "by_region",
        "SELECT date_bin(INTERVAL '1 hour', e.ts) AS w, s.region, sum(e.v * s.weight) AS wv
         FROM events e JOIN sites s USING (site) GROUP BY 1, 2",
    )]),
    one(&[(
        "gold",
        "by_region_or_none",
        "SELECT coalesce(s.region, 'none') AS region, date_trunc('day', e.ts) AS w, count(*) AS c
         FROM events e LEFT JOIN sites s ON e.site = s.site GROUP BY 1, 2",
    )]),
    one(&[(
        "gold",
        "looked_up",
        "SELECT h.w, h.site, s.region, h.c FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c
         FROM events GROUP BY 1, 2) h LEFT JOIN sites s ON s.site = h.site WHERE h.c > 1",
    )]),
    one(&[(
        "gold",
        "unknown_sites",
        "WITH h AS (SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM events GROUP BY 1, 2)
         SELECT w, site, c * 2 AS cc FROM h WHERE NOT EXISTS (SELECT 1 FROM sites s WHERE s.site = h.site)",
    )]),
    one(&[(
        "gold",
        "of_known_sites",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, sum(v) AS s FROM events WHERE site IN (SELECT site FROM sites) GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "above_mean_hours",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c FROM events
         WHERE n > (SELECT avg(weight) FROM sites) GROUP BY 1 HAVING count(*) >= (SELECT min(weight) FROM sites)",
    )]),
    one(&[(
        "gold",
        "with_nothing",
        "SELECT date_bin(INTERVAL '1 hour', e.ts) AS w, count(x.site) AS c, count(*) AS all FROM events e
         LEFT JOIN nothing x ON x.site = e.site GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "united_hours",
        "SELECT date_bin(INTERVAL '1 hour', t) AS w, count(*) AS c, sum(v) AS s
         FROM (SELECT ts AS t, v FROM events UNION ALL SELECT at, v FROM more) GROUP BY 1",
    )]),
    one(&[(
        "gold",
        "united_rows",
        "SELECT ts, site FROM events UNION SELECT at, site FROM more",
    )]),
    one(&[(
        "gold",
        "counted_twice",
        "SELECT w, count(*) AS c FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w FROM events WHERE v > 0
         UNION ALL SELECT date_bin(INTERVAL '1 hour', ts) FROM events WHERE n > 2) GROUP BY w",
    )]),
    one(&[(
        "gold",
        "tags",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, tag, count(*) AS c
         FROM (SELECT ts, unnest(tags) AS tag FROM events) GROUP BY 1, 2",
    )]),
    one(&[("gold", "tags_of_hours", "SELECT w, unnest(ids) AS id FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w,
         array_agg(id) AS ids FROM events GROUP BY 1)")]),
    one(&[(
        "gold",
        "by_now",
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c FROM events
         WHERE ts < now() GROUP BY 1 HAVING max(ts) < now()",
    )]),
    Shape(&[
        ("silver", "clean", "SELECT id, ts, site, v FROM events WHERE v IS NOT NULL"),
        ("gold", "clean_hours", "SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, sum(v) AS s FROM silver.clean GROUP BY 1, 2"),
        ("gold", "clean_days", "SELECT date_trunc('day', hour) AS day, max(s) AS best, count(*) AS c FROM gold.clean_hours GROUP BY 1"),
        ("gold", "clean_months", "SELECT date_trunc('month', day) AS m, sum(c) AS c FROM gold.clean_days GROUP BY 1"),
    ]),
    Shape(&[
        ("gold", "minutes", "SELECT ts AT TIME ZONE 'America/New_York' AS t, count(*) AS c FROM events GROUP BY ts"),
        ("gold", "minutes_of_hour", "SELECT date_bin(INTERVAL '1 hour', t) AS w, sum(c) AS c FROM gold.minutes GROUP BY 1"),
    ]),
    Shape(&[
        ("gold", "day_dates", "SELECT start, CAST(start AS DATE) AS day, c FROM (SELECT date_trunc('day', ts) AS start, count(*) AS c
          FROM events GROUP BY 1)"),
        ("gold", "weeks_of_days", "SELECT date_trunc('week', start) AS w, sum(c) AS c, max(day) AS last FROM gold.day_dates GROUP BY 1"),
    ]),
    Shape(&[
        ("silver", "all_rows", "SELECT ts AS t, site, v FROM events UNION ALL SELECT at, site, v FROM more"),
        ("gold", "all_hours", "SELECT date_bin(INTERVAL '1 hour', t) AS w, site, count(*) AS c FROM silver.all_rows GROUP BY 1, 2"),
        ("vibranium", "alerts", "SELECT h.w, h.site, s.region FROM gold.all_hours h JOIN sites s ON s.site = h.site WHERE h.c > 2"),
    ]),
];

/// What does not mean the same on a stream, and what people are told. Each is refused as not streamable.
pub const REFUSED: &[(&str, &str)] = &[
    (
        "SELECT session(at, INTERVAL '1 hour') AS w, count(*) AS c FROM (SELECT ts + INTERVAL '1 day' AS at FROM events) GROUP BY 1",
        "an aggregate without a window",
    ),
    ("SELECT id, v FROM events ORDER BY v", "ORDER BY over a stream"),
    ("SELECT id FROM events LIMIT 10", "LIMIT over a stream"),
    ("SELECT id FROM (SELECT id FROM events OFFSET 3)", "LIMIT over a stream"),
    ("SELECT id, sum(v) OVER (PARTITION BY site ORDER BY ts) AS s FROM events", "a window function (OVER)"),
    ("SELECT count(*) AS c FROM events", "an aggregate without a window"),
    ("SELECT site, count(*) AS c FROM events GROUP BY site", "an aggregate without a window"),
    ("SELECT DISTINCT site FROM events", "an aggregate without a window"),
    ("SELECT extract(hour FROM ts) AS h, count(*) AS c FROM events GROUP BY 1", "an aggregate without a window"),
    ("SELECT CAST(ts AS TIME) AS t, count(*) AS c FROM events GROUP BY 1", "an aggregate without a window"),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts)::DATE AS d, count(*) AS c FROM events GROUP BY 1",
        "an aggregate without a window",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts::DATE) AS d, count(*) AS c FROM events GROUP BY 1",
        "an aggregate without a window",
    ),
    (
        "SELECT date_trunc('day', ts::TIMESTAMP AT TIME ZONE 'Asia/Tokyo') AS d, count(*) AS c FROM events GROUP BY 1",
        "an aggregate without a window",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts + INTERVAL '1 day') AS d, count(*) AS c FROM events GROUP BY 1",
        "an aggregate without a window",
    ),
    (
        "SELECT date_bin(INTERVAL '1 month', ts, TIMESTAMP '2024-01-31T00:00:00Z') AS d, count(*) AS c FROM events GROUP BY 1",
        "a window of months",
    ),
    (
        "SELECT id, region FROM events e RIGHT JOIN sites s ON e.site = s.site",
        "join that keeps the rows of a reference table",
    ),
    (
        "SELECT id, region FROM events e FULL JOIN sites s ON e.site = s.site",
        "join that keeps the rows of a reference table",
    ),
    ("SELECT site FROM sites WHERE site IN (SELECT site FROM events)", "join that keeps the rows of a reference table"),
    (
        "SELECT site FROM sites s WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.site = s.site)",
        "join that keeps the rows of a reference table",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM events GROUP BY GROUPING SETS ((w), (w, site))",
        "GROUPING SETS",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM events GROUP BY ROLLUP (w, site)",
        "GROUPING SETS",
    ),
    (
        "SELECT w, max(c) AS m FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w, site, count(*) AS c FROM events GROUP BY 1, 2) GROUP BY w",
        "an aggregate over an aggregate",
    ),
    ("SELECT id, (SELECT max(v) FROM more) AS m FROM events", "a subquery over a stream"),
    ("SELECT id FROM events WHERE v > (SELECT avg(v) FROM events)", "a subquery over a stream"),
    ("SELECT id, site FROM events UNION ALL SELECT weight, site FROM sites", "rows that come from no stream"),
    ("SELECT id FROM events UNION ALL SELECT 1", "rows that come from no stream"),
    (
        "SELECT date_bin(INTERVAL '1 hour', t) AS w, count(*) AS c FROM (SELECT ts AS t FROM events UNION ALL SELECT now() FROM sites) GROUP BY 1",
        "rows that come from no stream",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', ts) AS w, count(*) AS c FROM events GROUP BY 1 UNION ALL SELECT at, n FROM more",
        "an aggregate with other rows",
    ),
    (
        "SELECT date_trunc('day', ts) AS w, count(*) AS c FROM events GROUP BY 1 UNION ALL SELECT date_trunc('day', at), count(*) FROM more GROUP BY 1",
        "two aggregates",
    ),
    (
        "SELECT w, count(*) AS c FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w FROM events UNION ALL SELECT date_bin(INTERVAL '1 day', at) FROM more) GROUP BY 1",
        "different windows",
    ),
    (
        "SELECT w, count(*) AS c FROM (SELECT date_bin(INTERVAL '1 hour', ts) AS w FROM events UNION ALL SELECT date_bin(INTERVAL '1 hour', ts, TIMESTAMP '2024-01-01T00:30:00Z') FROM events) GROUP BY 1",
        "different windows",
    ),
    (
        "SELECT w, count(*) AS c FROM (SELECT ts AS w FROM events UNION ALL SELECT unnest(make_array(at)) FROM more) GROUP BY 1",
        "an aggregate without a window",
    ),
    (
        "WITH RECURSIVE r AS (SELECT id FROM events UNION ALL SELECT id + 1 FROM r WHERE id < 3) SELECT id FROM r",
        "a recursive query",
    ),
];
