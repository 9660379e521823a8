//! Reads one shard: what to ask next, when, and what an answer means.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::backoff::{Backoff, GIVE_UP_AFTER};
use super::kpl::{self, Content, HashRange};
use super::service::{Answer, Fault, IteratorFrom, RawRecord, Service, ShardFacts};
use super::{Aggregated, OnDataLoss};
use crate::batch::Record;
use crate::error::{Error, Result};
use crate::position::Position;

/// Time between two calls to a shard that is behind. The service allows five
/// calls a second to all consumers of a shard together; this takes four.
const POLL_BEHIND: Duration = Duration::from_millis(250);

/// Time between two calls to a shard that has caught up: leaves most of the
/// five calls to others, and keeps the latency near a second.
const POLL_AT_TIP: Duration = Duration::from_secs(1);

/// A request that is later than this tells that the source stood still; that
/// the shard had caught up before says nothing of now.
const TIP_STALE: Duration = Duration::from_secs(5);

/// What a shard gives in a second; after a larger answer the service refuses calls until the bytes are paid for.
const SHARD_BYTES_PER_SECOND: u32 = 2 * 1024 * 1024;

/// Bytes that an answer should have: what a shard gives in a second. The service would send up to 10 MB at once, which
/// brings no more in the long run, needs five times the memory, and takes longer than a call may on a slow way.
const ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// Records that an answer may have.
const ANSWER_RECORDS_MAX: u32 = 10_000;

/// Records of the first answer, which tells how large they are.
const FIRST_RECORDS_MAX: u32 = 20;

/// An iterator lives 5 minutes; one that is older than this is renewed before it is used.
const ITERATOR_AGE_MAX: Duration = Duration::from_secs(270);

/// After so many failures in a row an iterator is not trusted any more: it is
/// cheap to make a new one, and a broken one would fail for ever.
const FAILURES_PER_ITERATOR: u32 = 5;

/// How many answers in a row, each from a new iterator, must hold no record, no iterator and no children before a closed
/// shard counts as read to its end. Once is a bad answer; that the shard is closed says nothing of what is unread.
const BARE_ENDS: u32 = 3;

/// A start time moves on at the tip in such steps, and stays so far behind, so that a quiet shard's position does not age
/// beyond the retention, and a clock that is wrong by less loses nothing.
const TIME_STEP_MS: i64 = 3_600_000;

/// How close to the retention the first record after a restart may be. The
/// service trims records a little late; a minute tells its horizon from mere lag.
const HORIZON_MARGIN_MS: i64 = 60_000;

/// How the source as a whole reads its shards.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// The stream, for messages.
    pub stream: String,
    /// Whether records are looked at for aggregates.
    pub aggregated: Aggregated,
    /// What to do about a position that cannot be read any more.
    pub on_data_loss: OnDataLoss,
    /// How long the stream keeps records.
    pub retention: Duration,
    /// Whether the throughput of a shard is shared, so that calls keep a pace; if not, the service keeps it.
    pub paced: bool,
}

/// The state of one shard's reading.
pub(super) struct Reader {
    shard: Arc<str>,
    reading: Arc<Reading>,
    hash_range: Option<HashRange>,
    /// Where the next iterator begins: behind what has been read.
    from: IteratorFrom,
    /// The last record that has been read; nothing up to it is handed on again.
    read_to: Option<ReadTo>,
    /// Whether the next records are the first behind a committed position.
    resumed: bool,
    /// The next iterator, and when it was given.
    iterator: Option<(String, Instant)>,
    due: Instant,
    asked_at: Instant,
    in_flight: bool,
    /// Whether the iterators ended without word of children: a listing must tell whether the shard is closed.
    closing: bool,
    /// How many such ends there were in a row.
    bare_ends: u32,
    at_tip: bool,
    lag_ms: Option<u64>,
    /// How many records the next answer may have.
    records_max: u32,
    backoff: Backoff,
}

/// A place between two records, or between two user records of an aggregate.
#[derive(Debug, Clone)]
struct ReadTo {
    sequence: String,
    sub_sequence: Option<u64>,
}

/// What a request came back with.
pub(super) enum Reply {
    Iterator(Result<String, Fault>),
    Records(Result<Batch, Fault>),
}

/// What a reply means for the source.
pub(super) enum Step {
    /// Nothing to hand on.
    Nothing,
    /// The shard has moved.
    Moved(Moved),
    /// The service does not know the shard: a listing must tell.
    Missing,
    /// The source has to report an error.
    Failed(Error),
}

/// How far a shard has moved.
#[derive(Default)]
pub(super) struct Moved {
    /// Records to hand on.
    pub records: Vec<Record>,
    /// The position behind them, if it has changed.
    pub position: Option<Position>,
    /// Whether the shard ends behind the records.
    pub end: End,
}

/// Whether a shard has ended.
#[derive(Default)]
pub(super) enum End {
    /// There may be more records.
    #[default]
    Open,
    /// There will be no more; these come after it.
    Closed(Vec<ShardFacts>),
    /// The service gave neither an iterator nor children: ask a listing.
    Unsure,
}

/// An answer with its aggregates opened.
pub(super) struct Batch {
    records: Vec<Record>,
    last_sequence: Option<String>,
    first_arrival_ms: Option<i64>,
    bytes: usize,
    /// How many records the service gave.
    given: usize,
    next: Option<String>,
    lag_ms: Option<u64>,
    children: Vec<ShardFacts>,
}

impl Reader {
    /// Begins to read a shard at a position. `resumed`: the position is one of an earlier process.
    pub fn new(
        shard: &Arc<str>,
        position: &Position,
        hash_range: Option<HashRange>,
        resumed: bool,
        reading: Arc<Reading>,
        now: Instant,
    ) -> Result<Self> {
        let (from, read_to) = match position {
            Position::Start => (IteratorFrom::TrimHorizon, None),
            Position::Time { ms } => (IteratorFrom::Time(*ms), None),
            Position::Sequence { sequence, sub_sequence } => {
                // Inside an aggregate its record has to be read again.
                let from =
                    sub_sequence.map_or(IteratorFrom::After(sequence.clone()), |_| IteratorFrom::At(sequence.clone()));
                (from, Some(ReadTo { sequence: sequence.clone(), sub_sequence: *sub_sequence }))
            }
            Position::Offset { .. } | Position::Done { .. } => {
                let text = format!("shard {shard} of {} cannot be read from {position:?}", reading.stream);
                return Err(Error::internal(text));
            }
        };
        Ok(Self {
            shard: shard.clone(),
            resumed: resumed && read_to.is_some(),
            reading,
            hash_range,
            from,
            read_to,
            iterator: None,
            due: now,
            asked_at: now,
            in_flight: false,
            closing: false,
            bare_ends: 0,
            at_tip: false,
            lag_ms: None,
            records_max: FIRST_RECORDS_MAX,
            backoff: Backoff::default(),
        })
    }

    /// Tells when the next request is due; nothing while one is in flight or a listing is awaited.
    pub fn due(&self) -> Option<Instant> {
        (!self.in_flight && !self.closing).then_some(self.due)
    }

    /// Tells whether the last answer was empty and not behind.
    pub fn is_at_tip(&self) -> bool {
        self.at_tip
    }

    /// Gives how far the last answer was behind the newest record.
    pub fn lag_ms(&self) -> Option<u64> {
        self.lag_ms
    }

    /// Tells whether a listing must say if the shard is closed.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Tells whether a shard that a listing shows as closed has been read to its end.
    pub fn has_ended(&self) -> bool {
        self.closing && self.bare_ends >= BARE_ENDS
    }

    /// Goes on with a new iterator after a listing: the shard is not closed, or perhaps not read to its end.
    pub fn reopen(&mut self, now: Instant) {
        self.closing = false;
        self.iterator = None;
        self.due = now + POLL_AT_TIP;
    }

    /// Makes the next request.
    pub fn request(&mut self, service: Arc<dyn Service>, now: Instant) -> BoxFuture<'static, Reply> {
        self.in_flight = true;
        self.at_tip &= now.duration_since(self.due) < TIP_STALE;
        self.asked_at = now;
        self.iterator.take_if(|(_, given_at)| now.duration_since(*given_at) > ITERATOR_AGE_MAX);
        let Some((iterator, _)) = &self.iterator else {
            let (shard, from) = (self.shard.clone(), self.from.clone());
            return Box::pin(async move { Reply::Iterator(service.iterator(&shard, &from).await) });
        };
        let (iterator, records_max) = (iterator.clone(), self.records_max);
        let opening = Opening {
            shard: self.shard.clone(),
            aggregated: self.reading.aggregated == Aggregated::Auto,
            hash_range: self.hash_range.clone(),
            read_to: self.read_to.clone(),
        };
        Box::pin(async move { Reply::Records(read(service, iterator, records_max, opening).await) })
    }

    /// Takes a reply in.
    pub fn replied(&mut self, reply: Reply, now: Instant, now_ms: i64) -> Step {
        self.in_flight = false;
        match reply {
            Reply::Iterator(Ok(iterator)) => {
                self.iterator = Some((iterator, now));
                self.due = now;
                Step::Nothing
            }
            Reply::Iterator(Err(Fault::Invalid(error))) => self.position_refused(error, now, now_ms),
            Reply::Records(Ok(batch)) => self.read(batch, now, now_ms),
            Reply::Records(Err(Fault::Expired(error) | Fault::Invalid(error))) => {
                self.iterator = None;
                self.failed(error, now)
            }
            Reply::Iterator(Err(fault)) | Reply::Records(Err(fault)) => match fault {
                Fault::Refused(error) => Step::Failed(error),
                Fault::Missing(error) => match self.failed(error, now) {
                    Step::Nothing => Step::Missing,
                    step => step,
                },
                Fault::Busy(error) | Fault::Expired(error) | Fault::Invalid(error) => self.failed(error, now),
            },
        }
    }

    fn read(&mut self, batch: Batch, now: Instant, now_ms: i64) -> Step {
        // What is not taken in has to come again, and a subscription goes on by itself.
        self.iterator = None;
        if batch.next.is_some() && !batch.children.is_empty() {
            let text = format!("shard {} has an iterator and children at once, which cannot be", self.shard);
            return self.failed(Error::unavailable(text), now);
        }
        if let Err(error) = self.check_horizon(&batch, now_ms) {
            self.due = now + POLL_AT_TIP;
            return Step::Failed(error);
        }
        self.backoff.succeeded();
        self.lag_ms = batch.lag_ms;
        if let Some(record_bytes) = batch.bytes.checked_div(batch.given) {
            let fitting = ANSWER_BYTES / record_bytes.max(1);
            self.records_max = u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, ANSWER_RECORDS_MAX);
        }
        let is_behind = batch.lag_ms.is_some_and(|lag_ms| lag_ms > 0);
        self.at_tip = batch.given == 0 && !is_behind && batch.next.is_some();
        let paid_for = Duration::from_secs(1) * u32::try_from(batch.bytes).unwrap_or(u32::MAX) / SHARD_BYTES_PER_SECOND;
        let pause = paid_for.max(if is_behind { POLL_BEHIND } else { POLL_AT_TIP });
        self.due = if self.reading.paced { self.asked_at + pause } else { now };
        let mut moved = Moved { records: batch.records, ..Moved::default() };
        if let Some(sequence) = batch.last_sequence {
            self.from = IteratorFrom::After(sequence.clone());
            self.read_to = Some(ReadTo { sequence: sequence.clone(), sub_sequence: None });
            moved.position = Some(Position::Sequence { sequence, sub_sequence: None });
        } else if self.at_tip {
            moved.position = self.move_start_time(now_ms);
        }
        let is_bare = batch.next.is_none() && batch.children.is_empty();
        self.bare_ends = if is_bare && batch.given == 0 { self.bare_ends + 1 } else { 0 };
        match batch.next {
            Some(next) => self.iterator = Some((next, now)),
            None if is_bare => {
                self.closing = true;
                moved.end = End::Unsure;
            }
            None => moved.end = End::Closed(batch.children),
        }
        Step::Moved(moved)
    }

    /// Notes a failed request; it is an error only when nothing else has come for too long.
    fn failed(&mut self, error: Error, now: Instant) -> Step {
        self.at_tip = false;
        // Where an answer takes too long, a smaller one comes through.
        self.records_max = (self.records_max / 2).max(1);
        let Some(wait) = self.backoff.failed(now, (&self.shard, now)) else {
            self.due = now + POLL_AT_TIP;
            let minutes = GIVE_UP_AFTER.as_secs() / 60;
            let text = format!("no read of shard {} has succeeded for {minutes} minutes", self.shard);
            return Step::Failed(Error::unavailable(text).because(error));
        };
        tracing::debug!(shard = %self.shard, %error, ?wait, "a read of a kinesis shard failed, backing off");
        if self.backoff.failures().is_multiple_of(FAILURES_PER_ITERATOR) {
            self.iterator = None;
        }
        self.due = now + wait;
        Step::Nothing
    }

    /// The service gives no iterator for our position.
    fn position_refused(&mut self, error: Error, now: Instant, now_ms: i64) -> Step {
        match &self.from {
            IteratorFrom::TrimHorizon => return Step::Failed(error),
            // The service's clock is behind ours: the time will come.
            IteratorFrom::Time(ms) if *ms > now_ms - TIME_STEP_MS => return self.failed(error, now),
            _ => {}
        }
        self.due = now + POLL_AT_TIP;
        if self.reading.on_data_loss == OnDataLoss::Fail {
            return Step::Failed(self.data_loss().because(error));
        }
        tracing::warn!(shard = %self.shard, position = ?self.from, %error,
            "the committed position is not in the kinesis stream any more, going on at its oldest record");
        self.from = IteratorFrom::TrimHorizon;
        self.resumed = false;
        Step::Moved(Moved { position: Some(Position::Start), ..Moved::default() })
    }

    /// Looks whether the first records behind a committed position stand at the trim horizon.
    fn check_horizon(&mut self, batch: &Batch, now_ms: i64) -> Result<()> {
        let Some(arrival_ms) = batch.first_arrival_ms.filter(|_| self.resumed) else { return Ok(()) };
        if arrival_ms <= horizon_ms(now_ms, self.reading.retention).saturating_add(HORIZON_MARGIN_MS) {
            if self.reading.on_data_loss == OnDataLoss::Fail {
                return Err(self.data_loss());
            }
            tracing::warn!(shard = %self.shard, position = ?self.from,
                "records behind the committed position may have been trimmed before they were read");
        }
        self.resumed = false;
        Ok(())
    }

    fn data_loss(&self) -> Error {
        data_loss(&self.reading, &format!("shard {} was read up to {:?}", self.shard, self.from))
    }

    fn move_start_time(&mut self, now_ms: i64) -> Option<Position> {
        let IteratorFrom::Time(ms) = &mut self.from else { return None };
        let moved_ms = now_ms - TIME_STEP_MS;
        if moved_ms - *ms < TIME_STEP_MS {
            return None;
        }
        *ms = moved_ms;
        Some(Position::Time { ms: moved_ms })
    }
}

/// Gives the error that says that records were trimmed before they were read.
pub(super) fn data_loss(reading: &Reading, what: &str) -> Error {
    let hours = reading.retention.as_secs() / 3600;
    Error::config(format!(
        "{what}, and the kinesis stream {} does not have what follows any more (it keeps records for {hours} h, or it \
         was made anew): records may be lost; to go on at the oldest record that is there, set `on_data_loss: continue`",
        reading.stream
    ))
}

/// Gives the time before which records are trimmed.
pub(super) fn horizon_ms(now_ms: i64, retention: Duration) -> i64 {
    now_ms.saturating_sub(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX))
}

/// Compares two sequence numbers. They overflow 128 bits, so their digits are compared.
fn compare_sequences(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// How a shard's records are opened.
struct Opening {
    shard: Arc<str>,
    aggregated: bool,
    hash_range: Option<HashRange>,
    read_to: Option<ReadTo>,
}

async fn read(service: Arc<dyn Service>, iterator: String, records_max: u32, opening: Opening) -> Result<Batch, Fault> {
    let answer = service.records(&iterator, records_max).await?;
    let has_aggregates = opening.aggregated && answer.records.iter().any(|r| kpl::looks_aggregated(&r.data));
    if !has_aggregates {
        return Ok(opening.open(answer));
    }
    // The digests of a full answer take longer than a network task may.
    let opened = tokio::task::spawn_blocking(move || opening.open(answer)).await;
    opened.map_err(|e| Fault::Refused(Error::internal("could not open kinesis aggregates").because(e)))
}

impl Opening {
    fn open(&self, answer: Answer) -> Batch {
        let mut batch = Batch {
            records: Vec::with_capacity(answer.records.len()),
            last_sequence: None,
            first_arrival_ms: None,
            bytes: 0,
            given: answer.records.len(),
            next: answer.next,
            lag_ms: answer.lag_ms,
            children: answer.children,
        };
        for raw in answer.records {
            batch.bytes += raw.data.len() + raw.key.as_ref().map_or(0, String::len);
            let read_to = self.read_to.as_ref();
            let order = read_to.map_or(Ordering::Greater, |r| compare_sequences(&raw.sequence, &r.sequence));
            let subs_read = match (order, read_to.and_then(|r| r.sub_sequence)) {
                (Ordering::Greater, _) => 0,
                (Ordering::Equal, Some(sub_sequence)) => sub_sequence.saturating_add(1),
                (Ordering::Equal, None) | (Ordering::Less, _) => continue,
            };
            if batch.last_sequence.is_none() {
                batch.first_arrival_ms = raw.arrival_ms;
            }
            batch.last_sequence = Some(raw.sequence.clone());
            self.open_record(raw, subs_read, &mut batch.records);
        }
        batch
    }

    /// Adds the records that one record of the service holds, without the first `subs_read` of an aggregate.
    fn open_record(&self, raw: RawRecord, subs_read: u64, records: &mut Vec<Record>) {
        let content = if self.aggregated { kpl::open(&raw.data, self.hash_range.as_ref()) } else { Content::Plain };
        match content {
            Content::Plain => records.push(Record { offset: raw.sequence, key: raw.key, data: raw.data }),
            Content::Aggregate(users) => {
                let behind = (0_u64..).zip(users).filter(|(sub, _)| *sub >= subs_read);
                records.extend(behind.map(|(sub, user)| Record {
                    offset: format!("{}:{sub}", raw.sequence),
                    key: Some(user.key),
                    data: user.data,
                }));
            }
            Content::Misplaced => tracing::warn!(shard = %self.shard, sequence = %raw.sequence,
                "dropped an aggregate that belongs to another shard; its producer sends it again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sequences_compare_as_numbers(a in any::<u128>(), b in any::<u128>(), tail in "[0-9]{0,9}") {
            prop_assert_eq!(compare_sequences(&a.to_string(), &b.to_string()), a.cmp(&b));
            let beyond_128_bits = |n: u128| format!("1{n:039}{tail}");
            prop_assert_eq!(compare_sequences(&beyond_128_bits(a), &beyond_128_bits(b)), a.cmp(&b));
        }
    }
}
