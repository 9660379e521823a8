//! Whether what a pipeline names is there, can be reached, and may be used: all at once, by calls that change nothing.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use nexus_operators::aws::AwsSettings;
use nexus_operators::probe::{Lack, Probed};
use nexus_operators::store::{Access, Store};

use crate::plan::Plan;
use crate::spec::Kept;

/// How long a probe may take: a service that does not answer by then is not one to begin with.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// What was found of one thing.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Where the file names it, such as `sources.clicks`.
    pub place: String,
    /// What it is.
    pub thing: String,
    /// What is missing; nothing if all is well.
    pub lack: Option<Lack>,
    /// What was found, or how it was told what is missing.
    pub words: String,
}

/// A thing, and the work of looking at it.
struct Probe {
    place: String,
    thing: String,
    work: BoxFuture<'static, Probed>,
}

/// Looks at all that a pipeline names, everything at once.
pub async fn look(plan: &Plan) -> Vec<Finding> {
    let mut probes = Vec::new();
    sources(plan, &mut probes);
    folders(plan, &mut probes);
    for name in plan.loaded.spec.secrets.keys() {
        if let Some(secret) = plan.loaded.secret_ref(name) {
            let work = async move { secret.probe().await };
            probes.push(probe(format!("secrets.{name}"), "secret", work));
        }
    }
    tables(plan, &mut probes);
    join_all(probes.into_iter().map(found)).await
}

fn probe(place: String, thing: impl Into<String>, work: impl Future<Output = Probed> + Send + 'static) -> Probe {
    Probe { place, thing: thing.into(), work: Box::pin(work) }
}

async fn found(probe: Probe) -> Finding {
    let Probe { place, thing, work } = probe;
    let (lack, words) = match tokio::time::timeout(PROBE_MAX, work).await {
        Ok(Ok(words)) => (None, words),
        Ok(Err(lacking)) => (Some(lacking.lack), lacking.error.to_string()),
        Err(_) => (Some(Lack::Network), format!("there was no answer within {} s", PROBE_MAX.as_secs())),
    };
    Finding { place, thing, lack, words }
}

#[cfg(any(feature = "kinesis", feature = "s3"))]
fn sources(plan: &Plan, probes: &mut Vec<Probe>) {
    for source in plan.sources.values() {
        let Some(spec) = plan.loaded.spec.sources.get(&source.name) else { continue };
        let place = format!("sources.{}", source.name);
        #[cfg(feature = "kinesis")]
        if let Some(kinesis) = &spec.kinesis {
            use nexus_operators::source::kinesis;
            let settings = source.kinesis_settings(kinesis, &plan.loaded);
            let work = async move { kinesis::probe(&settings?).await };
            probes.push(probe(place.clone(), format!("stream {}", kinesis.stream), work));
        }
        #[cfg(feature = "s3")]
        if let Some(s3) = &spec.s3 {
            use nexus_operators::source::s3::{probe_prefix, probe_queue};
            for prefix in &s3.allow {
                let (settings, below) = (source.s3_settings(s3, &plan.loaded), prefix.clone());
                let work = async move { probe_prefix(&settings, &below).await };
                probes.push(probe(place.clone(), format!("objects {prefix}"), work));
            }
            let settings = source.s3_settings(s3, &plan.loaded);
            let work = async move { probe_queue(&settings).await };
            probes.push(probe(place.clone(), format!("queue {}", s3.queue), work));
        }
    }
}

/// No other source has anything to look at.
#[cfg(not(any(feature = "kinesis", feature = "s3")))]
fn sources(_: &Plan, _: &mut Vec<Probe>) {}

/// The lake, the state and archives, each by who keeps it.
fn folders(plan: &Plan, probes: &mut Vec<Probe>) {
    let mut seen: Vec<(String, AwsSettings)> = Vec::new();
    for Kept { place, url, aws, .. } in plan.loaded.kept() {
        let of = (url, aws);
        if !seen.contains(&of) {
            seen.push(of.clone());
            let ((url, aws), encryption) = (of, plan.loaded.encryption());
            let (access, thing) = (Access { encryption, aws }, format!("folder {url}"));
            probes.push(probe(place, thing, async move { Store::probe(&url, &access).await }));
        }
    }
}

#[cfg(feature = "postgres")]
fn tables(plan: &Plan, probes: &mut Vec<Probe>) {
    use nexus_operators::probe::Lacking;

    for table in &plan.tables {
        let Some(spec) = plan.spec_of(table).and_then(|spec| spec.postgres.as_ref()) else { continue };
        let sink = crate::job::postgres_sink(plan, table, spec, (String::new(), 0), Store::memory());
        let thing = format!("table {}.{}", spec.schema, spec.table);
        probes.push(probe(table.name(), thing, async move { sink.map_err(Lacking::from)?.probe().await }));
    }
}

#[cfg(not(feature = "postgres"))]
fn tables(_: &Plan, _: &mut Vec<Probe>) {}
