//! A stored table, as DataFusion reads it: the files, and the columns that only their folders hold.
//!
//! Not DataFusion's `ListingTable` (55.2): it takes the folder of NULL for the text `__HIVE_DEFAULT_PARTITION__`, which
//! is an error where the column is no text, and looks for the rows of `origin = 'a:b'` in a folder `origin=a:b`, where
//! Hive's escapes make it `origin=a%3Ab`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use nexus_operators::sink::delta::logged_files;
use nexus_operators::sink::parquet::folder_values;
use nexus_operators::store::{Backend, Entry, Store, join};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::replacing::Replacing;

/// The committed files of one table.
///
/// Which columns a file lacks is told by its path alone, so that a table whose
/// `partition_by` has changed can be read as a whole. What is listed is what
/// lies in the folder, or stands in its Delta log, when a query is planned; a
/// folder that is not there is an empty table.
#[derive(Debug)]
pub struct StoredTable {
    schema: SchemaRef,
    folder: Store,
    /// Whether a Delta log tells which files of the folder are the table.
    is_delta: bool,
    /// The store of `folder` as DataFusion knows it.
    store: ObjectStoreUrl,
    /// Tells which files are to be read while some are put in the place of others; nothing if none ever are.
    replacing: Option<Replacing>,
}

/// Files by the columns that stand in the names of their folders, as indices in the table's schema.
type Layouts = BTreeMap<Vec<usize>, Vec<PartitionedFile>>;

impl StoredTable {
    /// Makes the table with these columns in `folder`, whose store has been registered as `store`.
    pub fn new(
        schema: SchemaRef,
        folder: Store,
        is_delta: bool,
        store: ObjectStoreUrl,
        replacing: Option<Replacing>,
    ) -> Self {
        Self { schema, folder, is_delta, store, replacing }
    }

    /// Gives the files of the table.
    async fn files(&self) -> Result<Vec<Entry>> {
        if self.is_delta {
            let logged = logged_files(&self.folder).await.map_err(external)?.unwrap_or_default();
            return Ok(logged.active.into_iter().map(|(name, size)| Entry { name, size }).collect());
        }
        let mut files = match &self.replacing {
            Some(replacing) => replacing.list(&self.folder).await.map_err(external)?,
            None => self.folder.list("").await.map_err(external)?,
        };
        files.retain(|file| file.name.ends_with(".parquet"));
        Ok(files)
    }

    async fn layouts(&self) -> Result<Layouts> {
        let mut layouts = Layouts::new();
        for file in self.files().await? {
            let mut columns = Vec::new();
            let mut values = Vec::new();
            for (name, text) in folder_values(&file.name) {
                // The folder of `date(ts)` or `hour(ts)` is none of the table's columns.
                if let Some((index, _)) = self.schema.column_with_name(&name) {
                    columns.push(index);
                    values.push(self.value(index, text)?);
                }
            }
            let mut found = PartitionedFile::from(ObjectMeta {
                location: self.location(&file.name)?,
                last_modified: chrono::DateTime::UNIX_EPOCH,
                size: file.size,
                e_tag: None,
                version: None,
            });
            found.partition_values = values;
            layouts.entry(columns).or_default().push(found);
        }
        Ok(layouts)
    }

    fn location(&self, file: &str) -> Result<Path> {
        match self.folder.backend() {
            Backend::Local(folder) => Path::from_absolute_path(folder.join(file)).map_err(external),
            Backend::Object { prefix, .. } => Ok(join(prefix, file)),
        }
    }

    /// Gives a folder's text the type of its column.
    fn value(&self, column: usize, text: Option<String>) -> Result<ScalarValue> {
        let field = self.schema.field(column);
        match text {
            Some(text) => ScalarValue::try_from_string(text, field.data_type()),
            // The folder is that of NULL and of empty texts alike.
            None if !field.is_nullable() => ScalarValue::try_from_string(String::new(), field.data_type()),
            None => ScalarValue::try_from(field.data_type()),
        }
    }

    /// Plans the reading of files whose folders hold these columns.
    async fn plan(
        &self,
        state: &dyn Session,
        (in_folders, files): (Vec<usize>, Vec<PartitionedFile>),
        wanted: &[usize],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let in_files = (0..self.schema.fields().len()).filter(|column| !in_folders.contains(column));
        let order: Vec<usize> = in_files.clone().chain(in_folders.iter().copied()).collect();
        let file_schema = Arc::new(self.schema.project(&in_files.collect::<Vec<_>>())?);
        let folder_fields = self.schema.project(&in_folders)?.fields().to_vec();
        let columns = TableSchema::builder(file_schema).with_table_partition_cols(folder_fields).build();
        let source = Arc::new(ParquetSource::new(columns));
        let wanted = wanted.iter().filter_map(|column| order.iter().position(|ordered| ordered == column)).collect();
        let scan = FileScanConfigBuilder::new(self.store.clone(), source)
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_projection_indices(Some(wanted))?
            .with_limit(limit)
            .build();
        ParquetFormat::default().create_physical_plan(state, scan).await
    }
}

#[async_trait]
impl TableProvider for StoredTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let mut plans = Vec::new();
        for layout in self.layouts().await? {
            plans.push(self.plan(state, layout, &wanted, limit).await?);
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(Schema::project(&self.schema, &wanted)?)))),
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
