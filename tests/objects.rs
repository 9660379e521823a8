//! Many objects through a queue that announces them in no order, some twice, and some that can never be read.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::balance::count;
use crate::servers::faults::{Faults, Hostility};
use crate::servers::{ministack, unique};
use crate::world::{World, ask, run_args};

/// Objects of `make test`; `make objects` takes 100 000.
const OBJECTS: usize = 2_000;

/// One object in so many is poison.
const POISON_EVERY: usize = 100;

/// Rows of a good object.
const ROWS: usize = 3;

const IN_FLIGHT: usize = 4;

#[test]
fn each_object_of_a_flood_counts_once_and_none_blocks_another() {
    let objects = std::env::var("NEXUS_TEST_OBJECTS").ok().map_or(OBJECTS, |text| text.parse().expect("a number"));
    let mut world = World::new().with_aws();
    let landing = world.bucket("flood");
    let url = world.aws(&["flood", &landing, &unique("flood"), &objects.to_string()]);
    let counting = Faults::start(ministack::shared().port, Hostility { seed: 0, share: 0.0, hangs: false });
    let lake = world.path("lake");
    let pipeline = world.file(
        "flood.yaml",
        &format!(
            "name: flood\nlake: {}\ncommit: {{ every: 2s }}\nsources:\n  objects:\n    s3: {{ queue: \"{url}\", allow: \
             [\"s3://{landing}/in/\"], in_flight: {IN_FLIGHT}, visibility: 5s }}\n    columns: {{ object: int64 not null, n: \
             int64 not null }}\nbronze:\n  objects: {{ from: objects }}\n",
            lake.display()
        ),
    );
    let direct = world.env("AWS_ENDPOINT_URL").to_owned();
    world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", counting.port));
    let begun = Instant::now();
    let report = world.run_to_report(|world, report| {
        let mut running = world.start(&run_args(&pipeline, report, &["--until-idle", "14s"]));
        assert!(running.ends_within(Duration::from_millis(300 * objects as u64)), "the run does not end");
        running.wait()
    });
    world.set("AWS_ENDPOINT_URL", &direct);

    let poison = objects / POISON_EVERY;
    let rows = (objects - poison) * ROWS;
    let source = &report["sources"]["objects"];
    assert_eq!([count(source, "rows"), count(source, "quarantined")], [rows as u64, poison as u64]);
    let found = ask(&lake, "SELECT count(*), count(DISTINCT object * 10 + n), sum(object)::BIGINT FROM bronze.objects");
    let sum: usize = (0..objects).filter(|number| number % POISON_EVERY != POISON_EVERY / 2).map(|n| n * ROWS).sum();
    assert_eq!(found, [json!([rows, rows, sum])]);
    let reasons = ask(
        &lake,
        "SELECT CASE WHEN reason LIKE '%ends too early%' THEN 0 WHEN reason LIKE '%outside of the prefixes%' THEN 1 \
         WHEN reason LIKE '%does not exist%' THEN 2 WHEN reason LIKE '%not JSON%' THEN 3 END AS kind, \
         count(*), count(DISTINCT split_part(_partition, '#', 1)) FROM quarantine.objects GROUP BY 1 ORDER BY 1",
    );
    let of_kind = |kind: usize| (0..poison).filter(|number| number % 4 == kind).count();
    let expected: Vec<_> = (0..4).map(|kind| json!([kind, of_kind(kind), of_kind(kind)])).collect();
    assert_eq!(reasons, expected);
    assert_eq!(world.aws(&["depth", &url]), "0", "the queue is not empty");
    let at_once = counting.most_reads_at_once(&landing);
    assert!((2..=IN_FLIGHT).contains(&at_once), "{at_once} objects were read at once");
    println!("{objects} objects in {:.0} s, at most {at_once} at once", begun.elapsed().as_secs_f64());
}
