//! Reference tables that change while a pipeline runs: each epoch uses one version in all of its tables, and its commit
//! record tells which.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::world::{World, ask, table_files};

const PIPELINE: &str = "name: joined
lake: ./lake
commit: { every: 150ms }
sources:
  rows:
    generate: { rate: 200, columns: { id: { sequence: {} } } }
reference:
  words: { path: 'words-*.csv', refresh: 100ms }
  fixed: { path: fixed.csv }
silver:
  one: { sql: \"SELECT r.id, w.word, f.word AS same FROM rows r JOIN words w ON w.k = r.id % 1 JOIN fixed f ON f.k = 0\" }
  two: { sql: \"SELECT t.id, w.word FROM silver.one t JOIN words w ON w.k = t.id % 1\" }
gold:
  three: { sql: \"SELECT r.id, w.word FROM rows r CROSS JOIN words w WHERE w.k = 0\" }
";

/// Puts other content in place of what is there, as a whole.
fn put(world: &World, word: &str) {
    world.file("words.new", &format!("k,word\n0,{word}\n"));
    fs::rename(world.path("words.new"), world.path("words-a.csv")).expect("could not rename a file");
}

/// Gives for each epoch of a table the words that its rows have.
fn words(lake: &Path, table: &str) -> BTreeMap<u64, Vec<String>> {
    let files = lake.join(table).display().to_string();
    let sql = format!(
        "SELECT split_part(parse_filename(filename), '-', 3), list(DISTINCT word)
         FROM read_parquet('{files}/*.parquet', filename = true) GROUP BY 1"
    );
    let epoch =
        |row: &Value| row[0].as_str().and_then(|epoch| epoch.parse().ok()).expect("a file's name has its epoch");
    let words = |row: &Value| serde_json::from_value(row[1].clone()).expect("words are texts");
    ask(lake, &sql).iter().map(|row| (epoch(row), words(row))).collect()
}

/// Gives the versions that the records (too few to be folded) of the epochs tell, and the files of each version.
fn records(world: &World) -> (BTreeMap<u64, u64>, BTreeMap<u64, Value>) {
    let (mut used, mut versions) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(world.path("lake/_nexus/joined/epochs")).expect("there are records").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a record can be read");
        let record: Value = serde_json::from_str(&text).expect("a record is JSON");
        if let Some(version) = record["references"]["words"].as_u64() {
            used.insert(record["epoch"].as_u64().expect("a record has an epoch"), version);
            assert_eq!(record["references"]["fixed"], 1, "what does not change has one version");
        }
        if let Some(version) = record["reference_versions"]["words"].as_object() {
            let number = version["version"].as_u64().expect("it is a number");
            assert!(versions.insert(number, version["files"].clone()).is_none(), "version {number} is told twice");
        }
    }
    (used, versions)
}

#[test]
fn an_epoch_uses_one_version_in_all_tables_and_its_record_tells_which() {
    let world = World::new();
    world.file("fixed.csv", "k,word\n0,same\n");
    put(&world, "a");
    let pipeline = world.file("joined.yaml", PIPELINE).display().to_string();
    let lake = world.path("lake");
    let mut word_of: BTreeMap<u64, String> = BTreeMap::from([(1, "a".to_owned())]);
    let mut running = world.start(&["run", &pipeline]);
    for (number, word) in [(2, "bb"), (3, "ccc")] {
        let before = table_files(&lake, "silver/one");
        running.until("there are epochs", || table_files(&lake, "silver/one") > before + 3);
        put(&world, word);
        running.until("the new version is used", || records(&world).1.contains_key(&number));
        word_of.insert(number, word.to_owned());
    }
    running.signal("KILL");
    running.wait();
    // A process that finds the same files counts on from the same version.
    let mut running = world.start(&["run", &pipeline]);
    let before = table_files(&lake, "silver/one");
    running.until("there are more epochs", || table_files(&lake, "silver/one") > before + 3);
    running.signal("TERM");
    running.wait().expect_code(0);

    let (used, versions) = records(&world);
    assert_eq!(versions.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(versions[&2][0]["path"], json!(world.path("words-a.csv").display().to_string()));
    assert_eq!(versions[&2][0]["bytes"], json!("k,word\n0,bb\n".len()));
    for table in ["silver/one", "silver/two", "gold/three"] {
        let found = words(&lake, table);
        assert!(found.len() > 10, "{table} has {} epochs", found.len());
        for (epoch, words) in found {
            let version = used.get(&epoch).unwrap_or_else(|| panic!("the record of epoch {epoch} tells no version"));
            assert_eq!(words, [word_of[version].clone()], "{table} in epoch {epoch}");
        }
    }
    world.nexus(&["audit", &pipeline]).expect_code(0);
    let state = world.nexus(&["state", &pipeline]).expect_code(0).stdout;
    assert!(state.contains("reference words: version 3, 1 rows") && state.contains("words-a.csv"), "{state}");
}

#[test]
fn a_reference_table_that_cannot_be_read_anew_stays_as_it_was() {
    let world = World::new();
    world.file("fixed.csv", "k,word\n0,same\n");
    put(&world, "a");
    let pipeline = world.file("joined.yaml", PIPELINE).display().to_string();
    let lake = world.path("lake");
    let mut running = world.start(&["run", &pipeline]);
    running.until("there are epochs", || table_files(&lake, "silver/one") > 2);
    world.file("words.new", "k,word\nnone,b\n");
    fs::rename(world.path("words.new"), world.path("words-a.csv")).expect("could not rename a file");
    let before = table_files(&lake, "silver/one");
    running.until("there are more epochs", || table_files(&lake, "silver/one") > before + 10);
    running.signal("TERM");
    let said = running.wait().expect_code(0).said();
    assert!(said.contains("could not refresh") && said.contains("words-a.csv"), "{said}");
    assert!(words(&lake, "gold/three").values().all(|words| words == &["a"]));
}

#[test]
fn a_reference_table_on_s3_is_read_anew_when_its_objects_change() {
    let world = World::new().with_aws();
    let bucket = world.bucket("reference");
    let upload = |word: &str| {
        let file = world.file("words.csv", &format!("k,word\n0,{word}\n"));
        world.aws(&["upload", &bucket, "in/", file.to_str().expect("the path is text")]);
    };
    let text = PIPELINE.replace("'words-*.csv'", &format!("'s3://{bucket}/in/*.csv'"));
    let pipeline = world.file("joined.yaml", &text).display().to_string();
    world.file("fixed.csv", "k,word\n0,same\n");
    let refused = world.nexus(&["check", &pipeline]).expect_code(2).said();
    assert!(refused.contains(&format!("no file matches s3://{bucket}/in/*.csv")), "{refused}");
    upload("a");
    let lake = world.path("lake");
    let mut running = world.start(&["run", &pipeline]);
    running.until("there are epochs", || table_files(&lake, "silver/one") > 2);
    // As long as the one before.
    upload("b");
    running.until("the new version is used", || records(&world).1.contains_key(&2));
    let before = table_files(&lake, "silver/one");
    running.until("there are more epochs", || table_files(&lake, "silver/one") > before + 2);
    running.signal("TERM");
    running.wait().expect_code(0);
    let (used, versions) = records(&world);
    assert_eq!(versions[&2][0]["path"], json!(format!("s3://{bucket}/in/words.csv")));
    for (epoch, words) in words(&lake, "silver/two") {
        assert_eq!(words, [if used[&epoch] == 1 { "a" } else { "b" }], "epoch {epoch}");
    }
}
