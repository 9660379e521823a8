//! Snapshots of tables: segments of state as Arrow IPC files.

use std::collections::BTreeMap;
use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use nexus_operators::store::Store;
use nexus_operators::transform::segments::{Segment, Snapshot};
use nexus_operators::{Error, Result, fail};

/// Segments of one kind of state of one table.
#[derive(Debug)]
pub struct Snapshots {
    folder: Store,
    generation: u64,
    files: BTreeMap<u64, String>,
    /// Files that the newest snapshot does not name. The record before it still does, until it is written.
    replaced: Vec<String>,
}

impl Snapshots {
    /// Starts from the files that the newest record names.
    pub fn new(folder: Store, generation: u64, files: BTreeMap<u64, String>) -> Self {
        Self { folder, generation, files, replaced: Vec::new() }
    }

    /// Makes a snapshot durable, and gives the files that it consists of.
    ///
    /// The record of the snapshot before must have been written.
    pub async fn save(&mut self, epoch: u64, snapshot: Snapshot) -> Result<BTreeMap<u64, String>> {
        for name in self.replaced.drain(..) {
            self.folder.delete(&name).await?;
        }
        if let Some(first) = snapshot.added.first() {
            let name = format!("{:020}-{epoch:020}.arrow", self.generation);
            self.folder.put(&name, encode(&first.schema(), &snapshot.added)?.into()).await?;
            self.files.insert(epoch, name);
        }
        let gone = self.files.extract_if(.., |epoch, _| !snapshot.live.contains(epoch));
        self.replaced.extend(gone.map(|(_, name)| name));
        if fail::mutated("snapshots_removed_early") {
            for name in self.replaced.drain(..) {
                self.folder.delete(&name).await?;
            }
        }
        Ok(self.files.clone())
    }

    /// Reads the segments back.
    pub async fn restore(&self) -> Result<Vec<Segment>> {
        let mut segments = Vec::with_capacity(self.files.len());
        for (epoch, name) in &self.files {
            let bytes = self.folder.get(name).await?.ok_or_else(|| {
                Error::config(format!("could not restore state: {}/{name} is missing", self.folder.url()))
            })?;
            let rows = StreamReader::try_new(Cursor::new(bytes), None)
                .and_then(Iterator::collect::<Result<Vec<RecordBatch>, _>>)
                .map_err(|e| {
                    Error::config(format!("could not restore state from {}/{name}", self.folder.url())).because(e)
                })?;
            segments.push(Segment { epoch: *epoch, rows });
        }
        Ok(segments)
    }

    /// Removes the files that `kept` does not name: those of older epochs, and what a crash left behind.
    pub async fn sweep(folder: &Store, kept: &BTreeMap<u64, String>) -> Result<()> {
        for entry in folder.list("").await? {
            if !kept.values().any(|name| *name == entry.name) {
                folder.delete(&entry.name).await?;
            }
        }
        Ok(())
    }
}

fn encode(schema: &SchemaRef, rows: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    for batch in rows {
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(writer.into_inner()?)
}
