//! Lanes: the first phase of an aggregate on several cores at once.
//!
//! States merge, so it does not matter which rows made which state: batches are dealt out to the lanes in turn, each lane
//! filters, computes and adds up on a thread of its own, and the states of all of them are kept.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::functions_aggregate::average::avg_udaf;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

use super::leaf::LeafExec;
use super::query::failed;
use crate::cores;
use crate::error::Result;

/// Makes the first phase of an aggregate run in lanes, and gives their number.
///
/// One lane is left where more would change the result or where rows do not pass by one by one: a function that looks at
/// the order of rows, a join, a subquery below the aggregate.
pub(super) fn in_lanes(first_phase: AggregateExec) -> Result<(Arc<dyn ExecutionPlan>, usize)> {
    let lanes = cores::of_a_stage();
    if lanes == 1 || !works_by_row(first_phase.input()) || !first_phase.aggr_expr().iter().all(|f| is_orderless(f)) {
        return Ok((Arc::new(first_phase), 1));
    }
    let plan: Arc<dyn ExecutionPlan> = Arc::new(first_phase);
    let parted = plan.transform_up(|node| {
        let leaf = (node.as_ref() as &dyn std::any::Any).downcast_ref::<LeafExec>();
        Ok(match leaf.map(|leaf| Arc::new(leaf.in_lanes(lanes))) {
            Some(leaf) => Transformed::yes(leaf as _),
            None => Transformed::no(node),
        })
    });
    Ok((Arc::new(CoalescePartitionsExec::new(parted.map_err(failed)?.data)), lanes))
}

/// Tells whether a plan takes each row by itself from one leaf.
fn works_by_row(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let node = plan.as_ref() as &dyn std::any::Any;
    let by_row = node.is::<FilterExec>() || node.is::<ProjectionExec>();
    node.is::<LeafExec>() || by_row && plan.children().into_iter().all(works_by_row)
}

/// Tells whether a function gives the same result whatever the order of rows is. DataFusion's own mean and count do not
/// say so.
fn is_orderless(function: &AggregateFunctionExpr) -> bool {
    let known = [avg_udaf(), count_udaf()];
    function.fun().order_sensitivity().is_insensitive() || known.iter().any(|known| **known == *function.fun())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::clock::SystemClock;
    use crate::transform::leaf::{Leaf, StreamTable};
    use crate::transform::phases::{find, partial};
    use crate::transform::query::Query;

    /// Gives the number of lanes of a query.
    async fn lanes_of(sql: &str) -> usize {
        let leaf = Leaf::new(Arc::new(Schema::new(vec![
            Field::new("site", DataType::Utf8View, true),
            Field::new("n", DataType::Int64, true),
        ])));
        let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        session.register_table("numbers", Arc::new(StreamTable(leaf.clone()))).unwrap();
        let logical = session.sql(sql).await.unwrap().into_optimized_plan().unwrap();
        let query = Query::new(session.state(), logical, vec![leaf], Arc::new(SystemClock)).await.unwrap();
        in_lanes(partial(find(query.physical()).unwrap()).unwrap()).unwrap().1
    }

    #[tokio::test]
    async fn what_asks_for_the_order_of_rows_has_one_lane() {
        let functions = "count(*), sum(n), avg(n), min(n), max(n)";
        let lanes = lanes_of(&format!("SELECT site, {functions} FROM numbers WHERE n > 5 GROUP BY site")).await;
        assert_eq!(lanes, cores::of_a_stage());
        for function in ["first_value(n)", "array_agg(n)", "string_agg(site, ',')", "last_value(n ORDER BY site)"] {
            let lanes = lanes_of(&format!("SELECT site, sum(n), {function} FROM numbers GROUP BY site")).await;
            assert_eq!(lanes, 1, "{function}");
        }
    }
}
