//! The files of `deploy/`: each held by the tool that is made for it, and the command lines in them by the command.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::servers::{python, test_env};
use crate::world::{World, repository};

/// The lines may be as long as those of the code.
const YAML_RULES: &str =
    "{extends: default, rules: {line-length: {max: 120}, braces: {max-spaces-inside: 1}, comments: disable}}";

fn deploy(name: &str) -> String {
    repository("deploy").join(name).display().to_string()
}

/// Runs a linter of the tests' environment, which must have nothing to say.
fn lint(program: &Path, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("could not run {}: {e}; see `make test-env`", program.display()));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {args:?}:\n{said}", program.display());
}

#[test]
fn the_dockerfile_passes_hadolint() {
    lint(&test_env().join("python/bin/hadolint"), &[&deploy("Dockerfile")]);
}

#[test]
fn the_manifests_are_what_kubernetes_takes() {
    lint(&test_env().join("python/bin/kubernetes-validate"), &["--strict", &deploy("kubernetes/nexus.yaml")]);
}

#[test]
fn the_composition_is_valid() {
    let code = "import sys, compose_spec; compose_spec.PyCompose.from_yaml(open(sys.argv[1]).read()).validate()";
    lint(&python(), &["-c", code, &deploy("compose/compose.yaml")]);
    lint(Path::new("sh"), &["-n", &deploy("compose/prepare.sh")]);
}

#[test]
fn all_yaml_passes_yamllint() {
    let files = [deploy("compose/compose.yaml"), deploy("kubernetes/nexus.yaml")];
    lint(&test_env().join("python/bin/yamllint"), &["--strict", "-d", YAML_RULES, &files[0], &files[1]]);
}

#[test]
fn the_unit_passes_systemd() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("there is no systemd-analyze here");
        return;
    }
    // The command and its manual need not be installed where the tests run.
    let world = World::new();
    let unit = fs::read_to_string(deploy("systemd/nexus@.service")).expect("the unit is there");
    let unit = unit.replace("/usr/local/bin/nexus", "/bin/true").replace("Documentation=", "#");
    let path = world.file("nexus@.service", &unit).display().to_string();
    lint(Path::new("systemd-analyze"), &["verify", &path]);
    lint(Path::new("systemd-analyze"), &["security", "--offline=true", "--threshold=20", &path]);
}

#[test]
fn the_task_definition_has_the_keys_that_ecs_knows() {
    let text = fs::read_to_string(deploy("ecs/task-definition.json")).expect("the task definition is there");
    let task: Value = serde_json::from_str(&text).expect("it is JSON");
    // botocore has the shape of the API's request; it takes no key that is not in it.
    let code = "
import json, sys, botocore.session, botocore.validate
model = botocore.session.get_session().get_service_model('ecs').operation_model('RegisterTaskDefinition')
task = json.load(open(sys.argv[1]))
def unknown(value, shape, path):
    if shape.type_name == 'structure':
        for key, inner in value.items():
            if key not in shape.members: sys.exit(f'{path}: no key {key}')
            unknown(inner, shape.members[key], f'{path}.{key}')
    elif shape.type_name == 'list':
        for inner in value: unknown(inner, shape.member, path + '[]')
unknown(task, model.input_shape, 'task')
report = botocore.validate.ParamValidator().validate(task, model.input_shape)
sys.exit(report.generate_report() if report.has_errors() else 0)
";
    lint(&python(), &["-c", code, &deploy("ecs/task-definition.json")]);
    let container = &task["containerDefinitions"][0];
    assert_eq!((&container["readonlyRootFilesystem"], &container["user"]), (&Value::Bool(true), &"65532:65532".into()));
}

/// Gives the arguments of `nexus` in each of the files.
fn command_lines() -> Vec<(&'static str, Vec<String>)> {
    let words = |list: &Value| -> Vec<String> {
        let words = list.as_array().expect("arguments are a list");
        words.iter().map(|word| word.as_str().expect("arguments are texts").to_owned()).collect()
    };
    let of_yaml = |name: &str, pick: &str| {
        let code = format!(
            "import sys, json, yaml; d = list(yaml.safe_load_all(open(sys.argv[1]))); print(json.dumps({pick}))"
        );
        let output = Command::new(python()).args(["-c", &code, &deploy(name)]).output().expect("could not run Python");
        words(&serde_json::from_slice(&output.stdout).expect("the arguments are there"))
    };
    let read = |name: &str| fs::read_to_string(deploy(name)).expect("the file is there");
    let docker = read("Dockerfile");
    let cmd = docker.lines().find_map(|line| line.strip_prefix("CMD ")).expect("the image has a command");
    let unit = read("systemd/nexus@.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/nexus ")).expect("it starts");
    let task: Value = serde_json::from_str(&read("ecs/task-definition.json")).expect("it is JSON");
    vec![
        ("Dockerfile", words(&serde_json::from_str(cmd).expect("it is a list"))),
        ("systemd", start.split_whitespace().filter(|word| !word.starts_with('$')).map(str::to_owned).collect()),
        ("ecs", words(&task["containerDefinitions"][0]["command"])),
        ("compose", of_yaml("compose/compose.yaml", "d[0]['services']['nexus']['command']")),
        (
            "kubernetes",
            of_yaml(
                "kubernetes/nexus.yaml",
                "[i for i in d if i['kind'] == 'Deployment'][0]['spec']['template']['spec']['containers'][0]['args']",
            ),
        ),
    ]
}

#[test]
fn the_command_takes_the_arguments_of_every_file() {
    let world = World::new();
    for (file, mut args) in command_lines() {
        let listens = args.iter().any(|arg| arg == "--listen");
        assert!(listens, "{file}: nothing to probe");
        // Only the pipeline is missing: whatever else is wrong would be said before.
        args[1] = "missing.yaml".to_owned();
        let port = args.iter().position(|arg| arg == "--listen").expect("it listens") + 1;
        args[port] = "127.0.0.1:0".to_owned();
        let said = world.nexus(&args).expect_code(2).said();
        assert!(said.contains("could not read the pipeline file"), "{file}: {said}");
    }
}

#[test]
fn every_way_to_stop_leaves_the_time_to_drain() {
    let seconds = |name: &str, key: &str| {
        let text = fs::read_to_string(deploy(name)).expect("the file is there");
        let rest = text.split(key).nth(1).unwrap_or_else(|| panic!("{name} has no {key}")).to_owned();
        let digits: String =
            rest.trim_start_matches([':', '=', '"', ' ']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().expect("it is a number of seconds")
    };
    let times = BTreeSet::from([
        seconds("compose/compose.yaml", "stop_grace_period"),
        seconds("kubernetes/nexus.yaml", "terminationGracePeriodSeconds"),
        seconds("ecs/task-definition.json", "stopTimeout"),
        seconds("systemd/nexus@.service", "TimeoutStopSec"),
    ]);
    assert!(times.first().is_some_and(|least| *least > 30), "a run takes up to 30 seconds to drain: {times:?}");
}

#[test]
fn the_builder_gets_what_the_build_reads() {
    let listed = rules(&fs::read_to_string(repository(".dockerignore")).expect("it is there"));
    for needed in
        ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "engine", "operators", "benches", "examples", "tests"]
    {
        assert!(listed.contains(&format!("!{needed}")), "{needed} is not sent to the builder");
        assert!(repository(needed).exists(), "{needed} is gone");
    }
}

fn rules(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}
