//! From spec to a checked graph of stages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::session_state::SessionState;
use nexus_operators::clock::SharedClock;
use nexus_operators::sink::delta;
use nexus_operators::sink::parquet::is_ordered;

pub mod analyze;
pub mod as_of;
mod basis;
pub mod changes;
pub mod describe;
pub mod evolve;
mod graph;
pub mod join;
pub mod lineage;
pub mod masks;
pub mod options;
pub mod reference;
pub mod refused;
pub mod session;
pub mod source;
pub mod table;
pub mod warnings;
mod windows;
pub(crate) mod wording;

use crate::spec::{self, Diagnostic, Diagnostics, Loaded, Order, Severity, Tier, codes, model};
use crate::state::record::EvolvedColumn;
use reference::{ReferenceSettings, ReferenceTable};
use refused::Refused;
use session::Functions;
use source::SourcePlan;
use table::{Readable, TablePlan, mentioned};
use wording::Told;

/// The share of `limits.memory` that queries get for what they build in an epoch (joins, groups, sorts).
const QUERY_SHARE: u64 = 4;

/// A pipeline that has been checked: every source typed, every query planned.
pub struct Plan {
    /// The file.
    pub loaded: Loaded,
    /// The sources, by name.
    pub sources: BTreeMap<String, SourcePlan>,
    /// The reference tables, by name.
    pub references: BTreeMap<String, Arc<ReferenceTable>>,
    /// The tables, each behind those that it reads.
    pub tables: Vec<TablePlan>,
    /// What is probably not meant.
    pub warnings: Diagnostics,
}

/// What a pipeline needs beside its file.
#[derive(Clone)]
pub struct Surroundings {
    /// The time.
    pub clock: SharedClock,
    /// Functions that an embedding service brings.
    pub functions: Functions,
    /// Sources that an embedding service brings, instead of those of the file.
    pub sources: BTreeMap<String, SourcePlan>,
    /// Columns that sources have got while the pipeline ran.
    pub evolved: BTreeMap<String, Vec<EvolvedColumn>>,
}

impl Plan {
    /// Plans a pipeline, and gives everything that is wrong with it at once.
    pub async fn new(loaded: Loaded, surroundings: &Surroundings) -> Result<Self, Diagnostics> {
        let mut planning = Planning { loaded: &loaded, surroundings, broken: &[], wrong: Vec::new() };
        let sources = planning.sources();
        let references = planning.references().await;
        let tables = planning.tables(&sources, &references).await;
        let mut wrong = planning.wrong;
        if wrong.iter().any(|found| found.severity == Severity::Error) {
            return Err(Diagnostics::new(wrong));
        }
        wrong.extend(loaded.warnings.iter().cloned());
        let mut plan = Self { warnings: Diagnostics::default(), loaded, sources, references, tables };
        wrong.extend(warnings::of_plan(&plan));
        plan.warnings = Diagnostics::new(wrong);
        Ok(plan)
    }

    /// Names the sources that some table reads: only these are opened.
    pub fn opened_sources(&self) -> Vec<String> {
        let read: BTreeSet<&String> = self.tables.iter().flat_map(|table| &table.inputs).collect();
        self.sources.keys().filter(|name| read.contains(name)).cloned().collect()
    }

    /// Gives what counts the memory that all queries take.
    pub fn query_memory(&self) -> Option<Arc<dyn MemoryPool>> {
        self.tables.first().map(|table| table.state.runtime_env().memory_pool.clone())
    }

    /// Finds a table by its name, `tier.table`.
    pub fn table(&self, name: &str) -> Option<&TablePlan> {
        self.tables.iter().find(|table| table.name() == name)
    }

    /// Gives what the file says of a table.
    pub fn spec_of(&self, table: &TablePlan) -> Option<&model::Table> {
        self.loaded.spec.tables(table.tier).get(&table.table)
    }
}

/// Gives everything that is wrong with a pipeline file, its queries included as far as the rest of it allows.
pub async fn diagnose(path: &Path, overrides: &[(String, String)], surroundings: &Surroundings) -> Diagnostics {
    let survey = spec::survey_file(path, overrides);
    let mut found = survey.found;
    // A query with a hole in it would be wrong for that reason only.
    let holes = found.iter().any(|d| matches!(d.code, codes::UNKNOWN_PARAM | codes::BAD_SUBSTITUTION));
    if let Some(loaded) = survey.sound.as_ref().filter(|_| !holes) {
        let mut planning = Planning { loaded, surroundings, broken: &survey.wrong, wrong: Vec::new() };
        let sources = planning.sources();
        let references = planning.references().await;
        planning.tables(&sources, &references).await;
        found.extend(planning.wrong);
    }
    Diagnostics::new(found)
}

/// A plan in the making.
struct Planning<'a> {
    loaded: &'a Loaded,
    surroundings: &'a Surroundings,
    /// Where the file is known to be wrong: what depends on it is left alone.
    broken: &'a [Vec<String>],
    wrong: Vec<Diagnostic>,
}

impl<'a> Planning<'a> {
    /// Finds a table of the file by its name, `tier.table`.
    fn find(&self, name: &str) -> Option<(Tier, &'a str, &'a model::Table)> {
        let (tier, table) = name.split_once('.')?;
        let tier = Tier::by_name(tier)?;
        self.loaded.spec.tables(tier).get_key_value(table).map(|(table, spec)| (tier, table.as_str(), spec))
    }

    fn sources(&mut self) -> BTreeMap<String, SourcePlan> {
        let mut plans = self.surroundings.sources.clone();
        for (name, source) in &self.loaded.spec.sources {
            if plans.contains_key(name) || self.is_broken(&["sources", name]) {
                continue;
            }
            match SourcePlan::new(self.loaded, name, source) {
                Ok(plan) => drop(plans.insert(name.clone(), plan)),
                Err(error) => self.refuse(&["sources", name], codes::BAD_SOURCE, error.to_string(), None),
            }
        }
        self.check_masks(&plans);
        for (name, columns) in &self.surroundings.evolved {
            let Some(plan) = plans.get_mut(name).filter(|plan| plan.evolves) else { continue };
            match plan.with_columns(columns) {
                Ok(wider) => *plan = wider,
                Err(error) => self.refuse(&["sources", name], codes::BAD_SOURCE, error.to_string(), None),
            }
        }
        plans
    }

    /// Checks that sources have the columns that they mask.
    fn check_masks(&mut self, plans: &BTreeMap<String, SourcePlan>) {
        for (name, source) in &self.loaded.spec.sources {
            let Some(plan) = plans.get(name) else { continue };
            for (place, column) in source.mask.iter().enumerate() {
                if plan.schema.index_of(column).is_err() {
                    let known = plan.schema.fields().iter().map(|field| field.name().as_str());
                    let hint = crate::spec::suggest::hint(column, known);
                    let message = format!("source {name} has no column `{column}`");
                    self.refuse(&["sources", name, "mask", &place.to_string()], codes::UNKNOWN_COLUMN, message, hint);
                }
            }
        }
    }

    async fn references(&mut self) -> BTreeMap<String, Arc<ReferenceTable>> {
        let mut tables = BTreeMap::new();
        for (name, spec) in &self.loaded.spec.reference {
            if self.is_broken(&["reference", name]) {
                continue;
            }
            let loaded = match self.reference_settings(name, spec) {
                Ok(settings) => ReferenceTable::load(settings, self.surroundings.clock.clone()).await,
                Err(error) => Err(error),
            };
            match loaded {
                Ok(table) => drop(tables.insert(name.clone(), Arc::new(table))),
                Err(error) => self.refuse(&["reference", name], codes::BAD_REFERENCE, error.to_string(), None),
            }
        }
        tables
    }

    fn reference_settings(&self, name: &str, spec: &model::Reference) -> nexus_operators::Result<ReferenceSettings> {
        let path = self.loaded.reference_path(name).unwrap_or_default();
        let guessed = format_of(&path);
        let format = self.loaded.format_settings(["reference", name], spec.format.as_ref().or(guessed.as_ref()));
        Ok(ReferenceSettings {
            name: name.to_owned(),
            format: format.map_err(|wrong| nexus_operators::Error::config(wrong.why))?,
            path,
            aws: self.loaded.aws(spec.role.as_ref()),
            columns: spec.columns.as_ref().map(source::declared_fields).transpose()?,
            refresh: spec.refresh.map(|refresh| refresh.0),
            record_bytes_max: source::record_bytes_max(self.loaded),
        })
    }

    async fn tables(
        &mut self,
        sources: &BTreeMap<String, SourcePlan>,
        references: &BTreeMap<String, Arc<ReferenceTable>>,
    ) -> Vec<TablePlan> {
        let memory = usize::try_from(self.loaded.spec.limits.memory.0 / QUERY_SHARE).unwrap_or(usize::MAX);
        let Ok(runtime) = session::runtime(memory) else { return Vec::new() };
        let session = || session::state(runtime.clone(), &self.surroundings.functions);
        let Ok(parser) = session() else { return Vec::new() };
        let reads = self.reads(&parser);
        let mut streams: BTreeMap<String, (SchemaRef, Option<usize>)> =
            sources.iter().map(|(name, plan)| (name.clone(), (plan.schema.clone(), plan.event_time))).collect();
        let mut planned: Vec<TablePlan> = Vec::new();
        for name in self.order(&reads) {
            let (Some(read), Some((tier, table, spec))) = (reads.get(&name), self.find(&name)) else { continue };
            // What reads something that was refused would only be refused for the same reason.
            let refused = |read: &String| {
                let declared = self.find(read).is_some()
                    || self.loaded.spec.sources.contains_key(read)
                    || self.loaded.spec.reference.contains_key(read);
                declared && !streams.contains_key(read) && !references.contains_key(read)
            };
            let changing = planned.iter().find(|plan| plan.keys.is_some() && read.contains(&plan.name()));
            if let Some(changing) = changing {
                let message = format!("{name} reads {}, whose rows change", changing.name());
                let hint = "such a table is for its sinks; read what it reads, or put both into one query";
                self.refuse(&[tier.name(), table], codes::NOT_STREAMABLE, message, Some(hint.to_owned()));
                continue;
            }
            if read.iter().any(refused) || !self.keeps_order(&name, tier, read) {
                continue;
            }
            let readable = Readable { streams: &streams, references, clock: &self.surroundings.clock };
            let plan = match session() {
                Ok(state) => TablePlan::new(state, (tier, table), &self.sql(tier, table, spec), spec, &readable).await,
                Err(error) => Err(Refused::sql(error.to_string())),
            };
            match plan {
                Ok(plan) => {
                    self.check_columns(&plan, spec);
                    if plan.keys.is_none() {
                        streams.insert(name, (plan.schema.clone(), plan.event_time));
                    }
                    planned.push(plan);
                }
                Err(why) => self.refuse_table((tier, table), why),
            }
        }
        planned
    }

    /// Finds for each table what it reads; a table whose query cannot be read is left out.
    fn reads(&mut self, parser: &SessionState) -> BTreeMap<String, BTreeSet<String>> {
        let mut reads = BTreeMap::new();
        for (tier, name, spec) in self.loaded.spec.all_tables() {
            if ["from", "sql", "sql_file"].iter().any(|key| self.is_broken(&[tier.name(), name, key])) {
                continue;
            }
            match mentioned(parser, &self.sql(tier, name, spec)) {
                Ok(names) => drop(reads.insert(format!("{tier}.{name}"), names)),
                Err(why) => self.refuse_table((tier, name), why),
            }
        }
        reads
    }

    /// Puts the tables in the order of who reads whom; those that read one another are left out.
    fn order(&mut self, reads: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
        let mut left = reads.clone();
        loop {
            let cycle = match graph::order(&left) {
                Ok(order) => return order,
                Err(cycle) => cycle,
            };
            let Some((tier, name, _)) = cycle.first().and_then(|name| self.find(name)) else { return Vec::new() };
            let message = format!("tables read one another: {}", cycle.join(" reads "));
            let hint = Some("let one of them read what the other reads".to_owned());
            self.refuse(&[tier.name(), name], codes::CYCLE, message, hint);
            left.retain(|name, _| !cycle.contains(name));
        }
    }

    /// Refuses a table that reads one of a higher tier.
    fn keeps_order(&mut self, name: &str, tier: Tier, read: &BTreeSet<String>) -> bool {
        let higher = read.iter().find(|read| self.find(read).is_some_and(|(of, ..)| of > tier));
        let (Some(higher), Some((_, table, _))) = (higher, self.find(name)) else { return true };
        let message = format!("{name} reads {higher}, a table of a higher tier");
        let hint = Some("rows go from bronze to silver to gold to vibranium; move one of the two".to_owned());
        self.refuse(&[tier.name(), table], codes::TIER_ORDER, message, hint);
        false
    }

    fn sql(&self, tier: Tier, name: &str, spec: &model::Table) -> String {
        match &spec.from {
            Some(from) => format!("SELECT * FROM {from}"),
            None => self.loaded.sql_of(tier, name).unwrap_or_default().to_owned(),
        }
    }

    /// Checks that options name columns that the table has.
    fn check_columns(&mut self, plan: &TablePlan, spec: &model::Table) {
        let columns: Vec<String> = plan.schema.fields().iter().map(|field| field.name().clone()).collect();
        let tier = plan.tier.name();
        let is_delta = spec.store && self.loaded.spec.table_format(spec) == model::TableFormat::Delta;
        // A partition that does not parse is refused already.
        if let (true, Ok(partition_by)) = (is_delta, options::partition_by(spec))
            && let Err(error) = delta::check_columns(&plan.schema, &partition_by, &plan.name())
        {
            let hint = Some("or give the table `table_format: parquet`".to_owned());
            self.refuse(&[tier, &plan.table], codes::NO_DELTA_TYPE, error.to_string(), hint);
        }
        let mut named: Vec<(Vec<String>, String)> = Vec::new();
        let mut in_files: BTreeSet<&str> = columns.iter().map(String::as_str).collect();
        for (place, text) in spec.partition_by.iter().enumerate() {
            if let Ok(partition) = text.parse::<crate::spec::Partition>() {
                if matches!(partition, crate::spec::Partition::Column(_)) {
                    in_files.remove(partition.column());
                }
                named.push((vec!["partition_by".into(), place.to_string()], partition.column().to_owned()));
            }
        }
        if in_files.is_empty() {
            let message = format!("every column of {} is a partition, so that its files would hold none", plan.name());
            let hint = Some("partition it by fewer columns".to_owned());
            self.refuse(&[tier, &plan.table, "partition_by"], codes::BAD_PARTITION, message, hint);
        }
        for (place, column) in spec.mask.iter().enumerate() {
            named.push((vec!["mask".into(), place.to_string()], column.clone()));
        }
        for (place, order) in spec.order_by.iter().filter_map(|text| text.parse::<Order>().ok()).enumerate() {
            self.check_in_files(plan, &in_files, &["order_by", &place.to_string()], &order.column, is_ordered);
            named.push((vec!["order_by".into(), place.to_string()], order.column));
        }
        for (place, column) in spec.parquet.bloom.iter().enumerate() {
            let is_flat = |data_type: &DataType| !data_type.is_nested();
            self.check_in_files(plan, &in_files, &["parquet", "bloom", &place.to_string()], column, is_flat);
            named.push((vec!["parquet".into(), "bloom".into(), place.to_string()], column.clone()));
        }
        for (place, column) in spec.postgres.iter().flat_map(|postgres| &postgres.key).enumerate() {
            named.push((vec!["postgres".into(), "key".into(), place.to_string()], column.clone()));
        }
        for (at, column) in named {
            if columns.contains(&column) {
                continue;
            }
            let mut path = vec![tier, plan.table.as_str()];
            path.extend(at.iter().map(String::as_str));
            let message = format!("{} has no column `{column}`", plan.name());
            let hint = crate::spec::suggest::hint(&column, columns.iter().map(String::as_str));
            self.refuse(&path, codes::UNKNOWN_COLUMN, message, hint);
        }
    }

    /// Checks that a column stands in the files, and is of a type that an option takes.
    fn check_in_files(
        &mut self,
        plan: &TablePlan,
        in_files: &BTreeSet<&str>,
        option: &[&str],
        column: &str,
        takes: fn(&DataType) -> bool,
    ) {
        let Some((_, field)) = plan.schema.column_with_name(column) else { return };
        let (message, hint) = if !in_files.contains(column) {
            let hint = "leave it out: all rows of a file have the same value";
            (format!("`{column}` stands in the names of folders, and not in the files of {}", plan.name()), hint)
        } else if !takes(field.data_type()) {
            let hint = "name a column of single values: a number, a text, a time";
            (format!("`{column}` of {} holds several values at a time", plan.name()), hint)
        } else {
            return;
        };
        let path = [&[plan.tier.name(), plan.table.as_str()], option].concat();
        self.refuse(&path, codes::BAD_TABLE_OPTION, message, Some(hint.to_owned()));
    }

    /// Tells whether something under `path`, or what holds it, is known to be wrong.
    fn is_broken(&self, path: &[&str]) -> bool {
        self.broken.iter().any(|wrong| wrong.iter().zip(path).all(|(wrong, step)| wrong == step))
    }

    fn refuse(&mut self, path: &[&str], code: &'static str, message: impl Into<String>, hint: Option<String>) {
        self.wrong.push(self.loaded.diagnostic_at(path, code, message, hint));
    }

    /// Refuses a table's query, at a line and column of it if they are known.
    fn refuse_query(
        &mut self,
        (tier, name): (Tier, &str),
        at: Option<(usize, usize)>,
        code: &'static str,
        message: String,
        hint: Option<String>,
    ) {
        let key = if self.loaded.sql_of(tier, name).is_some() { "sql" } else { "from" };
        match at {
            Some(at) => self.wrong.push(self.loaded.diagnostic_in_query((tier, name), at, code, message, hint)),
            None => self.refuse(&[tier.name(), name, key], code, message, hint),
        }
    }

    fn refuse_table(&mut self, (tier, name): (Tier, &str), why: Refused) {
        let sql = self.loaded.sql_of(tier, name).unwrap_or_default();
        match why {
            Refused::Unknown { input, at } => {
                let message = format!("there is no source or table `{input}`");
                let tables = self.loaded.spec.all_tables().map(|(tier, table, _)| format!("{tier}.{table}"));
                let others = self.loaded.spec.sources.keys().chain(self.loaded.spec.reference.keys()).cloned();
                let known: Vec<String> = tables.chain(others).collect();
                let hint = spec::suggest::hint(&input, known.iter().map(String::as_str));
                let at = at.or_else(|| wording::only_place(sql, &input));
                self.refuse_query((tier, name), at, codes::UNKNOWN_INPUT, message, hint);
            }
            Refused::Sql(told) => {
                let Told { message, hint, at } = told.within(sql);
                self.refuse_query((tier, name), at, codes::BAD_SQL, message, hint);
            }
            Refused::Unfit(unfit) => {
                let at = wording::keywords(&unfit.message).find_map(|word| wording::only_place(sql, word));
                self.refuse_query((tier, name), at, codes::NOT_STREAMABLE, unfit.message, Some(unfit.hint));
            }
            Refused::Option(at, error) => {
                let mut path = vec![tier.name(), name];
                path.extend(at.iter().map(String::as_str));
                self.refuse(&path, codes::BAD_TABLE_OPTION, error.to_string(), None);
            }
        }
    }
}

/// Guesses a format from a file's suffix.
pub(crate) fn format_of(glob: &str) -> Option<model::Format> {
    let name = glob.trim_end_matches(".gz").trim_end_matches(".zst");
    let csv = || serde_json::from_value::<model::CsvFormat>(serde_json::json!({})).ok().map(model::Format::Csv);
    let avro = || serde_json::from_value::<model::AvroFormat>(serde_json::json!({})).ok().map(model::Format::Avro);
    match name.rsplit('.').next()? {
        "avro" => avro(),
        "csv" => csv(),
        "parquet" => Some(model::Format::Parquet),
        "json" | "jsonl" | "ndjson" => Some(model::Format::Json),
        _ => None,
    }
}
