//! The prompt of `nexus query`: one query after the other, each ended by `;`.

use std::path::PathBuf;

use datafusion::prelude::SessionContext;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::answer::Answer;
use super::query::{Answered, ask};
use super::terminal;
use crate::{Error, Result};

/// What is shown at the start.
const WELCOME: &str = "End a query with `;`. `SHOW TABLES;` lists the tables, `quit` or Ctrl-D ends.";

/// Asks for queries and answers them, until the user ends.
pub async fn talk(context: &SessionContext, answer: &Answer) -> Result<()> {
    let failed = |e: ReadlineError| Error::internal("could not read from the terminal").because(e);
    let mut editor = DefaultEditor::new().map_err(failed)?;
    let history = history();
    if let Some(history) = &history {
        // The first time there is none.
        drop(editor.load_history(history));
    }
    terminal::complain(WELCOME);
    let mut query = String::new();
    loop {
        let prompt = if query.is_empty() { "nexus> " } else { "   ... " };
        let line = editor.readline(prompt);
        match line {
            Ok(line) if query.is_empty() && matches!(line.trim(), "quit" | "exit" | "\\q") => break,
            Ok(line) => query.push_str(&line),
            Err(ReadlineError::Interrupted) => {
                query.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(failed(error)),
        }
        if query.trim().is_empty() {
            query.clear();
        } else if query.trim_end().ends_with(';') {
            drop(editor.add_history_entry(query.trim()));
            if let Some(history) = &history {
                // A history that cannot be kept is no reason not to answer.
                drop(editor.append_history(history));
            }
            reply(context, &std::mem::take(&mut query), answer).await;
        } else {
            query.push('\n');
        }
    }
    Ok(())
}

async fn reply(context: &SessionContext, query: &str, answer: &Answer) {
    match ask(context, query.trim().trim_end_matches(';'), answer).await {
        Ok(Answered::Rows(1)) => terminal::complain("1 row"),
        Ok(Answered::Rows(rows)) => terminal::complain(&format!("{} rows", terminal::count(rows))),
        Ok(Answered::Refused(wrong)) => terminal::complain(&wrong.render(terminal::errors_have_colour())),
        Err(error) => terminal::complain(&format!("error: {error}")),
    }
}

/// Gives the file that keeps the queries, in the user's folder for such things; makes that folder.
fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let folder = state.join("nexus");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("queries"))
}
