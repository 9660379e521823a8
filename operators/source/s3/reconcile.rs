//! Finding objects whose notification was lost, by listing what may be read.
//!
//! A pass goes through the allowed prefixes a page at a time, and takes what no message has announced. Objects that are
//! younger than the time between two passes are left to their messages, and those older than what is remembered are
//! taken for read: an object is never read twice, whether a message comes late or not.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore};
use tokio::time::Instant;

use super::envelope::Announced;
use super::keys;
use crate::error::{Error, Result};

/// Keys that are looked at in one call: what S3 gives at once. A pass over a million keys holds no more of them. In the
/// tests so few that some objects fill several pages.
const PAGE_KEYS: usize = if cfg!(test) { 7 } else { 1000 };

/// Objects that are asked for their version side by side.
const CHECKS_AT_ONCE: usize = 8;

/// What came of a call.
pub(super) enum Found {
    /// Objects of one page that are of an age to be read, by their entity tags.
    Listed(Vec<Announced>),
    /// Those of them that were not known, with their versions.
    Checked(Vec<Announced>),
}

/// What is listed.
#[derive(Debug, Clone)]
struct Prefix {
    bucket: String,
    /// Keys begin so.
    keys: String,
    /// The folder that has them all.
    folder: Path,
}

/// Where a pass stands.
pub(super) struct Reconcile {
    every: Duration,
    prefixes: Vec<Prefix>,
    /// The prefix that is listed, and the last key that was; nothing between two passes.
    at: Option<(usize, Option<Path>)>,
    next_pass: Instant,
    /// The call under way. It is polled by `next` only, never dropped half way.
    pub(super) calling: Option<BoxFuture<'static, Result<Answer>>>,
}

/// What a call gives, and the last key that it has seen if there may be more behind.
pub(super) struct Answer {
    found: Found,
    last: Option<Path>,
}

impl Reconcile {
    /// Lists the prefixes, written as `s3://bucket/folder/`, this often.
    pub(super) fn new(every: Duration, allow: &[String]) -> Self {
        let prefixes = allow.iter().filter_map(|prefix| prefix.strip_prefix("s3://")).map(|prefix| {
            let (bucket, keys) = prefix.split_once('/').unwrap_or((prefix, ""));
            let folder = keys.rsplit_once('/').and_then(|(folder, _)| keys::path_of(folder)).unwrap_or(Path::ROOT);
            Prefix { bucket: bucket.to_owned(), keys: keys.to_owned(), folder }
        });
        Self { every, prefixes: prefixes.collect(), at: None, next_pass: Instant::now(), calling: None }
    }

    /// Tells whether a pass is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.at.is_some()
    }

    /// Gives the bucket of the page that is due; begins a pass when it is time.
    pub(super) fn due(&mut self) -> Option<String> {
        if self.calling.is_some() {
            return None;
        }
        if self.at.is_none() && Instant::now() >= self.next_pass {
            self.at = Some((0, None));
        }
        let (at, _) = self.at.as_ref()?;
        let bucket = self.prefixes.get(*at).map(|prefix| prefix.bucket.clone());
        if bucket.is_none() {
            self.end_pass();
        }
        bucket
    }

    /// Lists the page that is due, of objects that were changed after `oldest_ms`.
    pub(super) fn list(&mut self, store: Arc<dyn ObjectStore>, oldest_ms: i64, now_ms: i64) {
        let Some((at, after)) = self.at.clone() else { return };
        let Some(prefix) = self.prefixes.get(at).cloned() else { return };
        let youngest_ms = now_ms.saturating_sub(i64::try_from(self.every.as_millis()).unwrap_or(i64::MAX));
        self.calling = Some(list(store, prefix, after, oldest_ms..=youngest_ms).boxed());
    }

    /// Asks for the versions of objects.
    pub(super) fn check(&mut self, store: Arc<dyn ObjectStore>, objects: Vec<Announced>) {
        self.calling = Some(check(store, objects).boxed());
    }

    /// Takes an answer, and goes on behind what it has listed. A listing that fails ends the pass.
    pub(super) fn took(&mut self, answer: Result<Answer>) -> Option<Found> {
        match answer {
            Ok(Answer { found, last }) => {
                if let (Found::Listed(_), Some((at, after))) = (&found, &mut self.at) {
                    *at += usize::from(last.is_none());
                    *after = last;
                }
                Some(found)
            }
            Err(error) => {
                tracing::warn!(%error, "could not look for objects whose notification was lost; trying again later");
                self.end_pass();
                None
            }
        }
    }

    fn end_pass(&mut self) {
        self.at = None;
        self.next_pass = Instant::now() + self.every;
    }
}

async fn list(
    store: Arc<dyn ObjectStore>,
    prefix: Prefix,
    after: Option<Path>,
    ages_ms: RangeInclusive<i64>,
) -> Result<Answer> {
    let mut listed = match &after {
        Some(after) => store.list_with_offset(Some(&prefix.folder), after),
        None => store.list(Some(&prefix.folder)),
    };
    let failed = |e| Error::from(e).while_doing(format!("could not list s3://{}/{}", prefix.bucket, prefix.keys));
    let (mut found, mut last, mut seen) = (Vec::new(), None, 0);
    while let Some(meta) = listed.try_next().await.map_err(failed)? {
        let object = announced(&prefix.bucket, &meta);
        let is_of_age = ages_ms.contains(&meta.last_modified.timestamp_millis());
        // An empty object holds no row, and may be the mark of a folder.
        if meta.size > 0 && is_of_age && object.key.starts_with(&prefix.keys) {
            found.push(object);
        }
        seen += 1;
        if seen == PAGE_KEYS {
            last = Some(meta.location);
            break;
        }
    }
    Ok(Answer { found: Found::Listed(found), last })
}

async fn check(store: Arc<dyn ObjectStore>, objects: Vec<Announced>) -> Result<Answer> {
    let asked = stream::iter(objects).map(|object| {
        let store = Arc::clone(&store);
        async move {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let Some(path) = keys::path_of(&object.key) else { return Ok(None) };
            match store.get_opts(&path, options).await {
                // Overwritten since: the new content has its own message, or is found in the next pass.
                Ok(answer) if etag(&answer.meta) != object.etag => Ok(None),
                Ok(answer) => {
                    let version = answer.meta.version.filter(|version| version != "null");
                    Ok(Some(Announced { version, ..object }))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(Error::from(e).while_doing(format!("could not find {}", object.partition()))),
            }
        }
    });
    let checked: Vec<Option<Announced>> = asked.buffered(CHECKS_AT_ONCE).try_collect().await?;
    Ok(Answer { found: Found::Checked(checked.into_iter().flatten().collect()), last: None })
}

fn announced(bucket: &str, meta: &ObjectMeta) -> Announced {
    Announced {
        bucket: bucket.to_owned(),
        key: keys::key_of(&meta.location),
        version: None,
        etag: etag(meta),
        sequencer: None,
        time: meta.last_modified.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        size: Some(meta.size),
    }
}

fn etag(meta: &ObjectMeta) -> Option<String> {
    meta.e_tag.as_deref().map(|etag| etag.trim_matches('"').to_owned())
}
