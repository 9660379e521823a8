//! Following an expression through a plan: down to the streams, and up from the aggregate.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::logical_expr::{Expr, LogicalPlan, Unnest};

use super::window::{is_time, same_instant};
use super::{EventTimes, WindowShape, reads_stream, stream_name};

/// An expression that has been followed down to one stream.
pub(super) struct Traced {
    /// The stream.
    pub stream: String,
    /// The expression over the stream's columns.
    pub expr: Expr,
    /// The stream's columns.
    pub columns: DFSchemaRef,
}

/// Follows an expression over a plan's columns down to all streams that its value comes from; nothing if it comes
/// from elsewhere too, or is made on the way.
pub(super) fn trace(plan: &LogicalPlan, expr: Expr) -> Option<Vec<Traced>> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let stream = stream_name(&scan.table_name);
            Some(vec![Traced { stream, expr: unqualified(expr), columns: scan.projected_schema.clone() }])
        }
        LogicalPlan::Projection(projection) => {
            let below = replace(expr, &projection.schema, |index| projection.expr.get(index).cloned())?;
            trace(&projection.input, below)
        }
        LogicalPlan::SubqueryAlias(alias) => trace(&alias.input, through(&alias.schema, &alias.input, expr)?),
        LogicalPlan::Union(union) => {
            let mut traced = Vec::new();
            for input in &union.inputs {
                traced.extend(trace(input, through(&union.schema, input, expr.clone())?)?);
            }
            Some(traced)
        }
        LogicalPlan::Join(join) => trace(side([&join.left, &join.right], &expr)?, expr),
        LogicalPlan::Extension(extension) => trace(side(extension.node.inputs().try_into().ok()?, &expr)?, expr),
        LogicalPlan::Unnest(unnest) => trace(&unnest.input, beside(unnest, expr)?),
        LogicalPlan::Filter(_) | LogicalPlan::Distinct(_) | LogicalPlan::Repartition(_) => {
            trace(plan.inputs().first()?, expr)
        }
        _ => None,
    }
}

/// Tells whether a column of the result carries event time: a stream's own, or the start of the window.
pub(super) fn carries_time(plan: &LogicalPlan, index: usize, times: &EventTimes, window: Option<&WindowShape>) -> bool {
    let (qualifier, field) = plan.schema().qualified_field(index);
    if !matches!(field.data_type(), DataType::Timestamp(..)) {
        return false;
    }
    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    if let Some(window) = window {
        return traces_to_key(plan, column, window.group_index, times);
    }
    trace(plan, column).is_some_and(|parts| {
        parts.iter().all(|part| {
            let time = times.get(&part.stream).and_then(Option::as_deref);
            time.is_some_and(|time| is_time(same_instant(&part.expr, &part.columns), time))
        })
    })
}

/// Tells whether a column of the result is a key of the aggregate, as it is.
pub(super) fn is_key(plan: &LogicalPlan, index: usize, key: usize, times: &EventTimes) -> bool {
    let (qualifier, field) = plan.schema().qualified_field(index);
    traces_to_key(plan, Expr::Column(Column::new(qualifier.cloned(), field.name())), key, times)
}

fn traces_to_key(plan: &LogicalPlan, expr: Expr, key: usize, times: &EventTimes) -> bool {
    let is_aggregate = |node: &LogicalPlan| matches!(node, LogicalPlan::Aggregate(_)) && reads_stream(node, times);
    let Some((aggregate, expr)) = lowered(plan, expr, &is_aggregate) else { return false };
    let Expr::Column(column) = same_instant(&expr, aggregate.schema()) else { return false };
    aggregate.schema().index_of_column(column).ok() == Some(key)
}

/// Follows an expression down to a node, over whose columns it is given.
pub(super) fn lowered<'a>(
    plan: &'a LogicalPlan,
    expr: Expr,
    is_goal: &dyn Fn(&LogicalPlan) -> bool,
) -> Option<(&'a LogicalPlan, Expr)> {
    if is_goal(plan) {
        return Some((plan, expr));
    }
    let (input, below) = match plan {
        LogicalPlan::Projection(projection) => {
            let below = replace(expr, &projection.schema, |index| projection.expr.get(index).cloned())?;
            (projection.input.as_ref(), below)
        }
        LogicalPlan::SubqueryAlias(alias) => (alias.input.as_ref(), through(&alias.schema, &alias.input, expr)?),
        LogicalPlan::Join(join) => (side([&join.left, &join.right], &expr)?, expr),
        LogicalPlan::Unnest(unnest) => (unnest.input.as_ref(), beside(unnest, expr)?),
        LogicalPlan::Filter(filter) => (filter.input.as_ref(), expr),
        _ => return None,
    };
    lowered(input, below, is_goal)
}

/// Gives the side of a join that an expression is over.
fn side<'a>([left, right]: [&'a LogicalPlan; 2], expr: &Expr) -> Option<&'a LogicalPlan> {
    let columns = expr.column_refs();
    let within = |schema: &DFSchema| columns.iter().all(|column| schema.has_column(column));
    match (within(left.schema()), within(right.schema())) {
        (true, false) => Some(left),
        (false, true) => Some(right),
        _ => None,
    }
}

/// Rewrites columns of an unnest to those of its input: the element of a list becomes the list.
fn beside(unnest: &Unnest, expr: Expr) -> Option<Expr> {
    replace(expr, &unnest.schema, |index| {
        let below = *unnest.dependency_indices.get(index)?;
        if unnest.struct_type_columns.contains(&below) {
            return None;
        }
        let (qualifier, field) = unnest.input.schema().qualified_field(below);
        Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
    })
}

/// Rewrites columns of `schema` to the columns at the same place of `input`.
fn through(schema: &DFSchema, input: &LogicalPlan, expr: Expr) -> Option<Expr> {
    replace(expr, schema, |index| {
        (index < input.schema().fields().len()).then(|| {
            let (qualifier, field) = input.schema().qualified_field(index);
            Expr::Column(Column::new(qualifier.cloned(), field.name()))
        })
    })
}

/// Rewrites columns of `schema` by their index.
fn replace(expr: Expr, schema: &DFSchema, by: impl Fn(usize) -> Option<Expr>) -> Option<Expr> {
    let mut known = true;
    let rewritten = expr.transform(|part| {
        let Expr::Column(column) = &part else { return Ok(Transformed::no(part)) };
        match schema.index_of_column(column).ok().and_then(&by) {
            // What replaces a column is written over other columns: it is not looked at again.
            Some(other) => Ok(Transformed::new(other.unalias(), true, TreeNodeRecursion::Jump)),
            None => {
                known = false;
                Ok(Transformed::no(part))
            }
        }
    });
    rewritten.ok().filter(|_| known).map(|rewritten| rewritten.data)
}

fn unqualified(expr: Expr) -> Expr {
    let bare = expr.clone().transform(|part| {
        Ok(match part {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map_or(expr, |bare| bare.data)
}
