//! As whom AWS and RDS are called: credentials of a pod, a container and a machine, roles, and secrets that change.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::servers::faults::{Faults, QUIET};
use crate::servers::identity::{CONTAINER_TOKEN, Identity};
use crate::servers::postgres::{self, Postgres};
use crate::servers::rds::Rds;
use crate::servers::{REGION, kinesis, ministack, unique};
use crate::world::World;

fn signed(service: &str, key: &str) -> BTreeSet<(String, String)> {
    BTreeSet::from([(service.to_owned(), key.to_owned())])
}

/// A pipeline of three rows from a file into a bucket.
fn to_bucket(world: &World, bucket: &str) -> String {
    world.file("in.json", "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    let file = world.file(
        "to_bucket.yaml",
        &format!(
            "name: who\nlake: s3://{bucket}/lake\nsources:\n  events: {{ file: {{ path: in.json }}, columns: {{ n: int64 }} }}\n\
             bronze:\n  events: {{ from: events }}\n"
        ),
    );
    file.display().to_string()
}

/// Takes away what the environment says of the tests' own credentials.
fn forget_keys(world: &mut World) {
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        world.unset(name);
    }
}

#[test]
fn a_pod_a_container_and_a_machine_lend_their_identity() {
    for (place, key, asked) in [
        ("pod", "ROLEPOD", vec!["AssumeRoleWithWebIdentity pod by web-token with  web"]),
        ("container", "CONTAINER", vec!["container"]),
        ("machine", "MACHINE", vec!["token", "region", "token", "profile", "machine"]),
    ] {
        let mut world = World::new().with_aws();
        let bucket = world.bucket("who");
        let pipeline = to_bucket(&world, &bucket);
        let (identity, s3) = (Identity::start(), Faults::start(ministack::shared().port, QUIET));
        forget_keys(&mut world);
        world.set("AWS_ENDPOINT_URL_S3", &format!("http://127.0.0.1:{}", s3.port));
        let token = |text: &str| world.file("token", text).display().to_string();
        let variables = match place {
            "pod" => vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token("web-token")),
                ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/pod".to_owned()),
                ("AWS_ROLE_SESSION_NAME", "web".to_owned()),
                ("AWS_ENDPOINT_URL_STS", identity.url()),
            ],
            "container" => vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", identity.url())),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token(CONTAINER_TOKEN)),
            ],
            _ => vec![
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT", identity.url()),
                ("AWS_EC2_METADATA_DISABLED", "false".into()),
            ],
        };
        if place == "machine" {
            world.unset("AWS_REGION");
            world.unset("AWS_DEFAULT_REGION");
        }
        for (name, value) in variables {
            world.set(name, &value);
        }
        world.nexus(&["run", &pipeline]).expect_code(0);
        assert_eq!(s3.signed(), signed("s3", key), "{place}");
        // Credentials are kept, and not asked for again by each of the many requests to S3.
        assert_eq!(identity.asked(), asked, "{place}");
    }
}

#[test]
fn each_source_and_the_lake_act_in_roles_of_their_own_at_endpoints_of_the_file() {
    let mut world = World::new().with_aws().with_kinesis();
    let (bucket, stream) = (world.bucket("roles"), unique("roles"));
    world.aws(&["stream", &stream, "1"]);
    let records = world.file("records.json", "{\"n\":1}\n{\"n\":2}\n").display().to_string();
    world.aws(&["put", &stream, "1", &records]);
    let identity = Identity::start();
    let (s3, streams) = (Faults::start(ministack::shared().port, QUIET), Faults::start(kinesis::shared().port, QUIET));
    let file = world.file(
        "roles.yaml",
        &format!(
            "name: roles
lake: s3://{bucket}/lake
aws:
  region: {REGION}
  endpoints: {{ kinesis: \"http://127.0.0.1:{}\", s3: \"http://127.0.0.1:{}\", sts: \"{}\" }}
  role: arn:aws:iam::111122223333:role/lake
sources:
  events:
    kinesis:
      stream: {stream}
      role:
        - arn:aws:iam::111122223333:role/hub
        - {{ arn: \"arn:aws:iam::444455556666:role/reader\", external_id: partner, session_name: reading }}
    columns: {{ n: int64 }}
bronze:
  events: {{ from: events }}
",
            streams.port,
            s3.port,
            identity.url()
        ),
    );
    let file = file.display().to_string();
    // What the file names comes before what the environment says.
    world.set("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    world.set("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:9");
    world.set("AWS_REGION", "eu-central-1");
    world.set("AWS_ACCESS_KEY_ID", "PROCESS");
    world.nexus(&["run", &file, "--until-idle", "2s"]).expect_code(0);
    assert_eq!(s3.signed(), signed("s3", "ROLELAKE"));
    assert_eq!(streams.signed(), signed("kinesis", "ROLEREADER"));
    let mut asked = identity.asked();
    asked.sort();
    let expected = [
        "AssumeRole hub by PROCESS with  nexus-roles",
        "AssumeRole lake by PROCESS with  nexus-roles",
        "AssumeRole reader by ROLEHUB with partner reading",
    ];
    assert_eq!(asked, expected);

    // And the policies are those of the roles: the process itself only takes them on.
    let printed = world.nexus(&["iam", &file, "--format", "json", "--account", "111122223333"]).expect_code(0);
    let printed: serde_json::Value = serde_json::from_str(&printed.stdout).expect("it prints JSON");
    let actions = |policy: &serde_json::Value| {
        let statements = policy["Statement"].as_array().expect("a policy has statements");
        let actions = statements.iter().flat_map(|one| one["Action"].as_array().expect("actions are a list"));
        actions.filter_map(|action| Some(action.as_str()?.to_owned())).collect::<BTreeSet<_>>()
    };
    let of = |role: &str| actions(&printed["roles"][role]["policy"]);
    assert_eq!(actions(&printed["policy"]), BTreeSet::from(["sts:AssumeRole".to_owned()]));
    assert_eq!(of("arn:aws:iam::111122223333:role/hub"), BTreeSet::from(["sts:AssumeRole".to_owned()]));
    assert!(of("arn:aws:iam::444455556666:role/reader").contains("kinesis:GetRecords"));
    assert!(of("arn:aws:iam::111122223333:role/lake").contains("s3:PutObject"));
    let text = world.nexus(&["iam", &file]).expect_code(0).stdout;
    assert!(text.contains("the role arn:aws:iam::444455556666:role/reader:"), "{text}");
    let one = world.nexus(&["iam", &file, "--format", "policy", "--role", "arn:aws:iam::111122223333:role/lake"]);
    assert!(one.stdout.contains("s3:PutObject") && !one.stdout.contains("kinesis"), "{}", one.stdout);
}

/// A PostgreSQL whose user `app` needs a password.
fn with_password(password: &str) -> (Postgres, String) {
    let server = Postgres::start();
    let database = server.database();
    server.sql("postgres", &format!("CREATE ROLE app LOGIN SUPERUSER PASSWORD '{password}'"));
    let rules =
        "ARRAY['host all app 127.0.0.1/32 scram-sha-256', 'host all all 127.0.0.1/32 trust', 'local all all trust']";
    let sql = format!(
        "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest({})) TO %L', current_setting('hba_file')); END $$; \
         SELECT pg_reload_conf()",
        rules.replace('\'', "''")
    );
    server.sql("postgres", &sql);
    (server, database)
}

#[test]
fn a_rotated_secret_is_taken_up_without_a_restart() {
    let world = World::new().with_aws();
    let (server, database) = with_password("one");
    let secret = unique("rotated");
    let put = |password: &str| {
        let url = format!("postgres://app:{password}@127.0.0.1:{}/{database}", server.port);
        world.aws(&["secret", &secret, &json!({ "url": url }).to_string()]);
    };
    put("one");
    fs::create_dir(world.path("in")).expect("a folder can be made");
    let file = world.file(
        "rotated.yaml",
        &format!(
            "name: rotated\nlake: ./lake\ncommit: {{ every: 100ms }}\nsources:\n  \
             events: {{ file: {{ path: in/*.json, follow: true }}, columns: {{ n: int64 }} }}\nbronze:\n  \
             events: {{ from: events, postgres: {{ url: pg, table: events, append: true }} }}\n\
             secrets: {{ pg: {{ aws_secrets_manager: {{ id: {secret}, key: url }} }} }}\n"
        ),
    );
    let file = file.display().to_string();
    let mut running = world.start(&["run", &file]);
    let has = |rows: usize| {
        let there = "SELECT to_regclass('events') IS NOT NULL";
        server.ask(&database, there) == ["t"] && server.ask(&database, "SELECT n FROM events").len() == rows
    };
    world.file("in/1.json", "{\"n\":1}\n");
    running.until("the first row is there", || has(1));

    // As a rotation does it: first the password, and only then the secret.
    server.sql("postgres", "ALTER ROLE app PASSWORD 'two'");
    server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    world.file("in/2.json", "{\"n\":2}\n");
    put("two");
    running.until("the second row is there", || has(2));
    running.signal("TERM");
    running.wait().expect_code(0);
    let audit = world.nexus(&["audit", &file]).expect_code(0);
    assert!(!audit.said().contains("app:two"), "{}", audit.said());
}

#[test]
fn a_token_of_iam_lets_in_to_rds() {
    let mut world = World::new().with_aws();
    world.set("AWS_ACCESS_KEY_ID", "AKIDRDS");
    world.set("AWS_SECRET_ACCESS_KEY", "key-of-rds");
    let server = postgres::shared();
    let database = server.database();
    let rds = Rds::start(&world.path(""), server.port, "AKIDRDS", "key-of-rds");
    let authority = world.path("rds.crt").display().to_string();
    let url = format!("postgres://postgres@127.0.0.1:{}/{database}?sslrootcert={authority}", rds.port);
    world.file("url", &url);
    world.file("in.json", "{\"n\":1}\n{\"n\":2}\n");
    let file = world.file(
        "rds.yaml",
        "name: rds\nlake: ./lake\nsources:\n  events: { file: { path: in.json }, columns: { n: int64 } }\nbronze:\n  \
         events: { from: events, postgres: { url: pg, auth: rds_iam, table: events, append: true } }\n\
         secrets: { pg: { file: url } }\n",
    );
    let file = file.display().to_string();
    world.nexus(&["run", &file]).expect_code(0);
    assert_eq!(server.ask(&database, "SELECT n FROM events ORDER BY n"), ["1", "2"]);
    world.nexus(&["audit", &file]).expect_code(0);
    assert!(rds.log().iter().skip(1).all(|line| line == "let in"), "{:?}", rds.log());

    // Whoever signs with another key is refused, and so is a URL by which the token would go about in the open.
    world.set("AWS_SECRET_ACCESS_KEY", "another");
    let refused = world.nexus(&["check", "--online", &file]).expect_code(1);
    assert!(refused.stdout.contains("permission") && refused.stdout.contains("28000"), "{}", refused.said());
    assert!(rds.log().iter().any(|line| line == "refused another signature"), "{:?}", rds.log());
    world.file("url", &format!("{url}&sslmode=disable"));
    let open = world.nexus(&["check", "--online", &file]).expect_code(1);
    assert!(open.stdout.contains("sslmode=verify-full"), "{}", open.said());
    let policy = world.nexus(&["iam", &file, "--region", "eu-central-1", "--account", "111122223333"]).expect_code(0);
    for part in ["rds-db:connect", "arn:aws:rds-db:eu-central-1:111122223333:dbuser:*/*", "narrow"] {
        assert!(policy.stdout.contains(part), "{}", policy.stdout);
    }
}
