//! `nexus check`: parse, type and plan, offline.

use std::path::PathBuf;
use std::sync::Arc;

use nexus_operators::clock::SystemClock;

use super::{Failure, load, parameter, terminal};
use crate::job::state_store;
use crate::plan::{Plan, changes, warnings};
use crate::spec::{Diagnostic, Diagnostics, Loaded};

/// Parse, type and plan pipeline files offline; all errors at once.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The pipeline files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Give a parameter another value.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parameter)]
    set: Vec<(String, String)>,
}

impl Check {
    pub async fn execute(self) -> Result<(), Failure> {
        let mut wrong = Vec::new();
        for file in &self.files {
            let planned = match load(file, &self.set).await {
                Ok(pipeline) if is_local(pipeline.loaded()) => pipeline.plan_evolved().await.map_err(Failure::from),
                Ok(pipeline) => pipeline.plan().await.map_err(Failure::File),
                Err(failure) => Err(failure),
            };
            match planned {
                Ok(plan) => match refusals(&plan).await? {
                    found if found.is_empty() => report(&plan),
                    found => wrong.extend(found),
                },
                Err(Failure::File(found)) => wrong.extend(found.iter().cloned()),
                Err(other) => return Err(other),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::File(Diagnostics::new(wrong))) }
    }
}

/// Tells whether the state of a pipeline lies on this machine: what is checked needs no network.
fn is_local(loaded: &Loaded) -> bool {
    !loaded.state_root().starts_with("s3://")
}

/// Gives the changes that rows and state that are there do not survive, as far as these lie on this machine.
async fn refusals(plan: &Plan) -> Result<Vec<Diagnostic>, Failure> {
    if !is_local(&plan.loaded) {
        return Ok(Vec::new());
    }
    let state = state_store(&plan.loaded, Arc::new(SystemClock)).await?.load().await?;
    let refusals = changes::compare(plan, &state).await.err().unwrap_or_default();
    Ok(refusals.iter().map(|refusal| refusal.diagnostic(plan)).collect())
}

fn report(plan: &Plan) {
    let warnings = Diagnostics::new(plan.warnings.iter().cloned().chain(warnings::of_files(plan)).collect());
    if !warnings.is_empty() {
        terminal::complain(&warnings.render(terminal::errors_have_colour()));
    }
    for source in plan.sources.values().filter(|source| source.inferred) {
        terminal::say(&format!("{}: inferred columns of source {}:", plan.loaded.file(), source.name));
        for field in &source.decoder.columns {
            terminal::say(&format!("    {}: {}", field.name(), crate::spec::columns::type_name(field)));
        }
    }
    let (sources, tables) = (plan.sources.len(), plan.tables.len());
    terminal::say(&format!("{}: good ({sources} sources, {tables} tables)", plan.loaded.file()));
}
