//! Files of this machine, one after the other in the order of their names.
//!
//! A file is known by its path, as the source names it, and a fingerprint of its beginning: one that was
//! replaced is read anew, one that grew is read on. Damaged content goes to the
//! quarantine, and the next file follows.

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::framed::{Framed, FramedSettings, Input, Step};
use super::pattern::MATCHING;
use super::{Source, SourceEvent};
use crate::batch::Chunk;
use crate::clock::SharedClock;
use crate::error::{Error, ErrorKind, Result};
use crate::framing::Framing;
use crate::position::{Cut, Position};

/// Time between two looks for new and grown files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes at the beginning of a file that tell it from another: past most headers, and one disk block.
const FINGERPRINT_BYTES: usize = 256;

/// Which files a [`FileSource`] reads, and how.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// The source's name.
    pub name: String,
    /// An absolute path or glob (`*`, `?`, `**`, `[..]`). `*` does not match names that begin with a dot.
    pub glob: String,
    /// The absolute folder below which files are named by the rest of their path, so that it can be moved with them;
    /// all other files are named by their absolute path.
    pub relative_to: Option<PathBuf>,
    /// Keep watching for new files and for files that grow; otherwise the source ends.
    pub follow: bool,
    /// How records stand one behind the other.
    pub framing: Framing,
    /// The largest record.
    pub record_bytes_max: usize,
}

/// Reads files.
pub struct FileSource {
    settings: FileSettings,
    clock: SharedClock,
    known: HashMap<Arc<str>, Known>,
    /// Files to look at; the first one stays here until it is open.
    waiting: VecDeque<Found>,
    current: Option<Current>,
    moved: Cut,
    look_at: Instant,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Known {
    position: Option<Position>,
    /// Size and time of change when it was last looked into: while they stay, there is nothing new in it.
    seen: Option<(u64, Option<SystemTime>)>,
}

/// A file that a glob matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed, where the file system tells.
    pub changed: Option<SystemTime>,
}

struct Current {
    partition: Arc<str>,
    identity: String,
    /// Where the file counts as read to its end if it is damaged: its size, where offsets are those of the file.
    end: Option<u64>,
    reader: Framed,
}

impl FileSource {
    /// Makes a source of the files that `settings` names.
    pub fn new(settings: FileSettings, clock: SharedClock) -> Self {
        Self {
            settings,
            clock,
            known: HashMap::new(),
            waiting: VecDeque::new(),
            current: None,
            moved: Cut::default(),
            look_at: Instant::now(),
        }
    }

    /// Finds the files that are new or have changed; tells whether any matched at all.
    async fn look(&mut self) -> Result<bool> {
        let glob = self.settings.glob.clone();
        let found = tokio::task::spawn_blocking(move || find(&glob)).await;
        let found = found.map_err(|e| Error::internal("a disk task ended early").because(e))??;
        self.look_at = Instant::now() + LOOK_EVERY;
        let any = !found.is_empty();
        let is_new =
            |f: &Found| self.known.get(&*self.name(&f.path)).is_none_or(|k| k.seen != Some((f.size, f.changed)));
        self.waiting = found.into_iter().filter(is_new).collect();
        Ok(any)
    }

    /// Gives the partition name of a path.
    fn name(&self, path: &Path) -> Arc<str> {
        let below = self.settings.relative_to.as_ref().and_then(|folder| path.strip_prefix(folder).ok());
        below.unwrap_or(path).to_string_lossy().into()
    }

    /// Opens the first waiting file if there is something to read in it.
    async fn begin(&mut self, found: Found) -> Result<Option<SourceEvent>> {
        let partition = self.name(&found.path);
        let path = found.path.clone();
        let opened = tokio::task::spawn_blocking(move || Opened::open(&path)).await;
        let opened = opened.map_err(|e| Error::internal("a disk task ended early").because(e))?;
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.waiting.pop_front();
                let text = "the file vanished before it was read";
                return Ok(Some(self.reject(partition, 0, None, Bytes::new(), text)));
            }
            Err(e) => return Err(Error::from(e).while_doing(format!("could not open {partition}"))),
        };
        self.waiting.pop_front();
        let packed = opened.packed(self.settings.framing);
        let identity = opened.identity(packed);
        let known = self.known.entry(Arc::clone(&partition)).or_default();
        known.seen = Some((found.size, found.changed));
        let offset = match known.position.as_ref().map_or(Resume::From(0), |p| opened.resume(p, packed)) {
            Resume::Nothing => return Ok(None),
            Resume::From(offset) => offset,
            Resume::Changed => {
                let text = "the packed file changed its size after it was read to its end; give new content a new name";
                return Ok(Some(self.reject(partition, opened.size, Some(identity), Bytes::new(), text)));
            }
        };
        let settings = FramedSettings {
            framing: self.settings.framing,
            record_bytes_max: self.settings.record_bytes_max,
            waits: self.settings.follow,
        };
        let reader = Framed::new(Arc::clone(&partition), Input::File(Arc::new(opened.file)), settings, offset);
        let end = (!packed).then_some(opened.size);
        self.current = Some(Current { partition, identity, end, reader });
        Ok(None)
    }

    /// Reads on in the open file; nothing if it is through.
    async fn read(&mut self) -> Result<Option<SourceEvent>> {
        let Some(current) = &mut self.current else { return Ok(None) };
        let step = current.reader.next().await;
        match step {
            Ok(Step::Piece { payload, next }) => {
                let partition = Arc::clone(&current.partition);
                let identity = Some(current.identity.clone());
                self.remember(&partition, Position::Offset { offset: next, identity });
                let read_at_us = self.clock.now_us();
                Ok(Some(SourceEvent::Chunk(Chunk { partition, payload, read_at_us, lag_ms: None })))
            }
            Ok(Step::Incomplete) => {
                self.current = None;
                Ok(None)
            }
            Ok(Step::End) => {
                let offset = current.reader.offset();
                let (partition, identity) = (Arc::clone(&current.partition), current.identity.clone());
                self.current = None;
                self.done(&partition, offset, Some(identity));
                Ok(None)
            }
            Err(e) if e.kind() == ErrorKind::Data => {
                let Some(current) = self.current.take() else { return Err(e) };
                let Current { partition, identity, end, reader } = current;
                let offset = end.unwrap_or_else(|| reader.offset());
                Ok(Some(self.reject(partition, offset, Some(identity), reader.rest(), &e.to_string())))
            }
            Err(e) => Err(e),
        }
    }

    fn reject(
        &mut self,
        partition: Arc<str>,
        offset: u64,
        identity: Option<String>,
        raw: Bytes,
        reason: &str,
    ) -> SourceEvent {
        self.done(&partition, offset, identity);
        SourceEvent::Reject { partition, offset: offset.to_string(), raw, reason: reason.to_owned() }
    }

    fn done(&mut self, partition: &Arc<str>, offset: u64, identity: Option<String>) {
        let ms = self.clock.now_us().div_euclid(1000);
        self.remember(partition, Position::Done { offset, identity, ms });
    }

    fn remember(&mut self, partition: &Arc<str>, position: Position) {
        self.moved.advanced.insert(partition.to_string(), position.clone());
        self.known.entry(Arc::clone(partition)).or_default().position = Some(position);
    }
}

#[async_trait]
impl Source for FileSource {
    async fn open(&mut self, committed: &Cut) -> Result<()> {
        let known = |(name, position): (&String, &Position)| {
            (Arc::from(name.as_str()), Known { position: Some(position.clone()), seen: None })
        };
        self.known = committed.advanced.iter().map(known).collect();
        if !self.look().await? && !self.settings.follow {
            return Err(Error::config(format!(
                "source {}: no file matches {}; look at the path, or set `follow: true` to wait for files",
                self.settings.name, self.settings.glob
            )));
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        loop {
            if self.current.is_some() {
                if let Some(event) = self.read().await? {
                    return Ok(event);
                }
            } else if let Some(found) = self.waiting.front().cloned() {
                if let Some(event) = self.begin(found).await? {
                    return Ok(event);
                }
            } else if self.settings.follow {
                tokio::time::sleep_until(self.look_at).await;
                self.look().await?;
                if self.waiting.is_empty() {
                    return Ok(SourceEvent::Idle);
                }
            } else {
                return Ok(SourceEvent::End);
            }
        }
    }

    fn cut(&mut self) -> Cut {
        std::mem::take(&mut self.moved)
    }

    fn reading(&self) -> Vec<Arc<str>> {
        self.current.iter().map(|current| Arc::clone(&current.partition)).collect()
    }

    async fn committed(&mut self, _: &Cut) -> Result<()> {
        Ok(())
    }

    async fn maintain(&mut self) -> Result<()> {
        Ok(())
    }

    fn bounded(&self) -> bool {
        !self.settings.follow
    }
}

/// Where to begin in a file.
#[derive(Debug, PartialEq, Eq)]
enum Resume {
    /// Its content has been read.
    Nothing,
    From(u64),
    /// It was read to its end, and then changed in a way that cannot be followed.
    Changed,
}

/// A file and its beginning.
struct Opened {
    file: File,
    size: u64,
    head: Vec<u8>,
}

impl Opened {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut head = vec![0; FINGERPRINT_BYTES];
        let mut filled = 0;
        while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        head.truncate(filled);
        Ok(Self { file, size, head })
    }

    /// Tells whether growth cannot be read on from an offset of the file itself.
    fn packed(&self, framing: Framing) -> bool {
        matches!(framing, Framing::Parquet | Framing::Avro) || super::framed::is_packed(&self.head)
    }

    /// Names the content: the hash and length of its beginning, and the size if it is packed.
    fn identity(&self, packed: bool) -> String {
        let size = if packed { format!("-{}", self.size) } else { String::new() };
        format!("{:016x}-{}{size}", fnv1a(&self.head), self.head.len())
    }

    /// Tells where to go on, given how far content of the same path was read.
    fn resume(&self, position: &Position, packed: bool) -> Resume {
        match position {
            Position::Offset { offset, identity } if self.begins_as(identity.as_deref()) => {
                if !packed && *offset > self.size { Resume::From(0) } else { Resume::From(*offset) }
            }
            Position::Done { offset, identity, .. } if self.begins_as(identity.as_deref()) => {
                if packed {
                    let same = identity.as_deref() == Some(&self.identity(packed));
                    if same { Resume::Nothing } else { Resume::Changed }
                } else {
                    match offset.cmp(&self.size) {
                        std::cmp::Ordering::Less => Resume::From(*offset),
                        std::cmp::Ordering::Equal => Resume::Nothing,
                        std::cmp::Ordering::Greater => Resume::From(0),
                    }
                }
            }
            _ => Resume::From(0),
        }
    }

    /// Tells whether the beginning is the one that `identity` was made from.
    fn begins_as(&self, identity: Option<&str>) -> bool {
        let mut parts = identity.unwrap_or_default().split('-');
        let hash = parts.next().and_then(|hash| u64::from_str_radix(hash, 16).ok());
        let head = parts.next().and_then(|len| self.head.get(..len.parse().ok()?));
        hash.zip(head).is_some_and(|(hash, head)| fnv1a(head) == hash)
    }
}

/// Lists the files that match a glob, by path.
pub fn find(glob: &str) -> Result<Vec<Found>> {
    let paths = glob::glob_with(glob, MATCHING)
        .map_err(|e| Error::config(format!("could not read `{glob}` as a glob")).because(e))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|e| {
            let folder = e.path().display().to_string();
            Error::from(std::io::Error::from(e)).while_doing(format!("could not look into {folder}"))
        })?;
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => found.push(Found { size: meta.len(), changed: meta.modified().ok(), path }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::from(e).while_doing(format!("could not look at {}", path.display()))),
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Hashes a few bytes (FNV-1a, 64 bit); it stands in commit records, so it must stay the same for ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
