//! The archive of a source: every record once, byte for byte, in objects that other tools and Nexus itself read.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::balance::count;
use crate::servers::{script, unique};
use crate::world::{World, ask, repository, run_args};

/// Gives the paths and the lines of the objects below a folder, as Python unpacks them.
pub fn lines(folder: &Path) -> Vec<(String, String)> {
    let printed = script("gunzip.py", &[&folder.display().to_string()], &[]);
    printed.lines().map(|line| serde_json::from_str(line).expect("gunzip.py prints JSON")).collect()
}

/// Gives what an archive with the prefix `raw/` holds, but for what is different in each run.
pub fn archived(kept: &Path) -> Vec<String> {
    let mut found: Vec<String> = lines(&kept.join("raw")).into_iter().map(|(_, line)| line).collect();
    for (_, line) in lines(&kept.join("errors/raw")) {
        let told: Value = serde_json::from_str(&line).expect("errors are lines of JSON");
        found.push(format!("refused: {} {}", told["errorMessage"], told["rawData"]));
    }
    found.sort_unstable();
    found
}

/// Gives the lines alone, in order.
fn sorted(lines: &[(String, String)]) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
    lines.sort_unstable();
    lines
}

/// Tells whether a path is that of an object in the folder of an hour.
fn is_in_hour(path: &str, name: &str) -> bool {
    let shape: String = path.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape.starts_with(&format!("0000/00/00/00/{name}-0-"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn audit(world: &World, pipeline: &Path, code: i32) -> Value {
    let done = world.nexus(&["audit", &text(pipeline), "--json"]).expect_code(code);
    serde_json::from_str(&done.stdout).expect("it prints JSON")
}

/// Reads files of JSON into a table; gives what the run reports.
fn read_again(world: &World, glob: &Path, source: &str) -> (PathBuf, Value) {
    let lake = world.path(&unique("again"));
    let pipeline = world.file(
        "again.yaml",
        &format!(
            "name: again\nlake: {}\nsources:\n  kept:\n    file: {{ path: \"{}\" }}\n{source}bronze:\n  kept: {{ from: kept }}\n",
            lake.display(),
            glob.display()
        ),
    );
    let report = world.run(&pipeline, &[]);
    (lake, report)
}

#[test]
fn records_of_a_stream_are_archived_on_s3_and_read_again() {
    let world = World::new().with_aws().with_kinesis();
    let (bucket, stream) = (world.bucket("lake"), unique("clicks"));
    world.aws(&["stream", &stream, "2"]);
    // Digits that repeat little: what comes of a shard is larger than the buffer even when it is packed.
    let digits = |n: u64| format!("{:020}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut records: Vec<String> = (0..2000).map(|n| format!(r#"{{"n":{n},"at":"{}"}}"#, digits(n))).collect();
    let misfits: Vec<String> = (0..20).map(|n| format!(r#"{{"n":"no number {n}"}}"#)).collect();
    let broken = r#"{"n": 5, "at""#.to_owned();
    records.extend(misfits.iter().cloned());
    let put = |records: &[String]| {
        let file = world.file("records.json", &(records.join("\n") + "\n"));
        world.aws(&["put", &stream, "1", &text(&file)]);
    };
    put(&records[..1000]);
    let pipeline = world.file(
        "clicks.yaml",
        &format!(
            "name: kept\nlake: s3://{bucket}/lake\ncommit: {{ every: 200ms }}\nsources:\n  clicks:\n    kinesis: {{ \
             stream: {stream} }}\n    columns: {{ n: int64 not null, at: string }}\n    archive: {{ path: \
             s3://{bucket}/raw, prefix: client/, buffer: {{ size: 4KiB, every: 1h }} }}\nbronze:\n  clicks: {{ from: \
             clicks }}\n"
        ),
    );
    let planned = world.nexus(&["plan", &text(&pipeline)]).expect_code(0);
    assert!(planned.stdout.contains(&format!("-> archive s3://{bucket}/raw/client")), "{}", planned.stdout);

    // What is larger than the buffer does not wait for an hour, or for the end of the run.
    let full = world.run_to_report(|world, report| {
        let mut run = world.start(&run_args(&pipeline, report, &[]));
        let first = world.path("first");
        run.until("an object is in the archive", || {
            world.aws(&["download", &bucket, "raw/client", &text(&first)]);
            first.exists()
        });
        run.signal("TERM");
        run.wait()
    });
    put(&records[1000..]);
    put(&[broken]);
    let rest = world.run(&pipeline, &["--until-idle", "4s"]);

    let counted = |of: &str, what: &str| -> u64 {
        [&full, &rest].iter().map(|report| report.pointer(of).map_or(0, |told| count(told, what))).sum()
    };
    assert_eq!(counted("/sources/clicks", "archived"), 2020);
    assert_eq!((counted("/sinks/clicks/archive", "rows"), counted("/sinks/clicks/errors", "rows")), (2020, 21));
    let copy = world.download(&[&bucket]);
    let kept = lines(&copy.join("raw/client"));
    assert!(kept.iter().all(|(path, _)| is_in_hour(path, "kept-clicks") && path.ends_with(".gz")), "{:?}", kept[0]);
    records.sort_unstable();
    assert_eq!(sorted(&kept), records, "each record once, byte for byte");

    let errors = lines(&copy.join("raw/errors/client"));
    let told: Vec<Value> = errors.iter().map(|(_, line)| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(told.len(), 21);
    let of_broken = told.iter().find(|line| line["rawData"] == "eyJuIjogNSwgImF0Ig==").expect("the broken record");
    assert_eq!((&of_broken["errorCode"], &of_broken["attemptsMade"]), (&json!("DecodeFailed"), &json!(1)));
    assert!(of_broken["arrivalTimestamp"].as_i64() > Some(1_700_000_000_000) && of_broken["partition"].is_string());

    let found = audit(&world, &pipeline, 0);
    assert_eq!(found["sinks"]["clicks/archive"]["rows"], 2020);
    let (again, report) =
        read_again(&world, &copy.join("raw/client/**/*.gz"), "    columns: { n: int64 not null, at: string }\n");
    assert_eq!(
        (count(&report["sources"]["kept"], "rows"), count(&report["sources"]["kept"], "quarantined")),
        (2000, 20)
    );
    assert_eq!(ask(&again, "SELECT count(DISTINCT n), sum(n)::BIGINT FROM bronze.kept"), [json!([2000, 1_999_000])]);

    world.aws(&["remove", &bucket, &format!("raw/client/{}", kept[0].0)]);
    let found = audit(&world, &pipeline, 1);
    assert_eq!(found["faults"][0]["of"], "clicks/archive", "{found:#}");
}

#[test]
fn files_with_headers_and_generated_rows_are_archived_on_a_disk() {
    let world = World::new();
    let mut one = "id,name\n".to_owned();
    (0..500).for_each(|n| writeln!(one, "{n},\"a \"\"quoted\"\"\nname {n}\"").expect("it is memory"));
    fs::write(world.path("prices-1.csv"), one).expect("could not write a file");
    fs::write(world.path("prices-2.csv"), "name,id\nz,1000\ny,1001\nx,none\n").expect("could not write a file");
    let pipeline = world.file(
        "disk.yaml",
        "name: disk\nlake: ./lake\nsources:\n  prices:\n    file: { path: prices-*.csv }\n    format: csv\n    columns: { id: \
         int64, name: string }\n    archive: { path: ./kept, prefix: prices/day=1/, gzip: false }\n  made:\n    generate: { \
         rows: 300, columns: { n: { sequence: {} }, site: { choice: [reno, yuma] } } }\n    archive: { path: ./kept, \
         prefix: made/ }\nbronze:\n  prices: { from: prices }\n  made: { from: made }\n",
    );

    let report = world.run(&pipeline, &[]);

    let archived = |source: &str| count(&report["sources"][source], "archived");
    assert_eq!((archived("prices"), archived("made")), (503, 300));
    audit(&world, &pipeline, 0);
    let prices = world.path("kept/prices/day=1");
    assert!(lines(&prices).iter().all(|(path, _)| is_in_hour(path, "disk-prices") && !path.contains('.')));
    let columns = "    format: csv\n    columns: { id: int64, name: string }\n";
    let (again, report) = read_again(&world, &prices.join("**/disk-*"), columns);
    assert_eq!((count(&report["sources"]["kept"], "rows"), count(&report["sources"]["kept"], "quarantined")), (502, 1));
    let names = "SELECT name FROM bronze.kept WHERE id IN (7, 1000) ORDER BY id";
    assert_eq!(ask(&again, names), [json!(["a \"quoted\"\nname 7"]), json!(["z"])]);
    let made = lines(&world.path("kept/made"));
    assert_eq!(made.len(), 300);
    assert!(sorted(&made)[0].starts_with("{\"n\":0,\"site\":\""), "{:?}", made[0]);
    assert_eq!(lines(&world.path("kept/errors/prices")).len(), 1);
    let again = world.nexus(&["run", &text(&pipeline)]).expect_code(0);
    assert!(again.said().contains("nothing new"), "{}", again.said());
}

#[test]
fn messages_of_protocol_buffers_and_envelopes_of_logs_are_archived_so_that_they_read_again() {
    let world = World::new().with_aws().with_kinesis();
    let fixture = |name: &str| repository("tests/fixtures/binary").join(name);
    let log = fs::read(fixture("cloudwatch-data.json.gz")).expect("a fixture");
    let log: String = log.iter().map(|byte| format!("{byte:02x}")).collect();
    let log = world.file("logs.hex", &(log + "\n"));
    let streams = [("orders", fixture("order.hex")), ("logs", log)].map(|(name, file)| {
        let stream = unique(name);
        world.aws(&["stream", &stream, "1"]);
        world.aws(&["put_hex", &stream, &text(&file)]);
        stream
    });
    let [orders, logs] = &streams;
    let format = |framing: &str| {
        let descriptor = text(&fixture("order.desc"));
        format!("    format: {{ protobuf: {{ descriptor: {descriptor}, message: nexus.test.Order{framing} }} }}\n")
    };
    let columns = "    columns: { id: int64, state: string, count: int64 }\n";
    let pipeline = world.file(
        "binary.yaml",
        &format!(
            "name: binary\nlake: ./lake\nsources:\n  orders:\n    kinesis: {{ stream: {orders} }}\n{}{columns}    archive: \
             {{ path: ./kept, prefix: orders/ }}\n  logs:\n    kinesis: {{ stream: {logs} }}\n    format: cloudwatch_logs\n    \
             archive: {{ path: ./kept, prefix: logs/ }}\nbronze:\n  orders: {{ from: orders }}\n  logs: {{ from: logs }}\n",
            format("")
        ),
    );

    let report = world.run(&pipeline, &["--until-idle", "4s"]);

    let archived = |source: &str| count(&report["sources"][source], "archived");
    assert_eq!((archived("orders"), archived("logs")), (40, 1));
    audit(&world, &pipeline, 0);
    let delimited = format!("{}{columns}", format(", framing: delimited"));
    let (again, report) = read_again(&world, &world.path("kept/orders/**/*.gz"), &delimited);
    assert_eq!(count(&report["sources"]["kept"], "rows"), 40);
    let sql = |table: &str| format!("SELECT id, state, \"count\" FROM {table} ORDER BY id");
    assert_eq!(ask(&again, &sql("bronze.kept")), ask(&world.path("lake"), &sql("bronze.orders")));
    let (again, _) = read_again(&world, &world.path("kept/logs/**/*.gz"), "    format: cloudwatch_logs\n");
    let sql = |table: &str| format!("SELECT id, message FROM {table} ORDER BY id");
    assert_eq!(ask(&again, &sql("bronze.kept")), ask(&world.path("lake"), &sql("bronze.logs")));
}

#[test]
fn an_archive_that_is_taken_out_has_nothing_left_to_write() {
    let mut world = World::new();
    world.file("ticks.json", &(0..200).fold(String::new(), |text, n| format!("{text}{{\"n\":{n}}}\n")));
    let archive = "    archive: { path: ./kept }\n";
    let pipeline = |archive: &str| {
        format!(
            "name: taken\nlake: ./lake\ncommit: {{ every: 1h, bytes: 500B }}\nsources:\n  ticks:\n    file: {{ path: \
             ticks.json }}\n    columns: {{ n: int64 }}\n{archive}bronze:\n  ticks: {{ from: ticks }}\n"
        )
    };
    let path = text(&world.file("taken.yaml", &pipeline(archive)));
    world.set("NEXUS_FAIL_POINT", "before_roll:1");
    assert!(world.nexus(&["run", &path]).stderr.contains("fail point reached"));
    world.set("NEXUS_FAIL_POINT", "");
    world.file("taken.yaml", &pipeline(""));
    let refused = world.nexus(&["run", &path]).expect_code(1);
    assert!(refused.said().contains("the file has no sink ticks/archive any more"), "{}", refused.said());
    world.file("taken.yaml", &pipeline(archive));
    world.nexus(&["run", &path]).expect_code(0);
    assert_eq!(lines(&world.path("kept")).len(), 200);
    world.file("taken.yaml", &pipeline(""));
    world.nexus(&["run", &path]).expect_code(0);
}
