//! `nexus test`: the cases of pipeline files, in process, without servers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::junit::{Suite, write};
use super::{Failure, load, parameter, terminal};
use crate::trial::{self, Difference};
use crate::{BuildError, Error};

/// Run the test cases of pipeline files, in process, without servers.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// The pipeline files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Give a parameter another value.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parameter)]
    set: Vec<(String, String)>,
    /// Run only the cases whose names contain this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Also write what passed and what failed to this file, as JUnit does.
    #[arg(long, value_name = "PATH")]
    junit: Option<PathBuf>,
}

/// A case that was run.
pub struct Tried {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; nothing if it passed.
    pub wrong: Option<Wrong>,
}

/// Why a case failed.
pub enum Wrong {
    /// Tables hold other rows.
    Rows(Vec<Difference>),
    /// The pipeline stopped.
    Stopped(Error),
}

impl Test {
    pub async fn execute(self) -> Result<(), Failure> {
        let (mut passed, mut failed) = (0, 0);
        let mut suites = Vec::new();
        for file in &self.files {
            let pipeline = load(file, &self.set).await?;
            // A file that cannot be planned is wrong as a whole, not in one case.
            pipeline.plan().await?;
            let loaded = pipeline.loaded();
            let mut suite = Suite { file: file.display().to_string(), cases: Vec::new() };
            for (number, case) in
                loaded.spec.tests.iter().enumerate().filter(|(_, case)| case.name.contains(&self.only))
            {
                let began = Instant::now();
                let wrong = match trial::run(loaded, number, case).await {
                    Ok(differences) if differences.is_empty() => None,
                    Ok(differences) => Some(Wrong::Rows(differences)),
                    Err(BuildError::File(wrong)) => return Err(Failure::File(wrong)),
                    Err(BuildError::Operator(error)) => Some(Wrong::Stopped(error)),
                };
                let tried = Tried { name: case.name.clone(), took: began.elapsed(), wrong };
                terminal::say(&tried.said(&suite.file, terminal::output_has_colour()));
                if tried.wrong.is_none() {
                    passed += 1
                } else {
                    failed += 1
                }
                suite.cases.push(tried);
            }
            suites.push(suite);
        }
        if let Some(path) = &self.junit {
            write(&suites, path)?;
        }
        terminal::say(&format!("{passed} passed, {failed} failed"));
        if failed == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}

impl Tried {
    fn said(&self, file: &str, colour: bool) -> String {
        let paint = |style: &str, text: &str| match colour {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let verdict = if self.wrong.is_none() { paint("32", "ok    ") } else { paint("1;31", "FAILED") };
        let head = format!("{file}: {verdict} {} ({} ms)", self.name, self.took.as_millis());
        match &self.wrong {
            None => head,
            Some(wrong) => format!("{head}\n{}", wrong.text(colour)),
        }
    }
}

impl Wrong {
    /// Says in a line what is wrong.
    pub fn summary(&self) -> String {
        match self {
            Wrong::Stopped(error) => error.to_string(),
            Wrong::Rows(differences) => {
                let each = differences.iter().map(|one| format!("{}: {}", one.table, one.summary));
                each.collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// Says what is wrong, with the rows.
    pub fn text(&self, colour: bool) -> String {
        let text = match self {
            Wrong::Stopped(error) => format!("the pipeline stopped: {error}"),
            Wrong::Rows(differences) => {
                let each = differences.iter().map(|one| {
                    let rows = one.render(colour);
                    let sign = if rows.is_empty() { "" } else { " (- expected, + found)\n" };
                    format!("{}: {}{sign}{}", one.table, one.summary, indented(&rows))
                });
                each.collect::<Vec<_>>().join("\n")
            }
        };
        indented(&text)
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
