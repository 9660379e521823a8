//! Connections to a Postgres database that a secret names.
//!
//! The secret is a URL, `postgres://user:password@host:port/database`. What it
//! may say about TLS, in `sslmode`:
//!
//! | value | connection |
//! |---|---|
//! | not given, `prefer`, `allow` | TLS if the server has it; none to this machine (loopback, Unix socket) |
//! | `require`, `verify-ca`, `verify-full` | TLS |
//! | `no-verify` | TLS, and the server's certificate is not checked |
//! | `disable` | no TLS |
//!
//! But for `no-verify`, certificates are verified, with the server's name,
//! against the authorities of the system and those in the file `sslrootcert`.
//! With `sslcert` and `sslkey` (PEM; the key without a password) the client shows
//! a certificate of its own. The files are read again with the secret.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Pool, RecyclingMethod};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::Instant;
use tokio_postgres::config::{Config, Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Address;
use super::failure::{is_refused, not_connected};
use crate::error::{Error, ErrorKind, Result};
use crate::probe::Probed;
use crate::secret::{Secret, SecretRef};

/// Connections of a sink: one commits, one checks.
const CONNECTIONS_MAX: usize = 2;

/// The port of a server unless the URL says another.
const PORT: u16 = 5432;

/// How long a connection may take, with its handshakes: a server that is slower does not serve.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server's machine may not answer to TCP until the connection counts as lost. Without it a failover that
/// sends no reset would hold a commit up for as long as the system's keepalive allows: two hours and more.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a server may refuse a user that it has let in before: a rotation changes the password first, and the secret
/// some seconds or minutes later.
const ROTATION_MAX: Duration = Duration::from_secs(15 * 60);

/// A database, connected to when it is first needed.
pub(super) struct Database {
    secret: SecretRef,
    /// Made when it is first needed. Held to look and to put only, never while the secret is fetched: a future that is
    /// left alone would hold up all others that ask for a connection.
    opened: Mutex<Option<Opened>>,
}

/// A database with which something was begun.
struct Opened {
    pool: Pool,
    /// What the pool was made of.
    url: Secret,
    fetched_at: Instant,
    /// Whether the server has ever let us in.
    let_in: bool,
    /// Since when it refuses us.
    refused_since: Option<Instant>,
}

impl Database {
    pub(super) fn new(secret: SecretRef) -> Self {
        Self { secret, opened: Mutex::new(None) }
    }

    /// Looks whether the secret can be fetched.
    pub(super) async fn probe_secret(&self) -> Probed {
        self.secret.probe().await
    }

    /// Gives a connection. A refused password is fetched again, once; so is one that has grown old.
    pub(super) async fn client(&self) -> Result<Client> {
        let mut got = self.pool(false).await?.get().await;
        if got.as_ref().is_err_and(is_refused) {
            got = self.pool(true).await?.get().await;
        }
        let mut opened = self.opened();
        let opened = opened.as_mut().ok_or_else(|| Error::internal("a database was closed while it was used"))?;
        match got {
            Ok(client) => {
                (opened.let_in, opened.refused_since) = (true, None);
                Ok(client)
            }
            Err(error) if opened.let_in && is_refused(&error) => {
                let since = *opened.refused_since.get_or_insert_with(Instant::now);
                let error = not_connected(error);
                if since.elapsed() > ROTATION_MAX {
                    return Err(error);
                }
                Err(Error::unavailable("the password has changed, and the secret has not yet").because(error))
            }
            Err(error) => Err(not_connected(error)),
        }
    }

    /// Gives the pool, made of the secret's present value if it is new, old or to be renewed. Of several who fetch the
    /// secret at the same time, those who find what they want put there take it.
    async fn pool(&self, renew: bool) -> Result<Pool> {
        let asked_at = Instant::now();
        let known = self.opened().as_ref().map(|known| (known.pool.clone(), known.fetched_at));
        let is_good = |fetched_at: Instant| !renew && fetched_at.elapsed() < self.secret.age_max();
        if let Some((pool, _)) = known.as_ref().filter(|(_, fetched_at)| is_good(*fetched_at)) {
            return Ok(pool.clone());
        }
        let url = match (self.secret.resolve().await, known) {
            (Ok(url), _) => url,
            (Err(error), Some((pool, _))) if !renew && error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "could not look whether a secret has changed; the one that is known may still hold");
                return Ok(pool);
            }
            (Err(error), _) => return Err(error),
        };
        let fetched_at = Instant::now();
        let mut opened = self.opened();
        match opened.as_mut() {
            Some(known) if known.url == url && (!renew || known.fetched_at > asked_at) => known.fetched_at = fetched_at,
            Some(known) => {
                (known.pool, known.url, known.fetched_at) = (open(&url)?, url, fetched_at);
            }
            None => {
                *opened = Some(Opened { pool: open(&url)?, url, fetched_at, let_in: false, refused_since: None });
            }
        }
        let pool = opened.as_ref().map(|known| known.pool.clone());
        pool.ok_or_else(|| Error::internal("a database was not opened"))
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(url: &Secret) -> Result<Pool> {
    let Url { config, verify, files } = Url::parse(url.expose())?;
    let tls = MakeRustlsConnect::new(tls(verify, &files, config.get_ssl_mode())?);
    let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager)
        .max_size(CONNECTIONS_MAX)
        .runtime(deadpool_postgres::Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .build();
    pool.map_err(|e| Error::internal("could not make a pool of connections").because(e))
}

/// Tells where the database of a connection URL is.
pub(super) fn address(url: &str) -> Result<Address> {
    let config = Url::parse(url)?.config;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(folder)) => folder.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(PORT);
    let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres").to_owned();
    Ok(Address { host, port, database })
}

/// What a connection URL says.
struct Url {
    config: Config,
    verify: bool,
    files: TlsFiles,
}

/// The files of certificates that a connection URL names.
#[derive(Default)]
struct TlsFiles {
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

impl Url {
    fn parse(url: &str) -> Result<Self> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut mode = None;
        let mut files = TlsFiles::default();
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value.to_owned()),
                Some((name @ ("sslrootcert" | "sslcert" | "sslkey"), value)) => {
                    let file = Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned());
                    match name {
                        "sslrootcert" => files.root = file,
                        "sslcert" => files.certificate = file,
                        _ => files.key = file,
                    }
                }
                _ => rest.push(pair),
            }
        }
        // The text of the parser's error may hold a piece of the URL, which is a secret.
        let mut config: Config = format!("{base}?{}", rest.join("&")).parse().map_err(|_| {
            Error::config("the secret is not a Postgres URL; it must read postgres://user:password@host:port/database")
        })?;
        let verify = mode.as_deref() != Some("no-verify");
        let ssl_mode = match mode.as_deref() {
            None | Some("prefer" | "allow") if is_here(&config) => SslMode::Disable,
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full" | "no-verify") => SslMode::Require,
            Some(_) => {
                return Err(Error::config(
                    "the Postgres URL has an unknown sslmode; known are disable, prefer, require and no-verify",
                ));
            }
        };
        config.ssl_mode(ssl_mode).connect_timeout(CONNECT_TIMEOUT);
        config.keepalives_idle(SILENCE_MAX / 2).keepalives_interval(SILENCE_MAX / 8).keepalives_retries(4);
        config.tcp_user_timeout(SILENCE_MAX);
        if config.get_application_name().is_none() {
            config.application_name("nexus");
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err(Error::config("the Postgres URL names one of `sslcert` and `sslkey`; a client needs both"));
        }
        Ok(Self { config, verify, files })
    }
}

/// Tells whether all hosts are this machine.
fn is_here(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        Host::Unix(_) => true,
    })
}

fn tls(verify: bool, files: &TlsFiles, mode: SslMode) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("could not set up TLS").because(e))?;
    if !verify {
        let blind = Arc::new(NoVerification(provider));
        return identified(builder.dangerous().with_custom_certificate_verifier(blind), files);
    }
    let mut roots = RootCertStore::empty();
    if mode != SslMode::Disable {
        // A system without authorities is no error: the handshake says so if it needs one.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &files.root {
            roots.add_parsable_certificates(certificates(file)?);
        }
    }
    identified(builder.with_root_certificates(roots), files)
}

/// Has the client show its certificate, if it has one.
fn identified(builder: ConfigBuilder<ClientConfig, WantsClientCert>, files: &TlsFiles) -> Result<ClientConfig> {
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let unreadable = |e| Error::config(format!("could not read the client's key in {key}")).because(e);
    let own = PrivateKeyDer::from_pem_file(key).map_err(unreadable)?;
    builder.with_client_auth_cert(certificates(certificate)?, own).map_err(|e| {
        Error::config(format!("the client's certificate in {certificate} does not go with the key in {key}")).because(e)
    })
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |e| Error::config(format!("could not read the certificates in {file}")).because(e);
    let found = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
    found.collect::<Result<Vec<_>, _>>().map_err(unreadable)
}

/// Takes any certificate, because the URL says `sslmode=no-verify`.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
