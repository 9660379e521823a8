//! The phases of an aggregate that outlives epochs.
//!
//! The plan of a query is split at its aggregate. The lower part runs in mode `Partial` in each epoch; states merge in
//! mode `PartialReduce`; mode `Final` and the rest of the plan run on the states that are given out. Any aggregate of
//! DataFusion works.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::{ExecutionPlan, collect, execute_stream};

use super::lanes::in_lanes;
use super::leaf::LeafExec;
use super::query::{Query, Running, failed};
use super::rows::coalesced;
use super::sealed::Sealed;
use super::states::States;
use crate::error::{Error, Result};

/// Gives the columns of a query's states.
pub fn state_schema(query: &Query) -> Result<SchemaRef> {
    Ok(partial(find(query.physical())?)?.schema())
}

/// Starts an epoch of a query; what comes out are states.
pub async fn start(query: &mut Query) -> Result<Running> {
    query.renew().await?;
    let (lower, lanes) = in_lanes(partial(find(query.physical())?)?)?;
    let lower = with_subqueries(query.physical(), lower);
    let inputs = query.connect(lanes);
    let rows = execute_stream(lower, query.session().task_ctx()).map_err(failed)?;
    Ok(Running { inputs, rows: vec![rows] })
}

/// Merges states, so that each key has one.
async fn reduce(query: &Query, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let aggregate = find(query.physical())?;
    let reduce = over_states(aggregate, AggregateMode::PartialReduce, states)?;
    let merged = collect(reduce, query.session().task_ctx()).await.map_err(failed)?;
    coalesced(merged)
}

/// Closes an epoch: merges what should be, and tells what has to be durable.
pub async fn seal(query: &Query, states: &mut States, epoch: u64) -> Result<Sealed> {
    let parts = states.take_mergeable()?;
    put_back(query, states, parts).await?;
    states.seal(epoch)
}

/// Keeps states that were taken out, merged.
pub async fn put_back(query: &Query, states: &mut States, taken: Vec<RecordBatch>) -> Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    reduce(query, taken).await?.iter().try_for_each(|merged| states.add(merged))
}

/// Gives the query's rows from states.
pub fn finish(query: &Query, states: Vec<RecordBatch>) -> Result<SendableRecordBatchStream> {
    let upper = upper(query.physical(), states)?;
    execute_stream(upper, query.session().task_ctx()).map_err(failed)
}

/// Finds the topmost aggregate over a stream.
pub fn find(plan: &Arc<dyn ExecutionPlan>) -> Result<&AggregateExec> {
    let mut node = plan;
    loop {
        if let Some(aggregate) = as_aggregate(node) {
            return Ok(aggregate);
        }
        let below = node.children().into_iter().find(|child| over_stream(child));
        node = below.ok_or_else(|| Error::internal("the plan has no aggregate over a stream"))?;
    }
}

fn as_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    let aggregate = (plan.as_ref() as &dyn std::any::Any).downcast_ref::<AggregateExec>();
    aggregate.filter(|_| over_stream(plan))
}

/// Tells whether a plan reads a stage's channel.
fn over_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|node| Ok((node.as_ref() as &dyn std::any::Any).is::<LeafExec>())).unwrap_or(false)
}

/// Gives the aggregate that reads raw rows: DataFusion plans one node or two.
fn first_phase(aggregate: &AggregateExec) -> &AggregateExec {
    let two_phases = matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
    let below = two_phases.then(|| find(aggregate.input()).ok()).flatten();
    below.unwrap_or(aggregate)
}

/// Makes the phase that reads rows and gives states.
pub(super) fn partial(aggregate: &AggregateExec) -> Result<AggregateExec> {
    let raw = first_phase(aggregate);
    AggregateExec::try_new(
        AggregateMode::Partial,
        raw.group_expr().clone(),
        raw.aggr_expr().to_vec(),
        raw.filter_expr().to_vec(),
        raw.input().clone(),
        raw.input_schema(),
    )
    .map_err(failed)
}

/// Makes a phase of the aggregate that reads states instead of rows.
fn over_states(
    aggregate: &AggregateExec,
    mode: AggregateMode,
    states: Vec<RecordBatch>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let raw = first_phase(aggregate);
    let schema = partial(aggregate)?.schema();
    let input = MemorySourceConfig::try_new_exec(&[states], schema, None).map_err(failed)?;
    let no_filters = vec![None; raw.aggr_expr().len()];
    let phase = AggregateExec::try_new(
        mode,
        raw.group_expr().as_final(),
        raw.aggr_expr().to_vec(),
        no_filters,
        input,
        raw.input_schema(),
    );
    Ok(Arc::new(phase.map_err(failed)?))
}

/// Makes the plan that turns states into the query's rows.
fn upper(plan: &Arc<dyn ExecutionPlan>, states: Vec<RecordBatch>) -> Result<Arc<dyn ExecutionPlan>> {
    let fed = over_states(find(plan)?, AggregateMode::Final, states)?;
    let upper = plan.clone().transform_down(|node| {
        if as_aggregate(&node).is_some() {
            return Ok(Transformed::new(fed.clone(), true, TreeNodeRecursion::Stop));
        }
        Ok(Transformed::no(node))
    });
    // Subqueries have given their values to the lower part: here they are computed once more.
    reset_plan_states(upper.map_err(failed)?.data).map_err(failed)
}

/// Puts the subqueries that stand above the aggregate of a plan above its lower part too, which may use their values.
fn with_subqueries(plan: &Arc<dyn ExecutionPlan>, lower: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if as_aggregate(plan).is_some() {
        return lower;
    }
    let below = plan.children().into_iter().find(|child| over_stream(child));
    let lower = below.map_or(lower.clone(), |child| with_subqueries(child, lower));
    match (plan.as_ref() as &dyn std::any::Any).downcast_ref::<ScalarSubqueryExec>() {
        Some(above) => {
            let (subqueries, results) = (above.subqueries().to_vec(), above.results().clone());
            Arc::new(ScalarSubqueryExec::new(lower, subqueries, results))
        }
        None => lower,
    }
}
