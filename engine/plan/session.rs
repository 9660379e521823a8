//! The DataFusion session that queries are planned and run in.

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::SessionConfig;
use nexus_operators::transform::functions::Function;
use nexus_operators::transform::utc::date_trunc_at_utc;

/// Functions that an embedding service brings.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    /// Functions of one row.
    pub scalars: Vec<Arc<ScalarUDF>>,
    /// Functions of many rows.
    pub aggregates: Vec<Arc<AggregateUDF>>,
}

/// Makes the memory and disk that all queries of a pipeline share.
pub fn runtime(memory_bytes: usize) -> Result<Arc<RuntimeEnv>> {
    let pool = Arc::new(FairSpillPool::new(memory_bytes));
    Ok(Arc::new(RuntimeEnvBuilder::new().with_memory_pool(pool).build()?))
}

/// Makes a session.
///
/// A stage is one task, so plans have one partition. Filters that a join feeds back into a scan would keep
/// state from epoch to epoch. The rewrite of a lone `count(DISTINCT)` into two aggregates would leave no single
/// place to split the plan at.
pub fn state(runtime: Arc<RuntimeEnv>, functions: &Functions) -> Result<SessionState> {
    let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false);
    let options = config.options_mut();
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.execution.collect_statistics = false;
    options.sql_parser.collect_spans = true;
    let mut state =
        SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
    let rules = state.optimizers().iter().filter(|rule| rule.name() != "single_distinct_aggregation_to_group_by");
    let rules = rules.cloned().collect();
    state = SessionStateBuilder::new_from_existing(state).with_optimizer_rules(rules).build();
    for function in Function::ALL {
        datafusion::execution::FunctionRegistry::register_udf(&mut state, function.udf())?;
    }
    datafusion::execution::FunctionRegistry::register_udf(&mut state, date_trunc_at_utc())?;
    for scalar in &functions.scalars {
        datafusion::execution::FunctionRegistry::register_udf(&mut state, scalar.clone())?;
    }
    for aggregate in &functions.aggregates {
        datafusion::execution::FunctionRegistry::register_udaf(&mut state, aggregate.clone())?;
    }
    Ok(state)
}
