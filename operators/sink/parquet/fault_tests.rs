//! The Parquet sink on an object store that fails now and then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload, PutResult};

use super::*;
use crate::ErrorKind;
use crate::store::Backend;
use crate::testing::sink::{rows, schema};

/// What goes wrong next, once.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// No upload is started.
    Create,
    /// A part does not arrive.
    Part,
    /// The upload is gone when a part arrives.
    Aborted,
    /// The upload is completed, but the answer is lost.
    CompleteReply,
    /// The upload is not completed.
    Complete,
}

/// A store whose calls fail as planned.
#[derive(Debug)]
struct Flaky {
    inner: Arc<InMemory>,
    /// Never held across an await.
    faults: Mutex<VecDeque<Fault>>,
}

impl Flaky {
    fn fails(&self, fault: Fault) -> object_store::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        if faults.front() != Some(&fault) {
            return Ok(());
        }
        faults.pop_front();
        let source = format!("{fault:?}").into();
        Err(match fault {
            Fault::Aborted => object_store::Error::NotFound { path: "upload".into(), source },
            _ => object_store::Error::Generic { store: "flaky", source },
        })
    }
}

#[async_trait]
impl MultipartStore for Flaky {
    async fn create_multipart(&self, path: &Path) -> object_store::Result<MultipartId> {
        self.fails(Fault::Create)?;
        self.inner.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part: usize,
        data: PutPayload,
    ) -> object_store::Result<PartId> {
        self.fails(Fault::Part)?;
        self.fails(Fault::Aborted)?;
        self.inner.put_part(path, id, part, data).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        self.fails(Fault::Complete)?;
        let done = self.inner.complete_multipart(path, id, parts).await?;
        self.fails(Fault::CompleteReply)?;
        Ok(done)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> object_store::Result<()> {
        self.inner.abort_multipart(path, id).await
    }
}

fn lake(faults: impl IntoIterator<Item = Fault>) -> Store {
    let inner = Arc::new(InMemory::new());
    let multipart = Arc::new(Flaky { inner: inner.clone(), faults: Mutex::new(faults.into_iter().collect()) });
    Store::with_backend("memory://", Backend::Object { objects: inner, multipart, prefix: Path::ROOT })
}

fn open(lake: &Store) -> ParquetSink {
    let settings = ParquetSettings {
        pipeline: "p".into(),
        tier: "silver".into(),
        table: "flights".into(),
        schema: schema(),
        partition_by: vec![PartitionBy::Column("origin".into())],
        compression: ParquetCompression::Snappy,
        layout: ParquetLayout::default(),
        open_partitions_max: 1,
        buffer_bytes: 1 << 20,
    };
    ParquetSink::new(settings, lake.below("flights"), lake.below("_staging"), lake.below("_notes")).unwrap()
}

const ID: EpochId = EpochId { generation: 1, epoch: 1 };

/// Every call is made again while it fails for a time; gives how often one did.
async fn land(sink: &mut ParquetSink) -> usize {
    let mut failures = 0;
    for start in 0..4 {
        while let Err(error) = sink.write(ID, &rows(start..start + 1)).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            failures += 1;
        }
    }
    let handle = loop {
        match sink.prepare(ID).await {
            Ok(prepared) => break prepared.handle.unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        failures += 1;
    };
    while let Err(error) = sink.committer().commit(ID, &handle).await {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        failures += 1;
    }
    failures
}

#[tokio::test]
async fn calls_that_failed_for_a_time_are_made_again() {
    use Fault::{Complete, CompleteReply, Create, Part};
    let lake = lake([Create, Part, Create, Create, Part, Part, Complete, Complete, CompleteReply]);
    let failures = land(&mut open(&lake)).await;
    // A lost reply is no failure: the object is there.
    assert_eq!(failures, 8);
    let mut read = 0;
    for entry in lake.list("flights").await.unwrap() {
        let bytes = lake.get(&entry.name).await.unwrap().unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes, 1024).unwrap();
        read += reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>();
    }
    assert_eq!(read, 4, "no row is lost and none is doubled");
    assert!(lake.list("_notes").await.unwrap().is_empty());
}

#[tokio::test]
async fn an_upload_aborted_by_a_newer_process_fences_this_one() {
    let lake = lake([Fault::Aborted]);
    let mut sink = open(&lake);
    sink.write(ID, &rows(0..1)).await.unwrap();
    let error = sink.prepare(ID).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
}
