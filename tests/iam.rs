//! `nexus iam`: pipelines run, and each call that they make is held against the policy that is printed for them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::servers::faults::{Call, Faults, QUIET};
use crate::servers::identity::Identity;
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

/// Gives the policy of who makes a call: of a role, whose access keys bear its name, or of the process itself.
fn policy_of<'a>(printed: &'a Value, call: &Call) -> &'a Value {
    let role = call.by.as_ref().and_then(|key| key.strip_prefix("ROLE"));
    let roles = printed["roles"].as_object().into_iter().flatten();
    let mut own = roles.filter(|(arn, _)| role.is_some_and(|role| arn.to_uppercase().ends_with(&format!("/{role}"))));
    own.next().map_or(&printed["policy"], |(_, own)| &own["policy"])
}

/// Fails unless the policies allow all calls.
pub fn check_calls(printed: &Value, calls: &BTreeSet<Call>) {
    for call in calls {
        let statements = policy_of(printed, call)["Statement"].as_array().expect("a policy has statements");
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
fn each_place_is_kept_in_the_role_of_its_own_within_its_policy() {
    let world = World::new().with_aws();
    let [lake, gold, state, archive, sites] =
        ["lake", "gold", "state", "archive", "sites"].map(|name| (name, world.bucket(name)));
    world.file("in.json", "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\nno json\n");
    let known = world.file("known.csv", "n,name\n1,one\n2,two\n");
    world.aws(&["upload", &sites.1, "sites/", known.to_str().expect("the path is text")]);
    let (aws, identity) = (Faults::start(ministack::shared().port, QUIET), Identity::start());
    let role = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
    let file = world.file(
        "iam.yaml",
        &format!(
            "name: iam
lake:
  bronze: s3://{lake}/lake
  silver: {{ path: s3://{lake}/silver, role: {silver} }}
  gold: {{ path: s3://{gold}, role: [{hub}, {{ arn: {gold_role}, external_id: partner }}] }}
state: {{ path: s3://{state}/kept, role: {keeper} }}
aws: {{ role: {base}, endpoints: {{ s3: \"http://127.0.0.1:{port}\", sts: \"{sts}\" }} }}
commit: {{ rows: 1 }}
sources:
  rows:
    file: {{ path: in.json }}
    columns: {{ n: int64 }}
    archive: {{ path: s3://{archive}/raw, role: {archivist} }}
reference:
  known: {{ path: \"s3://{sites}/sites/*.csv\", role: {reader} }}
bronze:
  rows: {{ from: rows }}
silver:
  named: {{ sql: \"SELECT r.n, k.name FROM rows r JOIN known k ON k.n = r.n\" }}
  own: {{ from: bronze.rows, role: {writer}, table_format: delta, expect: {{ small: {{ that: n < 3 }} }} }}
gold:
  all: {{ from: silver.named }}
",
            lake = lake.1,
            gold = gold.1,
            state = state.1,
            archive = archive.1,
            sites = sites.1,
            port = aws.port,
            sts = identity.url(),
            silver = role("silver"),
            hub = role("hub"),
            gold_role = role("gold"),
            keeper = role("keeper"),
            base = role("base"),
            archivist = role("archivist"),
            reader = role("reader"),
            writer = role("writer"),
        ),
    );
    let path = file.to_str().expect("the path is text");
    world.nexus(&["run", path]).expect_code(0);
    let sql = "SELECT (SELECT string_agg(name, ',' ORDER BY n) FROM silver.named) AS named, (SELECT sum(n) FROM silver.own) \
               AS own, (SELECT count(*) FROM gold.all) AS whole, (SELECT count(*) FROM quarantine.\"silver.own\") AS large, \
               (SELECT count(*) FROM quarantine.rows) AS bad";
    let answer = world.nexus(&["query", path, sql, "--format", "csv"]).expect_code(0).stdout;
    assert_eq!(answer, "named,own,whole,large,bad\n\"one,two\",3,2,1,1\n");
    for verb in ["audit", "compact", "audit", "state", "redrive"] {
        world.nexus(&[verb, path]).expect_code(0);
    }
    // Each bucket is called in its roles alone, and each table in its own.
    let below = |start: String| -> BTreeSet<String> {
        let calls = aws.calls().into_iter();
        let of = calls.filter(|call| call.resource.as_ref().is_some_and(|resource| resource.starts_with(&start)));
        of.filter_map(|call| call.by).collect()
    };
    for (start, by) in [
        (format!("{}/lake/", lake.1), "ROLEBASE"),
        (format!("{}/silver/silver/named", lake.1), "ROLESILVER"),
        (format!("{}/silver/silver/own", lake.1), "ROLEWRITER"),
        (format!("{}/silver/_quarantine/silver.own", lake.1), "ROLEWRITER"),
        (gold.1, "ROLEGOLD"),
        (state.1, "ROLEKEEPER"),
        (archive.1, "ROLEARCHIVIST"),
        (sites.1, "ROLEREADER"),
    ] {
        assert_eq!(below(start.clone()), BTreeSet::from([by.to_owned()]), "{start}");
    }
    let online = world.nexus(&["check", path, "--online"]).expect_code(0).stdout;
    assert!(online.contains("silver.own"), "{online}");
    let printed = printed(&world, &file);
    check_calls(&printed, &aws.calls());
    assert!(identity.asked().iter().any(|asked| asked.starts_with("AssumeRole gold by ROLEHUB with partner")));
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
