//! Black-box tests of the Parquet sink, on a disk, in memory and on a server that speaks S3.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use super::*;
use crate::store::Backend;
use crate::testing::sink::{Target, conforms, ids, rows, schema};
use crate::{Error, ErrorKind};

/// A lake with one table.
struct Lake {
    root: Store,
    settings: ParquetSettings,
    /// Removed when the test ends.
    _folder: Option<TempDir>,
}

fn settings(schema: SchemaRef, partition_by: Vec<PartitionBy>) -> ParquetSettings {
    ParquetSettings {
        pipeline: "to-lake".into(),
        tier: "silver".into(),
        table: "flights".into(),
        schema,
        partition_by,
        compression: ParquetCompression::Zstd,
        layout: ParquetLayout::default(),
        open_partitions_max: 3,
        buffer_bytes: 64 << 20,
    }
}

impl Lake {
    fn new(root: Store, settings: ParquetSettings) -> Self {
        Self { root, settings, _folder: None }
    }

    async fn on_disk(settings: ParquetSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Store::open(folder.path().to_str().unwrap(), &Default::default()).await.unwrap();
        Self { root, settings, _folder: Some(folder) }
    }

    fn open(&self) -> Result<ParquetSink> {
        let below = |name| self.root.below(name);
        ParquetSink::new(self.settings.clone(), below("flights"), below("_staging"), below("_nexus"))
    }

    /// Writes one epoch and commits it.
    async fn land(&self, epoch: u64, batches: &[RecordBatch]) -> Prepared {
        let id = EpochId { generation: 3, epoch };
        let mut sink = self.open().unwrap();
        for batch in batches {
            sink.write(id, batch).await.unwrap();
        }
        let prepared = sink.prepare(id).await.unwrap();
        sink.committer().commit(id, prepared.handle.as_ref().unwrap()).await.unwrap();
        prepared
    }

    async fn files(&self) -> Vec<String> {
        self.root.below("flights").list("").await.unwrap().into_iter().map(|entry| entry.name).collect()
    }

    async fn reader(&self, file: &str) -> ParquetRecordBatchReaderBuilder<bytes::Bytes> {
        let bytes = self.root.below("flights").get(file).await.unwrap().expect("a listed file can be read");
        ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap()
    }

    async fn read(&self, file: &str) -> Vec<RecordBatch> {
        self.reader(file).await.build().unwrap().map(|batch| batch.unwrap()).collect()
    }
}

impl Target for Lake {
    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.open().unwrap())
    }

    async fn visible(&self) -> Vec<i64> {
        let mut visible = Vec::new();
        for file in self.files().await {
            visible.extend(self.read(&file).await.iter().flat_map(ids));
        }
        visible
    }

    async fn staged(&self) -> usize {
        self.root.list("_staging").await.unwrap().len() + self.root.list("_nexus").await.unwrap().len()
    }
}

fn by_origin() -> ParquetSettings {
    settings(schema(), vec![PartitionBy::Column("origin".into())])
}

#[tokio::test]
async fn conforms_on_a_disk() {
    conforms(|| Lake::on_disk(settings(schema(), vec![]))).await;
    conforms(|| Lake::on_disk(by_origin())).await;
}

#[tokio::test]
async fn conforms_in_memory() {
    conforms(|| async { Lake::new(Store::memory(), settings(schema(), vec![])) }).await;
    conforms(|| async { Lake::new(Store::memory(), by_origin()) }).await;
}

/// A lake in a bucket of a server, which knows of uploads that nobody noted.
#[cfg(feature = "s3")]
struct Bucket {
    lake: Lake,
    server: Arc<crate::testing::ministack::Ministack>,
    name: String,
}

#[cfg(feature = "s3")]
impl Target for Bucket {
    async fn sink(&self) -> Box<dyn Sink> {
        self.lake.sink().await
    }

    async fn visible(&self) -> Vec<i64> {
        self.lake.visible().await
    }

    async fn staged(&self) -> usize {
        self.lake.staged().await + self.server.uploads(&self.name)
    }
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn conforms_on_s3() {
    let server = Arc::new(crate::testing::ministack::Ministack::start());
    let count = std::sync::atomic::AtomicUsize::new(0);
    for settings in [settings(schema(), vec![]), by_origin()] {
        conforms(|| async {
            let name = format!("lake-{}", count.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            let lake = Lake::new(server.bucket(&name), settings.clone());
            Bucket { lake, server: server.clone(), name }
        })
        .await;
    }
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn a_commit_on_s3_that_was_cut_short_is_finished() {
    let id = EpochId { generation: 1, epoch: 1 };
    let server = crate::testing::ministack::Ministack::start();
    let lake = Lake::new(server.bucket("lake"), by_origin());
    let mut sink = lake.open().unwrap();
    sink.write(id, &rows(0..40)).await.unwrap();
    let handle = sink.prepare(id).await.unwrap().handle.unwrap();
    let (first, _) = handle["files"].as_array().unwrap().split_at(1);
    let committer = sink.committer();
    committer.commit(id, &serde_json::json!({ "files": first })).await.unwrap();
    committer.commit(id, &handle).await.unwrap();
    committer.commit(id, &handle).await.unwrap();
    assert_eq!(lake.visible().await.len(), 40);

    // An upload that is gone, and no object of its name.
    sink.write(EpochId { epoch: 2, ..id }, &rows(0..1)).await.unwrap();
    let handle = sink.prepare(EpochId { epoch: 2, ..id }).await.unwrap().handle.unwrap();
    committer.sweep(2, &[]).await.unwrap();
    let error = committer.commit(EpochId { epoch: 2, ..id }, &handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("to-lake-1-2-0.parquet"), "{error}");
}

/// Killed in the middle of an epoch, when parts had been sent already.
#[cfg(feature = "s3")]
#[tokio::test]
async fn uploads_of_a_killed_process_are_aborted() {
    let server = crate::testing::ministack::Ministack::start();
    let mut plain = settings(wide_schema(), vec![]);
    (plain.compression, plain.buffer_bytes) = (ParquetCompression::Uncompressed, 8 << 20);
    let lake = Lake::new(server.bucket("lake"), plain);
    let mut sink = lake.open().unwrap();
    for start in 0..40 {
        sink.write(EpochId { generation: 1, epoch: 1 }, &wide(start)).await.unwrap();
    }
    drop(sink);
    assert!(server.uploads("lake") > 0);
    let committer = lake.open().unwrap().committer();
    assert!(committer.sweep(2, &[]).await.unwrap() > 0);
    assert_eq!((server.uploads("lake"), lake.staged().await), (0, 0));
}

#[tokio::test]
async fn a_commit_that_was_cut_short_is_finished() {
    let id = EpochId { generation: 1, epoch: 1 };
    for lake in [Lake::on_disk(by_origin()).await, Lake::new(Store::memory(), by_origin())] {
        let mut sink = lake.open().unwrap();
        sink.write(id, &rows(0..40)).await.unwrap();
        let handle = sink.prepare(id).await.unwrap().handle.unwrap();
        let files = handle["files"].as_array().unwrap().clone();
        let (done, _) = files.split_at(2);
        let half = serde_json::json!({ "files": done });

        sink.committer().commit(id, &half).await.unwrap();
        assert_eq!(lake.visible().await.len(), 20);
        drop(sink);
        lake.open().unwrap().committer().commit(id, &handle).await.unwrap();
        assert_eq!(lake.visible().await.len(), 40);
        assert_eq!(lake.staged().await, 0);
    }
}

#[tokio::test]
async fn a_lost_file_is_named() {
    let id = EpochId { generation: 1, epoch: 1 };
    let lake = Lake::on_disk(settings(schema(), vec![])).await;
    let mut sink = lake.open().unwrap();
    sink.write(id, &rows(0..4)).await.unwrap();
    let handle = sink.prepare(id).await.unwrap().handle.unwrap();
    lake.root.delete("_staging/to-lake-1-1-0.parquet").await.unwrap();
    let error = sink.committer().commit(id, &handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("flights/to-lake-1-1-0.parquet"), "{error}");
}

#[tokio::test]
async fn rows_go_to_the_folder_of_their_value() {
    let lake = Lake::on_disk(by_origin()).await;
    let prepared = lake.land(7, &[rows(0..8)]).await;
    assert_eq!((prepared.rows, prepared.files), (8, 4));
    // The fourth folder closes the first: three may be open.
    assert_eq!(
        lake.files().await,
        [
            "origin=JFK/to-lake-3-7-0.parquet",
            "origin=LGA/to-lake-3-7-1.parquet",
            "origin=__HIVE_DEFAULT_PARTITION__/to-lake-3-7-3.parquet",
            "origin=a%2Fb%3Dc ..%2Fé/to-lake-3-7-2.parquet",
        ]
    );
    let rows = lake.read("origin=LGA/to-lake-3-7-1.parquet").await;
    assert_eq!(rows.iter().flat_map(ids).collect::<Vec<_>>(), [1, 5]);
    assert_eq!(rows[0].schema().fields().len(), 1, "the partition's column is left out of the file");
}

#[tokio::test]
async fn names_of_objects_are_those_of_files() {
    let lake = Lake::new(Store::memory(), by_origin());
    lake.land(7, &[rows(0..8)]).await;
    let Backend::Object { objects, .. } = lake.root.backend() else { panic!("memory is an object store") };
    let path = object_store::path::Path::parse("flights/origin=a%2Fb%3Dc ..%2Fé/to-lake-3-7-2.parquet").unwrap();
    object_store::ObjectStoreExt::head(objects, &path).await.unwrap();
}

#[tokio::test]
async fn the_least_recently_used_file_is_closed_first() {
    let mut few = by_origin();
    few.open_partitions_max = 1;
    let lake = Lake::on_disk(few).await;
    let prepared = lake.land(1, &[rows(0..2), rows(4..6)]).await;
    assert_eq!(prepared.files, 4);
    let mut visible = lake.visible().await;
    visible.sort_unstable();
    assert_eq!(visible, [0, 1, 4, 5]);
}

#[tokio::test]
async fn memory_has_a_bound() {
    for object in [false, true] {
        let mut small = by_origin();
        small.buffer_bytes = 4096;
        let lake = if object { Lake::new(Store::memory(), small) } else { Lake::on_disk(small).await };
        let id = EpochId { generation: 3, epoch: 1 };
        let mut sink = lake.open().unwrap();
        for start in 0..20 {
            sink.write(id, &rows(start * 1000..start * 1000 + 1000)).await.unwrap();
            assert!(sink.open_bytes() <= 4096);
        }
        let prepared = sink.prepare(id).await.unwrap();
        sink.committer().commit(id, &prepared.handle.unwrap()).await.unwrap();
        let mut visible = lake.visible().await;
        visible.sort_unstable();
        assert_eq!(visible, (0..20_000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn large_files_are_sent_in_equal_parts() {
    let lake = Lake::new(
        Store::memory(),
        ParquetSettings { compression: ParquetCompression::Uncompressed, ..settings(wide_schema(), vec![]) },
    );
    let id = EpochId { generation: 3, epoch: 1 };
    let mut sink = lake.open().unwrap();
    for start in 0..24 {
        sink.write(id, &wide(start)).await.unwrap();
    }
    let prepared = sink.prepare(id).await.unwrap();
    let handle = prepared.handle.unwrap();
    let parts = handle["files"][0]["upload"]["parts"].as_array().unwrap().len();
    assert_eq!(parts as u64, prepared.bytes.div_ceil(8 << 20));
    assert!(parts > 2, "{parts} parts");
    sink.committer().commit(id, &handle).await.unwrap();
    let file = lake.files().await.remove(0);
    assert_eq!(lake.reader(&file).await.metadata().file_metadata().num_rows(), 24 * 1000);
}

fn wide_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]))
}

fn wide(start: usize) -> RecordBatch {
    let text: StringArray = (0..1000).map(|row| Some(format!("{start} {row} {}", "x".repeat(1000)))).collect();
    RecordBatch::try_new(wide_schema(), vec![Arc::new(text)]).unwrap()
}

#[tokio::test]
async fn times_and_dictionaries_become_plain() {
    let nanos = TimestampNanosecondArray::from(vec![Some(1_359_608_400_123_456_789), Some(-1_000_000), None]);
    let zoned = cast(&nanos, &DataType::Timestamp(TimeUnit::Second, Some("+02:00".into()))).unwrap();
    let words: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b"), Some("a")]));
    let dictionary = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8View));
    let words = cast(&words, &dictionary).unwrap();
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("naive", Arc::new(nanos) as ArrayRef, true),
        ("ts", zoned, true),
        ("word", words, true),
    ])
    .unwrap();
    let by =
        vec![PartitionBy::Date("ts".into()), PartitionBy::Hour("naive".into()), PartitionBy::Column("word".into())];
    let lake = Lake::on_disk(settings(batch.schema(), by)).await;
    lake.land(1, &[batch]).await;

    let files = lake.files().await;
    let folders: Vec<_> = files.iter().map(|file| file.rsplit_once('/').unwrap().0).collect();
    assert_eq!(
        folders,
        [
            "ts_date=1969-12-31/naive_hour=1969-12-31-23/word=b",
            "ts_date=2013-01-31/naive_hour=2013-01-31-05/word=a",
            "ts_date=__HIVE_DEFAULT_PARTITION__/naive_hour=__HIVE_DEFAULT_PARTITION__/word=a",
        ]
    );
    let read = lake.read(&files[1]).await.remove(0);
    let types: Vec<_> = read.schema().fields().iter().map(|f| f.data_type().clone()).collect();
    let utc = Some("UTC".into());
    assert_eq!(
        types,
        [DataType::Timestamp(TimeUnit::Microsecond, None), DataType::Timestamp(TimeUnit::Microsecond, utc)]
    );
    let micros = cast(read.column(0), &DataType::Int64).unwrap();
    assert_eq!(micros.as_primitive::<Int64Type>().value(0), 1_359_608_400_123_456);
    let keys: Vec<_> = metadata_keys(&lake.reader(&files[1]).await);
    assert_eq!(
        keys,
        [
            ("nexus.version", env!("CARGO_PKG_VERSION")),
            ("nexus.pipeline", "to-lake"),
            ("nexus.tier", "silver"),
            ("nexus.table", "flights"),
            ("nexus.generation", "3"),
            ("nexus.epoch", "1"),
            ("nexus.partition_columns", r#"[{"name":"word","type":"string"}]"#),
            ("nexus.rows", "1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
}

fn metadata_keys(reader: &ParquetRecordBatchReaderBuilder<bytes::Bytes>) -> Vec<(String, String)> {
    let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default())).collect()
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_by_name() {
    let refused = |field: Field, by: Vec<PartitionBy>| {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), field]));
        let lake = Lake::new(Store::memory(), settings(schema, by));
        let error: Error = lake.open().err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let text = refused(Field::new("nothing", DataType::Null, true), vec![]);
    assert!(text.contains("`nothing`") && text.contains("CAST"), "{text}");
    let text = refused(Field::new("x", DataType::Int64, true), vec![PartitionBy::Column("origin".into())]);
    assert!(text.contains("`origin`") && text.contains("n, x"), "{text}");
    let text = refused(Field::new("x", DataType::Float64, true), vec![PartitionBy::Column("x".into())]);
    assert!(text.contains("Float64"), "{text}");
    let text = refused(Field::new("x", DataType::Utf8, true), vec![PartitionBy::Date("x".into())]);
    assert!(text.contains("a timestamp or a date"), "{text}");
    let both = ["x", "n"].map(|column| PartitionBy::Column(column.into()));
    let text = refused(Field::new("x", DataType::Utf8, true), both.into());
    assert!(text.contains("all of its columns"), "{text}");
}

#[tokio::test]
async fn a_value_too_long_for_a_folder_is_bad_data() {
    let lake = Lake::on_disk(settings(texts([]).schema(), vec![PartitionBy::Column("text".into())])).await;
    let mut sink = lake.open().unwrap();
    let id = EpochId { generation: 1, epoch: 1 };
    let error = sink.write(id, &texts([Some("x".repeat(1000))])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    sink.write(id, &texts([Some("short".to_owned())])).await.unwrap();
    assert_eq!(sink.prepare(id).await.unwrap().rows, 1);
}

#[tokio::test]
async fn many_partitions_and_no_rows_of_others() {
    let ids = Int64Array::from_iter_values(0..60);
    let gates = Int64Array::from_iter_values((0..60).map(|n| n % 20));
    let batch = RecordBatch::try_from_iter([("gate", Arc::new(gates) as ArrayRef), ("id", Arc::new(ids))]).unwrap();
    let lake = Lake::on_disk(settings(batch.schema(), vec![PartitionBy::Column("gate".into())])).await;
    lake.land(1, &[batch]).await;
    for file in lake.files().await {
        let gate: i64 = file.strip_prefix("gate=").unwrap().split('/').next().unwrap().parse().unwrap();
        let read: Vec<i64> = lake.read(&file).await.iter().flat_map(crate::testing::sink::ids).collect();
        assert_eq!(read, [gate, gate + 20, gate + 40]);
    }
}

#[tokio::test]
async fn the_footer_tells_the_types_that_folders_do_not() {
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let types = [
        (DataType::UInt64, "uint64"),
        (DataType::Decimal128(9, 2), "decimal(9, 2)"),
        (DataType::Boolean, "bool"),
        (DataType::LargeUtf8, "string"),
        (DataType::Date32, "date"),
        (DataType::Timestamp(TimeUnit::Nanosecond, None), "timestamp_ntz"),
        (DataType::Timestamp(TimeUnit::Second, Some("+02:00".into())), "timestamp"),
    ];
    for (data_type, name) in types {
        let days = cast(&one, &DataType::Int32).unwrap();
        let typed = cast(if data_type == DataType::Date32 { &days } else { &one }, &data_type).unwrap();
        let batch = RecordBatch::try_from_iter([("of", typed), ("id", one.clone())]).unwrap();
        let lake = Lake::new(Store::memory(), settings(batch.schema(), vec![PartitionBy::Column("of".into())]));
        lake.land(1, &[batch]).await;
        let file = lake.files().await.remove(0);
        let keys = metadata_keys(&lake.reader(&file).await);
        let (_, told) = keys.iter().find(|(key, _)| key == "nexus.partition_columns").unwrap();
        let told: serde_json::Value = serde_json::from_str(told).unwrap();
        assert_eq!(told, serde_json::json!([{ "name": "of", "type": name }]));
    }
}

/// Makes rows with texts and their numbers.
fn texts(values: impl IntoIterator<Item = Option<String>>) -> RecordBatch {
    let texts: StringArray = values.into_iter().collect();
    let ids = Int64Array::from_iter_values((0..).take(texts.len()));
    let columns = [("text", Arc::new(texts) as ArrayRef, true), ("id", Arc::new(ids), false)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Whatever the values, the batches and the number of open files: each row is in the folder of its value, once,
    /// and the folder tells the value.
    #[test]
    fn every_row_is_in_the_folder_of_its_value(
        batches in proptest::collection::vec(proptest::collection::vec(proptest::option::of("(?s).{0,6}|[a-c]|__HIVE_DEFAULT_PARTITION__"), 0..20), 1..6),
        open_partitions_max in 1_usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut settings = settings(texts([]).schema(), vec![PartitionBy::Column("text".into())]);
            settings.open_partitions_max = open_partitions_max;
            let lake = Lake::on_disk(settings).await;
            let mut expected = Vec::new();
            let id = EpochId { generation: 1, epoch: 1 };
            let mut sink = lake.open().unwrap();
            for values in batches {
                for (number, text) in (0_i64..).zip(&values) {
                    expected.push((text.clone().filter(|text| !text.is_empty()), number));
                }
                sink.write(id, &texts(values)).await.unwrap();
            }
            if let Some(handle) = sink.prepare(id).await.unwrap().handle {
                sink.committer().commit(id, &handle).await.unwrap();
            }
            let mut read = Vec::new();
            for file in lake.files().await {
                let (_, value) = folder_values(&file).remove(0);
                for number in lake.read(&file).await.iter().flat_map(ids) {
                    read.push((value.clone(), number));
                }
            }
            expected.sort();
            read.sort();
            assert_eq!(read, expected);
        });
    }
}
