//! The command line: one file a verb.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use nexus_operators::contained::is_contained;

use crate::job::BLOCKING_THREADS_MAX;
use crate::plan::Plan;
use crate::spec::Diagnostics;
use crate::spec::units::Span;
use crate::{BuildError, Error, Pipeline};

mod answer;
mod audit;
mod check;
mod compact;
mod completions;
mod explain;
mod graph;
mod iam;
mod init;
mod junit;
mod log;
mod man;
mod preview;
mod prompt;
mod query;
mod redrive;
mod replacing;
mod resident;
mod run;
mod schema;
mod signals;
mod state;
mod stored;
mod table;
mod terminal;
mod test;
mod top;

/// The exit code of a run that failed.
const FAILED: u8 = 1;

/// The exit code for a pipeline file that is wrong.
const BAD_FILE: u8 = 2;

/// Kinesis and S3 to a medallion lake and Postgres, exactly once.
#[derive(Debug, Parser)]
#[command(name = "nexus", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a pipeline to begin with, that passes `nexus check` and `nexus test`.
    Init(init::Init),
    /// Parse, type and plan pipeline files offline; all errors at once.
    Check(check::Check),
    /// Run a pipeline.
    Run(run::Run),
    /// Show the graph of tables, their schemas, what is stateful, and the plans.
    Plan(graph::Graph),
    /// Show on a terminal how a run is doing.
    Top(top::Top),
    /// Run the test cases of pipeline files, in process, without servers.
    Test(test::Test),
    /// Show a table made of a little of what the real sources have, and commit nothing.
    Preview(preview::Preview),
    /// Run SQL over the lake's committed tables.
    Query(query::Query),
    /// Show epochs, positions, and what is prepared and not committed.
    State(state::ShowState),
    /// Prove from commit records and files that every row is accounted for.
    Audit(audit::ProveWhole),
    /// Send quarantined rows again, after what was wrong has been corrected.
    Redrive(redrive::SendAgain),
    /// Merge small files of the lake's tables.
    Compact(compact::Merge),
    /// Print the least-privilege IAM policy that a pipeline needs, and its VPC endpoints.
    Iam(iam::Iam),
    /// Print the JSON Schema of pipeline files, for editors.
    Schema,
    /// Explain a code of an error in a pipeline file.
    Explain(explain::Explain),
    /// Print what a shell completes the command line by.
    Completions(completions::Completions),
    /// Write manual pages into a folder.
    Man(man::Man),
}

/// A pipeline file and its parameters.
#[derive(Debug, clap::Args)]
struct File {
    /// The pipeline file.
    file: PathBuf,
    /// Give a parameter another value.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parameter)]
    set: Vec<(String, String)>,
}

/// Why a verb ended without success.
#[derive(Debug)]
enum Failure {
    /// The pipeline file is wrong.
    File(Diagnostics),
    /// Something failed.
    Failed(Error),
    /// All has been said already.
    Said,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    quieten_contained_panics();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.max_blocking_threads(BLOCKING_THREADS_MAX).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::complain(&format!("error: could not start threads: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let done = runtime.block_on(dispatch(arguments.verb));
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::from(FAILED),
        Err(Failure::File(wrong)) => {
            terminal::complain(&wrong.render(terminal::errors_have_colour()));
            ExitCode::from(BAD_FILE)
        }
        Err(Failure::Failed(error)) => {
            terminal::complain(&format!("error: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Keeps quiet about panics that are caught where they come from: they say something of a file, which goes to the
/// quarantine with its own words.
fn quieten_contained_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_contained() {
            report(panic);
        }
    }));
}

async fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Init(init) => init.execute().await,
        Verb::Check(check) => check.execute().await,
        Verb::Run(run) => run.execute().await,
        Verb::Plan(graph) => graph.execute().await,
        Verb::Top(top) => top.execute().await,
        Verb::Test(test) => test.execute().await,
        Verb::Preview(preview) => preview.execute().await,
        Verb::Query(query) => query.execute().await,
        Verb::State(state) => state.execute().await,
        Verb::Audit(audit) => audit.execute().await,
        Verb::Redrive(redrive) => redrive.execute().await,
        Verb::Compact(compact) => compact.execute().await,
        Verb::Iam(iam) => iam.execute().await,
        Verb::Schema => schema::execute(),
        Verb::Explain(explain) => explain.execute(),
        Verb::Completions(completions) => completions.execute(),
        Verb::Man(man) => man.execute(),
    }
}

impl File {
    async fn load(&self) -> Result<Pipeline, Failure> {
        load(&self.file, &self.set).await
    }

    async fn plan(&self) -> Result<Plan, Failure> {
        log::tell_of_waiting();
        Ok(self.load().await?.plan_evolved().await?)
    }
}

/// Loads a pipeline file; if it is wrong, its queries are looked at as well, so that everything is said at once.
async fn load(file: &Path, set: &[(String, String)]) -> Result<Pipeline, Failure> {
    match Pipeline::load(file, set) {
        Ok(pipeline) => Ok(pipeline),
        Err(_) => Err(Failure::File(Pipeline::diagnose(file, set).await)),
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.to_owned()));
    pair.filter(|(name, _)| !name.is_empty()).ok_or_else(|| format!("`{text}` is not NAME=VALUE"))
}

fn span(text: &str) -> Result<Duration, String> {
    Span::try_from(text.to_owned()).map(|span| span.0)
}

impl From<Diagnostics> for Failure {
    fn from(wrong: Diagnostics) -> Self {
        Failure::File(wrong)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::File(wrong) => Failure::File(wrong),
            BuildError::Operator(error) => Failure::Failed(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(error)
    }
}
