//! What a request asks for, as IAM sees it.

use serde_json::Value;

use super::http::Head;

/// An action on a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The action, such as `s3:GetObject`.
    pub action: String,
    /// What the request names: a bucket's object, a bucket, a queue, a stream; nothing if it names none.
    pub resource: Option<String>,
    /// The prefix of a listing.
    pub prefix: Option<String>,
    /// The access key that it is signed with.
    pub by: Option<String>,
}

impl Call {
    /// Gives all that a request asks for.
    pub fn all(head: &Head, body: &[u8]) -> Vec<Self> {
        let mut all = match head.header("x-amz-target") {
            Some(target) => Self::of_json(target, body).into_iter().collect(),
            None => Self::of_s3(head, body),
        };
        let by = signed_by(head).map(|(_, key)| key);
        all.iter_mut().for_each(|call| call.by.clone_from(&by));
        all
    }

    fn of_json(target: &str, body: &[u8]) -> Option<Self> {
        let (service, name) = target.split_once('.')?;
        let asked: Value = serde_json::from_slice(body).ok()?;
        let service = match service {
            "secretsmanager" => service,
            _ if service.starts_with("Kinesis") => "kinesis",
            _ => "sqs",
        };
        let last = |text: &str| text.rsplit('/').next().map(str::to_owned);
        let named = ["StreamName", "StreamARN", "QueueUrl"].into_iter().find_map(|field| asked[field].as_str());
        let action = format!("{service}:{}", name.trim_end_matches("Batch"));
        Some(Self { action, resource: named.and_then(last), prefix: None, by: None })
    }

    fn of_s3(head: &Head, body: &[u8]) -> Vec<Self> {
        let path = decoded(head.path.trim_start_matches('/'));
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        let by_version = if head.asks("versionId") { "s3:GetObjectVersion" } else { "s3:GetObject" };
        let action = match head.method.as_str() {
            "GET" if head.asks("list-type") => {
                let (action, resource) = ("s3:ListBucket".to_owned(), Some(bucket.to_owned()));
                return vec![Self { action, resource, prefix: Some(decoded(head.parameter("prefix"))), by: None }];
            }
            "POST" if head.asks("delete") => {
                let text = String::from_utf8_lossy(body).into_owned();
                let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
                let call = |key| Self::on_object("s3:DeleteObject", bucket, key);
                return keys.map(call).collect();
            }
            "GET" | "HEAD" if !key.is_empty() => by_version,
            "PUT" if !key.is_empty() => "s3:PutObject",
            "POST" if head.asks("uploads") || head.asks("uploadId") => "s3:PutObject",
            "DELETE" if head.asks("uploadId") => "s3:AbortMultipartUpload",
            "DELETE" if !key.is_empty() => "s3:DeleteObject",
            other => return vec![Self::on_object(&format!("s3:{other} {}?{}", head.path, head.query), bucket, key)],
        };
        vec![Self::on_object(action, bucket, key)]
    }

    fn on_object(action: &str, bucket: &str, key: &str) -> Self {
        Self { action: action.to_owned(), resource: Some(format!("{bucket}/{key}")), prefix: None, by: None }
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Gives the service that a request is signed for, and the access key: `Credential=KEY/date/region/service/aws4_request`.
pub fn signed_by(head: &Head) -> Option<(String, String)> {
    let scope = head.header("authorization")?.split_once("Credential=")?.1.split(',').next()?;
    let mut parts = scope.split('/');
    let (key, service) = (parts.next()?, parts.nth(2)?);
    Some((service.to_owned(), key.to_owned()))
}
