//! What is probably not meant: parts that nobody reads, columns that nothing sets, keys that do not tell rows apart.

use std::collections::BTreeSet;

use datafusion::common::Dependency;
use datafusion::logical_expr::{Expr, LogicalPlan};
use nexus_operators::decode::{FormatSettings, infer};
use nexus_operators::source::sample::sample;

use super::Plan;
use super::source::SourcePlan;
use super::table::TablePlan;
use super::wording::only_place;
use crate::spec::{Diagnostic, Loaded, codes, model};

/// How much of a file is read to see which columns its header names: more than the longest header has.
const HEADER_BYTES: usize = 64 << 10;

/// Finds what can be found without looking at files.
pub fn of_plan(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = unread(plan);
    for table in &plan.tables {
        let Some(spec) = plan.spec_of(table) else { continue };
        warnings.extend(never_set(&plan.loaded, table));
        warnings.extend(not_unique(&plan.loaded, table, spec));
    }
    warnings
}

/// Finds columns of CSV files on this machine that the header of the first file does not name.
pub fn of_files(plan: &Plan) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (name, source) in &plan.sources {
        let declared = plan.loaded.spec.sources.get(name).and_then(|source| source.columns.as_ref());
        let (Some(declared), Some(named)) = (declared, header(plan, source)) else { continue };
        for (column, _) in declared.0.iter().filter(|(column, _)| !named.contains(column)) {
            let is_time = source.event_time.is_some_and(|index| source.schema.field(index).name() == column);
            let so = if is_time { ", so that no window over it closes before the end of the input" } else { "" };
            let message = format!("the header of the files has no column `{column}`: it is never set{so}");
            let hint = crate::spec::suggest::hint(column, named.iter().map(String::as_str));
            let path = ["sources", name, "columns", column];
            warnings.push(plan.loaded.diagnostic_at(&path, codes::NEVER_SET, message, hint).as_warning());
        }
    }
    warnings
}

/// Gives the columns that the first file of a source names; nothing if there is none, or if its files have no header.
fn header(plan: &Plan, source: &SourcePlan) -> Option<Vec<String>> {
    let format = &source.decoder.format;
    let FormatSettings::Csv { header: true, .. } = format else { return None };
    let glob = plan.loaded.source_glob(&source.name)?;
    // A file that cannot be read is told by the run that reads it.
    let bytes = sample(&glob, format.framing(), HEADER_BYTES).ok()?;
    Some(infer(format, &bytes).ok()?.iter().map(|field| field.name().clone()).collect())
}

/// Warns of what is read by nobody.
fn unread(plan: &Plan) -> Vec<Diagnostic> {
    let (loaded, tables) = (&plan.loaded, &plan.tables);
    let read: BTreeSet<&String> = tables.iter().flat_map(|table| &table.inputs).collect();
    let joined: BTreeSet<&String> = tables.iter().flat_map(|table| &table.references).collect();
    let mut warnings = Vec::new();
    let mut warn = |path: &[&str], message: String| {
        warnings.push(loaded.diagnostic_at(path, codes::UNREAD, message, None).as_warning());
    };
    for name in plan.sources.keys().filter(|name| !read.contains(name)) {
        warn(&["sources", name], format!("no table reads the source `{name}`, so it is not opened"));
    }
    for name in loaded.spec.reference.keys().filter(|name| !joined.contains(name)) {
        warn(&["reference", name], format!("no table reads the reference table `{name}`"));
    }
    for table in tables {
        let name = table.name();
        let spec = loaded.spec.tables(table.tier).get(&table.table);
        if spec.is_some_and(|spec| !spec.store && spec.postgres.is_none()) && !read.contains(&name) {
            warn(&[table.tier.name(), &table.table], format!("{name} is not stored, and no table reads it"));
        }
    }
    warnings
}

/// Warns of columns that are NULL in every row.
fn never_set(loaded: &Loaded, table: &TablePlan) -> Vec<Diagnostic> {
    let nulls = null_columns(&table.logical).into_iter().enumerate().filter(|(_, null)| *null);
    let names = nulls.filter_map(|(place, _)| Some(table.schema.fields().get(place)?.name()));
    let warn = |name: &String| {
        let message = format!("the column `{name}` of {} is never set: it is NULL in every row", table.name());
        let hint = Some("leave it out, or select what it is meant to have".to_owned());
        let query = (table.tier, table.table.as_str());
        let sql = loaded.sql_of(query.0, query.1).unwrap_or_default();
        let wrong = match only_place(sql, name) {
            Some(at) => loaded.diagnostic_in_query(query, at, codes::NEVER_SET, message, hint),
            None => loaded.diagnostic_at(&[table.tier.name(), &table.table, "sql"], codes::NEVER_SET, message, hint),
        };
        wrong.as_warning()
    };
    names.map(warn).collect()
}

/// Tells for each column of a plan whether it is written as NULL.
fn null_columns(plan: &LogicalPlan) -> Vec<bool> {
    let none = || vec![false; plan.schema().fields().len()];
    match plan {
        LogicalPlan::Projection(projection) => {
            let input = null_columns(&projection.input);
            let is_null = |expr: &Expr| match bare(expr) {
                Expr::Literal(value, _) => value.is_null(),
                Expr::Column(column) => {
                    let place = projection.input.schema().index_of_column(column).ok();
                    place.and_then(|place| input.get(place)).is_some_and(|null| *null)
                }
                _ => false,
            };
            projection.expr.iter().map(is_null).collect()
        }
        LogicalPlan::Union(union) => {
            let inputs = union.inputs.iter().map(|input| null_columns(input));
            inputs.reduce(|all, one| all.iter().zip(one).map(|(all, one)| *all && one).collect()).unwrap_or_else(none)
        }
        LogicalPlan::SubqueryAlias(_) | LogicalPlan::Filter(_) | LogicalPlan::Distinct(_) | LogicalPlan::Sort(_) => {
            plan.inputs().first().map_or_else(none, |input| null_columns(input))
        }
        _ => none(),
    }
}

fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        Expr::Cast(cast) => bare(&cast.expr),
        other => other,
    }
}

/// Warns of a key under which rows replace one another that the query tells apart.
fn not_unique(loaded: &Loaded, table: &TablePlan, spec: &model::Table) -> Option<Diagnostic> {
    let key = &spec.postgres.as_ref().filter(|postgres| !postgres.key.is_empty())?.key;
    let missing = distinct_by(table, spec)
        .into_iter()
        .map(|columns| columns.into_iter().filter(|column| !key.contains(column)).collect::<Vec<_>>());
    // Of several ways to tell rows apart, the one that the key is nearest to is meant. One that it holds is enough.
    let missing = missing.min_by_key(Vec::len).filter(|missing| !missing.is_empty())?.join("`, `");
    let message = format!(
        "the key ({}) does not tell the rows of {} apart: of rows that differ in `{missing}`, only the last is kept",
        key.join(", "),
        table.name()
    );
    let hint = Some(format!("add `{missing}` to the key, or group by the key alone"));
    let path = [table.tier.name(), &table.table, "postgres", "key"];
    Some(loaded.diagnostic_at(&path, codes::KEY_NOT_UNIQUE, message, hint).as_warning())
}

/// Gives sets of columns of which each tells all rows apart, as far as the query says.
fn distinct_by(table: &TablePlan, spec: &model::Table) -> Vec<Vec<String>> {
    let mut sets: Vec<Vec<String>> = spec.unique.iter().map(|unique| unique.key.clone()).collect();
    let schema = table.logical.schema();
    let all = schema.fields().len();
    for one in schema.functional_dependencies().iter() {
        if one.mode == Dependency::Single && one.target_indices.len() == all {
            let names = one.source_indices.iter().filter(|index| **index < all);
            sets.push(names.map(|index| schema.field(*index).name().clone()).collect());
        }
    }
    sets
}
