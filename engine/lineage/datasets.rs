//! Names of datasets, by the conventions of OpenLineage (<https://openlineage.io/docs/spec/naming>).
//!
//! | what | namespace | name |
//! |---|---|---|
//! | a folder or file of this machine | `file` | its absolute path |
//! | below S3 | `s3://<bucket>` | the key |
//! | a table of PostgreSQL | `postgres://<host>:<port>` | `<database>.<schema>.<table>` |
//! | a Kinesis stream, for which there is no convention: as that of AWS Glue | `arn:aws:kinesis:<region>:<account>`, or `kinesis` if it has no ARN | `stream/<name>` |
//! | rows that are made, or handed over by a service | the job's | `<pipeline>.<source>` |

use serde::Serialize;

use crate::plan::Plan;

/// The name of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    /// Where it is.
    pub namespace: String,
    /// What it is called there.
    pub name: String,
}

impl Dataset {
    fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Names a path, or what lies below `s3://bucket`.
    pub fn at(place: &str) -> Self {
        match place.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
            Some((bucket, key)) => Self::new(format!("s3://{bucket}"), key.trim_matches('/')),
            None => Self::new("file", place.trim_end_matches('/')),
        }
    }

    /// Names what a source reads; an S3 source may read below several prefixes.
    pub fn of_source(plan: &Plan, source: &str, job_namespace: &str) -> Vec<Self> {
        let spec = plan.loaded.spec.sources.get(source).filter(|_| !is_handed_over(plan, source));
        let made = || Self::new(job_namespace, format!("{}.{source}", plan.loaded.spec.name));
        let Some(spec) = spec else { return vec![made()] };
        if let Some(s3) = &spec.s3 {
            return s3.allow.iter().map(|prefix| Self::at(prefix)).collect();
        }
        if let Some(kinesis) = &spec.kinesis {
            return vec![Self::of_stream(&kinesis.stream)];
        }
        vec![plan.loaded.source_glob(source).map_or_else(made, |glob| Self::at(&glob))]
    }

    fn of_stream(stream: &str) -> Self {
        match stream.split_once(":stream/") {
            Some((arn, name)) => Self::new(arn, format!("stream/{name}")),
            None => Self::new("kinesis", format!("stream/{stream}")),
        }
    }

    /// Names a table of Postgres.
    #[cfg(feature = "postgres")]
    pub fn of_postgres(address: &nexus_operators::sink::postgres::Address, schema: &str, table: &str) -> Self {
        let nexus_operators::sink::postgres::Address { host, port, database } = address;
        Self::new(format!("postgres://{host}:{port}"), format!("{database}.{schema}.{table}"))
    }
}

fn is_handed_over(plan: &Plan, source: &str) -> bool {
    plan.sources.get(source).is_some_and(|plan| plan.embedded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let named = |dataset: Dataset| format!("{} {}", dataset.namespace, dataset.name);
        assert_eq!(named(Dataset::at("/srv/lake/gold/daily/")), "file /srv/lake/gold/daily");
        assert_eq!(named(Dataset::at("s3://bucket/lake/gold/daily")), "s3://bucket lake/gold/daily");
        assert_eq!(named(Dataset::at("s3://bucket")), "s3://bucket ");
        let arn = "arn:aws:kinesis:us-west-2:123456789012:stream/orders";
        assert_eq!(named(Dataset::of_stream(arn)), "arn:aws:kinesis:us-west-2:123456789012 stream/orders");
        assert_eq!(named(Dataset::of_stream("orders")), "kinesis stream/orders");
    }
}
