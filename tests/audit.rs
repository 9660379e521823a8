//! `nexus audit` finds what is whole, and names what is not.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::{Finished, World, files, is_table_file};

/// Files of the source; the epochs are cut so that each holds about two.
const FILES: usize = 8;
/// Good rows in each.
const ROWS: usize = 100;

/// A pipeline that has run to its end, and where its parts lie.
struct Audited {
    world: World,
    pipeline: PathBuf,
    lake: PathBuf,
}

impl Audited {
    /// Runs a pipeline of several epochs, with partitions, a quarantine, state, and Postgres if asked for.
    fn run(with_postgres: bool) -> Self {
        let world = if with_postgres { World::new().with_postgres() } else { World::new() };
        for file in 0..FILES {
            let mut lines = String::new();
            for row in 0..ROWS {
                let n = file * ROWS + row;
                let ts = format!("2026-11-01T{:02}:{:02}:00Z", n / 60, n % 60);
                let _ = writeln!(lines, r#"{{"n":{n},"site":"site-{}","ts":"{ts}"}}"#, n % 3);
            }
            lines.push_str("{\"n\":\"none\"}\n");
            world.file(&format!("events-{file:02}.json"), &lines);
        }
        let lake = world.path("lake");
        let postgres = if with_postgres { "{ url: pg, table: events, append: true }" } else { "~" };
        let text = format!(
            "name: audited\nlake: {}\ncommit: {{ every: 1h, bytes: 4KiB }}\nsources:\n  events:\n    \
             file: {{ path: events-*.json }}\n    format: json\n    columns: {{ n: int64 not null, site: string, ts: timestamp }}\n    \
             event_time: {{ column: ts, lateness: 1h }}\nbronze:\n  events:\n    from: events\n    partition_by: [site]\n    postgres: {postgres}\n\
             silver:\n  events:\n    sql: SELECT n, site, ts FROM bronze.events\n    \
             unique: {{ key: [n], within: 1d }}\n    \
             expect: {{ small: {{ that: n % 7 <> 0, else: quarantine }} }}\n\
             secrets:\n  pg: {{ env: DATABASE_URL }}\n",
            lake.display()
        );
        let text = if with_postgres { text } else { text.replace("    postgres: ~\n", "") };
        let pipeline = world.file("audited.yaml", &text);
        world.run(&pipeline, &[]);
        Self { world, pipeline, lake }
    }

    fn audit(&self, more: &[&str]) -> Finished {
        let pipeline = self.pipeline.to_str().expect("the tests' paths are UTF-8");
        self.world.nexus(&[&["audit", pipeline], more].concat())
    }

    /// Gives what the audit says in JSON, which must agree with `code`.
    fn json(&self, code: i32) -> Value {
        let said = self.audit(&["--json"]).expect_code(code).stdout;
        let found: Value = serde_json::from_str(&said).expect("the audit as JSON is JSON");
        assert_eq!(found["whole"], json!(code == 0), "{found:#}");
        found
    }

    /// Fails unless the audit names `culprit` and says both of `words`; gives all that it says.
    fn expect_fault(&self, culprit: &str, words: [&str; 2]) {
        let said = self.audit(&[]).expect_code(1).said();
        for wanted in [culprit, words[0], words[1], "expected", "found"] {
            assert!(said.contains(wanted), "the audit does not say `{wanted}`:\n{said}");
        }
    }

    /// Gives the table file that comes in the middle of those below `table`.
    fn file_of(&self, table: &str) -> PathBuf {
        let folder = self.lake.join(table);
        let found: Vec<_> = files(&folder).into_keys().filter(|path| is_table_file(path)).collect();
        folder.join(&found[found.len() / 2])
    }

    fn state(&self) -> PathBuf {
        self.lake.join("_nexus/audited")
    }

    /// Gives the commit records, oldest first.
    fn records(&self) -> Vec<PathBuf> {
        let folder = self.state().join("epochs");
        files(&folder).into_keys().map(|name| folder.join(name)).collect()
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("the tests' paths are UTF-8")
}

/// Gives the first epoch that reads something.
fn reading(records: &[PathBuf]) -> PathBuf {
    let reads = |path: &&PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("\"advanced\""));
    records.iter().find(reads).expect("an epoch has read something").clone()
}

#[test]
fn what_has_run_is_whole() {
    let audited = Audited::run(true);
    let found = audited.json(0);

    assert_eq!(found["sources"]["events"]["rows"], json!(FILES * ROWS));
    assert_eq!(found["sources"]["events"]["quarantined"], json!(FILES));
    assert_eq!(found["sources"]["events"]["partitions"], json!(FILES));
    let sinks = &found["sinks"];
    assert_eq!(sinks["bronze.events/parquet"]["rows"], json!(FILES * ROWS));
    assert_eq!(sinks["bronze.events/postgres"]["rows"], json!(FILES * ROWS));
    assert_eq!(sinks["events/quarantine"]["rows"], json!(FILES));
    let sevenths = (FILES * ROWS).div_ceil(7);
    assert_eq!(sinks["silver.events/quarantine"]["rows"], json!(sevenths));
    assert_eq!(sinks["silver.events/parquet"]["rows"], json!(FILES * ROWS - sevenths));
    let epochs = sinks["bronze.events/parquet"]["epochs"].as_u64();
    assert!(epochs.is_some_and(|epochs| epochs >= 3), "too few epochs to prove anything: {found:#}");

    // A second process claims a generation, which is an epoch too.
    audited.world.file("events-99.json", "{\"n\":100000,\"site\":\"site-0\",\"ts\":\"2026-11-02T00:00:00Z\"}\n");
    audited.world.run(&audited.pipeline, &[]);
    assert_eq!(audited.json(0)["sinks"]["bronze.events/postgres"]["rows"], json!(FILES * ROWS + 1));
    let said = audited.audit(&[]).expect_code(0).said();
    assert!(said.contains("bronze.events/parquet") && said.contains("whole"), "{said}");
}

#[test]
fn a_pipeline_that_has_never_run_is_whole() {
    let world = World::new();
    let pipeline = world.file(
        "new.yaml",
        "name: new\nlake: ./lake\nsources:\n  n: { generate: { rows: 1, columns: { n: { sequence: {} } } } }\n\
         bronze:\n  n: { from: n }\n",
    );
    let pipeline = pipeline.to_str().expect("the tests' paths are UTF-8");
    world.nexus(&["audit", pipeline]).expect_code(0);
    assert!(!world.path("lake").exists(), "an audit has left something behind");
}

#[test]
fn a_file_that_is_deleted_is_named() {
    let audited = Audited::run(false);
    let file = audited.file_of("bronze/events");
    fs::remove_file(&file).expect("could not remove a file");
    audited.expect_fault(name(&file), ["bronze.events/parquet", "no such file"]);
}

#[test]
fn a_file_of_the_quarantine_that_is_deleted_is_named() {
    let audited = Audited::run(false);
    let folder = audited.lake.join("_quarantine/events");
    let file = folder.join(files(&folder).into_keys().next().expect("something was quarantined"));
    fs::remove_file(&file).expect("could not remove a file");
    audited.expect_fault(name(&file), ["events/quarantine", "no such file"]);
}

#[test]
fn a_file_that_is_added_is_named() {
    let audited = Audited::run(false);
    let file = audited.file_of("silver/events");
    // As a second commit of the same rows would leave it, and as a stranger would.
    for added in [name(&file).replace("-0.parquet", "-9.parquet"), "copy.parquet".to_owned()] {
        let added = file.with_file_name(added);
        fs::copy(&file, &added).expect("could not copy a file");
        audited.expect_fault(name(&added), ["silver.events/parquet", "no record names"]);
        fs::remove_file(added).expect("could not remove a file");
    }
    audited.json(0);
}

#[test]
fn a_file_that_is_truncated_is_named() {
    let audited = Audited::run(false);
    let file = audited.file_of("bronze/events");
    let whole = fs::read(&file).expect("could not read a file");
    fs::write(&file, &whole[..whole.len() - 1]).expect("could not write a file");
    let (bytes, fewer) = (format!("{} bytes", whole.len()), format!("{} bytes", whole.len() - 1));
    audited.expect_fault(name(&file), [&bytes, &fewer]);

    // The size is right, but the footer is none.
    let mut damaged = whole;
    let end = damaged.len();
    damaged[end - 40..end - 8].fill(0xff);
    fs::write(&file, &damaged).expect("could not write a file");
    audited.expect_fault(name(&file), ["rows", "footer"]);
}

#[test]
fn a_file_with_other_rows_is_named() {
    let audited = Audited::run(false);
    // The record's own numbers agree with one another, but not with the file.
    let record = reading(&audited.records());
    let text = fs::read_to_string(&record).expect("could not read a record");
    let mut value: Value = serde_json::from_str(&text).expect("a record is JSON");
    let files = value["sinks"]["bronze.events/parquet"]["handle"]["files"].as_array_mut().expect("it names files");
    assert!(files.len() > 1, "the epoch has one file only");
    for (file, rows) in files.iter_mut().zip([1_i64, -1]) {
        file["rows"] = json!(file["rows"].as_i64().expect("rows are a number") + rows);
    }
    let path = files[0]["path"].as_str().expect("a path is text").to_owned();
    fs::write(&record, value.to_string()).expect("could not write a record");
    audited.expect_fault(&path, ["bronze.events/parquet", "rows"]);
}

#[test]
fn a_record_that_is_tampered_with_is_named() {
    let audited = Audited::run(false);
    let record = reading(&audited.records());
    let text = fs::read_to_string(&record).expect("could not read a record");
    let tampered = |change: &dyn Fn(&mut Value), words: [&str; 2]| {
        let mut value: Value = serde_json::from_str(&text).expect("a record is JSON");
        change(&mut value);
        fs::write(&record, value.to_string()).expect("could not write a record");
        audited.expect_fault(name(&record), words);
    };
    tampered(&|value| value["sources"]["events"]["records"] = json!(7), ["records", "balance"]);
    tampered(&|value| value["tables"]["silver.events"]["duplicates"] = json!(1), ["records", "balance"]);
    tampered(&|value| value["epoch"] = json!(99), ["records", "epoch 99"]);
    tampered(
        &|value| value["sinks"]["bronze.events/parquet"]["bytes"] = json!(1),
        ["bronze.events/parquet", "1 bytes"],
    );
    fs::write(&record, "{").expect("could not write a record");
    audited.expect_fault(name(&record), ["records", "could not read"]);
    fs::write(&record, &text).expect("could not write a record");
    audited.json(0);
}

#[test]
fn a_source_that_moves_back_is_named() {
    let audited = Audited::run(false);
    let records = audited.records();
    let first: Value = serde_json::from_str(&fs::read_to_string(reading(&records)).expect("could not read a record"))
        .expect("a record is JSON");
    let advanced = first["sources"]["events"]["cut"]["advanced"].as_object().expect("it has moved").clone();
    let (partition, position) = advanced.iter().next().expect("it has moved");
    let offset = position["offset"].as_u64().expect("an offset is a number");

    let last = records.last().expect("there are records");
    let mut value: Value =
        serde_json::from_str(&fs::read_to_string(last).expect("could not read a record")).expect("a record is JSON");
    let mut back = position.clone();
    back["offset"] = json!(offset - 1);
    value["sources"]["events"]["cut"]["advanced"][partition] = back;
    fs::write(last, value.to_string()).expect("could not write a record");
    audited.expect_fault(partition, ["behind", &(offset - 1).to_string()]);
}

#[test]
fn a_record_that_is_removed_is_named() {
    let audited = Audited::run(false);
    let records = audited.records();
    for record in [&records[0], &records[records.len() / 2]] {
        let content = fs::read(record).expect("could not read a record");
        fs::remove_file(record).expect("could not remove a record");
        let said = audited.audit(&[]).expect_code(1).said();
        let epoch: u64 = name(record).trim_end_matches(".json").parse().expect("a record is named by its epoch");
        let named = if epoch == 1 { "from epoch 1".to_owned() } else { format!("the record of epoch {epoch}") };
        assert!(said.contains(&named), "the audit does not name the record of epoch {epoch}:\n{said}");
        fs::write(record, content).expect("could not write a record");
    }
    // What the last one names has become visible, so its loss shows too.
    let last = records.last().expect("there are records");
    fs::remove_file(last).expect("could not remove a record");
    audited.expect_fault(name(last), ["which", "is the last"]);
}

#[test]
fn what_is_staged_and_belongs_to_no_epoch_is_named() {
    let audited = Audited::run(false);
    let staging = audited.state().join("staging/bronze.events/parquet");
    fs::create_dir_all(&staging).expect("could not make a folder");
    let newest = audited.records().len() as u64;
    let staged = staging.join(format!("audited-1-{}-0.parquet", newest - 1));
    fs::write(&staged, "rows").expect("could not write a file");
    audited.expect_fault(name(&staged), ["bronze.events/parquet", "uncommitted"]);

    // An epoch that is open may have staged something.
    fs::rename(&staged, staging.join(format!("audited-1-{}-0.parquet", newest + 1))).expect("could not rename a file");
    audited.json(0);
}

#[test]
fn a_checkpoint_that_is_not_the_sum_is_named() {
    let audited = Audited::run(false);
    let checkpoint = audited.state().join("checkpoints/00000000000000000002.json");
    fs::create_dir_all(checkpoint.parent().expect("it has a folder")).expect("could not make a folder");
    let state = json!({
        "version": 1, "id": "", "epoch": 2, "generation": 1, "written_at_us": 0,
        "positions": {}, "watermarks_us": {}, "tables": {}
    });
    fs::write(&checkpoint, state.to_string()).expect("could not write a checkpoint");
    audited.expect_fault(name(&checkpoint), ["records", "the sum"]);
}

#[test]
fn an_epoch_that_is_not_in_postgres_is_named() {
    let audited = Audited::run(true);
    let ask = |sql: &str| audited.world.ask_postgres(sql);
    let taken = ask("DELETE FROM nexus.commits WHERE epoch = (SELECT min(epoch) FROM nexus.commits) RETURNING epoch");
    let epoch = taken[0][0].as_u64().expect("an epoch is a number");
    audited.expect_fault(&format!("bronze.events/postgres, epoch {epoch}"), ["nexus.commits", "no such epoch"]);
    let said = audited.audit(&["--skip-postgres"]).expect_code(0).said();
    assert!(said.contains("left out: --skip-postgres"), "{said}");
}

#[test]
fn other_rows_and_other_epochs_in_postgres_are_named() {
    let audited = Audited::run(true);
    let ask = |sql: &str| audited.world.ask_postgres(sql);
    let changed = ask(
        "UPDATE nexus.commits SET rows = rows + 1 WHERE epoch = (SELECT max(epoch) FROM nexus.commits) RETURNING epoch, rows",
    );
    let (epoch, rows) = (&changed[0][0], &changed[0][1]);
    let found = format!("{rows} rows");
    audited.expect_fault(&format!("bronze.events/postgres, epoch {epoch}"), ["nexus.commits", &found]);

    ask("UPDATE nexus.commits SET rows = rows - 1 WHERE epoch = (SELECT max(epoch) FROM nexus.commits) RETURNING 1");
    audited.json(0);
    ask(
        "INSERT INTO nexus.commits SELECT pipeline, sink, state, generation, 1, rows FROM nexus.commits LIMIT 1 RETURNING 1",
    );
    audited.expect_fault("bronze.events/postgres, epoch 1", ["nexus.commits", "no record names"]);
}

#[test]
fn a_postgres_that_is_away_is_an_error_with_words() {
    let mut audited = Audited::run(true);
    let port = crate::servers::free_port();
    audited.world.set("DATABASE_URL", &crate::servers::postgres::url(port, "nowhere"));
    let said = audited.audit(&[]).expect_code(1).said();
    assert!(said.contains("could not audit bronze.events/postgres"), "{said}");
    assert!(said.contains("connect"), "{said}");
}
