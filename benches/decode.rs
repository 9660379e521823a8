//! Decoding on one core: rows of JSON, CSV and raw lines into batches, with arrow-json and arrow-csv beside them.
//!
//! `cargo bench -p nexus-benches --bench decode`

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use nexus_operators::batch::{Chunk, OffsetKind, Payload, timestamp_type};
use nexus_operators::decode::{
    BATCH_ROWS_MAX, Decoder, DecoderSettings, FormatSettings, UnknownColumns, decode_whole, decoder,
};

const ROWS: usize = 50_000;

fn columns() -> Vec<Field> {
    let column = |name: &str, data_type| Field::new(name, data_type, true);
    vec![
        column("carrier", DataType::Utf8View),
        column("flight", DataType::Int64),
        column("tailnum", DataType::Utf8View),
        column("origin", DataType::Utf8View),
        column("dest", DataType::Utf8View),
        column("dep_delay", DataType::Float64),
        column("distance", DataType::Int32),
        column("cancelled", DataType::Boolean),
        column("time_hour", timestamp_type()),
        column("remark", DataType::Utf8View),
    ]
}

/// Gives the fields of a row as JSON has them.
fn row(n: usize) -> [(&'static str, String); 10] {
    let text = |value: &str| format!("\"{value}\"");
    let pick = |values: &[&str]| text(values[n % values.len()]);
    [
        ("carrier", pick(&["UA", "AA", "B6", "DL", "EV"])),
        ("flight", (n % 6000).to_string()),
        ("tailnum", text(&format!("N{}UA", n % 4000))),
        ("origin", pick(&["EWR", "LGA", "JFK"])),
        ("dest", pick(&["IAH", "MIA", "BQN", "ATL", "ORD", "FLL", "IAD"])),
        ("dep_delay", format!("{:.1}", (n % 1300) as f64 / 7.0 - 20.0)),
        ("distance", (187 + n * 31 % 2500).to_string()),
        ("cancelled", (n.is_multiple_of(50)).to_string()),
        ("time_hour", text(&format!("2013-{:02}-{:02}T{:02}:00:00Z", n % 12 + 1, n % 28 + 1, n % 24))),
        ("remark", text(if n.is_multiple_of(3) { "held at the gate for the inbound crew" } else { "on time" })),
    ]
}

fn json() -> Bytes {
    let mut content = String::new();
    for n in 0..ROWS {
        let fields = row(n).map(|(name, value)| format!("\"{name}\":{value}"));
        writeln!(content, "{{{}}}", fields.join(",")).expect("text in memory can be written");
    }
    content.into()
}

fn csv() -> Bytes {
    let mut content = columns().iter().map(|c| c.name().clone()).collect::<Vec<_>>().join(",") + "\n";
    for n in 0..ROWS {
        content += &row(n).map(|(_, value)| value.trim_matches('"').to_string()).join(",");
        content.push('\n');
    }
    content.into()
}

fn format_decoder(format: FormatSettings) -> Box<dyn Decoder> {
    let columns = if format == FormatSettings::Raw { Vec::new() } else { columns() };
    let settings = DecoderSettings {
        source: "flights".into(),
        format,
        columns,
        unknown: UnknownColumns::Rescue,
        offsets: OffsetKind::Number,
        batch_rows_max: BATCH_ROWS_MAX,
        record_bytes_max: 10 << 20,
        archives: false,
    };
    decoder(settings).expect("the settings are good")
}

fn bench_nexus(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, format: FormatSettings, content: &Bytes) {
    let decoder = format_decoder(format);
    let payload = Payload::Framed { offset: 0, bytes: content.clone(), header: None };
    let chunk = Chunk { partition: "flights".into(), payload, read_at_us: 0, lag_ms: None };
    let decoded = decode_whole(&*decoder, &chunk).expect("the content decodes");
    assert!(decoded.rejects.is_empty() && decoded.batches.iter().map(|b| b.num_rows()).sum::<usize>() >= ROWS);
    group.bench_function(name, |b| b.iter(|| black_box(decode_whole(&*decoder, &chunk).expect("the content decodes"))));
}

fn bench_decode(criterion: &mut Criterion) {
    let (json, csv) = (json(), csv());
    let schema = Arc::new(Schema::new(columns()));

    let mut group = criterion.benchmark_group("decode/json");
    group.throughput(Throughput::BytesDecimal(json.len() as u64)).sample_size(20);
    bench_nexus(&mut group, "nexus", FormatSettings::Json, &json);
    group.bench_function("arrow-json", |b| {
        b.iter(|| {
            let builder = arrow::json::ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(BATCH_ROWS_MAX);
            let batches = builder.build(json.as_ref()).expect("the schema is good");
            black_box(batches.collect::<Result<Vec<_>, _>>().expect("the content decodes"))
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("decode/csv");
    group.throughput(Throughput::BytesDecimal(csv.len() as u64)).sample_size(20);
    let format = FormatSettings::Csv { header: true, delimiter: b',', quote: b'"', nulls: vec!["NA".into()] };
    bench_nexus(&mut group, "nexus", format, &csv);
    group.bench_function("arrow-csv", |b| {
        b.iter(|| {
            let builder = arrow::csv::ReaderBuilder::new(Arc::clone(&schema)).with_header(true);
            let batches = builder.with_batch_size(BATCH_ROWS_MAX).build(csv.as_ref()).expect("the schema is good");
            black_box(batches.collect::<Result<Vec<_>, _>>().expect("the content decodes"))
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("decode/raw");
    group.throughput(Throughput::BytesDecimal(json.len() as u64)).sample_size(20);
    bench_nexus(&mut group, "nexus", FormatSettings::Raw, &json);
    group.finish();
}

criterion_group!(benches, bench_decode);
criterion_main!(benches);
