//! The spans of an epoch.

use std::time::Duration;

use serde_json::{Value, json};

use crate::job::steps::{EpochTold, Mark, Step};
use crate::plan::describe::Described;

/// A span within the process, as OTLP numbers it.
const INTERNAL: u8 = 1;

/// Makes the request that brings an epoch's trace to a collector.
pub fn request(
    told: &EpochTold,
    pipeline: &str,
    described: Option<&Described>,
    resource: &[(String, String)],
) -> Value {
    let trace = uuid::Uuid::new_v4().simple().to_string();
    let root = span_id();
    let at = |since: Duration| {
        let us = i128::from(told.closed_at_us) + i128::try_from(since.as_micros()).unwrap_or(0);
        (us * 1000).to_string()
    };
    let span = |id: &str, parent: Option<&str>, name: &str, from: Duration, to: Duration, attributes: Vec<Value>| {
        json!({
            "traceId": trace,
            "spanId": id,
            "parentSpanId": parent.unwrap_or_default(),
            "name": name,
            "kind": INTERNAL,
            "startTimeUnixNano": at(from),
            "endTimeUnixNano": at(to),
            "attributes": attributes,
            "status": {},
        })
    };
    let counts = [
        ("nexus.epoch", told.epoch),
        ("nexus.generation", told.generation),
        ("nexus.records", told.records),
        ("nexus.rows_out", told.rows_out),
        ("nexus.quarantined", told.quarantined),
        ("nexus.bytes", told.bytes),
    ];
    let counts =
        counts.into_iter().map(|(name, count)| json!({ "key": name, "value": { "intValue": count.to_string() } }));
    let mut attributes: Vec<Value> = counts.collect();
    attributes.push(text("nexus.pipeline", pipeline));
    let mut spans = vec![span(&root, None, "epoch", Duration::ZERO, told.total(), attributes)];
    for mark in &told.marks {
        let name = format!("{} {}", mark.step.name(), mark.of);
        let attributes = vec![text("nexus.step", mark.step.name()), text("nexus.stage", &mark.of)];
        spans.push(span(&span_id(), Some(&root), &name, start(told, mark, described), mark.at, attributes));
    }
    let resource: Vec<Value> = resource.iter().map(|(name, value)| text(name, value)).collect();
    let scope = json!({ "name": "nexus", "version": env!("CARGO_PKG_VERSION") });
    json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }],
    })
}

/// Gives when a stage could begin with its part: when those before it had passed the barrier on.
fn start(told: &EpochTold, mark: &Mark, described: Option<&Described>) -> Duration {
    let done =
        |step: Step, of: &str| told.marks.iter().find(|mark| mark.step == step && mark.of == of).map(|mark| mark.at);
    let passed = |name: &str| done(Step::Transform, name).or_else(|| done(Step::Decode, name));
    let begun = match mark.step {
        Step::Cut => None,
        Step::Decode => done(Step::Cut, &mark.of),
        Step::Transform => {
            let table = described.and_then(|described| described.tables.iter().find(|table| table.name == mark.of));
            table.and_then(|table| table.reads.iter().filter_map(|read| passed(read)).max())
        }
        Step::Prepare => mark.of.split('/').next().and_then(passed),
        Step::Record => told.marks.iter().filter(|mark| mark.step < Step::Record).map(|mark| mark.at).max(),
        Step::Commit => told.marks.iter().find(|mark| mark.step == Step::Record).map(|mark| mark.at),
    };
    begun.unwrap_or_default().min(mark.at)
}

fn text(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": { "stringValue": value } })
}

/// Makes the number of a span: 8 bytes of chance, in hexadecimal digits.
fn span_id() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_begins_where_the_one_before_it_ends() {
        let mark = |step, of: &str, ms| Mark { step, of: of.to_owned(), at: Duration::from_millis(ms) };
        let told = EpochTold {
            epoch: 3,
            generation: 1,
            closed_at_us: 1_000_000,
            marks: vec![
                mark(Step::Cut, "a", 1),
                mark(Step::Decode, "a", 5),
                mark(Step::Transform, "bronze.a", 6),
                mark(Step::Prepare, "a/quarantine", 7),
                mark(Step::Prepare, "bronze.a/parquet", 9),
                mark(Step::Record, "p", 12),
                mark(Step::Commit, "bronze.a/parquet", 20),
            ],
            records: 10,
            rows_out: 9,
            quarantined: 1,
            bytes: 100,
        };
        let request = request(&told, "p", None, &[("service.name".into(), "nexus".into())]);
        let spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        let ms = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<i64>().unwrap() / 1_000_000 - 1000;
        let told: Vec<_> = spans
            .iter()
            .map(|span| (span["name"].as_str().unwrap(), ms(span, "startTimeUnixNano"), ms(span, "endTimeUnixNano")))
            .collect();
        assert_eq!(
            told,
            [
                ("epoch", 0, 20),
                ("cut a", 0, 1),
                ("decode a", 1, 5),
                ("transform bronze.a", 0, 6),
                ("prepare a/quarantine", 5, 7),
                ("prepare bronze.a/parquet", 6, 9),
                ("record p", 9, 12),
                ("commit bronze.a/parquet", 12, 20),
            ]
        );
        assert!(spans[1..].iter().all(|span| span["parentSpanId"] == spans[0]["spanId"]));
    }
}
