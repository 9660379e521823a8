//! Old commit records, many in one file.
//!
//! The records of 64 epochs that every sink has committed become one file, 64 such files become one, and 64 of those
//! again: a pipeline that commits each second leaves some hundred files in a year. A file holds one record a line, as
//! JSON, compressed with zstd; a wider file is the narrower ones behind one another, which is one file of zstd frames.
//!
//! What is folded is written before what it was folded from is removed, so that a crash between leaves an epoch twice,
//! never not at all. Readers take it once, and the next compaction removes what is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use nexus_operators::{Error, Result, fail};

use super::record::CommitRecord;
use super::{StateStore, check_version, committed_file, epoch_file};

/// Parts that become one file: few enough to fold them between two commits, many enough that files stay few.
const FOLD: u64 = 64;

/// How many times files are folded into wider ones. Four times would make files of some gigabytes.
const LEVELS: u32 = 3;

/// Files that one compaction writes at most: it stands between two commits, and what is left over waits for the next.
const FOLDS_MAX: usize = 8;

/// Files that are read or removed at once: an object store answers each in some ten milliseconds.
const AT_ONCE: usize = 32;

/// Checkpoints that are kept. A reader that has listed the last but one still finds it.
const CHECKPOINTS_KEPT: usize = 2;

/// The level at which zstd compresses history: its default, since records are small.
const ZSTD_LEVEL: i32 = 3;

/// The epochs of one file of history.
pub type Span = RangeInclusive<u64>;

impl StateStore {
    /// Folds the records of epochs up to `done`, which every sink has committed and has noted, and removes checkpoints
    /// and notes that newer ones stand for.
    ///
    /// # Errors
    ///
    /// `Fenced` if a newer process has claimed the pipeline, `Unavailable` if the store is away: what was not folded
    /// waits for the next time.
    pub async fn compact(&self, generation: u64, done: u64) -> Result<()> {
        let checkpoints = self.checkpoints().await?;
        let Some(newest) = checkpoints.last() else { return Ok(()) };
        // A start reads the newest checkpoint and the records behind it: those must stay.
        let upto = done.min(*newest);
        // What is removed here was there when this process was the newest. A newer one lists after its claim, finds
        // the checkpoint above, and asks for none of it.
        self.check_fence(generation).await?;
        let mut folds_left = FOLDS_MAX;
        for level in 0..LEVELS {
            self.fold_level(level, upto, &mut folds_left).await?;
        }
        let old = checkpoints.len().saturating_sub(CHECKPOINTS_KEPT);
        let mut stale: Vec<String> = checkpoints.iter().take(old).map(|epoch| super::checkpoint_file(*epoch)).collect();
        let notes = self.folder().list("committed").await?;
        stale.extend(notes.into_iter().map(|note| note.name).filter(|name| *name < committed_file(generation)));
        self.remove(stale).await
    }

    /// Lists the files of history, without those that a wider one stands for.
    pub async fn history(&self) -> Result<Vec<Span>> {
        Ok(widest(&self.spans().await?))
    }

    /// Reads the records of one file of history; nothing if there is no such file.
    ///
    /// # Errors
    ///
    /// `Config` if it does not hold the records of its epochs, each once and in order.
    pub async fn read_history(&self, span: &Span) -> Result<Option<Vec<CommitRecord>>> {
        let name = history_file(span);
        let Some(bytes) = self.folder().get(&name).await? else { return Ok(None) };
        let records = decode(&bytes).map_err(|e| e.while_doing(format!("could not read {}", self.place(&name))))?;
        if !records.iter().map(|record| record.epoch).eq(span.clone()) {
            return Err(Error::config(format!("{} does not hold each of its epochs once", self.place(&name))));
        }
        Ok(Some(records))
    }

    /// Gives the records of the file of history that an epoch is in, from that epoch on; nothing if it is in none.
    ///
    /// It is found by its name, so that a listing that lags hides nothing.
    pub(super) async fn folded_from(&self, epoch: u64) -> Result<Vec<CommitRecord>> {
        for level in 1..=LEVELS {
            let width = FOLD.pow(level);
            let first = (epoch - 1) / width * width + 1;
            if let Some(mut records) = self.read_history(&(first..=first + width - 1)).await? {
                records.retain(|record| record.epoch >= epoch);
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }

    async fn spans(&self) -> Result<BTreeSet<(u64, u64)>> {
        let files = self.folder().list("history").await?;
        Ok(files.iter().filter_map(|file| span_of(&file.name)).collect())
    }

    /// Folds what lies at a level into files of the next, and removes what such files stand for.
    async fn fold_level(&self, level: u32, upto: u64, folds_left: &mut usize) -> Result<()> {
        let width = FOLD.pow(level + 1);
        let spans = self.spans().await?;
        let parts: BTreeSet<(u64, u64)> = match level {
            0 => self.epochs().await?.into_iter().map(|epoch| (epoch, epoch)).collect(),
            _ => spans.iter().copied().filter(|(first, last)| last - first + 1 == width / FOLD).collect(),
        };
        let mut chunks: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for part in parts.into_iter().filter(|(_, last)| *last <= upto) {
            chunks.entry((part.0 - 1) / width).or_default().push(part);
        }
        for (chunk, parts) in chunks {
            let span = chunk * width + 1..=(chunk + 1) * width;
            let stands = spans.iter().any(|(first, last)| first <= span.start() && span.end() <= last);
            if !stands {
                if parts.len() as u64 != FOLD || *folds_left == 0 {
                    continue;
                }
                *folds_left -= 1;
                let folded = if level == 0 { self.fold_records(&span).await? } else { self.join(&parts).await? };
                fail::point("before_history")?;
                self.write_history(&span, folded).await?;
                fail::point("after_history")?;
            }
            let name = |(first, last): (u64, u64)| match level {
                0 => epoch_file(first),
                _ => history_file(&(first..=last)),
            };
            self.remove(parts.into_iter().map(name).collect()).await?;
        }
        Ok(())
    }

    async fn fold_records(&self, span: &Span) -> Result<Bytes> {
        let read = |epoch| async move { self.epoch(epoch).await?.ok_or_else(|| self.vanished(&epoch_file(epoch))) };
        let records: Vec<_> = futures::stream::iter(span.clone()).map(read).buffered(AT_ONCE).try_collect().await?;
        encode(&records)
    }

    async fn join(&self, parts: &[(u64, u64)]) -> Result<Bytes> {
        let read = |part: &(u64, u64)| {
            let name = history_file(&(part.0..=part.1));
            async move { self.folder().get(&name).await?.ok_or_else(|| self.vanished(&name)) }
        };
        let reads: Vec<_> = parts.iter().map(read).collect();
        let parts: Vec<Bytes> = futures::stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
        Ok(parts.concat().into())
    }

    /// Writes a file of history. One that is there already, by a lost reply or another process, must hold the same.
    async fn write_history(&self, span: &Span, folded: Bytes) -> Result<()> {
        if self.folder().create(&history_file(span), folded.clone()).await? {
            return Ok(());
        }
        if self.read_history(span).await? == Some(decode(&folded)?) {
            return Ok(());
        }
        Err(Error::config(format!(
            "{} holds other records than those of its epochs; nothing was removed",
            self.place(&history_file(span))
        )))
    }

    async fn remove(&self, names: Vec<String>) -> Result<()> {
        let removed = names.into_iter().map(|name| async move { self.folder().delete(&name).await });
        futures::stream::iter(removed).buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// Gives the name of a file of history in the state store.
pub fn history_file(span: &Span) -> String {
    format!("history/{:020}-{:020}.jsonl.zst", span.start(), span.end())
}

/// Tells whether a compaction may find something to fold when `done` epochs are done, and when `before` were it could
/// not.
pub fn is_due(before: u64, done: u64) -> bool {
    before / FOLD < done / FOLD
}

fn span_of(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_prefix("history/")?.strip_suffix(".jsonl.zst")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (1 <= first && first <= last).then_some((first, last))
}

/// Leaves out spans that lie within others.
fn widest(spans: &BTreeSet<(u64, u64)>) -> Vec<Span> {
    let within = |a: &(u64, u64), b: &(u64, u64)| a != b && b.0 <= a.0 && a.1 <= b.1;
    let kept = spans.iter().filter(|span| !spans.iter().any(|other| within(span, other)));
    kept.map(|(first, last)| *first..=*last).collect()
}

fn encode(records: &[CommitRecord]) -> Result<Bytes> {
    let mut lines = Vec::new();
    for record in records {
        let written = serde_json::to_writer(&mut lines, record);
        written.map_err(|e| Error::internal("could not write a record as json").because(e))?;
        lines.push(b'\n');
    }
    let packed = zstd::encode_all(lines.as_slice(), ZSTD_LEVEL);
    packed.map(Bytes::from).map_err(|e| Error::internal("could not compress records").because(e))
}

fn decode(bytes: &[u8]) -> Result<Vec<CommitRecord>> {
    let lines = zstd::decode_all(bytes).map_err(|e| Error::config("it is damaged").because(e))?;
    let mut records = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: CommitRecord = serde_json::from_slice(line)
            .map_err(|e| Error::config("it is damaged, or was written by another version of nexus").because(e))?;
        check_version(record.version)?;
        records.push(record);
    }
    Ok(records)
}
