//! One object from its first byte to its last.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{Error as StoreError, GetOptions, ObjectStore};

use super::envelope::Announced;
use super::keys;
use super::poison::Poison;
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
    /// It cannot be read, for this reason.
    Poison(Poison, String),
    /// S3 cannot be reached now.
    Failed(Error),
}

impl Object {
    /// Reads the next piece, and hands the object back with it.
    pub async fn read(
        mut self,
        store: Arc<dyn ObjectStore>,
        settings: FramedSettings,
        bytes_max: Option<u64>,
    ) -> (Self, Read) {
        if self.reader.is_none() {
            match self.find(store, bytes_max).await {
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
            Err(e) if e.kind() == ErrorKind::Data => Read::Poison(Poison::Unreadable, e.to_string()),
            Err(e) => Read::Failed(e),
        };
        (self, read)
    }

    /// Looks the object up: its length, and whether it still is the content that was announced.
    async fn find(&self, store: Arc<dyn ObjectStore>, bytes_max: Option<u64>) -> Result<ObjectInput, Read> {
        let (name, key) = (&self.name, &self.announced.key);
        let poison = |poison, text| Err(Read::Poison(poison, text));
        let Some(path) = keys::path_of(key) else {
            let text = format!("{name}: keys with `.` and `..` parts or control characters cannot be read");
            return poison(Poison::Unreadable, text);
        };
        let version = self.announced.version.clone();
        let options = GetOptions { head: true, version: version.clone(), ..GetOptions::default() };
        let meta = match store.get_opts(&path, options).await {
            Ok(answer) => answer.meta,
            Err(e @ StoreError::NotFound { .. }) => {
                return poison(Poison::Missing, format!("{name} does not exist: {e}"));
            }
            Err(e @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. })) => {
                return poison(Poison::Denied, format!("{name} may not be read: {e}"));
            }
            // A bucket of another region answers so; no retry changes it.
            Err(e) if e.to_string().contains("redirect") => {
                return poison(Poison::Region, format!("{name} is in another region than the pipeline: {e}"));
            }
            Err(e) => return Err(Read::Failed(Error::from(e).while_doing(format!("could not find {name}")))),
        };
        let unquoted = |etag: &str| etag.trim_matches('"').to_owned();
        let found = meta.e_tag.as_deref().map(unquoted);
        let overwritten = found.is_some() && self.announced.etag.is_some() && found != self.announced.etag;
        if version.is_none() && overwritten {
            return poison(Poison::Unreadable, format!("{name} was overwritten before it was read"));
        }
        if let Some(max) = bytes_max.filter(|max| meta.size > *max) {
            let text = format!("{name} has {} bytes, which is more than the {max} of `object`", meta.size);
            return poison(Poison::TooLarge, text);
        }
        Ok(ObjectInput { store, path, version, etag: meta.e_tag, size: meta.size })
    }
}

/// Finds the object to begin with: the oldest event, and of one key the first.
pub(super) fn first_of(waiting: &[Object]) -> usize {
    let objects = || waiting.iter().enumerate();
    let oldest = objects().min_by(|(_, a), (_, b)| a.announced.time.cmp(&b.announced.time));
    let Some((_, oldest)) = oldest else { return 0 };
    let same_key =
        |o: &Object| o.announced.key == oldest.announced.key && o.announced.bucket == oldest.announced.bucket;
    let first = objects().filter(|(_, o)| same_key(o)).min_by_key(|(_, o)| o.announced.sequence());
    first.map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use aws_config::{Region, SdkConfig};
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::requests;
    use super::*;
    use crate::framing::Framing;

    /// Reads an object whose store answers so.
    async fn read(key: &str, answer: &'static str) -> Read {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = SdkConfig::builder()
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("t", "t", None, None, "test")))
            .endpoint_url(format!("http://{}", listener.local_addr().unwrap()))
            .build();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut vec![0; 64 * 1024]).await;
                let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let store = Arc::new(requests::bucket(&config, "b", None).unwrap().build().unwrap());
        let announced = Announced {
            bucket: "b".into(),
            key: key.into(),
            version: None,
            etag: Some("e".into()),
            sequencer: None,
            time: String::new(),
            size: None,
        };
        let (name, body) = (announced.partition().into(), Bytes::new());
        let object = Object { name, announced, body, receives: 1, offset: 0, reader: None };
        let settings = FramedSettings { framing: Framing::Json, record_bytes_max: 10, waits: false };
        object.read(store, settings, Some(2)).await.1
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_apart() {
        const OVERWRITTEN: &str =
            "200 OK\r\nContent-Length: 3\r\nETag: \"other\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT";
        const LARGE: &str =
            "200 OK\r\nContent-Length: 3\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT";
        const ELSEWHERE: &str = "301 Moved Permanently\r\nx-amz-bucket-region: eu-central-1\r\nContent-Length: 0";
        for (key, answer, wanted, words) in [
            ("k", "404 Not Found\r\nContent-Length: 0", Poison::Missing, "does not exist"),
            ("k", "403 Forbidden\r\nContent-Length: 0", Poison::Denied, "may not be read"),
            ("k", ELSEWHERE, Poison::Region, "is in another region"),
            ("k", OVERWRITTEN, Poison::Unreadable, "was overwritten"),
            ("a/../k", OVERWRITTEN, Poison::Unreadable, "cannot be read"),
            ("k", LARGE, Poison::TooLarge, "has 3 bytes, which is more than the 2 of `object`"),
        ] {
            let Read::Poison(poison, reason) = read(key, answer).await else { panic!("{answer}") };
            assert!(poison == wanted && reason.contains(words), "{poison:?}: {reason}");
        }
    }
}
