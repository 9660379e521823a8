//! `nexus check --online`: of each thing that a pipeline names it says whether it is good, or whether permission, the
//! network or the thing is missing.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::iam::check_calls;
use crate::servers::faults::{Faults, QUIET};
use crate::servers::{free_port, kinesis, ministack, postgres, unique};
use crate::world::World;

/// What a pipeline names.
struct Names {
    bucket: String,
    landing: String,
    queue: String,
    stream: String,
    secret: String,
}

/// Writes a pipeline that names one thing of each kind.
fn pipeline(world: &World, names: &Names) -> String {
    let Names { bucket, landing, queue, stream, secret } = names;
    let file = world.file(
        "online.yaml",
        &format!(
            "name: online
lake: s3://{bucket}/lake
state: ./state
sources:
  clicks: {{ kinesis: {{ stream: {stream} }}, columns: {{ id: int64 }}, archive: {{ path: s3://{bucket}/raw }} }}
  uploads: {{ s3: {{ queue: \"{queue}\", allow: [\"s3://{landing}/in/\"] }}, columns: {{ id: int64 }} }}
bronze:
  clicks:
    from: clicks
    postgres: {{ url: pg, table: clicks, key: [id] }}
  uploads:
    from: uploads
    postgres: {{ url: managed, table: uploads, append: true }}
secrets:
  pg: {{ env: DATABASE_URL }}
  managed: {{ aws_secrets_manager: {{ id: {secret} }} }}
"
        ),
    );
    file.display().to_string()
}

/// Looks; gives the result and the words by place and kind of thing.
fn look(world: &World, file: &str, code: i32) -> BTreeMap<String, (String, String)> {
    let done = world.nexus(&["check", "--online", "--format", "json", file]).expect_code(code);
    let found: Vec<Value> = serde_json::from_str(&done.stdout).expect("it prints JSON");
    let text = |one: &Value, name: &str| one[name].as_str().expect("it is a text").to_owned();
    let kind = |thing: String| thing.split(' ').next().unwrap_or_default().to_owned();
    let named = |one: &Value| {
        (format!("{} {}", text(one, "place"), kind(text(one, "thing"))), (text(one, "result"), text(one, "words")))
    };
    found.iter().map(named).collect()
}

/// Gives the results alone.
fn results(found: &BTreeMap<String, (String, String)>) -> Vec<(&str, &str)> {
    found.iter().map(|(of, (result, _))| (of.as_str(), result.as_str())).collect()
}

fn names(world: &World) -> Names {
    let (landing, queue) = (world.bucket("landing"), unique("online"));
    let names = Names {
        bucket: world.bucket("lake"),
        queue: world.aws(&["announce", &landing, &queue, "30"]),
        landing,
        stream: unique("online"),
        secret: unique("online"),
    };
    world.aws(&["stream", &names.stream, "2"]);
    let object = world.file("object.json", "{\"id\":1}\n").display().to_string();
    world.aws(&["upload", &names.landing, "in/", &object]);
    world.aws(&["secret", &names.secret, world.env("DATABASE_URL")]);
    names
}

const THINGS: [&str; 9] = [
    "bronze.clicks table",
    "bronze.uploads table",
    "lake folder",
    "secrets.managed secret",
    "secrets.pg secret",
    "sources.clicks stream",
    "sources.clicks.archive folder",
    "sources.uploads objects",
    "sources.uploads queue",
];

#[test]
fn what_is_good_is_said_within_the_policy_and_nothing_is_left() {
    let mut world = World::new().with_aws().with_kinesis().with_postgres();
    let names = names(&world);
    let file = pipeline(&world, &names);
    let (aws, streams) = (Faults::start(ministack::shared().port, QUIET), Faults::start(kinesis::shared().port, QUIET));
    world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", aws.port));
    world.set("AWS_ENDPOINT_URL_KINESIS", &format!("http://127.0.0.1:{}", streams.port));
    let found = look(&world, &file, 0);
    let expected: Vec<_> = THINGS.iter().map(|thing| (*thing, "good")).chain([("state folder", "good")]).collect();
    assert_eq!(results(&found), expected, "{found:#?}");
    assert!(found["sources.clicks stream"].1.starts_with("2 shards"), "{found:#?}");
    assert!(found["bronze.clicks table"].1.starts_with("PostgreSQL 1"), "{found:#?}");
    let text = world.nexus(&["check", "--online", &file]).expect_code(0);
    assert!(text.stdout.contains("good        sources.clicks"), "{}", text.stdout);
    assert!(!text.said().contains("postgres://"), "{}", text.said());

    let printed = world.nexus(&["iam", &file, "--online", "--format", "json"]).expect_code(0);
    let printed: Value = serde_json::from_str(&printed.stdout).expect("it prints JSON");
    let calls = aws.calls().into_iter().chain(streams.calls()).collect();
    check_calls(&printed, &calls);
    let copy = world.download(&[&names.bucket]);
    assert!(!copy.exists(), "something is left in the lake");
    assert_eq!(world.aws(&["uploads", &names.bucket]), "0");
    assert_eq!(
        world.ask_postgres("SELECT to_regclass('clicks') IS NULL AND to_regnamespace('nexus') IS NULL"),
        [serde_json::json!([true])]
    );
    assert_ne!(world.aws(&["depth", &names.queue]), "0", "messages were taken");
    assert!(!world.path("state").exists());
}

#[test]
fn things_that_are_missing_are_told_apart() {
    let mut world = World::new().with_aws().with_kinesis().with_postgres();
    let Names { queue, .. } = names(&world);
    let missing = || unique("missing");
    let queue = format!("{}-missing", queue);
    let names = Names { bucket: missing(), landing: missing(), queue, stream: missing(), secret: missing() };
    let file = pipeline(&world, &names);
    let url = world.env("DATABASE_URL").replace("?", "_missing?");
    world.set("DATABASE_URL", &url);
    let found = look(&world, &file, 1);
    let expected = THINGS.map(|thing| (thing, if thing == "secrets.pg secret" { "good" } else { "thing" }));
    assert_eq!(results(&found)[..THINGS.len()], expected, "{found:#?}");
    assert!(found["sources.clicks stream"].1.contains(&names.stream), "{found:#?}");
    assert!(found["bronze.clicks table"].1.contains("3D000"), "{found:#?}");
}

#[test]
fn what_cannot_be_reached_is_told_at_once() {
    let mut world = World::new().with_aws().with_kinesis().with_postgres();
    let names = names(&world);
    let file = pipeline(&world, &names);
    let closed = free_port();
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS"] {
        world.set(name, &format!("http://127.0.0.1:{closed}"));
    }
    world.set("DATABASE_URL", &postgres::url(closed, "none"));
    let started = std::time::Instant::now();
    let found = look(&world, &file, 1);
    let expected = THINGS.map(|thing| (thing, if thing == "secrets.pg secret" { "good" } else { "network" }));
    assert_eq!(results(&found)[..THINGS.len()], expected, "{found:#?}");
    // All are looked at at once, each for ten seconds at most; the rest is a busy machine's.
    assert!(started.elapsed().as_secs() < 40, "{:?}", started.elapsed());
}

#[test]
fn what_is_forbidden_is_said_to_be() {
    let mut world = World::new().with_aws().with_kinesis().with_postgres();
    let names = names(&world);
    let file = pipeline(&world, &names);
    let refusal = Faults::forbidding();
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS"] {
        world.set(name, &format!("http://127.0.0.1:{}", refusal.port));
    }
    let role = unique("reader").replace('-', "_");
    world.change_postgres(&format!("CREATE ROLE {role} LOGIN"));
    let url = world.env("DATABASE_URL").replace("//postgres@", &format!("//{role}@"));
    world.set("DATABASE_URL", &url);
    let found = look(&world, &file, 1);
    let expected = THINGS.map(|thing| (thing, if thing == "secrets.pg secret" { "good" } else { "permission" }));
    assert_eq!(results(&found)[..THINGS.len()], expected, "{found:#?}");
    assert!(found["bronze.clicks table"].1.contains("42501"), "{found:#?}");

    // One who may do all of it but put rows into the table that is there.
    world.change_postgres(&format!("CREATE TABLE clicks (id bigint PRIMARY KEY, _source text, _partition text, _offset text, _ingested_at timestamptz, _key text); GRANT SELECT ON clicks TO {role}; CREATE SCHEMA nexus AUTHORIZATION {role}"));
    let found = look(&world, &file, 1);
    assert_eq!(found["bronze.clicks table"].0, "permission", "{found:#?}");
}
