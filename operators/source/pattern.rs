//! What a pattern names, on this machine or on S3: found, and read each from its beginning.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::file;
use super::framed::{Input, ObjectInput};
use crate::aws::AwsSettings;
use crate::error::{Error, Result};
use crate::store::{Access, Backend, Encryption, Store, join};

/// What stands for more than itself in a pattern.
const META: [char; 3] = ['*', '?', '['];

/// How a pattern is meant: as that of files.
pub(super) const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Files or objects that are named alike.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// Of this machine.
    Disk,
    /// Of a bucket.
    Bucket { name: String, objects: Arc<dyn ObjectStore>, keys: String },
}

/// A file or an object that a pattern names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its path, or its `s3://` URL.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed, where the file system tells.
    pub changed: Option<SystemTime>,
    /// The entity tag of an object.
    pub etag: Option<String>,
}

impl Pattern {
    /// Takes an absolute path or glob, or `s3://bucket/key` with `*`, `?`, `**` and `[..]` in the key.
    pub async fn open(text: &str, aws: &AwsSettings) -> Result<Self> {
        let place = match text.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
            None => Place::Disk,
            Some((bucket, keys)) => {
                let access = Access { encryption: Encryption::BucketDefault, aws: aws.clone() };
                let store = Store::open(&format!("s3://{bucket}"), &access).await?;
                let Backend::Object { objects, .. } = store.backend() else {
                    return Err(Error::internal(format!("{text} is not on S3")));
                };
                Place::Bucket { name: bucket.to_owned(), objects: objects.clone(), keys: keys.to_owned() }
            }
        };
        Ok(Self { text: text.to_owned(), place })
    }

    /// Gives it as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Finds what it names, by name.
    pub async fn find(&self) -> Result<Vec<Named>> {
        match &self.place {
            Place::Disk => {
                let glob = self.text.clone();
                let found = tokio::task::spawn_blocking(move || file::find(&glob)).await;
                let found = found.map_err(|e| Error::internal("a disk task ended early").because(e))??;
                let named = |found: file::Found| Named {
                    name: found.path.to_string_lossy().into_owned(),
                    size: found.size,
                    changed: found.changed,
                    etag: None,
                };
                Ok(found.into_iter().map(named).collect())
            }
            Place::Bucket { name, objects, keys } => {
                let failed = |e| Error::from(e).while_doing(format!("could not look for {}", self.text));
                let mut found = objects_of(objects.as_ref(), keys).await.map_err(failed)?;
                let wrong = |e| Error::config(format!("could not read `{}` as a glob", self.text)).because(e);
                let pattern = glob::Pattern::new(keys).map_err(wrong)?;
                found.retain(|meta| pattern.matches_with(meta.location.as_ref(), MATCHING));
                found.sort_by(|a, b| a.location.cmp(&b.location));
                let named = |meta: ObjectMeta| Named {
                    name: format!("s3://{name}/{}", meta.location),
                    size: meta.size,
                    changed: Some(meta.last_modified.into()),
                    etag: meta.e_tag,
                };
                Ok(found.into_iter().map(named).collect())
            }
        }
    }

    /// Opens what was found: an object as it was then.
    pub async fn input(&self, found: &Named) -> Result<Input> {
        match &self.place {
            Place::Disk => {
                let path = PathBuf::from(&found.name);
                let file = tokio::fs::File::open(&path).await;
                let file = file.map_err(|e| Error::from(e).while_doing(format!("could not open {}", found.name)))?;
                Ok(Input::File(Arc::new(file.into_std().await)))
            }
            Place::Bucket { name, objects, .. } => {
                let key = found.name.strip_prefix(&format!("s3://{name}/")).unwrap_or(&found.name);
                Ok(Input::Object(ObjectInput {
                    store: objects.clone(),
                    path: join(&Path::ROOT, key),
                    version: None,
                    etag: found.etag.clone(),
                    size: found.size,
                }))
            }
        }
    }
}

/// Gives the objects that a pattern of keys may name: those below its first folders, or the one that it is.
async fn objects_of(objects: &dyn ObjectStore, keys: &str) -> object_store::Result<Vec<ObjectMeta>> {
    let Some(first) = keys.find(META) else {
        return match objects.head(&join(&Path::ROOT, keys)).await {
            Ok(meta) => Ok(vec![meta]),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(e) => Err(e),
        };
    };
    let folder = keys.get(..first).and_then(|literal| literal.rsplit_once('/')).map_or("", |(folder, _)| folder);
    objects.list(Some(&join(&Path::ROOT, folder))).try_collect().await
}

#[cfg(test)]
mod tests {
    use object_store::PutPayload;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_pattern_names_objects_as_it_names_files() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Arc::new(InMemory::new());
        let keys =
            ["a.csv", "sites/1.csv", "sites/2.csv", "sites/.3.csv", "sites/old/4.csv", "sitesx/5.csv", "a b.csv"];
        for key in keys {
            let path = folder.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, key).unwrap();
            objects.put(&join(&Path::ROOT, key), PutPayload::from_static(b"x")).await.unwrap();
        }
        let root = folder.path().display().to_string();
        for glob in ["a.csv", "*.csv", "sites/*.csv", "sites/**/*.csv", "**/[45].csv", "sites/", "no.csv", "a b.csv"] {
            let disk = Pattern { text: format!("{root}/{glob}"), place: Place::Disk };
            let place = Place::Bucket { name: "b".into(), objects: objects.clone(), keys: glob.into() };
            let bucket = Pattern { text: format!("s3://b/{glob}"), place };
            let names = |found: Vec<Named>, root: &str| -> Vec<String> {
                found.into_iter().map(|found| found.name.strip_prefix(root).unwrap().to_owned()).collect()
            };
            let on_disk = names(disk.find().await.unwrap(), &format!("{root}/"));
            assert_eq!(names(bucket.find().await.unwrap(), "s3://b/"), on_disk, "{glob}");
        }
    }
}
