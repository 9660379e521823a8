//! How rows lie in the files: sorted, with statistics and filters, as they were asked for.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{PageIndexPolicy, SortingColumn};
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};

use super::*;
use crate::ErrorKind;

const ID: EpochId = EpochId { generation: 1, epoch: 1 };

/// Rows whose keys come in no order; `nested` takes two columns of the file.
fn rows(from: i64, count: i64) -> RecordBatch {
    let mixed = |n: i64| (n * 7919) % 1009;
    let numbers: Int64Array = (from..from + count).map(|n| (n % 10 != 0).then(|| mixed(n))).collect();
    let sites: StringArray = (from..from + count).map(|n| Some(format!("site-{}", n % 3))).collect();
    let ids: StringArray = (from..from + count).map(|n| Some(format!("device-{n}"))).collect();
    let part = |name: &str| Arc::new(Field::new(name, DataType::Int64, false));
    let all: ArrayRef = Arc::new((from..from + count).collect::<Int64Array>());
    let nested = StructArray::from(vec![(part("x"), all.clone()), (part("y"), all)]);
    RecordBatch::try_from_iter_with_nullable([
        ("nested", Arc::new(nested) as ArrayRef, false),
        ("site", Arc::new(sites) as ArrayRef, false),
        ("n", Arc::new(numbers) as ArrayRef, true),
        ("id", Arc::new(ids) as ArrayRef, false),
    ])
    .unwrap()
}

fn settings(layout: ParquetLayout, partition_by: Vec<PartitionBy>, buffer_bytes: usize) -> ParquetSettings {
    ParquetSettings {
        pipeline: "p".into(),
        tier: "silver".into(),
        table: "t".into(),
        schema: rows(0, 1).schema(),
        partition_by,
        compression: ParquetCompression::Zstd,
        layout,
        open_partitions_max: 8,
        buffer_bytes,
    }
}

/// Writes rows and commits them; gives the files.
async fn land(settings: ParquetSettings, batches: &[RecordBatch]) -> Vec<(String, bytes::Bytes)> {
    let folder = tempfile::tempdir().unwrap();
    let lake = Store::open(folder.path().to_str().unwrap(), &Default::default()).await.unwrap();
    let mut sink = ParquetSink::new(settings, lake.below("t"), lake.below("s"), lake.below("n")).unwrap();
    for batch in batches {
        sink.write(ID, batch).await.unwrap();
    }
    let prepared = sink.prepare(ID).await.unwrap();
    assert_eq!(prepared.rows, batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>());
    sink.committer().commit(ID, &prepared.handle.unwrap()).await.unwrap();
    let table = lake.below("t");
    let mut files = Vec::new();
    for entry in table.list("").await.unwrap() {
        let bytes = table.get(&entry.name).await.unwrap().unwrap();
        files.push((entry.name, bytes));
    }
    files
}

fn by(column: &str, descending: bool) -> OrderBy {
    OrderBy { column: column.into(), descending, nulls_first: descending }
}

#[tokio::test]
async fn each_file_is_sorted_by_several_columns_however_little_memory_there_is() {
    let batches: Vec<_> = (0..40).map(|batch| rows(batch * 500, 500)).collect();
    let layout = ParquetLayout { order_by: vec![by("site", false), by("n", true)], ..ParquetLayout::default() };
    for buffer_bytes in [64 << 10, 1 << 20, 64 << 20] {
        let files = land(settings(layout.clone(), Vec::new(), buffer_bytes), &batches).await;
        assert_eq!(files.len(), 1, "one file for all rows of an epoch");
        let mut found: Vec<(String, bool, i64)> = Vec::new();
        let reader = ParquetRecordBatchReaderBuilder::try_new(files[0].1.clone()).unwrap();
        let sorting = |column_idx, descending| SortingColumn { column_idx, descending, nulls_first: descending };
        for group in reader.metadata().row_groups() {
            // The first column of the table is two columns of the file.
            assert_eq!(group.sorting_columns(), Some(&vec![sorting(2, false), sorting(3, true)]));
        }
        for batch in reader.build().unwrap().map(|batch| batch.unwrap()) {
            let (sites, numbers) = (batch.column(1).as_string::<i32>(), batch.column(2).as_primitive::<Int64Type>());
            // Greatest first, and NULLs before them.
            let row = |row| (sites.value(row).to_owned(), numbers.is_valid(row), -numbers.value(row));
            found.extend(
                (0..batch.num_rows()).map(row).map(|(site, valid, n)| (site, valid, if valid { n } else { 0 })),
            );
        }
        assert_eq!(found.len(), 20_000);
        assert!(found.is_sorted(), "with {buffer_bytes} bytes");
    }
}

#[tokio::test]
async fn each_partition_is_sorted() {
    let batches: Vec<_> = (0..8).map(|batch| rows(batch * 500, 500)).collect();
    let layout = ParquetLayout { order_by: vec![by("id", false)], ..ParquetLayout::default() };
    let files = land(settings(layout, vec![PartitionBy::Column("site".into())], 256 << 10), &batches).await;
    assert_eq!(files.len(), 3);
    for (_, bytes) in files {
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        let ids = reader.flat_map(|batch| {
            let batch = batch.unwrap();
            let ids = batch.column_by_name("id").unwrap().as_string::<i32>().clone();
            ids.iter().map(|id| id.unwrap().to_owned()).collect::<Vec<_>>()
        });
        assert!(ids.is_sorted());
    }
}

#[tokio::test]
async fn filters_statistics_and_dictionaries_are_those_that_were_asked_for() {
    let layout = ParquetLayout {
        bloom: vec![BloomFilter::new("id")],
        statistics: ParquetStatistics::None,
        dictionary_bytes: 0,
        row_group_bytes: 16 << 10,
        ..ParquetLayout::default()
    };
    let files = land(settings(layout, Vec::new(), 64 << 20), &[rows(0, 4000), rows(4000, 4000)]).await;
    let bytes = files[0].1.clone();
    let options = ReadOptionsBuilder::new()
        .with_reader_properties(ReaderProperties::builder().set_read_bloom_filter(true).build())
        .build();
    let reader = SerializedFileReader::new_with_options(bytes.clone(), options).unwrap();
    assert!(reader.metadata().num_row_groups() > 1);
    let mut may_be_there = 0;
    for group in 0..reader.metadata().num_row_groups() {
        let row_group = reader.get_row_group(group).unwrap();
        let filter = row_group.get_column_bloom_filter(4).expect("a filter of the id");
        assert!(row_group.get_column_bloom_filter(2).is_none());
        may_be_there += usize::from(filter.check(&"device-77"));
        for column in row_group.metadata().columns() {
            assert!(column.statistics().is_none() && column.dictionary_page_offset().is_none());
        }
    }
    assert_eq!(may_be_there, 1, "a filter tells where a value is");
    // As it is without being asked: statistics of pages, and dictionaries.
    let files = land(settings(ParquetLayout::default(), Vec::new(), 64 << 20), &[rows(0, 4000)]).await;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(files[0].1.clone(), options).unwrap();
    assert!(reader.metadata().column_index().is_some());
    assert!(reader.metadata().row_group(0).column(2).dictionary_page_offset().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_encoded_side_by_side_stay_in_their_places() {
    let batches: Vec<_> = (0..6).map(|batch| rows(batch * 10_000, 10_000)).collect();
    let layout = ParquetLayout { row_group_bytes: 256 << 10, ..ParquetLayout::default() };
    let files = land(settings(layout, Vec::new(), 64 << 20), &batches).await;
    let reader = ParquetRecordBatchReaderBuilder::try_new(files[0].1.clone()).unwrap();
    assert!(reader.metadata().num_row_groups() > 1);
    let found: Vec<_> = reader.build().unwrap().map(|batch| batch.unwrap()).collect();
    let (wanted, found) = [&batches, &found].map(|rows| concat_batches(&rows[0].schema(), rows).unwrap()).into();
    for (wanted, found) in wanted.columns().iter().zip(found.columns()) {
        let found = arrow::compute::cast(found, wanted.data_type()).unwrap();
        assert_eq!(&found, wanted);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |layout, partition_by| {
        let lake = Store::memory();
        let settings = settings(layout, partition_by, 1 << 20);
        let error = ParquetSink::new(settings, lake.clone(), lake.clone(), lake).err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        error.to_string()
    };
    let ordered = |column| ParquetLayout { order_by: vec![by(column, false)], ..ParquetLayout::default() };
    assert!(refused(ordered("gone"), Vec::new()).contains("not one of its columns"));
    assert!(refused(ordered("nested"), Vec::new()).contains("have no order"));
    let filtered = |filter| ParquetLayout { bloom: vec![filter], ..ParquetLayout::default() };
    let site = || vec![PartitionBy::Column("site".into())];
    assert!(refused(filtered(BloomFilter::new("site")), site()).contains("no column of its files"));
    let never_wrong = BloomFilter { false_positives: 0.0, ..BloomFilter::new("id") };
    assert!(refused(filtered(never_wrong), Vec::new()).contains("between 0 and 1"));
}
