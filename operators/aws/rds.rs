//! Tokens for databases of Amazon RDS, which stand in for a password.
//!
//! A token is a presigned request, as the documents of RDS have it (IAM database authentication): nothing is sent to AWS,
//! and the database checks it by itself.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::{AwsSettings, config};
use crate::error::{Error, Result};
use crate::secret::Secret;

/// How long a token lets in: RDS takes none that is older.
const HOLDS: Duration = Duration::from_secs(15 * 60);

/// The port of a server unless the URL says another.
const PORT: u16 = 5432;

/// Puts a token into a connection URL, which names host and user, and asks for TLS.
pub(crate) async fn with_token(url: &Secret, settings: &AwsSettings) -> Result<Secret> {
    let config = config(settings).await;
    let missing = || Error::config("a token for RDS needs AWS credentials, and there are none");
    let provider = config.credentials_provider().ok_or_else(missing)?;
    let credentials = provider
        .provide_credentials()
        .await
        .map_err(|e| Error::unavailable("could not get the AWS credentials for a token for RDS").because(e))?;
    signed(url.expose(), &credentials, config.region().map(AsRef::as_ref), super::config::now())
}

fn signed(url: &str, credentials: &Credentials, region: Option<&str>, now: SystemTime) -> Result<Secret> {
    // The parser's error may hold a piece of the URL, which is a secret.
    let unfit = || Error::config("a token for RDS needs a URL that reads postgres://user@host:port/database");
    let mut url = Url::parse(url).map_err(|_| unfit())?;
    let user = percent_decode_str(url.username()).decode_utf8().map_err(|_| unfit())?.into_owned();
    let host = url.host_str().filter(|_| !user.is_empty()).ok_or_else(unfit)?.to_owned();
    require_tls(&mut url)?;
    let no_region =
        || Error::config(format!("a token for RDS needs the region of {host}; give `aws: {{ region: ... }}`"));
    let region = region_of(&host).or(region).ok_or_else(no_region)?;
    let token = token(credentials, &host, url.port().unwrap_or(PORT), &user, region, now)
        .map_err(|e| Error::internal("could not sign a token for RDS").because(e))?;
    url.set_password(Some(&token)).map_err(|()| unfit())?;
    Ok(Secret::new(url))
}

/// A token goes over the connection as it is, so that it must be known who listens.
fn require_tls(url: &mut Url) -> Result<()> {
    let mode = url.query_pairs().find(|(name, _)| name == "sslmode").map(|(_, mode)| mode.into_owned());
    match mode.as_deref() {
        None => {
            url.query_pairs_mut().append_pair("sslmode", "verify-full");
            Ok(())
        }
        Some("require" | "verify-ca" | "verify-full") => Ok(()),
        Some(_) => Err(Error::config(
            "a token for RDS is sent only by TLS to a server whose certificate is verified; write sslmode=verify-full",
        )),
    }
}

/// Finds the region in a host such as `name.id.eu-central-1.rds.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    host.split_once(".rds.amazonaws.com")?.0.rsplit('.').next()
}

fn token(
    credentials: &Credentials,
    host: &str,
    port: u16,
    user: &str,
    region: &str,
    now: SystemTime,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(HOLDS);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()?;
    let user = utf8_percent_encode(user, NON_ALPHANUMERIC);
    let url = format!("https://{host}:{port}/?Action=connect&DBUser={user}");
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(request, &params.into())?.into_parts();
    let mut token = url.trim_start_matches("https://").to_owned();
    for (name, value) in instructions.params() {
        token.push_str(&format!("&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn credentials() -> Credentials {
        let session = Some("AQoDYXdz/EX+ample==".to_owned());
        Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", session, None, "test")
    }

    /// 2026-11-22 08:00 UTC.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_334_400)
    }

    /// The parameters of a query, decoded, in no order.
    fn parameters(token: &str) -> Vec<(String, String)> {
        let mut found: Vec<_> = Url::parse(&format!("https://{token}")).unwrap().query_pairs().into_owned().collect();
        found.sort();
        found
    }

    #[test]
    fn a_token_is_what_botocore_makes() {
        let host = "orders.abc123.eu-central-1.rds.amazonaws.com";
        // By generate_db_auth_token of botocore, with the same credentials and time.
        let theirs = "orders.abc123.eu-central-1.rds.amazonaws.com:5432/?Action=connect&DBUser=nexus%20writer\
            &X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=AKIDEXAMPLE%2F20261122%2Feu-central-1%2Frds-db%2Faws4_request\
            &X-Amz-Date=20261122T080000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host\
            &X-Amz-Security-Token=AQoDYXdz%2FEX%2Bample%3D%3D\
            &X-Amz-Signature=86e25ecbc4b06ea0011f95c9258d4860583b31c4a9c5e24210ab6480031bbcc8";
        let ours = token(&credentials(), host, 5432, "nexus writer", "eu-central-1", now()).unwrap();
        assert_eq!(parameters(&ours), parameters(theirs));
        assert!(ours.starts_with("orders.abc123.eu-central-1.rds.amazonaws.com:5432/?Action=connect&"), "{ours}");
    }

    #[test]
    fn a_url_gets_its_token_and_tls() {
        let url = "postgres://nexus@orders.abc123.eu-central-1.rds.amazonaws.com/shop?application_name=a";
        let signed = signed(url, &credentials(), None, now()).unwrap();
        let signed = Url::parse(signed.expose()).unwrap();
        assert_eq!(signed.query(), Some("application_name=a&sslmode=verify-full"));
        let token = percent_decode_str(signed.password().unwrap()).decode_utf8().unwrap();
        let credential = parameters(&token).into_iter().find(|(name, _)| name == "X-Amz-Credential").unwrap().1;
        assert_eq!(credential, "AKIDEXAMPLE/20261122/eu-central-1/rds-db/aws4_request");
    }

    #[test]
    fn a_url_without_tls_region_or_user_gets_no_token() {
        for (url, said) in [
            ("postgres://nexus@db.example.com/shop?sslmode=prefer", "sslmode=verify-full"),
            ("postgres://nexus@db.example.com/shop?sslmode=no-verify", "sslmode=verify-full"),
            ("postgres://nexus@db.example.com/shop", "region of db.example.com"),
            ("postgres://db.example.com/shop", "user@host"),
            ("host=db.example.com user=nexus", "user@host"),
        ] {
            let error = signed(url, &credentials(), None, now()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
