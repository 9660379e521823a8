//! The same rows from Kinesis and from S3 through SQS give the same gold, on S3
//! and in Postgres; and `pipelines/telemetry.yaml` runs as it is.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::json;

use crate::balance::count;
use crate::flights::{DEPARTURES, check_same_gold, check_tables, columns, pipeline};
use crate::servers::unique;
use crate::world::{World, ask, departures, repository};

/// How many documents of the departures stand in one record: some 150 KB.
const DOCUMENTS_A_RECORD: &str = "500";

/// Makes a world with everything that a pipeline on AWS needs.
pub fn cloud() -> World {
    World::new().with_aws().with_kinesis().with_postgres()
}

/// Gives a stream of three shards that holds the departures. Reading takes nothing away, so the tests share it.
fn departures_stream(world: &World) -> &'static str {
    static STREAM: OnceLock<String> = OnceLock::new();
    STREAM.get_or_init(|| {
        let stream = unique("departures");
        world.aws(&["stream", &stream, "3"]);
        let files = departures();
        let put: Vec<&str> =
            ["put", &stream, DOCUMENTS_A_RECORD].into_iter().chain(files.iter().map(String::as_str)).collect();
        world.aws(&put);
        stream
    })
}

/// Gives a pipeline that reads the stream of departures into a bucket.
pub fn kinesis_pipeline(world: &World, bucket: &str, commit_bytes: &str) -> PathBuf {
    let stream = departures_stream(world);
    // Each shard holds its records in order, and the slowest shard holds the watermark back; a shard that a busy machine
    // starves must not be taken for an idle one.
    let head = format!(
        "name: flights\nlake: s3://{bucket}\ncommit: {{ every: 1h, bytes: {commit_bytes} }}\nsources:\n  departures:\n    \
         kinesis: {{ stream: {stream} }}\n    format: json\n{}    \
         event_time: {{ column: time_hour, lateness: 2h, idle: 1h }}\n",
        columns()
    );
    pipeline(world, &head, true)
}

/// Makes a landing bucket and puts the files into it, and gives a pipeline that reads them into another bucket, and the
/// queue's URL.
pub fn uploads_pipeline(world: &World, bucket: &str, commit_bytes: &str) -> (PathBuf, String) {
    let (landing, queue) = (world.bucket("landing"), unique("uploads"));
    // Messages of a killed process come back after 5 s; a living one keeps them away.
    let url = world.aws(&["announce", &landing, &queue, "5"]);
    let files = departures();
    let upload: Vec<&str> =
        ["upload", &landing, "flights year=2013/"].into_iter().chain(files.iter().map(String::as_str)).collect();
    world.aws(&upload);
    // A queue gives its messages in no order: a row may come as late as the year is long.
    let head = format!(
        "name: flights\nlake: s3://{bucket}\ncommit: {{ every: 2s, bytes: {commit_bytes} }}\nsources:\n  departures:\n    \
         s3: {{ queue: \"{url}\", allow: [\"s3://{landing}/flights year=2013/\"], in_flight: 3 }}\n    \
         format: {{ csv: {{ \"null\": [\"NA\"] }} }}\n{}    \
         event_time: {{ column: time_hour, lateness: 400d }}\n",
        columns()
    );
    (pipeline(world, &head, true), url)
}

#[test]
fn the_flights_through_a_stream_of_three_shards() {
    let world = cloud();
    let bucket = world.bucket("lake");
    let pipeline = kinesis_pipeline(&world, &bucket, "4MiB");

    let report = world.run(&pipeline, &["--until-idle", "5s"]);

    assert_eq!(count(&report["sources"]["departures"], "rows"), DEPARTURES);
    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    let shards = "SELECT count(DISTINCT _partition), count(DISTINCT _key) > 3, count(*) FROM bronze.departures";
    assert_eq!(ask(&lake, shards), [json!([3, true, DEPARTURES])]);
    assert_eq!(world.aws(&["uploads", &bucket]), "0", "multipart uploads were left open");

    let again = world.run(&pipeline, &["--until-idle", "2s"]);
    assert_eq!(count(&again["sources"]["departures"], "records"), 0, "the second run read records again");
}

#[test]
fn the_flights_through_announced_objects() {
    let world = cloud();
    let bucket = world.bucket("lake");
    let (pipeline, queue) = uploads_pipeline(&world, &bucket, "4MiB");

    let report = world.run(&pipeline, &["--until-idle", "8s"]);

    assert_eq!(count(&report["sources"]["departures"], "rows"), DEPARTURES);
    let lake = world.download(&[&bucket]);
    check_tables(&lake);
    check_same_gold(&world, &lake);
    assert_eq!(world.aws(&["depth", &queue]), "0", "messages were not deleted after the commit");
    assert_eq!(world.aws(&["uploads", &bucket]), "0", "multipart uploads were left open");
}

/// Events of the telemetry: each device sends one every five seconds.
fn telemetry(devices: u32, readings: u32) -> String {
    let mut events = String::new();
    for seq in 0..readings {
        for device in 0..devices {
            let second = seq * 5;
            let status = if (device + seq) % 17 == 0 { "error" } else { "ok" };
            let _ = writeln!(
                events,
                r#"{{"ts":"2026-11-01T{:02}:{:02}:{:02}.250Z","device":"d{device}","site":"site-{}","lat":39.5,"lon":-119.8,"temp_c":{},"humidity":{},"pressure_hpa":1010.5,"battery_v":{},"firmware":"1.2.0","status":"{status}","seq":{seq}}}"#,
                second / 3600,
                second / 60 % 60,
                second % 60,
                device % 5,
                20 + (device % 5) * 6,
                30 + seq % 10,
                if device % 13 == 0 { 0.1 } else { 3.7 },
            );
        }
    }
    events
}

/// What `pipelines/telemetry.yaml` reads and writes.
pub struct Telemetry {
    /// The stream, of two shards.
    pub stream: String,
    /// The bucket whose uploads are announced.
    pub landing: String,
    /// The buckets of the four tiers.
    pub tiers: [String; 4],
    /// The parameters that say so to the pipeline, as `name=value`.
    pub sets: Vec<String>,
}

impl Telemetry {
    /// Makes all of it.
    pub fn new(world: &World) -> Self {
        let (landing, queue, stream) = (world.bucket("landing"), unique("uploads"), unique("intake"));
        let url = world.aws(&["announce", &landing, &queue, "30"]);
        let names = ["bronze", "silver", "gold", "vibranium"];
        let tiers = names.map(|tier| world.bucket(tier));
        world.aws(&["stream", &stream, "2"]);
        let mut sets =
            vec![format!("stream={stream}"), format!("queue={url}"), format!("landing=s3://{landing}/telemetry/")];
        sets.extend(names.iter().zip(&tiers).map(|(tier, bucket)| format!("{tier}=s3://{bucket}")));
        Self { stream, landing, tiers, sets }
    }
}

#[test]
fn the_telemetry_pipeline_runs_as_it_is() {
    let world = cloud();
    let Telemetry { stream, landing, tiers, sets } = Telemetry::new(&world);

    // The stream has all events; half of them come a second time, as an upload of a device that was out of reach.
    let all = telemetry(20, 200);
    let half: String = all.lines().take(2000).map(|line| format!("{line}\n")).collect();
    world.aws(&["put", &stream, "10", &world.file("all.json", &all).display().to_string()]);
    world.aws(&["upload", &landing, "telemetry/", &world.file("half.json", &half).display().to_string()]);

    let mut more = vec!["--until-idle", "5s"];
    more.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let report = world.run(&repository("pipelines/telemetry.yaml"), &more);

    assert_eq!(count(&report["sources"]["intake"], "rows"), 4000);
    assert_eq!(count(&report["sources"]["uploads"], "rows"), 2000);
    let lake = world.download(&tiers.each_ref().map(String::as_str));
    let good = "status <> 'error' AND battery_v > 0.2";
    let kept = ask(&lake, &format!("SELECT count(DISTINCT (device, seq)) FROM bronze.events WHERE {good}"));
    assert_eq!(ask(&lake, "SELECT count(*) FROM bronze.events"), [json!([6000])]);
    assert_eq!(ask(&lake, "SELECT count(*) FROM silver.readings"), kept);
    assert_eq!(ask(&lake, "SELECT count(DISTINCT (device, seq)) FROM silver.readings"), kept);

    let folded = |table: &str| {
        format!(
            "SELECT epoch(date_trunc('minute', ts))::BIGINT, site, count(*), avg(temp_c), min(temp_c), max(temp_c) \
             FROM {table} GROUP BY 1, 2 ORDER BY 1, 2"
        )
    };
    let gold = "SELECT epoch(minute)::BIGINT, site, readings, mean_temp_c, min_temp_c, max_temp_c \
                FROM gold.site_minutes ORDER BY 1, 2";
    let in_lake = ask(&lake, gold);
    assert_eq!(in_lake, ask(&lake, &folded("silver.readings")));
    assert!(in_lake.len() > 50, "{} minutes and sites", in_lake.len());
    let in_postgres = world.ask_postgres(
        "SELECT extract(epoch FROM minute)::BIGINT, site, readings, mean_temp_c, min_temp_c, max_temp_c \
         FROM site_minutes ORDER BY 1, 2",
    );
    assert!(in_postgres == in_lake, "gold differs between Postgres and the lake");
    let hot = "SELECT count(*), bool_and(site = 'site-4') FROM vibranium.hot_sites";
    let hot_expected = "SELECT count(*), true FROM gold.site_minutes WHERE readings >= 3 AND mean_temp_c > 40";
    assert_eq!(ask(&lake, hot), ask(&lake, hot_expected));
}
