//! `nexus query`: SQL over the lake's committed tables.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::prelude::{SessionConfig, SessionContext};
use nexus_operators::clock::SystemClock;
use nexus_operators::quarantine;
use nexus_operators::store::{Backend, Store};
use nexus_operators::transform::keyed::SEQUENCE_COLUMN;

use super::replacing::{Known, Replacing};
use super::stored::StoredTable;
use super::{Failure, File, terminal};
use crate::job::place::PARQUET;
use crate::job::state_store;
use crate::plan::Plan;
use crate::plan::changes::stored_schema;
use crate::plan::table::TablePlan;
use crate::spec::Tier;
use crate::spec::model::TableFormat;
use crate::{Error, Result};

/// How often a query is run because files are gone that it was about to read: each time, other processes have replaced them.
const TRIES_MAX: usize = 5;

/// Run SQL over the lake's committed tables.
///
/// Tables are named tier.table, and what could not be used quarantine."tier.table" or quarantine.source.
#[derive(Debug, clap::Args)]
pub struct Query {
    #[command(flatten)]
    file: File,
    /// The query.
    sql: String,
}

impl Query {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        let config = SessionConfig::new().with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        let store = state_store(&plan.loaded, Arc::new(SystemClock)).await?;
        let known = Arc::new(Known::read(store).await?);
        register(&context, &plan, &known).await?;
        let mut tries = 0;
        let (columns, rows) = loop {
            tries += 1;
            match answer(&context, &self.sql).await {
                Ok(answer) => break answer,
                // Files that were listed have been merged, or sent again, before they were read.
                Err(error) if tries < TRIES_MAX && is_missing(&error) => {}
                Err(error) => return Err(Error::config("could not run the query").because(error).into()),
            }
        };
        let table = pretty_format_batches_with_schema(columns, &rows).map_err(Error::from)?;
        terminal::say(&table.to_string());
        Ok(())
    }
}

async fn answer(context: &SessionContext, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), DataFusionError> {
    let answer = context.sql(sql).await?;
    let columns: SchemaRef = answer.schema().inner().clone();
    Ok((columns, answer.collect().await?))
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

/// Makes the stored tables and their quarantine known. Only committed files lie in a table's folder.
async fn register(context: &SessionContext, plan: &Plan, known: &Arc<Known>) -> Result<()> {
    for table in &plan.tables {
        let name = table.name();
        let tier = table.tier.name();
        if let Some(spec) = plan.spec_of(table).filter(|spec| spec.store) {
            let folder =
                Folder { path: format!("{tier}/{}", table.table), format: plan.loaded.spec.table_format(spec) };
            let changes = format!("{}_changes", table.table);
            let stored = if table.keys.is_some() { &changes } else { &table.table };
            let columns = stored_schema(&table.schema, known.schema_of(&name).await.as_ref());
            let replacing = Some(Replacing::new(known.clone(), format!("{name}/{PARQUET}")));
            add(context, plan, table.tier, &folder, (tier, stored), &columns, replacing).await?;
            if let Some(keys) = &table.keys {
                add_newest(context, table, keys, &changes).await?;
            }
        }
        let folder = Folder { path: format!("_quarantine/{name}"), format: TableFormat::Parquet };
        add(context, plan, table.tier, &folder, ("quarantine", &name), &quarantine::schema(), None).await?;
    }
    for source in plan.sources.keys() {
        let folder = Folder { path: format!("_quarantine/{source}"), format: TableFormat::Parquet };
        add(context, plan, Tier::Bronze, &folder, ("quarantine", source), &quarantine::schema(), None).await?;
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

/// A folder of a tier's lake.
struct Folder {
    path: String,
    format: TableFormat,
}

/// Makes one folder of a tier's lake known as a table.
async fn add(
    context: &SessionContext,
    plan: &Plan,
    tier: Tier,
    folder: &Folder,
    (schema, table): (&str, &str),
    columns: &SchemaRef,
    replacing: Option<Replacing>,
) -> Result<()> {
    let failed = |e: DataFusionError| Error::internal(format!("could not register {schema}.{table}")).because(e);
    let root = Store::open(&plan.loaded.lake_root(tier), &plan.loaded.access()).await?;
    let store = register_store(context, &root)?;
    let is_delta = folder.format == TableFormat::Delta;
    let stored = StoredTable::new(columns.clone(), root.below(&folder.path), is_delta, store, replacing);
    let catalog = context.catalog("datafusion").ok_or_else(|| Error::internal("there is no catalog"))?;
    let provider = match catalog.schema(schema) {
        Some(provider) => provider,
        None => new_schema(catalog.as_ref(), schema).map_err(failed)?,
    };
    provider.register_table(table.to_owned(), Arc::new(stored)).map_err(failed)?;
    Ok(())
}

fn new_schema(catalog: &dyn CatalogProvider, name: &str) -> Result<Arc<MemorySchemaProvider>, DataFusionError> {
    let schema = Arc::new(MemorySchemaProvider::new());
    catalog.register_schema(name, schema.clone())?;
    Ok(schema)
}

/// Makes a lake's store known, and gives the name under which it is.
fn register_store(context: &SessionContext, root: &Store) -> Result<ObjectStoreUrl> {
    let Backend::Object { objects, .. } = root.backend() else { return Ok(ObjectStoreUrl::local_filesystem()) };
    let wrong = || Error::config(format!("`{}` is not a URL", root.url()));
    let url = url::Url::parse(root.url()).map_err(|e| wrong().because(e))?;
    let store = ObjectStoreUrl::parse(&url[..url::Position::BeforePath]).map_err(|e| wrong().because(e))?;
    context.register_object_store(store.as_ref(), objects.clone());
    Ok(store)
}
