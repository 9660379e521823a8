//! Queries that take each row by itself, filters and projections: batches are computed on several cores at once, and come
//! out in the order in which they came.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{BatchCoalescer, filter_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::leaf::LeafExec;
use crate::cores;

/// The fewest rows of a batch for which a task of its own pays.
const ROWS_MIN: usize = 1024;

/// What a filter has left of batches is put together up to so many rows, as elsewhere in the engine.
const TOGETHER_ROWS: usize = 8192;

/// What happens to each batch.
#[derive(Clone)]
pub(super) struct ByRow {
    steps: Arc<[Step]>,
    schema: SchemaRef,
}

enum Step {
    /// These columns are left.
    Columns(Vec<usize>),
    /// These rows are left.
    Filter(Arc<dyn PhysicalExpr>),
    /// These columns are computed.
    Compute(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
}

impl ByRow {
    /// Takes a plan apart, if it takes each row of one leaf by itself.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let mut steps = Vec::new();
        collect(plan, &mut steps)?;
        Some(Self { steps: steps.into(), schema: plan.schema() })
    }

    /// Computes the rows that come out.
    pub(super) fn over(self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let at_once = cores::of_a_stage();
        let (schema, filters) = (self.schema.clone(), self.steps.iter().any(|step| matches!(step, Step::Filter(_))));
        let computed = rows.map(move |batch| {
            let this = self.clone();
            match batch {
                Ok(batch) if batch.num_rows() >= ROWS_MIN && at_once > 1 => {
                    let task = SpawnedTask::spawn(async move { this.compute(batch) });
                    let done =
                        task.join_unwind().map(|done| done.map_err(|e| DataFusionError::External(Box::new(e)))?);
                    done.left_future()
                }
                batch => std::future::ready(batch.and_then(|batch| this.compute(batch))).right_future(),
            }
        });
        let computed = computed.buffered(at_once);
        if filters {
            Box::pin(RecordBatchStreamAdapter::new(schema.clone(), together(schema, computed.boxed())))
        } else {
            Box::pin(RecordBatchStreamAdapter::new(schema, computed))
        }
    }

    fn compute(&self, mut batch: RecordBatch) -> Result<RecordBatch> {
        for step in self.steps.iter() {
            batch = match step {
                Step::Columns(columns) => batch.project(columns)?,
                Step::Filter(condition) => {
                    let kept = condition.evaluate(&batch)?.into_array(batch.num_rows())?;
                    filter_record_batch(&batch, kept.as_boolean())?
                }
                Step::Compute(columns, schema) => {
                    let value = |column: &Arc<dyn PhysicalExpr>| column.evaluate(&batch)?.into_array(batch.num_rows());
                    let values = columns.iter().map(value).collect::<Result<Vec<ArrayRef>>>()?;
                    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                    RecordBatch::try_new_with_options(schema.clone(), values, &rows)?
                }
            };
        }
        Ok(batch)
    }
}

/// Collects the steps of a plan, the first one first; nothing if it has others.
fn collect(plan: &Arc<dyn ExecutionPlan>, steps: &mut Vec<Step>) -> Option<()> {
    let node = plan.as_ref() as &dyn std::any::Any;
    if let Some(leaf) = node.downcast_ref::<LeafExec>() {
        steps.extend(leaf.columns().map(|columns| Step::Columns(columns.to_vec())));
    } else if let Some(filter) = node.downcast_ref::<FilterExec>().filter(|filter| filter.fetch().is_none()) {
        collect(filter.input(), steps)?;
        steps.push(Step::Filter(filter.predicate().clone()));
        steps.extend(filter.projection().as_ref().map(|columns| Step::Columns(columns.to_vec())));
    } else {
        let projection = node.downcast_ref::<ProjectionExec>()?;
        collect(projection.input(), steps)?;
        let columns = projection.expr().iter().map(|column| column.expr.clone()).collect();
        steps.push(Step::Compute(columns, projection.schema()));
    }
    Some(())
}

/// Puts small batches together; the last ones come at the end.
fn together(
    schema: SchemaRef,
    rows: stream::BoxStream<'static, Result<RecordBatch>>,
) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    let coalescer = BatchCoalescer::new(schema, TOGETHER_ROWS).with_biggest_coalesce_batch_size(Some(ROWS_MIN));
    stream::try_unfold((rows, coalescer, false), async |(mut rows, mut coalescer, mut ended)| {
        loop {
            if let Some(batch) = coalescer.next_completed_batch() {
                return Ok(Some((batch, (rows, coalescer, ended))));
            }
            if ended {
                return Ok(None);
            }
            match rows.try_next().await? {
                Some(batch) => coalescer.push_batch(batch)?,
                None => {
                    coalescer.finish_buffered_batch()?;
                    ended = true;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::clock::SystemClock;
    use crate::transform::leaf::{Leaf, StreamTable};
    use crate::transform::query::Query;

    async fn plan(sql: &str) -> Query {
        let leaf = Leaf::new(Arc::new(Schema::new(vec![
            Field::new("unused", DataType::Int64, true),
            Field::new("n", DataType::Int64, true),
        ])));
        let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        session.register_table("numbers", Arc::new(StreamTable(leaf.clone()))).unwrap();
        let logical = session.sql(sql).await.unwrap().into_optimized_plan().unwrap();
        Query::new(session.state(), logical, vec![leaf], Arc::new(SystemClock)).await.unwrap()
    }

    /// Runs a query over batches of so many numbers each, which follow one another.
    async fn run(query: &mut Query, lens: &[i64]) -> Vec<RecordBatch> {
        let running = query.start().await.unwrap();
        let feed = async move {
            let mut from = 0;
            for len in lens {
                let numbers: ArrayRef = Arc::new((from..from + len).collect::<Int64Array>());
                from += len;
                let batch =
                    RecordBatch::try_from_iter_with_nullable([("unused", numbers.clone(), true), ("n", numbers, true)]);
                running.inputs[0].send(batch.unwrap()).await;
            }
            drop(running.inputs);
        };
        let rows = running.rows.into_iter().next().unwrap().try_collect::<Vec<_>>();
        futures::join!(feed, rows).1.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rows_keep_their_order_whatever_their_batches() {
        let mut query = plan("SELECT n * 2 AS twice FROM numbers WHERE n % 3 = 0").await;
        assert!(ByRow::of(query.physical()).is_some());
        for _ in 0..20 {
            let lens = [5000, 1, 0, 8192, 700, 3000, 2, 8192, 8192, 1024, 9];
            let found = run(&mut query, &lens).await;
            let found: Vec<i64> =
                found.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values()).copied().collect();
            let wanted: Vec<i64> = (0..lens.iter().sum::<i64>()).filter(|n| n % 3 == 0).map(|n| n * 2).collect();
            assert_eq!(found, wanted);
        }
    }

    #[tokio::test]
    async fn few_rows_of_many_batches_come_together() {
        let mut query = plan("SELECT n FROM numbers WHERE n % 100 = 0").await;
        assert!(ByRow::of(query.physical()).is_some());
        let found = run(&mut query, &[2000; 50]).await;
        assert_eq!(found.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1000]);
    }

    #[tokio::test]
    async fn what_looks_at_more_than_a_row_is_left_to_datafusion() {
        for sql in [
            "SELECT n FROM numbers ORDER BY n",
            "SELECT n FROM numbers WHERE n > 1 LIMIT 5",
            "SELECT sum(n) FROM numbers",
        ] {
            assert!(ByRow::of(plan(sql).await.physical()).is_none(), "{sql}");
        }
    }
}
