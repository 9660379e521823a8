//! `nexus check`: parse, type and plan, offline; and with `--online` look at what the file names.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::join_all;
use nexus_operators::clock::SystemClock;
use serde_json::{Value, json};

use super::{Failure, load, parameter, terminal};
use crate::Error;
use crate::job::state_store;
use crate::online::{Finding, look};
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
    /// Look also whether streams, queues, buckets, folders, tables and secrets are there, can be reached, and may be used.
    #[arg(long)]
    online: bool,
    /// How what was found online is written.
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "online")]
    format: Format,
}

/// How what was found is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A line for each thing, for people.
    Text,
    /// A list, for programs.
    Json,
}

impl Check {
    pub async fn execute(self) -> Result<(), Failure> {
        let (mut wrong, mut good) = (Vec::new(), Vec::new());
        for file in &self.files {
            let planned = match load(file, &self.set).await {
                Ok(pipeline) if is_local(pipeline.loaded()) => pipeline.plan_evolved().await.map_err(Failure::from),
                Ok(pipeline) => pipeline.plan().await.map_err(Failure::File),
                Err(failure) => Err(failure),
            };
            match planned {
                Ok(plan) => match refusals(&plan).await? {
                    found if found.is_empty() => good.push(plan),
                    found => wrong.extend(found),
                },
                Err(Failure::File(found)) => wrong.extend(found.iter().cloned()),
                Err(other) => return Err(other),
            }
        }
        // What is printed for programs is one document.
        good.iter().filter(|_| self.format == Format::Text).for_each(report);
        match wrong.is_empty() {
            true if self.online => self.look(&good).await,
            true => Ok(()),
            false => Err(Failure::File(Diagnostics::new(wrong))),
        }
    }

    async fn look(&self, plans: &[Plan]) -> Result<(), Failure> {
        let found = join_all(plans.iter().map(look)).await.concat();
        match self.format {
            Format::Text => terminal::say(&as_text(&found)),
            Format::Json => {
                let found: Vec<_> = found.iter().map(as_json).collect();
                let text = serde_json::to_string_pretty(&found);
                terminal::say(&text.map_err(|e| Error::internal("could not write what was found").because(e))?);
            }
        }
        if found.iter().all(|one| one.lack.is_none()) { Ok(()) } else { Err(Failure::Said) }
    }
}

/// What was found, or what is missing.
fn result(found: &Finding) -> String {
    found.lack.map_or_else(|| "good".to_owned(), |lack| lack.to_string())
}

fn as_text(found: &[Finding]) -> String {
    let width = |of: fn(&Finding) -> &str| found.iter().map(|one| of(one).chars().count()).max().unwrap_or(0);
    let (places, things) = (width(|one| &one.place), width(|one| &one.thing));
    let line =
        |one: &Finding| format!("{:<10}  {:<places$}  {:<things$}  {}", result(one), one.place, one.thing, one.words);
    found.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn as_json(found: &Finding) -> Value {
    json!({ "place": found.place, "thing": found.thing, "result": result(found), "words": found.words })
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
    let (sources, tables) = (plan.sources.len() as u64, plan.tables.len() as u64);
    let (sources, tables) = (terminal::counted(sources, "source"), terminal::counted(tables, "table"));
    terminal::say(&format!("{}: good ({sources}, {tables})", plan.loaded.file()));
}
