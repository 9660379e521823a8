//! One object from its first byte to its last.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{Error as StoreError, GetOptions, ObjectStore};

use super::envelope::Announced;
use super::keys;
use crate::error::{Error, ErrorKind, Result};
use crate::source::framed::{Framed, FramedSettings, Input, ObjectInput, Step};

/// An object that waits or is being read.
pub struct Object {
    /// The partition it is.
    pub name: Arc<str>,
    /// What the message told of it.
    pub announced: Announced,
    /// The message's content, for the quarantine.
    pub body: Bytes,
    /// How often the message was received.
    pub receives: u32,
    /// Where to begin.
    pub offset: u64,
    /// Open once the object has been found.
    pub reader: Option<Framed>,
}

/// What came of reading on in an object.
pub enum Read {
    /// The next piece, or the end.
    Step(Step),
    /// There is no such object, or it may not be read; that may pass.
    Missing(String),
    /// It can never be read.
    Unreadable(String),
    /// S3 cannot be reached now.
    Failed(Error),
}

impl Object {
    /// Reads the next piece, and hands the object back with it.
    pub async fn read(mut self, store: Arc<dyn ObjectStore>, settings: FramedSettings) -> (Self, Read) {
        if self.reader.is_none() {
            match self.find(store).await {
                Ok(input) => {
                    let name = Arc::clone(&self.name);
                    self.reader = Some(Framed::new(name, Input::Object(input), settings, self.offset));
                }
                Err(read) => return (self, read),
            }
        }
        let step = match &mut self.reader {
            Some(reader) => reader.next().await,
            None => Ok(Step::End),
        };
        let read = match step {
            Ok(step) => Read::Step(step),
            Err(e) if e.kind() == ErrorKind::Data => Read::Unreadable(e.to_string()),
            Err(e) => Read::Failed(e),
        };
        (self, read)
    }

    /// Looks the object up: its length, and whether it still is the content that was announced.
    async fn find(&self, store: Arc<dyn ObjectStore>) -> Result<ObjectInput, Read> {
        let (name, key) = (&self.name, &self.announced.key);
        let Some(path) = keys::path_of(key) else {
            let text = format!("{name}: keys with `.` and `..` parts or control characters cannot be read");
            return Err(Read::Unreadable(text));
        };
        let version = self.announced.version.clone();
        let options = GetOptions { head: true, version: version.clone(), ..GetOptions::default() };
        let meta = match store.get_opts(&path, options).await {
            Ok(answer) => answer.meta,
            Err(e @ StoreError::NotFound { .. }) => return Err(Read::Missing(format!("{name} does not exist: {e}"))),
            Err(e @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. })) => {
                return Err(Read::Missing(format!("{name} may not be read: {e}")));
            }
            // A bucket of another region answers so; no retry changes it.
            Err(e) if e.to_string().contains("redirect") => {
                return Err(Read::Missing(format!("{name} is in another region than the pipeline: {e}")));
            }
            Err(e) => return Err(Read::Failed(Error::from(e).while_doing(format!("could not find {name}")))),
        };
        let unquoted = |etag: &str| etag.trim_matches('"').to_owned();
        let found = meta.e_tag.as_deref().map(unquoted);
        let overwritten = found.is_some() && self.announced.etag.is_some() && found != self.announced.etag;
        if version.is_none() && overwritten {
            return Err(Read::Unreadable(format!("{name} was overwritten before it was read")));
        }
        Ok(ObjectInput { store, path, version, etag: meta.e_tag, size: meta.size })
    }
}
