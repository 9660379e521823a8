//! Rows that meet: fresh ones, which are at hand, and kept ones, which are read block by block while they do.

use std::future::ready;

use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::FutureExt;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::mpsc;

use super::numbers::Numbers;
use super::side::without;
use crate::error::Result;
use crate::transform::query::{Query, failed};
use crate::transform::states::{States, Wanted};
use crate::transform::window::{WATERMARK_END, WATERMARK_START};

/// Batches that wait between those who read and who join them: one is at hand while the next is read.
const WAITING_BATCHES_MAX: usize = 1;

/// Rows as they come of a plan that runs.
pub type Met<'a> = BoxStream<'a, Result<RecordBatch>>;

/// A query over two inputs, planned twice: for few rows of the first input, and for few of the second.
pub struct Meetings {
    few_first: Query,
    few_second: Query,
}

/// Rows of an input that have come in epochs before.
pub struct Kept<'a> {
    /// Where they are kept.
    pub rows: &'a mut States,
    /// The numbers of those that are left out.
    pub without: Option<&'a Numbers>,
}

impl Meetings {
    /// Takes the same query twice, the first planned for few rows of its first input, the other for few of its second.
    pub fn new(few_first: Query, few_second: Query) -> Self {
        Self { few_first, few_second }
    }

    /// Gives the query.
    pub fn query(&self) -> &Query {
        &self.few_first
    }

    /// Has the plans made again before the next run.
    pub fn refresh(&mut self) {
        self.few_first.refresh();
        self.few_second.refresh();
    }

    /// Has the fresh rows of the first input meet all of the second.
    pub async fn of_first<'a>(
        &'a mut self,
        fresh: &[RecordBatch],
        kept_second: Kept<'a>,
        fresh_second: &[RecordBatch],
    ) -> Result<Met<'a>> {
        let Some(first) = at_hand(fresh) else { return Ok(stream::empty().boxed()) };
        let (second, reading) = kept_second.read(fresh_second.to_vec());
        let rows = self.few_first.run(vec![first, second]).await?;
        Ok(beside(reading, to_the_end(&self.few_first, rows)))
    }

    /// Has the kept rows of the first input meet the fresh ones of the second.
    pub async fn of_second<'a>(&'a mut self, kept: Kept<'a>, fresh_second: &[RecordBatch]) -> Result<Met<'a>> {
        let Some(second) = at_hand(fresh_second) else { return Ok(stream::empty().boxed()) };
        let (first, reading) = kept.read(Vec::new());
        let rows = self.few_second.run(vec![first, second]).await?;
        Ok(beside(reading, to_the_end(&self.few_second, rows)))
    }
}

impl<'a> Kept<'a> {
    /// Gives all rows of an input.
    pub fn all(rows: &'a mut States) -> Self {
        Self { rows, without: None }
    }

    /// Gives the rows and some more as a stream, and what reads them for it, which must run beside.
    fn read(self, more: Vec<RecordBatch>) -> (SendableRecordBatchStream, impl Future<Output = Result<()>> + Send + 'a) {
        let (sender, receiver) = mpsc::channel(WAITING_BATCHES_MAX);
        let schema = self.rows.schema().clone();
        let received = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<_>| {
            receiver.recv().await.map(|rows| (Ok(rows), receiver))
        });
        let reading = async move {
            let mut blocks = self.rows.blocks(Wanted::span(WATERMARK_START, WATERMARK_END))?;
            while let Some(rows) = blocks.next_block()? {
                let rows = self.without.map_or(Ok(rows.clone()), |numbers| without(&rows, numbers))?;
                // A plan may end before its input does.
                if rows.num_rows() > 0 && sender.send(rows).await.is_err() {
                    return Ok(());
                }
            }
            for rows in more {
                if sender.send(rows).await.is_err() {
                    return Ok(());
                }
            }
            Ok(())
        };
        (Box::pin(RecordBatchStreamAdapter::new(schema, received)), reading)
    }
}

/// Gives rows as a stream; nothing if there are none.
fn at_hand(rows: &[RecordBatch]) -> Option<SendableRecordBatchStream> {
    let rows = rows.to_vec();
    let schema = rows.first()?.schema();
    Some(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(rows.into_iter().map(Ok)))))
}

/// Gives the rows of a query, which lets go of its inputs when they have ended: whoever feeds it must not wait for it.
pub fn to_the_end<'a>(
    query: &'a Query,
    rows: SendableRecordBatchStream,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'a {
    stream::unfold(rows, move |mut rows| async move {
        match rows.next().await {
            Some(batch) => Some((batch.map_err(failed), rows)),
            None => {
                query.disconnect();
                None
            }
        }
    })
}

/// Gives the rows of a plan while what feeds it runs beside; its error, if it fails, is one of theirs.
pub fn beside<'a>(
    feeding: impl Future<Output = Result<()>> + Send + 'a,
    rows: impl Stream<Item = Result<RecordBatch>> + Send + 'a,
) -> Met<'a> {
    let failures = feeding.into_stream().filter_map(|fed| ready(fed.err().map(Err)));
    stream::select(failures, rows).boxed()
}
