//! Formats of other tools, from files and from a stream, through the command.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::balance::count;
use crate::servers::unique;
use crate::world::{World, ask};

/// Gives a file that another tool has made (tests/fixtures/binary/make.py).
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/binary").join(name)
}

fn audit(world: &World, pipeline: &Path) {
    world.nexus(&["audit", &pipeline.display().to_string(), "--skip-postgres"]).expect_code(0);
}

#[test]
fn avro_files_of_all_codecs_with_a_broken_block() {
    let world = World::new();
    for codec in ["null", "deflate", "snappy", "zstandard"] {
        let mut file = fs::read(fixture(&format!("reading-{codec}.avro"))).expect("a fixture");
        if codec == "deflate" {
            let middle = file.len() / 2;
            file[middle..middle + 64].fill(0xee);
        }
        fs::write(world.path(&format!("{codec}.avro")), file).expect("could not write a file");
    }
    let lake = world.path("lake");
    let text = format!(
        "name: avro\nlake: {}\nsources:\n  readings:\n    file: {{ path: \"*.avro\" }}\n    format: avro\nbronze:\n  \
         readings: {{ from: readings }}\n",
        lake.display()
    );
    let pipeline = world.file("avro.yaml", &text);
    let checked = world.nexus(&["check", &pipeline.display().to_string()]).expect_code(0);
    assert!(checked.stdout.contains("price") && checked.stdout.contains("decimal(12, 3)"), "{}", checked.stdout);

    let report = world.run(&pipeline, &[]);

    let source = &report["sources"]["readings"];
    assert_eq!(count(source, "quarantined"), 1, "the broken block is one reject");
    let by_file = "SELECT regexp_extract(_partition, '([a-z]+)[.]avro', 1) AS codec, count(*), count(DISTINCT _offset), \
                   count(DISTINCT id), sum(price)::DOUBLE FROM bronze.readings GROUP BY 1 ORDER BY 1";
    let found = ask(&lake, by_file);
    let whole = |codec| json!([codec, 120, 120, 120, 85.38]);
    assert_eq!(found[1..], [whole("null"), whole("snappy"), whole("zstandard")]);
    assert_eq!(found.len(), 4, "the other blocks of the broken file are read");
    let row = "SELECT id, kind, day::TEXT, counts['c1'], \"inner\".again, \"any\" FROM bronze.readings \
               WHERE _partition LIKE '%snappy%' AND id = 5000010";
    assert_eq!(ask(&lake, row), [json!([5_000_010, "BLUE", "1970-01-04", 5, "BLUE", "5"])]);
    audit(&world, &pipeline);
}

#[test]
fn records_of_a_stream_in_avro_protobuf_and_from_cloudwatch() {
    let world = World::new().with_aws().with_kinesis();
    let log = fs::read(fixture("cloudwatch-data.json.gz")).expect("a fixture");
    let control = fs::read(fixture("cloudwatch-control.json.gz")).expect("a fixture");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let logs = world.file("logs.hex", &format!("{}\n{}\n{}\n", hex(&log), hex(&control), hex(b"what is this")));
    let streams =
        [("readings", fixture("reading-single_object.hex")), ("orders", fixture("order.hex")), ("logs", logs)].map(
            |(name, file)| {
                let stream = unique(name);
                world.aws(&["stream", &stream, "1"]);
                world.aws(&["put_hex", &stream, &file.display().to_string()]);
                stream
            },
        );
    let [readings, orders, logs] = &streams;
    let lake = world.path("lake");
    let (schema, descriptor) = (fixture("reading.avsc"), fixture("order.desc"));
    let pipeline = world.file(
        "formats.yaml",
        &format!(
            "name: formats\nlake: {}\nsources:\n  readings:\n    kinesis: {{ stream: {readings} }}\n    format: {{ avro: {{ \
             schema_file: {}, encoding: single_object }} }}\n  orders:\n    kinesis: {{ stream: {orders} }}\n    format: {{ \
             protobuf: {{ descriptor: {}, message: nexus.test.Order }} }}\n    columns: {{ id: int64, state: string, at: \
             timestamp, count: int64, stock: \"map<string, int64>\" }}\n  logs:\n    kinesis: {{ stream: {logs} }}\n    \
             format: cloudwatch_logs\nbronze:\n  readings: {{ from: readings }}\n  orders: {{ from: orders }}\n  logs: {{ \
             from: logs }}\n",
            lake.display(),
            schema.display(),
            descriptor.display()
        ),
    );

    let report = world.run(&pipeline, &["--until-idle", "4s"]);

    let rows = |source: &str| count(&report["sources"][source], "rows");
    assert_eq!([rows("readings"), rows("orders"), rows("logs")], [8, 40, 3]);
    assert_eq!(count(&report["sources"]["logs"], "skipped"), 1, "the control message is counted");
    assert_eq!(count(&report["sources"]["logs"], "quarantined"), 1);
    let order = "SELECT id, state, epoch_us(\"at\"), \"count\", stock['s1'], _rescued LIKE '%\"name\":\"ö5\"%' \
                 FROM bronze.orders WHERE id = 5000000000000";
    assert_eq!(ask(&lake, order), [json!([5_000_000_000_000_i64, "SENT", 1_795_348_800_000_005_i64, 5, 5, true])]);
    let log = "SELECT log_group, count(*), min(epoch_ms(\"timestamp\")) FROM bronze.logs GROUP BY 1";
    assert_eq!(ask(&lake, log), [json!(["CloudTrail/logs", 3, 1_432_826_855_000_i64])]);
    audit(&world, &pipeline);
}

#[test]
fn records_of_an_older_schema_are_read_as_the_newest_wants_them() {
    let world = World::new().with_aws().with_kinesis();
    let stream = unique("customers");
    world.aws(&["stream", &stream, "1"]);
    for packing in ["glue", "glue_zlib"] {
        let records = fixture(&format!("customer-{packing}.hex"));
        world.aws(&["put_hex", &stream, &records.display().to_string()]);
    }
    let pipeline = |ids: [&str; 2]| {
        let [newer, older] = ["newer", "older"].map(|name| fixture(&format!("customer-{name}.avsc")));
        let text = format!(
            "name: customers\nlake: ./lake\nsources:\n  customers:\n    kinesis: {{ stream: {stream} }}\n    format:\n      \
             avro:\n        schema_file: {}\n        encoding: glue\n        {}\n        older: [{{ schema_file: {}{} }}]\n\
             bronze:\n  customers: {{ from: customers }}\n",
            newer.display(),
            ids[0],
            older.display(),
            ids[1]
        );
        world.file("customers.yaml", &text)
    };
    let version = ", schema_id: b7b4a7f0-9c96-4e4a-a687-fb5de9ef0c63";
    for (ids, words) in [
        (["", version], "each needs its `schema_id`"),
        (["schema_id: 7", version], "it is the UUID of a version"),
        (["schema_id: b7b4", version], "it is no UUID"),
    ] {
        let said = world.nexus(&["check", &pipeline(ids).display().to_string()]).expect_code(2).said();
        assert!(said.contains("N0411") && said.contains(words), "{said}");
    }

    let file = pipeline(["schema_id: 00000000-0000-0000-0000-000000000007", version]);
    let report = world.run(&file, &["--until-idle", "2s"]);

    let source = &report["sources"]["customers"];
    assert_eq!([count(source, "rows"), count(source, "quarantined")], [12, 0], "{report}");
    let row = "SELECT count(*), min(name), min(address.postcode), min(address.country), min(level), min(born)::TEXT, \
               min(len(past)), min(score) FROM bronze.customers WHERE id = 2";
    let expected = json!([2, "name 2", 2, "NL", "BASIC", "2000-01-01", 2, 0.5]);
    assert_eq!(ask(&world.path("lake"), row), [expected]);
    audit(&world, &file);
}
