//! A proxy before S3, SQS or Kinesis that fails as these services do.
//!
//! Whether a request fails, and how, depends on the seed, on what the request asks for and on how often that was asked
//! before; not on time. No request fails more than twice in a row: that is what a client has to bear without giving up.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod call;
pub mod http;
mod operation;
mod sqs;

pub use call::Call;
use http::{Answer, Head};
pub use operation::Fault;
use operation::{Operation, Request};

use crate::world::Random;

/// How often the same request fails before it is let through.
const IN_A_ROW_MAX: u32 = 2;

/// Pieces that a slow answer comes in, and the pause before each.
const SLOW_PIECES: usize = 8;
const SLOW_PAUSE: Duration = Duration::from_millis(120);

/// How long an answer is kept from a client that shall give up: longer than any client of Nexus waits.
const HANG: Duration = Duration::from_secs(130);

/// How a proxy fails.
#[derive(Debug, Clone, Copy)]
pub struct Hostility {
    /// What decides.
    pub seed: u64,
    /// How large a share of the requests fails.
    pub share: f64,
    /// Whether some requests are never answered, which takes a client minutes to find out.
    pub hangs: bool,
}

/// No request fails.
pub const QUIET: Hostility = Hostility { seed: 0, share: 0.0, hangs: false };

/// A proxy before a port of loopback. It ends with the process.
pub struct Faults {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    hostility: Hostility,
    /// Whether nothing may be done.
    forbids: bool,
    /// Held for moments, never while a server is asked.
    memory: Mutex<Memory>,
}

/// What has been asked and answered so far.
#[derive(Default)]
struct Memory {
    asked: HashMap<String, Asked>,
    injected: BTreeMap<Fault, u64>,
    calls: BTreeSet<Call>,
    /// The services that were called, and the access keys that these calls were signed with.
    signed: BTreeSet<(String, String)>,
    /// Older answers of listings.
    listings: HashMap<String, Answer>,
    /// Which shard an iterator is of.
    iterators: HashMap<String, String>,
    /// Messages that SQS has delivered.
    messages: Vec<serde_json::Value>,
    /// Reads of objects that are under way, and the most that were, by bucket.
    reads: BTreeMap<String, (usize, usize)>,
}

#[derive(Default)]
struct Asked {
    times: u32,
    faults: u32,
    in_a_row: u32,
}

impl Faults {
    /// Starts a proxy to `target`.
    pub fn start(target: u16, hostility: Hostility) -> Self {
        Self::serving(Shared { target, hostility, forbids: false, memory: Mutex::new(Memory::default()) })
    }

    /// Starts a proxy that answers as a service does to one who may do nothing.
    pub fn forbidding() -> Self {
        Self::serving(Shared { target: 0, hostility: QUIET, forbids: true, memory: Mutex::new(Memory::default()) })
    }

    fn serving(shared: Shared) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(shared);
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = serving.clone();
                // A client that has gone, and a server that has, end their connection; nobody else is concerned.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { port, shared }
    }

    /// Tells what was called.
    pub fn calls(&self) -> BTreeSet<Call> {
        self.shared.memory().calls.clone()
    }

    /// Tells how many objects of a bucket were read side by side, at most.
    pub fn most_reads_at_once(&self, bucket: &str) -> usize {
        self.shared.memory().reads.get(bucket).map_or(0, |(_, most)| *most)
    }

    /// Tells which services were called, and with which access keys these calls were signed.
    pub fn signed(&self) -> BTreeSet<(String, String)> {
        self.shared.memory().signed.clone()
    }

    /// Tells how often each fault was injected.
    pub fn injected(&self) -> BTreeMap<Fault, u64> {
        self.shared.memory().injected.clone()
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let head = Head::peek(&client)?;
        // The services of JSON tell in the body what is asked; S3 tells in the head, before the body has come.
        let is_json = head.header("x-amz-target").is_some();
        let early = if is_json { None } else { Some(Operation::of_s3(&head)) };
        let fault = early.as_ref().and_then(|(operation, of)| self.decide(*operation, of));
        match fault {
            // What is not read when the connection is closed makes it a reset.
            Some(Fault::Reset) => return self.done(Fault::Reset),
            Some(Fault::ResetInRequest) => {
                head.read(&mut client, head.body_bytes() / 2)?;
                client.peek(&mut [0])?;
                return self.done(Fault::ResetInRequest);
            }
            _ => {}
        }
        let body = head.read(&mut client, head.body_bytes())?;
        self.memory().calls.extend(Call::all(&head, &body));
        self.memory().signed.extend(call::signed_by(&head));
        let (operation, of) = early.unwrap_or_else(|| Operation::of_json(&head, &body, &self.memory().iterators));
        let fault = if is_json { self.decide(operation, &of) } else { fault };
        let request = Request { head, body, operation, of };
        let fault = if self.forbids { Some(Fault::Forbidden) } else { fault };
        let Some(fault) = fault else {
            let answer = self.ask(&request)?;
            return answer.send(&mut client, usize::MAX);
        };
        self.fail(fault, &request, client)
    }

    /// Asks the server, and remembers what later faults need.
    fn ask(&self, request: &Request) -> io::Result<Answer> {
        let answer = match request.operation {
            Operation::Receive | Operation::DeleteMessages | Operation::Extend => sqs::ask(self, request)?,
            _ => match self.bucket_read(&request.head) {
                Some(bucket) => self.read(&bucket, request)?,
                None => request.head.forward(self.target, &request.body)?,
            },
        };
        let mut memory = self.memory();
        match request.operation {
            // The first answer is the oldest.
            Operation::List if answer.status == 200 => {
                memory.listings.entry(request.of.clone()).or_insert_with(|| answer.clone());
            }
            Operation::Iterator | Operation::Records => {
                let given: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                for name in ["ShardIterator", "NextShardIterator"] {
                    if let Some(iterator) = given[name].as_str() {
                        memory.iterators.insert(iterator.to_owned(), request.of.clone());
                    }
                }
            }
            _ => {}
        }
        Ok(answer)
    }

    /// Gives the bucket of which a request reads an object.
    fn bucket_read(&self, head: &Head) -> Option<String> {
        let (bucket, key) = head.path.trim_start_matches('/').split_once('/')?;
        (matches!(head.method.as_str(), "GET" | "HEAD") && !key.is_empty()).then(|| bucket.to_owned())
    }

    /// Asks for an object, and counts how many are asked for meanwhile.
    fn read(&self, bucket: &str, request: &Request) -> io::Result<Answer> {
        {
            let mut memory = self.memory();
            let (now, most) = memory.reads.entry(bucket.to_owned()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        let answer = request.head.forward(self.target, &request.body);
        if let Some((now, _)) = self.memory().reads.get_mut(bucket) {
            *now -= 1;
        }
        answer
    }

    /// Has a request fail.
    fn fail(&self, fault: Fault, request: &Request, mut client: TcpStream) -> io::Result<()> {
        match fault {
            Fault::LostReply => {
                self.ask(request)?;
            }
            Fault::ResetInAnswer => {
                let answer = self.ask(request)?;
                answer.send(&mut client, answer.body.len() / 2)?;
            }
            Fault::Slow => {
                let answer = self.ask(request)?;
                answer.send(&mut client, 0)?;
                for piece in answer.body.chunks(answer.body.len().div_ceil(SLOW_PIECES).max(1)) {
                    std::thread::sleep(SLOW_PAUSE);
                    io::Write::write_all(&mut client, piece)?;
                }
            }
            Fault::Hang => {
                std::thread::sleep(HANG);
            }
            Fault::OldListing => {
                let older = self.memory().listings.get(&request.of).cloned();
                let Some(older) = older else { return self.ask(request)?.send(&mut client, usize::MAX) };
                older.send(&mut client, usize::MAX)?;
            }
            Fault::Redelivered | Fault::Shuffled | Fault::InvalidReceipt | Fault::PartialBatch => {
                let (answer, failed) = sqs::fail(self, fault, request)?;
                answer.send(&mut client, usize::MAX)?;
                if !failed {
                    return Ok(());
                }
            }
            _ => fault.answer(request).send(&mut client, usize::MAX)?,
        }
        self.done(fault)
    }

    /// Counts a fault that was injected.
    fn done(&self, fault: Fault) -> io::Result<()> {
        *self.memory().injected.entry(fault).or_default() += 1;
        Ok(())
    }

    /// Decides whether a request fails, and how.
    fn decide(&self, operation: Operation, of: &str) -> Option<Fault> {
        let name = format!("{operation:?} {of}");
        let mut memory = self.memory();
        let asked = memory.asked.entry(name.clone()).or_default();
        asked.times += 1;
        let hash = |what: (&str, u32)| {
            let mut hasher = DefaultHasher::new();
            (self.hostility.seed, what).hash(&mut hasher);
            hasher.finish()
        };
        let unlucky =
            Random::of(hash((&name, asked.times))).between(0.0, 1.0) < self.hostility.share * operation.weight();
        let kinds = operation.faults(self.hostility.hangs);
        if !unlucky || kinds.is_empty() || asked.in_a_row >= IN_A_ROW_MAX {
            asked.in_a_row = 0;
            return None;
        }
        asked.in_a_row += 1;
        asked.faults += 1;
        // The same request fails in another way each time.
        let first = hash((&name, 0)) % kinds.len() as u64;
        let kind = *kinds.get((usize::try_from(first).unwrap_or(0) + asked.faults as usize) % kinds.len())?;
        // Once is enough of what takes minutes.
        let again = kind == Fault::Hang && memory.injected.contains_key(&kind);
        Some(if again { Fault::ServerError } else { kind })
    }
}
