//! As much of HTTP/1.1 as a proxy needs that breaks it on purpose: one request a connection, bodies of a known length.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The longest head of a request: the tests' clients send a tenth of it.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a client may take to send what it has begun: more than a busy machine needs.
const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a server may take to answer: more than the longest poll.
const SERVER_SILENCE_MAX: Duration = Duration::from_secs(60);

/// The head of a request.
#[derive(Debug, Clone)]
pub struct Head {
    /// The method.
    pub method: String,
    /// The path, as it was sent.
    pub path: String,
    /// What stands behind the question mark, as it was sent.
    pub query: String,
    headers: Vec<(String, String)>,
    /// Its length, with the empty line.
    bytes: usize,
}

/// An answer of a server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// All headers but those of the connection and of the body's length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The length that an answer to HEAD tells of the body that it does not have.
    told_bytes: Option<String>,
}

impl Head {
    /// Looks at the head of the request that comes next, and leaves it to be read.
    pub fn peek(stream: &TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(CLIENT_SILENCE_MAX))?;
        let mut buffer = vec![0; HEAD_BYTES_MAX];
        let mut seen = 0;
        loop {
            let there = stream.peek(&mut buffer)?;
            if let Some(end) = buffer[..there].windows(4).position(|four| four == b"\r\n\r\n") {
                return Self::parse(&buffer[..end + 4]);
            }
            if there == 0 || there == HEAD_BYTES_MAX {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if there == seen {
                std::thread::sleep(Duration::from_millis(1));
            }
            seen = there;
        }
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Self {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            headers: headers(lines),
            bytes: bytes.len(),
        })
    }

    /// Gives a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Tells whether a parameter stands in the query.
    pub fn asks(&self, parameter: &str) -> bool {
        self.query.split('&').any(|pair| pair.split('=').next() == Some(parameter))
    }

    /// Gives a parameter of the query, as it was sent.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    }

    /// Gives the length of the body.
    pub fn body_bytes(&self) -> usize {
        self.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }

    /// Reads the head that was looked at, and `bytes` of the body.
    pub fn read(&self, stream: &mut TcpStream, bytes: usize) -> io::Result<Vec<u8>> {
        let mut all = vec![0; self.bytes + bytes];
        stream.read_exact(&mut all)?;
        Ok(all.split_off(self.bytes))
    }

    /// Sends the request to a port of loopback, and gives the answer.
    pub fn forward(&self, port: u16, body: &[u8]) -> io::Result<Answer> {
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        server.set_read_timeout(Some(SERVER_SILENCE_MAX))?;
        let mark = if self.query.is_empty() { "" } else { "?" };
        let mut head = format!("{} {}{mark}{} HTTP/1.1\r\n", self.method, self.path, self.query);
        let own = ["connection", "content-length", "expect"];
        for (name, value) in self.headers.iter().filter(|(name, _)| !own.contains(&name.to_lowercase().as_str())) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("connection: close\r\ncontent-length: {}\r\n\r\n", body.len()));
        server.write_all(head.as_bytes())?;
        server.write_all(body)?;
        let mut all = Vec::new();
        let read = server.read_to_end(&mut all);
        Answer::parse(&all, self.method == "HEAD")
            .ok_or_else(|| read.err().unwrap_or(io::ErrorKind::InvalidData.into()))
    }
}

impl Answer {
    /// Makes an answer.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self { status, headers, body: body.into(), told_bytes: None }
    }

    fn parse(all: &[u8], of_head: bool) -> Option<Self> {
        let end = all.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&all[..end]);
        let mut lines = text.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = headers(lines);
        let rest = &all[end + 4..];
        let length = find(&headers, "content-length").map(str::to_owned);
        let is_chunked = find(&headers, "transfer-encoding").is_some_and(|how| how.contains("chunked"));
        let (body, told_bytes) = match length {
            told if of_head => (Vec::new(), told),
            _ if is_chunked => (whole_of(rest)?, None),
            Some(length) => (rest.get(..length.parse().ok()?)?.to_vec(), None),
            None => (rest.to_vec(), None),
        };
        let own = ["connection", "content-length", "keep-alive", "transfer-encoding"];
        headers.retain(|(name, _)| !own.contains(&name.to_lowercase().as_str()));
        Some(Self { status, headers, body, told_bytes })
    }

    /// Sends the head, which tells the whole length, and the first `bytes` of the body.
    pub fn send(&self, stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Answer\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = self.told_bytes.clone().unwrap_or_else(|| self.body.len().to_string());
        if self.status != 204 && self.status != 304 {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("connection: close\r\n\r\n");
        let mut all = head.into_bytes();
        all.extend_from_slice(&self.body[..bytes.min(self.body.len())]);
        stream.write_all(&all)
    }
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let pairs = lines.filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Joins the chunks of a body; nothing if the last one is missing.
fn whole_of(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}
