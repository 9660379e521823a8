//! As much of HTTP/1.1 (RFC 9112) as pages that are only read need: one GET or HEAD a connection, no body.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most that a request's head may take: browsers with all their cookies stay below it.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// What is asked for.
pub struct Request {
    /// The path, without what follows a question mark.
    pub path: String,
    /// Whether only the head of the answer is wanted.
    head: bool,
}

/// An answer.
pub struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    /// Whether the body is left out.
    head: bool,
}

impl Answer {
    /// Answers with a text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into(), head: false }
    }

    /// Answers with metrics.
    pub fn metrics(body: String) -> Self {
        Self { content_type: "text/plain; version=0.0.4; charset=utf-8", ..Self::text(200, body) }
    }

    /// Makes it what a request asks for.
    pub fn to(self, request: &Request) -> Self {
        Self { head: request.head, ..self }
    }

    /// Sends it, and ends the connection.
    pub async fn write(self, connection: &mut TcpStream) -> std::io::Result<()> {
        let Self { status, content_type, body, head } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let mut text = format!(
            "HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
            body.len()
        );
        if !head {
            text.push_str(&body);
        }
        connection.write_all(text.as_bytes()).await?;
        connection.shutdown().await
    }
}

/// Reads the head of a request; what cannot be answered is refused.
pub async fn read(connection: &mut TcpStream) -> std::io::Result<Result<Request, Answer>> {
    let mut head = Vec::new();
    let mut piece = [0; 2048];
    loop {
        let read = connection.read(&mut piece).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.extend(piece.iter().take(read));
        if let Some(parsed) = parse(&head) {
            return Ok(parsed);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Ok(Err(Answer::text(431, "the request is too large\n")));
        }
    }
}

/// Parses the head of a request; nothing if it is not complete.
fn parse(head: &[u8]) -> Option<Result<Request, Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Some(Err(Answer::text(431, "the request has too many headers\n")));
        }
        Err(_) => return Some(Err(Answer::text(400, "this is not HTTP/1.1\n"))),
    }
    let path = request.path.unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
    Some(match request.method {
        Some("GET") => Ok(Request { path, head: false }),
        Some("HEAD") => Ok(Request { path, head: true }),
        _ => Err(Answer::text(405, "the pages can only be read\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Option<Result<(String, bool), u16>> {
        let parsed = parse(head.as_bytes())?;
        Some(parsed.map(|request| (request.path, request.head)).map_err(|refused| refused.status))
    }

    #[test]
    fn a_request_is_taken_apart() {
        let host = "HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(parsed(&format!("GET /metrics?name=x {host}")), Some(Ok(("/metrics".to_owned(), false))));
        assert_eq!(parsed(&format!("HEAD /ready {host}")), Some(Ok(("/ready".to_owned(), true))));
        assert_eq!(parsed(&format!("POST /ready {host}")), Some(Err(405)));
        assert_eq!(parsed("GET /metrics HTTP/1.1\r\nHost: local"), None);
        assert_eq!(parsed("\x16\x03\x01 this is TLS\r\n\r\n"), Some(Err(400)));
        let many = "a: b\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(parsed(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Some(Err(431)));
    }
}
