//! Black-box tests of the Parquet sink, on a disk, in memory and on a server that speaks S3.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
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
    assert_eq!(rows[0].schema().fields().len(), 2, "the partition's column stays in the file");
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
            assert!(sink.held_bytes() <= 4096);
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
        [
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, utc),
            DataType::Utf8
        ]
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
}

#[tokio::test]
async fn a_value_too_long_for_a_folder_is_bad_data() {
    let lake = Lake::on_disk(settings(wide_schema(), vec![PartitionBy::Column("text".into())])).await;
    let mut sink = lake.open().unwrap();
    let id = EpochId { generation: 1, epoch: 1 };
    let error = sink.write(id, &wide(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let short = RecordBatch::try_new(wide_schema(), vec![Arc::new(StringArray::from(vec!["short"]))]).unwrap();
    sink.write(id, &short).await.unwrap();
    assert_eq!(sink.prepare(id).await.unwrap().rows, 1);
}

#[tokio::test]
async fn many_partitions_and_no_rows_of_others() {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let lake = Lake::on_disk(settings(schema.clone(), vec![PartitionBy::Column("id".into())])).await;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values((0..60).map(|n| n % 20)));
    lake.land(1, &[RecordBatch::try_new(schema, vec![ids]).unwrap()]).await;
    for file in lake.files().await {
        let value: i64 = file.strip_prefix("id=").unwrap().split('/').next().unwrap().parse().unwrap();
        let read: Vec<i64> = lake.read(&file).await.iter().flat_map(crate::testing::sink::ids).collect();
        assert_eq!(read, [value; 3]);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Whatever the values, the batches and the number of open files: each row is in the folder of its value, once.
    #[test]
    fn every_row_is_in_the_folder_of_its_value(
        batches in proptest::collection::vec(proptest::collection::vec(proptest::option::of("(?s).{0,6}|[a-c]"), 0..20), 1..6),
        open_partitions_max in 1_usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut settings = settings(wide_schema(), vec![PartitionBy::Column("text".into())]);
            settings.schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
            settings.open_partitions_max = open_partitions_max;
            let lake = Lake::on_disk(settings.clone()).await;
            let mut expected: Vec<Option<String>> = batches.iter().flatten().cloned().collect();
            let id = EpochId { generation: 1, epoch: 1 };
            let mut sink = lake.open().unwrap();
            for values in batches {
                let column = Arc::new(StringArray::from(values));
                sink.write(id, &RecordBatch::try_new(settings.schema.clone(), vec![column]).unwrap()).await.unwrap();
            }
            if let Some(handle) = sink.prepare(id).await.unwrap().handle {
                sink.committer().commit(id, &handle).await.unwrap();
            }
            let mut read = Vec::new();
            for file in lake.files().await {
                let (folder, _) = file.split_once('/').unwrap();
                let value = folder.strip_prefix("text=").unwrap();
                let value = percent_encoding::percent_decode_str(value).decode_utf8().unwrap();
                for batch in lake.read(&file).await {
                    for text in batch.column(0).as_string::<i32>() {
                        let named = text.filter(|text| !text.is_empty()).unwrap_or("__HIVE_DEFAULT_PARTITION__");
                        assert_eq!(named, value);
                        read.push(text.map(str::to_owned));
                    }
                }
            }
            expected.sort();
            read.sort();
            assert_eq!(read, expected);
        });
    }
}
