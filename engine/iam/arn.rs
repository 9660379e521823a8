//! Names of resources (ARNs): `arn:partition:service:region:account:resource`.

use serde_json::{Value, json};

/// Where resources are that the pipeline file gives by their names alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's number; `*` for any.
    pub id: String,
    /// The region, such as `eu-central-1`; `*` for any.
    pub region: String,
}

impl Account {
    /// Gives the ARN of a stream, of which the name or the ARN is known.
    pub fn stream(&self, stream: &str) -> String {
        self.arn_of("kinesis", stream, &format!("stream/{stream}"))
    }

    /// Gives the ARN of a queue from its URL, `https://sqs.region.amazonaws.com/account/name`.
    pub fn queue(&self, url: &str) -> String {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let mut parts = rest.split('/');
        let host = parts.next().unwrap_or_default();
        let (name, account) = (parts.next_back().unwrap_or("*"), parts.next_back());
        let is_number = |id: &&str| id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_digit());
        let here = Self {
            id: account.filter(is_number).map_or_else(|| self.id.clone(), str::to_owned),
            region: region_of(host).map_or_else(|| self.region.clone(), str::to_owned),
        };
        here.named("sqs", name)
    }

    /// Gives the ARN of a bucket.
    pub fn bucket(&self, bucket: &str) -> String {
        format!("arn:{}:s3:::{bucket}", self.partition())
    }

    /// Gives the ARN of all objects below a prefix.
    pub fn objects(&self, bucket: &str, prefix: &str) -> String {
        format!("{}/{}*", self.bucket(bucket), escaped(prefix))
    }

    /// Gives the ARN of a secret, of which the name or the ARN is known. AWS adds six letters to the name.
    pub fn secret(&self, id: &str) -> String {
        self.arn_of("secretsmanager", id, &format!("secret:{id}-??????"))
    }

    /// Gives the ARN of a key in KMS, of which the id, the alias or the ARN is known. A right on a key by its alias is one
    /// on all keys under a condition.
    pub fn key(&self, key: &str) -> (String, Option<Value>) {
        let (any, alias) = match key.split_once(":alias/") {
            Some((arn, alias)) => (format!("{arn}:key/*"), alias),
            None => match key.strip_prefix("alias/") {
                Some(alias) => (self.named("kms", "key/*"), alias),
                None => return (self.arn_of("kms", key, &format!("key/{key}")), None),
            },
        };
        let condition = json!({ "ForAnyValue:StringEquals": { "kms:ResourceAliases": format!("alias/{alias}") } });
        (any, Some(condition))
    }

    /// Gives the ARN of all users of all databases: which ones it is that a secret names cannot be told.
    pub fn database_users(&self) -> String {
        self.named("rds-db", "dbuser:*/*")
    }

    /// Gives the name of a service's VPC endpoint.
    pub fn endpoint(&self, service: &str) -> String {
        let region = if self.region == "*" { "REGION" } else { &self.region };
        let china = if self.partition() == "aws-cn" && service != "s3" { "cn." } else { "" };
        format!("{china}com.amazonaws.{region}.{service}")
    }

    fn arn_of(&self, service: &str, given: &str, resource: &str) -> String {
        if given.starts_with("arn:") { given.to_owned() } else { self.named(service, resource) }
    }

    fn named(&self, service: &str, resource: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{resource}", self.partition(), self.region, self.id)
    }

    fn partition(&self) -> &'static str {
        match self.region.as_str() {
            region if region.starts_with("cn-") => "aws-cn",
            region if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        }
    }
}

/// Gives the ARN of a consumer of a stream, of which the name or the ARN is known. AWS adds the time of its registration to
/// the name.
pub fn consumer(stream: &str, consumer: &str) -> String {
    if consumer.starts_with("arn:") { consumer.to_owned() } else { format!("{stream}/consumer/{consumer}:*") }
}

/// Parts `s3://bucket/prefix`; nothing for a place that is not on S3.
pub fn in_bucket(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    Some(rest.split_once('/').unwrap_or((rest, "")))
}

/// Writes a text so that a policy takes it for itself, and not for a pattern.
pub fn escaped(text: &str) -> String {
    text.replace('$', "${$}").replace('*', "${*}").replace('?', "${?}")
}

/// Finds the region in a host of AWS, `sqs.region.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    let (before, _) = host.split_once(".amazonaws.com")?;
    before.split('.').next_back().filter(|region| region.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(region: &str) -> Account {
        Account { id: "111122223333".into(), region: region.into() }
    }

    #[test]
    fn resources_are_named() {
        let here = account("eu-central-1");
        assert_eq!(here.stream("clicks"), "arn:aws:kinesis:eu-central-1:111122223333:stream/clicks");
        let other = "arn:aws:kinesis:us-east-1:444455556666:stream/clicks";
        assert_eq!(here.stream(other), other);
        let queue = here.queue("https://sqs.us-gov-west-1.amazonaws.com/444455556666/landed");
        assert_eq!(queue, "arn:aws:sqs:us-gov-west-1:444455556666:landed".replace("arn:aws:", "arn:aws-us-gov:"));
        assert_eq!(here.queue("http://127.0.0.1:4566/q/landed"), "arn:aws:sqs:eu-central-1:111122223333:landed");
        assert_eq!(here.secret("db/pg"), "arn:aws:secretsmanager:eu-central-1:111122223333:secret:db/pg-??????");
        assert_eq!(account("cn-north-1").objects("lake", "a*b/"), "arn:aws-cn:s3:::lake/a${*}b/*");
    }

    #[test]
    fn keys_are_named_by_id_or_alias() {
        let here = account("eu-central-1");
        assert_eq!(here.key("1234-5678"), ("arn:aws:kms:eu-central-1:111122223333:key/1234-5678".into(), None));
        for alias in ["alias/lake", "arn:aws:kms:eu-central-1:111122223333:alias/lake"] {
            let (key, condition) = here.key(alias);
            assert_eq!(key, "arn:aws:kms:eu-central-1:111122223333:key/*");
            assert_eq!(condition.unwrap()["ForAnyValue:StringEquals"]["kms:ResourceAliases"], "alias/lake");
        }
    }

    #[test]
    fn endpoints_are_named_by_region() {
        assert_eq!(account("eu-central-1").endpoint("sqs"), "com.amazonaws.eu-central-1.sqs");
        assert_eq!(account("cn-north-1").endpoint("sqs"), "cn.com.amazonaws.cn-north-1.sqs");
        assert_eq!(account("*").endpoint("s3"), "com.amazonaws.REGION.s3");
    }
}
