//! `nexus query`: SQL over the lake's committed tables.

use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{SessionConfig, SessionContext};
use nexus_operators::store::{Backend, Store};

use super::{Failure, File, terminal};
use crate::plan::Plan;
use crate::{Error, Result};

/// Run SQL over the lake's committed tables.
#[derive(Debug, clap::Args)]
pub struct Query {
    #[command(flatten)]
    file: File,
    /// The query; tables are named tier.table.
    sql: String,
}

impl Query {
    pub async fn execute(self) -> Result<(), Failure> {
        let plan = self.file.plan().await?;
        let config = SessionConfig::new().with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        register(&context, &plan).await?;
        let failed = |e: datafusion::error::DataFusionError| Error::config("could not run the query").because(e);
        let answer = context.sql(&self.sql).await.map_err(failed)?;
        let rows = answer.collect().await.map_err(failed)?;
        terminal::say(&pretty_format_batches(&rows).map_err(Error::from)?.to_string());
        Ok(())
    }
}

/// Makes the stored tables and their quarantine known. Only committed files lie in a table's folder.
async fn register(context: &SessionContext, plan: &Plan) -> Result<()> {
    let failed = |e: datafusion::error::DataFusionError| Error::internal("could not register a table").because(e);
    let catalog = context.catalog("datafusion").ok_or_else(|| Error::internal("there is no catalog"))?;
    for table in &plan.tables {
        if !plan.spec_of(table).is_some_and(|spec| spec.store) {
            continue;
        }
        let tier = table.tier.name();
        if catalog.schema(tier).is_none() {
            catalog.register_schema(tier, Arc::new(MemorySchemaProvider::new())).map_err(failed)?;
        }
        let root = Store::open(&plan.loaded.lake_root(table.tier), &crate::job::encryption(plan)).await?;
        let folder = root.below(&format!("{tier}/{}", table.table));
        let url = match folder.backend() {
            Backend::Local(path) => format!("file://{}/", path.display()),
            Backend::Object { objects, .. } => {
                let url = format!("{}/", folder.url());
                let at = url::Url::parse(&url).map_err(|e| Error::config(format!("`{url}` is not a URL")).because(e))?;
                context.register_object_store(&at, objects.clone());
                url
            }
        };
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let url = ListingTableUrl::parse(&url).map_err(failed)?;
        let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(table.schema.clone());
        let listing = ListingTable::try_new(config).map_err(failed)?;
        let schema = catalog.schema(tier).ok_or_else(|| Error::internal("a schema has gone"))?;
        schema.register_table(table.table.clone(), Arc::new(listing)).map_err(failed)?;
    }
    Ok(())
}
