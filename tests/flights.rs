//! The main job: `pipelines/flights.yaml` from raw files to alerts, and what
//! its tables must hold whichever way the rows came.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::balance::count;
use crate::world::{World, ask, files, is_table_file, repository};

/// All departures.
pub const DEPARTURES: u64 = 336_776;
/// Those whose delay is known.
pub const DELAYS_KNOWN: u64 = 328_521;
/// Hours and airports with such departures.
pub const HOURS: u64 = 19_434;
/// Hours and airports of heavy delay.
pub const ALERTS: u64 = 736;
/// Those of them for which the weather was recorded.
const ALERTS_WITH_WEATHER: u64 = 733;

/// What gold must hold, from the raw data: the same question asked to DuckDB.
const GOLD_EXPECTED: &str = "SELECT time_hour AS hour, origin, count(*) AS departures, avg(dep_delay) AS avg_delay \
                             FROM raw.departures WHERE dep_delay IS NOT NULL GROUP BY ALL";

/// Fails unless silver, gold and vibranium hold what the raw data say.
pub fn check_tables(lake: &Path) {
    let silver = "SELECT count(*), sum(dep_delay)::BIGINT, count(DISTINCT (carrier, flight, time_hour, origin)) \
                  FROM silver.departures";
    assert_eq!(ask(lake, silver), [json!([DELAYS_KNOWN, 4_152_200, DELAYS_KNOWN])]);

    let gold = "SELECT count(*), sum(departures)::BIGINT, count(DISTINCT (hour, origin)) FROM gold.hourly_delays";
    assert_eq!(ask(lake, gold), [json!([HOURS, DELAYS_KNOWN, HOURS])]);
    assert_same(lake, "SELECT hour, origin, departures, avg_delay FROM gold.hourly_delays", GOLD_EXPECTED);

    // A percentile of a sketch depends on the order in which sketches meet: it is held to the hour's second half.
    let percentiles = "SELECT count(*) FROM gold.hourly_delays g JOIN \
        (SELECT time_hour AS hour, origin, quantile_disc(dep_delay, 0.5) AS low, max(dep_delay) AS high \
         FROM raw.departures WHERE dep_delay IS NOT NULL GROUP BY ALL) r USING (hour, origin) \
        WHERE g.p95_delay BETWEEN r.low AND r.high";
    assert_eq!(ask(lake, percentiles), [json!([HOURS])], "percentiles that the hour's delays allow");

    let alerts = "SELECT count(*), count(temp), count(DISTINCT (hour, origin)) FROM vibranium.delay_alerts";
    assert_eq!(ask(lake, alerts), [json!([ALERTS, ALERTS_WITH_WEATHER, ALERTS])]);
    let expected = format!(
        "SELECT g.hour, g.origin, g.departures, g.avg_delay, a.name, a.lat, a.lon, w.temp, w.wind_speed, w.precip, w.visib \
         FROM ({GOLD_EXPECTED}) g JOIN raw.airports a ON a.faa = g.origin \
         LEFT JOIN raw.weather w ON w.origin = g.origin AND w.time_hour = g.hour \
         WHERE g.departures >= 10 AND g.avg_delay > 60"
    );
    let columns = "hour, origin, departures, avg_delay, name, lat, lon, temp, wind_speed, precip, visib";
    assert_same(lake, &format!("SELECT {columns} FROM vibranium.delay_alerts"), &expected);
}

/// Fails unless bronze holds each raw record once, with every column as it was.
pub fn check_bronze(lake: &Path) {
    let columns = "year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier, \
                   flight, tailnum, origin, dest, air_time, distance, hour, minute, time_hour";
    let counts =
        "SELECT count(*), count(DISTINCT (_source, _partition, _offset)), count(_rescued) FROM bronze.departures";
    assert_eq!(ask(lake, counts), [json!([DEPARTURES, DEPARTURES, 0])]);
    let [found, expected] = ["bronze", "raw"].map(|schema| format!("SELECT {columns} FROM {schema}.departures"));
    assert_same(lake, &found, &expected);
}

/// Fails unless two queries give the same rows, as often, in any order.
fn assert_same(lake: &Path, found: &str, expected: &str) {
    let both = format!(
        "WITH found AS MATERIALIZED ({found}), expected AS MATERIALIZED ({expected}) \
         (SELECT 'should not be there', * FROM (FROM found EXCEPT ALL FROM expected) LIMIT 5) UNION ALL \
         (SELECT 'is missing', * FROM (FROM expected EXCEPT ALL FROM found) LIMIT 5)"
    );
    let differences = ask(lake, &both);
    assert!(differences.is_empty(), "rows that differ:\n{differences:#?}");
}

/// Writes a pipeline with the tables of `flights.yaml`, whose head (up to the tiers) is `head`, and with gold also in
/// Postgres if `postgres`.
pub fn pipeline(world: &World, head: &str, postgres: bool) -> PathBuf {
    let flights = std::fs::read_to_string(repository("pipelines/flights.yaml")).expect("flights.yaml can be read");
    let from = |heading| flights.find(heading).unwrap_or_else(|| panic!("flights.yaml has no {heading:?}"));
    let (reference, bronze, tests) = (from("\nreference:\n"), from("\nbronze:\n"), from("\ntests:\n"));
    let data = format!("path: {}/", repository("pipelines/data").display());
    let reference = flights[reference..bronze].replace("path: data/", &data);
    let mut tiers = flights[bronze..tests].to_owned();
    if postgres {
        let sink = "  hourly_delays:\n    postgres: { url: pg, table: hourly_delays, key: [hour, origin] }\n";
        tiers = tiers.replacen("  hourly_delays:\n", sink, 1) + "\nsecrets:\n  pg: { env: DATABASE_URL }\n";
        assert!(tiers.contains(sink), "flights.yaml has no hourly_delays");
    }
    world.file("pipeline.yaml", &format!("{head}{reference}{tiers}"))
}

/// Gives the `columns:` of the source in `flights.yaml`, with the key itself, indented as they stand there.
pub fn columns() -> String {
    let flights = std::fs::read_to_string(repository("pipelines/flights.yaml")).expect("flights.yaml can be read");
    let source = &flights[flights.find("    columns:\n").expect("flights.yaml declares its columns")..];
    source[..source.find("    on_unknown_column:").expect("flights.yaml rescues unknown columns")].to_owned()
}

/// Fails unless the table of a run's Postgres sink holds what the lake's gold holds.
pub fn check_postgres(world: &World) {
    let totals = "SELECT count(*), sum(departures)::BIGINT, count(DISTINCT (hour, origin)) FROM hourly_delays";
    assert_eq!(world.ask_postgres(totals), [json!([HOURS, DELAYS_KNOWN, HOURS])]);
}

/// Fails unless Postgres and a lake hold the same gold, row for row, the percentile included.
pub fn check_same_gold(world: &World, lake: &Path) {
    let postgres = "SELECT extract(epoch FROM hour)::BIGINT, origin, departures, avg_delay, p95_delay \
                    FROM hourly_delays ORDER BY 1, 2";
    let in_lake =
        "SELECT epoch(hour)::BIGINT, origin, departures, avg_delay, p95_delay FROM gold.hourly_delays ORDER BY 1, 2";
    check_postgres(world);
    assert!(world.ask_postgres(postgres) == ask(lake, in_lake), "gold differs between Postgres and the lake");
}

fn lake_set(lake: &Path) -> String {
    format!("lake={}", lake.display())
}

#[test]
fn the_flights_go_from_raw_files_to_alerts() {
    let world = World::new();
    let lake = world.path("lake");
    let pipeline = repository("pipelines/flights.yaml");

    let report = world.run_to_report(|world, report| {
        let set = lake_set(&lake);
        let run = world.nexus(&crate::world::run_args(&pipeline, report, &["--set", &set])).expect_code(0);
        for table in ["bronze.departures", "silver.departures", "gold.hourly_delays", "vibranium.delay_alerts"] {
            assert!(run.said().contains(table), "the summary does not name {table}:\n{}", run.said());
        }
        run
    });

    check_bronze(&lake);
    check_tables(&lake);
    check_report(&report);
}

fn check_report(report: &Value) {
    assert_eq!(report["pipeline"], "flights");
    let source = &report["sources"]["departures"];
    assert_eq!(["records", "rows", "quarantined"].map(|n| count(source, n)), [DEPARTURES, DEPARTURES, 0]);
    let table = |name: &str, numbers: [u64; 4]| {
        let table = &report["tables"][name];
        assert_eq!(["late", "quarantined", "duplicates", "rows_out"].map(|n| count(table, n)), numbers, "{name}");
    };
    table("bronze.departures", [0, 0, 0, DEPARTURES]);
    table("silver.departures", [0, 0, 0, DELAYS_KNOWN]);
    table("gold.hourly_delays", [0, 0, 0, HOURS]);
    table("vibranium.delay_alerts", [0, 0, 0, ALERTS]);
    assert_eq!(count(&report["tables"]["silver.departures"], "rows_in"), DEPARTURES);
    assert_eq!(count(&report["tables"]["gold.hourly_delays"], "rows_in"), DELAYS_KNOWN);
    assert_eq!(count(&report["sinks"]["silver.departures"]["parquet"], "rows"), DELAYS_KNOWN);
}

#[test]
fn a_second_run_changes_no_file_and_other_verbs_read_what_the_first_left() {
    let world = World::new();
    let lake = world.path("lake");
    let pipeline = repository("pipelines/flights.yaml");
    let set = lake_set(&lake);

    world.run(&pipeline, &["--set", &set]);
    let first = files(&lake);
    let report = world.run(&pipeline, &["--set", &set]);
    let second = files(&lake);

    assert_eq!(["generation", "epochs"].map(|name| count(&report, name)), [0, 0], "there was nothing to do");
    assert_eq!(count(&report["sources"]["departures"], "records"), 0);
    assert_eq!(changes(&first, &second), Vec::<&Path>::new(), "files that the second run made, changed or removed");
    assert!(first.keys().any(|path| is_table_file(path)), "the first run left no table");

    let pipeline = pipeline.to_str().expect("the tests' paths are UTF-8");
    let sql = "SELECT count(*) AS n, CAST(sum(dep_delay) AS BIGINT) AS minutes FROM silver.departures";
    let answer = world.nexus(&["query", pipeline, sql, "--set", &set]).expect_code(0);
    assert!(answer.stdout.contains("328521") && answer.stdout.contains("4152200"), "{}", answer.stdout);
    let state = world.nexus(&["state", pipeline, "--set", &set]).expect_code(0);
    assert!(state.stdout.contains("flights-2013-12.csv.gz"), "the state names no position:\n{}", state.stdout);
}

/// Names the files that only one of two listings has, or that differ.
fn changes<'a, T: PartialEq>(first: &'a BTreeMap<PathBuf, T>, second: &'a BTreeMap<PathBuf, T>) -> Vec<&'a Path> {
    let all: BTreeSet<_> = first.keys().chain(second.keys()).collect();
    all.into_iter().filter(|path| first.get(*path) != second.get(*path)).map(PathBuf::as_path).collect()
}

#[test]
fn a_table_in_many_epochs_equals_one_batch() {
    let world = World::new().with_postgres();
    let lake = world.path("lake");
    let report = world.run(&files_pipeline(&world, &lake, "1MiB"), &[]);

    assert!(count(&report, "epochs") > 10, "{report:#}");
    check_bronze(&lake);
    check_tables(&lake);
    check_same_gold(&world, &lake);
}

/// Writes a pipeline that reads the 12 files, commits after so many bytes, and has gold also in Postgres.
pub fn files_pipeline(world: &World, lake: &Path, commit_bytes: &str) -> PathBuf {
    let head = format!(
        "name: flights\nlake: {}\ncommit: {{ every: 1h, bytes: {commit_bytes} }}\nsources:\n  departures:\n    \
         file: {{ path: {}/flights-2013-*.csv.gz }}\n    format: {{ csv: {{ \"null\": [\"NA\"] }} }}\n{}    \
         event_time: {{ column: time_hour, lateness: 2h }}\n",
        lake.display(),
        repository("pipelines/data").display(),
        columns(),
    );
    pipeline(world, &head, true)
}
