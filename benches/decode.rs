//! Decoding on one core: rows of JSON, CSV, Parquet and raw lines into batches, with arrow-json, arrow-csv and the reader
//! of the parquet crate beside them; and unpacking gzip, as the content of files is, into records that are not decoded yet.
//!
//! `cargo bench -p nexus-benches --bench decode`

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{Read, Write as _};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use nexus_operators::batch::{Chunk, OffsetKind, Payload, timestamp_type};
use nexus_operators::clock::SystemClock;
use nexus_operators::decode::{
    BATCH_ROWS_MAX, Decoder, DecoderSettings, FormatSettings, UnknownColumns, decode_whole, decoder,
};
use nexus_operators::framing::Framing;
use nexus_operators::position::Cut;
use nexus_operators::source::memory::MemorySource;
use nexus_operators::source::{Source, SourceEvent};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tokio::runtime::Runtime;

/// The largest record of the sources.
const RECORD_BYTES_MAX: usize = 10 << 20;

#[path = "shared/size.rs"]
mod size;

fn rows() -> usize {
    size::of(50_000, 2_000) as usize
}

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
    for n in 0..rows() {
        let fields = row(n).map(|(name, value)| format!("\"{name}\":{value}"));
        writeln!(content, "{{{}}}", fields.join(",")).expect("text in memory can be written");
    }
    content.into()
}

fn csv() -> Bytes {
    let mut content = columns().iter().map(|c| c.name().clone()).collect::<Vec<_>>().join(",") + "\n";
    for n in 0..rows() {
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
        record_bytes_max: RECORD_BYTES_MAX,
        archives: false,
    };
    decoder(settings).expect("the settings are good")
}

fn bench_nexus(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, format: FormatSettings, content: &Bytes) {
    let decoder = format_decoder(format);
    let payload = Payload::Framed { offset: 0, bytes: content.clone(), header: None };
    let chunk = Chunk { partition: "flights".into(), payload, read_at_us: 0, lag_ms: None };
    let decoded = decode_whole(&*decoder, &chunk).expect("the content decodes");
    assert!(decoded.rejects.is_empty() && decoded.batches.iter().map(|b| b.num_rows()).sum::<usize>() >= rows());
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

/// Reads content as that of a file, into chunks that are not decoded yet.
fn chunks(runtime: &Runtime, content: &Bytes, framing: Framing) -> Vec<Chunk> {
    let partitions = vec![("flights".to_owned(), content.clone())];
    let mut source = MemorySource::records(partitions, framing, RECORD_BYTES_MAX, Arc::new(SystemClock));
    runtime.block_on(async {
        source.open(&Cut::default()).await.expect("memory needs nothing");
        let mut chunks = Vec::new();
        loop {
            match source.next().await.expect("the content can be read") {
                SourceEvent::Chunk(chunk) => chunks.push(chunk),
                SourceEvent::End => return chunks,
                SourceEvent::Idle => {}
                other => panic!("{other:?}"),
            }
        }
    })
}

fn bench_gzip(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let json = json();
    let mut packer = GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&json).expect("memory can be written");
    let packed: Bytes = packer.finish().expect("memory can be written").into();
    let mut group = criterion.benchmark_group("decode/gzip");
    group.throughput(Throughput::BytesDecimal(json.len() as u64)).sample_size(20);
    for (name, content) in [("nexus", &packed), ("nexus, not packed", &json)] {
        let framed = chunks(&runtime, content, Framing::Json);
        let bytes = framed.iter().map(|chunk| match &chunk.payload {
            Payload::Framed { bytes, .. } => bytes.len(),
            other => panic!("{other:?}"),
        });
        assert!(bytes.sum::<usize>() + 1 >= json.len(), "all of it comes out");
        group.bench_function(name, |b| b.iter(|| black_box(chunks(&runtime, content, Framing::Json))));
    }
    group.bench_function("flate2", |b| {
        b.iter(|| {
            let mut out = Vec::with_capacity(json.len());
            MultiGzDecoder::new(packed.as_ref()).read_to_end(&mut out).expect("it unpacks");
            black_box(out)
        });
    });
    group.finish();
}

fn bench_parquet(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be started");
    let json = json();
    let payload = Payload::Framed { offset: 0, bytes: json, header: None };
    let chunk = Chunk { partition: "flights".into(), payload, read_at_us: 0, lag_ms: None };
    let decoded = decode_whole(&*format_decoder(FormatSettings::Json), &chunk).expect("the content decodes");
    let names: Vec<_> = columns().iter().map(|column| column.name().clone()).collect();
    let batches = decoded.batches.iter().map(|batch| {
        let at = names.iter().map(|name| batch.schema().index_of(name).expect("the column is there"));
        batch.project(&at.collect::<Vec<_>>()).expect("the columns are there")
    });
    let batches: Vec<RecordBatch> = batches.collect();
    let memory: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let schema = batches.first().expect("there are rows").schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).expect("the columns can be written");
    batches.iter().for_each(|batch| writer.write(batch).expect("memory can be written"));
    let file: Bytes = writer.into_inner().expect("memory can be written").into();

    let mut group = criterion.benchmark_group("decode/parquet");
    group.throughput(Throughput::BytesDecimal(memory as u64)).sample_size(20);
    let decoder = format_decoder(FormatSettings::Parquet);
    let chunks = chunks(&runtime, &file, Framing::Parquet);
    let decode = || -> usize {
        let decoded = chunks.iter().map(|chunk| decode_whole(&*decoder, chunk).expect("the content decodes"));
        decoded.flat_map(|decoded| decoded.batches).map(|batch| black_box(batch).num_rows()).sum()
    };
    assert_eq!(decode(), rows());
    group.bench_function("nexus", |b| b.iter(decode));
    group.bench_function("parquet", |b| {
        b.iter(|| {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone()).expect("it is Parquet");
            let batches = builder.with_batch_size(BATCH_ROWS_MAX).build().expect("it can be read");
            black_box(batches.collect::<Result<Vec<_>, _>>().expect("the content decodes"))
        });
    });
    group.finish();
}

criterion_group!(benches, bench_decode, bench_gzip, bench_parquet);
criterion_main!(benches);
