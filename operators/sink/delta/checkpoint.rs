//! Checkpoints: all that a log comes to, as rows of one Parquet file.
//!
//! A new one is the one before, batch by batch, without what later commits have named, and then those: however many
//! files a table has, only the new checkpoint's encoded bytes are in memory.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::action::Line;
use super::log::is_named;
use crate::error::{Error, Result};

/// Rows that are turned from one form into the other at once: at some kilobytes each, these are some megabytes.
const BATCH_ROWS: usize = 1024;

/// Reads the rows of a checkpoint that have one of these actions.
pub(super) fn lines(file: File, actions: &[&str]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    each_batch(file, actions, |batch| {
        lines.extend(batch);
        Ok(())
    })?;
    Ok(lines)
}

/// Encodes a checkpoint: `head`, what `before` has of files that no later commit names, and those; gives how many rows
/// it has.
pub(super) fn write(head: Vec<Line>, before: Vec<File>, later: BTreeMap<String, Line>) -> Result<(Vec<u8>, u64)> {
    let named: HashSet<String> = later.keys().cloned().collect();
    let mut encoder = Encoder::new()?;
    encoder.write(&head)?;
    for file in before {
        each_batch(file, &["add", "remove"], |mut lines| {
            lines.retain(|line| line.path().is_some() && !is_named(&named, line));
            encoder.write(&lines)
        })?;
    }
    let mut later: Vec<Line> = later.into_values().collect();
    for Line { add, remove, .. } in &mut later {
        // What is told again is no change.
        add.iter_mut().for_each(|add| add.data_change = false);
        remove.iter_mut().for_each(|remove| remove.data_change = false);
    }
    encoder.write(&later)?;
    encoder.finish()
}

/// Reads the columns of some actions, batch by batch.
fn each_batch(file: File, actions: &[&str], mut take: impl FnMut(Vec<Line>) -> Result<()>) -> Result<()> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(failed)?;
    let columns = builder.parquet_schema();
    let wanted = columns.root_schema().get_fields().iter().enumerate();
    let wanted: Vec<usize> = wanted.filter(|(_, field)| actions.contains(&field.name())).map(|(at, _)| at).collect();
    let mask = ProjectionMask::roots(columns, wanted);
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(failed)?;
    for batch in reader {
        take(lines_of(&batch?)?)?;
    }
    Ok(())
}

fn lines_of(batch: &RecordBatch) -> Result<Vec<Line>> {
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let lines = serde_json::Deserializer::from_slice(&writer.into_inner()).into_iter().collect::<Result<_, _>>();
    lines.map_err(|e| Error::config("could not read a checkpoint of a Delta log").because(e))
}

fn failed(error: ParquetError) -> Error {
    Error::config("could not read or write a checkpoint of a Delta log").because(error)
}

/// Turns lines into a Parquet file in memory.
struct Encoder {
    rows: Decoder,
    file: ArrowWriter<Vec<u8>>,
    written: u64,
}

impl Encoder {
    fn new() -> Result<Self> {
        let schema = Arc::new(schema());
        let rows = ReaderBuilder::new(schema.clone()).with_batch_size(BATCH_ROWS).build_decoder()?;
        let level = ZstdLevel::try_new(1).map_err(failed)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let options = ArrowWriterOptions::new().with_skip_arrow_metadata(true).with_properties(properties);
        let file = ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(failed)?;
        Ok(Self { rows, file, written: 0 })
    }

    fn write(&mut self, lines: &[Line]) -> Result<()> {
        for lines in lines.chunks(BATCH_ROWS) {
            self.rows.serialize(lines)?;
            if let Some(batch) = self.rows.flush()? {
                self.written += batch.num_rows() as u64;
                self.file.write(&batch).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(Vec<u8>, u64)> {
        Ok((self.file.into_inner().map_err(failed)?, self.written))
    }
}

/// Gives the columns of a checkpoint, one for each kind of action ("Checkpoint Schema" of the protocol).
fn schema() -> Schema {
    use DataType::{Boolean, Int32, Int64, Utf8};
    let texts = || DataType::List(Arc::new(Field::new("element", Utf8, true)));
    let fields = |fields: &[(&str, DataType)]| -> Fields {
        fields.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)).collect()
    };
    let pairs = || {
        let entries: Fields = vec![Field::new("key", Utf8, false), Field::new("value", Utf8, true)].into();
        DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries), false)), false)
    };
    let format = DataType::Struct(fields(&[("provider", Utf8), ("options", pairs())]));
    let actions = [
        ("txn", fields(&[("appId", Utf8), ("version", Int64), ("lastUpdated", Int64)])),
        (
            "add",
            fields(&[
                ("path", Utf8),
                ("partitionValues", pairs()),
                ("size", Int64),
                ("modificationTime", Int64),
                ("dataChange", Boolean),
                ("stats", Utf8),
                ("tags", pairs()),
            ]),
        ),
        (
            "remove",
            fields(&[
                ("path", Utf8),
                ("deletionTimestamp", Int64),
                ("dataChange", Boolean),
                ("extendedFileMetadata", Boolean),
                ("partitionValues", pairs()),
                ("size", Int64),
            ]),
        ),
        (
            "metaData",
            fields(&[
                ("id", Utf8),
                ("name", Utf8),
                ("description", Utf8),
                ("format", format),
                ("schemaString", Utf8),
                ("partitionColumns", texts()),
                ("configuration", pairs()),
                ("createdTime", Int64),
            ]),
        ),
        (
            "protocol",
            fields(&[
                ("minReaderVersion", Int32),
                ("minWriterVersion", Int32),
                ("readerFeatures", texts()),
                ("writerFeatures", texts()),
            ]),
        ),
    ];
    Schema::new(actions.map(|(name, fields)| Field::new(name, DataType::Struct(fields), true)).to_vec())
}
