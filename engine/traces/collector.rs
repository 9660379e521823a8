//! Who takes traces, as the environment says
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter>).

use std::time::Duration;

use nexus_operators::{Error, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::wrong;

/// How long one delivery may take, unless the environment says otherwise.
const TIMEOUT_MS: u64 = 10_000;

/// A collector.
pub struct Collector {
    client: reqwest::Client,
    url: String,
    /// What tells this process from others: `service.name` and what the environment adds.
    pub resource: Vec<(String, String)>,
}

impl Collector {
    /// Reads the environment: `OTEL_EXPORTER_OTLP_ENDPOINT` or `..._TRACES_ENDPOINT`, `..._HEADERS` and `..._TIMEOUT`,
    /// `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SDK_DISABLED`. Gives nothing if no endpoint is named.
    ///
    /// # Errors
    ///
    /// `Config` if a variable cannot be understood.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let of_traces = |name: &str| {
            let [own, general] = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
            env(&own).map(|value| (own, value)).or_else(|| env(&general).map(|value| (general, value)))
        };
        let Some((name, endpoint)) = of_traces("ENDPOINT") else { return Ok(None) };
        if env("OTEL_SDK_DISABLED").is_some_and(|is| is.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let parsed = url::Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        parsed.ok_or_else(|| wrong(&name, "is no HTTP address, such as http://127.0.0.1:4318"))?;
        if let Some((name, _)) = of_traces("PROTOCOL").filter(|(_, protocol)| protocol == "grpc") {
            return Err(wrong(&name, "is grpc, and traces go by HTTP"));
        }
        let url = match name.contains("TRACES") {
            true => endpoint,
            false => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
        };
        let timeout = match of_traces("TIMEOUT") {
            None => TIMEOUT_MS,
            Some((name, ms)) => ms.parse().map_err(|_| wrong(&name, "is no number of milliseconds"))?,
        };
        let mut headers = HeaderMap::new();
        if let Some((variable, list)) = of_traces("HEADERS") {
            for (name, value) in pairs(&variable, &list)? {
                // The values are secrets: they are in no error.
                let name = HeaderName::try_from(name).map_err(|_| wrong(&variable, "has a name that is no header"))?;
                let mut value =
                    HeaderValue::try_from(value).map_err(|_| wrong(&variable, "has a value that is no header's"))?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        let added = env("OTEL_RESOURCE_ATTRIBUTES").map(|list| pairs("OTEL_RESOURCE_ATTRIBUTES", &list)).transpose()?;
        let mut resource = added.unwrap_or_default();
        if let Some(name) = env("OTEL_SERVICE_NAME") {
            resource.retain(|(known, _)| known != "service.name");
            resource.push(("service.name".to_owned(), name));
        } else if resource.iter().all(|(known, _)| known != "service.name") {
            resource.push(("service.name".to_owned(), "nexus".to_owned()));
        }
        resource.push(("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
        let agent = concat!("nexus/", env!("CARGO_PKG_VERSION"));
        let client = reqwest::Client::builder().user_agent(agent).timeout(Duration::from_millis(timeout));
        let client = client.default_headers(headers).build();
        let client = client.map_err(|e| Error::internal("could not make an HTTP client").because(e))?;
        Ok(Some(Self { client, url, resource }))
    }

    /// Brings a request to the collector.
    pub async fn take(&self, request: &serde_json::Value) -> Result<()> {
        let body = request.to_string();
        let request = self.client.post(&self.url).header("content-type", "application/json").body(body);
        let failed = |e: reqwest::Error| Error::unavailable("could not deliver a trace").because(e.without_url());
        request.send().await.map_err(failed)?.error_for_status().map(drop).map_err(failed)
    }
}

/// Reads a list such as `a=1,b=2`, whose values are percent-encoded.
fn pairs(variable: &str, list: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for part in list.split(',').filter(|part| !part.trim().is_empty()) {
        let (name, value) =
            part.split_once('=').ok_or_else(|| wrong(variable, "is no list such as name=value,name=value"))?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8();
        let value = value.map_err(|_| wrong(variable, "has a value that is not percent-encoded UTF-8"))?;
        pairs.push((name.trim().to_owned(), value.into_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Collector>> {
        let found =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Collector::from_env(found)
    }

    #[test]
    fn the_environment_names_the_collector() {
        assert!(of(&[]).unwrap().is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        let collector = of(&[endpoint, ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=a%20b")]).unwrap().unwrap();
        assert_eq!(collector.url, "http://127.0.0.1:4318/v1/traces");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(collector.resource[..2], [pair("deployment.environment", "a b"), pair("service.name", "nexus")]);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://tempo/otlp");
        assert_eq!(of(&[endpoint, own]).unwrap().unwrap().url, "http://tempo/otlp");
        assert!(of(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_understood_is_refused_without_its_values() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10 s"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api key=s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret%0A"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "127.0.0.1:4318"),
        ] {
            let error = of(&[endpoint, (name, value)]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(name) && !error.contains("s3cret"), "{name}={value}: {error}");
        }
    }
}
