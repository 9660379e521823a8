//! The configuration that the clients of all services share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::http::HttpClient;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::credentials::Kept;
use super::{AwsSettings, Service};
use crate::clock::{Clock, SystemClock};

/// The variable for an endpoint of one service, before `_` and the service, and the key of a profile.
const ENDPOINT: (&str, &str) = ("AWS_ENDPOINT_URL", "endpoint_url");

/// What has been loaded. The lock is held to look and to put only: who loads may be a future that is left alone for a while.
static LOADED: Mutex<Vec<(AwsSettings, SdkConfig)>> = Mutex::new(Vec::new());

/// Gives the configuration by what the pipeline says, the environment, the profile and the machine's identity.
pub async fn config(settings: &AwsSettings) -> SdkConfig {
    let known = |loaded: &[(AwsSettings, SdkConfig)]| {
        loaded.iter().find(|(of, _)| of == settings).map(|(_, known)| known.clone())
    };
    if let Some(known) = known(&LOADED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return known;
    }
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let config = load(settings, http).await;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    // Of several that were loaded at once all take the first, and share its credentials.
    known(&loaded).unwrap_or_else(|| {
        loaded.push((settings.clone(), config.clone()));
        config
    })
}

async fn load(settings: &AwsSettings, http: impl HttpClient + 'static) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(fips) = settings.fips {
        loader = loader.use_fips(fips);
    }
    let mut config = loader.load().await;
    if !settings.endpoints.is_empty() {
        let endpoints = Endpoints { settings: settings.clone(), beneath: config.clone() };
        config = config.into_builder().service_config(endpoints).build();
    }
    for role in &settings.roles {
        let mut assumed = AssumeRoleProvider::builder(&role.arn).session_name(&role.session_name).configure(&config);
        if let Some(id) = &role.external_id {
            assumed = assumed.external_id(id);
        }
        // The provider before it stands in the configuration.
        config = with_provider(config, assumed.build().await);
    }
    match config.credentials_provider() {
        Some(provider) => with_provider(config, Kept::new(provider)),
        None => config,
    }
}

fn with_provider(
    config: SdkConfig,
    provider: impl aws_credential_types::provider::ProvideCredentials + 'static,
) -> SdkConfig {
    config.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build()
}

/// Finds the endpoint that the pipeline, the environment or the profile sets for a service, else for all services.
#[cfg(feature = "s3")]
pub(crate) fn endpoint_of(config: &SdkConfig, service: Service) -> Option<String> {
    let (env, profile) = ENDPOINT;
    let key = ServiceConfigKey::builder().service_id(service.id()).env(env).profile(profile).build().ok();
    let own = config.service_config().zip(key).and_then(|(found, key)| found.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Tells the time, as the SDK wants it.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(SystemClock.now_us()).unwrap_or(0))
}

/// Endpoints that the pipeline names, before those of the environment and the profile.
#[derive(Debug)]
struct Endpoints {
    settings: AwsSettings,
    beneath: SdkConfig,
}

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let service = Service::ALL.into_iter().find(|service| service.id() == key.service_id());
        let named = service.filter(|_| key.env() == ENDPOINT.0).and_then(|of| self.settings.endpoints.get(&of));
        named.cloned().or_else(|| self.beneath.service_config()?.load_config(key))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;

    /// Notes the hosts that are called, and connects to none.
    #[derive(Debug, Clone, Default)]
    struct Hosts(Arc<Mutex<Vec<String>>>);

    impl HttpConnector for Hosts {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let url = url::Url::parse(request.uri()).unwrap();
            self.0.lock().unwrap().push(url.host_str().unwrap().to_owned());
            HttpConnectorFuture::ready(Err(ConnectorError::user("nothing is called".into())))
        }
    }

    /// Gives the hosts at which each service is called.
    async fn hosts(settings: &AwsSettings) -> Vec<String> {
        let hosts = Hosts::default();
        let connector = SharedHttpConnector::new(hosts.clone());
        let config = load(settings, http_client_fn(move |_, _| connector.clone())).await;
        let credentials = Credentials::new("key", "secret", None, None, "test");
        let config = with_provider(config, credentials);
        let _ = aws_sdk_secretsmanager::Client::new(&config).get_secret_value().secret_id("s").send().await;
        #[cfg(feature = "kinesis")]
        let _ = aws_sdk_kinesis::Client::new(&config).describe_stream_summary().stream_name("s").send().await;
        #[cfg(feature = "s3")]
        let _ = aws_sdk_sqs::Client::new(&config).list_queues().send().await;
        let role = AssumeRoleProvider::builder("arn:aws:iam::111122223333:role/r").configure(&config).build().await;
        let _ = aws_credential_types::provider::ProvideCredentials::provide_credentials(&role).await;
        let mut called = hosts.0.lock().unwrap().clone();
        called.dedup();
        called
    }

    fn settings(fips: bool) -> AwsSettings {
        AwsSettings { region: Some("us-east-2".into()), fips: Some(fips), ..AwsSettings::default() }
    }

    #[tokio::test]
    #[cfg(all(feature = "kinesis", feature = "s3"))]
    async fn fips_endpoints_are_called_where_they_are_wanted() {
        let expected = ["secretsmanager-fips", "kinesis-fips", "sqs-fips", "sts-fips"];
        assert_eq!(hosts(&settings(true)).await, expected.map(|name| format!("{name}.us-east-2.amazonaws.com")));
        let expected = ["secretsmanager", "kinesis", "sqs", "sts"];
        assert_eq!(hosts(&settings(false)).await, expected.map(|name| format!("{name}.us-east-2.amazonaws.com")));
    }

    #[tokio::test]
    #[cfg(all(feature = "kinesis", feature = "s3"))]
    async fn an_endpoint_that_is_named_is_called_for_its_service_alone() {
        let mut named = settings(false);
        named.endpoints.insert(Service::Sqs, "https://vpce-1.sqs.example.com".into());
        named.endpoints.insert(Service::Sts, "https://vpce-2.sts.example.com".into());
        let called = hosts(&named).await;
        let expected = [
            "secretsmanager.us-east-2.amazonaws.com",
            "kinesis.us-east-2.amazonaws.com",
            "vpce-1.sqs.example.com",
            "vpce-2.sts.example.com",
        ];
        assert_eq!(called, expected);
    }
}
