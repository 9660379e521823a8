//! How fast what only grows has grown in the last seconds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Shown;
use crate::job::progress::Progress;

/// How often the numbers are noted.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Over how many of them a rate is taken: it is calm enough to read, and follows within seconds.
const NOTES_MAX: usize = 5;

/// Less time says nothing of a rate.
const SPAN_MIN: Duration = Duration::from_millis(100);

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Growth {
    /// Rows of a source.
    SourceRows,
    /// Bytes of a source.
    SourceBytes,
    /// Rows that a table has given.
    TableRows,
    /// Seconds for which a channel has held its senders up.
    Blocked,
}

/// The numbers of the last seconds. The lock is held to add or to look up some, by the task that notes them and by
/// answers, so it need not be async.
#[derive(Debug, Default)]
pub struct Rates(Mutex<VecDeque<Note>>);

#[derive(Debug)]
struct Note {
    at: Instant,
    numbers: BTreeMap<(Growth, String), f64>,
}

impl Rates {
    /// Gives how much something has grown in a second, on the average of the last seconds; `now` is where it stands.
    pub fn per_second(&self, growth: Growth, of: &str, now: f64) -> f64 {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(oldest) = notes.front().filter(|note| note.at.elapsed() >= SPAN_MIN) else { return 0.0 };
        let before = oldest.numbers.get(&(growth, of.to_owned())).copied().unwrap_or(now);
        ((now - before) / oldest.at.elapsed().as_secs_f64()).max(0.0)
    }

    fn note(&self, progress: &Progress) {
        let mut numbers = BTreeMap::new();
        for (name, source) in &progress.sources {
            numbers.insert((Growth::SourceRows, name.clone()), float(source.rows.load(Ordering::Relaxed)));
            numbers.insert((Growth::SourceBytes, name.clone()), float(source.bytes.load(Ordering::Relaxed)));
        }
        for (name, rows) in progress.rows_out() {
            numbers.insert((Growth::TableRows, name.to_owned()), float(rows));
        }
        for (name, fill) in progress.channels() {
            numbers.insert((Growth::Blocked, name), fill.blocked.as_secs_f64());
        }
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() >= NOTES_MAX {
            notes.pop_front();
        }
        notes.push_back(Note { at: Instant::now(), numbers });
    }
}

/// Notes the numbers of a run until it is aborted.
pub async fn follow(shown: Arc<Shown>) {
    let mut tick = interval(NOTE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Some(progress) = shown.progress.get() {
            shown.rates.note(progress);
        }
    }
}

/// Gives a count as a number that can be divided.
#[allow(clippy::cast_precision_loss, reason = "rates and seconds are shown rounded, and Prometheus knows no others")]
pub fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_the_growth_of_the_last_seconds() {
        let progress = Progress::new("test", ["ticks"].into_iter(), [].into_iter());
        let (rates, rows) = (Rates::default(), &progress.sources["ticks"].rows);
        let rate = |rates: &Rates| rates.per_second(Growth::SourceRows, "ticks", float(rows.load(Ordering::Relaxed)));
        assert_eq!(rate(&rates), 0.0);
        for _ in 0..20 {
            rates.note(&progress);
            rows.fetch_add(300, Ordering::Relaxed);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(rate(&rates), 300.0);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(rate(&rates), 150.0);
    }
}
