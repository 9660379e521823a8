//! What a Parquet sink is told, and what a file's footer says of it.

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::partition::PartitionBy;
use crate::error::{Error, Result};
use crate::sink::EpochId;

/// Encoded bytes after which a row group ends. Readers share the work of a file
/// by row groups and skip whole ones by their statistics, which asks for small
/// ones; each costs a request for every column, which asks for large ones. With
/// 64 MiB a column chunk is some MiB, which is what object stores give fastest.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Rows after which a row group ends, as in most writers: DuckDB and Spark
/// divide their work by about as many.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// Bytes of a column's values in a row group up to which they are written as a
/// dictionary, as most writers have it: a reader has the whole dictionary in
/// memory before the first value.
const DICTIONARY_BYTES: usize = 1 << 20;

/// How the files of a table are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParquetCompression {
    /// Zstandard at level 1: nearly as fast as Snappy, and a third smaller.
    #[default]
    Zstd,
    /// Snappy, for readers that know nothing newer.
    Snappy,
    /// LZ4 without a frame.
    Lz4,
    /// Gzip, for readers of old.
    Gzip,
    /// None.
    Uncompressed,
}

/// What the files of a sink are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileContent {
    /// Parquet.
    #[default]
    Parquet,
    /// Records byte for byte, one behind the other, in folders by the hour of their arrival, `yyyy/MM/dd/HH`. The rows are
    /// those of [`crate::archive::schema`]; nothing else of the settings tells what the files look like.
    Records {
        /// Whether they are packed by gzip.
        gzip: bool,
    },
}

impl FileContent {
    /// Gives how the names of files end.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Parquet => ".parquet",
            Self::Records { gzip: true } => ".gz",
            Self::Records { gzip: false } => "",
        }
    }
}

/// What a [`ParquetSink`](super::ParquetSink) is told.
#[derive(Debug, Clone)]
pub struct ParquetSettings {
    /// The pipeline's name; the files' names begin with it.
    pub pipeline: String,
    /// The table's tier, for the files' metadata.
    pub tier: String,
    /// The table's name, for the files' metadata and for errors.
    pub table: String,
    /// The columns of the rows that will come.
    pub schema: SchemaRef,
    /// The levels of partition folders, the outermost first.
    pub partition_by: Vec<PartitionBy>,
    /// How the files are compressed.
    pub compression: ParquetCompression,
    /// How rows lie in the files, and what helps readers to skip them.
    pub layout: ParquetLayout,
    /// Most files that are open at once.
    pub open_partitions_max: usize,
    /// Most memory in bytes for rows that are encoded and not yet written or sent.
    pub buffer_bytes: usize,
}

/// How rows lie in the files, and what helps readers to skip them.
#[derive(Debug, Clone, PartialEq)]
pub struct ParquetLayout {
    /// What the files are.
    pub content: FileContent,
    /// The columns that the rows of each file are sorted by, the first one first; as they come if there are none.
    pub order_by: Vec<OrderBy>,
    /// Columns with a bloom filter.
    pub bloom: Vec<BloomFilter>,
    /// Which statistics are written.
    pub statistics: ParquetStatistics,
    /// Bytes of a column's values in a row group up to which they are written as a dictionary; 0 for no dictionaries.
    pub dictionary_bytes: usize,
    /// Encoded bytes after which a row group ends.
    pub row_group_bytes: usize,
}

/// A column that rows are sorted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBy {
    /// Its name.
    pub column: String,
    /// The greatest value first.
    pub descending: bool,
    /// NULLs before all values.
    pub nulls_first: bool,
}

/// A filter that tells readers which row groups lack a value of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct BloomFilter {
    /// The column's name.
    pub column: String,
    /// How often it may say that a value could be there which is not, from 0 to 1, both excluded.
    pub false_positives: f64,
    /// The distinct values of a row group that it has room for; what is too much is cut off when a row group ends.
    pub distinct: u64,
}

/// Which statistics the files have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParquetStatistics {
    /// Of row groups and of their pages: readers skip pages too.
    #[default]
    Page,
    /// Of row groups.
    Chunk,
    /// None.
    None,
}

impl Default for ParquetLayout {
    fn default() -> Self {
        Self {
            content: FileContent::default(),
            order_by: Vec::new(),
            bloom: Vec::new(),
            statistics: ParquetStatistics::default(),
            dictionary_bytes: DICTIONARY_BYTES,
            row_group_bytes: ROW_GROUP_BYTES,
        }
    }
}

impl BloomFilter {
    /// Makes a filter as most columns want it: one in a hundred row groups is read in vain, for ten bits a value. It has
    /// room for as many values as a row group can have rows, since what it has too much costs memory while a row group
    /// is written (2 MiB), and nothing in the file.
    pub fn new(column: impl Into<String>) -> Self {
        Self { column: column.into(), false_positives: 0.01, distinct: ROW_GROUP_ROWS as u64 }
    }
}

impl OrderBy {
    /// Gives the order as Arrow has it.
    pub(super) fn options(&self) -> SortOptions {
        SortOptions { descending: self.descending, nulls_first: self.nulls_first }
    }

    /// Gives the index of the column among those of the rows.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a column that is not there, or whose values have no order.
    pub(super) fn index(&self, schema: &Schema, table: &str) -> Result<usize> {
        let Some((index, field)) = schema.column_with_name(&self.column) else {
            return Err(Error::config(format!(
                "the table {table} is ordered by `{}`, which is not one of its columns",
                self.column
            )));
        };
        if is_ordered(field.data_type()) {
            return Ok(index);
        }
        let data_type = field.data_type();
        Err(Error::config(format!(
            "the table {table} cannot be ordered by `{}`: values of {data_type} have no order",
            self.column
        )))
    }
}

/// Tells whether rows can be sorted by values of a type.
pub fn is_ordered(data_type: &DataType) -> bool {
    !data_type.is_nested() && !matches!(data_type, DataType::Null)
}

/// Gives what the encoder is told; `columns` are those of the files.
pub(super) fn properties(settings: &ParquetSettings, columns: &Schema) -> Result<WriterProperties> {
    let layout = &settings.layout;
    let compression = match settings.compression {
        ParquetCompression::Zstd => {
            let level = ZstdLevel::try_new(1).map_err(|e| Error::internal("zstd has no level 1").because(e))?;
            Compression::ZSTD(level)
        }
        ParquetCompression::Snappy => Compression::SNAPPY,
        ParquetCompression::Lz4 => Compression::LZ4_RAW,
        ParquetCompression::Gzip => Compression::GZIP(GzipLevel::default()),
        ParquetCompression::Uncompressed => Compression::UNCOMPRESSED,
    };
    let statistics = match layout.statistics {
        ParquetStatistics::Page => EnabledStatistics::Page,
        ParquetStatistics::Chunk => EnabledStatistics::Chunk,
        ParquetStatistics::None => EnabledStatistics::None,
    };
    let mut properties = WriterProperties::builder()
        .set_compression(compression)
        .set_statistics_enabled(statistics)
        .set_dictionary_enabled(layout.dictionary_bytes > 0)
        .set_dictionary_page_size_limit(layout.dictionary_bytes.max(1))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(layout.row_group_bytes))
        .set_sorting_columns(sorting_columns(layout, columns))
        .set_created_by(format!("nexus version {}", env!("CARGO_PKG_VERSION")));
    for BloomFilter { column, false_positives, distinct } in &layout.bloom {
        let known = columns.column_with_name(column).filter(|(_, field)| !field.data_type().is_nested());
        if known.is_none() {
            let table = &settings.table;
            let why = "which is no column of its files, or one of several values";
            return Err(Error::config(format!("the table {table} is to have a bloom filter of `{column}`, {why}")));
        }
        if !(*false_positives > 0.0 && *false_positives < 1.0) {
            return Err(Error::config(format!(
                "the bloom filter of `{column}` is to be wrong in {false_positives} of all cases; it can be between 0 and 1"
            )));
        }
        let path = ColumnPath::from(column.as_str());
        properties = properties
            .set_column_bloom_filter_fpp(path.clone(), *false_positives)
            .set_column_bloom_filter_max_ndv(path, *distinct);
    }
    Ok(properties.build())
}

/// Gives the order of a file's rows as its footer says it: by the numbers of its leaf columns.
fn sorting_columns(layout: &ParquetLayout, columns: &Schema) -> Option<Vec<SortingColumn>> {
    let leaf_of = |name: &str| {
        let (index, _) = columns.column_with_name(name)?;
        let before = columns.fields().iter().take(index).map(|field| leaves(field.data_type())).sum::<usize>();
        i32::try_from(before).ok()
    };
    let sorting = layout.order_by.iter().map(|by| {
        Some(SortingColumn { column_idx: leaf_of(&by.column)?, descending: by.descending, nulls_first: by.nulls_first })
    });
    sorting.collect::<Option<Vec<_>>>().filter(|sorting| !sorting.is_empty())
}

/// Counts the columns that a type is stored as.
fn leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => leaves(item.data_type()),
        DataType::Map(entries, _) => leaves(entries.data_type()),
        DataType::Struct(fields) => fields.iter().map(|field| leaves(field.data_type())).sum(),
        _ => 1,
    }
}

/// Gives what the footer says about where the rows come from; the file adds their number.
pub(super) fn metadata(settings: &ParquetSettings, partition_columns: Option<&str>, id: EpochId) -> Vec<KeyValue> {
    let origin = [
        ("nexus.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("nexus.pipeline", settings.pipeline.clone()),
        ("nexus.tier", settings.tier.clone()),
        ("nexus.table", settings.table.clone()),
        ("nexus.generation", id.generation.to_string()),
        ("nexus.epoch", id.epoch.to_string()),
    ];
    let columns = partition_columns.map(|columns| ("nexus.partition_columns", columns.to_owned()));
    origin.into_iter().chain(columns).map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect()
}
