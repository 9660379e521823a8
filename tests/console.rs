//! The console in a real browser, against a running pipeline.

use std::path::PathBuf;
use std::process::Command;

use crate::api::{TOKEN, start};
use crate::servers::{beside, test_env};
use crate::world::World;

/// Runs `browser.js` against a run; `NEXUS_TEST_SCREENSHOTS` names a folder that gets pictures.
fn browse(port: u16, token: &str) {
    let mut command = Command::new("node");
    command.arg(beside("browser.js")).arg(format!("http://127.0.0.1:{port}/")).arg(token);
    command.env("NODE_PATH", test_env().join("node/node_modules"));
    if let Some(folder) = std::env::var_os("NEXUS_TEST_SCREENSHOTS").map(PathBuf::from) {
        command.arg(folder);
    }
    let output = command.output().expect("could not start node");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "the console is not as it should be:\n{}", String::from_utf8_lossy(&said));
}

#[test]
fn a_browser_shows_the_run_and_steers_it() {
    let world = World::new();
    let file = world.file("token", TOKEN);
    let (running, port) =
        start(&world, "127.0.0.1", &["--token-file", file.to_str().expect("the tests' paths are UTF-8")]);
    browse(port, TOKEN);
    running.signal("TERM");
    running.wait().expect_code(0);
}
