//! A table's query: planned once, run in every epoch as a finite stream.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::DateTime;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};

use super::leaf::{Leaf, LeafExec, LeafSender};
use crate::clock::SharedClock;
use crate::error::{Error, Result};

/// An epoch of a query that is running.
pub struct Running {
    /// Where the rows of each input go, in the order of the query's inputs.
    pub inputs: Vec<LeafSender>,
    /// The rows that come out; of a join, those of each side.
    pub rows: Vec<SendableRecordBatchStream>,
}

/// A query over the channels of a stage.
pub struct Query {
    state: SessionState,
    clock: SharedClock,
    logical: LogicalPlan,
    physical: Arc<dyn ExecutionPlan>,
    leaves: Vec<Arc<Leaf>>,
    scans: Vec<usize>,
    tells_time: bool,
    stale: bool,
}

impl Query {
    /// Plans a query; `leaves` are its inputs, as they were registered with the session.
    pub async fn new(
        mut state: SessionState,
        logical: LogicalPlan,
        leaves: Vec<Arc<Leaf>>,
        clock: SharedClock,
    ) -> Result<Self> {
        let tells_time = tells_time(&logical);
        set_time(&mut state, &clock);
        let physical = plan(&state, &logical).await?;
        let scans = count_scans(&physical, &leaves);
        Ok(Self { state, clock, logical, physical, leaves, scans, tells_time, stale: false })
    }

    /// Gives the columns of the rows that come out.
    pub fn schema(&self) -> SchemaRef {
        self.physical.schema()
    }

    /// Gives the plan as DataFusion runs it.
    pub fn physical(&self) -> &Arc<dyn ExecutionPlan> {
        &self.physical
    }

    /// Gives the session that the query runs in.
    pub fn session(&self) -> &SessionState {
        &self.state
    }

    /// Has the plan made again before the next epoch: a reference table has changed.
    pub fn refresh(&mut self) {
        self.stale = true;
    }

    /// Makes the plan ready for one more run. Tells whether it has been made anew.
    ///
    /// `now()` and its like are folded into the plan, so a query that uses them is planned in every epoch.
    pub async fn renew(&mut self) -> Result<bool> {
        let anew = self.stale || self.tells_time;
        if anew {
            set_time(&mut self.state, &self.clock);
            self.physical = plan(&self.state, &self.logical).await?;
            self.scans = count_scans(&self.physical, &self.leaves);
        } else {
            self.physical = reset_plan_states(self.physical.clone()).map_err(failed)?;
        }
        self.stale = false;
        Ok(anew)
    }

    /// Starts an epoch.
    pub async fn start(&mut self) -> Result<Running> {
        self.renew().await?;
        let inputs = self.connect(1);
        let rows = execute_stream(self.physical.clone(), self.state.task_ctx()).map_err(failed)?;
        Ok(Running { inputs, rows: vec![rows] })
    }

    /// Runs once over rows that are at hand, in the order of the query's inputs. Each is scanned at most once.
    pub async fn run(&mut self, inputs: Vec<SendableRecordBatchStream>) -> Result<SendableRecordBatchStream> {
        self.renew().await?;
        self.leaves.iter().zip(inputs).for_each(|(leaf, rows)| leaf.open(rows));
        execute_stream(self.physical.clone(), self.state.task_ctx()).map_err(failed)
    }

    /// Ends the input of an epoch whose rows have all come out: what is sent from now on goes nowhere.
    pub fn disconnect(&self) {
        self.leaves.iter().for_each(|leaf| leaf.disconnect());
    }

    /// Connects a new epoch to the inputs; of a plan with one scan, in so many lanes.
    pub fn connect(&self, lanes: usize) -> Vec<LeafSender> {
        if let ([leaf], 2..) = (self.leaves.as_slice(), lanes) {
            return vec![leaf.connect_lanes(lanes)];
        }
        let elastic = self.scans.iter().sum::<usize>() > 1;
        self.leaves.iter().zip(&self.scans).map(|(leaf, scans)| leaf.connect(*scans, elastic)).collect()
    }
}

/// Turns an error of DataFusion into one that tells what to do.
pub fn failed(error: datafusion::error::DataFusionError) -> Error {
    use datafusion::error::DataFusionError as Df;
    match error.find_root() {
        Df::ResourcesExhausted(_) => {
            Error::config("a query needs more memory than its share of `limits.memory`; raise it").because(error)
        }
        Df::SchemaError(..) | Df::Plan(_) | Df::SQL(..) => Error::config("could not plan a query").because(error),
        Df::Execution(_) | Df::ArrowError(..) => Error::data("a query failed on a row").because(error),
        _ => Error::internal("a query failed").because(error),
    }
}

/// Gives a session the time that `now()` tells.
pub fn set_time(state: &mut SessionState, clock: &SharedClock) {
    state.execution_props_mut().query_execution_start_time = DateTime::from_timestamp_micros(clock.now_us());
}

async fn plan(state: &SessionState, logical: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    let physical = state.create_physical_plan(logical).await.map_err(failed)?;
    let one = physical.output_partitioning().partition_count() <= 1;
    Ok(if one { physical } else { Arc::new(CoalescePartitionsExec::new(physical)) })
}

/// Counts how often a plan reads each leaf.
fn count_scans(plan: &Arc<dyn ExecutionPlan>, leaves: &[Arc<Leaf>]) -> Vec<usize> {
    let mut scans = vec![0; leaves.len()];
    let counted = plan.apply(|node| {
        if let Some(scan) = (node.as_ref() as &dyn std::any::Any).downcast_ref::<LeafExec>() {
            for (leaf, count) in leaves.iter().zip(&mut scans) {
                *count += usize::from(Arc::ptr_eq(scan.leaf(), leaf));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(counted.is_ok(), "counting does not fail");
    scans
}

/// Tells whether the query asks for the time of day.
fn tells_time(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::ScalarFunction(call) = part {
                    found |= call.func.signature().volatility == Volatility::Stable;
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    debug_assert!(walked.is_ok(), "looking does not fail");
    found
}
