//! Quarantined rows that are sent again land once, whatever happens on the way, and the quarantine shows what is left.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::servers::unique;
use crate::world::{World, ask, files, table_files};

/// Lines of each of the three files.
const LINES: usize = 60;

/// One line in so many has a field that nobody declared.
const SURPRISING_EVERY: usize = 10;

/// What was wrong with the rows, and what is corrected.
#[derive(Clone, Copy)]
struct Contract {
    unknown: &'static str,
    rule: &'static str,
}

const STRICT: Contract = Contract { unknown: "reject", rule: "expect: { small: { that: v < 5, else: quarantine } }" };
const LENIENT: Contract =
    Contract { unknown: "ignore", rule: "expect: { small: { that: v < 100, else: quarantine } }" };

/// Writes lines with a number, a time (a minute apart) and a value from 0 to 6.
fn write_events(world: &World) {
    for file in 0..3 {
        let mut lines = String::new();
        for n in file * LINES..(file + 1) * LINES {
            let more = if n % SURPRISING_EVERY == 3 { ",\"surprise\":true" } else { "" };
            let ts = format!("2026-11-01T{:02}:{:02}:00Z", n / 60, n % 60);
            let _ = writeln!(lines, "{{\"n\":{n},\"ts\":\"{ts}\",\"v\":{},\"f\":0.1{more}}}", n % 7);
        }
        world.file(&format!("events-{file}.json"), &lines);
    }
}

fn pipeline(world: &World, contract: Contract, postgres: bool) -> String {
    let (to_postgres, secrets) = match postgres {
        true => ("\n    postgres: { url: pg, table: events, append: true }", "secrets:\n  pg: { env: DATABASE_URL }\n"),
        false => ("", ""),
    };
    let text = format!(
        "name: redrive
lake: ./lake
commit: {{ every: 1h, bytes: 1B }}
sources:
  events:
    file: {{ path: \"events-*.json\" }}
    columns: {{ n: int64 not null, ts: timestamp, v: int64, f: float64 }}
    on_unknown_column: {}
    event_time: {{ column: ts, lateness: 1h }}
bronze:
  events: {{ from: events }}
silver:
  events:
    sql: SELECT n, ts, v, f, _offset FROM bronze.events
    unique: {{ key: [n], within: 1d }}
    {}{to_postgres}
gold:
  hours: {{ sql: \"SELECT date_bin(INTERVAL '1 hour', ts) AS hour, count(*) AS c FROM silver.events GROUP BY 1\" }}
{secrets}",
        contract.unknown, contract.rule
    );
    world.file("redrive.yaml", &text).display().to_string()
}

const ALL: usize = 3 * LINES;

const LANDED: &str = "SELECT (SELECT count(*) FROM bronze.events), (SELECT count(DISTINCT n) FROM bronze.events),
    (SELECT count(*) FROM silver.events), (SELECT count(DISTINCT n) FROM silver.events), (SELECT sum(v) FROM silver.events)";

/// All rows, once, and nothing in the quarantine but what came too late for its hour.
fn check_all_landed(world: &World, file: &str) {
    let sum: usize = (0..ALL).map(|n| n % 7).sum();
    assert_eq!(ask(&world.path("lake"), LANDED), [json!([ALL, ALL, ALL, ALL, sum])]);
    for of in ["events", "silver.events"] {
        assert_eq!(table_files(&world.path("lake/_quarantine"), of), 0, "files of {of}'s quarantine are left");
    }
    world.nexus(&["audit", file]).expect_code(0);
}

/// Sends rows again; gives the report, which must balance.
fn redrive(world: &World, file: &str, more: &[&str]) -> Value {
    world.run_to_report(|world, report| world.nexus(&[&["redrive", file, "--report", report], more].concat()))
}

fn query(world: &World, file: &str, sql: &str) -> String {
    world.nexus(&["query", file, sql]).expect_code(0).stdout
}

#[test]
fn rows_land_once_after_what_was_wrong_is_corrected() {
    let world = World::new();
    write_events(&world);
    let strict = pipeline(&world, STRICT, false);
    world.run(PathBuf::from(&strict).as_path(), &[]);
    let surprising = ALL / SURPRISING_EVERY;
    let broken = (0..ALL).filter(|n| n % SURPRISING_EVERY != 3 && n % 7 >= 5).count();
    let held = |world: &World| {
        let sql =
            "SELECT (SELECT count(*) FROM quarantine.events), (SELECT count(*) FROM quarantine.\"silver.events\"),
            (SELECT min(attempts) FROM quarantine.events), (SELECT max(attempts) FROM quarantine.\"silver.events\")";
        ask(&world.path("lake"), sql)
    };
    assert_eq!(held(&world), [json!([surprising, broken, 0, 0])]);

    // What was not corrected fails again, and is counted.
    for attempt in 1..=2 {
        let report = redrive(&world, &strict, &[]);
        assert_eq!(report["sources"]["events"]["redriven"], json!(surprising));
        assert_eq!(report["tables"]["silver.events"]["quarantined"], json!(broken));
        assert_eq!(held(&world), [json!([surprising, broken, attempt, attempt])]);
    }
    world.nexus(&["audit", &strict]).expect_code(0);

    let lenient = pipeline(&world, LENIENT, false);
    let quarantine = world.path("lake/_quarantine/events");
    let kept = files(&quarantine).into_keys().next().expect("something was quarantined");
    std::fs::copy(quarantine.join(&kept), world.path("kept")).expect("could not copy a file");
    let before = files(&world.path("lake"));
    let said = world.nexus(&["redrive", &lenient, "--dry-run"]).expect_code(0).stdout;
    assert!(said.contains("silver.events") && said.contains(&broken.to_string()), "{said}");
    assert_eq!(files(&world.path("lake")), before, "a dry run changes nothing");

    // First the table alone, then the rest: the source's rows go through the table too.
    redrive(&world, &lenient, &["--table", "silver.events"]);
    let good = ALL - surprising;
    let sql = "SELECT (SELECT count(*) FROM bronze.events), (SELECT count(*) FROM silver.events)";
    assert_eq!(ask(&world.path("lake"), sql), [json!([good, good])]);
    let report = redrive(&world, &lenient, &[]);
    assert_eq!(report["tables"]["silver.events"]["rows_out"], json!(surprising));
    check_all_landed(&world, &lenient);
    assert!(query(&world, &lenient, "SELECT count(*) AS left FROM quarantine.events").contains("| 0 "));
    let at = "SELECT count(*) AS same FROM bronze.events WHERE _partition LIKE '%events-_.json' AND _offset >= 0";
    assert!(query(&world, &lenient, at).contains(&format!("| {ALL} ")), "the place of a row is where it first stood");

    // The hours were given out at the end of input: their rows are late, and stay where they are.
    let late = "SELECT count(*), bool_or(redrivable) FROM quarantine.\"gold.hours\" WHERE rule = 'late'";
    assert_eq!(ask(&world.path("lake"), late), [json!([broken + surprising, false])]);

    let before = files(&world.path("lake"));
    let said = world.nexus(&["redrive", &lenient]).expect_code(0).stdout;
    assert!(said.contains("nothing in the quarantine can be sent again"), "{said}");
    world.run(PathBuf::from(&lenient).as_path(), &[]);
    assert_eq!(files(&world.path("lake")), before, "nothing is sent twice");
    world.nexus(&["redrive", &lenient, "--table", "silver.evnts"]).expect_code(1);

    std::fs::copy(world.path("kept"), quarantine.join(&kept)).expect("could not copy a file");
    let said = world.nexus(&["audit", &lenient]).expect_code(1).said();
    assert!(said.contains("has taken its rows") && said.contains(&kept.display().to_string()), "{said}");
}

#[test]
fn a_table_whose_rule_is_gone_still_gives_its_rows_back() {
    let world = World::new();
    write_events(&world);
    world.run(PathBuf::from(pipeline(&world, STRICT, false)).as_path(), &[]);
    let without = pipeline(&world, Contract { rule: "store: true", ..LENIENT }, false);
    world.nexus(&["redrive", &without]).expect_code(0);
    check_all_landed(&world, &without);
}

#[test]
fn rows_of_a_table_that_has_other_columns_now() {
    let world = World::new();
    write_events(&world);
    let plain = |sql: &str, rule: &str| {
        let text = format!(
            "name: plain\nlake: ./lake\nsources:\n  events:\n    file: {{ path: \"events-*.json\" }}\n    \
             columns: {{ n: int64 not null, v: int64 }}\nsilver:\n  events:\n    store: false\n    sql: {sql}\n    \
             expect: {{ small: {{ that: {rule} }} }}\ngold:\n  numbers: {{ sql: SELECT n FROM silver.events }}\n"
        );
        world.file("plain.yaml", &text).display().to_string()
    };
    world.run(PathBuf::from(plain("SELECT n, v FROM events", "v < 5")).as_path(), &[]);
    let broken = (0..ALL).filter(|n| n % 7 >= 5).count();
    // Without a column the row would lose a value, and stays.
    world.nexus(&["redrive", &plain("SELECT n FROM events", "true")]).expect_code(0);
    let left = "SELECT count(*), min(rule), max(attempts), bool_and(reason LIKE '%does not fit%') \
                FROM quarantine.\"silver.events\"";
    assert_eq!(ask(&world.path("lake"), left), [json!([broken, "redrive", 1, true])]);
    // One that has come since is NULL, as in rows that were stored before.
    let more = plain("SELECT n, v, v + 1 AS w FROM events", "w IS NULL OR w > 0");
    world.nexus(&["redrive", &more]).expect_code(0);
    let all = "SELECT count(*), count(DISTINCT n) FROM gold.numbers";
    assert_eq!(ask(&world.path("lake"), all), [json!([ALL, ALL])]);
    world.nexus(&["audit", &more]).expect_code(0);
}

#[test]
fn rows_of_hours_to_come_are_in_them_and_the_end_of_input_closes_these() {
    let world = World::new();
    let mut lines = String::new();
    for n in 0..6 * 60 {
        // The last three hours have a field that nobody declared.
        let more = if n >= 3 * 60 { ",\"surprise\":1" } else { "" };
        let _ = writeln!(lines, "{{\"n\":{n},\"ts\":\"2026-11-01T{:02}:{:02}:00Z\",\"v\":1{more}}}", n / 60, n % 60);
    }
    world.file("events-0.json", &lines);
    world.run(PathBuf::from(pipeline(&world, STRICT, false)).as_path(), &[]);
    let hours = "SELECT count(*), sum(c), max(c) FROM gold.hours";
    assert_eq!(ask(&world.path("lake"), hours), [json!([3, 180, 60])]);
    let lenient = pipeline(&world, LENIENT, false);
    world.nexus(&["redrive", &lenient]).expect_code(0);
    assert_eq!(ask(&world.path("lake"), hours), [json!([6, 360, 60])]);
    world.nexus(&["audit", &lenient]).expect_code(0);
}

/// Where a redrive dies, and at which passing.
const DEATHS: [&str; 20] = [
    "before_claim",
    "after_claim",
    "after_write",
    "after_write:3",
    "before_snapshot",
    "after_keys_snapshot",
    "before_prepare:2",
    "after_prepare:4",
    "before_record",
    "after_record",
    "before_commit",
    "before_file",
    "before_removal",
    "after_removal",
    "before_removal:3",
    "after_removal:5",
    "after_commit:3",
    "before_committed_note",
    "after_committed_note",
    "after_acknowledge",
];

/// A world whose run is over, as others begin from it.
fn begun() -> &'static World {
    static BEGUN: OnceLock<World> = OnceLock::new();
    BEGUN.get_or_init(|| {
        let world = World::new();
        write_events(&world);
        world.run(PathBuf::from(pipeline(&world, STRICT, false)).as_path(), &[]);
        world
    })
}

fn copied() -> World {
    let world = World::new();
    let copy = Command::new("cp").arg("-a").arg(begun().path(".")).arg(world.path(".")).status();
    assert!(copy.is_ok_and(|status| status.success()), "could not copy a world");
    world
}

#[test]
fn killed_at_any_step_rows_land_once() {
    std::thread::scope(|scope| {
        for deaths in DEATHS.chunks(DEATHS.len() / 4) {
            scope.spawn(move || {
                for death in deaths {
                    let mut world = copied();
                    let lenient = pipeline(&world, LENIENT, false);
                    world.set("NEXUS_FAIL_POINT", death);
                    let died = world.nexus(&["redrive", &lenient]);
                    assert_eq!(died.status.code(), None, "the process did not die at {death}:\n{}", died.said());
                    world.set("NEXUS_FAIL_POINT", "");
                    // Whoever comes next sees to what the dead one has recorded.
                    if death.len() % 2 == 0 {
                        world.nexus(&["run", &lenient]).expect_code(0);
                    }
                    world.nexus(&["redrive", &lenient]).expect_code(0);
                    check_all_landed(&world, &lenient);
                }
            });
        }
    });
}

#[test]
fn a_run_that_died_before_its_commit_is_seen_to_first() {
    let mut world = World::new().with_postgres();
    write_events(&world);
    let strict = pipeline(&world, STRICT, true);
    for (point, verb) in [("after_record:2", "run"), ("before_postgres_commit:2", "run"), ("", "run")] {
        world.set("NEXUS_FAIL_POINT", point);
        world.nexus(&[verb, &strict]);
    }
    let lenient = pipeline(&world, LENIENT, true);
    for point in ["before_postgres_commit", "after_postgres_commit", "before_removal", ""] {
        world.set("NEXUS_FAIL_POINT", point);
        world.nexus(&["redrive", &lenient]);
    }
    world.nexus(&["run", &lenient]).expect_code(0);
    check_all_landed(&world, &lenient);
    assert_eq!(world.ask_postgres("SELECT count(*), count(DISTINCT n) FROM events"), [json!([ALL, ALL])]);
}

#[test]
fn lines_of_a_csv_are_read_with_their_header() {
    let world = World::new();
    world.file("a.csv", "n,word,v\n1,one,1\n2,two,1,2\n3,\"th\"\"ree\",x\n");
    world.file("b.csv", "v,n,word\n4,4,four\ny,5,\"fi,ve\"\n");
    let file = |v: &str| {
        let text = format!(
            "name: csv\nlake: ./lake\nsources:\n  words:\n    file: {{ path: \"*.csv\" }}\n    format: csv\n    \
             columns: {{ n: int64 not null, word: string, v: {v} }}\nbronze:\n  \
             words: {{ sql: \"SELECT n, word, CAST(v AS VARCHAR) AS v FROM words\" }}\n"
        );
        world.file("csv.yaml", &text).display().to_string()
    };
    world.run(PathBuf::from(file("int64")).as_path(), &[]);
    let fixed = file("string");
    world.nexus(&["redrive", &fixed]).expect_code(0);
    let rows = "SELECT n, word, v FROM bronze.words ORDER BY n";
    let expected =
        [json!([1, "one", "1"]), json!([3, "th\"ree", "x"]), json!([4, "four", "4"]), json!([5, "fi,ve", "y"])];
    assert_eq!(ask(&world.path("lake"), rows), expected);
    let left = "SELECT decode(raw), decode(header), attempts FROM quarantine.words";
    assert_eq!(ask(&world.path("lake"), left), [json!(["2,two,1,2", "n,word,v", 1])]);
    world.nexus(&["audit", &fixed]).expect_code(0);
}

#[test]
fn records_of_a_stream_keep_their_key_and_their_place() {
    let mut world = World::new().with_aws().with_kinesis();
    let (stream, bucket) = (unique("redriven"), world.bucket("lake"));
    world.aws(&["stream", &stream, "2"]);
    write_events(&world);
    let paths: Vec<_> = (0..3).map(|file| world.path(&format!("events-{file}.json")).display().to_string()).collect();
    world.aws(&["put", &stream, "1", &paths[0], &paths[1], &paths[2]]);
    let file = |world: &World, unknown: &str| {
        let text = format!(
            "name: stream\nlake: s3://{bucket}/lake\nsources:\n  events:\n    kinesis: {{ stream: {stream} }}\n    \
             columns: {{ n: int64 not null, v: int64, ts: string, f: float64 }}\n    on_unknown_column: {unknown}\n\
             bronze:\n  events: {{ from: events }}\n"
        );
        world.file("stream.yaml", &text).display().to_string()
    };
    world.run(PathBuf::from(file(&world, "reject")).as_path(), &["--until-idle", "2s"]);
    let fixed = file(&world, "ignore");
    for point in ["after_record", "before_removal", "after_removal"] {
        world.set("NEXUS_FAIL_POINT", point);
        world.nexus(&["redrive", &fixed]);
    }
    world.set("NEXUS_FAIL_POINT", "");
    world.nexus(&["redrive", &fixed]).expect_code(0);
    world.run(PathBuf::from(&fixed).as_path(), &["--until-idle", "2s"]);
    let rows = "SELECT count(*), count(DISTINCT n), count(DISTINCT _offset), count(_key) FROM bronze.events";
    let lake = world.download(&[&bucket]).join("lake");
    assert_eq!(ask(&lake, rows), [json!([ALL, ALL, ALL, ALL])]);
    assert_eq!(table_files(&lake.join("_quarantine"), "events"), 0, "files of the quarantine are left");
    world.nexus(&["audit", &fixed]).expect_code(0);
}
