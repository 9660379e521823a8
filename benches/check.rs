//! How long `nexus check` takes for a file of 50 tables: the whole command from a cold start, and what of it is the
//! reading and the planning.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use criterion::{Criterion, criterion_group, criterion_main};
use nexus::Pipeline;
use tokio::runtime::Runtime;

/// Tables of each tier: 50 in all, with those of bronze.
const TABLES: [(&str, usize); 3] = [("silver", 20), ("gold", 20), ("vibranium", 5)];

/// Writes a file of 50 tables that read one another: filters, windows, joins with a reference table.
fn file(folder: &str) -> String {
    let mut text = format!("name: bench\nlake: {folder}\nsources:\n");
    for source in 0..5 {
        let _ = writeln!(
            text,
            "  events_{source}:\n    file: {{ path: \"events/*.json\" }}\n    columns: {{ id: int64 not null, ts: timestamp \
             not null, site: string, kind: string, a: float64, b: float64 }}\n    event_time: {{ column: ts, lateness: 1h }}"
        );
    }
    text += "bronze:\n";
    for source in 0..5 {
        let _ = writeln!(text, "  events_{source}: {{ from: events_{source} }}");
    }
    for (tier, tables) in TABLES {
        let _ = writeln!(text, "{tier}:");
        for table in 0..tables {
            let sql = match tier {
                "silver" => format!(
                    "SELECT id, ts, site, kind, a * 2 AS a, coalesce(b, 0) AS b FROM bronze.events_{} WHERE a > {table} AND \
                     kind <> 'k{table}'",
                    table % 5
                ),
                "gold" => format!(
                    "SELECT date_bin(INTERVAL '1 hour', ts) AS hour, site, count(*) AS events, avg(a) AS mean, max(b) AS \
                     most FROM silver.t{table} GROUP BY 1, 2"
                ),
                _ => format!("SELECT hour, site, mean / nullif(most, 0) AS share FROM gold.t{table} WHERE events > 10"),
            };
            let _ = writeln!(text, "  t{table}:\n    sql: {sql}");
            if tier == "silver" {
                text += "    expect: { known: { that: site IS NOT NULL } }\n    unique: { key: [id], within: 1d }\n";
            }
        }
    }
    text
}

/// Finds the command in the build that this benchmark is of.
fn command() -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    let build = own.parent().and_then(|deps| deps.parent()).expect("it lies in a folder of the build");
    let command = build.join(format!("nexus{}", std::env::consts::EXE_SUFFIX));
    assert!(command.exists(), "{} is missing: build the command first (`make bench` does)", command.display());
    command
}

fn check(bench: &mut Criterion) {
    let folder = tempfile::tempdir().expect("could not make a folder");
    let text = file(&folder.path().join("lake").display().to_string());
    let path = folder.path().join("bench.yaml");
    std::fs::write(&path, &text).expect("could not write the file");
    let command = command();
    let runtime = Runtime::new().expect("could not start threads");
    let mut group = bench.benchmark_group("check");
    group.sample_size(20);
    group.bench_function("command_of_50_tables", |bench| {
        bench.iter(|| {
            let output = Command::new(&command).arg("check").arg(&path).output();
            let output = output.expect("could not start the command");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
    });
    group.bench_function("read_50_tables", |bench| {
        bench.iter(|| Pipeline::parse(&text).unwrap_or_else(|e| panic!("{e}")));
    });
    group.bench_function("plan_50_tables", |bench| {
        let pipeline = Pipeline::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        bench.iter(|| runtime.block_on(pipeline.plan()).unwrap_or_else(|e| panic!("{e}")));
    });
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
