//! `nexus iam`: pipelines run, and each call that they make is held against the policy that is printed for them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::servers::faults::{Call, Faults, QUIET};
use crate::servers::{kinesis, ministack, unique};
use crate::world::World;

/// Gives what is printed for a pipeline.
fn printed(world: &World, file: &Path) -> Value {
    let file = file.to_str().expect("the path is text");
    let done = world.nexus(&["iam", file, "--format", "json", "--account", "111122223333"]).expect_code(0);
    serde_json::from_str(&done.stdout).expect("it prints JSON")
}

/// Tells whether a policy's pattern fits a text: `*` is any text, `?` any letter.
fn fits(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => fits(rest, text) || (!text.is_empty() && fits(pattern, &text[1..])),
        (['?', pattern @ ..], [_, text @ ..]) => fits(pattern, text),
        ([first, pattern @ ..], [letter, text @ ..]) => first == letter && fits(pattern, text),
        _ => false,
    }
}

fn is_like(pattern: &str, text: &str) -> bool {
    fits(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

/// Tells whether a statement of a policy allows a call.
fn allows(statement: &Value, call: &Call) -> bool {
    let actions = statement["Action"].as_array().expect("actions are a list");
    let resource = statement["Resource"].as_str().expect("a statement has a resource");
    // What the request names is the last part of the ARN: a bucket with or without a key, a queue, a stream.
    let name = resource.splitn(6, ':').nth(5).expect("an ARN has six parts").trim_start_matches("stream/");
    let below = statement["Condition"]["StringLikeIfExists"]["s3:prefix"].as_str();
    actions.iter().any(|action| *action == call.action)
        && call.resource.as_ref().is_none_or(|resource| is_like(name, resource))
        && below.zip(call.prefix.as_ref()).is_none_or(|(below, prefix)| is_like(below, prefix))
}

/// Fails unless a policy allows all calls.
pub fn check_calls(printed: &Value, calls: &BTreeSet<Call>) {
    let statements = printed["policy"]["Statement"].as_array().expect("a policy has statements");
    for call in calls {
        assert!(statements.iter().any(|statement| allows(statement, call)), "{call:?} is not allowed by {printed:#}");
    }
}

/// Fails unless a policy allows all calls, and has no action that none of them needed but those that are named.
fn check(printed: &Value, calls: &BTreeSet<Call>, unused: &[&str]) {
    check_calls(printed, calls);
    let statements = printed["policy"]["Statement"].as_array().expect("a policy has statements");
    let called: BTreeSet<&str> = calls.iter().map(|call| call.action.as_str()).collect();
    let granted = statements.iter().flat_map(|statement| statement["Action"].as_array().expect("actions are a list"));
    let idle: BTreeSet<&str> = granted.filter_map(Value::as_str).filter(|action| !called.contains(action)).collect();
    assert_eq!(idle, unused.iter().copied().collect(), "granted and never called");
    assert_eq!(printed["reasons"].as_object().map(serde_json::Map::len), Some(statements.len()));
}

fn through(world: &mut World, aws: &Faults, kinesis: Option<&Faults>) {
    world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", aws.port));
    if let Some(kinesis) = kinesis {
        world.set("AWS_ENDPOINT_URL_KINESIS", &format!("http://127.0.0.1:{}", kinesis.port));
    }
}

fn services(printed: &Value) -> Vec<&str> {
    let endpoints = printed["endpoints"].as_array().expect("endpoints are a list");
    endpoints.iter().filter_map(|endpoint| endpoint["service"].as_str()?.rsplit('.').next()).collect()
}

#[test]
fn a_stream_is_read_into_a_bucket_within_the_policy() {
    let mut world = World::new().with_aws().with_kinesis();
    let (bucket, archive, stream) = (world.bucket("lake"), world.bucket("archive"), unique("iam"));
    world.aws(&["stream", &stream, "2"]);
    let lines: String =
        (0..200).map(|n| format!("{{\"n\":{n},\"ts\":\"2026-11-01T00:00:{:02}Z\"}}\n", n % 60)).collect();
    let records = world.file("records.json", &lines);
    world.aws(&["put", &stream, "10", records.to_str().expect("the path is text")]);
    let file = world.file(
        "iam.yaml",
        &format!(
            "name: iam
lake: s3://{bucket}/a/lake
commit: {{ every: 1h, rows: 60 }}
sources:
  events:
    kinesis: {{ stream: {stream} }}
    columns: {{ n: int64, ts: timestamp }}
    event_time: {{ column: ts }}
    archive: {{ path: s3://{archive}/raw, prefix: events/, buffer: {{ size: 1KiB }} }}
bronze:
  events: {{ from: events }}
gold:
  minutes: {{ sql: \"SELECT date_trunc('minute', ts) AS minute, count(*) AS n FROM bronze.events GROUP BY 1\" }}
"
        ),
    );
    let (aws, kinesis) = (Faults::start(ministack::shared().port, QUIET), Faults::start(kinesis::shared().port, QUIET));
    through(&mut world, &aws, Some(&kinesis));
    let path = file.to_str().expect("the path is text");
    world.nexus(&["run", path, "--until-idle", "3s"]).expect_code(0);
    for verb in ["audit", "compact", "state"] {
        world.nexus(&[verb, path]).expect_code(0);
    }
    let calls = aws.calls().into_iter().chain(kinesis.calls()).collect();
    let printed = printed(&world, &file);
    // An upload is given up, and an object deleted, by a run that finds what another has left.
    check(&printed, &calls, &["s3:AbortMultipartUpload"]);
    assert_eq!(services(&printed), ["s3", "kinesis-streams"]);
}

#[test]
fn announced_objects_are_read_within_the_policy() {
    let mut world = World::new().with_aws();
    let (bucket, landing, queue) = (world.bucket("lake"), world.bucket("landing"), unique("iam"));
    let url = world.aws(&["announce", &landing, &queue, "5"]);
    let objects = world.file("one.json", "{\"n\":1}\n{\"n\":2}\nno json\n");
    world.aws(&["upload", &landing, "in/", objects.to_str().expect("the path is text")]);
    let file = world.file(
        "iam.yaml",
        &format!(
            "name: iam
lake: s3://{bucket}/lake
state: s3://{bucket}/state
sources:
  events:
    s3: {{ queue: \"{url}\", allow: [\"s3://{landing}/in/\"], reconcile: 1s }}
    columns: {{ n: int64 }}
bronze:
  events: {{ from: events }}
"
        ),
    );
    let aws = Faults::start(ministack::shared().port, QUIET);
    through(&mut world, &aws, None);
    let path = file.to_str().expect("the path is text");
    // The first is killed while an upload is under way; the next gives that up.
    world.set("NEXUS_FAIL_POINT", "after_prepare");
    assert_eq!(world.nexus(&["run", path, "--until-idle", "3s"]).status.code(), None, "it did not die");
    world.set("NEXUS_FAIL_POINT", "");
    world.nexus(&["run", path, "--until-idle", "7s"]).expect_code(0);
    let printed = printed(&world, &file);
    check(&printed, &aws.calls(), &["s3:GetObjectVersion", "sqs:ChangeMessageVisibility"]);
    assert_eq!(services(&printed), ["s3", "sqs"]);
}

#[test]
fn what_a_policy_is_for_is_said() {
    let world = World::new();
    let file = world.file(
        "iam.yaml",
        "name: iam
lake: s3://lake-bucket
encryption: { kms: alias/lake }
sources:
  clicks: { kinesis: { stream: clicks }, columns: { id: string } }
reference:
  sites: { path: \"s3://ref-bucket/sites/*.csv\", columns: { id: string } }
bronze:
  clicks:
    from: clicks
    postgres: { url: pg, table: clicks, append: true }
secrets: { pg: { aws_secrets_manager: { id: db/pg } } }
",
    );
    let path = file.to_str().expect("the path is text");
    let printed = printed(&world, &file);
    let resources: Vec<&str> = printed["policy"]["Statement"]
        .as_array()
        .expect("a policy has statements")
        .iter()
        .filter_map(|statement| statement["Resource"].as_str())
        .collect();
    let expected = [
        "arn:aws:kinesis:eu-west-1:111122223333:stream/clicks",
        "arn:aws:s3:::ref-bucket/sites/*",
        "arn:aws:s3:::ref-bucket",
        "arn:aws:s3:::lake-bucket/*",
        "arn:aws:s3:::lake-bucket",
        "arn:aws:kms:eu-west-1:111122223333:key/*",
        "arn:aws:secretsmanager:eu-west-1:111122223333:secret:db/pg-??????",
    ];
    let region = resources.first().and_then(|arn| arn.split(':').nth(3)).unwrap_or_default();
    assert_eq!(resources, expected.map(|arn| arn.replace("eu-west-1", region)));
    assert_eq!(services(&printed), ["s3", "kinesis-streams", "secretsmanager"]);
    let text = world.nexus(&["iam", path, "--region", "eu-central-1"]).expect_code(0);
    for part in [
        "arn:aws:kinesis:eu-central-1:*:stream/clicks",
        "the source `clicks` reads the stream",
        "com.amazonaws.eu-central-1.secretsmanager  Interface",
        "add kms:Decrypt on that key",
    ] {
        assert!(text.stdout.contains(part), "{part} is not in {}", text.stdout);
    }
    let policy = world.nexus(&["iam", path, "--format", "policy"]);
    let policy: Value = serde_json::from_str(&policy.stdout).expect("it prints JSON");
    assert_eq!(policy["Version"], "2012-10-17");
    let wrong = world.nexus(&["iam", path, "--account", "12"]);
    assert!(!wrong.status.success() && wrong.stderr.contains("12 digits"), "{}", wrong.said());
    let local = world.file("local.yaml", "name: local\nlake: ./lake\nsources: { a: { file: { path: a.json } , columns: { n: int64 } } }\nbronze: { a: { from: a } }\n");
    let nothing = world.nexus(&["iam", local.to_str().expect("the path is text")]).expect_code(0);
    assert_eq!(nothing.stdout, "the pipeline calls nothing of AWS\n");
}
