//! A proxy before PostgreSQL that understands enough of its protocol (version 3, without TLS) to act at a certain
//! message of a client.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A message of a client at which the proxy may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A transaction is about to begin.
    Begin,
    /// Rows of a COPY are about to be sent.
    Copy,
    /// A transaction is about to be committed.
    Commit,
}

/// What the proxy does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It passes the message on.
    Pass,
    /// It closes the connection, and the server does not see the message.
    CutBefore,
    /// It passes the message on, and closes the connection when the server has answered; the client sees no answer.
    CutAfter,
}

/// What is asked at each of these moments.
type Decide = dyn Fn(Moment) -> Act + Send + Sync;

/// Starts a proxy to `target`, and gives its port. It ends with the process.
pub fn proxy(target: u16, decide: impl Fn(Moment) -> Act + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    let decide: Arc<Decide> = Arc::new(decide);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
            let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
            let decide = decide.clone();
            // Set when the client shall see no more of the server's answers.
            let silenced = Arc::new(AtomicBool::new(false));
            let silence = silenced.clone();
            std::thread::spawn(move || {
                drop(ask(&from, &to, decide.as_ref(), &silence));
                close(&from, &to);
            });
            std::thread::spawn(move || {
                drop(answer(&server, &client, &silenced));
                close(&client, &server);
            });
        }
    });
    port
}

/// Passes the client's messages on.
fn ask(mut from: &TcpStream, mut to: &TcpStream, decide: &Decide, silence: &AtomicBool) -> io::Result<()> {
    // The first message has no type.
    let start = message(&mut from, Vec::new())?;
    to.write_all(&start)?;
    let mut copying = false;
    loop {
        let mut kind = vec![0];
        from.read_exact(&mut kind)?;
        let message = message(&mut from, kind)?;
        let is_first_of_copy = message[0] == b'd' && !copying;
        copying = message[0] == b'd';
        let text = String::from_utf8_lossy(&message[5..]).to_ascii_uppercase();
        let moment = match message[0] {
            b'Q' if text.starts_with("COMMIT") => Some(Moment::Commit),
            b'Q' if text.starts_with("BEGIN") || text.starts_with("START TRANSACTION") => Some(Moment::Begin),
            b'd' if is_first_of_copy => Some(Moment::Copy),
            _ => None,
        };
        match moment.map_or(Act::Pass, decide) {
            Act::Pass => to.write_all(&message)?,
            Act::CutBefore => return Ok(()),
            Act::CutAfter => {
                silence.store(true, Ordering::SeqCst);
                to.write_all(&message)?;
                // The thread of the answers closes when one has come.
                return io::copy(&mut from, &mut io::sink()).map(drop);
            }
        }
    }
}

/// Passes the server's answers on.
fn answer(mut from: &TcpStream, mut to: &TcpStream, silenced: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 || silenced.load(Ordering::SeqCst) {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
    }
}

/// Reads the length of a message and what it counts, behind what stands in `message` already.
fn message(from: &mut &TcpStream, mut message: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    message.extend_from_slice(&length);
    let length = usize::try_from(u32::from_be_bytes(length)).expect("a message fits into memory");
    let before = message.len();
    message.resize(before + length.saturating_sub(4), 0);
    from.read_exact(&mut message[before..])?;
    Ok(message)
}

fn close(one: &TcpStream, other: &TcpStream) {
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}
