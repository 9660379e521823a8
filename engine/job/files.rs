//! How the files of a table are written, as the pipeline file says it.

use arrow::datatypes::SchemaRef;
use nexus_operators::sink::parquet::{
    BloomFilter, FileContent, OrderBy, ParquetCompression, ParquetLayout, ParquetSettings, ParquetStatistics,
    PartitionBy,
};
use nexus_operators::{Error, Result};

use crate::plan::Plan;
use crate::plan::table::TablePlan;
use crate::spec::{Order, Partition, model};

/// Gives what the sink of a table is told; `schema` are the columns of its rows.
pub fn parquet_settings(
    plan: &Plan,
    table: &TablePlan,
    spec: &model::Table,
    schema: SchemaRef,
    buffer_bytes: usize,
) -> Result<ParquetSettings> {
    Ok(ParquetSettings {
        pipeline: plan.loaded.spec.name.clone(),
        tier: table.tier.to_string(),
        table: table.table.clone(),
        schema,
        partition_by: spec.partition_by.iter().map(|text| partition_by(text)).collect::<Result<_>>()?,
        compression: compression(spec.compression),
        layout: layout(spec)?,
        open_partitions_max: plan.loaded.spec.limits.open_partitions,
        buffer_bytes,
    })
}

fn partition_by(text: &str) -> Result<PartitionBy> {
    let partition = text.parse::<Partition>().map_err(|e| Error::config(format!("`partition_by`: {e}")))?;
    Ok(match partition {
        Partition::Column(column) => PartitionBy::Column(column),
        Partition::Date(column) => PartitionBy::Date(column),
        Partition::Hour(column) => PartitionBy::Hour(column),
    })
}

fn layout(spec: &model::Table) -> Result<ParquetLayout> {
    let order = |text: &String| {
        let order = text.parse::<Order>().map_err(|e| Error::config(format!("`order_by`: {e}")))?;
        Ok(OrderBy { column: order.column, descending: order.descending, nulls_first: order.nulls_first })
    };
    let model::Parquet { bloom, bloom_false_positives, bloom_distinct, statistics, dictionary, row_group } =
        &spec.parquet;
    let bloom = bloom.iter().map(|column| BloomFilter {
        column: column.clone(),
        false_positives: f64::from(bloom_false_positives.millionths) / 1e6,
        distinct: *bloom_distinct,
    });
    Ok(ParquetLayout {
        content: FileContent::Parquet,
        order_by: spec.order_by.iter().map(order).collect::<Result<_>>()?,
        bloom: bloom.collect(),
        statistics: match statistics {
            model::Statistics::Page => ParquetStatistics::Page,
            model::Statistics::Chunk => ParquetStatistics::Chunk,
            model::Statistics::None => ParquetStatistics::None,
        },
        dictionary_bytes: usize::try_from(dictionary.0).unwrap_or(usize::MAX),
        row_group_bytes: usize::try_from(row_group.0).unwrap_or(usize::MAX),
    })
}

fn compression(spec: model::Compression) -> ParquetCompression {
    match spec {
        model::Compression::Zstd => ParquetCompression::Zstd,
        model::Compression::Snappy => ParquetCompression::Snappy,
        model::Compression::Lz4 => ParquetCompression::Lz4,
        model::Compression::Gzip => ParquetCompression::Gzip,
        model::Compression::None => ParquetCompression::Uncompressed,
    }
}
