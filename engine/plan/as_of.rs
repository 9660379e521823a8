//! `ASOF JOIN ... MATCH_CONDITION (...)`, as Snowflake writes it, which DataFusion parses and does not plan.
//!
//! It is planned as a `LEFT JOIN` whose condition is marked, and becomes a node of its own before anything is optimised:
//! what may be done to a left join may not be done to this one.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchemaRef, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::builder::build_join_schema;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Extension, Join, JoinType, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, UserDefinedLogicalNodeCore, Volatility,
};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, JoinConstraint, JoinOperator,
    ObjectName, Select, TableWithJoins, VisitMut, VisitorMut,
};

/// The function that marks the condition of an as-of join.
const MARK: &str = "as_of_match";

/// A join of each row of the left with the newest row of the right that fits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AsOfNode {
    /// The rows that come out, each once.
    pub left: Arc<LogicalPlan>,
    /// The rows among which the newest is taken.
    pub right: Arc<LogicalPlan>,
    /// What else must hold of both rows.
    pub keys: Vec<Expr>,
    /// Which rows of the right are not too new.
    pub matching: Expr,
    schema: DFSchemaRef,
}

/// Plans a statement that may hold as-of joins.
pub async fn plan(state: &mut SessionState, mut statement: Statement) -> Result<LogicalPlan> {
    let Statement::Statement(inner) = &mut statement else { return state.statement_to_plan(statement).await };
    let mut marking = Marking { found: false };
    if let ControlFlow::Break(why) = inner.visit(&mut marking) {
        return plan_err!("{why}");
    }
    if !marking.found {
        return state.statement_to_plan(statement).await;
    }
    let mark = Mark { signature: Signature::exact(vec![DataType::Boolean], Volatility::Immutable) };
    state.register_udf(Arc::new(ScalarUDF::new_from_impl(mark)))?;
    let plan = state.statement_to_plan(statement).await?;
    let plan = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(join) => resolve(join),
        other => Ok(Transformed::no(other)),
    });
    plan.map(|plan| plan.data)
}

/// Makes as-of joins of a statement left joins with a mark.
struct Marking {
    found: bool,
}

impl VisitorMut for Marking {
    type Break = &'static str;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        select.from.iter_mut().try_for_each(|from| self.mark(from))
    }
}

impl Marking {
    fn mark(&mut self, from: &mut TableWithJoins) -> ControlFlow<&'static str> {
        for join in &mut from.joins {
            if let JoinOperator::AsOf { match_condition, constraint } = &join.join_operator {
                let mark = call(match_condition.clone());
                let on = match constraint {
                    JoinConstraint::On(on) => ast::Expr::BinaryOp {
                        left: Box::new(on.clone()),
                        op: ast::BinaryOperator::And,
                        right: Box::new(mark),
                    },
                    JoinConstraint::None => mark,
                    JoinConstraint::Using(_) | JoinConstraint::Natural => {
                        return ControlFlow::Break("an ASOF JOIN takes ON, not USING: write ON l.key = r.key");
                    }
                };
                join.join_operator = JoinOperator::LeftOuter(JoinConstraint::On(on));
                self.found = true;
            }
        }
        let joined = from.joins.iter_mut().map(|join| &mut join.relation);
        for factor in [&mut from.relation].into_iter().chain(joined) {
            if let ast::TableFactor::NestedJoin { table_with_joins, .. } = factor {
                self.mark(table_with_joins)?;
            }
        }
        ControlFlow::Continue(())
    }
}

fn call(argument: ast::Expr) -> ast::Expr {
    ast::Expr::Function(ast::Function {
        name: ObjectName::from(vec![ast::Ident::new(MARK)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Makes a node of a left join with a mark.
fn resolve(join: Join) -> Result<Transformed<LogicalPlan>> {
    let marked = |expr: &Expr| matches!(expr, Expr::ScalarFunction(call) if call.name() == MARK);
    let conditions = join.filter.clone().map(split_conjunction_owned).unwrap_or_default();
    let (mut marks, mut keys): (Vec<Expr>, Vec<Expr>) = conditions.into_iter().partition(marked);
    let Some(Expr::ScalarFunction(mut mark)) = marks.pop() else {
        return Ok(Transformed::no(LogicalPlan::Join(join)));
    };
    let Some(matching) = mark.args.pop() else { return internal_err!("a mark without a condition") };
    keys.extend(join.on.into_iter().map(|(left, right)| left.eq(right)));
    let node = AsOfNode { left: join.left, right: join.right, keys, matching, schema: join.schema };
    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(node) })))
}

/// Marks the condition of an as-of join until it is planned.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Mark {
    signature: Signature,
}

impl ScalarUDFImpl for Mark {
    fn name(&self) -> &str {
        MARK
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        plan_err!("{MARK} cannot be called: write ASOF JOIN ... MATCH_CONDITION (l.ts >= r.ts)")
    }
}

impl AsOfNode {
    /// Gives a comparison of both sides: how the left's expression compares with the right's.
    pub fn compared(&self, condition: &Expr) -> Option<(Operator, [Expr; 2])> {
        let Expr::BinaryExpr(binary) = condition else { return None };
        let of = |side: &LogicalPlan, expr: &Expr| {
            let columns = expr.column_refs();
            !columns.is_empty() && columns.iter().all(|column| side.schema().has_column(column))
        };
        let (first, second) = (binary.left.as_ref(), binary.right.as_ref());
        if of(&self.left, first) && of(&self.right, second) {
            return Some((binary.op, [first.clone(), second.clone()]));
        }
        let turned = of(&self.left, second) && of(&self.right, first);
        turned.then(|| Some((binary.op.swap()?, [second.clone(), first.clone()]))).flatten()
    }
}

impl PartialOrd for AsOfNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (&self.left, &self.right, &self.keys, &self.matching).partial_cmp(&(
            &other.left,
            &other.right,
            &other.keys,
            &other.matching,
        ))
    }
}

impl UserDefinedLogicalNodeCore for AsOfNode {
    fn name(&self) -> &'static str {
        "AsOfJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().chain([&self.matching]).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "AsOfJoin: {} on [{}]", self.matching, keys.join(", "))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        // What is rewritten is given its old name, which means nothing here.
        let mut exprs: Vec<Expr> = exprs.into_iter().map(|expr| expr.unalias_nested().data).collect();
        let (Some(matching), Ok([left, right])) = (exprs.pop(), <[LogicalPlan; 2]>::try_from(inputs)) else {
            return internal_err!("an as-of join has two inputs and a condition");
        };
        let schema = Arc::new(build_join_schema(left.schema(), right.schema(), &JoinType::Left)?);
        Ok(Self { left: Arc::new(left), right: Arc::new(right), keys: exprs, matching, schema })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let expressions = self.expressions();
        let named: HashSet<&Column> = expressions.iter().flat_map(Expr::column_refs).collect();
        let before = self.left.schema().fields().len();
        let needed = |side: &LogicalPlan, first: usize| {
            let columns = side.schema().columns().into_iter().enumerate();
            let wanted =
                columns.filter(|(index, column)| named.contains(column) || output_columns.contains(&(index + first)));
            wanted.map(|(index, _)| index).collect::<Vec<_>>()
        };
        Some(vec![needed(&self.left, 0), needed(&self.right, before)])
    }
}
