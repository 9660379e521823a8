//! Snapshots of tables: for each epoch a file of what it has added to a state.

use std::collections::BTreeMap;
use std::fs::File;

use futures::{StreamExt, TryStreamExt};
use nexus_operators::store::Store;
use nexus_operators::transform::sealed::Sealed;
use nexus_operators::{Error, Result, fail};

/// Files that are opened at once; an object store has them copied, which takes as long as its line is wide.
const OPENED_AT_ONCE: usize = 8;

/// One kind of state of one table.
#[derive(Debug)]
pub struct Snapshots {
    folder: Store,
    /// What its files' names end with.
    suffix: &'static str,
    generation: u64,
    files: BTreeMap<u64, String>,
    /// Files that the newest snapshot does not name. The record before it still does, until it is written.
    replaced: Vec<String>,
}

impl Snapshots {
    /// Starts from the files that the newest record names.
    pub fn new(folder: Store, suffix: &'static str, generation: u64, files: BTreeMap<u64, String>) -> Self {
        Self { folder, suffix, generation, files, replaced: Vec::new() }
    }

    /// Makes durable what an epoch has added; gives the files that the state consists of, and the one that was added.
    ///
    /// The record of the snapshot before must have been written.
    pub async fn save(&mut self, epoch: u64, sealed: Sealed) -> Result<(BTreeMap<u64, String>, Option<File>)> {
        self.remove_replaced().await?;
        let mut file = None;
        if let Some(content) = sealed.added {
            let name = format!("{:020}-{epoch:020}.{}", self.generation, self.suffix);
            file = Some(self.folder.put_and_open(&name, content).await?);
            self.files.insert(epoch, name);
        }
        Ok((self.keep(&sealed.live).await?, file))
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

    /// Opens the files, oldest first.
    pub async fn restore(&self) -> Result<Vec<(u64, File)>> {
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
