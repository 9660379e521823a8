//! What helps to write a pipeline: a draft, a preview, queries, completions and manuals.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::servers::{python, unique};
use crate::world::{World, ask, files, repository};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are UTF-8")
}

/// Runs a pipeline with a table of three numbers; gives its file.
fn made(world: &World) -> PathBuf {
    let pipeline = world.file(
        "made.yaml",
        "name: made\nlake: ./lake\nsources:\n  made: { generate: { rows: 3, columns: { n: { sequence: {} } } } }\n\
         silver:\n  made: { sql: SELECT n FROM made }\n",
    );
    world.run(&pipeline, &[]);
    pipeline
}

/// Drafts a pipeline, which must pass its own check and tests; gives its text.
fn drafted(world: &World, folder: &str, args: &[&str]) -> String {
    let folder = world.path(folder);
    let said = world.nexus(&[&["init", text(&folder)], args].concat()).expect_code(0).said();
    let file = fs::read_dir(&folder).expect("the folder is made").flatten().map(|item| item.path());
    let file =
        file.into_iter().find(|path| path.extension().is_some_and(|e| e == "yaml")).expect("a pipeline is written");
    assert!(said.contains(text(&file)), "{said}");
    let checked = world.nexus(&["check", text(&file)]).expect_code(0);
    assert!(!checked.said().contains("warning"), "{}", checked.said());
    world.nexus(&["test", text(&file)]).expect_code(0);
    fs::read_to_string(&file).expect("the pipeline is there")
}

#[test]
fn a_draft_of_sample_data_runs() {
    let world = World::new();
    drafted(&world, "orders", &["--source", "file"]);
    let file = world.path("orders/orders.yaml");
    world.nexus(&["run", text(&file)]).expect_code(0);
    let answer =
        world.nexus(&["query", text(&file), "--format", "json", "SELECT * FROM gold.orders_by_day ORDER BY 1, 2"]);
    let rows: Vec<Value> =
        answer.expect_code(0).stdout.lines().map(|row| serde_json::from_str(row).expect("a row is JSON")).collect();
    assert_eq!(rows.len(), 8, "{rows:?}");
    assert_eq!((&rows[0]["rows_seen"], &rows[0]["total"]), (&1.into(), &31.25.into()), "{rows:?}");
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let world = World::new();
    drafted(&world, "orders", &["--source", "file"]);
    let before = files(&world.path("orders"));
    let said = world.nexus(&["init", text(&world.path("orders"))]).expect_code(1).said();
    assert!(said.contains("orders.yaml: it is there already"), "{said}");
    assert_eq!(files(&world.path("orders")), before);
}

#[test]
fn a_draft_may_be_named_by_its_file() {
    let world = World::new();
    let file = world.path("deep/sales_2.yaml");
    let said = world.nexus(&["init", text(&file), "--source", "file"]).expect_code(0).said();
    assert!(said.contains("sales_2.yaml is written"), "{said}");
    world.nexus(&["check", text(&file)]).expect_code(0);
    for (name, more) in [("Sales.yaml", None), ("sales.yaml", Some("other"))] {
        let more = more.map(|name| ["--name", name]);
        let file = world.path(name);
        let args: Vec<&str> = ["init", text(&file)].into_iter().chain(more.into_iter().flatten()).collect();
        let said = world.nexus(&args).expect_code(1).said();
        assert!(said.contains("a pipeline's file bears its name"), "{said}");
    }
}

#[test]
fn a_draft_of_every_kind_passes() {
    let world = World::new();
    let kinesis = drafted(&world, "kinesis", &["--source", "kinesis", "--postgres"]);
    assert!(kinesis.contains("kinesis: { stream:") && kinesis.contains("postgres: { url: pg"), "{kinesis}");
    let s3 = drafted(&world, "s3", &["--source", "s3", "--name", "Uploads 2"]);
    assert!(s3.contains("name: uploads_2") && s3.contains("s3: { queue:"), "{s3}");
}

#[test]
fn a_draft_takes_the_columns_of_ones_own_file() {
    let world = World::new();
    // Names that SQL and YAML keep for themselves, another delimiter, NULLs, rows that are not in order.
    let csv = "id;Order Date;select;no;value\n1;2026-01-05T10:00:00Z;a;x;NA\n2;2026-01-05T04:30:00Z;a;y;2.5\n\
               3;2026-01-06T01:00:00Z;b;x;3\n4;2026-01-07T01:00:00Z;b;x;4\n";
    let file = world.file("own data.csv", csv);
    let draft = drafted(&world, "own", &["--from", text(&file)]);
    for part in
        ["delimiter: \";\"", "\"null\": [\"NA\"]", "\"Order Date\": timestamp", "value: float64", "lateness: 6h"]
    {
        assert!(draft.contains(part), "{part}: {draft}");
    }
    let pipeline = world.path("own/own_data.yaml");
    world.nexus(&["run", text(&pipeline)]).expect_code(0);
    let sql = "SELECT count(*) AS n, sum(total) AS total FROM gold.own_data_by_day";
    let answer = world.nexus(&["query", text(&pipeline), "--format", "csv", sql]).expect_code(0).stdout;
    assert_eq!(answer, "n,total\n3,9.5\n");

    // Without a time, and JSON.
    let file = world
        .file("pets.jsonl", "{\"pet\":\"cat\",\"age\":3}\n{\"pet\":\"cat\",\"age\":5}\n{\"pet\":\"dog\",\"age\":1}\n");
    let draft = drafted(&world, "pets", &["--from", text(&file)]);
    assert!(draft.contains("gold:\n  pets_ready:"), "{draft}");
    let draft = drafted(&world, "counted", &["--from", text(&file), "--postgres"]);
    assert!(draft.contains("gold:\n  pets_counted:") && draft.contains("key: [pet]"), "{draft}");

    // Parquet, as an answer was written.
    let parquet = world.path("days.parquet");
    let sql = "SELECT day, \"select\", total FROM gold.own_data_by_day";
    world.nexus(&["query", text(&pipeline), "--output", text(&parquet), sql]).expect_code(0);
    let draft = drafted(&world, "days", &["--from", text(&parquet)]);
    assert!(draft.contains("format: parquet") && draft.contains("day: timestamp"), "{draft}");
}

#[test]
fn a_file_that_is_no_table_is_refused() {
    let world = World::new();
    for (name, content, wrong) in [
        ("notes.txt", "hello", "none of .csv"),
        ("empty.csv", "", "holds no record"),
        ("missing.json", "", "no file matches"),
    ] {
        if name != "missing.json" {
            world.file(name, content);
        }
        let from = world.path(name).display().to_string();
        let said = world.nexus(&["init", "--from", &from, text(&world.path("none"))]).expect_code(1).said();
        assert!(said.contains(wrong), "{name}: {said}");
        assert!(!world.path("none").exists(), "{name} left something behind");
    }
}

#[test]
fn a_draft_asks_on_a_terminal() {
    let world = World::new();
    let answers = "kinesis\n\nmeters\ny\n";
    let said = on_terminal(&world, &["init", "asked"], answers);
    assert!(said.contains("Where do rows come from") && said.contains("meters.yaml is written"), "{said}");
    let draft = fs::read_to_string(world.path("asked/meters.yaml")).expect("it is written");
    assert!(draft.contains("kinesis: {") && draft.contains("postgres: {"), "{draft}");
}

/// Runs the command on a pseudo-terminal, types into it, and gives what is on the screen.
fn on_terminal(world: &World, args: &[&str], typed: &str) -> String {
    const CODE: &str = "
import os, pty, sys
os.chdir(sys.argv[1])
typed, out = sys.stdin.buffer.read(), b''
pid, fd = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'dumb'
    os.environ['XDG_STATE_HOME'] = sys.argv[1]
    os.execv(sys.argv[2], sys.argv[2:])
for line in typed.splitlines(keepends=True):
    # Each line is typed once the one before has been asked for.
    out += os.read(fd, 65536)
    os.write(fd, line)
while True:
    try: more = os.read(fd, 65536)
    except OSError: break
    if not more: break
    out += more
sys.stdout.buffer.write(out)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let mut command = Command::new(python());
    command.args(["-c", CODE, text(&world.path(""))]).arg(crate::world::command_path()).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("Python starts");
    child.stdin.take().expect("it has one").write_all(typed.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_preview_commits_nothing() {
    let world = World::new();
    let flights = repository("pipelines/flights.yaml");
    let lake = format!("lake={}", world.path("lake").display());
    let preview = |args: &[&str]| {
        let all = [&["preview", text(&flights), "--set", &lake, "--read", "64KiB"], args].concat();
        world.nexus(&all).expect_code(0)
    };
    let shown = preview(&["gold.hourly_delays", "--rows", "3", "--format", "json"]);
    let rows: Vec<Value> = shown.stdout.lines().map(|row| serde_json::from_str(row).expect("a row is JSON")).collect();
    assert_eq!(rows.len(), 3, "{shown:?}");
    assert!(rows[0]["avg_delay"].is_number(), "{rows:?}");
    assert!(shown.stderr.contains("3 of ") && shown.stderr.contains("departures: "), "{}", shown.stderr);
    // A source by its name, as its decoder gives it.
    let shown = preview(&["departures", "--rows", "1"]);
    assert!(shown.stdout.contains("tailnum") && shown.stdout.contains("_partition"), "{}", shown.stdout);
    assert!(!world.path("lake").exists(), "a preview left something behind");

    let said = world.nexus(&["preview", text(&flights), "gold.hourly"]).expect_code(1).said();
    assert!(said.contains("there is no table or source `gold.hourly`"), "{said}");
}

#[test]
fn a_preview_leaves_a_queue_and_its_running_pipeline_alone() {
    let world = World::new().with_aws();
    let bucket = world.bucket("landing");
    let url = world.aws(&["announce", &bucket, &unique("uploads"), "10"]);
    let file = world.file(
        "uploads.yaml",
        &format!(
            "name: uploads\nlake: ./lake\nsources:\n  uploads:\n    s3: {{ queue: \"{url}\", allow: [\"s3://{bucket}/\"], \
             visibility: 10s }}\n    columns: {{ id: int64 }}\nbronze:\n  uploads: {{ from: uploads }}\n"
        ),
    );
    let rows = world.file("rows.json", "{\"id\":1}\n{\"id\":2}\n");
    world.aws(&["upload", &bucket, "", text(&rows)]);
    let shown = world.nexus(&["preview", text(&file), "bronze.uploads", "--format", "csv"]).expect_code(0);
    assert!(shown.stderr.contains("2 of 2 rows"), "{shown:?}");
    assert!(!world.path("lake").exists(), "a preview left something behind");
    // The message comes back, and the run has its rows.
    let report = world.run(&file, &["--until-idle", "12s"]);
    assert_eq!(report["tables"]["bronze.uploads"]["rows_out"], 2, "{report}");
}

#[test]
fn answers_come_in_four_formats() {
    let world = World::new();
    let pipeline = world.file(
        "made.yaml",
        "name: made\nlake: ./lake\nsources:\n  made: { generate: { rows: 3, columns: { n: { sequence: {} } } } }\n\
         silver:\n  made:\n    sql: SELECT n, CASE WHEN n > 0 THEN 'a,b' END AS word FROM made\n",
    );
    world.run(&pipeline, &[]);
    let query = |args: &[&str]| {
        let sql = "SELECT * FROM silver.made ORDER BY n";
        world.nexus(&[&["query", text(&pipeline), sql], args].concat()).expect_code(0).stdout
    };
    assert!(query(&[]).starts_with("+---+------+\n| n | word |"), "{}", query(&[]));
    assert_eq!(query(&["--format", "csv"]), "n,word\n0,\n1,\"a,b\"\n2,\"a,b\"\n");
    let json = "{\"n\":0,\"word\":null}\n{\"n\":1,\"word\":\"a,b\"}\n{\"n\":2,\"word\":\"a,b\"}\n";
    assert_eq!(query(&["--format", "json"]), json);
    fs::create_dir_all(world.path("answers/silver/made")).expect("a folder can be made");
    let output = world.path("answers/silver/made/answer.parquet");
    assert_eq!(query(&["-o", text(&output)]), "");
    assert_eq!(ask(&world.path("answers"), "SELECT count(*), sum(n) FROM silver.made"), [json!([3, 3])]);

    // A query that fails leaves what is there alone.
    let before = fs::read(&output).expect("it is there");
    world.nexus(&["query", text(&pipeline), "SELECT nn FROM silver.made", "-o", text(&output)]).expect_code(1);
    assert_eq!(fs::read(&output).expect("it is there"), before);
}

#[test]
fn a_query_that_is_wrong_is_shown_with_its_place() {
    let world = World::new();
    let pipeline = made(&world);
    let said = |sql: &str| world.nexus(&["query", text(&pipeline), sql]).expect_code(1).stderr;
    let table = said("SELECT n\nFROM silver.mad");
    for part in [
        "there is no table `silver.mad`",
        "query:2:6",
        "2 | FROM silver.mad",
        "^^^^^^^^^^",
        "did you mean `silver.made`?",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let column = said("SELECT nn FROM silver.made");
    assert!(column.contains("query:1:8") && column.contains("  |        ^^"), "{column}");
}

#[test]
fn a_query_changes_nothing() {
    let world = World::new();
    let pipeline = made(&world);
    for sql in
        ["DROP TABLE silver.made", "COPY silver.made TO 'out.csv'", "CREATE VIEW v AS SELECT 1", "SET datafusion.x = 1"]
    {
        let said = world.nexus(&["query", text(&pipeline), sql]).expect_code(1).stderr;
        assert!(said.contains("does more than to read") && said.contains("--output FILE"), "{sql}: {said}");
    }
    assert!(!world.path("out.csv").exists(), "a query has written a file");
    for sql in [
        "SHOW TABLES",
        "DESCRIBE silver.made",
        "EXPLAIN SELECT n FROM silver.made",
        "WITH a AS (SELECT 1) SELECT * FROM a",
    ] {
        world.nexus(&["query", text(&pipeline), sql]).expect_code(0);
    }
}

#[test]
fn queries_are_asked_for_at_a_prompt() {
    let world = World::new();
    let pipeline = made(&world);
    let typed = "SELECT sum(n) AS total\nFROM silver.made;\nSELECT broken;\nquit\n";
    let said = on_terminal(&world, &["query", text(&pipeline)], typed);
    for part in ["nexus> ", "| total |", "| 3     |", "1 row", "error[N07"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let history = fs::read_to_string(world.path("nexus/queries")).expect("queries are kept");
    assert!(history.contains("sum(n) AS total"), "{history}");
}

#[test]
fn shells_complete_and_manuals_name_every_verb() {
    let world = World::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = world.nexus(&["completions", shell]).expect_code(0).stdout;
        assert!(script.contains("until-idle"), "{shell}: {script}");
    }
    let bash = world.file("nexus.bash", &world.nexus(&["completions", "bash"]).expect_code(0).stdout);
    assert!(Command::new("bash").args(["-n", text(&bash)]).status().is_ok_and(|status| status.success()));
    world.nexus(&["man", text(&world.path("man"))]).expect_code(0);
    for verb in ["", "-run", "-init", "-preview", "-completions"] {
        let page = fs::read_to_string(world.path(&format!("man/nexus{verb}.1"))).expect("there is a page");
        assert!(page.starts_with(".ie") && page.contains(".SH DESCRIPTION"), "{page}");
    }
}
