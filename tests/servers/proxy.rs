//! A TCP proxy whose speed the test sets, and whose connections it cuts: a server slowed to a crawl, or away.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a full second's bytes are spread over: short against what the tests wait for.
const TICK: Duration = Duration::from_millis(50);

/// A proxy before a port of loopback.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

/// What the test sets and the proxy's threads look at.
struct Shared {
    /// Bytes a second towards the server, on each connection.
    rate: AtomicU64,
    /// Whether new connections are cut at once.
    closed: AtomicBool,
    /// The clients' ends of all connections so far that are not known to be over.
    clients: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Starts a proxy to `target` that lets `bytes_per_second` through to it. It ends with the process.
    pub fn start(target: u16, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            rate: AtomicU64::new(bytes_per_second),
            closed: AtomicBool::new(false),
            clients: Mutex::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !accepting.closed.load(Ordering::Relaxed) {
                    serve(client, target, &accepting);
                }
            }
        });
        Self { port, shared }
    }

    /// Sets the speed, for connections that are open too.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Cuts all connections, in the middle of whatever they carry.
    pub fn cut(&self) {
        for client in self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Cuts all connections, and each new one at once; until [`open`](Self::open).
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Lets new connections through again.
    pub fn open(&self) {
        self.shared.closed.store(false, Ordering::Relaxed);
    }
}

fn serve(client: TcpStream, target: u16, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let (Ok(from), Ok(to), Ok(known)) = (client.try_clone(), server.try_clone(), client.try_clone()) else { return };
    let mut clients = shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
    clients.retain(|client| client.peer_addr().is_ok());
    clients.push(known);
    let rate_of = shared.clone();
    std::thread::spawn(move || copy(from, to, &rate_of.rate));
    std::thread::spawn(move || copy(server, client, &AtomicU64::new(u64::MAX)));
}

fn copy(mut from: TcpStream, mut to: TcpStream, rate: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let per_tick = rate.load(Ordering::Relaxed) / (1000 / TICK.as_millis() as u64);
        let room = usize::try_from(per_tick).unwrap_or(usize::MAX).clamp(1, buffer.len());
        match from.read(&mut buffer[..room]) {
            Ok(0) | Err(_) => break,
            Ok(read) if to.write_all(&buffer[..read]).is_err() => break,
            Ok(_) if per_tick < buffer.len() as u64 => std::thread::sleep(TICK),
            Ok(_) => {}
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
