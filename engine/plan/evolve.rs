//! Columns that sources get while a pipeline runs, by `on_unknown_column: evolve`.
//!
//! A decoder keeps the fields that no column declares in `_rescued`. Those that it has seen stand in the commit record of
//! their epoch; from then on every plan of the pipeline has them as columns of the source, and so have the tables that
//! take all columns. A running job plans anew once all sinks have committed that epoch: it drains, and starts again in
//! the same process. So a value lies in `_rescued` or in its column, by the record that the run goes on from.

use std::collections::BTreeMap;

use super::changes::compare;
use super::table::TablePlan;
use super::{Plan, Surroundings};
use crate::spec::model::UnknownColumn;
use crate::spec::{Diagnostics, Loaded};
use crate::state::State;
use crate::state::record::EvolvedColumn;

/// Columns by source, oldest first.
type Evolved = BTreeMap<String, Vec<EvolvedColumn>>;

/// Tells whether some source of a pipeline gets columns while it runs.
pub fn evolves(loaded: &Loaded) -> bool {
    loaded.spec.sources.values().any(|source| source.on_unknown_column == UnknownColumn::Evolve)
}

/// Plans a pipeline with the columns that its sources have got, as far as the file works with them.
///
/// A column may stand in the way of the file: a query gives a column of that name already, state would not survive, or a
/// Postgres table would need a column that Nexus may not make. Then its values stay in `_rescued`.
pub async fn plan(loaded: &Loaded, surroundings: &Surroundings, state: &State) -> Result<Plan, Diagnostics> {
    // A plan, and how many of its tables what is stored does not survive.
    let planned = async |evolved: &Evolved| {
        let surroundings = Surroundings { evolved: evolved.clone(), ..surroundings.clone() };
        let plan = Plan::new(loaded.clone(), &surroundings).await?;
        let refused = compare(&plan, state).await.err().map_or(0, |refusals| refusals.len());
        let refused = refused + fixed_tables_with_new_columns(&plan, state);
        Ok::<_, Diagnostics>((plan, refused))
    };
    let mut evolved = state.evolved.clone();
    let whole = match planned(&evolved).await {
        Ok((plan, 0)) => return Ok(plan),
        whole => whole.map(|(plan, _)| plan),
    };
    // Without the newest ones the file worked before; of those, each that does not stand in the way comes back.
    let mut left_out = Vec::new();
    let (mut fitting, mut least) = loop {
        // What is wrong is not the columns' fault.
        let Some(newest) = pop_newest(&mut evolved) else { return whole };
        left_out.push(newest);
        let is_last = evolved.values().all(Vec::is_empty);
        match planned(&evolved).await {
            Ok((plan, refused)) if refused == 0 || is_last => break (plan, refused),
            _ => {}
        }
    };
    let mut lost = Vec::new();
    for (source, column) in left_out.into_iter().rev() {
        let mut more = evolved.clone();
        more.entry(source.clone()).or_default().push(column.clone());
        match planned(&more).await {
            Ok((plan, refused)) if refused <= least => (fitting, least, evolved) = (plan, refused, more),
            _ => lost.push((source, column.name)),
        }
    }
    if let (true, Ok(whole)) = (least > 0, whole) {
        return Ok(whole);
    }
    for (source, column) in lost {
        tracing::warn!(
            source,
            column,
            "the field cannot become a column, since a query, its state or a Postgres table with `create: false` does not \
             work with it; its values stay in _rescued"
        );
    }
    Ok(fitting)
}

/// Counts the tables of Postgres that may not be altered, and would have to be.
fn fixed_tables_with_new_columns(plan: &Plan, state: &State) -> usize {
    let is_fixed = |table: &&TablePlan| {
        plan.spec_of(table).is_some_and(|spec| spec.postgres.as_ref().is_some_and(|postgres| !postgres.create))
    };
    let has_more = |table: &&TablePlan| {
        let known = state.schema_of(&table.name());
        known.is_some_and(|known| table.schema.fields().iter().any(|field| known.column(field.name()).is_none()))
    };
    plan.tables.iter().filter(is_fixed).filter(has_more).count()
}

fn pop_newest(evolved: &mut Evolved) -> Option<(String, EvolvedColumn)> {
    let newest = evolved.iter_mut().max_by_key(|(_, columns)| columns.last().map(|column| column.found_in));
    newest.and_then(|(source, columns)| Some((source.clone(), columns.pop()?)))
}
