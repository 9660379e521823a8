//! Resolves the window functions of a query before it is planned: `hop` becomes a row for each window, a `session`
//! gets its last time as a key beside its first, and `window_end` becomes the start and the width.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue, UnnestOptions, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, lit};
use nexus_operators::transform::functions::{Function, HOPS_MAX, interval_us};

/// The column that `hop` becomes.
const HOP_COLUMN: &str = "__hop";

/// Resolves all window functions of a plan.
pub fn resolve(plan: LogicalPlan) -> Result<LogicalPlan> {
    let needed = [Function::Hop, Function::Session, Function::WindowEnd];
    if !calls(&plan, &needed)? {
        return Ok(plan);
    }
    let resolved = Resolved::of(plan)?.plan;
    if calls(&resolved, &[Function::WindowEnd])? {
        return plan_err!(
            "window_end needs the window itself: write window_end(tumble(...)), or of the column that is the window in \
             the same SELECT"
        );
    }
    if calls(&resolved, &[Function::Hop])? {
        return plan_err!("hop can stand in SELECT and in GROUP BY only");
    }
    if session_outside_keys(&resolved)? {
        return plan_err!("session can stand in GROUP BY only, and in the SELECT that belongs to it");
    }
    Ok(resolved)
}

/// A plan without window functions, and what is known of its columns.
struct Resolved {
    plan: LogicalPlan,
    windows: Vec<(Column, End)>,
}

/// The end of the windows whose start a column has.
#[derive(Clone)]
enum End {
    /// This long behind the start.
    After(ScalarValue),
    /// This long behind the time in another column.
    AfterLast(Column, ScalarValue),
}

impl End {
    fn expr(&self, start: Expr) -> Expr {
        match self {
            End::After(width) => start + lit(width.clone()),
            End::AfterLast(last, gap) => Expr::Column(last.clone()) + lit(gap.clone()),
        }
    }
}

impl Resolved {
    fn of(plan: LogicalPlan) -> Result<Self> {
        let mut windows = Vec::new();
        let mut inputs = Vec::new();
        for input in plan.inputs() {
            let resolved = Resolved::of(input.clone())?;
            windows.extend(resolved.windows);
            inputs.push(resolved.plan);
        }
        let names = NamePreserver::new(&plan);
        let mut exprs = Vec::new();
        for expr in plan.expressions() {
            let saved = names.save(&expr);
            exprs.push(saved.restore(ends_resolved(expr, &windows)?));
        }
        match plan {
            LogicalPlan::Aggregate(aggregate) => {
                let keys = aggregate.group_expr.len();
                let (input, exprs) = unfolded(take_one(inputs)?, exprs, &mut windows)?;
                Self::aggregate(input, exprs, keys, &windows)
            }
            LogicalPlan::Projection(_) => {
                let (input, exprs) = unfolded(take_one(inputs)?, exprs, &mut windows)?;
                let plan = plan.with_new_exprs(exprs.clone(), vec![input])?;
                let windows = exprs.iter().enumerate().filter_map(|(place, expr)| {
                    let end = window_end(expr, &windows).filter(|end| matches!(end, End::After(_)))?;
                    Some((column(&plan, place), end))
                });
                let windows = windows.collect();
                Ok(Self { plan, windows })
            }
            LogicalPlan::SubqueryAlias(_) => {
                let from = plan.inputs().first().map(|input| input.schema().clone());
                let plan = plan.with_new_exprs(exprs, inputs)?;
                let requalified = windows.into_iter().filter_map(|(start, end)| {
                    let place = from.as_ref()?.index_of_column(&start).ok()?;
                    matches!(end, End::After(_)).then(|| (column(&plan, place), end))
                });
                let windows = requalified.collect();
                Ok(Self { plan, windows })
            }
            other => {
                let plan = other.with_new_exprs(exprs, inputs)?;
                windows.retain(|(start, _)| plan.schema().has_column(start));
                Ok(Self { plan, windows })
            }
        }
    }

    /// Makes an aggregate of its expressions, of which the first are its keys.
    fn aggregate(input: LogicalPlan, mut exprs: Vec<Expr>, keys: usize, windows: &[(Column, End)]) -> Result<Self> {
        let aggregates = exprs.split_off(keys.min(exprs.len()));
        let mut found: Vec<(usize, End)> = Vec::new();
        for place in 0..exprs.len() {
            let Some(key) = exprs.get(place).map(unaliased) else { continue };
            if let Some(arguments) = Function::Session.arguments(key) {
                let gap = gap(arguments)?;
                let last = Function::SessionLast.call(arguments.to_vec());
                found.push((place, End::AfterLast(Column::from_name(last.schema_name().to_string()), gap)));
                exprs.push(last);
            } else if let Some(end) = window_end(key, windows) {
                found.push((place, end));
            }
        }
        let plan = LogicalPlan::Aggregate(Aggregate::try_new(input.into(), exprs, aggregates)?);
        let windows = found.into_iter().map(|(place, end)| (column(&plan, place), end)).collect();
        Ok(Self { plan, windows })
    }
}

/// Tells whether a plan calls one of some functions.
fn calls(plan: &LogicalPlan, functions: &[Function]) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        for expr in node.expressions() {
            found |= expr.exists(|part| Ok(functions.iter().any(|function| function.arguments(part).is_some())))?;
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

fn session_outside_keys(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        let outside = match node {
            LogicalPlan::Aggregate(aggregate) => aggregate.aggr_expr.clone(),
            other => other.expressions(),
        };
        for expr in outside {
            found |= expr.exists(|part| Ok(Function::Session.arguments(part).is_some()))?;
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Replaces each `window_end` whose window is known.
fn ends_resolved(expr: Expr, windows: &[(Column, End)]) -> Result<Expr> {
    let resolved = expr.transform_up(|part| {
        let end = match Function::WindowEnd.arguments(&part) {
            Some([start]) => window_end(start, windows).map(|end| end.expr(start.clone())),
            _ => None,
        };
        Ok(end.map_or_else(|| Transformed::no(part), Transformed::yes))
    });
    resolved.map(|resolved| resolved.data)
}

/// Tells the end of the windows that begin at `start`.
fn window_end(start: &Expr, windows: &[(Column, End)]) -> Option<End> {
    let start = unaliased(start);
    if let Expr::Column(column) = start {
        return windows.iter().find(|(known, _)| known == column).map(|(_, end)| end.clone());
    }
    let Expr::ScalarFunction(call) = start else { return None };
    let width = match (call.name(), call.args.as_slice()) {
        ("tumble", [_, Expr::Literal(width, _)])
        | ("hop" | "hop_starts", [_, _, Expr::Literal(width, _)])
        | ("date_bin", [Expr::Literal(width, _), ..]) => width.clone(),
        ("date_trunc", [Expr::Literal(unit, _), _]) => unit_width(unit.try_as_str().flatten()?)?,
        _ => return None,
    };
    Some(End::After(width))
}

/// Gives the width of the windows of `date_trunc`.
fn unit_width(unit: &str) -> Option<ScalarValue> {
    const SECOND_NS: i64 = 1_000_000_000;
    let of = |months, days, nanos| Some(ScalarValue::new_interval_mdn(months, days, nanos));
    match unit.to_ascii_lowercase().as_str() {
        "second" => of(0, 0, SECOND_NS),
        "minute" => of(0, 0, 60 * SECOND_NS),
        "hour" => of(0, 0, 3600 * SECOND_NS),
        "day" => of(0, 1, 0),
        "week" => of(0, 7, 0),
        "month" => of(1, 0, 0),
        "quarter" => of(3, 0, 0),
        "year" => of(12, 0, 0),
        _ => None,
    }
}

/// Checks the gap of a session.
fn gap(arguments: &[Expr]) -> Result<ScalarValue> {
    match arguments {
        [_, Expr::Literal(gap, _)] if interval_us(gap).is_some() => Ok(gap.clone()),
        _ => plan_err!("session(ts, gap) needs a gap such as INTERVAL '30 minutes': positive, and no months"),
    }
}

/// Makes a row for each window of a `hop` in some expressions over a plan, and adds its window to those that are known.
fn unfolded(
    input: LogicalPlan,
    exprs: Vec<Expr>,
    windows: &mut Vec<(Column, End)>,
) -> Result<(LogicalPlan, Vec<Expr>)> {
    let mut hop: Option<Expr> = None;
    let mut replaced = Vec::with_capacity(exprs.len());
    for expr in exprs {
        let saved = NamePreserver::new_for_projection().save(&expr);
        let done = expr.transform_up(|part| {
            if Function::Hop.arguments(&part).is_none() {
                return Ok(Transformed::no(part));
            }
            if hop.as_ref().is_some_and(|known| *known != part) {
                return plan_err!("one SELECT can have one hop: put the other into a table of its own");
            }
            hop = Some(part);
            Ok(Transformed::yes(Expr::Column(Column::from_name(HOP_COLUMN))))
        })?;
        replaced.push(if done.transformed { saved.restore(done.data) } else { done.data });
    }
    let Some(hop) = hop else { return Ok((input, replaced)) };
    let arguments = Function::Hop.arguments(&hop).unwrap_or_default();
    windows.push((Column::from_name(HOP_COLUMN), End::After(check_hop(arguments)?)));
    let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(Function::HopStarts.call(arguments.to_vec()).alias(HOP_COLUMN));
    let rows = LogicalPlanBuilder::from(input).project(columns)?;
    let options = UnnestOptions::new().with_preserve_nulls(false);
    let rows = rows.unnest_column_with_options(Column::from_name(HOP_COLUMN), options)?.build()?;
    Ok((rows, replaced))
}

/// Checks the arguments of a `hop`, and gives the width.
fn check_hop(arguments: &[Expr]) -> Result<ScalarValue> {
    let [_, Expr::Literal(slide, _), Expr::Literal(width, _)] = arguments else {
        return plan_err!("hop(ts, slide, width) needs two intervals, such as INTERVAL '5 minutes'");
    };
    let (Some(slide_us), Some(width_us)) = (interval_us(slide), interval_us(width)) else {
        return plan_err!(
            "hop(ts, slide, width) needs intervals such as INTERVAL '5 minutes': positive, and no months"
        );
    };
    if width_us / slide_us > HOPS_MAX {
        return plan_err!(
            "with this hop a row would be in {} windows: at most {HOPS_MAX} are possible",
            width_us / slide_us
        );
    }
    Ok(width.clone())
}

fn take_one(mut inputs: Vec<LogicalPlan>) -> Result<LogicalPlan> {
    match inputs.pop() {
        Some(input) => Ok(input),
        None => plan_err!("a SELECT without an input has no windows"),
    }
}

fn column(plan: &LogicalPlan, place: usize) -> Column {
    Column::from(plan.schema().qualified_field(place))
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}
