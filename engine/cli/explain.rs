//! `nexus explain`: what a code means.

use super::{Failure, terminal};
use crate::Error;
use crate::spec::codes;

/// Explain a code of an error in a pipeline file.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// The code, such as N0102; all codes if not given.
    code: Option<String>,
}

impl Explain {
    pub fn execute(self) -> Result<(), Failure> {
        let Some(code) = self.code else {
            for code in codes::CODES {
                terminal::say(&format!("{}  {}", code.code, code.title));
            }
            return Ok(());
        };
        let known = codes::CODES.iter().find(|known| known.code.eq_ignore_ascii_case(&code));
        let known = known.ok_or_else(|| Error::config(format!("there is no code `{code}`; `nexus explain` lists all")))?;
        terminal::say(&format!("{}: {}\n\n{}", known.code, known.title, known.explanation));
        Ok(())
    }
}
