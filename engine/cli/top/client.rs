//! Asks the API of a run.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::serve::Token;
use crate::serve::api::Refused;
use crate::{Error, Result};

/// How long an answer may take: the API gives what is in memory.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Asks one run.
pub struct Client {
    /// Host and port.
    address: String,
    token: Option<Token>,
}

impl Client {
    /// Asks the run that listens on an address, such as `127.0.0.1:9464` or `http://127.0.0.1:9464/`.
    pub fn new(address: &str, token: Option<Token>) -> Result<Self> {
        let host_and_port = address.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let port = host_and_port.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        match port {
            Some(_) => Ok(Self { address: host_and_port, token }),
            None => Err(Error::config(format!("`{address}` is no address; write host and port, as in 127.0.0.1:9464"))),
        }
    }

    /// Gets what is below `/api/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answered = tokio::time::timeout(ANSWER_MAX, self.answer(path)).await;
        let (status, body) = answered.unwrap_or_else(|_| Err(self.away().because("it took too long")))?;
        if status != StatusCode::OK {
            let why =
                serde_json::from_slice(&body).map_or_else(|_| status.to_string(), |refused: Refused| refused.error);
            return Err(Error::config(format!("{} refuses: {why}", self.address)));
        }
        let other = |e| Error::config(format!("{} is no run of this version of nexus", self.address)).because(e);
        serde_json::from_slice(&body).map_err(other)
    }

    async fn answer(&self, path: &str) -> Result<(StatusCode, Bytes)> {
        let connection = TcpStream::connect(&self.address).await.map_err(|e| self.away().because(e))?;
        let failed = |e: hyper::Error| self.away().because(e);
        let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await.map_err(failed)?;
        let mut request = Request::get(format!("/api/v1/{path}")).header(HOST, &self.address);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.header());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| self.away().because(e))?;
        let asked = async {
            let answer = sender.send_request(request).await.map_err(failed)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|e| self.away().because(e))?.to_bytes()))
        };
        // The connection is driven only as long as the answer needs it.
        tokio::select! {
            answered = asked => answered,
            Err(error) = connection => Err(failed(error)),
        }
    }

    fn away(&self) -> Error {
        let address = &self.address;
        Error::unavailable(format!("no run answers on {address}; `nexus run FILE --listen {address}` makes one"))
    }
}
