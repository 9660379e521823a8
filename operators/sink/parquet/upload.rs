//! Multipart uploads that are sent now and completed at the commit.
//!
//! Each upload's id is noted in the state store before its first part is sent,
//! so that a later process can abort what no commit record names.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fail;
use crate::store::Store;

/// Requests at once: enough to fill a gigabit with parts of 8 MiB, and few
/// enough that S3 does not ask for fewer.
const REQUESTS_MAX: usize = 16;

/// What is noted about an upload, so that it can be aborted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// Full path of the object.
    pub(super) path: String,
    pub(super) upload: MultipartId,
}

/// An upload whose parts are all sent.
pub(super) struct Uploaded {
    pub(super) id: MultipartId,
    pub(super) parts: Vec<String>,
}

/// The uploads of the open epoch.
pub(super) struct Uploads {
    multipart: Arc<dyn MultipartStore>,
    notes: Store,
    uploads: BTreeMap<u64, Upload>,
    /// Requests that may be started.
    waiting: VecDeque<Request>,
    /// Requests under way. Only [`advance`](Self::advance) polls them; nobody else owns them.
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Bytes of parts that are not yet sent.
    unsent_bytes: usize,
}

struct Upload {
    path: Path,
    note: String,
    id: Option<MultipartId>,
    /// Parts that wait for the upload's id.
    early: Vec<Request>,
    sent: Vec<Option<PartId>>,
}

enum Request {
    Begin(u64),
    Part { file: u64, index: usize, bytes: Bytes },
}

struct Answer {
    request: Request,
    result: Result<Reply>,
}

enum Reply {
    Begun(MultipartId),
    Sent(PartId),
}

impl Uploads {
    pub(super) fn new(multipart: Arc<dyn MultipartStore>, notes: Store) -> Self {
        Self {
            multipart,
            notes,
            uploads: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            unsent_bytes: 0,
        }
    }

    /// Opens the upload of a file, noted as `note`.
    pub(super) fn begin(&mut self, file: u64, path: Path, note: String) {
        let upload = Upload { path, note, id: None, early: Vec::new(), sent: Vec::new() };
        self.uploads.insert(file, upload);
        self.waiting.push_back(Request::Begin(file));
    }

    /// Adds the next part of a file.
    pub(super) fn add(&mut self, file: u64, bytes: Bytes) {
        let Some(upload) = self.uploads.get_mut(&file) else { return };
        self.unsent_bytes += bytes.len();
        let request = Request::Part { file, index: upload.sent.len(), bytes };
        upload.sent.push(None);
        if upload.id.is_some() {
            self.waiting.push_back(request);
        } else {
            upload.early.push(request);
        }
    }

    /// Moves the requests on, and waits until at most `unsent_bytes_max` are left.
    ///
    /// After an error the failed request waits again: a second call tries it once more.
    /// Cancel-safe: requests under way stay in `self`.
    pub(super) async fn advance(&mut self, unsent_bytes_max: usize) -> Result<()> {
        loop {
            self.start();
            let answer = if self.unsent_bytes > unsent_bytes_max {
                self.running.next().await
            } else {
                self.running.next().now_or_never().flatten()
            };
            match answer {
                Some(answer) => self.take(answer)?,
                None => return Ok(()),
            }
        }
    }

    /// Gives the bytes of parts that are not yet sent.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Gives a finished file's upload; every part has been sent.
    pub(super) fn uploaded(&self, file: u64) -> Result<Uploaded> {
        let whole = self.uploads.get(&file).and_then(|upload| {
            let parts = upload.sent.iter().map(|part| part.as_ref().map(|p| p.content_id.clone()));
            Some(Uploaded { id: upload.id.clone()?, parts: parts.collect::<Option<_>>()? })
        });
        whole.ok_or_else(|| {
            Error::internal(format!("the upload of file {file} was prepared before all parts were sent"))
        })
    }

    /// Forgets the uploads of the epoch that has been prepared.
    pub(super) fn reset(&mut self) {
        self.uploads.clear();
    }

    fn start(&mut self) {
        while self.running.len() < REQUESTS_MAX {
            let Some(request) = self.waiting.pop_front() else { return };
            let file = match &request {
                Request::Begin(file) | Request::Part { file, .. } => file,
            };
            if let Some(upload) = self.uploads.get(file) {
                let running = run(self.multipart.clone(), self.notes.clone(), upload, request);
                self.running.push(running);
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Result<()> {
        let reply = match answer.result {
            Ok(reply) => reply,
            Err(error) => {
                self.waiting.push_front(answer.request);
                return Err(error);
            }
        };
        match (answer.request, reply) {
            (Request::Begin(file), Reply::Begun(id)) => {
                if let Some(upload) = self.uploads.get_mut(&file) {
                    upload.id = Some(id);
                    self.waiting.extend(upload.early.drain(..));
                }
            }
            (Request::Part { file, index, bytes }, Reply::Sent(part)) => {
                self.unsent_bytes -= bytes.len();
                if let Some(slot) = self.uploads.get_mut(&file).and_then(|u| u.sent.get_mut(index)) {
                    *slot = Some(part);
                }
            }
            _ => return Err(Error::internal("an upload answered a request that was not made")),
        }
        Ok(())
    }
}

fn run(
    multipart: Arc<dyn MultipartStore>,
    notes: Store,
    upload: &Upload,
    request: Request,
) -> BoxFuture<'static, Answer> {
    let path = upload.path.clone();
    match &request {
        Request::Begin(_) => {
            let name = upload.note.clone();
            async move {
                let result = begin(multipart.as_ref(), &notes, path, &name).await.map(Reply::Begun);
                Answer { request, result }
            }
            .boxed()
        }
        Request::Part { index, bytes, .. } => {
            let (index, payload) = (*index, PutPayload::from_bytes(bytes.clone()));
            let id = upload.id.clone().unwrap_or_default();
            async move {
                let result = send(multipart.as_ref(), &path, &id, index, payload).await.map(Reply::Sent);
                Answer { request, result }
            }
            .boxed()
        }
    }
}

/// Sends a part.
async fn send(
    multipart: &dyn MultipartStore,
    path: &Path,
    id: &MultipartId,
    index: usize,
    payload: PutPayload,
) -> Result<PartId> {
    fail::point("before_part")?;
    let part = multipart.put_part(path, id, index, payload).await.map_err(|e| part_failed(path, index, e))?;
    fail::point("after_part")?;
    Ok(part)
}

/// Creates an upload and notes it.
async fn begin(multipart: &dyn MultipartStore, notes: &Store, path: Path, name: &str) -> Result<MultipartId> {
    let id = multipart
        .create_multipart(&path)
        .await
        .map_err(|e| Error::from(e).while_doing(format!("could not start the upload of {path}")))?;
    let noted = take_note(notes, name, &Note { path: path.to_string(), upload: id.clone() }).await;
    if let Err(error) = noted {
        // Without a note nobody would find it later. The error that counts is that of the note.
        let _ = multipart.abort_multipart(&path, &id).await;
        return Err(error);
    }
    Ok(id)
}

async fn take_note(notes: &Store, name: &str, note: &Note) -> Result<()> {
    fail::point("before_upload_note")?;
    if fail::mutated("no_upload_note") {
        return Ok(());
    }
    let json = serde_json::to_vec(note);
    let json = json.map_err(|e| Error::internal("could not write the note of an upload").because(e))?;
    notes.put(name, json.into()).await?;
    fail::point("after_upload_note")
}

fn part_failed(path: &Path, index: usize, error: object_store::Error) -> Error {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return Error::fenced(format!(
            "the upload of {path} has been aborted by someone else: a newer process of this pipeline sweeps what \
             older ones have left; let only one run"
        ))
        .because(error);
    }
    Error::from(error).while_doing(format!("could not upload part {} of {path}", index + 1))
}
