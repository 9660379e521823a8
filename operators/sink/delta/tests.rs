//! Black-box tests of the Delta sink, on a disk, in memory and on a server that speaks S3. What other readers make of its
//! tables is tested beside the command.

use std::collections::BTreeMap;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, TimeUnit};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::ErrorKind;
use crate::sink::parquet::{ParquetCompression, ParquetLayout, ParquetSink, folder_of};
use crate::testing::clock::ManualClock;
use crate::testing::sink::{Target, conforms, ids, rows, schema};

/// A lake with one table.
struct Lake {
    root: Store,
    settings: DeltaSettings,
    /// Removed when the test ends.
    _folder: Option<TempDir>,
}

fn settings(schema: SchemaRef, partition_by: Vec<PartitionBy>) -> DeltaSettings {
    let parquet = ParquetSettings {
        pipeline: "to-lake".into(),
        tier: "silver".into(),
        table: "flights".into(),
        schema,
        partition_by,
        compression: ParquetCompression::Zstd,
        open_partitions_max: 3,
        buffer_bytes: 64 << 20,
        layout: ParquetLayout::default(),
    };
    DeltaSettings { parquet, state_id: "one".into(), clock: ManualClock::at(1_700_000_000_000_000) }
}

fn by_origin() -> DeltaSettings {
    settings(schema(), vec![PartitionBy::Column("origin".into())])
}

impl Lake {
    fn new(root: Store, settings: DeltaSettings) -> Self {
        Self { root, settings, _folder: None }
    }

    fn in_memory(settings: DeltaSettings) -> Self {
        Self::new(Store::memory(), settings)
    }

    async fn on_disk(settings: DeltaSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Store::open(folder.path().to_str().unwrap(), &Default::default()).await.unwrap();
        Self { root, settings, _folder: Some(folder) }
    }

    /// The same lake, as a pipeline with other settings sees it.
    fn with(&self, change: impl FnOnce(&mut DeltaSettings)) -> Self {
        let mut settings = self.settings.clone();
        change(&mut settings);
        Self::new(self.root.clone(), settings)
    }

    async fn open(&self) -> Result<DeltaSink> {
        self.open_with(|files| Box::new(files) as _).await
    }

    async fn open_with<S: Sink + ?Sized>(&self, boxed: fn(ParquetSink) -> Box<S>) -> Result<DeltaSink<S>> {
        let [table, staging, notes] = ["flights", "_staging", "_nexus"].map(|name| self.root.below(name));
        let folder = TableFolder::new(table.clone(), staging.clone(), notes.clone());
        let files = |settings| ParquetSink::new(settings, table, staging, notes).map(boxed);
        DeltaSink::open(self.settings.clone(), folder, files).await
    }

    async fn refused(&self, expected: &str) {
        let error = self.open().await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(expected), "{error}");
    }

    /// Writes an epoch by a sink, and commits it.
    async fn land(&self, sink: &mut DeltaSink, epoch: u64, rows: &RecordBatch) -> Result<()> {
        let id = EpochId { generation: 3, epoch };
        sink.write(id, rows).await?;
        let handle = sink.prepare(id).await?.handle.unwrap();
        sink.committer().commit(id, &handle).await
    }

    async fn files(&self) -> LoggedFiles {
        logged_files(&self.root.below("flights")).await.unwrap().unwrap_or_default()
    }

    /// Writes the files of the table that are in the log to one of each folder, and prepares the epoch.
    async fn merge(&self, sink: &mut DeltaSink<ParquetSink>, epoch: u64) -> (EpochId, Prepared) {
        let mut folders: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in self.files().await.active.into_keys() {
            folders.entry(folder_of(&path).to_owned()).or_default().push(path);
        }
        let (id, table) = (EpochId { generation: 4, epoch }, self.root.below("flights"));
        for (folder, paths) in folders {
            sink.rewrite(id, &table, &folder, &paths).await.unwrap();
        }
        (id, sink.prepare(id).await.unwrap())
    }

    /// Gives the sorted ids that a reader of the log sees.
    async fn seen(&self) -> Vec<i64> {
        let mut seen = self.visible().await;
        seen.sort_unstable();
        seen
    }

    /// Gives the lines of an entry of the log.
    async fn entry(&self, version: u64) -> Vec<Value> {
        let name = format!("flights/_delta_log/{version:020}.json");
        let content = self.root.get(&name).await.unwrap().expect("there is such an entry");
        content
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect()
    }

    /// Writes an entry as another writer would.
    async fn foreign(&self, version: u64, lines: &[&str]) {
        let name = format!("flights/_delta_log/{version:020}.json");
        assert!(self.root.create(&name, Bytes::from(lines.join("\n"))).await.unwrap());
    }
}

impl Target for Lake {
    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.open().await.unwrap())
    }

    async fn visible(&self) -> Vec<i64> {
        let mut visible = Vec::new();
        for file in self.files().await.active.keys() {
            let bytes = self.root.below("flights").get(file).await.unwrap().expect("a logged file is there");
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            visible.extend(reader.flat_map(|batch| ids(&batch.unwrap())));
        }
        visible
    }

    async fn staged(&self) -> usize {
        self.root.list("_staging").await.unwrap().len() + self.root.list("_nexus").await.unwrap().len()
    }
}

#[tokio::test]
async fn conforms_on_a_disk() {
    conforms(|| Lake::on_disk(by_origin())).await;
}

#[tokio::test]
async fn conforms_in_memory() {
    conforms(|| async { Lake::in_memory(settings(schema(), vec![])) }).await;
    conforms(|| async { Lake::in_memory(by_origin()) }).await;
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn conforms_on_s3() {
    let server = crate::testing::ministack::Ministack::start();
    let count = std::sync::atomic::AtomicUsize::new(0);
    conforms(|| async {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Lake::new(server.bucket(&format!("delta-{number}")).below("lake"), by_origin())
    })
    .await;
}

#[tokio::test]
async fn an_entry_tells_of_its_epoch_and_its_files() {
    let fields = [
        ("id", DataType::Int64),
        ("word", DataType::Utf8),
        ("gate", DataType::Int64),
        ("big", DataType::UInt64),
        ("amount", DataType::Decimal128(10, 2)),
        ("day", DataType::Date32),
        ("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ("float", DataType::Float64),
    ];
    let fields: Vec<_> = fields.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![3, i64::MAX])),
        Arc::new(StringArray::from(vec![Some("b"), None])),
        Arc::new(Int64Array::from(vec![7, 7])),
        Arc::new(UInt64Array::from(vec![u64::MAX, 1])),
        Arc::new(Decimal128Array::from(vec![-150, 25]).with_precision_and_scale(10, 2).unwrap()),
        Arc::new(Date32Array::from(vec![0, 1])),
        Arc::new(TimestampMicrosecondArray::from(vec![1, 1_000_000]).with_timezone("UTC")),
        Arc::new(Float64Array::from(vec![f64::NAN, 1.0])),
    ];
    let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let partition_by = vec![PartitionBy::Column("gate".into()), PartitionBy::Hour("ts".into())];
    let lake = Lake::in_memory(settings(schema, partition_by));
    let mut sink = lake.open().await.unwrap();
    lake.land(&mut sink, 5, &rows).await.unwrap();

    let begun = lake.entry(0).await;
    let columns: Value = serde_json::from_str(begun[2]["metaData"]["schemaString"].as_str().unwrap()).unwrap();
    let types: Vec<_> = columns["fields"].as_array().unwrap().iter().map(|field| field["type"].clone()).collect();
    let expected =
        ["long", "string", "long", "decimal(20,0)", "decimal(10,2)", "date", "timestamp", "double", "string"];
    assert_eq!(types, expected);
    assert_eq!(begun[2]["metaData"]["partitionColumns"], json!(["gate", "ts_hour"]));
    assert_eq!(begun[1]["protocol"], json!({ "minReaderVersion": 1, "minWriterVersion": 2 }));

    let entry = lake.entry(1).await;
    assert_eq!(entry[0]["commitInfo"]["operationParameters"]["epochId"], "5");
    assert_eq!(entry[1]["txn"]["appId"], "nexus/to-lake/silver.flights/one");
    assert_eq!(entry[1]["txn"]["version"], 5);
    let add = &entry[2]["add"];
    assert_eq!(add["path"], "gate=7/ts_hour=1970-01-01-00/to-lake-3-5-0.parquet");
    assert_eq!(add["partitionValues"], json!({ "gate": "7", "ts_hour": "1970-01-01-00" }));
    let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
    let expected = json!({
        "numRecords": 2,
        "minValues": { "id": 3, "word": "b", "amount": -1.5, "day": "1970-01-01", "ts": "1970-01-01T00:00:00.000001Z" },
        "maxValues": { "id": i64::MAX, "word": "b", "amount": 0.25, "day": "1970-01-02", "ts": "1970-01-01T00:00:01.000000Z" },
        "nullCount": { "id": 0, "word": 1, "big": 0, "amount": 0, "day": 0, "ts": 0, "float": 0 },
    });
    assert_eq!(stats, expected);
    assert_eq!(entry.len(), 3);
}

#[tokio::test]
async fn two_writers_take_turns() {
    let lake = Lake::in_memory(by_origin());
    let other = lake.with(|settings| settings.parquet.pipeline = "other".into());
    let (mut one, mut two) = (lake.open().await.unwrap(), other.open().await.unwrap());
    for epoch in 1..16 {
        let first = i64::try_from(epoch).unwrap() * 20;
        lake.land(&mut one, epoch, &rows(first..first + 10)).await.unwrap();
        other.land(&mut two, epoch, &rows(first + 10..first + 20)).await.unwrap();
    }
    let mut visible = lake.visible().await;
    visible.sort_unstable();
    assert_eq!(visible, (20..320).collect::<Vec<_>>());
    let names: Vec<_> =
        lake.root.list("flights/_delta_log").await.unwrap().into_iter().map(|entry| entry.name).collect();
    let checkpoints = names.iter().filter(|name| name.ends_with(".checkpoint.parquet")).count();
    assert_eq!((names.len(), checkpoints), (31 + 3 + 1, 3), "{names:?}");
}

#[tokio::test]
async fn a_newer_process_fences_an_older_one() {
    let lake = Lake::in_memory(by_origin());
    let mut older = lake.open().await.unwrap();
    let id = EpochId { generation: 3, epoch: 1 };
    older.write(id, &rows(0..8)).await.unwrap();
    let handle = older.prepare(id).await.unwrap().handle.unwrap();
    lake.open().await.unwrap().committer().commit(id, &handle).await.unwrap();
    let error = older.committer().commit(id, &handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert_eq!(lake.visible().await.len(), 8);
}

#[tokio::test]
async fn columns_come_with_the_entry_that_has_them() {
    let lake = Lake::in_memory(settings(schema(), vec![]));
    let mut sink = lake.open().await.unwrap();
    lake.land(&mut sink, 1, &rows(0..4)).await.unwrap();
    let local = Field::new("local", DataType::Timestamp(TimeUnit::Microsecond, None), true);
    let fields = schema().fields().iter().cloned().chain([Arc::new(local)]).collect::<Vec<_>>();
    let wider = Arc::new(Schema::new(fields));
    let evolved = lake.with(|settings| settings.parquet.schema = wider.clone());
    let mut sink = evolved.open().await.unwrap();
    assert_eq!(lake.root.list("flights/_delta_log").await.unwrap().len(), 2, "a start alone changes nothing");
    for (epoch, lines) in [(2, 5), (3, 3)] {
        let mut columns = rows(4..8).columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(vec![0; 4])));
        evolved.land(&mut sink, epoch, &RecordBatch::try_new(wider.clone(), columns).unwrap()).await.unwrap();
        assert_eq!(lake.entry(epoch).await.len(), lines);
    }
    let entry = lake.entry(2).await;
    assert_eq!(entry[1]["protocol"]["minReaderVersion"], 3);
    assert!(entry[2]["metaData"]["schemaString"].as_str().unwrap().contains(r#""timestamp_ntz""#));
    assert_eq!(entry[2]["metaData"]["id"], lake.entry(0).await[2]["metaData"]["id"]);
    // A table keeps columns that its rows do not have.
    let mut sink = lake.open().await.unwrap();
    lake.land(&mut sink, 4, &rows(8..9)).await.unwrap();
    assert_eq!(lake.entry(4).await.len(), 3);
}

#[tokio::test]
async fn what_other_writers_do_is_kept_or_refused() {
    let lake = Lake::in_memory(settings(schema(), vec![]));
    let mut sink = lake.open().await.unwrap();
    lake.land(&mut sink, 1, &rows(0..4)).await.unwrap();
    lake.land(&mut sink, 2, &rows(4..8)).await.unwrap();
    let taken = r#"{"remove":{"path":"to%2Dlake-3-1-0.parquet","deletionTimestamp":1,"dataChange":true,"size":9}}"#;
    lake.foreign(3, &[taken, r#"{"domainMetadata":{"domain":"x","configuration":"","removed":false}}"#]).await;
    for epoch in 4..12 {
        lake.land(&mut sink, epoch, &rows(8..9)).await.unwrap();
    }
    assert!(lake.root.size("flights/_delta_log/00000000000000000010.checkpoint.parquet").await.unwrap().is_some());
    let files = lake.files().await;
    assert_eq!((files.active.len(), files.removed.len()), (9, 1), "{files:?}");

    let begun = lake.entry(0).await;
    let text = |value: &Value| value.to_string();
    lake.foreign(12, &[&text(&begun[2]).replace(r#"\"long\""#, r#"\"integer\""#)]).await;
    let error = lake.land(&mut sink, 12, &rows(9..10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`id` is \"integer\", and the rows have \"long\""), "{error}");
    lake.refused("the rows have").await;
    let features = r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]}}"#;
    lake.foreign(13, &[features, &text(&begun[2])]).await;
    lake.refused("it asks its writers for `deletionVectors`").await;
}

#[tokio::test]
async fn merged_files_leave_the_table_and_stay_in_the_folder() {
    let lake = Lake::on_disk(by_origin()).await;
    let mut sink = lake.open().await.unwrap();
    for epoch in 1..=11 {
        let first = i64::try_from(epoch).unwrap() * 10;
        lake.land(&mut sink, epoch, &rows(first..first + 10)).await.unwrap();
    }
    let (before, seen) = (lake.files().await.active, lake.seen().await);
    assert_eq!(before.len(), 44);
    let mut compactor = lake.open_with(Box::new).await.unwrap();
    let (id, prepared) = lake.merge(&mut compactor, 12).await;
    assert_eq!((prepared.rows, prepared.rewritten, prepared.removed), (0, 110, 110));
    assert_eq!(lake.files().await.active, before, "nothing is visible yet");
    let handle = prepared.handle.unwrap();
    compactor.committer().commit(id, &handle).await.unwrap();
    // Again, also by another process.
    compactor.committer().commit(id, &handle).await.unwrap();
    lake.open().await.unwrap().committer().commit(id, &handle).await.unwrap();

    let files = lake.files().await;
    assert_eq!((files.active.len(), files.removed.len()), (4, 44));
    assert_eq!(lake.seen().await, seen);
    for (path, size) in &before {
        assert_eq!(
            lake.root.size(&format!("flights/{path}")).await.unwrap(),
            Some(*size),
            "older versions need {path}"
        );
    }
    let entry = lake.entry(12).await;
    assert_eq!(lake.root.size("flights/_delta_log/00000000000000000013.json").await.unwrap(), None);
    let told = &entry[0]["commitInfo"];
    assert_eq!((&told["operation"], &told["isBlindAppend"]), (&json!("OPTIMIZE"), &json!(false)));
    assert_eq!((&entry[1]["txn"]["version"], entry.len()), (&json!(12), 2 + 4 + 44));
    let of = |kind: &str| entry.iter().map(|line| line[kind].clone()).filter(Value::is_object).collect::<Vec<_>>();
    for add in of("add") {
        let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
        assert!(stats["numRecords"].as_u64().unwrap() > 20 && add["dataChange"] == json!(false), "{add}");
    }
    for epoch in 1..=11 {
        let added = lake.entry(epoch).await;
        for add in added.iter().map(|line| &line["add"]).filter(|add| add.is_object()) {
            let expected = json!({
                "path": add["path"], "partitionValues": add["partitionValues"], "size": add["size"],
                "deletionTimestamp": 1_700_000_000_000_i64, "dataChange": false, "extendedFileMetadata": true,
            });
            assert!(of("remove").contains(&expected), "{expected}");
        }
    }

    // A checkpoint has both, and the table goes on.
    let mut sink = lake.open().await.unwrap();
    for epoch in 13..=21 {
        lake.land(&mut sink, epoch, &rows(200..204)).await.unwrap();
    }
    assert!(lake.root.size("flights/_delta_log/00000000000000000020.checkpoint.parquet").await.unwrap().is_some());
    let files = lake.files().await;
    assert_eq!((files.active.len(), files.removed.len()), (4 + 9 * 4, 44));
    assert_eq!(lake.seen().await.len(), 110 + 9 * 4);
}

#[tokio::test]
async fn what_another_writer_has_taken_out_does_not_come_back() {
    let lake = Lake::in_memory(by_origin());
    let mut sink = lake.open().await.unwrap();
    for epoch in 1..=3 {
        lake.land(&mut sink, epoch, &rows(0..8)).await.unwrap();
    }
    // Each has read the log before the other writes.
    let mut compactor = lake.open_with(Box::new).await.unwrap();
    let (id, prepared) = lake.merge(&mut compactor, 4).await;
    let taken = lake.entry(2).await.into_iter().find(|line| line["add"]["partitionValues"]["origin"] == "JFK").unwrap();
    let remove = json!({ "remove": { "path": taken["add"]["path"], "deletionTimestamp": 1, "dataChange": true } });
    lake.foreign(4, &[&remove.to_string()]).await;
    let seen = lake.seen().await;
    assert_eq!(seen.len(), 22);
    let handle = prepared.handle.unwrap();
    compactor.committer().commit(id, &handle).await.unwrap();
    assert_eq!(lake.seen().await, seen);
    let files = lake.files().await;
    let (merged, left): (Vec<_>, Vec<_>) = files.active.keys().partition(|path| path.contains("to-lake-4-4-"));
    assert_eq!((merged.len(), left.len(), files.removed.len()), (3, 2, 10), "all folders but one: {files:?}");
    assert!(left.iter().all(|path| path.starts_with("origin=JFK/")), "{left:?}");

    // If nothing is left to do, the entry says only that the epoch is done.
    let (id, prepared) = lake.merge(&mut compactor, 5).await;
    let mut removes = Vec::new();
    for version in [1, 2, 3, 5] {
        let added = lake.entry(version).await.into_iter().map(|line| line["add"]["path"].clone());
        let remove = |path: Value| json!({ "remove": { "path": path, "dataChange": true } }).to_string();
        removes.extend(added.filter(Value::is_string).map(remove));
    }
    lake.foreign(6, &removes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    compactor.committer().commit(id, &prepared.handle.unwrap()).await.unwrap();
    let entry = lake.entry(7).await;
    assert_eq!((entry.len(), &entry[1]["txn"]["version"]), (2, &json!(5)));
    assert!(lake.seen().await.is_empty());
    // What came of it is merged as ever.
    lake.land(&mut sink, 6, &rows(0..4)).await.unwrap();
    lake.land(&mut sink, 7, &rows(4..8)).await.unwrap();
    let (id, prepared) = lake.merge(&mut compactor, 8).await;
    compactor.committer().commit(id, &prepared.handle.unwrap()).await.unwrap();
    assert_eq!((lake.seen().await, lake.files().await.active.len()), ((0..8).collect(), 4));
}

#[tokio::test]
async fn a_table_that_is_none_of_this_state_is_refused() {
    let lake = Lake::in_memory(settings(schema(), vec![]));
    let mut sink = lake.open().await.unwrap();
    lake.land(&mut sink, 1, &rows(0..4)).await.unwrap();
    lake.with(|settings| settings.state_id = "two".into()).refused("with another state").await;
    lake.with(|settings| settings.parquet.partition_by = by_origin().parquet.partition_by)
        .refused("partitioned by")
        .await;

    let plain = Lake::in_memory(settings(schema(), vec![]));
    plain.root.put("flights/x=1/a.parquet", Bytes::from_static(b"PAR1")).await.unwrap();
    plain.refused("has files (x=1/a.parquet) and no Delta log").await;
    plain.root.put("flights/_delta_log/00000000000000000007.json", Bytes::from_static(b"{}")).await.unwrap();
    plain.refused("neither 00000000000000000000.json nor _last_checkpoint is there").await;
}

#[test]
fn columns_without_a_type_are_refused() {
    for (name, data_type, expected) in [
        ("at", DataType::Time64(TimeUnit::Microsecond), "no times of day"),
        ("huge", DataType::Decimal256(50, 2), "at most 38 digits"),
        ("max(id)", DataType::Int64, "its name has a '('"),
        ("list", DataType::List(Arc::new(Field::new("item", DataType::Null, true))), "no type in Delta"),
    ] {
        let schema = Schema::new(vec![Field::new(name, data_type, true)]);
        let error = check_columns(&schema, &[], "silver.t").unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let twice = Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("A", DataType::Int64, true)]);
    assert!(check_columns(&twice, &[], "silver.t").unwrap_err().to_string().contains("upper and lower case"));
}
