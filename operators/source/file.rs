//! Files of this machine, one after the other in the order of their names.
//!
//! A file is known by its path and a fingerprint of its beginning: one that was
//! replaced is read anew, one that grew is read on. Damaged content goes to the
//! quarantine, and the next file follows.

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

/// A file that the glob matches.
#[derive(Debug, Clone)]
struct Found {
    path: PathBuf,
    size: u64,
    changed: Option<SystemTime>,
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
        let is_new = |f: &Found| self.known.get(&*name(&f.path)).is_none_or(|k| k.seen != Some((f.size, f.changed)));
        self.waiting = found.into_iter().filter(is_new).collect();
        Ok(any)
    }

    /// Opens the first waiting file if there is something to read in it.
    async fn begin(&mut self, found: Found) -> Result<Option<SourceEvent>> {
        let partition = name(&found.path);
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
        framing == Framing::Parquet || super::framed::is_packed(&self.head)
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

/// Gives the partition name of a path.
fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// Lists the files that match, by path.
fn find(glob: &str) -> Result<Vec<Found>> {
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let paths = glob::glob_with(glob, options)
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

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;
    use crate::testing::clock::ManualClock;
    use crate::testing::source::{conforms, read};

    const CSV: Framing = Framing::Csv { header: true, quote: b'"', delimiter: b',' };
    const RECORD_BYTES_MAX: usize = 2 * 1024 * 1024;

    fn source(folder: &TempDir, framing: Framing, follow: bool) -> FileSource {
        let glob = folder.path().join("*").display().to_string();
        let settings = FileSettings { name: "files".into(), glob, follow, framing, record_bytes_max: RECORD_BYTES_MAX };
        FileSource::new(settings, ManualClock::at(1_700_000_000_000_000))
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn partition(folder: &TempDir, name: &str) -> String {
        folder.path().join(name).display().to_string()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Packs content as two members or frames, cut at an odd place.
    fn in_two(content: &[u8], pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let (first, second) = content.split_at(content.len() / 3);
        [pack(first), pack(second)].concat()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 1).unwrap()
    }

    fn lines(bytes: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        for n in 0.. {
            if lines.len() >= bytes {
                return lines;
            }
            writeln!(lines, "{{\"n\":{n},\"text\":\"a \\\"quoted\\\" {{ brace\",\"list\":[1,[2]]}}").unwrap();
        }
        lines
    }

    fn spaced(content: &[u8]) -> String {
        String::from_utf8_lossy(content).replace(|c: char| c.is_ascii_whitespace(), " ")
    }

    #[tokio::test]
    async fn lines_conform_however_they_are_packed() {
        let content = lines(3 * 1024 * 1024);
        let files = folder(&[
            ("a.json", content.clone()),
            ("b.json.gz", in_two(&content, gzip)),
            ("c.without-suffix", in_two(&content, zstd)),
            ("d.json", content.strip_suffix(b"\n").unwrap().to_vec()),
            ("e.json", Vec::new()),
            (".hidden", b"half written".to_vec()),
        ]);
        let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
        for name in ["a.json", "b.json.gz", "c.without-suffix"] {
            assert!(seen.text(&partition(&files, name)) == spaced(&content), "{name} differs");
        }
        assert_eq!(seen.text(&partition(&files, "d.json")), spaced(&content).trim_end());
        assert_eq!(seen.partitions().len(), 4);
    }

    #[tokio::test]
    async fn documents_over_several_lines_and_arrays_conform() {
        let content = lines(2 * 1024 * 1024);
        let documents = String::from_utf8(content.clone()).unwrap().replace(",\"list\"", ",\n  \"list\"");
        let back_to_back = documents.replace("}\n{", "}{").into_bytes();
        let elements = documents.trim_end().replace("}\n{", "} ,\n{");
        let array = format!("\u{feff}[\n{elements}\n]\n");
        let files = folder(&[
            ("array.json", array.clone().into_bytes()),
            ("array.json.gz", gzip(array.as_bytes())),
            ("back-to-back.json", back_to_back.clone()),
            ("documents.json", documents.clone().into_bytes()),
        ]);
        let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
        assert!(seen.text(&partition(&files, "documents.json")) == spaced(documents.as_bytes()));
        assert!(seen.text(&partition(&files, "back-to-back.json")) == spaced(&back_to_back));
        let bare = spaced(format!("   [ {elements} ]").replace("} ,\n{", "}  \n{").as_bytes());
        let bare = bare.replacen('[', " ", 1);
        let bare = bare.strip_suffix(" ]").unwrap();
        for name in ["array.json", "array.json.gz"] {
            assert!(seen.text(&partition(&files, name)).trim_end() == bare, "{name} differs");
        }
        assert!(seen.rejects.is_empty());
    }

    #[tokio::test]
    async fn csv_is_cut_outside_quotes_and_keeps_its_header() {
        let header = "\"na\nme\",size\n";
        let mut content = header.to_owned();
        for n in 0..120_000 {
            content.push_str(&format!("\"line {n}\nand \"\"another\"\"\",5\" pipe\r\n"));
        }
        let files = folder(&[
            ("a.csv", content.clone().into_bytes()),
            ("b.csv", in_two(content.as_bytes(), gzip)),
            ("c.csv", header.into()),
        ]);
        let seen = conforms(|_| async { Box::new(source(&files, CSV, false)) as _ }).await;
        let expected = spaced(format!("{}{}", " ".repeat(header.len()), &content[header.len()..]).as_bytes());
        for name in ["a.csv", "b.csv"] {
            assert!(seen.text(&partition(&files, name)) == expected, "{name} differs");
        }
        let mut again = source(&files, CSV, false);
        again.open(&Cut::default()).await.unwrap();
        while let SourceEvent::Chunk(chunk) = again.next().await.unwrap() {
            let crate::batch::Payload::Framed { bytes, header: given, .. } = chunk.payload else { panic!() };
            assert_eq!(given.unwrap(), header.as_bytes());
            assert!(bytes.starts_with(b"\"line ") && bytes.ends_with(b"pipe\r\n"), "a piece is cut within a record");
        }
    }

    #[tokio::test]
    async fn an_oversized_record_costs_only_itself() {
        let good = lines(1024 * 1024);
        let long = [b"{\"x\":\"".to_vec(), vec![b'x'; 3 * RECORD_BYTES_MAX], b"\"}\n".to_vec()].concat();
        let content = [good.clone(), long, good.clone()].concat();
        let files = folder(&[("a.json", content.clone()), ("b.json", gzip(&content))]);
        let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
        for name in ["a.json", "b.json"] {
            let text = seen.text(&partition(&files, name));
            assert!(text.starts_with(&spaced(&good)) && text.ends_with(&spaced(&good)));
            assert_eq!(text.matches('x').count() - 2 * spaced(&good).matches('x').count(), RECORD_BYTES_MAX + 1 - 5);
        }
    }

    #[tokio::test]
    async fn damage_in_one_file_is_rejected_and_the_others_are_read() {
        let content = lines(200_000);
        let packed = gzip(&content);
        let mut flipped = zstd(&content);
        let middle = flipped.len() / 2;
        flipped[middle..].iter_mut().for_each(|byte| *byte = !*byte);
        let files = folder(&[
            ("a.gz", packed[..packed.len() - 100].to_vec()),
            ("b.zst", flipped),
            ("c.json", b"[{\"n\":1},{\"n\":2},".to_vec()),
            ("d.json", content.clone()),
        ]);
        let seen = conforms(|_| async { Box::new(source(&files, Framing::Json, false)) as _ }).await;
        let reasons: Vec<_> = seen.rejects.iter().map(|(_, _, reason)| reason.as_str()).collect();
        assert_eq!(reasons.len(), 3);
        assert!(reasons[0].contains("a.gz: the gzip content ends too early"), "{}", reasons[0]);
        assert!(reasons[1].contains("b.zst: the zstd content is corrupt"), "{}", reasons[1]);
        assert!(reasons[2].contains("c.json: the JSON array is not closed"), "{}", reasons[2]);
        assert!(seen.text(&partition(&files, "a.gz")).len() > 100_000, "what was whole counts");
        assert!(seen.text(&partition(&files, "d.json")) == spaced(&content));
    }

    #[tokio::test]
    async fn a_broken_first_line_costs_no_other() {
        let files = folder(&[("a.json", b"{\"n\": \n{\"n\":1}\n{\"n\":2}\n".to_vec())]);
        let mut source = source(&files, Framing::Json, false);
        let (seen, _) = read(&mut source, &Cut::default()).await;
        assert_eq!(seen.text(&partition(&files, "a.json")), "{\"n\":  {\"n\":1} {\"n\":2} ");
    }

    #[tokio::test]
    async fn a_replaced_file_is_read_anew_and_a_grown_one_is_read_on() {
        let files = folder(&[("a", b"one\n".to_vec()), ("b", b"two\n".to_vec()), ("c.gz", gzip(b"three\n"))]);
        let mut first = source(&files, Framing::Whole, false);
        read(&mut first, &Cut::default()).await;
        let cut = first.cut();
        std::fs::write(files.path().join("a"), b"one\nmore\n").unwrap();
        std::fs::write(files.path().join("b"), b"new\n").unwrap();
        std::fs::write(files.path().join("c.gz"), [gzip(b"three\n"), gzip(b"four\n")].concat()).unwrap();
        let (seen, _) = read(&mut source(&files, Framing::Whole, false), &cut).await;
        assert_eq!(seen.text(&partition(&files, "a")).trim_start(), "more ");
        assert_eq!(seen.text(&partition(&files, "b")), "new ");
        let (rejected, _, reason) = seen.rejects.first().unwrap();
        assert!(rejected.ends_with("c.gz") && reason.contains("changed its size"), "{reason}");
    }

    #[tokio::test]
    async fn follow_waits_for_the_end_of_a_line_and_for_new_files() {
        let files = folder(&[("a", b"one\ntw".to_vec())]);
        let mut follower = source(&files, Framing::Whole, true);
        let (seen, _) = read(&mut follower, &Cut::default()).await;
        assert_eq!(seen.text(&partition(&files, "a")), "one ");
        let mut cut = follower.cut();
        File::options().append(true).open(files.path().join("a")).unwrap().write_all(b"o\nthree").unwrap();
        std::fs::write(files.path().join("b"), b"b\n").unwrap();
        let SourceEvent::Chunk(chunk) = follower.next().await.unwrap() else { panic!("the file grew") };
        let crate::batch::Payload::Framed { offset, bytes, .. } = chunk.payload else { panic!() };
        assert_eq!((offset, bytes.as_ref()), (4, &b"two\n"[..]));
        let SourceEvent::Chunk(chunk) = follower.next().await.unwrap() else { panic!("there is a new file") };
        assert_eq!(&*chunk.partition, partition(&files, "b"));
        cut.fold(&follower.cut());
        let (seen, _) = read(&mut source(&files, Framing::Whole, false), &cut).await;
        assert_eq!(seen.text(&partition(&files, "a")).trim_start(), "three", "a finite run takes the last line");
    }

    #[tokio::test]
    async fn no_match_is_an_error_that_says_the_glob() {
        let files = folder(&[]);
        let error = source(&files, CSV, false).open(&Cut::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(&partition(&files, "*")), "{error}");
    }
}
