//! Who may see the pages: see [the module](super).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nexus_operators::{Error, Result};
use subtle::ConstantTimeEq;

use super::api::Refusal;
use super::{Shown, console};

/// The shortest token that is taken: with 16 characters of a hundred kinds, nobody tries them all.
const TOKEN_BYTES_MIN: usize = 16;

/// Headers of every answer. Nothing may be kept, guessed at, framed, or used by pages of other sites, and a page may load
/// nothing but what this process serves.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
];

/// What has to be shown to see the pages.
#[derive(Clone)]
pub struct Token(String);

/// Decides who may see which page.
pub struct Gate {
    /// Whether only this machine reaches the address.
    loopback: bool,
    token: Option<Token>,
}

/// Whether who asks may see everything.
#[derive(Debug, Clone, Copy)]
pub struct Authorised(pub bool);

impl Token {
    /// Takes a token; white space around it is cut.
    ///
    /// # Errors
    ///
    /// `Config` if it is too short to keep anybody out, or could not be sent in a header.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() < TOKEN_BYTES_MIN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::config(format!(
                "the token has less than {TOKEN_BYTES_MIN} characters, or others than visible ASCII; make one by \
                 `openssl rand -hex 32`"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// Gives the header that shows it.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Tells whether this is what was shown, in a time that says nothing of where they differ.
    fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Gate {
    /// Guards an address.
    pub fn new(address: SocketAddr, token: Option<Token>) -> Self {
        Self { loopback: address.ip().is_loopback(), token }
    }

    /// Tells whether nobody may see more than whether the run is alive and ready.
    pub fn is_shut(&self) -> bool {
        !self.loopback && self.token.is_none()
    }

    /// Admits a request, or says why not.
    fn admit(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Authorised, Refusal> {
        if path == "/health" {
            return Ok(Authorised(false));
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.loopback && !is_this_machine(host) {
            let text = "the request names another host than this machine; use localhost, 127.0.0.1 or [::1]";
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, text));
        }
        if !method.is_safe() && is_of_another_site(host, headers) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "the request comes from the page of another site"));
        }
        let is_open = path == "/ready" || console::has(path);
        let Some(token) = &self.token else {
            if self.loopback || path == "/ready" {
                return Ok(Authorised(self.loopback));
            }
            let text = "others reach this address, so all but /health and /ready needs a token: start `nexus run` \
                        with --token-file or NEXUS_TOKEN, or listen on 127.0.0.1";
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        };
        let shown = headers.get(header::AUTHORIZATION).and_then(|shown| shown.as_bytes().strip_prefix(b"Bearer "));
        match shown.is_some_and(|shown| token.is(shown)) {
            true => Ok(Authorised(true)),
            false if is_open => Ok(Authorised(false)),
            false => Err(Refusal::new(StatusCode::UNAUTHORIZED, "send the token: `Authorization: Bearer <token>`")),
        }
    }
}

/// Lets requests through that may see what they ask for, and gives every answer its headers.
pub async fn guard(State(shown): State<Arc<Shown>>, mut request: Request, next: Next) -> Response {
    let admitted = shown.gate.admit(request.method(), request.uri().path(), request.headers());
    let mut answer = match admitted {
        Ok(authorised) => {
            request.extensions_mut().insert(authorised);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Tells whether a `Host` header names this machine: the page of a site whose name is made to lead here does not.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Tells whether a browser says that the page of another site has made it send a request.
fn is_of_another_site(host: &str, headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let origin = text(header::ORIGIN);
    let is_same = |origin: &str| origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
    let site = text(HeaderName::from_static("sec-fetch-site"));
    origin.is_some_and(|origin| !is_same(origin)) || site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn gate(address: &str, token: Option<&str>) -> Gate {
        Gate::new(address.parse().unwrap(), token.map(|token| Token::new(token).unwrap()))
    }

    fn status(gate: &Gate, method: &str, path: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        map.insert("host", HeaderValue::from_static("localhost:9464"));
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        gate.admit(&method, path, &map).map_or_else(|refusal| refusal.status().as_u16(), |_| 200)
    }

    #[test]
    fn on_loopback_all_is_open_but_to_other_sites() {
        let gate = gate("127.0.0.1:9464", None);
        for path in ["/", "/metrics", "/api/v1/tables"] {
            assert_eq!(status(&gate, "GET", path, &[]), 200);
            assert_eq!(status(&gate, "GET", path, &[("host", "rebound.example.org:9464")]), 421);
            assert_eq!(status(&gate, "GET", path, &[("host", "[::1]:9464")]), 200);
            assert_eq!(status(&gate, "GET", path, &[("host", "127.0.0.1.example.org")]), 421);
        }
        assert_eq!(status(&gate, "GET", "/health", &[("host", "10.0.0.7:9464")]), 200);
        let pause = |headers: &[(&'static str, &str)]| status(&gate, "POST", "/api/v1/pause", headers);
        assert_eq!(pause(&[]), 200);
        assert_eq!(pause(&[("origin", "http://localhost:9464"), ("sec-fetch-site", "same-origin")]), 200);
        assert_eq!(pause(&[("origin", "https://example.org")]), 403);
        assert_eq!(pause(&[("origin", "null")]), 403);
        assert_eq!(pause(&[("origin", "http://localhost:8080")]), 403);
        assert_eq!(pause(&[("sec-fetch-site", "cross-site")]), 403);
    }

    #[test]
    fn where_others_reach_it_all_but_health_needs_a_token() {
        let shut = gate("0.0.0.0:9464", None);
        let host = ("host", "nexus.internal:9464");
        let of = |path: &str| status(&shut, "GET", path, &[host]);
        assert_eq!([of("/health"), of("/ready")], [200; 2]);
        assert_eq!([of("/"), of("/metrics"), of("/api/v1/tables")], [403; 3]);
        assert!(shut.is_shut());
    }

    #[test]
    fn a_token_guards_all_but_whether_it_is_alive() {
        for address in ["0.0.0.0:9464", "127.0.0.1:9464"] {
            let gate = gate(address, Some(TOKEN));
            let with =
                |path: &str, token: &str| status(&gate, "GET", path, &[("authorization", &format!("Bearer {token}"))]);
            for path in ["/metrics", "/api/v1/tables", "/api/v1/openapi.json"] {
                assert_eq!(status(&gate, "GET", path, &[]), 401);
                assert_eq!(with(path, "0123456789abcdeF"), 401);
                assert_eq!(with(path, "0123456789abcdef0"), 401);
                assert_eq!(with(path, TOKEN), 200);
            }
            assert_eq!(status(&gate, "GET", "/api/v1/tables", &[("authorization", TOKEN)]), 401);
            assert_eq!([with("/health", ""), with("/ready", ""), with("/", "")], [200; 3]);
            assert!(!gate.is_shut());
        }
    }

    #[test]
    fn a_token_that_keeps_nobody_out_is_none() {
        for text in ["", "short", "with spaces in the middle", "ümläute_ümläute_"] {
            Token::new(text).unwrap_err();
        }
        let token = Token::new("  0123456789abcdef\n").unwrap();
        assert!(token.is(TOKEN.as_bytes()) && !format!("{token:?}").contains("0123"));
    }
}
