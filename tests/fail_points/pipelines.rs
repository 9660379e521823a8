//! The pipelines that are killed, and the queries whose answers are compared.

pub const EVENTS: &str = "sources:
  events:
    {source}
    format: json
    columns: { n: int64 not null, site: string, ts: timestamp, v: float64 }
    event_time: { column: ts, lateness: {lateness}, idle: 1h }
    archive: { path: {kept}, prefix: raw/, buffer: { size: 2KiB, every: 1h } }
bronze:
  events:
    from: events
    table_format: delta
    partition_by: [site]
    postgres: { url: pg, table: events, append: true }
silver:
  events:
    table_format: delta
    sql: SELECT n, site, ts, v FROM bronze.events
    unique: { key: [n], within: 1d }
    roll: { size: 4KiB, age: 1h }
    order_by: [site, n desc]
    expect: { small: { that: v < 10, else: quarantine } }
gold:
  hours:
    sql: SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS events, sum(v) AS v FROM silver.events GROUP BY 1, 2
    postgres: { url: pg, table: hours, key: [hour, site] }
  visits:
    sql: >
      SELECT session(ts, INTERVAL '6 minutes') AS visit, site, count(*) AS events, sum(v) AS v FROM silver.events
      GROUP BY session(ts, INTERVAL '6 minutes'), site
  followed:
    sql: >
      SELECT e.n, e.site, e.ts, e.v, o.n AS other FROM silver.events e LEFT JOIN silver.events o
      ON o.site = e.site AND o.v < e.v AND o.ts > e.ts AND o.ts <= e.ts + INTERVAL '20 minutes'
  preceded:
    sql: >
      SELECT e.n, e.site, e.ts, e.v, o.n AS other FROM silver.events e
      ASOF JOIN silver.events o MATCH_CONDITION (e.ts > o.ts) ON o.site = e.site
secrets:
  pg: { env: DATABASE_URL }
";

/// Tables that refuse some rows. Rows are added to the one, and replaced in the other.
pub const REFUSING_SQL: &str = "
    CREATE TABLE events (n bigint NOT NULL, site text, ts timestamptz, v float8 CONSTRAINT not_so CHECK (v <> 3.5),
        _source text, _partition text, _offset {offset}, _ingested_at timestamptz, _key text);
    CREATE TABLE hours (hour timestamptz, site varchar(6) CHECK (site <> 'site-1'), events bigint, v float8,
        PRIMARY KEY (hour, site))";

pub const REFUSED_LAKE_SQL: &str = "
    SELECT 'events', json_extract(decode(raw), '$.n'), contains(reason, 'SQLSTATE 23514'), contains(reason, 'not_so'),
        _offset, parse_filename(_partition) FROM quarantine.\"bronze.events\" WHERE rule = 'refused by postgres'
    UNION ALL SELECT 'hours', json_extract(decode(raw), '$.hour'), contains(reason, 'SQLSTATE 23514'),
        contains(reason, 'column site'), '', '' FROM quarantine.\"gold.hours\" WHERE rule = 'refused by postgres'";

/// A table whose rows change: it is for Postgres.
pub const SITES: &str = "  sites:
    sql: SELECT site, count(*) AS events, sum(v) AS v, max(ts) AS last FROM silver.events GROUP BY site
    postgres: { url: pg, table: sites, key: [site] }
";

pub const EVENTS_LAKE_SQL: &str = "
    SELECT 'bronze', n::VARCHAR, site, ts::VARCHAR, v, parse_filename(_partition), _offset::VARCHAR FROM bronze.events
    UNION ALL SELECT 'silver', n::VARCHAR, site, ts::VARCHAR, v, '', '' FROM silver.events
    UNION ALL SELECT 'gold', hour::VARCHAR, site, events::VARCHAR, v, '', '' FROM gold.hours
    UNION ALL SELECT 'visits', visit::VARCHAR, site, events::VARCHAR, v, '', '' FROM gold.visits
    UNION ALL SELECT 'followed', n::VARCHAR, site, ts::VARCHAR, v, other::VARCHAR, '' FROM gold.followed
    UNION ALL SELECT 'preceded', n::VARCHAR, site, ts::VARCHAR, v, other::VARCHAR, '' FROM gold.preceded
    UNION ALL SELECT 'decode', rule, decode(raw), '', 0, parse_filename(_partition), _offset FROM quarantine.events
    UNION ALL SELECT 'rule', rule, decode(raw), '', 0, '', '' FROM quarantine.\"silver.events\"";

pub const EVENTS_POSTGRES_SQL: &str = "
    SELECT 'events', n::text, site, ts::text, v, _offset::text FROM events
    UNION ALL SELECT 'hours', hour::text, site, events::text, v, '' FROM hours
    UNION ALL SELECT 'sites', last::text, site, events::text, v, '' FROM sites";

pub const GENERATED: &str = "sources:
  ticks:
    generate:
      rows: 600
      rate: 1500
      columns:
        n: { sequence: {} }
        ts: { time: { start: \"2026-11-01T00:00:00Z\", step: 100ms } }
        site: { choice: [reno, yuma, bend] }
    event_time: { column: ts, lateness: 1s }
    archive: { path: {kept}, prefix: raw/, buffer: { size: 2KiB, every: 1h } }
table_format: delta
bronze:
  ticks:
    from: ticks
    roll: { size: 3KiB, age: 1h }
    postgres: { url: pg, table: ticks, append: true }
gold:
  seconds:
    sql: SELECT date_bin(INTERVAL '1 second', ts) AS second, count(*) AS ticks, min(n) AS first FROM ticks GROUP BY 1
    postgres: { url: pg, table: seconds, key: [second] }
secrets:
  pg: { env: DATABASE_URL }
";

pub const GENERATED_LAKE_SQL: &str = "
    SELECT 'bronze', n, ts::VARCHAR, site FROM bronze.ticks
    UNION ALL SELECT 'gold', first, second::VARCHAR, ticks::VARCHAR FROM gold.seconds";

pub const GENERATED_POSTGRES_SQL: &str = "
    SELECT 'ticks', n, ts::text, site FROM ticks
    UNION ALL SELECT 'seconds', first, second::text, ticks::text FROM seconds";

/// Takes the sinks of Postgres out of a pipeline.
pub fn without_postgres(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.contains("postgres:") && !line.contains("pg:") && *line != "secrets:");
    kept.map(|line| format!("{line}\n")).collect()
}
