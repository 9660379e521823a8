//! Lineage of columns: from which columns of its inputs, and of the sources in the end, each column of a table derives.
//!
//! It is read off the logical plan as the query was written: what an optimiser folds away is still an origin. Only what
//! a value is made of counts. Columns that decide whether a row is there at all (in filters, join conditions and group
//! keys that are not selected) are not among the origins.

use std::collections::BTreeMap;

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Distinct, Expr, JoinType, LogicalPlan};
use serde::Serialize;

use super::Plan;
use super::analyze::stream_name;
use super::table::TablePlan;

/// What is done with a value on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Nothing.
    Copy,
    /// Another value is made of it.
    Transformation,
    /// One value is made of those of many rows.
    Aggregation,
}

/// Columns, by table and name.
pub type Origins = BTreeMap<(String, String), How>;

/// From where one column derives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnLineage {
    /// Columns of what the query reads.
    pub inputs: Origins,
    /// Columns of sources and reference tables.
    pub sources: Origins,
}

/// Gives the lineage of every table's columns, in their order.
pub fn lineage(plan: &Plan) -> BTreeMap<String, Vec<ColumnLineage>> {
    let mut known: BTreeMap<String, Vec<ColumnLineage>> = BTreeMap::new();
    // Each table stands behind those that it reads.
    for table in &plan.tables {
        let mut columns = Vec::with_capacity(table.schema.fields().len());
        for inputs in of_table(table) {
            let mut sources = Origins::new();
            for ((input, column), how) in &inputs {
                let below = plan.table(input).zip(known.get(input));
                match below.and_then(|(read, columns)| columns.get(read.schema.index_of(column).ok()?)) {
                    Some(below) => add(&mut sources, &below.sources, *how),
                    None => add(&mut sources, &one(input, column), *how),
                }
            }
            columns.push(ColumnLineage { inputs, sources });
        }
        known.insert(table.name(), columns);
    }
    known
}

fn of_table(table: &TablePlan) -> Vec<Origins> {
    let mut columns = of_plan(&table.logical);
    // The sequence of an aggregate without a window derives from no column.
    columns.resize(table.schema.fields().len(), Origins::new());
    columns
}

/// Gives the origins of each column of a plan's result.
fn of_plan(plan: &LogicalPlan) -> Vec<Origins> {
    let below = |input: &LogicalPlan| (of_plan(input), input.schema().clone());
    let columns = match plan {
        LogicalPlan::TableScan(scan) => {
            let table = stream_name(&scan.table_name);
            scan.projected_schema.fields().iter().map(|field| one(&table, field.name())).collect()
        }
        LogicalPlan::Projection(projection) => {
            let (input, schema) = below(&projection.input);
            projection.expr.iter().map(|expr| of_expr(expr, &schema, &input)).collect()
        }
        LogicalPlan::Aggregate(aggregate) => {
            let (input, schema) = below(&aggregate.input);
            let exprs = aggregate.group_expr.iter().chain(&aggregate.aggr_expr);
            exprs.map(|expr| of_expr(expr, &schema, &input)).collect()
        }
        LogicalPlan::Window(window) => {
            let (mut input, schema) = below(&window.input);
            let added: Vec<_> = window.window_expr.iter().map(|expr| of_expr(expr, &schema, &input)).collect();
            input.extend(added);
            input
        }
        LogicalPlan::Join(join) => {
            let (left, right) = (of_plan(&join.left), of_plan(&join.right));
            match join.join_type {
                JoinType::LeftSemi | JoinType::LeftAnti => left,
                JoinType::RightSemi | JoinType::RightAnti => right,
                _ => [left, right].concat(),
            }
        }
        LogicalPlan::Union(union) => {
            let mut columns = vec![Origins::new(); union.schema.fields().len()];
            for input in &union.inputs {
                columns.iter_mut().zip(of_plan(input)).for_each(|(all, one)| add(all, &one, How::Copy));
            }
            columns
        }
        LogicalPlan::Unnest(unnest) => {
            let input = of_plan(&unnest.input);
            let made = |place: &usize| {
                let is_taken_apart = unnest.list_type_columns.iter().any(|(list, _)| list == place)
                    || unnest.struct_type_columns.contains(place);
                let mut origins = Origins::new();
                let how = if is_taken_apart { How::Transformation } else { How::Copy };
                input.get(*place).into_iter().for_each(|below| add(&mut origins, below, how));
                origins
            };
            unnest.dependency_indices.iter().map(made).collect()
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => plan.inputs().into_iter().flat_map(of_plan).collect(),
        _ => Vec::new(),
    };
    if columns.len() == plan.schema().fields().len() { columns } else { by_name(plan) }
}

/// Gives the origins where a plan's columns are not known to follow from its expressions: by the columns' names, and for
/// those that are new, all that is read.
fn by_name(plan: &LogicalPlan) -> Vec<Origins> {
    let inputs: Vec<_> = plan.inputs().into_iter().map(|input| (of_plan(input), input.schema())).collect();
    let mut all = Origins::new();
    inputs.iter().flat_map(|(columns, _)| columns).for_each(|column| add(&mut all, column, How::Transformation));
    let column = |(table, field): (Option<&datafusion::common::TableReference>, &std::sync::Arc<_>)| {
        let field: &arrow::datatypes::Field = field;
        let named = inputs
            .iter()
            .find_map(|(columns, schema)| columns.get(schema.index_of_column_by_name(table, field.name())?));
        named.cloned().unwrap_or_else(|| all.clone())
    };
    plan.schema().iter().map(column).collect()
}

/// Gives the origins of an expression over columns whose origins are `input`.
fn of_expr(expr: &Expr, schema: &DFSchema, input: &[Origins]) -> Origins {
    let how = match expr {
        Expr::Column(column) => {
            let place = schema.index_of_column(column).ok();
            return place.and_then(|place| input.get(place)).cloned().unwrap_or_default();
        }
        Expr::Alias(_) => How::Copy,
        Expr::AggregateFunction(_) | Expr::WindowFunction(_) => How::Aggregation,
        _ => How::Transformation,
    };
    let mut origins = Origins::new();
    let walked = expr.apply_children(|part| {
        add(&mut origins, &of_expr(part, schema, input), how);
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "looking does not fail");
    let subquery = match expr {
        Expr::ScalarSubquery(subquery) => Some(subquery),
        Expr::InSubquery(inner) => Some(&inner.subquery),
        Expr::Exists(inner) => Some(&inner.subquery),
        _ => None,
    };
    for column in subquery.iter().flat_map(|subquery| of_plan(&subquery.subquery)) {
        add(&mut origins, &column, how);
    }
    origins
}

fn one(table: &str, column: &str) -> Origins {
    Origins::from([((table.to_owned(), column.to_owned()), How::Copy)])
}

/// Adds origins by way of something that is done with them; what is done most stands.
fn add(to: &mut Origins, origins: &Origins, how: How) {
    for (column, before) in origins {
        let known = to.entry(column.clone()).or_insert(How::Copy);
        *known = (*known).max(*before).max(how);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pipeline;

    const PIPELINE: &str = "
name: lineage
lake: ./lake
sources:
  orders:
    s3: { queue: 'https://sqs.us-west-2.amazonaws.com/1/orders', allow: ['s3://in/'] }
    columns: { id: int64, at: timestamp, site: string, price: float64, pieces: int64, tags: list<string> }
    event_time: { column: at }
bronze:
  orders: { from: orders }
silver:
  orders:
    sql: SELECT id, at, upper(site) AS site, price * pieces AS worth, 1 AS one FROM bronze.orders WHERE id IN (SELECT 7)
  both:
    sql: SELECT id, site AS place FROM bronze.orders UNION ALL SELECT o.pieces, CAST(o.id AS string) FROM bronze.orders o
  tags:
    sql: SELECT id, unnest(tags) AS tag FROM bronze.orders
gold:
  daily:
    sql: |
      WITH half AS (SELECT at, site, worth / 2 AS half FROM silver.orders)
      SELECT date_bin(INTERVAL '1 day', at) AS day, site, sum(half) AS half, count(*) AS n, max(site) || 'x' AS most
      FROM half GROUP BY 1, 2 HAVING count(*) > 1
  hopped:
    sql: SELECT hop(at, INTERVAL '1 hour', INTERVAL '2 hours') AS h, count(DISTINCT id) AS ids FROM silver.orders GROUP BY 1
";

    async fn of(table: &str) -> Vec<(String, Vec<String>, Vec<String>)> {
        let plan = Pipeline::parse(PIPELINE).unwrap().plan().await.unwrap();
        let columns = lineage(&plan).remove(table).unwrap();
        let text = |origins: &Origins| {
            origins.iter().map(|((table, column), how)| format!("{table}.{column} {how:?}")).collect::<Vec<_>>()
        };
        let names = plan.table(table).unwrap().schema.fields().iter().map(|field| field.name().clone());
        names.zip(&columns).map(|(name, column)| (name, text(&column.inputs), text(&column.sources))).collect()
    }

    async fn check(table: &str, expected: &[(&str, &[&str], &[&str])]) {
        let found = of(table).await;
        for (name, inputs, sources) in expected {
            let found = found.iter().find(|column| column.0 == *name).unwrap();
            assert_eq!((&found.1[..], &found.2[..]), (&to_text(inputs)[..], &to_text(sources)[..]), "{table}.{name}");
        }
    }

    fn to_text(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[tokio::test]
    async fn columns_are_followed_to_their_sources() {
        check("bronze.orders", &[("price", &["orders.price Copy"], &["orders.price Copy"])]).await;
        check(
            "silver.orders",
            &[
                ("id", &["bronze.orders.id Copy"], &["orders.id Copy"]),
                ("site", &["bronze.orders.site Transformation"], &["orders.site Transformation"]),
                (
                    "worth",
                    &["bronze.orders.pieces Transformation", "bronze.orders.price Transformation"],
                    &["orders.pieces Transformation", "orders.price Transformation"],
                ),
                ("one", &[], &[]),
            ],
        )
        .await;
        check(
            "gold.daily",
            &[
                ("day", &["silver.orders.at Transformation"], &["orders.at Transformation"]),
                ("site", &["silver.orders.site Copy"], &["orders.site Transformation"]),
                (
                    "half",
                    &["silver.orders.worth Aggregation"],
                    &["orders.pieces Aggregation", "orders.price Aggregation"],
                ),
                ("n", &[], &[]),
                ("most", &["silver.orders.site Aggregation"], &["orders.site Aggregation"]),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn unions_lists_and_windows_are_followed() {
        check(
            "silver.both",
            &[
                (
                    "id",
                    &["bronze.orders.id Copy", "bronze.orders.pieces Copy"],
                    &["orders.id Copy", "orders.pieces Copy"],
                ),
                (
                    "place",
                    &["bronze.orders.id Transformation", "bronze.orders.site Copy"],
                    &["orders.id Transformation", "orders.site Copy"],
                ),
            ],
        )
        .await;
        check("silver.tags", &[("tag", &["bronze.orders.tags Transformation"], &["orders.tags Transformation"])]).await;
        check(
            "gold.hopped",
            &[
                ("h", &["silver.orders.at Transformation"], &["orders.at Transformation"]),
                ("ids", &["silver.orders.id Aggregation"], &["orders.id Aggregation"]),
            ],
        )
        .await;
    }
}
