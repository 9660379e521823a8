//! `nexus test`: the cases of pipeline files, in process, without servers.

use std::path::PathBuf;
use std::time::Instant;

use super::{Failure, load, parameter, terminal};
use crate::{BuildError, trial};

/// Run the test cases of pipeline files, in process, without servers.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// The pipeline files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Give a parameter another value.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parameter)]
    set: Vec<(String, String)>,
}

impl Test {
    pub async fn execute(self) -> Result<(), Failure> {
        let (mut passed, mut failed) = (0, 0);
        for file in &self.files {
            let pipeline = load(file, &self.set).await?;
            // A file that cannot be planned is wrong as a whole, not in one case.
            pipeline.plan().await?;
            let loaded = pipeline.loaded();
            for (number, case) in loaded.spec.tests.iter().enumerate() {
                let began = Instant::now();
                let differences = trial::run(loaded, number, case).await.map_err(|error| match error {
                    BuildError::File(wrong) => Failure::File(wrong),
                    BuildError::Operator(error) => Failure::Failed(error.while_doing(format!("case `{}`", case.name))),
                })?;
                let verdict = if differences.is_empty() { "ok    " } else { "FAILED" };
                let took_ms = began.elapsed().as_millis();
                terminal::say(&format!("{}: {verdict} {} ({took_ms} ms)", file.display(), case.name));
                for difference in &differences {
                    terminal::say(&format!("    {} (- expected, + found)", difference.table));
                    difference.lines.iter().for_each(|line| terminal::say(&format!("      {line}")));
                }
                if differences.is_empty() { passed += 1 } else { failed += 1 }
            }
        }
        terminal::say(&format!("{passed} passed, {failed} failed"));
        if failed == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}
