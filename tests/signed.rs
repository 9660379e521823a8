//! A lake on another store that speaks S3: it checks signatures, and refuses to encrypt by keys of its own.

use serde_json::json;

use crate::servers::seaweed::{KEY, Seaweed};
use crate::world::{World, ask};

#[test]
fn a_lake_on_seaweedfs_survives_deaths_and_takes_no_other_key() {
    let server = Seaweed::start();
    let mut world = World::new().with_aws();
    for (name, value) in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].into_iter().zip(KEY) {
        world.set(name, value);
    }
    world.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", server.port));
    let bucket = world.bucket("lake");
    world.input(0..12, 50, |n| format!(r#"{{"n":{n}}}"#));
    let file = world.file(
        "signed.yaml",
        &format!(
            "name: signed
lake: s3://{bucket}/lake
commit: {{ every: 1h, bytes: 1B }}
sources:
  rows:
    file: {{ path: 'in-*.json' }}
    columns: {{ n: int64 }}
    archive: {{ path: s3://{bucket}/archive }}
bronze:
  plain: {{ from: rows }}
  logged: {{ from: rows, table_format: delta }}
"
        ),
    );
    let file = file.to_str().expect("the path is text");

    world.set("AWS_SECRET_ACCESS_KEY", "another");
    let refused = world.nexus(&["check", file, "--online"]).expect_code(1).stdout;
    assert!(refused.contains("permission"), "{refused}");
    world.set("AWS_SECRET_ACCESS_KEY", KEY[1]);
    world.nexus(&["check", file, "--online"]).expect_code(0);

    for point in ["after_prepare:2", "before_record:3", "after_record:2", "after_commit:2"] {
        world.set("NEXUS_FAIL_POINT", point);
        assert_eq!(world.nexus(&["run", file]).status.code(), None, "{point} was not reached");
    }
    world.set("NEXUS_FAIL_POINT", "");
    let said = world.nexus(&["run", file]).expect_code(0).said();
    assert!(said.contains("the store refuses SSE-S3"), "{said}");
    world.nexus(&["audit", file]).expect_code(0);
    world.nexus(&["compact", file]).expect_code(0);
    world.nexus(&["audit", file]).expect_code(0);
    let lake = world.download(&[&bucket]).join("lake");
    for table in ["plain", "logged"] {
        let sql = format!("SELECT count(*)::INT AS n, sum(n)::INT AS sum FROM bronze.{table}");
        let found = world.nexus(&["query", file, &sql, "--format", "json"]).expect_code(0).stdout;
        let found: serde_json::Value = serde_json::from_str(found.trim()).expect("a row of JSON");
        assert_eq!(found, json!({ "n": 600, "sum": 179_700 }), "{table}");
    }
    assert_eq!(ask(&lake, "SELECT count(*)::INT, sum(n)::INT FROM bronze.plain"), [json!([600, 179_700])]);
}
