//! What of a query its state rests on: another query with the same goes on from the state.
//!
//! Windows and rows by key are made by the aggregate and what lies below it; rows that are kept by the join and what lies
//! below it; remembered keys by the expressions of the key and of the event time, and the filters and joins below them.
//! The old query is planned again over the columns of now, so that nothing that DataFusion may name otherwise in a
//! later version is ever stored.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::common::Column;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};

use super::analyze::join::StreamJoin;
use super::analyze::{find_aggregate, stream_name};
use super::table::{TablePlan, optimised};
use super::{as_of, windows};
use crate::spec::columns::data_type_name;
use crate::state::record::{Basis, TableState};

/// The parts of a query that make state.
struct Parts {
    /// The aggregate, if groups outlive an epoch; the join, if rows do.
    rows: Option<LogicalPlan>,
    /// The columns of the key and the event time, if keys are remembered.
    keys: Option<LogicalPlan>,
}

impl TablePlan {
    /// Gives what the state of the table rests on.
    pub async fn basis(&self) -> Result<Basis> {
        let parts = self.parts_with_state(&self.sql).await?;
        let mut columns = BTreeMap::new();
        // Accumulators hold values as they are read, and so do rows that are kept.
        if let Some(rows) = &parts.rows {
            rows.apply_with_subqueries(|node| {
                if let LogicalPlan::TableScan(scan) = node {
                    let table = stream_name(&scan.table_name);
                    for field in scan.projected_schema.fields() {
                        columns.insert(format!("{table}.{}", field.name()), data_type_name(field.data_type()));
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        for field in parts.keys.iter().flat_map(|keys| keys.schema().fields()) {
            columns.insert(field.name().clone(), data_type_name(field.data_type()));
        }
        Ok(Basis { sql: self.sql.clone(), unique: self.rule_of_uniqueness(), columns })
    }

    /// Tells whether the table can go on from state that was kept for another query.
    pub async fn goes_on_from(&self, known: &TableState) -> bool {
        if known.query == self.fingerprint() {
            return true;
        }
        let Some(basis) = &known.basis else { return false };
        let Ok(now) = self.basis().await else { return false };
        if basis.unique != now.unique || basis.columns != now.columns {
            return false;
        }
        match (self.parts_with_state(&basis.sql).await, self.parts_with_state(&self.sql).await) {
            (Ok(then), Ok(now)) => then.text() == now.text(),
            _ => false,
        }
    }

    /// Gives the parts of a query over this table's inputs that make its state.
    async fn parts_with_state(&self, sql: &str) -> Result<Parts> {
        let logical = windows::resolve(as_of::plan(&mut self.state.clone(), sql).await?)?;
        let rows = if let Some(join) = &self.join {
            let optimised = optimised(&self.state, &logical)?;
            let found = StreamJoin::find(&optimised, &join.times);
            let (node, _) = found.ok_or_else(|| DataFusionError::Plan("the query has no join of streams".into()))?;
            Some(node.clone())
        } else if self.window.is_some() || self.keys.is_some() && self.newest.is_none() {
            let times = self.inputs.iter().map(|name| (name.clone(), None)).collect();
            let optimised = self.state.optimize(&logical)?;
            let aggregate = find_aggregate(&optimised, &times).ok().flatten();
            let aggregate = aggregate.ok_or_else(|| DataFusionError::Plan("the query has no aggregate".into()))?;
            Some(LogicalPlan::Aggregate(aggregate.clone()))
        } else {
            None
        };
        let first = self.unique.as_ref().map(|(key, time, _)| [key.as_slice(), &[*time]].concat());
        let newest = self.newest.as_ref().map(|newest| [newest.key.as_slice(), &[newest.time, newest.order]].concat());
        let keys = match first.or(newest) {
            Some(remembered) => {
                let mut seen = BTreeSet::new();
                let columns = remembered.iter().filter(|index| seen.insert(**index));
                let columns = columns.map(|index| self.column_of(&logical, *index)).collect::<Result<Vec<_>>>()?;
                let keys = LogicalPlanBuilder::from(logical.clone()).project(columns)?.build()?;
                Some(self.state.optimize(&keys)?)
            }
            None => None,
        };
        Ok(Parts { rows, keys })
    }

    /// Finds a column of this table in the result of a query.
    fn column_of(&self, query: &LogicalPlan, index: usize) -> Result<Expr> {
        let name = self.schema.field(index).name();
        let place = query.schema().index_of_column_by_name(None, name);
        let place = place.ok_or_else(|| DataFusionError::Plan(format!("the query has no column {name}")))?;
        Ok(Expr::Column(Column::from(query.schema().qualified_field(place))))
    }
}

impl Parts {
    fn text(&self) -> Vec<String> {
        self.rows.iter().chain(&self.keys).map(|plan| plan.display_indent().to_string()).collect()
    }
}
