//! Following an expression through a plan: down to the streams, and up from the aggregate.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::logical_expr::{Expr, Join, LogicalPlan, Unnest};

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
        LogicalPlan::Join(join) => trace(side(join, &expr)?, expr),
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

fn traces_to_key(plan: &LogicalPlan, expr: Expr, key: usize, times: &EventTimes) -> bool {
    let below = match plan {
        LogicalPlan::Aggregate(aggregate) if reads_stream(plan, times) => {
            let Expr::Column(column) = same_instant(&expr, &aggregate.schema) else { return false };
            return aggregate.schema.index_of_column(column).ok() == Some(key);
        }
        LogicalPlan::Projection(projection) => {
            let below = replace(expr, &projection.schema, |index| projection.expr.get(index).cloned());
            below.map(|below| (projection.input.as_ref(), below))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            through(&alias.schema, &alias.input, expr).map(|below| (alias.input.as_ref(), below))
        }
        LogicalPlan::Join(join) => side(join, &expr).map(|input| (input, expr)),
        LogicalPlan::Unnest(unnest) => beside(unnest, expr).map(|below| (unnest.input.as_ref(), below)),
        LogicalPlan::Filter(filter) => Some((filter.input.as_ref(), expr)),
        _ => None,
    };
    below.is_some_and(|(input, below)| traces_to_key(input, below, key, times))
}

/// Gives the side of a join that an expression is over.
fn side<'a>(join: &'a Join, expr: &Expr) -> Option<&'a LogicalPlan> {
    let columns = expr.column_refs();
    let within = |schema: &DFSchema| columns.iter().all(|column| schema.has_column(column));
    match (within(join.left.schema()), within(join.right.schema())) {
        (true, false) => Some(&join.left),
        (false, true) => Some(&join.right),
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
