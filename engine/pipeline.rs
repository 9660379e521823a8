//! Building and starting a pipeline in code.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::Field;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use nexus_operators::batch::OffsetKind;
use nexus_operators::clock::{SharedClock, SystemClock};
use nexus_operators::decode::{BATCH_ROWS_MAX, DecoderSettings, FormatSettings, RECORD_BYTES_LIMIT, UnknownColumns};
use nexus_operators::sink::Sink;
use nexus_operators::source::Source;
use nexus_operators::{Error, Result};

use crate::job::redrive::Redrive;
use crate::job::{Job, RunSettings, state_store};
use crate::plan::session::Functions;
use crate::plan::source::SourcePlan;
use crate::plan::{Plan, Surroundings, evolve};
use crate::spec::{self, Diagnostics, Loaded};

/// Why a pipeline cannot be built.
#[derive(Debug)]
pub enum BuildError {
    /// The file is wrong; everything that is wrong with it.
    File(Diagnostics),
    /// An operator that was handed over does not fit.
    Operator(Error),
}

/// A pipeline in the making: a file, and what an embedding service adds to it.
pub struct Pipeline {
    loaded: Loaded,
    clock: SharedClock,
    functions: Functions,
    planned: BTreeMap<String, SourcePlan>,
    sources: BTreeMap<String, Box<dyn Source>>,
    sinks: Vec<(String, String, Box<dyn Sink>)>,
    until_idle: Option<Duration>,
    redrive: Option<Redrive>,
    stores: bool,
}

impl Pipeline {
    /// Loads a pipeline file; `overrides` are parameters as `--set` gives them.
    pub fn load(path: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Self, Diagnostics> {
        Ok(Self::new(spec::load(path.as_ref(), overrides)?))
    }

    /// Gives everything that is wrong with a pipeline file: what [`load`](Self::load) finds, and what is wrong with
    /// its queries as far as the rest allows.
    pub async fn diagnose(path: impl AsRef<Path>, overrides: &[(String, String)]) -> Diagnostics {
        let surroundings = Surroundings {
            clock: Arc::new(SystemClock),
            functions: Functions::default(),
            sources: BTreeMap::new(),
            evolved: BTreeMap::new(),
        };
        crate::plan::diagnose(path.as_ref(), overrides, &surroundings).await
    }

    /// Reads the text of a pipeline file; relative paths in it are taken from the current folder.
    pub fn parse(text: &str) -> Result<Self, Diagnostics> {
        Ok(Self::new(spec::parse(text, "pipeline", Path::new("."), &[])?))
    }

    /// Starts from a file that has been loaded.
    pub fn new(loaded: Loaded) -> Self {
        Self {
            loaded,
            clock: Arc::new(SystemClock),
            functions: Functions::default(),
            planned: BTreeMap::new(),
            sources: BTreeMap::new(),
            sinks: Vec::new(),
            until_idle: None,
            redrive: None,
            stores: true,
        }
    }

    /// Takes the time from another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Has a source of the file read by an operator of the service's own; its format, columns and event time are
    /// those of the file.
    pub fn with_source(mut self, name: &str, source: Box<dyn Source>) -> Result<Self, BuildError> {
        let Some(declared) = self.loaded.spec.sources.get(name) else {
            return Err(BuildError::Operator(Error::config(format!("the file has no source `{name}`"))));
        };
        let mut plan = SourcePlan::new(&self.loaded, name, declared).map_err(BuildError::Operator)?;
        plan.embedded = true;
        self.planned.insert(name.to_owned(), plan);
        self.sources.insert(name.to_owned(), source);
        Ok(self)
    }

    /// Adds a source that gives typed rows with these columns; `event_time` names the column that tells when a row
    /// happened. A source of the file with the same name is replaced.
    pub fn with_rows(
        mut self,
        name: &str,
        columns: Vec<Field>,
        event_time: Option<(&str, Duration)>,
        source: Box<dyn Source>,
    ) -> Result<Self, BuildError> {
        let settings = DecoderSettings {
            source: name.into(),
            format: FormatSettings::Batch,
            columns,
            unknown: UnknownColumns::Reject,
            offsets: OffsetKind::Number,
            batch_rows_max: BATCH_ROWS_MAX,
            record_bytes_max: RECORD_BYTES_LIMIT,
            archives: false,
        };
        let column = event_time.map(|(column, _)| column);
        let mut plan = SourcePlan::of_decoder(name, settings, column).map_err(BuildError::Operator)?;
        plan.lateness = event_time.map(|(_, lateness)| lateness).unwrap_or_default();
        plan.embedded = true;
        self.planned.insert(name.to_owned(), plan);
        self.sources.insert(name.to_owned(), source);
        Ok(self)
    }

    /// Also gives the rows of a table, `tier.table`, to a sink of the service's own, which takes part in each commit
    /// under the name `name`.
    #[must_use]
    pub fn with_sink(mut self, table: &str, name: &str, sink: Box<dyn Sink>) -> Self {
        self.sinks.push((table.to_owned(), name.to_owned(), sink));
        self
    }

    /// Lets queries call a function of one row.
    #[must_use]
    pub fn with_function(mut self, function: ScalarUDF) -> Self {
        self.functions.scalars.push(Arc::new(function));
        self
    }

    /// Lets queries call an aggregate.
    #[must_use]
    pub fn with_aggregate(mut self, aggregate: AggregateUDF) -> Self {
        self.functions.aggregates.push(Arc::new(aggregate));
        self
    }

    /// Ends the run once all sources have been idle for so long; that is the end of input.
    #[must_use]
    pub fn until_idle(mut self, idle: Duration) -> Self {
        self.until_idle = Some(idle);
        self
    }

    /// Sends quarantined rows again, and reads nothing from the sources.
    ///
    /// A run takes as many as one epoch can hold. Start another pipeline for the rest, until the report of one tells of
    /// no epoch: then there is nothing more to send.
    #[must_use]
    pub fn redriving(mut self, redrive: Redrive) -> Self {
        self.redrive = Some(redrive);
        self
    }

    /// Has no table stored but by the service's own sinks.
    pub(crate) fn without_stores(mut self) -> Self {
        self.stores = false;
        self
    }

    /// Has a source that is planned already read by an operator.
    pub(crate) fn with_planned(mut self, plan: SourcePlan, source: Box<dyn Source>) -> Self {
        self.sources.insert(plan.name.clone(), source);
        self.planned.insert(plan.name.clone(), plan);
        self
    }

    /// Gives the file.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Checks the pipeline and plans its queries, by what the file says alone.
    pub async fn plan(&self) -> Result<Plan, Diagnostics> {
        Plan::new(self.loaded.clone(), &self.surroundings()).await
    }

    /// Checks the pipeline and plans its queries, with the columns that sources have got while it ran: see
    /// `on_unknown_column: evolve`. Where no source gets any, the state is not looked at.
    pub async fn plan_evolved(&self) -> Result<Plan, BuildError> {
        if !evolve::evolves(&self.loaded) {
            return self.plan().await.map_err(BuildError::File);
        }
        let store = state_store(&self.loaded, self.clock.clone()).await.map_err(BuildError::Operator)?;
        let state = store.load().await.map_err(BuildError::Operator)?;
        evolve::plan(&self.loaded, &self.surroundings(), &state).await.map_err(BuildError::File)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            clock: self.clock.clone(),
            functions: self.functions.clone(),
            sources: self.planned.clone(),
            evolved: BTreeMap::new(),
        }
    }

    /// Checks, plans and starts the pipeline in the background of the current tokio runtime.
    pub async fn start(self) -> Result<Job, BuildError> {
        let plan = Box::pin(self.plan_evolved()).await?;
        for (table, name, _) in &self.sinks {
            if plan.table(table).is_none() {
                let message = format!("could not attach the sink {name}: there is no table {table}");
                return Err(BuildError::Operator(Error::config(message)));
            }
        }
        let settings = RunSettings {
            until_idle: self.until_idle,
            surroundings: self.surroundings(),
            sources: self.sources,
            sinks: self.sinks,
            redrive: self.redrive,
            stores: self.stores,
        };
        Job::start(plan, settings).await.map_err(BuildError::Operator)
    }
}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BuildError::File(wrong) => wrong.fmt(f),
            BuildError::Operator(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {}

impl From<Diagnostics> for BuildError {
    fn from(wrong: Diagnostics) -> Self {
        BuildError::File(wrong)
    }
}
