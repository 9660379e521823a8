//! `nexus check`: parse, type and plan, offline.

use std::path::PathBuf;

use super::{Failure, load, parameter, terminal};
use crate::plan::Plan;
use crate::spec::Diagnostics;

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
                Ok(pipeline) => pipeline.plan().await.map_err(Failure::File),
                Err(failure) => Err(failure),
            };
            match planned {
                Ok(plan) => report(&plan),
                Err(Failure::File(found)) => wrong.extend(found.iter().cloned()),
                Err(other) => return Err(other),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::File(Diagnostics::new(wrong))) }
    }
}

fn report(plan: &Plan) {
    if !plan.warnings.is_empty() {
        terminal::complain(&plan.warnings.render(terminal::errors_have_colour()));
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
