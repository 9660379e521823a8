//! Tables: where their rows come from and where they go.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use super::names::NAME_BYTES_MAX;
use crate::spec::codes;
use crate::spec::loaded::is_url;
use crate::spec::model::{ErrorBudget, Keep, Late, Otherwise, PostgresSink, Table, TableFormat};
use crate::spec::order::Order;
use crate::spec::partition::Partition;
use crate::spec::suggest;
use crate::spec::tier::Tier;

/// Distinct values of a row group at most: it has no more rows.
const BLOOM_DISTINCT_MAX: u64 = 1 << 20;

/// Under this, the footer of a file would outgrow its rows.
const ROW_GROUP_BYTES_MIN: u64 = 64 << 10;

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    cycles(check);
    for (tier, name, table) in spec.all_tables() {
        let path = [tier.name(), name];
        input(check, &path, table);
        if let Some(from) = &table.from {
            self::from(check, tier, name, from);
        }
        for (rule, expectation) in &table.expect {
            if expectation.that.trim().is_empty() {
                let place = [&path[..], &["expect", rule, "that"]].concat();
                let message = "the rule has no condition";
                check.error(&place, codes::EMPTY_RULE, message, "write one over the table's columns: `amount > 0`");
            }
        }
        if let Some(unique) = &table.unique {
            check.key(&[&path[..], &["unique", "key"]].concat(), &unique.key);
            if unique.order_by.is_some() && unique.keep == Keep::First {
                let place = [&path[..], &["unique", "order_by"]].concat();
                let message = "of the rows that came first, none is newer";
                check.error(&place, codes::BAD_KEY, message, "add `keep: newest`, or remove `order_by`");
            }
            if unique.within.0.is_zero() {
                let place = [&path[..], &["unique", "within"]].concat();
                let hint = "write how late a repeated row can come: `1d`";
                check.error(&place, codes::BAD_LIMIT, "no key would be remembered", hint);
            }
        }
        if let Late::Update(update) = table.late
            && update.within.0.is_zero()
        {
            let place = [&path[..], &["late", "update", "within"]].concat();
            let hint = "write how long behind its end a window is corrected: `1d`";
            check.error(&place, codes::BAD_LIMIT, "no window would be corrected", hint);
        }
        if let Some(errors) = &table.errors {
            table_errors(check, &[&path[..], &["errors"]].concat(), table, errors);
        }
        partitions(check, &path, table);
        files(check, &path, table);
        if let Some(postgres) = &table.postgres {
            self::postgres(check, &[&path[..], &["postgres"]].concat(), postgres);
        }
    }
}

fn input(check: &mut Check<'_>, path: &[&str], table: &Table) {
    let given = [("from", table.from.is_some()), ("sql", table.sql.is_some()), ("sql_file", table.sql_file.is_some())];
    let given: Vec<&str> = given.into_iter().filter_map(|(key, is)| is.then_some(key)).collect();
    match given.as_slice() {
        [_] => {}
        [] => {
            let message = "the table does not say where its rows come from";
            check.error(path, codes::TABLE_INPUT, message, "give it `from`, `sql` or `sql_file`");
        }
        [_, second, ..] => {
            let message = format!("the table has several inputs: `{}`", given.join("`, `"));
            check.error(&[path, &[second]].concat(), codes::TABLE_INPUT, message, "keep one of them");
        }
    }
    if table.sql.as_ref().is_some_and(|sql| sql.trim().is_empty()) {
        let place = [path, &["sql"]].concat();
        check.error(&place, codes::NO_QUERY, "the query is empty", "write `SELECT ... FROM ...`");
    }
}

fn from(check: &mut Check<'_>, tier: Tier, name: &str, from: &str) {
    let path = [tier.name(), name, "from"];
    if check.sources.contains(from) || check.is_full() {
        return;
    }
    if check.tables.contains(from) {
        let input = from.split_once('.').and_then(|(tier, table)| Some((Tier::by_name(tier)?, table)));
        let Some((input_tier, _)) = input else { return };
        if input_tier > tier {
            let message = format!("`{tier}.{name}` reads `{from}`, a table of a higher tier");
            let hint = "rows go from bronze to silver, gold and vibranium; move one of the two";
            check.error(&path, codes::TIER_ORDER, message, hint);
        }
        return;
    }
    let (message, hint) = if check.names("reference").contains(from) {
        let hint = format!("join it in a query: `sql: SELECT ... FROM ... JOIN {from} ON ...`");
        (format!("`{from}` is a reference table, which gives no rows by itself"), Some(hint))
    } else {
        let of_another_tier = check.tables.iter().find(|table| table.split('.').nth(1) == Some(from));
        let candidates = check.sources.iter().copied().chain(check.tables.iter().map(String::as_str));
        let hint = match of_another_tier {
            Some(table) => Some(format!("did you mean `{table}`?")),
            None => suggest::hint(from, candidates),
        };
        (format!("there is no source or table `{from}`"), hint)
    };
    check.error(&path, codes::UNKNOWN_INPUT, message, hint);
}

/// Finds tables that read themselves by way of `from`. Each table is visited once, since it has one `from`.
fn cycles(check: &mut Check<'_>) {
    let spec = check.spec;
    let from: BTreeMap<String, &str> =
        spec.all_tables().filter_map(|(tier, name, t)| Some((format!("{tier}.{name}"), t.from.as_deref()?))).collect();
    let mut visited = BTreeSet::new();
    for start in from.keys() {
        let mut way: Vec<&str> = Vec::new();
        let mut next = Some(start.as_str());
        while let Some(table) = next.filter(|table| visited.insert(*table)) {
            way.push(table);
            next = from.get(table).copied();
        }
        let Some(back) = next.and_then(|next| way.iter().position(|table| *table == next)) else { continue };
        let cycle = way.split_off(back);
        let Some((tier, name)) = cycle.first().and_then(|table| table.split_once('.')) else { continue };
        let message = format!("the table reads itself: {} <- {tier}.{name}", cycle.join(" <- "));
        check.error(&[tier, name, "from"], codes::CYCLE, message, "let one of them read a source, or a lower tier");
    }
}

fn table_errors(check: &mut Check<'_>, path: &[&str], table: &Table, errors: &ErrorBudget) {
    check.errors(path, errors);
    let quarantines = table.expect.values().any(|rule| rule.otherwise == Otherwise::Quarantine);
    if !quarantines && !errors.late {
        let hint = "add a rule with `else: quarantine`, count late rows (`late: true`), or remove `errors`";
        check.error(path, codes::BAD_ERRORS, "no rule of the table sends rows to the quarantine", hint);
    }
}

fn partitions(check: &mut Check<'_>, path: &[&str], table: &Table) {
    let path = [path, &["partition_by"]].concat();
    for (index, text) in table.partition_by.iter().enumerate() {
        if let Err(message) = text.parse::<Partition>() {
            let index = index.to_string();
            let place = [&path[..], &[&index]].concat();
            let hint = "write a column, `date(column)` or `hour(column)`";
            check.error(&place, codes::BAD_PARTITION, message, hint);
        }
    }
    check.once_each(&path, &table.partition_by, codes::BAD_PARTITION);
}

fn files(check: &mut Check<'_>, path: &[&str], table: &Table) {
    let at = |steps: &[&'static str]| [path, steps].concat();
    let mut columns = Vec::new();
    for (index, text) in table.order_by.iter().enumerate() {
        match text.parse::<Order>() {
            Ok(order) => columns.push(order.column),
            Err(message) => {
                let index = index.to_string();
                let hint = "write a column, with `asc` or `desc` and `nulls first` or `nulls last` where they matter";
                check.error(&[path, &["order_by", &index]].concat(), codes::BAD_FILES, message, hint);
            }
        }
    }
    if columns.len() == table.order_by.len() {
        check.once_each(&at(&["order_by"]), &columns, codes::BAD_FILES);
    }
    if !table.store {
        let given = [("order_by", !table.order_by.is_empty()), ("roll", table.roll.is_some())];
        for (key, _) in given.into_iter().filter(|(_, is)| *is) {
            let message = format!("the table is not stored, so that `{key}` has no effect");
            check.error(&at(&[key]), codes::BAD_FILES, message, "remove it, or `store: false`");
        }
    }
    if table.roll.is_some() && check.spec.table_format(table) == TableFormat::Delta {
        let message = "an entry of a Delta log is one epoch, so that no rows can wait for a later one";
        let hint =
            "remove it: merge small files with OPTIMIZE of any Delta writer, or give the table `table_format: parquet`";
        check.error(&at(&["roll"]), codes::BAD_FILES, message, hint);
    }
    if let Some(roll) = &table.roll {
        for (key, is_zero) in [("size", roll.size.0 == 0), ("age", roll.age.0.is_zero())] {
            if is_zero {
                let hint = "write what the rows of a file take or how long they wait, or remove `roll`";
                check.error(&at(&["roll", key]), codes::BAD_LIMIT, "no rows would be gathered", hint);
            }
        }
    }
    let parquet = &table.parquet;
    check.once_each(&at(&["parquet", "bloom"]), &parquet.bloom, codes::BAD_FILES);
    if parquet.bloom_false_positives.millionths == 0 || parquet.bloom_false_positives.millionths >= 1_000_000 {
        let place = at(&["parquet", "bloom_false_positives"]);
        let message = format!("a filter cannot be wrong in {} of all cases", parquet.bloom_false_positives);
        check.error(&place, codes::BAD_FILES, message, "write a small share: `1%`");
    }
    if parquet.bloom_distinct == 0 || parquet.bloom_distinct > BLOOM_DISTINCT_MAX {
        let message = format!("a filter has room for 1 to {BLOOM_DISTINCT_MAX} values");
        let hint = "write how many distinct values a row group has";
        check.error(&at(&["parquet", "bloom_distinct"]), codes::BAD_LIMIT, message, hint);
    }
    if parquet.row_group.0 < ROW_GROUP_BYTES_MIN {
        let message = "row groups of less than 64KiB cost readers more than they hold";
        check.error(&at(&["parquet", "row_group"]), codes::BAD_LIMIT, message, "write some MiB, such as `64MiB`");
    }
}

fn postgres(check: &mut Check<'_>, path: &[&str], sink: &PostgresSink) {
    let at = |key| [path, &[key]].concat();
    let secrets = check.names("secrets");
    if is_url(&sink.url) {
        // The line may hold a password: the key is shown, and not the line.
        let message = "a connection URL must not stand in the file";
        let hint = "name a secret: `url: pg`, with `secrets: { pg: { env: DATABASE_URL } }`".to_owned();
        let mut found = check.loaded.diagnostic_at(&at("url"), codes::UNKNOWN_SECRET, message, Some(hint));
        if let Some(place) = &mut found.place {
            place.source_line = place.source_line.chars().take(place.column - 1).collect::<String>() + "***";
            place.width = 3;
        }
        check.add(&at("url"), found);
    } else if !secrets.contains(sink.url.as_str()) {
        let hint = suggest::hint(&sink.url, secrets.iter().copied());
        let declare = || format!("declare it: `secrets: {{ {}: {{ env: DATABASE_URL }} }}`", sink.url);
        let message = format!("there is no secret `{}`", sink.url);
        check.error(&at("url"), codes::UNKNOWN_SECRET, message, hint.unwrap_or_else(declare));
    }
    match (sink.key.is_empty(), sink.append) {
        (true, false) => {
            let message = "it is not said what becomes of a row that is there already";
            let hint = "give a `key: [...]` to replace rows, or `append: true` to add every row";
            check.error(path, codes::KEY_XOR_APPEND, message, hint);
        }
        (false, true) => {
            let message = "`append` adds every row, and `key` replaces rows";
            check.error(&at("append"), codes::KEY_XOR_APPEND, message, "keep one of them");
        }
        _ => check.once_each(&at("key"), &sink.key, codes::BAD_KEY),
    }
    match &sink.delete_when {
        Some(_) if sink.key.is_empty() => {
            let message = "`delete_when` deletes the row of a key, and there is no `key`";
            check.error(&at("delete_when"), codes::BAD_DELETE, message, "give a `key: [...]`, or take it out");
        }
        Some(condition) if condition.trim().is_empty() => {
            let hint = "write a condition over the table's columns, such as `status = 'gone'`";
            check.error(&at("delete_when"), codes::BAD_DELETE, "the condition is empty", hint);
        }
        _ => {}
    }
    for (key, name) in [("table", &sink.table), ("schema", &sink.schema)] {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let message = format!("`{key}` has {} bytes; PostgreSQL takes 1 to {NAME_BYTES_MAX}", name.len());
            check.error(&at(key), codes::BAD_NAME, message, None);
        }
    }
}
