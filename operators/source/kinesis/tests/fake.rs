//! A stream in memory that keeps the service's rules, and breaks them when told to.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::super::fan_out::{Event, Events, FanOut, Subscriber};
use super::super::service::{Answer, Fault, Filter, IteratorFrom, ListPage, RawRecord, Service, ShardFacts, ShardPage};
use super::super::{KinesisSettings, KinesisSource, Mode, Start};
use super::conformance::Stream;
use crate::clock::Clock;
use crate::error::Error;

/// Calls to one shard in one second that the service allows.
const CALLS_PER_SECOND: usize = 5;

/// Records in one answer: few, so that a test sees many.
const RECORDS_PER_ANSWER: usize = 40;

/// The most records that an answer may be asked for.
const RECORDS_ASKED_MAX: u32 = 10_000;

/// Bytes in one answer; a record that is larger comes alone.
const BYTES_PER_ANSWER: usize = 10_000_000;

/// Bytes that a shard gives in a second. What an answer has more of is taken off the seconds behind it.
const BYTES_PER_SECOND: f64 = 2.0 * 1024.0 * 1024.0;

/// Shards on one page: few, so that every list has several.
const SHARDS_PER_PAGE: usize = 2;

/// A clock that goes with tokio's, which tests pause.
#[derive(Debug, Clone)]
pub struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now_us(&self) -> i64 {
        1_700_000_000_000_000 + i64::try_from(self.0.elapsed().as_micros()).unwrap()
    }
}

/// How long after a subscription another to the same shard is refused.
const IN_USE: Duration = Duration::from_secs(5);

/// How long a subscription lasts.
const SUBSCRIPTION: Duration = Duration::from_secs(300);

/// How long lies at most between two events.
const EVENT_EVERY: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub struct FakeStream {
    state: Arc<Mutex<State>>,
    pub clock: TokioClock,
    /// Whether sources have their records pushed.
    pub pushes: bool,
}

pub struct State {
    pub shards: Vec<Shard>,
    sequence: u128,
    pub retention: Duration,
    /// What to break, in order; each entry for the next call of its kind.
    pub faults: VecDeque<(Call, Break)>,
    /// Every call for records: which shard, when.
    pub reads: Vec<(Arc<str>, Instant)>,
    /// Every iterator that was asked for.
    pub iterators: Vec<(Arc<str>, IteratorFrom)>,
    /// Whether the end of a shard names its children.
    pub names_children: bool,
    /// Until when a shard gives nothing, since it has given its bytes.
    paid_until: HashMap<Arc<str>, Instant>,
    /// Calls that were refused because they came too fast.
    pub throttled: usize,
    /// Calls that were refused because their iterator was too old.
    pub expired: usize,
    /// Every subscription: to which shard, from where, when.
    pub subscriptions: Vec<(Arc<str>, IteratorFrom, Instant)>,
    /// Subscriptions that were refused because there was another.
    pub in_use: usize,
}

pub struct Shard {
    pub facts: ShardFacts,
    pub created_ms: i64,
    closed_ms: Option<i64>,
    records: Vec<RawRecord>,
    /// How many of the oldest records are trimmed.
    trimmed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    List,
    Iterator,
    Records,
    Event,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    Busy,
    Expired,
    Invalid,
    Missing,
    Refused,
    /// An empty answer, far behind, as in a gap between records.
    Gap,
    /// Neither iterator nor children.
    BareEnd,
    /// An iterator and children at once.
    EndAndIterator,
    /// A subscription of which nothing comes any more.
    Silence,
}

impl FakeStream {
    pub fn new(shards: usize) -> Self {
        let clock = TokioClock(Instant::now());
        let state = State {
            shards: Vec::new(),
            sequence: 10_u128.pow(38),
            retention: Duration::from_secs(24 * 3600),
            faults: VecDeque::new(),
            reads: Vec::new(),
            iterators: Vec::new(),
            names_children: true,
            paid_until: HashMap::new(),
            throttled: 0,
            expired: 0,
            subscriptions: Vec::new(),
            in_use: 0,
        };
        let stream = Self { state: Arc::new(Mutex::new(state)), clock, pushes: false };
        let width = u128::MAX / shards as u128;
        for n in 0..shards as u128 {
            let end = if n + 1 == shards as u128 { u128::MAX } else { (n + 1) * width - 1 };
            stream.add_shard(&[], n * width..=end);
        }
        stream
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn breaks(&self, call: Call, with: Break, times: usize) {
        self.state().faults.extend(std::iter::repeat_n((call, with), times));
    }

    /// Puts raw bytes into a shard.
    pub fn put_into(&self, shard: &str, key: &str, data: impl Into<bytes::Bytes>) -> String {
        let arrival_ms = Some(self.now_ms());
        let mut state = self.state();
        state.sequence += 7;
        let sequence = state.sequence.to_string();
        let record = RawRecord { sequence: sequence.clone(), key: Some(key.into()), data: data.into(), arrival_ms };
        let shard = state.shards.iter_mut().find(|s| s.facts.id.as_ref() == shard).unwrap();
        assert!(!shard.facts.closed, "a closed shard takes no records");
        shard.records.push(record);
        sequence
    }

    /// Trims records older than the retention, and the closed shards that are empty then.
    pub fn trim(&self) {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let horizon_ms = now_ms - state.retention.as_millis() as i64;
        for shard in &mut state.shards {
            shard.trimmed = shard.records.iter().filter(|r| r.arrival_ms.unwrap() < horizon_ms).count();
        }
        state.shards.retain(|s| s.closed_ms.is_none_or(|ms| ms >= horizon_ms));
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_us() / 1000
    }

    fn add_shard(&self, parents: &[Arc<str>], range: std::ops::RangeInclusive<u128>) {
        let created_ms = self.now_ms();
        let mut state = self.state();
        let newest = state.shards.last().map_or(0, |s| s.facts.id[8..].parse::<u64>().unwrap() + 1);
        let facts = ShardFacts {
            id: format!("shardId-{newest:012}").into(),
            parents: parents.to_vec(),
            hash_range: Some(range),
            closed: false,
        };
        state.shards.push(Shard { facts, created_ms, closed_ms: None, records: Vec::new(), trimmed: 0 });
    }

    fn close(&self, id: &str) -> ShardFacts {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let shard = state.shards.iter_mut().find(|s| s.facts.id.as_ref() == id).unwrap();
        shard.facts.closed = true;
        shard.closed_ms = Some(now_ms);
        shard.facts.clone()
    }
}

impl State {
    fn broken(&mut self, call: Call) -> Option<Break> {
        let at = self.faults.iter().position(|(c, _)| *c == call)?;
        self.faults.remove(at).map(|(_, with)| with)
    }

    fn shard(&self, id: &str) -> Result<&Shard, Fault> {
        let found = self.shards.iter().find(|s| s.facts.id.as_ref() == id);
        found.ok_or_else(|| Fault::Missing(Error::config("no such shard")))
    }
}

impl Shard {
    /// Gives the place of the first record that is read.
    fn index(&self, from: &IteratorFrom) -> usize {
        let below = |sequence: &str| self.records.iter().filter(|r| r.sequence.as_str() < sequence).count();
        match from {
            IteratorFrom::TrimHorizon => 0,
            IteratorFrom::Time(ms) => self.records.iter().filter(|r| r.arrival_ms.unwrap() < *ms).count(),
            IteratorFrom::At(sequence) => below(sequence),
            IteratorFrom::After(sequence) => {
                below(sequence) + usize::from(self.records.iter().any(|r| r.sequence == *sequence))
            }
        }
    }
}

fn fault(with: Break) -> Fault {
    match with {
        Break::Busy => Fault::Busy(Error::unavailable("throttled")),
        Break::Expired => Fault::Expired(Error::unavailable("the iterator is too old")),
        Break::Invalid => Fault::Invalid(Error::config("a bad argument")),
        Break::Missing => Fault::Missing(Error::config("no such thing")),
        Break::Refused => Fault::Refused(Error::config("no permission")),
        other => panic!("{other:?} is no failure of this call"),
    }
}

#[async_trait]
impl Service for FakeStream {
    async fn retention(&self) -> Result<Duration, Fault> {
        Ok(self.state().retention)
    }

    async fn list_shards(&self, page: ListPage<'_>) -> Result<ShardPage, Fault> {
        let mut state = self.state();
        if let Some(with) = state.broken(Call::List) {
            return Err(fault(with));
        }
        let (filter, offset) = match page {
            ListPage::First(filter) => (filter, 0),
            ListPage::Next(token) => {
                let (filter, offset) = token.split_once('|').unwrap();
                let filter = match filter {
                    "all" => Filter::All,
                    "latest" => Filter::AtLatest,
                    "horizon" => Filter::AtTrimHorizon,
                    ms => Filter::AtTime(ms.parse().unwrap()),
                };
                (filter, offset.parse().unwrap())
            }
        };
        let horizon_ms = self.clock.now_us() / 1000 - state.retention.as_millis() as i64;
        let name = match filter {
            Filter::All => "all".to_owned(),
            Filter::AtLatest => "latest".to_owned(),
            Filter::AtTrimHorizon => "horizon".to_owned(),
            Filter::AtTime(ms) => ms.to_string(),
        };
        let known = |id: &Arc<str>| state.shards.iter().any(|s| s.facts.id == *id);
        let passes = |s: &&Shard| match filter {
            Filter::All => true,
            Filter::AtLatest => s.closed_ms.is_none(),
            Filter::AtTrimHorizon => s.created_ms <= horizon_ms || !s.facts.parents.iter().any(known),
            Filter::AtTime(ms) => s.created_ms <= ms && s.closed_ms.is_none_or(|closed| closed > ms),
        };
        let all: Vec<_> = state.shards.iter().filter(passes).map(|s| s.facts.clone()).collect();
        let end = all.len().min(offset + SHARDS_PER_PAGE);
        let next = (end < all.len()).then(|| format!("{name}|{end}"));
        Ok(ShardPage { shards: all[offset..end].to_vec(), next })
    }

    async fn iterator(&self, shard: &str, from: &IteratorFrom) -> Result<String, Fault> {
        let mut state = self.state();
        state.iterators.push((shard.into(), from.clone()));
        if let Some(with) = state.broken(Call::Iterator) {
            return Err(fault(with));
        }
        let index = state.shard(shard)?.index(from);
        Ok(format!("{shard}|{index}|{}", self.now_ms()))
    }

    async fn records(&self, iterator: &str, records_max: u32) -> Result<Answer, Fault> {
        // A call takes time, so that it can be dropped in the middle.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let parts: Vec<_> = iterator.split('|').collect();
        let (id, index, given_ms) = (parts[0], parts[1].parse::<usize>().unwrap(), parts[2].parse::<i64>().unwrap());
        let (now, now_ms) = (Instant::now(), self.now_ms());
        let mut state = self.state();
        let second = |(shard, at): &&(Arc<str>, Instant)| shard.as_ref() == id && now - *at < Duration::from_secs(1);
        let recent = state.reads.iter().filter(second).count();
        state.reads.push((id.into(), now));
        assert!((1..=RECORDS_ASKED_MAX).contains(&records_max), "{records_max} records were asked for");
        let has_to_pay = state.paid_until.get(id).is_some_and(|until| now < *until);
        if recent >= CALLS_PER_SECOND || has_to_pay {
            state.throttled += 1;
            return Err(fault(Break::Busy));
        }
        let broken = state.broken(Call::Records);
        if now_ms - given_ms > 300_000 {
            state.expired += 1;
            return Err(fault(Break::Expired));
        }
        let shard = state.shard(id)?;
        let start = index.max(shard.trimmed);
        let mut end = shard.records.len().min(start + RECORDS_PER_ANSWER.min(records_max as usize));
        let bytes = |end: usize| shard.records[start..end].iter().map(|r| r.data.len()).sum::<usize>();
        while end > start + 1 && bytes(end) > BYTES_PER_ANSWER {
            end -= 1;
        }
        let paid = Duration::from_secs_f64(bytes(end) as f64 / BYTES_PER_SECOND);
        let token = |index: usize| Some(format!("{id}|{index}|{now_ms}"));
        match broken {
            Some(Break::Gap) => {
                return Ok(Answer { next: token(index), lag_ms: Some(60_000), ..Answer::default() });
            }
            Some(Break::BareEnd) => return Ok(Answer { lag_ms: Some(0), ..Answer::default() }),
            Some(Break::EndAndIterator) => {
                let children = vec![shard.facts.clone()];
                return Ok(Answer { next: token(index), children, lag_ms: Some(0), ..Answer::default() });
            }
            Some(other) => return Err(fault(other)),
            None => {}
        }
        let rest = shard.records.get(end);
        let lag_ms = rest.map(|r| u64::try_from(now_ms - r.arrival_ms.unwrap()).unwrap().max(1)).unwrap_or(0);
        let mut answer =
            Answer { records: shard.records[start..end].to_vec(), lag_ms: Some(lag_ms), ..Answer::default() };
        if shard.facts.closed && end == shard.records.len() {
            let is_child = |s: &&Shard| s.facts.parents.iter().any(|p| p.as_ref() == id);
            let named = state.shards.iter().filter(|_| state.names_children);
            answer.children = named.filter(is_child).map(|s| s.facts.clone()).collect();
        } else {
            answer.next = token(end);
        }
        state.paid_until.insert(id.into(), now + paid);
        Ok(answer)
    }
}

#[async_trait]
impl Subscriber for FakeStream {
    async fn subscribe(&self, shard: &str, from: &IteratorFrom) -> Result<Box<dyn Events>, Fault> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(with) = state.broken(Call::Iterator) {
            return Err(fault(with));
        }
        let index = state.shard(shard)?.index(from);
        let id: Arc<str> = shard.into();
        let is_recent = |(of, _, at): &(Arc<str>, IteratorFrom, Instant)| *of == id && now - *at < IN_USE;
        if state.subscriptions.iter().any(is_recent) {
            state.in_use += 1;
            return Err(fault(Break::Busy));
        }
        state.subscriptions.push((id.clone(), from.clone(), now));
        Ok(Box::new(FakeEvents { stream: self.clone(), shard: id, index, ends_at: now + SUBSCRIPTION }))
    }
}

struct FakeEvents {
    stream: FakeStream,
    shard: Arc<str>,
    index: usize,
    ends_at: Instant,
}

#[async_trait]
impl Events for FakeEvents {
    async fn next(&mut self) -> Result<Option<Event>, Fault> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let silent_until = Instant::now() + EVENT_EVERY;
        let broken = self.stream.state().broken(Call::Event);
        match broken {
            Some(Break::Silence) => std::future::pending().await,
            Some(other) => return Err(fault(other)),
            None => {}
        }
        loop {
            if Instant::now() >= self.ends_at {
                return Ok(None);
            }
            let (answer, is_due) = {
                let state = self.stream.state();
                let shard = state.shard(&self.shard)?;
                let start = self.index.max(shard.trimmed);
                let end = shard.records.len().min(start + RECORDS_PER_ANSWER);
                let is_child = |s: &&Shard| s.facts.parents.contains(&self.shard);
                let at_end = shard.facts.closed && end == shard.records.len();
                let now_ms = self.stream.now_ms();
                let lag_ms =
                    shard.records.get(end).map_or(0, |r| u64::try_from(now_ms - r.arrival_ms.unwrap()).unwrap().max(1));
                let children =
                    state.shards.iter().filter(|_| at_end).filter(is_child).map(|s| s.facts.clone()).collect();
                self.index = end;
                let records = shard.records[start..end].to_vec();
                (Answer { records, next: None, lag_ms: Some(lag_ms), children }, end > start || at_end)
            };
            if is_due || Instant::now() >= silent_until {
                // The service gives numbers also where there is no record.
                let mut state = self.stream.state();
                state.sequence += 1;
                let between = state.sequence.to_string();
                let continuation = if answer.lag_ms == Some(0) { Some(between) } else { None };
                let last = answer.records.last().map(|record| record.sequence.clone());
                return Ok(Some(Event { answer, continuation: last.or(continuation) }));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[async_trait]
impl Stream for FakeStream {
    fn source(&self, mut settings: KinesisSettings) -> KinesisSource {
        let stream = Arc::new(self.clone());
        if self.pushes {
            settings.mode = Mode::FanOut { consumer: "nexus".into() };
        }
        let mut source = KinesisSource::new(settings, Arc::new(self.clock.clone()), None);
        source.service = if self.pushes { Some(Arc::new(FanOut::new(stream.clone(), stream))) } else { Some(stream) };
        source
    }

    async fn put(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            // Spread as the service does: by a hash, here of the number.
            let hash = u128::from_be_bytes(
                md5::Digest::finalize(<md5::Md5 as md5::Digest>::new_with_prefix(number.to_string())).into(),
            );
            let takes = |s: &&Shard| !s.facts.closed && s.facts.hash_range.as_ref().unwrap().contains(&hash);
            let id = self.state().shards.iter().find(takes).unwrap().facts.id.clone();
            self.put_into(&id, &number.to_string(), number.to_string());
        }
    }

    async fn shards(&self) -> Vec<ShardFacts> {
        self.state().shards.iter().map(|s| s.facts.clone()).collect()
    }

    async fn split(&self, shard: &str) {
        let parent = self.close(shard);
        let (start, end) = parent.hash_range.unwrap().into_inner();
        let middle = start + (end - start) / 2;
        self.add_shard(std::slice::from_ref(&parent.id), start..=middle);
        self.add_shard(&[parent.id], middle + 1..=end);
    }

    async fn merge(&self, a: &str, b: &str) {
        let (a, b) = (self.close(a), self.close(b));
        let (start, end) = (*a.hash_range.unwrap().start(), *b.hash_range.unwrap().end());
        self.add_shard(&[a.id, b.id], start..=end);
    }
}

/// Settings of a source that begins at the oldest record.
pub fn settings() -> KinesisSettings {
    super::conformance::settings("fake", Start::Earliest)
}
