//! `nexus man`: manual pages, one of the command and one of each verb.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Arguments, Failure, terminal};
use crate::Error;

/// Write manual pages into a folder, which is made if it is not there.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The folder, such as ~/.local/share/man/man1.
    folder: PathBuf,
}

impl Man {
    pub fn execute(self) -> Result<(), Failure> {
        let failed = |e| Error::config(format!("could not write into {}", self.folder.display())).because(e);
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut command = Arguments::command().disable_help_subcommand(true);
        command.build();
        clap_mangen::generate_to(command, &self.folder).map_err(failed)?;
        terminal::say(&format!("manual pages are in {}", self.folder.display()));
        Ok(())
    }
}
