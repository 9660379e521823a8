//! What other readers find in a table with partition folders: DuckDB, pyarrow, Polars, `nexus query`, and deltalake where it
//! is a Delta table; with `NEXUS_TEST_SPARK` set, Spark too (`make readers`).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::servers::script;
use crate::world::World;

/// The columns as the pipeline declares them; the partition columns stand in the middle.
const COLUMNS: [(&str, &str); 25] = [
    ("id", "int64 not null"),
    ("word", "string"),
    ("gate", "int32"),
    ("day", "date"),
    ("ts", "timestamp not null"),
    ("flag", "bool"),
    ("i8", "int8"),
    ("i16", "int16"),
    ("i32", "int32"),
    ("i64", "int64"),
    ("u8", "uint8"),
    ("u16", "uint16"),
    ("u32", "uint32"),
    ("u64", "uint64"),
    ("f32", "float32"),
    ("f64", "float64"),
    ("amount", "decimal(20, 3)"),
    ("text", "string"),
    ("bytes", "binary"),
    ("at", "time"),
    ("doc", "json"),
    ("list", "list<int32>"),
    ("pair", "struct<a: int32, b: struct<c: string>>"),
    ("map", "map<string, int64>"),
    ("none", "string"),
];

/// The values of `word`, and what is left of them: an empty text is NULL, as in Hive.
const WORDS: [(Option<&str>, Option<&str>); 10] = [
    (Some("a/b"), Some("a/b")),
    (Some("50%"), Some("50%")),
    (Some("%2F"), Some("%2F")),
    (Some("two words"), Some("two words")),
    (Some("Zürich ✈"), Some("Zürich ✈")),
    (Some("k=v:w"), Some("k=v:w")),
    (Some("../up"), Some("../up")),
    (Some("007"), Some("007")),
    (Some(""), None),
    (None, None),
];

/// The row number `n` as JSON, with what comes back for its word.
fn row(n: usize) -> (Value, Option<&'static str>) {
    let (word, back) = WORDS[n % WORDS.len()];
    let hour = n % 3;
    let row = json!({
        "id": n, "word": word, "gate": Some(n % 4).filter(|gate| *gate > 0), "day": "2024-02-29",
        "ts": format!("2024-02-29T0{hour}:59:59.123456Z"),
        "flag": n.is_multiple_of(2), "i8": -128, "i16": -32768, "i32": i32::MIN, "i64": i64::MIN,
        "u8": u8::MAX, "u16": u16::MAX, "u32": u32::MAX, "u64": u64::MAX,
        "f32": 0.5, "f64": 1e300, "amount": "-12345678901234567.891", "text": "é\u{1f6eb} | \"",
        "bytes": "AAH/", "at": "23:59:59.5", "doc": { "k": [1] }, "list": [1, null, 3],
        "pair": { "a": 1, "b": { "c": "x/y" } }, "map": { "k": 5 }, "none": null,
    });
    (row, back)
}

/// What a reader gives for the row number `n`. Delta has no times of day, and neither it nor Spark unsigned numbers.
fn expected(n: usize, reader: &str) -> Value {
    let (row, back) = row(n);
    let is_delta = ["deltalake", "polars_delta"].contains(&reader);
    let values = COLUMNS.iter().map(|(name, _)| match *name {
        "word" => json!(back),
        "ts" => json!(format!("2024-02-29T0{}:59:59.123456+00:00", n % 3)),
        "bytes" => json!("0001ff"),
        "at" if is_delta => json!("23:59:59.500"),
        "at" => json!("23:59:59.500000"),
        "u64" if is_delta || reader == "spark" => json!(u64::MAX.to_string()),
        "doc" => json!(r#"{"k":[1]}"#),
        name => row[name].clone(),
    });
    let hour = json!(format!("2024-02-29-0{}", n % 3));
    values.chain([hour]).collect()
}

/// How many rows there are: more than there are words, so that folders have several files and rows.
const ROWS: usize = 60;

/// Writes the pipeline with its input, in which one line is broken.
fn pipeline(world: &World, lake: &str, table_format: &str) -> PathBuf {
    let mut lines: Vec<String> = (0..ROWS).map(|n| row(n).0.to_string()).collect();
    lines.insert(ROWS / 2, "{\"id\": \"broken\"".to_owned());
    world.file("rows.json", &(lines.join("\n") + "\n"));
    let columns: String = COLUMNS.iter().map(|(name, kind)| format!("      {name}: '{kind}'\n")).collect();
    let selected = COLUMNS.map(|(name, _)| match name {
        "at" if table_format == "delta" => "CAST(at AS VARCHAR) AS at",
        name => name,
    });
    let text = format!(
        "name: readers\nlake: {lake}\nlimits: {{ open_partitions: 4 }}\nsources:\n  rows:\n    \
         file: {{ path: rows.json }}\n    format: json\n    columns:\n{columns}bronze:\n  rows:\n    from: rows\n\
         silver:\n  rows:\n    sql: SELECT {} FROM bronze.rows\n    table_format: {table_format}\n    expect:\n      \
         known: {{ that: id >= 0, else: quarantine }}\n    partition_by: [word, gate, day, hour(ts)]\n",
        selected.join(", ")
    );
    world.file("readers.yaml", &text)
}

/// Asks by `nexus query`; gives the header and the rows, as texts.
fn query(world: &World, pipeline: &Path, sql: &str) -> Vec<Vec<String>> {
    let file = pipeline.to_str().expect("the tests' paths are UTF-8");
    let answer = world.nexus(&["query", file, sql]).expect_code(0).stdout;
    let rows = answer.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// Asks for one row.
fn one(world: &World, pipeline: &Path, sql: &str) -> Vec<String> {
    let mut rows = query(world, pipeline, sql);
    assert_eq!(rows.len(), 2, "{sql} gives {rows:?}");
    rows.remove(1)
}

/// Checks the table that `nexus query` sees, before a run and after it.
fn check_query(world: &World, pipeline: &Path, run: impl FnOnce()) {
    let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    let empty = query(world, pipeline, "SELECT * FROM silver.rows");
    assert_eq!(empty, std::slice::from_ref(&names), "a table that was never written has its columns and no rows");
    assert_eq!(query(world, pipeline, "SELECT rule FROM quarantine.rows"), [["rule"]]);

    run();

    // The text with a `|` is left out, since the answer is drawn with them.
    let all = query(world, pipeline, "SELECT * FROM silver.rows WHERE id = 20");
    assert_eq!(all[0], names);
    let sql = "SELECT id, word, gate, day, ts FROM silver.rows ORDER BY id";
    let found = query(world, pipeline, sql);
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string().replace("null", ""), str::to_owned);
    for n in 0..ROWS {
        let (row, back) = row(n);
        let expected = [
            shown(&row["id"]),
            back.unwrap_or_default().to_owned(),
            shown(&row["gate"]),
            shown(&row["day"]),
            shown(&row["ts"]),
        ];
        assert_eq!(found[n + 1], expected);
    }
    assert_eq!(found.len(), ROWS + 1);
    let types = "SELECT DISTINCT arrow_typeof(word), arrow_typeof(gate), arrow_typeof(day) FROM silver.rows";
    assert_eq!(one(world, pipeline, types), ["Utf8View", "Int32", "Date32"]);

    for (condition, count) in [
        ("word = 'k=v:w'", 6),
        ("word = 'a/b' AND gate = 2", 3),
        ("word = '007'", 6),
        ("word IS NULL", 12),
        ("gate IS NULL AND word IS NULL", 3),
        ("day = DATE '2024-02-29' AND gate > 1", 30),
        ("day > DATE '2024-02-29'", 0),
    ] {
        let sql = format!("SELECT count(*) FROM silver.rows WHERE {condition}");
        assert_eq!(one(world, pipeline, &sql), [count.to_string()], "{condition}");
    }
    assert_eq!(one(world, pipeline, "SELECT count(*) FROM quarantine.rows WHERE rule = 'decode'"), ["1"]);
    assert_eq!(one(world, pipeline, "SELECT count(*) FROM quarantine.\"silver.rows\""), ["0"]);
}

/// Checks what each other reader sees.
fn check_readers(table: &Path, table_format: &str) {
    let mut readers = match table_format {
        "delta" => vec!["deltalake", "polars_delta"],
        _ => vec!["duckdb", "table", "dataset", "polars"],
    };
    if std::env::var_os("NEXUS_TEST_SPARK").is_some() && table_format != "delta" {
        readers.push("spark");
    }
    for reader in readers {
        let expected: Vec<Value> = (0..ROWS).map(|n| expected(n, reader)).collect();
        let folder = table.display().to_string();
        let names = COLUMNS.iter().map(|(name, _)| *name).chain(["ts_hour"]);
        let args: Vec<&str> = ["read", reader, &folder].into_iter().chain(names).collect();
        let found = script("ask.py", &args, &[]);
        let found: Vec<Value> =
            found.lines().map(|row| serde_json::from_str(row).expect("ask.py prints JSON")).collect();
        assert_eq!(found.len(), ROWS, "{reader}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{reader}");
        }
    }
}

#[test]
fn partition_columns_are_read_back_by_all() {
    let world = World::new();
    let lake = world.path("lake");
    let file = pipeline(&world, &lake.display().to_string(), "parquet");
    check_query(&world, &file, || drop(world.run(&file, &[])));
    check_readers(&lake.join("silver/rows"), "parquet");
}

#[test]
fn a_delta_table_is_read_back_by_all() {
    let world = World::new();
    let lake = world.path("lake");
    let file = pipeline(&world, &lake.display().to_string(), "delta");
    check_query(&world, &file, || drop(world.run(&file, &[])));
    check_readers(&lake.join("silver/rows"), "delta");
}

#[test]
fn partition_columns_are_read_back_from_s3() {
    let world = World::new().with_aws();
    let bucket = world.bucket("readers");
    let file = pipeline(&world, &format!("s3://{bucket}/a/lake"), "parquet");
    check_query(&world, &file, || drop(world.run(&file, &[])));
    check_readers(&world.download(&[&bucket]).join("a/lake/silver/rows"), "parquet");
}

#[test]
fn a_table_whose_partitions_have_changed_is_read_as_a_whole() {
    let world = World::new();
    // Each with a state of its own: a table whose state is known keeps its partitions.
    let text = |number: usize, partition_by: &str| {
        format!(
            "name: changed\nlake: {}\nstate: ./state-{number}\nsources:\n  rows:\n    file: {{ path: in-{number}.json }}\n    format: json\n    \
             columns: {{ site: string, n: int64, m: int64 }}\nsilver:\n  rows:\n    sql: SELECT site, n, m FROM rows\n    \
             partition_by: {partition_by}\n",
            world.path("lake").display()
        )
    };
    for (number, partition_by) in ["[site]", "[]", "[n, site]"].into_iter().enumerate() {
        world.file(&format!("in-{number}.json"), &format!("{{\"site\": \"s{number}\", \"n\": {number}, \"m\": 7}}\n"));
        world.run(&world.file("changed.yaml", &text(number, partition_by)), &[]);
    }
    let found = query(&world, &world.path("changed.yaml"), "SELECT * FROM silver.rows ORDER BY n");
    assert_eq!(found, [["site", "n", "m"], ["s0", "0", "7"], ["s1", "1", "7"], ["s2", "2", "7"]]);

    let file = world.file("all.yaml", &text(0, "[site, n, m]"));
    let said = world.nexus(&["check", file.to_str().expect("the tests' paths are UTF-8")]).expect_code(2).said();
    assert!(said.contains("N0505") && said.contains("partition_by"), "{said}");
}
