//! Parquet files: broken ones are an error or rejects, and what is read is valid.

use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::reading::{read, settings};
use crate::decode::{FormatSettings, UnknownColumns};
use crate::source::framed::Grain;

/// Any bytes as a file, or as changes to a good one: a byte chooses.
pub(super) fn parquet(data: &[u8]) {
    let Some(([choice], rest)) = data.split_first_chunk::<1>() else { return };
    let content = match good_files().get(usize::from(*choice)) {
        Some(file) => changed(file, rest),
        None => rest.to_vec(),
    };
    let content = Bytes::from(content);
    let declared = vec![
        Field::new("i", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
        Field::new("l", DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))), true),
    ];
    for (columns, unknown) in [(declared, UnknownColumns::Ignore), (vec![], UnknownColumns::Rescue)] {
        read(&settings(FormatSettings::Parquet, columns, unknown), &content, Grain::default(), 0);
    }
}

/// Changes a file: every four bytes say where, two of them, and what to.
pub(super) fn changed(file: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    for change in changes.chunks_exact(4) {
        let [high, low, xor, cut] = change else { continue };
        let at = usize::from(u16::from_be_bytes([*high, *low]));
        let len = file.len();
        if *cut == 255 {
            file.truncate(at);
        } else if let Some(byte) = file.get_mut(at % len.max(1)) {
            *byte ^= xor;
        }
    }
    file
}

/// Makes a file for each way of encoding.
fn good_files() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let plain = WriterProperties::builder().set_dictionary_enabled(false);
        let delta = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_writer_version(WriterVersion::PARQUET_2_0)
            .set_column_encoding("i".into(), Encoding::DELTA_BINARY_PACKED)
            .set_column_encoding("s".into(), Encoding::DELTA_BYTE_ARRAY)
            .set_column_encoding("f".into(), Encoding::BYTE_STREAM_SPLIT);
        let dictionary = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let packed = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
        let small = |properties: parquet::file::properties::WriterPropertiesBuilder| {
            let properties = properties.set_statistics_enabled(EnabledStatistics::None);
            file(properties.set_max_row_group_row_count(Some(6)).build())
        };
        [plain, delta, dictionary, packed].into_iter().map(small).collect()
    })
}

fn file(properties: WriterProperties) -> Vec<u8> {
    let numbers: Vec<Option<i64>> = (0..9).map(|n| (n % 4 != 3).then_some(n * 1000)).collect();
    let texts: Vec<Option<String>> = (0..9).map(|n| (n % 5 != 2).then(|| format!("text {}", n % 3))).collect();
    let lists = (0..9).map(|n| (n % 4 != 1).then(|| (0..n % 3).map(Some).collect::<Vec<_>>()));
    let columns: [(&str, ArrayRef); 5] = [
        ("i", Arc::new(Int64Array::from(numbers))),
        ("s", Arc::new(StringArray::from(texts))),
        ("f", Arc::new(Float64Array::from_iter_values((0..9).map(f64::from)))),
        ("b", Arc::new(BooleanArray::from((0..9).map(|n| n % 2 == 0).collect::<Vec<_>>()))),
        ("l", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("the columns are of one length");
    let mut writer =
        ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("the properties are good");
    writer.write(&batch).expect("bytes in memory can be written");
    writer.into_inner().expect("bytes in memory can be written")
}
