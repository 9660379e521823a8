//! Tables: from SQL to a checked query over streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::{DFSchema, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, ident};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use nexus_operators::clock::SharedClock;
use nexus_operators::transform::Transform;
use nexus_operators::transform::aggregate::WindowedAggregate;
use nexus_operators::transform::corrected::CorrectedAggregate;
use nexus_operators::transform::expect::Rule;
use nexus_operators::transform::join::Join;
use nexus_operators::transform::keyed::{KeyedAggregate, with_sequence};
use nexus_operators::transform::keys::KeyLimits;
use nexus_operators::transform::leaf::{Leaf, StreamTable};
use nexus_operators::transform::newest::{Newest, NewestSettings};
use nexus_operators::transform::query::{Query, set_time};
use nexus_operators::transform::rows::stored_schema;
use nexus_operators::transform::states::StateLimits;
use nexus_operators::transform::unique::Unique;
use nexus_operators::transform::window::{Extent, Width, Window};
use nexus_operators::{Error, Result};

use super::analyze::{EventTimes, Shape, analyze, corrected_keys, stream_name};
use super::join::JoinPlan;
use super::options::{check_columns, check_corrected, check_keyed, delete_when, newest_plan, rules, unique_plan};
use super::reference::{ReferenceTable, ReferenceView};
use super::refused::{Refused, sql_refused};
use super::wording::Told;
use super::{as_of, windows};
use crate::spec::Tier;
use crate::spec::model::{self, Keep, Late};

/// For a query that is looked at only.
const NOTHING_KEPT: StateLimits = StateLimits { cached_bytes: 0, piece_bytes: 0 };

/// What a table may read.
pub struct Readable<'a> {
    /// Streams by name, with their columns and the index of their event time.
    pub streams: &'a BTreeMap<String, (SchemaRef, Option<usize>)>,
    /// Reference tables by name.
    pub references: &'a BTreeMap<String, Arc<ReferenceTable>>,
    /// The time that `now()` tells.
    pub clock: &'a SharedClock,
}

/// A table, planned.
pub struct TablePlan {
    /// The table's tier.
    pub tier: Tier,
    /// The table's name within its tier.
    pub table: String,
    /// The query.
    pub sql: String,
    /// The streams that the query reads.
    pub inputs: Vec<String>,
    /// The reference tables that the query reads.
    pub references: BTreeSet<String>,
    /// The reference tables as the query sees them.
    pub views: Vec<Arc<ReferenceView>>,
    /// The columns of the rows that come out.
    pub schema: SchemaRef,
    /// The column that carries event time.
    pub event_time: Option<usize>,
    /// The window of the query's aggregate: its place among the keys, and how far it reaches.
    pub window: Option<(usize, Extent)>,
    /// The keys of an aggregate whose rows change, as columns: a row replaces the one before of the same keys.
    pub keys: Option<Vec<usize>>,
    /// The query split at its join of two streams, if it has one.
    pub join: Option<Arc<JoinPlan>>,
    /// What becomes of late rows.
    pub late: Late,
    /// The rules that a row must meet.
    pub rules: Vec<Rule>,
    /// Which rows delete the row of their key in Postgres; nothing if none do.
    pub delete_when: Option<Arc<dyn PhysicalExpr>>,
    /// Key columns, event-time column and bound in microseconds of deduplication.
    pub unique: Option<(Vec<usize>, usize, i64)>,
    /// The same, where the newest row of a key is kept.
    pub newest: Option<NewestSettings>,
    /// The query as a plan over its leaves.
    pub logical: LogicalPlan,
    /// The session, in which the inputs are known.
    pub(super) state: SessionState,
    clock: SharedClock,
    leaves: Vec<Arc<Leaf>>,
    starts: BTreeMap<String, Expr>,
}

impl TablePlan {
    /// Plans a table.
    pub async fn new(
        mut state: SessionState,
        (tier, name): (Tier, &str),
        sql: &str,
        spec: &model::Table,
        readable: &Readable<'_>,
    ) -> Result<Self, Refused> {
        set_time(&mut state, readable.clock);
        let known = register(&state, readable).map_err(|e| sql_refused(&e))?;
        let logical = as_of::plan(&mut state, sql).await.map_err(|e| sql_refused(&e))?;
        use LogicalPlan as L;
        let does_something_else = matches!(
            logical,
            L::Ddl(_) | L::Dml(_) | L::Statement(_) | L::Copy(_) | L::Explain(_) | L::Analyze(_) | L::DescribeTable(_)
        );
        if !does_something_else {
            let logical = windows::resolve(logical).map_err(|e| sql_refused(&e))?;
            return Self::of_query(state, (tier, name), sql, spec, readable, logical, &known).await;
        }
        Err(Refused::Sql(Told { at: Some((1, 1)), ..Told::new("a table is a query: it begins with SELECT or WITH") }))
    }

    async fn of_query(
        state: SessionState,
        (tier, table): (Tier, &str),
        sql: &str,
        spec: &model::Table,
        readable: &Readable<'_>,
        logical: LogicalPlan,
        known: &Known,
    ) -> Result<Self, Refused> {
        let optimised = optimised(&state, &logical).map_err(|e| sql_refused(&e))?;
        let names = scanned(&optimised).union(&scanned(&logical)).cloned().collect::<BTreeSet<_>>();
        let inputs: Vec<String> = names.iter().filter(|name| readable.streams.contains_key(*name)).cloned().collect();
        if inputs.is_empty() {
            let message = "the query reads no source and no table; constant rows belong in a `reference` table";
            return Err(Refused::sql(message));
        }
        let times: EventTimes = inputs.iter().map(|name| (name.clone(), time_name(readable, name))).collect();
        let Shape { window, mut keys, join, mut event_time } = analyze(&optimised, &times).map_err(Refused::Unfit)?;
        if let Late::Update(_) = spec.late {
            check_corrected(spec, window.as_ref())?;
            keys = Some(corrected_keys(&optimised, &times).map_err(Refused::Unfit)?);
            event_time = None;
        }
        let used: Vec<Arc<Leaf>> = inputs.iter().filter_map(|name| known.leaves.get(name).cloned()).collect();
        let starts = match (&window, &join) {
            (Some(window), _) => window.starts.clone(),
            (None, Some(_)) => {
                times.iter().filter_map(|(name, time)| Some((name.clone(), ident(time.as_ref()?)))).collect()
            }
            (None, None) => BTreeMap::new(),
        };
        let join = join.map(|shape| Arc::new(JoinPlan { plan: optimised, shape, times: times.clone() }));
        let run = Run { state: &state, clock: readable.clock, logical: &logical, inputs: &inputs, leaves: &used };
        let schema = run.schema(join.as_deref()).await;
        let schema = schema.map_err(|e| Refused::sql(e.to_string()))?;
        let mut schema = stored_schema(&schema);
        if let Some(keys) = &keys {
            check_keyed(spec, &schema, keys, &times)?;
            schema = with_sequence(&schema);
        }
        let newest = match &spec.unique {
            Some(unique) if unique.keep == Keep::Newest => {
                if window.is_some() || keys.is_some() {
                    let message = "an aggregate has one row for each key already; make the rows that it reads unique";
                    return Err(Refused::Option(vec!["unique".into()], Error::config(message)));
                }
                let newest = newest_plan(spec, unique, &schema, event_time)?;
                keys = Some(newest.key.clone());
                event_time = None;
                schema = with_sequence(&schema);
                Some(newest)
            }
            _ => None,
        };
        check_columns(&schema)?;
        if window.is_none() && join.is_none() && spec.errors.as_ref().is_some_and(|errors| errors.late) {
            let message = "the query has no windows and no join of streams, so no row comes too late; remove `late`";
            return Err(Refused::Option(vec!["errors".into(), "late".into()], Error::config(message)));
        }
        let first = spec.unique.as_ref().filter(|unique| unique.keep == Keep::First);
        let unique = first.map(|unique| unique_plan(unique, &schema, event_time)).transpose()?;
        Ok(Self {
            tier,
            table: table.to_owned(),
            sql: sql.to_owned(),
            views: known.views.iter().filter(|(name, _)| names.contains(*name)).map(|(_, view)| view.clone()).collect(),
            references: names.into_iter().filter(|name| readable.references.contains_key(name)).collect(),
            inputs,
            rules: rules(&state, &schema, spec)?,
            delete_when: delete_when(&state, &schema, spec)?,
            schema,
            event_time,
            keys,
            join,
            late: spec.late,
            unique,
            newest,
            logical,
            leaves: used,
            starts,
            window: window.map(|window| (window.group_index, window.extent)),
            state,
            clock: readable.clock.clone(),
        })
    }

    /// Gives `tier.table`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.tier, self.table)
    }

    /// Tells whether something of the table outlives an epoch.
    pub fn is_stateful(&self) -> bool {
        self.window.is_some() || self.keys.is_some() || self.join.is_some() || self.unique.is_some()
    }

    /// Says why a late row cannot be used; nothing if no row can be late.
    pub fn late_reason(&self) -> Option<&'static str> {
        match (&self.window, &self.join) {
            (Some(_), _) => Some("the row came after its window had been given out"),
            (None, Some(_)) => Some("the row came when those that it belongs to could have been dropped"),
            (None, None) => None,
        }
    }

    /// Describes the query and the rule of uniqueness: state that belongs to another description cannot be used.
    pub fn fingerprint(&self) -> String {
        let columns = |schema: &SchemaRef| {
            let columns = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
            columns.collect::<Vec<_>>().join(", ")
        };
        let inputs = self.inputs.iter().zip(&self.leaves);
        let inputs: Vec<_> = inputs.map(|(name, leaf)| format!("{name}({})", columns(leaf.schema()))).collect();
        let sql = self.sql.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{sql}; over {}{}", inputs.join(", "), self.rule_of_uniqueness())
    }

    /// Describes the rule of uniqueness; empty if there is none.
    pub(super) fn rule_of_uniqueness(&self) -> String {
        let rule = self.unique.as_ref().map(|(key, time, within_us)| {
            let names: Vec<_> = key.iter().map(|index| self.schema.field(*index).name().as_str()).collect();
            format!("; unique ({}) by {} within {within_us} us", names.join(", "), self.schema.field(*time).name())
        });
        let newest = self.newest.as_ref().map(|newest| {
            let name = |index: &usize| self.schema.field(*index).name().as_str();
            let (order, time) = (name(&newest.order), name(&newest.time));
            let key = newest.key.iter().map(name).collect::<Vec<_>>().join(", ");
            format!("; newest of ({key}) by {order}, of {time} within {} us", newest.within_us)
        });
        let corrected = if matches!(self.late, Late::Update(_)) { "; corrected by late rows" } else { "" };
        format!("{}{corrected}", rule.or(newest).unwrap_or_default())
    }

    /// Gives the columns that a sink with a key keeps: all, but for the sequence that tells which row is newer.
    pub fn keyed_schema(&self) -> SchemaRef {
        let columns = self.schema.fields().len() - usize::from(self.keys.is_some());
        Arc::new(Schema::new(self.schema.fields().iter().take(columns).cloned().collect::<Vec<_>>()))
    }

    fn run(&self) -> Run<'_> {
        let (state, clock) = (&self.state, &self.clock);
        Run { state, clock, logical: &self.logical, inputs: &self.inputs, leaves: &self.leaves }
    }

    async fn query(&self) -> Result<Query> {
        self.run().query().await
    }

    /// Gives the plans as DataFusion runs them, each with what it is.
    pub async fn physical(&self) -> Result<Vec<(&'static str, Arc<dyn ExecutionPlan>)>> {
        let Some(join) = &self.join else { return Ok(vec![("query", self.query().await?.physical().clone())]) };
        let join = self.run().join(join, NOTHING_KEPT).await?;
        Ok(join.queries().into_iter().map(|(what, query)| (what, query.physical().clone())).collect())
    }

    /// Makes the query ready to run epoch by epoch.
    pub async fn transform(&self, limits: StateLimits) -> Result<Transform> {
        if let Some(join) = &self.join {
            return Ok(Transform::Joined(Box::new(self.run().join(join, limits).await?)));
        }
        let query = self.query().await?;
        Ok(match self.window {
            Some((index, Extent::Width(width))) if self.keys.is_some() => {
                let Late::Update(update) = self.late else {
                    return Err(Error::internal(format!("the windows of {} change for no reason", self.name())));
                };
                let within_us = i64::try_from(update.within.0.as_micros()).unwrap_or(i64::MAX);
                Transform::Corrected(Box::new(CorrectedAggregate::new(query, index, width, within_us, limits)?))
            }
            None if self.keys.is_some() && self.newest.is_none() => {
                Transform::Keyed(Box::new(KeyedAggregate::new(query, limits)?))
            }
            None => Transform::Stateless(Box::new(query)),
            Some((index, extent)) => {
                Transform::Windowed(Box::new(WindowedAggregate::new(query, index, extent, limits)?))
            }
        })
    }

    /// Makes the memory of keys, if the table is deduplicated.
    pub fn unique(&self, limits: KeyLimits) -> Result<Option<Unique>> {
        let unique = self.unique.clone();
        unique.map(|(key, time, within_us)| Unique::new(&self.schema, key, time, within_us, limits)).transpose()
    }

    /// Makes what keeps the newest row of each key, if the table does.
    pub fn newest(&self, limits: StateLimits) -> Result<Option<Newest>> {
        self.newest.clone().map(|settings| Newest::new(&self.keyed_schema(), settings, limits)).transpose()
    }

    /// Gives the columns of the rows that come out of the query.
    pub fn query_schema(&self) -> SchemaRef {
        if self.newest.is_some() { self.keyed_schema() } else { self.schema.clone() }
    }

    /// Gives the window that a row of an input falls into; of a join, the row's time.
    pub fn input_window(&self, input: &str) -> Result<Option<Window>> {
        let place = self.inputs.iter().position(|name| name == input);
        let (Some(start), Some(leaf)) = (self.starts.get(input), place.and_then(|place| self.leaves.get(place))) else {
            return Ok(None);
        };
        let schema = DFSchema::try_from(leaf.schema().as_ref().clone());
        let start = schema.and_then(|schema| self.state.create_physical_expr(start.clone(), &schema));
        let start = start.map_err(|e| Error::internal("could not plan the window of a row").because(e))?;
        let width = self.window.map_or(Width::Micros(1), |(_, extent)| extent.row_width());
        Ok(Some(Window { start, width }))
    }
}

/// What is needed to run a table's query.
struct Run<'a> {
    state: &'a SessionState,
    clock: &'a SharedClock,
    logical: &'a LogicalPlan,
    inputs: &'a [String],
    leaves: &'a [Arc<Leaf>],
}

impl Run<'_> {
    async fn schema(&self, join: Option<&JoinPlan>) -> Result<SchemaRef> {
        match join {
            Some(join) => Ok(self.join(join, NOTHING_KEPT).await?.schema()),
            None => Ok(self.query().await?.schema()),
        }
    }

    async fn query(&self) -> Result<Query> {
        Query::new(self.state.clone(), self.logical.clone(), self.leaves.to_vec(), self.clock.clone()).await
    }

    async fn join(&self, join: &JoinPlan, limits: StateLimits) -> Result<Join> {
        let inputs = self.inputs.iter().zip(self.leaves);
        let inputs: Vec<_> = inputs.map(|(name, leaf)| (name.clone(), leaf.schema().clone())).collect();
        join.build(self.state, self.clock, &inputs, limits).await
    }
}

/// Optimises a plan. The time of day is not folded in: a part of the plan may run at another.
pub(super) fn optimised(state: &SessionState, plan: &LogicalPlan) -> datafusion::error::Result<LogicalPlan> {
    let mut timeless = state.clone();
    timeless.execution_props_mut().query_execution_start_time = None;
    timeless.optimize(plan)
}

fn time_name(readable: &Readable<'_>, stream: &str) -> Option<String> {
    let (schema, time) = readable.streams.get(stream)?;
    time.map(|index| schema.field(index).name().clone())
}

/// What a session knows, by name.
struct Known {
    leaves: BTreeMap<String, Arc<Leaf>>,
    views: BTreeMap<String, Arc<ReferenceView>>,
}

/// Makes everything readable known to the session.
fn register(state: &SessionState, readable: &Readable<'_>) -> datafusion::error::Result<Known> {
    let options = &state.config_options().catalog;
    let catalog = state.catalog_list().catalog(&options.default_catalog);
    let catalog = catalog.ok_or_else(|| DataFusionError::Internal("there is no default catalog".into()))?;
    let (mut leaves, mut views) = (BTreeMap::new(), BTreeMap::new());
    for (name, (schema, _)) in readable.streams {
        let leaf = Leaf::new(schema.clone());
        put(catalog.as_ref(), &options.default_schema, name, Arc::new(StreamTable(leaf.clone())))?;
        leaves.insert(name.clone(), leaf);
    }
    for (name, reference) in readable.references {
        let view = Arc::new(ReferenceView::new(reference.clone()));
        put(catalog.as_ref(), &options.default_schema, name, view.clone())?;
        views.insert(name.clone(), view);
    }
    Ok(Known { leaves, views })
}

fn put(
    catalog: &dyn CatalogProvider,
    default_schema: &str,
    name: &str,
    provider: Arc<dyn TableProvider>,
) -> datafusion::error::Result<()> {
    let (schema, table) = name.split_once('.').unwrap_or((default_schema, name));
    let known: Arc<dyn SchemaProvider> = match catalog.schema(schema) {
        Some(known) => known,
        None => {
            let made = Arc::new(MemorySchemaProvider::new());
            catalog.register_schema(schema, made.clone())?;
            made
        }
    };
    known.register_table(table.to_owned(), provider).map(drop)
}

/// Names what a plan scans.
fn scanned(plan: &LogicalPlan) -> BTreeSet<String> {
    use datafusion::common::tree_node::TreeNodeRecursion;
    let mut names = BTreeSet::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            names.insert(stream_name(&scan.table_name));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "looking does not fail");
    names
}

/// Names the tables that a query mentions, before it can be planned.
pub fn mentioned(state: &SessionState, sql: &str) -> Result<BTreeSet<String>, Refused> {
    let dialect = state.config_options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect).map_err(|e| sql_refused(&e))?;
    let tables: Vec<TableReference> = state.resolve_table_references(&statement).map_err(|e| sql_refused(&e))?;
    Ok(tables.iter().map(stream_name).collect())
}
