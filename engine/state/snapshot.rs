//! Snapshots of tables: segments of windows' and joins' state as Arrow IPC files, and files of remembered keys.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use futures::{StreamExt, TryStreamExt};
use nexus_operators::store::Store;
use nexus_operators::transform::keys::Sealed;
use nexus_operators::transform::segments::{Segment, Snapshot};
use nexus_operators::{Error, Result, fail};

/// Files that are opened at once; an object store has them copied, which takes as long as its line is wide.
const OPENED_AT_ONCE: usize = 8;

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

    /// Makes a snapshot of windows or of a join's rows durable, and gives the files that it consists of.
    ///
    /// The record of the snapshot before must have been written.
    pub async fn save(&mut self, epoch: u64, snapshot: Snapshot) -> Result<BTreeMap<u64, String>> {
        self.remove_replaced().await?;
        if let Some(first) = snapshot.added.first() {
            let content = encode(&first.schema(), &snapshot.added)?;
            let name = self.name(epoch, "arrow");
            self.folder.put(&name, content.into()).await?;
            self.files.insert(epoch, name);
        }
        self.keep(&snapshot.live).await
    }

    /// Makes a snapshot of keys durable; gives the files that it consists of, and the one that was added.
    ///
    /// The record of the snapshot before must have been written.
    pub async fn save_keys(&mut self, epoch: u64, sealed: Sealed) -> Result<(BTreeMap<u64, String>, Option<File>)> {
        self.remove_replaced().await?;
        let mut file = None;
        if let Some(content) = sealed.added {
            let name = self.name(epoch, "keys");
            file = Some(self.folder.put_and_open(&name, content).await?);
            self.files.insert(epoch, name);
        }
        Ok((self.keep(&sealed.live).await?, file))
    }

    fn name(&self, epoch: u64, format: &str) -> String {
        format!("{:020}-{epoch:020}.{format}", self.generation)
    }

    async fn remove_replaced(&mut self) -> Result<()> {
        for name in self.replaced.drain(..) {
            self.folder.delete(&name).await?;
        }
        Ok(())
    }

    /// Keeps the files of these epochs, and gives them.
    async fn keep(&mut self, live: &[u64]) -> Result<BTreeMap<u64, String>> {
        let gone = self.files.extract_if(.., |epoch, _| !live.contains(epoch));
        self.replaced.extend(gone.map(|(_, name)| name));
        if fail::mutated("snapshots_removed_early") {
            self.remove_replaced().await?;
        }
        Ok(self.files.clone())
    }

    /// Opens the files of keys, oldest first.
    pub async fn restore_keys(&self) -> Result<Vec<(u64, File)>> {
        let open = |(epoch, name): (&u64, &String)| {
            let (epoch, name) = (*epoch, name.clone());
            async move {
                let file = self.folder.open_file(&name).await?;
                Ok((epoch, file.ok_or_else(|| self.missing(&name))?))
            }
        };
        let opening: Vec<_> = self.files.iter().map(open).collect();
        futures::stream::iter(opening).buffered(OPENED_AT_ONCE).try_collect().await
    }

    /// Reads the segments back.
    pub async fn restore(&self) -> Result<Vec<Segment>> {
        let mut segments = Vec::with_capacity(self.files.len());
        for (epoch, name) in &self.files {
            let bytes = self.folder.get(name).await?.ok_or_else(|| self.missing(name))?;
            let rows = StreamReader::try_new(Cursor::new(bytes), None)
                .and_then(Iterator::collect::<Result<Vec<RecordBatch>, _>>)
                .map_err(|e| {
                    Error::config(format!("could not restore state from {}/{name}", self.folder.url())).because(e)
                })?;
            segments.push(Segment { epoch: *epoch, rows });
        }
        Ok(segments)
    }

    fn missing(&self, name: &str) -> Error {
        Error::config(format!("could not restore state: {}/{name} is missing", self.folder.url()))
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
