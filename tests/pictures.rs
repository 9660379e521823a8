//! Pictures for the documentation: the console and `nexus top` while `pipelines/telemetry.yaml` runs on generated load.
//! `make screenshots` takes them.

use std::fs;
use std::process::{Command, Stdio};

use crate::cloud::{Telemetry, cloud};
use crate::servers::{beside, free_port, test_env};
use crate::serving::{metrics, request};
use crate::world::repository;

/// Events a second: what the emulator of Kinesis takes with ease.
const EVENTS_A_SECOND: &str = "2000";

/// A picture is loaded with the page that shows it.
const PICTURE_BYTES_MAX: u64 = 150 * 1000;

#[test]
fn the_pictures_are_taken() {
    let Some(folder) = std::env::var_os("NEXUS_TEST_PICTURES") else { return };
    let folder = repository("").join(folder);
    let world = cloud();
    let telemetry = Telemetry::new(&world);
    let mut load = world.script("load.py", &[&telemetry.stream, &telemetry.landing, EVENTS_A_SECOND]);
    let mut load = load.stdin(Stdio::piped()).spawn().expect("could not start the load");

    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let pipeline = repository("pipelines/telemetry.yaml").display().to_string();
    let mut args = vec!["run", &pipeline, "--listen", &address];
    args.extend(telemetry.sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let mut running = world.start(&args);
    running.until("hot sites are known", || {
        let asked = request(port, "GET /api/v1/tables/vibranium.hot_sites/sample", &[]);
        asked.is_some_and(|(status, _, body)| status == 200 && body.contains("yuma"))
    });
    running.until("some epochs are committed", || metrics(port)["nexus_epochs_total"] >= 5.0);

    let frame = world.nexus(&["top", &address, "--once"]).expect_code(0).stdout;
    let frame = world.file("frame.txt", &frame);
    let mut browser = Command::new("node");
    browser.arg(beside("pictures.js")).arg(format!("http://{address}/")).args([&folder, &frame]);
    let output = browser.env("NODE_PATH", test_env().join("node/node_modules")).output().expect("could not start node");
    drop(load.stdin.take());
    load.wait().expect("the load ends");
    running.signal("TERM");
    running.wait().expect_code(0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["console-graph", "console-sample", "console-quarantine", "console-map", "top"] {
        let bytes = fs::metadata(folder.join(format!("{name}.png"))).expect("the picture is there").len();
        assert!(bytes < PICTURE_BYTES_MAX, "{name} has {bytes} bytes");
    }
}
