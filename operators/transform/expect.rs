//! Expectations: rules that a row must meet, and what becomes of one that does not.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{and_not, filter_record_batch, not, or};
use datafusion::physical_expr::PhysicalExpr;

use super::query::failed;
use super::rows::{as_json, quarantined};
use crate::error::{Error, Result};
use crate::quarantine::Quarantined;

/// What becomes of a row that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// It is kept, and counted.
    Keep,
    /// It is dropped, and counted.
    Drop,
    /// It goes to the quarantine.
    Quarantine,
    /// The run stops.
    Fail,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The rule's name.
    pub name: String,
    /// The condition as the user wrote it.
    pub text: String,
    /// The condition over the table's columns; NULL counts as not met.
    pub condition: Arc<dyn PhysicalExpr>,
    /// What becomes of a row that does not meet it.
    pub otherwise: Otherwise,
}

/// What became of a batch's rows.
#[derive(Debug)]
pub struct Judged {
    /// The rows that go on.
    pub kept: RecordBatch,
    /// How many were dropped.
    pub dropped: u64,
    /// Those that go to the quarantine.
    pub quarantined: Vec<Quarantined>,
    /// For each rule, how many rows broke it.
    pub broken: Vec<u64>,
}

/// Applies the rules to a batch of rows that have been sent again so often. A row that breaks several is taken by the
/// first that takes it.
pub fn judge(table: &str, rules: &[Rule], rows: RecordBatch, attempts: u32) -> Result<Judged> {
    let mut judged = Judged { kept: rows.clone(), dropped: 0, quarantined: Vec::new(), broken: vec![0; rules.len()] };
    if rows.num_rows() == 0 {
        return Ok(judged);
    }
    let mut taken = BooleanArray::from(vec![false; rows.num_rows()]);
    for (rule, broken) in rules.iter().zip(&mut judged.broken) {
        let breaks = breaks(rule, &rows)?;
        *broken = breaks.true_count() as u64;
        if *broken == 0 {
            continue;
        }
        let here = and_not(&breaks, &taken)?;
        match rule.otherwise {
            Otherwise::Keep => continue,
            Otherwise::Fail => return Err(stop(table, rule, &filter_record_batch(&rows, &breaks)?)),
            Otherwise::Drop => judged.dropped += here.true_count() as u64,
            Otherwise::Quarantine => {
                let reason = format!("the row does not meet `{}`: {}", rule.name, rule.text);
                judged.quarantined.extend(quarantined(
                    &filter_record_batch(&rows, &here)?,
                    &rule.name,
                    &reason,
                    attempts,
                )?);
            }
        }
        taken = or(&taken, &breaks)?;
    }
    if taken.true_count() > 0 {
        judged.kept = filter_record_batch(&rows, &not(&taken)?)?;
    }
    Ok(judged)
}

fn breaks(rule: &Rule, rows: &RecordBatch) -> Result<BooleanArray> {
    let met = rule.condition.evaluate(rows).and_then(|value| value.into_array(rows.num_rows())).map_err(failed)?;
    let met = met.as_any().downcast_ref::<BooleanArray>();
    let met = met.ok_or_else(|| Error::internal(format!("the rule `{}` is not a condition", rule.name)))?;
    Ok((0..met.len()).map(|row| Some(!(met.is_valid(row) && met.value(row)))).collect())
}

fn stop(table: &str, rule: &Rule, rows: &RecordBatch) -> Error {
    let example = as_json(&rows.slice(0, rows.num_rows().min(1))).unwrap_or_default();
    let example = example.first().map(|json| String::from_utf8_lossy(json).into_owned()).unwrap_or_default();
    Error::config(format!(
        "stopped by the rule `{}` of {table} (`else: fail`): {} rows do not meet {}; the first is {example}",
        rule.name,
        rows.num_rows(),
        rule.text
    ))
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{Field, Schema};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;

    fn rows() -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("x", arrow::datatypes::DataType::Int64, true)]));
        let x = Int64Array::from(vec![Some(1), Some(5), None, Some(9)]);
        RecordBatch::try_new(schema, vec![Arc::new(x)]).unwrap()
    }

    fn rule(name: &str, below: i64, otherwise: Otherwise) -> Rule {
        let schema = rows().schema();
        let condition = binary(col("x", &schema).unwrap(), Operator::Lt, lit(below), &schema).unwrap();
        Rule { name: name.into(), text: format!("x < {below}"), condition, otherwise }
    }

    #[test]
    fn each_row_is_taken_once_and_null_is_not_met() {
        let rules =
            [rule("keep", 2, Otherwise::Keep), rule("drop", 6, Otherwise::Drop), rule("q", 4, Otherwise::Quarantine)];
        let judged = judge("silver.t", &rules, rows(), 0).unwrap();
        assert_eq!(judged.kept.num_rows(), 1);
        assert_eq!(judged.dropped, 2, "the NULL and the 9");
        assert_eq!(judged.quarantined.len(), 1, "the 5");
        assert_eq!(judged.broken, [3, 2, 3]);
        assert_eq!(judged.quarantined[0].raw.as_ref(), br#"{"x":5}"#);
    }

    #[test]
    fn fail_names_the_rule_and_a_row() {
        let error = judge("silver.t", &[rule("all", 6, Otherwise::Fail)], rows(), 0).unwrap_err();
        assert!(error.to_string().contains("`all` of silver.t"), "{error}");
        assert!(error.to_string().contains("2 rows"), "{error}");
    }
}
