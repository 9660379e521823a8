//! `nexus query`: SQL over the lake's committed tables.

use std::io::IsTerminal;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream;
use nexus_operators::aws::AwsSettings;
use nexus_operators::clock::SystemClock;
use nexus_operators::quarantine;
use nexus_operators::store::{Access, Backend, Store};
use nexus_operators::transform::keyed::SEQUENCE_COLUMN;

use super::answer::{Answer, failed};
use super::replacing::{Known, Replacing};
use super::stored::StoredTable;
use super::{Failure, File, prompt, terminal};
use crate::job::place::PARQUET;
use crate::job::state_store;
use crate::plan::Plan;
use crate::plan::changes::stored_schema;
use crate::plan::refused::{Refused, sql_refused};
use crate::plan::table::TablePlan;
use crate::plan::wording::Told;
use crate::spec::model::TableFormat;
use crate::spec::{Diagnostic, Extent, Tier, codes, offset_of, suggest, word_width};
use crate::{Error, Result};

/// How often a query is run because files are gone that it was about to read: each time, other processes have replaced them.
const TRIES_MAX: usize = 5;

/// Run SQL over the lake's committed tables.
///
/// Tables are named tier.table, and what could not be used quarantine."tier.table" or quarantine.source. Without SQL, the
/// queries are asked for on a terminal, and else read from standard input.
#[derive(Debug, clap::Args)]
pub struct Query {
    #[command(flatten)]
    file: File,
    /// The query.
    sql: Option<String>,
    #[command(flatten)]
    answer: Answer,
}

impl Query {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        let mut config = SessionConfig::new().with_information_schema(true);
        config.options_mut().sql_parser.collect_spans = true;
        let context = SessionContext::new_with_config(config);
        let store = state_store(&plan.loaded, Arc::new(SystemClock)).await?;
        let known = Arc::new(Known::read(store).await?);
        register(&context, &plan, &known).await?;
        let sql = match self.sql {
            Some(sql) => sql,
            None if std::io::stdin().is_terminal() => return Ok(prompt::talk(&context, &self.answer).await?),
            None => std::io::read_to_string(std::io::stdin()).map_err(Error::from)?,
        };
        match ask(&context, &sql, &self.answer).await? {
            Answered::Rows(_) => Ok(()),
            Answered::Refused(wrong) => {
                terminal::complain(&wrong.render(terminal::errors_have_colour()));
                Err(Failure::Said)
            }
        }
    }
}

/// What became of a query.
pub enum Answered {
    /// It was answered with so many rows.
    Rows(u64),
    /// It is wrong.
    Refused(Box<Diagnostic>),
}

/// Answers a query.
pub async fn ask(context: &SessionContext, sql: &str, answer: &Answer) -> Result<Answered> {
    let mut tries = 0;
    let (columns, rows) = loop {
        tries += 1;
        let planned = match context.state().create_logical_plan(sql).await {
            Ok(plan) if !only_reads(&plan) => return Ok(Answered::Refused(Box::new(writes()))),
            Ok(plan) => context.execute_logical_plan(plan).await,
            Err(error) => Err(error),
        };
        let frame = match planned {
            Ok(frame) => frame,
            Err(error) if tries < TRIES_MAX && is_missing(&error) => continue,
            Err(error) => return Ok(Answered::Refused(Box::new(refusal(context, sql, &error)))),
        };
        let columns: SchemaRef = frame.schema().inner().clone();
        match frame.collect().await {
            Ok(rows) => break (columns, rows),
            // Files that were listed have been merged, or sent again, before they were read.
            Err(error) if tries < TRIES_MAX && is_missing(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    };
    Ok(Answered::Rows(answer.write(&columns, stream::iter(rows.into_iter().map(Ok))).await?))
}

/// Tells whether a statement changes nothing: neither tables nor files nor settings.
fn only_reads(plan: &LogicalPlan) -> bool {
    let reading = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    reading.verify_plan(plan).is_ok()
}

fn writes() -> Diagnostic {
    Diagnostic::error(codes::BAD_SQL, "query", "the statement does more than to read")
        .with_hint("ask by SELECT, WITH, SHOW, DESCRIBE or EXPLAIN; `--output FILE` writes the answer to a file")
}

/// Tells whether a file was not there.
fn is_missing(error: &DataFusionError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(object_store::Error::NotFound { .. })) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Tells what is wrong with a query, and where.
fn refusal(context: &SessionContext, sql: &str, error: &DataFusionError) -> Diagnostic {
    let (code, message, hint, at) = match sql_refused(error) {
        Refused::Unknown { input, at } => {
            let known = table_names(context);
            let hint = suggest::hint(&input, known.iter().map(String::as_str));
            (codes::UNKNOWN_INPUT, format!("there is no table `{input}`"), hint, at)
        }
        Refused::Sql(told) => {
            let Told { message, hint, at } = told.within(sql);
            (codes::BAD_SQL, message, hint, at)
        }
        Refused::Unfit(_) | Refused::Option(..) => (codes::BAD_SQL, error.strip_backtrace(), None, None),
    };
    let wrong = Diagnostic { hint, ..Diagnostic::error(code, "query", message) };
    let Some((line, column)) = at else { return wrong };
    let text = sql.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    wrong.at(Extent { line, column, width: word_width(sql, offset_of(sql, line, column)) }, text)
}

fn table_names(context: &SessionContext) -> Vec<String> {
    let catalog = context.catalog("datafusion");
    let schemas = catalog
        .iter()
        .flat_map(|catalog| catalog.schema_names().into_iter().filter_map(|name| Some((catalog.schema(&name)?, name))));
    schemas.flat_map(|(schema, name)| schema.table_names().into_iter().map(move |t| format!("{name}.{t}"))).collect()
}

/// Makes the stored tables and their quarantine known. Only committed files lie in a table's folder.
async fn register(context: &SessionContext, plan: &Plan, known: &Arc<Known>) -> Result<()> {
    let mut lake = Lake { context, plan, readers: Vec::new() };
    for table in &plan.tables {
        let name = table.name();
        let tier = table.tier.name();
        let of = (table.tier, Some(table.table.as_str()));
        if let Some(spec) = plan.spec_of(table).filter(|spec| spec.store) {
            let path = format!("{tier}/{}", table.table);
            let folder = Folder { of, path, format: plan.loaded.spec.table_format(spec) };
            let changes = format!("{}_changes", table.table);
            let stored = if table.keys.is_some() { &changes } else { &table.table };
            let columns = stored_schema(&table.schema, known.schema_of(&name).await.as_ref());
            let replacing = Some(Replacing::new(known.clone(), format!("{name}/{PARQUET}")));
            lake.add(&folder, (tier, stored), &columns, replacing).await?;
            if let Some(keys) = &table.keys {
                add_newest(context, table, keys, &changes).await?;
            }
        }
        lake.add_quarantine(of, &name).await?;
    }
    for source in plan.sources.keys() {
        lake.add_quarantine((Tier::Bronze, None), source).await?;
    }
    Ok(())
}

/// Makes the newest row of each key known under a table's name, of which `changes` has all.
async fn add_newest(context: &SessionContext, table: &TablePlan, keys: &[usize], changes: &str) -> Result<()> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns = table.keyed_schema();
    let of = |indexes: &mut dyn Iterator<Item = usize>| {
        indexes.map(|index| quoted(columns.field(index).name())).collect::<Vec<_>>().join(", ")
    };
    let sql = format!(
        "CREATE VIEW {tier}.{name} AS SELECT {all} FROM (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY \
         {SEQUENCE_COLUMN} DESC NULLS LAST) AS _newest FROM {tier}.{changes}) WHERE _newest = 1",
        tier = table.tier,
        name = quoted(&table.table),
        changes = quoted(changes),
        all = of(&mut (0..columns.fields().len())),
        keys = of(&mut keys.iter().copied()),
    );
    let failed = |e: DataFusionError| Error::internal(format!("could not make a view of {}", table.name())).because(e);
    context.sql(&sql).await.map_err(failed)?;
    Ok(())
}

/// A folder of the lake.
struct Folder<'a> {
    /// The tier, and the table that it is of: they say who reads it.
    of: (Tier, Option<&'a str>),
    path: String,
    format: TableFormat,
}

/// The lake, as its tables are made known.
struct Lake<'a> {
    context: &'a SessionContext,
    plan: &'a Plan,
    /// As whom folders are read: one bucket may be read in several roles.
    readers: Vec<AwsSettings>,
}

impl Lake<'_> {
    /// Makes a folder known as a table.
    async fn add(
        &mut self,
        folder: &Folder<'_>,
        (schema, table): (&str, &str),
        columns: &SchemaRef,
        replacing: Option<Replacing>,
    ) -> Result<()> {
        let failed = |e: DataFusionError| Error::internal(format!("could not register {schema}.{table}")).because(e);
        let loaded = &self.plan.loaded;
        let (tier, of) = folder.of;
        let access = Access { encryption: loaded.encryption(), aws: loaded.lake_aws(tier, of) };
        let root = Store::open(&loaded.lake_root(tier), &access).await?;
        let store = self.register_store(&root, access.aws)?;
        let is_delta = folder.format == TableFormat::Delta;
        let stored = StoredTable::new(columns.clone(), root.below(&folder.path), is_delta, store, replacing);
        let catalog = self.context.catalog("datafusion").ok_or_else(|| Error::internal("there is no catalog"))?;
        let provider = match catalog.schema(schema) {
            Some(provider) => provider,
            None => new_schema(catalog.as_ref(), schema).map_err(failed)?,
        };
        provider.register_table(table.to_owned(), Arc::new(stored)).map_err(failed)?;
        Ok(())
    }

    /// Makes known what a table or source could not use.
    async fn add_quarantine(&mut self, of: (Tier, Option<&str>), name: &str) -> Result<()> {
        let folder = Folder { of, path: format!("_quarantine/{name}"), format: TableFormat::Parquet };
        self.add(&folder, ("quarantine", name), &quarantine::schema(), None).await
    }

    /// Makes a store known, and gives the name under which it is: its bucket, as this one reads it.
    fn register_store(&mut self, root: &Store, by: AwsSettings) -> Result<ObjectStoreUrl> {
        let Backend::Object { objects, .. } = root.backend() else { return Ok(ObjectStoreUrl::local_filesystem()) };
        let reader = self.readers.iter().position(|known| *known == by).unwrap_or_else(|| {
            self.readers.push(by);
            self.readers.len() - 1
        });
        let wrong = || Error::config(format!("`{}` is not a URL", root.url()));
        let url = url::Url::parse(root.url()).map_err(|e| wrong().because(e))?;
        let bucket = url.host_str().ok_or_else(wrong)?;
        let store = ObjectStoreUrl::parse(format!("reader{reader}://{bucket}")).map_err(|e| wrong().because(e))?;
        self.context.register_object_store(store.as_ref(), objects.clone());
        Ok(store)
    }
}

fn new_schema(catalog: &dyn CatalogProvider, name: &str) -> Result<Arc<MemorySchemaProvider>, DataFusionError> {
    let schema = Arc::new(MemorySchemaProvider::new());
    catalog.register_schema(name, schema.clone())?;
    Ok(schema)
}
