//! A TCP proxy whose speed the test sets: a server slowed to a crawl.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a full second's bytes are spread over: short against what the tests wait for.
const TICK: Duration = Duration::from_millis(50);

/// A proxy before a port of loopback.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    /// Bytes a second towards the server, on each connection.
    rate: Arc<AtomicU64>,
}

impl Proxy {
    /// Starts a proxy to `target` that lets `bytes_per_second` through to it. It ends with the process.
    pub fn start(target: u16, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let rate = Arc::new(AtomicU64::new(bytes_per_second));
        let shared = rate.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                let rate = shared.clone();
                std::thread::spawn(move || copy(from, to, &rate));
                std::thread::spawn(move || copy(server, client, &AtomicU64::new(u64::MAX)));
            }
        });
        Self { port, rate }
    }

    /// Sets the speed, for connections that are open too.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }
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
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
