//! `nexus completions`: what shells complete the command line by.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Arguments, Failure, terminal};

/// Print what a shell completes the command line by.
///
/// For bash: nexus completions bash > ~/.local/share/bash-completion/completions/nexus
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub fn execute(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "nexus", &mut script);
        terminal::say(String::from_utf8_lossy(&script).trim_end());
        Ok(())
    }
}
