//! `nexus top`: a running pipeline on a terminal.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue, terminal};
use tokio::time::Instant;

mod client;
mod frame;

use super::run::token;
use super::{Failure, terminal as out};
use crate::{Error, Result};
use client::Client;
use frame::Frame;

/// How often the screen is drawn: as often as the rates behind it move.
const DRAW_EVERY: Duration = Duration::from_secs(1);

/// Show how a run is doing that serves pages (`nexus run --listen`): tables, rates, lag, who holds up whom, epochs, and the
/// quarantine. It quits with q.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Where the run listens.
    #[arg(default_value = "127.0.0.1:9464")]
    address: String,
    /// Print one frame, and end.
    #[arg(long)]
    once: bool,
    /// The token that the run asks for; in the environment it is NEXUS_TOKEN.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
}

impl Top {
    pub async fn execute(self) -> Result<(), Failure> {
        let client = Client::new(&self.address, token(self.token_file.as_deref()).await?)?;
        let frame = Frame::ask(&client).await?;
        if self.once {
            out::say(&frame.lines().join("\n"));
            return Ok(());
        }
        let screen = Screen::enter()?;
        let mut frame = Ok(frame);
        loop {
            screen.draw(&frame)?;
            let quits = tokio::task::spawn_blocking(|| waits_for_quit(DRAW_EVERY)).await;
            if quits.map_err(|e| Error::internal("could not wait for a key").because(e))?? {
                return Ok(());
            }
            // A run that is away for a moment is waited for; that it is away is what there is to see.
            frame = Frame::ask(&client).await;
        }
    }
}

/// The terminal's other screen, until this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        terminal::enable_raw_mode().map_err(no_terminal)?;
        // From here on it is given back.
        let screen = Self;
        execute!(std::io::stdout(), EnterAlternateScreen, cursor::Hide).map_err(no_terminal)?;
        Ok(screen)
    }

    fn draw(&self, frame: &Result<Frame>) -> Result<()> {
        let (width, height) = terminal::size().map_err(no_terminal)?;
        let lines = match frame {
            Ok(frame) => frame.lines(),
            Err(error) => vec![error.to_string(), String::new(), "q quits".to_owned()],
        };
        let mut screen = std::io::stdout().lock();
        let drawn = (|| {
            for (row, line) in (0..height).zip(&lines) {
                let line: String = line.chars().take(width.into()).collect();
                queue!(screen, cursor::MoveTo(0, row), Clear(ClearType::CurrentLine), crossterm::style::Print(line))?;
            }
            queue!(screen, Clear(ClearType::FromCursorDown))?;
            screen.flush()
        })();
        drawn.map_err(no_terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The process ends; a terminal that is gone needs nothing back.
        drop(execute!(std::io::stdout(), LeaveAlternateScreen, cursor::Show));
        drop(terminal::disable_raw_mode());
    }
}

/// Waits for a key that quits; gives false if none comes in time.
fn waits_for_quit(time: Duration) -> Result<bool> {
    let until = Instant::now() + time;
    while event::poll(until.saturating_duration_since(Instant::now())).map_err(no_terminal)? {
        let Event::Key(key) = event::read().map_err(no_terminal)? else { return Ok(false) };
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
        if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn no_terminal(error: std::io::Error) -> Error {
    Error::config("this is no terminal to draw on; `nexus top --once` prints one frame").because(error)
}
