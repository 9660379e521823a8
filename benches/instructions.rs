//! How many instructions the kernels take: decoding JSON, one-minute windows, encoding Parquet.
//!
//! Seconds tell little on a machine that others use too; instructions under valgrind's callgrind are the same within a
//! fraction of a per cent. `benches/instructions.json` holds the counts of each kernel, for each kind of build; a run
//! that differs from them by more than 3 % fails, whichever way, so that the file stays true.
//!
//! `cargo test -p nexus-benches --bench instructions` (in `make test`) counts the build of the tests,
//! `cargo bench -p nexus-benches --bench instructions` the optimised one. `NEXUS_RECORD_INSTRUCTIONS=1` writes the
//! counts down.

#![allow(clippy::print_stdout, reason = "the counts are the result")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use arrow::array::RecordBatch;
use nexus::Pipeline;
use nexus::operators::batch::{Chunk, Payload};
use nexus::operators::decode::{Decoder, decode_whole};
use nexus::operators::sink::parquet::{ParquetCompression, ParquetLayout, ParquetSettings, ParquetSink};
use nexus::operators::sink::{EpochId, Sink};
use nexus::operators::store::Store;
use nexus::operators::transform::Transform;
use nexus::operators::transform::states::StateLimits;
use nexus::operators::transform::window::WATERMARK_END;

#[path = "shared/epoch.rs"]
mod epoch;

/// Rows of each kernel: a few seconds under valgrind in the build of the tests.
const ROWS: usize = 4096;

/// How far a count may be from the recorded one: far above what seeds of hash maps do, below what anyone would want to
/// lose unseen.
const TOLERANCE: f64 = 0.03;

/// The kernels, by the function that is counted: no other function's name may contain theirs.
const KERNELS: [&str; 3] = ["decode_json", "minute_windows", "encode_parquet"];

const PIPELINE: &str = r#"
name: instructions
lake: ./unused
sources:
  events:
    file: { path: events.jsonl }
    format: json
    columns:
      device_id: string
      site: string
      ts: timestamp
      temp_c: float64
      humidity: float64
      status: string
    on_unknown_column: ignore
    event_time: { column: ts, lateness: 10s }
gold:
  minutes:
    sql: |
      SELECT date_bin(INTERVAL '1 minute', ts) AS minute, site, count(*) AS events, avg(temp_c) AS mean_c,
             min(temp_c) AS min_c, max(temp_c) AS max_c, avg(humidity) AS mean_humidity
      FROM events WHERE status <> 'error' GROUP BY 1, 2
"#;

fn main() -> ExitCode {
    match std::env::args().skip(1).find(|argument| KERNELS.contains(&argument.as_str())) {
        Some(kernel) => run(&kernel),
        None => return compare(),
    }
    ExitCode::SUCCESS
}

/// Runs a kernel after everything it needs has been made; only the kernel's own function is counted.
fn run(kernel: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let pipeline = Pipeline::parse(PIPELINE).unwrap_or_else(|wrong| panic!("{wrong}"));
    let plan = runtime.block_on(pipeline.plan()).unwrap_or_else(|wrong| panic!("{wrong}"));
    let decoder = plan.sources.get("events").expect("it is there").decoder().expect("the columns can be decoded");
    let chunk = events();
    if kernel == "decode_json" {
        assert_eq!(decode_json(&*decoder, &chunk), ROWS);
        return;
    }
    let batches = decode_whole(&*decoder, &chunk).expect("the events decode").batches;
    if kernel == "encode_parquet" {
        assert_eq!(encode_parquet(&runtime, &mut sink(&batches), &batches), ROWS as u64);
        return;
    }
    let limits = StateLimits { cached_bytes: 1 << 30, piece_bytes: 1 << 30 };
    let transform = plan.table("gold.minutes").expect("it is there").transform(limits);
    let mut transform = runtime.block_on(transform).expect("it is planned");
    assert!(minute_windows(&runtime, &mut transform, &batches) > 0);
}

#[inline(never)]
fn decode_json(decoder: &dyn Decoder, chunk: &Chunk) -> usize {
    let decoded = decode_whole(decoder, chunk).expect("the events decode");
    decoded.batches.iter().map(RecordBatch::num_rows).sum()
}

#[inline(never)]
fn minute_windows(runtime: &tokio::runtime::Runtime, transform: &mut Transform, batches: &[RecordBatch]) -> usize {
    runtime.block_on(epoch::run(transform, batches, WATERMARK_END))
}

#[inline(never)]
fn encode_parquet(runtime: &tokio::runtime::Runtime, sink: &mut ParquetSink, batches: &[RecordBatch]) -> u64 {
    runtime.block_on(land(sink, batches))
}

async fn land(sink: &mut ParquetSink, batches: &[RecordBatch]) -> u64 {
    let id = EpochId { generation: 1, epoch: 1 };
    for batch in batches {
        sink.write(id, batch).await.expect("rows are encoded");
    }
    sink.prepare(id).await.expect("an epoch is prepared").rows
}

/// Events of half an hour, whose values are the same in each run.
fn events() -> Chunk {
    let mut lines = String::new();
    for n in 0..ROWS {
        let (site, status) = (["elko", "ely", "reno"][n % 3], if n.is_multiple_of(20) { "error" } else { "ok" });
        let mixed = n * 7919 % 10_007;
        let (temp, humidity) = (mixed as f64 / 200.0 - 10.0, (mixed % 1000) as f64 / 10.0);
        let (minute, second) = (n * 30 / ROWS, n % 60);
        writeln!(
            lines,
            r#"{{"device_id":"device-{:05}","site":"{site}","ts":"2026-11-01T00:{minute:02}:{second:02}.125Z","temp_c":{temp:.2},"humidity":{humidity:.1},"status":"{status}"}}"#,
            mixed % 500,
        )
        .expect("text in memory can be written");
    }
    let payload = Payload::Framed { offset: 0, bytes: lines.into(), header: None };
    Chunk { partition: "events.jsonl".into(), payload, read_at_us: 0, lag_ms: None }
}

fn sink(batches: &[RecordBatch]) -> ParquetSink {
    let settings = ParquetSettings {
        pipeline: "instructions".into(),
        tier: "bronze".into(),
        table: "events".into(),
        schema: batches.first().expect("there are rows").schema(),
        partition_by: Vec::new(),
        compression: ParquetCompression::Zstd,
        open_partitions_max: 8,
        buffer_bytes: 64 << 20,
        layout: ParquetLayout::default(),
    };
    let store = Store::memory();
    ParquetSink::new(settings, store.below("events"), store.below("_staging"), store.below("_notes"))
        .expect("the table can be stored")
}

/// Counts each kernel and compares with what is recorded.
fn compare() -> ExitCode {
    let build = if cfg!(debug_assertions) { "tests" } else { "optimised" };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let text = std::fs::read_to_string(&file).expect("the recorded counts can be read");
    let mut recorded: BTreeMap<String, BTreeMap<String, u64>> =
        serde_json::from_str(&text).expect("the recorded counts are JSON");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let command = stripped(folder.path());
    let known = recorded.entry(build.into()).or_default();
    let records = std::env::var_os("NEXUS_RECORD_INSTRUCTIONS").is_some();
    let mut differs = false;
    for kernel in KERNELS {
        let counted = count(&command, folder.path(), kernel);
        let before = known.insert(kernel.into(), counted).unwrap_or_default();
        let ratio = counted as f64 / before.max(1) as f64;
        let is_far = (ratio - 1.0).abs() > TOLERANCE;
        differs |= is_far;
        let verdict = if is_far { "FAR FROM" } else { "as" };
        println!(
            "{kernel}: {} instructions a row, {verdict} the recorded {} ({:+.1} %)",
            counted / ROWS as u64,
            before / ROWS as u64,
            (ratio - 1.0) * 100.0
        );
    }
    if records {
        let text = serde_json::to_string_pretty(&recorded).expect("counts can be written");
        std::fs::write(&file, text + "\n").expect("counts can be written");
        return ExitCode::SUCCESS;
    }
    if differs {
        println!("a change that is meant is recorded by `make instructions`");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Makes a copy of this program without line numbers, which valgrind would take a minute to read.
fn stripped(folder: &Path) -> PathBuf {
    let (own, copy) = (std::env::current_exe().expect("this program has a path"), folder.join("instructions"));
    let status = Command::new("strip").args(["--strip-debug", "-o"]).arg(&copy).arg(own).status();
    assert!(status.is_ok_and(|status| status.success()), "`strip` (binutils) could not be run");
    copy
}

fn count(command: &Path, folder: &Path, kernel: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*instructions*{kernel}*"))
        .arg(format!("--callgrind-out-file={}", folder.join(kernel).display()))
        .arg(command)
        .arg(kernel)
        .output()
        .expect("valgrind can be run: install the package of that name");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{kernel} failed under valgrind: {said}");
    let counted =
        said.lines().find_map(|line| line.split_once("Collected : ")?.1.split_whitespace().next()?.parse().ok());
    counted.filter(|&counted| counted > 0).unwrap_or_else(|| panic!("valgrind has counted nothing: {said}"))
}
